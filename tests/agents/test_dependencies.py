"""Dependencies as steps meet them: held back while they are out of order, and no attempt lost."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from agentq import Agent, AsyncContext, Context, Done, Transient, effect
from agentq.agents.dependencies import Dependencies, Permit
from agentq.agents.registry import Registry
from agentq.client import Client, Session
from agentq.errors import NotNow, StoreUnavailable
from agentq.policies.failures import classify
from agentq.settings import Settings
from agentq.store.dependencies import FLEET, Breaker, Report
from agentq.store.pool import Store
from agentq.testing import LocalFleet
from agentq.verdicts import Carried, Failure
from tests.conftest import RUN
from tests.support.breakers import QUICK
from tests.support.hands import at_once
from tests.support.until import until

Local = Callable[..., LocalFleet]
_numbers = itertools.count()


class Empty(BaseModel):
    """No state to speak of."""


@pytest.fixture
def name() -> str:
    """A dependency that no other test uses."""
    return f"dep-a-{RUN}-{next(_numbers)}"


@pytest.fixture(scope="session")
def settings(settings: Settings) -> Settings:
    """Few calls decide."""
    return settings.model_copy(
        update={
            "dependency_volume_min": 4,
            "dependency_pause_s": 5.0,
            "dependency_pause_max_s": 20.0,
            "dependency_good": 1,
        }
    )


class Denied(Exception):
    """As a client library says that a key is bad."""

    status_code = 401


class Provider:
    """Something outside that can be out of order."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: Exception | None = None

    def ask(self) -> str:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return "answer"

    def tool(self, **declared: Any) -> Callable[[], str]:
        """A function that asks, declared so."""

        def ask() -> str:
            return self.ask()

        return effect(**declared)(ask)


@pytest.fixture
def provider() -> Provider:
    return Provider()


def calling(registry: Registry, provider: Provider, name: str, how: str) -> None:
    """An agent that calls the provider: as a step that needs it, or through an effect that does."""
    agent = Agent("caller", state=Empty, registry=registry)
    asks = provider.tool(idempotent=True, needs=name)
    if how == "step":

        @agent.step(needs=name, retries=3)
        def work(state: Empty) -> Done:
            return Done(provider.ask())
    elif how == "sync":

        @agent.step(retries=3)
        def work(state: Empty, ctx: Context) -> Done:
            return Done(ctx.call(asks))
    else:

        @agent.step(retries=3)
        async def work(state: Empty, ctx: AsyncContext) -> Done:
            return Done(await ctx.call(asks))


def start(client: Client, tenant: str) -> Session:
    return client.start("caller", tenant=tenant, input={})


three = pytest.mark.parametrize("how", ["step", "sync", "async"])


@three
def test_an_outage_costs_no_attempt(
    registry: Registry, client: Client, tenant: str, local: Local, provider: Provider, name: str, how: str
) -> None:
    """
    Failures open the breaker; from then on nothing is called, and what was lost before is given back.
    """
    calling(registry, provider, name, how)
    fleet = local()
    sessions = [start(client, tenant) for _ in range(10)]
    provider.error = Transient("out of order")
    for _ in range(40):
        verdict = fleet.carry_next(tenant)
        if verdict is None:
            break
    assert provider.calls == 4
    steps = [session.steps()[0] for session in sessions]
    assert {step.state for step in steps} <= {"ready", "queued"}
    provider.error = None
    for session in sessions:
        assert fleet.drain(session).result == "answer"
    assert [session.steps()[0].attempt for session in sessions] == [1] * 10


