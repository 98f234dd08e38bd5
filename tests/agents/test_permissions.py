"""Permissions: a tenant uses the agents and tools that its record allows, and what changes counts within seconds."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from agentq import Agent, Child, Context, Done, Permanent, Spawn
from agentq.agents.registry import Registry
from agentq.client import Client, Selection
from agentq.errors import NotAllowed, NotReopened


class Empty(BaseModel):
    """Nothing to know."""


def pay(amount: int) -> int:
    return amount


@pytest.fixture
def agents(registry: Registry) -> None:
    payer, other = Agent("payer", state=Empty, registry=registry), Agent("other", state=Empty, registry=registry)

    @payer.step(start=True)
    def go(state: Empty, ctx: Context) -> Done:
        return Done(ctx.call(pay, 3))

    @other.step(start=True)
    def spawn(state: Empty) -> Spawn:
        return Spawn([Child("payer", input={})], then=gather, state=state)

    @other.step
    def gather(state: Empty, ctx: Context) -> Done:
        return Done([result.value for result in ctx.results])


def tool_name() -> str:
    from agentq.agents.effects import name_of

    return name_of(pay)


@pytest.mark.usefixtures("agents")
def test_an_agent_that_is_not_allowed_is_not_started(client: Client, tenant: str, other_tenant: str) -> None:
    """
    Refused at the door, for this tenant alone; what it had started before is found as ever.
    """
    before = client.start("other", tenant=tenant, input={}, key="k")
    client.tenants.set(tenant, agents=["payer"], reason="their contract")
    with pytest.raises(NotAllowed, match="agent 'other'"):
        client.start("other", tenant=tenant, input={})
    assert client.start("other", tenant=tenant, input={}, key="k").id == before.id
    client.start("payer", tenant=tenant, input={})
    client.start("other", tenant=other_tenant, input={})
    client.tenants.set(tenant, agents=[], reason="all of them again")
    client.start("other", tenant=tenant, input={})


@pytest.mark.usefixtures("agents")
def test_nor_by_another_agent(client: Client, local: Any, tenant: str) -> None:
    """
    A child session needs the same leave.
    """
    client.tenants.set(tenant, agents=["other"], reason="a test")
    with pytest.raises(Permanent, match="agent 'payer'"):
        local().drain(client.start("other", tenant=tenant, input={}))


@pytest.mark.usefixtures("agents")
def test_a_tool_that_is_not_allowed_is_not_called(client: Client, local: Any, tenant: str) -> None:
    """
    The step is dead with the reason, and nothing was done.
    """
    client.tenants.set(tenant, tools=["something-else"], reason="a test")
    session = client.start("payer", tenant=tenant, input={})
    with pytest.raises(Permanent, match="may not use the tool"):
        local().drain(session)
    client.tenants.set(tenant, tools=[tool_name()], reason="a test")
    assert local().drain(client.start("payer", tenant=tenant, input={})).result == 3


@pytest.mark.usefixtures("agents")
def test_nor_brought_back(client: Client, local: Any, tenant: str, registry: Registry) -> None:
    """
    What a tenant may not use any more comes back by no other door: replay, fork and redrive are refused, and said so.

    Nor as a child that its parent's replay would bring back with it.
    """
    broken = [True]
    frail, holder = Agent("frail", state=Empty, registry=registry), Agent("holder", state=Empty, registry=registry)

    @frail.step(start=True, retries=0)
    def work(state: Empty, ctx: Context) -> Done:
        if broken[0]:
            raise Permanent("broken")
        return Done("mended")

    @holder.step(start=True)
    def begin(state: Empty) -> Spawn:
        return Spawn([Child("frail", input={})], then=end, state=state)

    @holder.step
    def end(state: Empty, ctx: Context) -> Done:
        return Done([result.value for result in ctx.results])

    fleet = local()
    alone, parent = (client.start(name, tenant=tenant, input={}) for name in ("frail", "holder"))
    for session in (alone, parent):
        with pytest.raises(Permanent):
            fleet.drain(session)
    broken[0] = False
    selection = Selection(tenant=tenant)
    client.tenants.set(tenant, agents=["holder"], reason="their contract")
    for refused in (
        lambda: alone.replay("a test"),
        lambda: alone.fork("a test", from_step="0"),
        lambda: parent.replay("a test"),
    ):
        with pytest.raises(NotReopened, match="may not use its agent"):
            refused()
    *_, last = client.dead_letters.redrive(selection, reason="a test")
    assert last.job.redriven == 0
    assert last.job.refused == 2
    assert {session.view().state for session in (alone, parent)} == {"failed"}

    client.tenants.set(tenant, agents=[], reason="all of them again")
    *_, last = client.dead_letters.redrive(selection, reason="once more")
    assert last.job.redriven == 2
    assert fleet.drain(alone).result == "mended"
    assert fleet.drain(parent).result == ["mended"]


@pytest.mark.usefixtures("agents")
def test_a_tool_that_was_taken_away_is_not_called_again(client: Client, local: Any, tenant: str) -> None:
    """
    Nor by a replay, also where its result is recorded: what it may be used for is asked at each call.
    """
    fleet = local()
    session = client.start("payer", tenant=tenant, input={})
    assert fleet.drain(session).result == 3
    client.tenants.set(tenant, tools=["something-else"], reason="a test")
    session.replay("a test", from_step="0")
    with pytest.raises(Permanent, match="may not use the tool"):
        local().drain(session)
