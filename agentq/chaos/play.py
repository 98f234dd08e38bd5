"""A run from its seed to its verdict: what `agentq chaos` does."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from agentq.agents.registry import load_agents
from agentq.chaos import plan, schedule
from agentq.chaos.arena import AGENTS, CONCURRENCY, Arena, where
from agentq.chaos.judge import End, History, judge
from agentq.chaos.nemesis import Nemesis
from agentq.chaos.producer import Producers
from agentq.chaos.record import ServiceProcess
from agentq.chaos.recovery import recoveries
from agentq.chaos.run import Run
from agentq.chaos.schedule import OUTSIDE, Profile, Schedule
from agentq.chaos.screen import Screen
from agentq.chaos.strike import Hit, Servers
from agentq.chaos.tools import SERVICE
from agentq.client import Client
from agentq.client.tenants import operator_name
from agentq.client.views import ENDED
from agentq.embedded.files import explained
from agentq.errors import ConfigError, StoreUnavailable, WaitTimeout
from agentq.settings import Settings

LOOK_EVERY_S = 0.25
LISTED_MAX = 20_000
# How often a run may ask for the ends before it takes an unreachable fleet for an answer.
ASK_TRIES = 60
GREETING_TIMEOUT_S = 60.0
RESERVE = 200


def play(
    profile: Profile,
    seed: int,
    folder: Path,
    screen: Screen,
    *,
    keep: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Run:
    """
    One run against a fleet of its own. `environment` is added to its workers': tests take a guard away there.

    Raises:
        ConfigError: something cannot start.
    """
    arena = Arena(profile, folder, environment=environment or {}, announce=screen.aside)
    try:
        with arena:
            arena.outlive_the_start_of_postgres()
            assert arena.service is not None
            servers = Servers(arena.stack.postgres.url, arena.stack.valkey.url, arena.settings.key_prefix)
            drawn = schedule.make(profile, seed)
            return _Act(drawn, arena.client, arena.service, servers, screen, arena=arena, run=f"s{seed}-").play()
    finally:
        if not keep:
            arena.remove()


class _Act:
    """The run while it goes on."""

    def __init__(
        self,
        drawn: Schedule,
        client: Client,
        service: ServiceProcess,
        servers: Servers,
        screen: Screen,
        *,
        arena: Arena | None,
        run: str,
    ) -> None:
        self.schedule, self.client, self.service, self.screen = drawn, client, service, screen
        poisons = plan.poison(drawn.poisons, run=run)
        sessions = plan.sessions(drawn.seed, count=drawn.profile.sessions, over_s=drawn.submit_s, run=run)
        reserve = plan.sessions(drawn.seed, count=RESERVE, over_s=0.0, run=f"{run}late-")
        self.nemesis = Nemesis(drawn, service, servers, arena=arena, poisons=poisons, told=self._told)
        self.producers = Producers(client, [*sessions, *poisons], reserve=reserve, needed=lambda: self.nemesis.at_work)
        self.began = time.time()
        self._known = 0

    def play(self) -> Run:
        try:
            self.began = time.time()
            self.producers.start()
            self.nemesis.start()
            self._watch()
        finally:
            self.producers.stop()
            self.nemesis.stop()
        requests, wanted = self.service.read(), list(self.producers.submitted)
        history = History(
            wanted=wanted,
            accepted=list(self.producers.accepted),
            requests=requests,
            ends=ends(self.client, wanted),
            hits=sorted(self.nemesis.hits, key=lambda hit: hit.number),
            lease_s=self.schedule.profile.pace.lease_s,
        )
        took_s = round(time.time() - self.began, 1)
        found = tuple(recoveries(history.hits, requests, lease_s=history.lease_s))
        return Run(self.schedule, history, judge(history), found, self.began, took_s)

    def _watch(self) -> None:
        """Until all have ended, or nothing has moved for as long as our patience lasts."""
        seen, moved_at = (0, 0), time.monotonic()
        while True:
            time.sleep(LOOK_EVERY_S)
            ended, total = self._ended(), len(self.producers.submitted)
            now = (ended, len(self.service.read()))
            busy = self.producers.at_work or self.nemesis.at_work
            if now != seen or busy:
                seen, moved_at = now, time.monotonic()
            self.screen.follow(time.time() - self.began, ended=ended, total=total, hits=len(self.nemesis.hits))
            if ended == total and not busy:
                return
            if time.monotonic() - moved_at > self.schedule.profile.patience_s:
                return

    def _ended(self) -> int:
        try:
            wanted = list(self.producers.submitted)
            keys = {each.key for each in wanted}
            rows = [row for tenant in _tenants(wanted) for row in self.client.list(tenant=tenant, limit=LISTED_MAX)]
        except StoreUnavailable:
            return self._known
        self._known = sum(row.state in ENDED for row in rows if row.key in keys)
        return self._known

    def _told(self, hit: Hit) -> None:
        self.screen.blow(hit, time.time() - self.began)


def play_outside(
    settings: Settings, seed: int, folder: Path, screen: Screen, *, bind: str, reason: str, profile: Profile = OUTSIDE
) -> Run:
    """
    One run against a fleet of somebody's, with the faults that are possible without a hand on its machines.

    Its workers must have imported `agentq.chaos.agents` and reach our service under AGENTQ_CHAOS_SERVICE. It gets
    tenants of the run's own; what the broker holds for others under the same prefix is lost too, and comes back.

    Raises:
        ConfigError: no worker of that fleet ended a first session.
    """
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    run = f"s{seed}-{int(time.time()):x}-"
    service = ServiceProcess(folder, bind)
    try:
        with Client(settings, load_agents((AGENTS,))) as client:
            for tenant in plan.TENANTS:
                client.tenants.add(tenant, concurrency=CONCURRENCY, reason=reason)
            client.operators.record_action(
                operator=operator_name(), tenant=None, action="chaos", target=f"seed {seed}", reason=reason
            )
            _greet(client, run, where(settings.database_url))
            servers = Servers(settings.database_url, settings.broker_url, settings.key_prefix)
            drawn = schedule.make(profile, seed)
            return _Act(drawn, client, service, servers, screen, arena=None, run=run).play()
    finally:
        service.stop()


def _greet(client: Client, run: str, place: str) -> None:
    """One session, before anything is broken: without workers that know our agents a run would show nothing."""
    [first] = plan.sessions(0, count=1, over_s=0, run=f"{run}greeting-")
    session = client.start(first.agent, tenant=first.tenant, input=first.input, key=first.key)
    try:
        state = session.wait(GREETING_TIMEOUT_S).state
    except WaitTimeout:
        state = client.cancel(session.tenant, session.id, reason="no worker took it")
    if state != "done":
        raise ConfigError(
            f"a first session on the fleet at {place} ended {state}: its workers need AGENTQ_AGENTS=...,{AGENTS} and "
            f"{SERVICE}=HOST:PORT of the effects service here; nothing was broken"
        )


def ends(client: Client, wanted: Sequence[plan.Wanted]) -> list[End]:
    """How every session that has one of these keys stands. A Postgres that has just come back is asked again."""
    keys = {each.key for each in wanted}
    for tries in range(ASK_TRIES):
        try:
            rows = [row for tenant in _tenants(wanted) for row in client.list(tenant=tenant, limit=LISTED_MAX)]
            return [_end(client, row.tenant, str(row.session_id)) for row in rows if row.key in keys]
        except StoreUnavailable:
            if tries == ASK_TRIES - 1:
                raise
            time.sleep(0.5)
    return []


def _end(client: Client, tenant: str, session_id: str) -> End:
    view = client.get(tenant, session_id).view()
    failure = view.failure or {}
    return End(
        key=str(view.key),
        tenant=tenant,
        session_id=session_id,
        state=view.state,
        result=view.result if view.state == "done" else None,
        failure_kind=str(failure.get("kind", "")),
        failure=str(failure.get("message", ""))[:300],
        waits_for_person=view.state in ("waiting", "paused"),
    )


def _tenants(wanted: Sequence[plan.Wanted]) -> list[str]:
    return sorted({each.tenant for each in wanted})


for _name in ("psycopg.pool", "agentq.broker"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)  # they would warn of each fault that we stage
