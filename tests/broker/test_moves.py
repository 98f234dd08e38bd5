"""Moves of a tenant between queues and groups, with real workers at work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import redis

from agentq.agents.registry import load_agents
from agentq.client import Client
from agentq.settings import Settings
from tests.conftest import new_tenant
from tests.support.fleet import Fleet
from tests.support.until import until

SESSIONS = 500


@pytest.fixture
def producer(settings: Settings) -> Iterator[Client]:
    """A client that knows the agents that the workers have."""
    with Client(settings, load_agents(["tests.support.agents"])) as client:
        yield client


def test_a_tenant_moves_with_five_hundred_steps_in_flight(
    fleet: Fleet, producer: Client, admin: psycopg.Connection[Any], broker: redis.Redis, settings: Settings
) -> None:
    """
    I4: own queue, shard, a group of its own, and back, while 500 sessions run: all end, each step once, no attempt
    is lost, and only workers of the group that it is placed in run its steps.
    """
    tenant, group = new_tenant(admin, concurrency=500), "premium"
    fleet.worker(concurrency=8)
    fleet.worker(concurrency=8, AGENTQ_WORKER_GROUP=group)
    sessions = producer.start_many("count", tenant=tenant, items=[({"until": 6}, f"m{n}") for n in range(SESSIONS)])

    def done() -> int:
        query = "select count(*) from agentq.ledger_entry where tenant = %s and state = 'done'"
        found = admin.execute(query, (tenant,)).fetchone()
        return int(found[0]) if found else 0

    for goal, place in enumerate(({"queue": "shard"}, {"group": group}, {"queue": "own"}, {"group": "default"}), 1):
        until(lambda at=goal * 300: done() >= at, 60, "work goes on after the move before")  # type: ignore[misc]
        producer.tenants.set(tenant, reason="moved in a test", **place)  # type: ignore[arg-type]
    ended = producer.wait_all(sessions, timeout=90)

    assert Counter(ended.values()) == {"done": SESSIONS}
    assert {session.view().result for session in sessions[:20]} == {6}
    ran = admin.execute(
        "select e.attempt, count(*) from agentq.ledger_entry e where e.tenant = %s group by 1", (tenant,)
    ).fetchall()
    assert len(ran) == 1, "each step had one attempt"
    assert ran[0][0] == 1
    strangers = admin.execute(
        "select count(*) from agentq.trace r join agentq.worker w on w.worker_id = r.worker"
        " where r.tenant = %s and r.kind = 'attempt' and w.worker_group = %s",
        (tenant, group),
    ).fetchone()
    assert strangers not in (None, (0,)), "the group had its share"

    # Left long enough ago, the shard's queue goes; its own, which it came back to, stays.
    shards = f"{settings.key_prefix}_kombu.binding.agentq.shard.*"
    assert list(broker.scan_iter(shards, count=1000))
    admin.execute("update agentq.tenant set placed_at = placed_at - interval '1 minute' where name = %s", (tenant,))
    until(lambda: not list(broker.scan_iter(shards, count=1000)), 30, "the queues that it left are removed")


def test_a_worker_of_a_group_listens_to_nobody_elses_queue(
    fleet: Fleet, producer: Client, admin: psycopg.Connection[Any]
) -> None:
    """
    Neither to other tenants' nor to submissions; a tenant without workers of its group waits, and goes on with one.
    """
    mine, other = new_tenant(admin), new_tenant(admin)
    producer.tenants.set(mine, group="vip", reason="test")
    producer.tenants.set(other, queue="own", reason="test")
    waiting = producer.start("count", tenant=mine, input={})
    theirs = producer.start("count", tenant=other, input={})
    worker = fleet.worker(concurrency=4, AGENTQ_WORKER_GROUP="vip")
    assert waiting.wait(timeout=30).result == 3
    assert theirs.view().state == "running"
    assert "Canceling queue agentq.submit" in worker.log
    started = {line.rpartition(" ")[2] for line in worker.log.splitlines() if "Started consuming from" in line}
    assert started == {f"agentq.t.{mine}"}
