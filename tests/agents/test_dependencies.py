"""Dependencies as steps meet them: held back while they are out of order, and no attempt lost."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from agentq import Agent, AsyncContext, Context, Done, Transient, effect
from agentq.agents.registry import Registry
from agentq.client import Client, Session
from agentq.settings import Settings
from agentq.store.dependencies import FLEET
from agentq.testing import LocalFleet
from agentq.verdicts import Carried
from tests.conftest import RUN

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
