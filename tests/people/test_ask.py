"""Ask: a step asks people, waits without a worker, and goes on with the answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from agentq import (
    Agent,
    ApprovalClosed,
    Ask,
    Context,
    Done,
)
from agentq.agents.registry import Registry
from agentq.client import Client, Session
from agentq.testing import LocalFleet, Stuck

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
