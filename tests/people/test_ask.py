"""Ask: a step asks people, waits without a worker, and goes on with the answer."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from agentq import (
    Agent,
    ApprovalClosed,
    Ask,
    AsyncContext,
    Branch,
    Context,
    Done,
    Fail,
    Permanent,
    Sleep,
    Spawn,
    effect,
)
from agentq.agents.registry import Registry
from agentq.client import Client, Session
from agentq.step import StepRef
from agentq.testing import LocalFleet, Stuck
from agentq.verdicts import Dropped
from tests.support.hands import Hands

Local = Callable[..., LocalFleet]


class Refund(BaseModel):
    order: str = "A1"
    cents: int = 100


def asking(registry: Registry, **more: Any) -> Agent[Refund]:
    """An agent that asks, and says what it heard."""
    agent = Agent("asker", state=Refund, registry=registry)

    @agent.step(start=True)
    def look(state: Refund) -> Ask:
        state.cents = 2000
        return Ask(
            **{"question": "Refund this order?", "to": "finance", "within": "3d", "then": heard, "state": state} | more
        )

    @agent.step
    def heard(state: Refund, ctx: Context, cents: int = 0) -> Done:
        answer = ctx.answer
        return Done([answer.outcome, answer.by, answer.comment, state.cents, cents, answer.edited])

    return agent


def waiting(fleet: LocalFleet, session: Session) -> str:
    """Run until the session waits for people; the approval's id."""
    with pytest.raises(Stuck, match="waits for people"):
        fleet.drain(session)
    [approval] = fleet.client.approvals.ls(tenant=session.tenant, session_id=session.id)
    return str(approval.approval_id)


