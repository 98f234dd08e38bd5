"""A seeded plan on either broker, which is killed with workers in the middle; judged by a record outside agentq."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from agentq.agents.registry import load_agents
from agentq.chaos import plan
from agentq.chaos.judge import End, History, judge
from agentq.chaos.producer import Accepted
from agentq.chaos.record import ServiceProcess
from agentq.chaos.strike import Hit
from agentq.chaos.tools import SERVICE
from agentq.client import Client
from agentq.client.sync import Session
from agentq.settings import Settings
from tests.conftest import new_tenant
from tests.support.brokers import Broker
from tests.support.fleet import Fleet
from tests.support.until import until

AGENTS = "agentq.chaos.agents"
SESSIONS = 40
SEED = 7


def ends(sessions: Sequence[Session]) -> list[End]:
    """How they stand, by the public client. Not the play's own, which silences the broker's log for all tests."""
    found = []
    for session in sessions:
        view = session.view()
        failure = view.failure or {}
        found.append(
            End(
                key=str(view.key),
                tenant=session.tenant,
                session_id=session.id,
                state=view.state,
                result=view.result if view.state == "done" else None,
                failure_kind=str(failure.get("kind", "")),
                failure=str(failure.get("message", "")),
                waits_for_person=view.state in ("waiting", "paused"),
            )
        )
    return found


def test_every_effect_happens_once_whatever_is_killed(
    settings_there: Settings, broker: Broker, admin: psycopg.Connection[object], tmp_path: Path
) -> None:
    """
    I4, I5: two workers and the broker are killed while calls are out. Every session ends, with the result that
    follows from its seed; the service outside was asked for each change in order and made it once.

    Only an effect that nobody can ask about may wait for a person, and only where a blow fell while it was out.
    """
    names = {tenant: new_tenant(admin) for tenant in plan.TENANTS}
    drawn = plan.sessions(SEED, count=SESSIONS, over_s=0.0, run=f"{broker.name}-{names[plan.TENANTS[0]]}-")
    wanted = [replace(one, tenant=names[one.tenant], doors=("client",)) for one in drawn]
    total = sum(len(one.operations) for one in wanted)
    draw = random.Random(f"blows {SEED}")
    service = ServiceProcess(tmp_path)
    address = {SERVICE: f"127.0.0.1:{service.port}"}
    hits: list[Hit] = []

    def strike(fault: str, blow: Callable[[], None]) -> None:
        began = time.time()
        blow()
        hits.append(Hit(len(hits), fault, fault, began, time.time(), began, ()))

    def lose_the_broker() -> None:
        broker.kill()
        time.sleep(draw.uniform(0.5, 2.0))  # an outage, not a wait
        broker.start()

    def done() -> int:
        return sum(request.applied for request in service.read())

    try:
        with (
            Fleet(settings_there, tmp_path) as fleet,
            Client(settings_there, load_agents((AGENTS,))) as producer,
        ):
            for _ in range(3):
                fleet.worker(concurrency=8, agents=AGENTS, **address)
            began = time.time()
            sessions = [producer.start(one.agent, tenant=one.tenant, input=one.input, key=one.key) for one in wanted]
            accepted = [
                Accepted(one.key, one.tenant, session.id, time.time(), True, 1)
                for one, session in zip(wanted, sessions, strict=True)
            ]
            until(lambda: done() > total * 0.1 and service.open(), 60, "calls are out")
            strike("worker killed", fleet.workers[0].kill)
            until(lambda: done() > total * 0.3 and service.open(), 60, "calls are out again")
            strike("broker killed", lose_the_broker)
            strike("worker killed", fleet.workers[1].kill)
            ended = {"done", "failed", "cancelled", "waiting", "paused"}
            until(lambda: {one.state for one in ends(sessions)} <= ended, 120, "every session ends")
            history = History(wanted, accepted, service.read(), ends(sessions), hits, lease_s=settings_there.lease_s)
            assert fleet.workers[2].alive
    finally:
        service.stop()
    found = judge(history)
    assert not found.violations, "\n".join(map(str, found.violations))
    assert found.figures["effects done"] >= total - len(wanted)
    assert found.figures["sessions done"] + found.figures["parked as unknown"] == SESSIONS
    if not found.figures["calls cut off"]:
        pytest.fail(f"no call was cut off within {time.time() - began:.0f} s: the blows hit nothing")
