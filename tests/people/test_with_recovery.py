"""People and recovery: what a pause, a replay and a fork make of questions and answers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic import BaseModel

from agentq import Agent, Ask, Context, Done, Next, Permanent, effect
from agentq.agents.registry import Registry
from agentq.client import Client, Session
from agentq.testing import LocalFleet, Stuck

Local = Callable[..., LocalFleet]


class State(BaseModel):
    cents: int = 100


@pytest.fixture
def paid() -> list[int]:
    return []


@pytest.fixture
def asker(registry: Registry, paid: list[int]) -> Agent[State]:
    agent = Agent("asker", state=State, registry=registry)

    @effect(idempotent=True)
    def pay_out(cents: int) -> int:
        paid.append(cents)
        return len(paid)

    @effect(irreversible=True, idempotent=True)
    def burn(cents: int) -> int:
        paid.append(-cents)
        return len(paid)

    @agent.step(start=True)
    def ask(state: State) -> Ask:
        return Ask("Pay?", to="finance", then=pay)

    @agent.step
    def pay(state: State, ctx: Context) -> Next:
        ctx.call(pay_out, state.cents)
        return Next(then)

    @agent.step
    def then(state: State, ctx: Context) -> Done:
        return Done(ctx.call(burn, state.cents))

    return agent


def waiting(fleet: LocalFleet, session: Session) -> str:
    with pytest.raises(Stuck, match="waits for people"):
        fleet.drain(session)
    [approval] = fleet.client.approvals.ls(tenant=session.tenant, session_id=session.id)
    return str(approval.approval_id)


def test_resuming_does_not_answer(
    asker: Agent[State], client: Client, tenant: str, local: Local, paid: list[int]
) -> None:
    """
    Paused and resumed, the session waits as before; granted while paused, it goes on with the resume.
    """
    fleet = local()
    session = client.start("asker", tenant=tenant, input={})
    approval = waiting(fleet, session)
    session.pause("look")
    session.resume("go on")
    assert waiting(fleet, session) == approval
    session.pause("look again")
    client.approvals.grant(approval)
    assert fleet.carry_next(tenant) is None
    assert paid == []
    session.resume("go on")
    waiting(fleet, session)
    assert paid == [100]


def test_a_replay_from_the_question_asks_again(
    asker: Agent[State], client: Client, tenant: str, local: Local, paid: list[int]
) -> None:
    """
    And what was recorded under the first answer is recalled, not done again.
    """
    fleet = local()
    session = client.start("asker", tenant=tenant, input={})
    client.approvals.grant(waiting(fleet, session))
    second = waiting(fleet, session)
    session.replay("again", from_step="ask")
    assert client.approvals.get(second).state == "void"
    client.approvals.grant(waiting(fleet, session))
    client.approvals.grant(waiting(fleet, session))
    assert fleet.drain(session).result is not None
    assert paid == [100, -100]


def test_a_replay_from_behind_the_question_keeps_the_answer(
    asker: Agent[State], client: Client, tenant: str, local: Local, paid: list[int]
) -> None:
    fleet = local()
    session = client.start("asker", tenant=tenant, input={})
    client.approvals.grant(waiting(fleet, session))
    waiting(fleet, session)
    session.replay("again", from_step="pay")
    client.approvals.grant(waiting(fleet, session))
    assert fleet.drain(session).state == "done"
    assert paid == [100, -100]


def test_a_fork_has_no_answer_of_its_own(
    asker: Agent[State], client: Client, tenant: str, local: Local, paid: list[int]
) -> None:
    """
    A grant was given to one session. Its fork would do all of it a second time, so it must ask for itself.
    """
    fleet = local()
    session = client.start("asker", tenant=tenant, input={})
    client.approvals.grant(waiting(fleet, session))
    waiting(fleet, session)
    fork = session.fork("what if", from_step="pay")
    with pytest.raises(Permanent, match="another session"):
        fleet.drain(fork)
    assert paid == [100]


def test_a_killed_session_wants_nothing_any_more(
    asker: Agent[State], client: Client, tenant: str, local: Local, paid: list[int]
) -> None:
    fleet = local()
    session = client.start("asker", tenant=tenant, input={})
    approval = waiting(fleet, session)
    session.kill("runaway")
    assert client.approvals.get(approval).state == "void"