def test_a_grant_lets_the_next_step_go_on(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    The step after an Ask waits, neither queued nor running, and finds who said yes and why.
    """
    asking(registry)
    fleet = local()
    session = client.start("asker", tenant=tenant, input={})
    approval = waiting(fleet, session)
    assert [(step.name, step.state) for step in session.steps()] == [("look", "done"), ("heard", "waiting")]
    client.approvals.grant(approval, reason="a good customer", who=client.approvals.who("ada"))
    assert fleet.drain(session).result == ["granted", "ada", "a good customer", 2000, 0, False]


def test_a_denial_is_another_answer(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    asking(registry)
    fleet = local()
    session = client.start("asker", tenant=tenant, input={})
    client.approvals.deny(waiting(fleet, session), reason="too much", who=client.approvals.who("ada"))
    assert fleet.drain(session).result[:3] == ["denied", "ada", "too much"]


def test_silence_is_a_third_answer(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    After the deadline the session goes on by itself, and no grant counts any more.
    """
    asking(registry)
    fleet = local()
    session = client.start("asker", tenant=tenant, input={})
    approval = waiting(fleet, session)
    fleet.clock.advance("3d")
    assert fleet.drain(session).result[:2] == ["expired", None]
    with pytest.raises(ApprovalClosed, match="expired"):
        client.approvals.grant(approval, reason="sorry")


def test_edited_arguments_reach_the_next_step(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    The approver changes an argument: the step is given it, and the record says what was changed.
    """
    asking(registry, args={"cents": 900})
    fleet = local()
    session = client.start("asker", tenant=tenant, input={})
    approval = waiting(fleet, session)
    view = client.approvals.grant(approval, edits={"cents": 500}, reason="half of it")
    assert [(c.path, c.before, c.after) for c in view.changes] == [("cents", 900, 500)]
    assert fleet.drain(session).result[3:] == [2000, 500, True]


def test_a_step_that_does_not_look_never_gets_past_a_no(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    `then` runs whatever the answer is; one that goes on as if it were yes is stopped at its first call.
    """
    agent = Agent("careless", state=Refund, registry=registry)
    paid: list[str] = []

    @effect(idempotent=True)
    def refund() -> None:
        paid.append("paid")

    @agent.step(start=True)
    def ask(state: Refund) -> Ask:
        return Ask("Refund?", then=pay)

    @agent.step
    def pay(state: Refund, ctx: Context) -> Done:
        ctx.call(refund)
        return Done("paid")

    fleet = local()
    session = client.start("careless", tenant=tenant, input={})
    client.approvals.deny(waiting(fleet, session), reason="no")
    view = fleet.drain(session)
    assert (view.state, view.failure["type"], paid) == ("failed", "ApprovalDenied", [])  # type: ignore[index]


@pytest.mark.parametrize("calls", [False, True], ids=["returns", "transaction"])
def test_neither_its_return_nor_its_transaction_gets_past_a_no(
    registry: Registry, client: Client, tenant: str, local: Local, calls: bool
) -> None:
    agent = Agent("careless", state=Refund, registry=registry)

    @agent.step(start=True)
    def ask(state: Refund) -> Ask:
        return Ask("Refund?", then=pay)

    @agent.step
    def pay(state: Refund, ctx: Context) -> Done:
        if calls:
            with ctx.transaction():
                raise AssertionError("not reached")
        return Done("paid")

    fleet = local()
    session = client.start("careless", tenant=tenant, input={})
    client.approvals.deny(waiting(fleet, session), reason="no")
    assert fleet.drain(session).failure["type"] == "ApprovalDenied"  # type: ignore[index]


def test_each_branch_asks_for_itself(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    Two branches wait for two answers; the join waits for both, and hears each.
    """
    agent = Agent("brancher", state=Refund, registry=registry)

    @agent.step(start=True)
    def split(state: Refund) -> Spawn:
        return Spawn([Branch(ask, args={"n": n}) for n in range(2)], then=join)

    @agent.step
    def ask(state: Refund, ctx: Context, n: int) -> Ask:
        return Ask(f"Number {n}?", then=hear, args={"n": n})

    @agent.step
    async def hear(state: Refund, ctx: AsyncContext, n: int) -> Done:
        return Done([n, ctx.answer.outcome])

    @agent.step
    def join(state: Refund, ctx: Context) -> Done:
        return Done([result.value for result in ctx.results])

    fleet = local()
    session = client.start("brancher", tenant=tenant, input={})
    with pytest.raises(Stuck):
        fleet.drain(session)
    first, second = sorted(client.approvals.ls(tenant=tenant), key=lambda approval: approval.question)
    client.approvals.deny(str(second.approval_id), reason="no")
    with pytest.raises(Stuck, match="Number 0"):
        fleet.drain(session)
    client.approvals.grant(str(first.approval_id))
    assert fleet.drain(session).result == [[0, "granted"], [1, "denied"]]


def test_a_cancelled_session_wants_nothing_any_more(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    Its approval is void: a grant that comes later changes nothing, and is told so.
    """
    asking(registry)
    fleet = local()
    session = client.start("asker", tenant=tenant, input={})
    approval = waiting(fleet, session)
    session.cancel("changed our mind")
    assert client.approvals.get(approval).state == "void"
    with pytest.raises(ApprovalClosed, match="void"):
        client.approvals.grant(approval)
    assert session.view().state == "cancelled"


def test_a_branch_that_is_given_up_wants_nothing_any_more(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    One branch fails, so the other's question is void although the session goes on.
    """
    agent = Agent("nested", state=Refund, registry=registry)

    @agent.step(start=True)
    def outer(state: Refund) -> Spawn:
        return Spawn([Branch(inner)], then=end, collect=True)

    @agent.step
    def inner(state: Refund) -> Spawn:
        return Spawn([Branch(ask), Branch(wait)], then=end)

    @agent.step
    def wait(state: Refund) -> Sleep:
        return Sleep("1m", then=fail)  # so that the other branch has asked by then

    @agent.step
    def ask(state: Refund) -> Ask:
        return Ask("Really?", then=end)

    @agent.step
    def fail(state: Refund) -> Fail:
        return Fail("no")

    @agent.step
    def end(state: Refund, ctx: Context) -> Done:
        return Done([result.error for result in ctx.results])

    fleet = local()
    session = client.start("nested", tenant=tenant, input={})
    assert fleet.drain(session).result == ["no"]
    [approval] = client.approvals.ls(tenant=tenant, state=None)
    assert approval.state == "void"


def test_a_question_without_time_or_words_is_a_bug(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    asking(registry, within=0)
    with pytest.raises(Permanent, match="within="):
        local().drain(client.start("asker", tenant=tenant, input={}))


def test_a_step_that_follows_no_question_has_no_answer(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    agent = Agent("deaf", state=Refund, registry=registry)

    @agent.step
    def hear(state: Refund, ctx: Context) -> Done:
        return Done(ctx.answer.outcome)

    with pytest.raises(Permanent, match="does not follow an Ask"):
        local().drain(client.start("deaf", tenant=tenant, input={}))


def test_a_replayed_message_does_not_wake_what_waits(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    The message is only a wake-up call: forged for a waiting step, it finds nothing to do.
    """
    asking(registry)
    fleet = local()
    session = client.start("asker", tenant=tenant, input={})
    waiting(fleet, session)
    step = session.steps()[1]
    verdict = fleet.carry(StepRef(tenant, uuid.UUID(session.id), step.step_id))
    assert verdict == Dropped("not_due")
    assert session.steps()[1].state == "waiting"


def test_who_approved_stands_in_the_decision_log(
    registry: Registry, client: Client, tenant: str, local: Local, hands: Hands
) -> None:
    """
    What people said, who and why; and how long they were asked, as a row of the trace.
    """
    asking(registry)
    fleet = local()
    session = client.start("asker", tenant=tenant, input={})
    approval = waiting(fleet, session)
    client.approvals.deny(approval, reason="not this one", who=client.approvals.who("ada"))
    fleet.drain(session)
    [made] = hands.rows("select * from agentq.decision where session_id = %s", session.id)
    assert (made["step"], made["picked"], made["why"], made["approver"]) == ("heard", "denied", "not this one", "ada")
    [row] = hands.rows("select * from agentq.trace where session_id = %s and kind = 'approval'", session.id)
    assert (row["name"], row["detail"]["outcome"], row["detail"]["by"]) == ("heard", "denied", "ada")