@three
def test_one_tenants_bad_key_is_its_own_matter(
    registry: Registry,
    client: Client,
    tenant: str,
    other_tenant: str,
    local: Local,
    provider: Provider,
    name: str,
    how: str,
) -> None:
    """
    I8: refused credentials hold back that tenant alone; the steps it still has wait instead of dying.
    """
    calling(registry, provider, name, how)
    fleet = local()
    provider.error = Denied()
    bad = [start(client, tenant) for _ in range(8)]
    while (verdict := fleet.carry_next(tenant)) is not None:
        assert isinstance(verdict, Carried)
    assert provider.calls == 4
    provider.error = None
    assert fleet.drain(start(client, other_tenant)).result == "answer"
    assert {row.tenant: row.openings for row in fleet.dependencies.breakers.ls(name)} == {None: 0, tenant: 1}
    states = [session.view().state for session in bad]
    assert states.count("failed") == 3, "those before anybody could know"
    assert states.count("running") == 5
    assert fleet.drain(next(s for s in bad if s.view().state == "running")).result == "answer"


def test_a_request_that_is_refused_opens_nothing(
    registry: Registry, client: Client, tenant: str, local: Local, provider: Provider, name: str
) -> None:
    """
    A bug, a wrong request, a wrong answer: the dependency works.
    """
    calling(registry, provider, name, "step")
    fleet = local()
    provider.error = TypeError("a bug")
    for _ in range(6):
        with pytest.raises(TypeError):
            fleet.drain(start(client, tenant))
    assert provider.calls == 6
    assert fleet.dependencies.breakers.ls(name) == []


def test_a_call_held_back_leaves_no_effect(
    registry: Registry, client: Client, tenant: str, local: Local, provider: Provider, name: str
) -> None:
    """
    I5: what never went out is not pending: a call that is not idempotent needs no person afterwards.
    """
    agent = Agent("caller", state=Empty, registry=registry)
    pay = provider.tool(needs=name)

    @agent.step
    def work(state: Empty, ctx: Context) -> Done:
        return Done(ctx.call(pay))

    fleet = local()
    fleet.dependencies.breakers.force((FLEET, name), "forced_open", for_s=60, operator="me", reason="test")
    session = start(client, tenant)
    assert fleet.carry_next(tenant) == Carried("postpone")
    assert provider.calls == 0
    assert fleet.drain(session).result == "answer"
    assert (provider.calls, session.steps()[0].attempt) == (1, 1)


def test_a_recorded_result_needs_nobody(
    registry: Registry, client: Client, tenant: str, local: Local, provider: Provider, name: str
) -> None:
    """
    A stored result is recalled although what made it is out of order by now.
    """
    agent = Agent("caller", state=Empty, registry=registry)
    ask = provider.tool(needs=name)
    fleet: LocalFleet

    @agent.step(retries=2)
    def work(state: Empty, ctx: Context) -> Done:
        answer = ctx.call(ask)
        if ctx.attempt == 1:
            fleet.dependencies.breakers.force((FLEET, name), "forced_open", for_s=600, operator="me", reason="test")
            raise Transient("after the call")
        return Done(answer)

    fleet = local()
    assert fleet.drain(start(client, tenant)).result == "answer"
    assert provider.calls == 1


def test_who_waits_comes_back_when_it_closes(
    registry: Registry, client: Client, tenant: str, other_tenant: str, local: Local, provider: Provider, name: str
) -> None:
    """
    A step that was told to stay away for long comes back soon after the breaker closes, and not before.
    """
    calling(registry, provider, name, "step")
    fleet = local()
    breakers = fleet.dependencies.breakers
    breakers.force((FLEET, name), "forced_open", for_s=3600, operator="me", reason="maintenance")
    for who in (tenant, other_tenant):
        start(client, who)
        assert fleet.carry_next(who) == Carried("postpone")
    due = "select extract(epoch from due_at - agentq.now()) from agentq.ledger_entry"
    longest = fleet.dependencies._rules.pause_max_s
    assert 5 < fleet.store.query_as(tenant, due, {})[0][0] <= longest
    breakers.force((FLEET, name), "forced_shut", for_s=None, operator="me", reason="over")
    for who in (tenant, other_tenant):
        assert fleet.store.query_as(who, due, {})[0][0] <= fleet.dependencies._rules.pause_s


