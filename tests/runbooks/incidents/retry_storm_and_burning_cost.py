"""A model provider that answers two of three calls with an error, is paid for each, and mends when left in peace."""

from __future__ import annotations

import itertools
import threading

from pydantic import BaseModel

from agentq import Agent, Context, Done, Next, Transient
from tests.runbooks.conftest import Scene
from tests.runbooks.reading import Words
from tests.support.until import until


class Overloaded(Transient):
    """As a model's client says that its provider is overloaded."""

    status_code = 529


class Draft(BaseModel):
    ticket: str = ""
    drafts: int = 0


def stage(scene: Scene) -> Words:
    # So that nobody waits long: the pauses of the fleet that the runbook is read in are longer.
    scene.client.settings = scene.settings.model_copy(
        update={"dependency_pause_s": 0.2, "dependency_pause_max_s": 0.5, "dependency_failure_rate": 0.75}
    )
    calls = itertools.count(1)
    called, mended = threading.Event(), threading.Event()
    agent = Agent("writers", state=Draft, registry=scene.registry)

    @agent.step(start=True, needs="llm", retries=10_000)
    def draft(state: Draft, ctx: Context) -> Next | Done:
        ctx.usage(input_tokens=2000, output_tokens=500, cost_usd="0.03")
        if next(calls) > 60:
            called.set()
        if not mended.is_set():
            # Slow enough for the reader: a storm that nobody stops goes on for hours.
            mended.wait(0.01)
            if next(calls) % 3:
                raise Overloaded("overloaded")
            state.drafts += 1
            return Next(draft, state)
        return Done(state.drafts)

    def mend() -> None:
        until(lambda: _forced(scene), 120, "somebody holds the calls back")
        mended.set()

    for number in range(6):
        scene.client.start("writers", tenant=scene.tenant, input={"ticket": f"T{number}"})
    threading.Thread(target=mend, daemon=True).start()
    scene.keep_carrying()
    called.wait(30)
    return {}


def _forced(scene: Scene) -> bool:
    return scene.rows("select 1 from agentq.dependency where name = 'llm' and state = 'forced_open'") != []
