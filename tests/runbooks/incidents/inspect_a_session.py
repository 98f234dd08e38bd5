"""A session that somebody asks about: it took longer than usual, and a tool failed on the way."""

from __future__ import annotations

from pydantic import BaseModel

from agentq import Agent, Context, Done, Next, Transient, effect
from tests.runbooks.conftest import Scene
from tests.runbooks.reading import Words


class Refund(BaseModel):
    order: str
    cents: int = 0


def stage(scene: Scene) -> Words:
    agent = Agent("refunds", state=Refund, registry=scene.registry)
    failing = [Transient("payments: HTTP 503")]

    @effect(idempotent=True)
    def issue_refund(order: str, cents: int) -> str:
        if failing:
            raise failing.pop()
        return f"refund of {order}"

    @agent.step(start=True)
    def look_up(state: Refund, ctx: Context) -> Next:
        state.cents = 1250
        ctx.usage(input_tokens=900, output_tokens=80, cost_usd="0.004")
        return Next(pay, state)

    @agent.step(retries=3)
    def pay(state: Refund, ctx: Context) -> Done:
        return Done(ctx.call(issue_refund, state.order, state.cents))

    issue_refund.__qualname__ = "issue_refund"
    session = scene.client.start("refunds", tenant=scene.tenant, input={"order": "A1"}, key="ticket-8812")
    scene.carry()
    return {"SESSION": session.id}