def test_a_step_and_its_effect_take_one_place(
    registry: Registry, client: Client, tenant: str, local: Local, provider: Provider, name: str
) -> None:
    """
    I7: a step that needs what its effect needs has leave for both; where one may try at a time, it would wait
    for itself for ever.
    """
    agent = Agent("caller", state=Empty, registry=registry)
    ask = provider.tool(idempotent=True, needs=name)

    @agent.step(needs=name)
    def work(state: Empty, ctx: Context) -> Done:
        return Done(ctx.call(ask))

    fleet = local()
    fleet.dependencies.breakers._rules["probes"] = 1
    breakers = fleet.dependencies.breakers
    breakers.force((FLEET, name), "forced_open", for_s=None, operator="me", reason="test")
    breakers.force((FLEET, name), "auto", for_s=None, operator="me", reason="test")
    assert fleet.drain(start(client, tenant), steps_max=20).result == "answer"
    assert [row.state for row in breakers.ls(name)] == ["closed"]


def test_a_call_that_hangs_speaks_against_what_it_waits_for(
    registry: Registry, client: Client, tenant: str, local: Local, name: str
) -> None:
    """
    The commonest outage is silence: steps that ran out of time open the breaker, and get their attempts back.
    """
    agent = Agent("caller", state=Empty, registry=registry)
    answering = False

    @agent.step(needs=name, timeout="50ms", retries=1)
    async def work(state: Empty) -> Done:
        if not answering:
            await asyncio.sleep(30)
        return Done("answer")

    fleet = local()
    sessions = [start(client, tenant) for _ in range(6)]
    while fleet.carry_next(tenant) is not None:
        pass
    [row] = fleet.dependencies.breakers.ls(name)
    assert (row.state, row.bad_total) == ("open", 4)
    answering = True
    assert [fleet.drain(session).result for session in sessions] == ["answer"] * 6
    assert [session.steps()[0].attempt for session in sessions] == [1] * 6


@pytest.mark.parametrize("how", ["step", "effect"])
def test_a_thread_that_hangs_is_counted_when_it_is_abandoned(
    registry: Registry, client: Client, tenant: str, local: Local, name: str, how: str
) -> None:
    """
    A sync call that ignores its deadline never returns: whoever abandons it tells in its place, and once.
    """
    wake = threading.Event()
    agent = Agent("caller", state=Empty, registry=registry)

    @effect(idempotent=True, needs=name if how == "effect" else None)
    def hang() -> str:
        wake.wait(20)
        return "late"

    @agent.step(needs=name if how == "step" else None, retries=1)
    def work(state: Empty, ctx: Context) -> Done:
        return Done(ctx.call(hang))

    fleet = local()
    for _ in range(4):
        start(client, tenant)
    threads = [threading.Thread(target=lambda: fleet.carry_next(tenant)) for _ in range(4)]
    for number, thread in enumerate(threads, 1):
        thread.start()
        until(lambda number=number: len(fleet.in_flight.attempts()) == number, 10, "it hangs")  # type: ignore[misc]
    for attempt in fleet.in_flight.attempts():
        fleet.engine.abandon(attempt)
    wake.set()
    for thread in threads:
        thread.join(10)
    [row] = fleet.dependencies.breakers.ls(name)
    assert (row.state, row.bad_total, row.ok_total) == ("open", 4, 0)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_dependency_that_is_known_only_now(
    registry: Registry, client: Client, tenant: str, local: Local, provider: Provider, name: str, is_async: bool
) -> None:
    """
    `ctx.needing` does for a block what `needs=` does for a step, whatever the provider calls itself.
    """
    agent = Agent("caller", state=Empty, registry=registry)
    called = name.replace("-", " ").upper()
    if is_async:

        @agent.step(retries=1)
        async def work(state: Empty, ctx: AsyncContext) -> Done:
            async with ctx.needing(called):
                return Done(provider.ask())
    else:

        @agent.step(retries=1)
        def work(state: Empty, ctx: Context) -> Done:
            with ctx.needing(called):
                return Done(provider.ask())

    fleet = local()
    sessions = [start(client, tenant) for _ in range(6)]
    provider.error = Transient("out of order")
    while fleet.carry_next(tenant) is not None:
        pass
    assert provider.calls == 4
    provider.error = None
    assert [fleet.drain(session).result for session in sessions] == ["answer"] * 6
    assert [session.steps()[0].attempt for session in sessions] == [1] * 6
    [row] = fleet.dependencies.breakers.ls(name)
    assert (row.state, row.openings) == ("closed", 1)


