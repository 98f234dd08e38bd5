"""A tenant that has spent thirty cents' hundredths and then floods, beside one that has a single step due."""

from __future__ import annotations

from pydantic import BaseModel

from agentq import Agent, Context, Done
from tests.runbooks.conftest import Scene
from tests.runbooks.reading import Words


class Purse(BaseModel):
    """Nothing to know."""


def stage(scene: Scene) -> Words:
    agent = Agent("buyer", state=Purse, registry=scene.registry)

    @agent.step(start=True)
    def buy(state: Purse, ctx: Context) -> Done:
        with ctx.spend(model="garage:robot", input_tokens=400, max_tokens=600) as call:
            call.used(input_tokens=400, output_tokens=600)
        return Done(None)

    client = scene.client
    client.budgets.set_price("garage:robot", input_usd=1, output_usd=1, reason="what we pay")
    client.start_many("buyer", tenant=scene.tenant, items=[({}, None)] * 30)
    scene.carry()
    client.tenants.set(scene.tenant, concurrency=8, reason="staged")
    scene.add_tenant("calm")
    client.start_many("buyer", tenant=scene.tenant, items=[({}, None)] * 40)
    client.start("buyer", tenant="calm", input={})
    return {}
