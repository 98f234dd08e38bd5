"""Two sessions that do not move: one waits for a person, one was paused and forgotten."""

from __future__ import annotations

from pydantic import BaseModel

from agentq import Agent, Ask, Context, Done
from tests.runbooks.conftest import Scene
from tests.runbooks.reading import Words
from tests.support.until import until


class Refund(BaseModel):
    order: str


def stage(scene: Scene) -> Words:
    agent = Agent("refunds", state=Refund, registry=scene.registry)

    @agent.step(start=True)
    def look(state: Refund) -> Ask | Done:
        if state.order == "A2":
            return Done("nothing to do")
        return Ask(f"Refund {state.order}?", to="finance", within="3d", then=pay, args={"cents": 129900})

    @agent.step
    def pay(state: Refund, ctx: Context, cents: int) -> Done:
        return Done(f"{ctx.answer.outcome} by {ctx.answer.by}: {cents}")

    waiting = scene.client.start("refunds", tenant=scene.tenant, input={"order": "A1"})
    scene.carry()
    paused = scene.client.start("refunds", tenant=scene.tenant, input={"order": "A2"})
    paused.pause("looking into the invoice of A2")
    scene.keep_carrying()
    until(lambda: [step.state for step in waiting.steps()] == ["done", "waiting"], 30, "it asks")
    [approval] = scene.client.approvals.ls(tenant=scene.tenant)
    return {"SESSION": waiting.id, "FORGOTTEN": paused.id, "APPROVAL": str(approval.approval_id)}
