"""An agent that asks its model the same thing again and again, and is paid for by somebody."""

from __future__ import annotations

import itertools
import threading

from pydantic import BaseModel

from agentq import Agent, Context, Done, Next
from tests.runbooks.conftest import Scene
from tests.runbooks.reading import Words
from tests.support.until import until


class Draft(BaseModel):
    topic: str = ""
    round: int = 0


def stage(scene: Scene) -> Words:
    agent = Agent("researcher", state=Draft, registry=scene.registry)
    rounds = itertools.count(1)

    @agent.step(start=True)
    def think(state: Draft, ctx: Context) -> Next | Done:
        if state.topic == "small":
            return Done("answered")
        state.round = next(rounds)
        ctx.usage(input_tokens=3000, output_tokens=500, cost_usd="0.05")
        threading.Event().wait(0.02)
        return Next(think, state)

    scene.client.start("researcher", tenant=scene.tenant, input={"topic": "small"})
    runaway = scene.client.start("researcher", tenant=scene.tenant, input={"topic": "everything"})
    scene.keep_carrying()
    until(lambda: len(runaway.steps()) > 30, 60, "it has gone round thirty times")
    return {"SESSION": runaway.id}