def test_what_is_put_off_for_ever_ends(
    registry: Registry, client: Client, tenant: str, settings: Settings, local: Local
) -> None:
    """
    I7: a step that is put off too often is dead, with the setting named that says how often.
    """
    agent = Agent("caller", state=Empty, registry=registry)

    @agent.step
    def work(state: Empty) -> Done:
        raise NotNow("what never comes", delay_s=0.0)

    fleet = local()
    fleet.engine.refusals_max = 5
    session = start(client, tenant)
    fleet.drain(session)
    assert session.view().state == "failed"
    assert "step_refusals_max" in (session.view().failure or {})["message"]


@pytest.fixture
def process(store: Store) -> Iterator[Dependencies]:
    """The breakers as a real process keeps them: told once a second."""
    found = Dependencies(store, QUICK, report_s=60.0, classify=classify)
    yield found
    found.close()


def test_asking_costs_no_round_trip_while_closed(process: Dependencies, name: str) -> None:
    """
    A thousand calls, one look at the breakers, and what was counted is told together.
    """
    looks: list[int] = []
    report = process.breakers.report

    def counting(reports: Iterable[Report]) -> list[Breaker]:
        told = list(reports)
        looks.append(sum(one.ok for one in told))
        return report(told)

    process.breakers.report = counting  # type: ignore[method-assign]
    for _ in range(1000):
        with process.calling(name, "acme"):
            pass
    assert looks == [0]
    process.close()
    assert looks == [0, 1000]


def test_failures_of_one_moment_are_told_together(process: Dependencies, name: str) -> None:
    """
    Fifty calls that fail at once are two writes: the first, and all that gathered behind it.
    """
    process.admit(name)
    gathered, writes = threading.Event(), []
    report = process.breakers.report

    def slow(reports: Iterable[Report]) -> list[Breaker]:
        told = list(reports)
        writes.append(sum(one.bad for one in told))
        if len(writes) == 1:
            gathered.wait(10)
        return report(told)

    process.breakers.report = slow  # type: ignore[method-assign]
    failure = Failure("transient", "ReadTimeout", "x")

    def fail() -> float | None:
        process.report(name, False, failure, permit=Permit(name, "acme"))
        return process.held(name, "acme", failure)

    threading.Thread(target=lambda: (until(lambda: process._notes >= 50, 10), gathered.set())).start()
    held = at_once(*[fail] * 50)
    assert len(writes) <= 3
    assert sum(writes) == 50
    assert sum(one is not None for one in held) >= 40, "who was told last knows that it is open"


def test_without_postgres_calls_go_out(process: Dependencies, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The breaker guards against the provider, not against Postgres: what cannot be told is told later.
    """
    report = process.breakers.report

    def away(reports: Iterable[Report]) -> list[Breaker]:
        raise StoreUnavailable("away")

    process.breakers.report = away  # type: ignore[method-assign]
    with pytest.raises(TimeoutError), process.calling(name, "acme"):
        raise TimeoutError
    process.breakers.report = report  # type: ignore[method-assign]
    process.close()
    [row] = process.breakers.ls(name)
    assert row.bad_total == 1
