"""Irreversible effects: a person's leave first, for these arguments alone, and then exactly one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from agentq import (
    Agent,
    ApprovalDenied,
    ApprovalExpired,
    AsyncContext,
    ConfigError,
    Context,
    Done,
    InvalidInput,
    Permanent,
    Transient,
    effect,
    idempotency_key,
)
from agentq.agents.registry import Registry
from agentq.client import Client, Session
from agentq.testing import LocalFleet, Stuck
from tests.support.hands import Hands

Local = Callable[..., LocalFleet]


class Order(BaseModel):
    number: str = "A1"
    cents: int = 100


class Bank:
    """Pays for ever: each call is money."""

    def __init__(self) -> None:
        self.paid: list[tuple[str, int]] = []
        self.keys: list[str] = []
        self.errors: list[Exception] = []

    def tool(self, **declared: Any) -> Callable[..., str]:
        @effect(irreversible=True, **declared)
        def pay_out(order: str, cents: int) -> str:
            self.keys.append(idempotency_key())
            if self.errors:
                raise self.errors.pop(0)
            self.paid.append((order, cents))
            return f"paid {cents}"

        return pay_out


@pytest.fixture
def bank() -> Bank:
    return Bank()


both = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


def paying(registry: Registry, tool: Callable[..., str], *, is_async: bool = False, retries: int = 2) -> Agent[Order]:
    agent = Agent("payer", state=Order, registry=registry)
    if is_async:

        @agent.step(retries=retries)
        async def pay(state: Order, ctx: AsyncContext) -> Done:
            return Done(await ctx.call(tool, state.number, cents=state.cents))
    else:

        @agent.step(retries=retries)
        def pay(state: Order, ctx: Context) -> Done:
            return Done(ctx.call(tool, state.number, cents=state.cents))

    return agent


def waiting(fleet: LocalFleet, session: Session) -> str:
    with pytest.raises(Stuck, match="waits for people"):
        fleet.drain(session)
    [approval] = fleet.client.approvals.ls(tenant=session.tenant, session_id=session.id)
    return str(approval.approval_id)


@both
def test_a_granted_call_goes_out_once(
    registry: Registry, client: Client, tenant: str, local: Local, bank: Bank, is_async: bool
) -> None:
    """
    The step waits without an attempt lost, runs again after the grant, and pays once.
    """
    paying(
        registry, bank.tool(to="finance", question=lambda order, cents: f"Pay {cents} for {order}?"), is_async=is_async
    )
    fleet = local()
    session = client.start("payer", tenant=tenant, input={})
    view = client.approvals.get(waiting(fleet, session))
    assert (view.question, view.groups, view.args) == ("Pay 100 for A1?", ("finance",), {"order": "A1", "cents": 100})
    assert [(s.state, s.attempt) for s in session.steps()] == [("waiting", 0)]
    assert bank.paid == []
    client.approvals.grant(view.id)
    assert fleet.drain(session).result == "paid 100"
    assert bank.paid == [("A1", 100)]


@both
@pytest.mark.parametrize("answer", ["denied", "expired"])
def test_a_refused_call_never_goes_out(
    registry: Registry, client: Client, tenant: str, local: Local, bank: Bank, is_async: bool, answer: str
) -> None:
    """
    No and silence are two different ends. Neither is retried, and neither is a dead letter.
    """
    paying(registry, bank.tool(within="1h"), is_async=is_async)
    fleet = local()
    session = client.start("payer", tenant=tenant, input={})
    approval = waiting(fleet, session)
    if answer == "denied":
        client.approvals.deny(approval, reason="not this one", who=client.approvals.who("ada"))
    else:
        fleet.clock.advance("61m")
    view = fleet.drain(session)
    expected = ("ApprovalDenied", "ada denied") if answer == "denied" else ("ApprovalExpired", "nobody answered")
    assert view.failure is not None
    assert (view.failure["type"], view.failure["kind"]) == (expected[0], "gave_up")
    assert view.failure["message"].startswith(expected[1])
    assert [step.state for step in session.steps()] == ["done"]
    assert bank.paid == []


def test_a_step_may_catch_a_no_and_go_another_way(
    registry: Registry, client: Client, tenant: str, local: Local, bank: Bank
) -> None:
    tool = bank.tool()
    agent = Agent("payer", state=Order, registry=registry)

    @agent.step
    def pay(state: Order, ctx: Context) -> Done:
        try:
            return Done(ctx.call(tool, "A1", 1))
        except (ApprovalDenied, ApprovalExpired) as error:
            return Done([type(error).__name__, getattr(error, "comment", None)])

    fleet = local()
    session = client.start("payer", tenant=tenant, input={})
    client.approvals.deny(waiting(fleet, session), reason="never")
    assert fleet.drain(session).result == ["ApprovalDenied", "never"]


def test_a_step_that_catches_everything_waits_all_the_same(
    registry: Registry, client: Client, tenant: str, local: Local, bank: Bank
) -> None:
    """
    A model's loop that turns every exception into a message must not run past the question.
    """
    tool = bank.tool()
    agent = Agent("payer", state=Order, registry=registry)

    @agent.step
    def pay(state: Order, ctx: Context) -> Done:
        try:
            return Done(ctx.call(tool, "A1", 1))
        except Exception as error:
            return Done(f"the tool failed: {error}")

    fleet = local()
    session = client.start("payer", tenant=tenant, input={})
    client.approvals.grant(waiting(fleet, session))
    assert fleet.drain(session).result == "paid 1"


def test_leave_holds_for_these_arguments_alone(
    registry: Registry, client: Client, tenant: str, local: Local, bank: Bank
) -> None:
    """
    The step runs again with another amount: what was granted does not fit, and people are asked anew.
    """
    tool = bank.tool()
    agent = Agent("payer", state=Order, registry=registry)
    amounts = [100, 9999, 9999]

    @agent.step
    def pay(state: Order, ctx: Context) -> Done:
        return Done(ctx.call(tool, "A1", amounts.pop(0)))

    fleet = local()
    session = client.start("payer", tenant=tenant, input={})
    client.approvals.grant(waiting(fleet, session))
    second = waiting(fleet, session)
    assert bank.paid == []
    assert client.approvals.get(second).args["cents"] == 9999
    client.approvals.grant(second)
    assert fleet.drain(session).result == "paid 9999"


def test_a_failed_call_is_repeated_under_the_same_leave(
    registry: Registry, client: Client, tenant: str, local: Local, bank: Bank
) -> None:
    """
    One grant covers the retries of one effect, which all carry the same key.
    """
    bank.errors = [Transient("busy"), Transient("busy")]
    paying(registry, bank.tool(idempotent=True))
    fleet = local()
    session = client.start("payer", tenant=tenant, input={})
    client.approvals.grant(waiting(fleet, session))
    assert fleet.drain(session).result == "paid 100"
    assert (len(bank.keys), len(set(bank.keys))) == (3, 1)
    assert len(client.approvals.ls(tenant=tenant, state=None)) == 1


@both
def test_edited_arguments_are_those_of_the_call(
    registry: Registry, client: Client, tenant: str, local: Local, bank: Bank, is_async: bool
) -> None:
    """
    The approver halves the amount: that is paid, once, and a later attempt recalls it.
    """
    paying(registry, bank.tool(), is_async=is_async)
    fleet = local()
    session = client.start("payer", tenant=tenant, input={})
    approval = waiting(fleet, session)
    with pytest.raises(InvalidInput, match="cannot become a text"):
        client.approvals.grant(approval, edits={"cents": "fifty"})
    with pytest.raises(InvalidInput, match="no argument 'sum'"):
        client.approvals.grant(approval, edits={"sum": 50})
    client.approvals.grant(approval, edits={"cents": 50})
    assert fleet.drain(session).result == "paid 50"
    assert bank.paid == [("A1", 50)]


def test_an_edited_call_is_recalled_in_a_later_attempt(
    registry: Registry, client: Client, tenant: str, local: Local, bank: Bank
) -> None:
    tool = bank.tool()
    agent = Agent("payer", state=Order, registry=registry)
    failing = [Transient("after the call")]

    @agent.step(retries=2)
    def pay(state: Order, ctx: Context) -> Done:
        paid = ctx.call(tool, "A1", 100)
        if failing:
            raise failing.pop()
        return Done(paid)

    fleet = local()
    session = client.start("payer", tenant=tenant, input={})
    client.approvals.grant(waiting(fleet, session), edits={"cents": 50})
    assert fleet.drain(session).result == "paid 50"
    assert bank.paid == [("A1", 50)]


def test_policy_grants_in_advance_and_leaves_a_row(
    registry: Registry, client: Client, tenant: str, local: Local, bank: Bank
) -> None:
    """
    `auto=` lets small amounts pass; the row says that it was policy, not a person.
    """
    paying(registry, bank.tool(auto=lambda order, cents: cents <= 500))
    fleet = local()
    assert fleet.drain(client.start("payer", tenant=tenant, input={"cents": 500})).result == "paid 500"
    [row] = client.approvals.ls(tenant=tenant, state=None)
    assert (row.state, row.decided_via) == ("granted", "policy")
    assert row.decided_by is not None
    assert row.decided_by.startswith("policy: auto of")
    waiting(fleet, client.start("payer", tenant=tenant, input={"cents": 501}))


def test_a_tenant_may_need_nobody_for_an_effect(
    registry: Registry, client: Client, tenant: str, other_tenant: str, local: Local, bank: Bank
) -> None:
    """
    One tenant's policy is not another's.
    """
    tool = bank.tool()
    paying(registry, tool)
    client.tenants.set(tenant, preapprove=[tool.__qualname__], reason="they signed for it")
    fleet = local()
    assert fleet.drain(client.start("payer", tenant=tenant, input={})).result == "paid 100"
    waiting(fleet, client.start("payer", tenant=other_tenant, input={}))


def test_a_paused_session_stays_paused_when_it_is_granted(
    registry: Registry, client: Client, tenant: str, local: Local, bank: Bank, admin: psycopg.Connection[Any]
) -> None:
    """
    The grant is kept, and the step goes on when the session does.
    """
    paying(registry, bank.tool())
    fleet = local()
    session = client.start("payer", tenant=tenant, input={})
    approval = waiting(fleet, session)
    admin.execute("update agentq.session set state = 'paused' where session_id = %s", (session.id,))
    client.approvals.grant(approval)
    assert session.steps()[0].state == "held"
    assert fleet.carry_next(tenant) is None
    assert bank.paid == []


def test_what_is_released_by_mistake_waits_again(
    registry: Registry, client: Client, tenant: str, local: Local, bank: Bank, admin: psycopg.Connection[Any]
) -> None:
    """
    Whoever wakes a waiting step wins nothing: it finds its question open and waits on, asking nobody twice.
    """
    paying(registry, bank.tool())
    fleet = local()
    session = client.start("payer", tenant=tenant, input={})
    approval = waiting(fleet, session)
    admin.execute("update agentq.ledger_entry set state = 'ready' where session_id = %s", (session.id,))
    assert waiting(fleet, session) == approval
    client.approvals.grant(approval)
    assert fleet.drain(session).result == "paid 100"


def test_only_what_is_irreversible_is_asked_about() -> None:
    with pytest.raises(ConfigError, match="irreversible=True"):
        effect(to="finance")


def test_a_tampered_grant_is_not_obeyed(
    registry: Registry, client: Client, tenant: str, local: Local, bank: Bank, admin: psycopg.Connection[Any]
) -> None:
    """
    The edited arguments carry their own hash; others in their place are refused.
    """
    paying(registry, bank.tool())
    fleet = local()
    session = client.start("payer", tenant=tenant, input={})
    client.approvals.grant(waiting(fleet, session), edits={"cents": 50})
    admin.execute(
        "update agentq.approval set edited = %s where session_id = %s", (b'{"order":"A1","cents":5000}', session.id)
    )
    with pytest.raises(Permanent, match="not those that were granted"):
        fleet.drain(session)
    assert bank.paid == []


@pytest.mark.parametrize("by", ["ada", "policy"])
def test_who_let_a_call_go_out_stands_in_the_decision_log(
    registry: Registry, client: Client, tenant: str, local: Local, bank: Bank, hands: Hands, by: str
) -> None:
    """
    A person or a policy; the time that a person took is a row of its own beside the call.
    """
    paying(registry, bank.tool(auto=(lambda order, cents: True) if by == "policy" else None))
    fleet = local()
    session = client.start("payer", tenant=tenant, input={})
    if by == "ada":
        client.approvals.grant(waiting(fleet, session), reason="known", who=client.approvals.who("ada"))
    fleet.drain(session)
    [made] = hands.rows("select * from agentq.decision where session_id = %s", session.id)
    assert made["picked"] == "granted"
    assert made["approver"] == "ada" or made["approver"].startswith("policy: auto of ")
    query = "select kind, detail from agentq.trace where session_id = %s and kind <> 'attempt' order by ended_at"
    found = hands.rows(query, session.id)
    assert [row["kind"] for row in found] == (["approval", "tool"] if by == "ada" else ["tool"])
    assert found[0]["detail"]["effect_key"] == found[-1]["detail"]["effect_key"]
