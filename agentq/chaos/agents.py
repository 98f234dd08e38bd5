"""
The agents that a run works with: chains, fans with joins, and poison.

Workers import them as `AGENTQ_AGENTS=agentq.chaos.agents`, with AGENTQ_CHAOS_SERVICE naming the service.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from typing import Any

from pydantic import BaseModel

from agentq.agents.agent import Agent
from agentq.agents.context import AsyncContext, Context
from agentq.agents.returns import Branch, Child, Done, Next, Sleep, Spawn
from agentq.chaos import mines
from agentq.chaos.tools import BY_KIND, Order, say

mines.lay()

# Faults last for seconds, so patience, not the number of tries, must outlive them.
RETRIES = 100
TIMEOUT = "30s"
HOG_S = 25.0


class Chain(BaseModel):
    """A run of steps with one change each."""

    session: str
    kinds: list[str]
    pauses: list[float]
    naps: list[float]
    prefix: str = ""
    value: str = ""
    trail: list[str] = []

    def order(self) -> Order:
        n = len(self.trail)
        return Order(session=self.session, place=f"{self.prefix}{n}", value=self.value, pause_s=self.pauses[n])

    def took(self, answer: str) -> None:
        self.value = answer
        self.trail.append(answer)


def _onward(state: Chain, step: str) -> Next | Sleep | Done:
    n = len(state.trail)
    if n == len(state.kinds):
        return Done(state.trail)
    nap_s = state.naps[n - 1]
    return Sleep(nap_s, then=step, state=state) if nap_s else Next(step, state)


chain = Agent("chaos-chain", state=Chain, version=1)


@chain.step(start=True, retries=RETRIES, timeout=TIMEOUT)
def link(state: Chain, ctx: Context) -> Next | Sleep | Done:
    """One change, and on."""
    state.took(ctx.call(BY_KIND[state.kinds[len(state.trail)]], state.order()))
    return _onward(state, "link")


waiting = Agent("chaos-async", state=Chain, version=1)


@waiting.step(start=True, retries=RETRIES, timeout=TIMEOUT)
async def wait(state: Chain, ctx: AsyncContext) -> Next | Sleep | Done:
    """The same in an `async def` step."""
    state.took(await ctx.call(BY_KIND[state.kinds[len(state.trail)]], state.order()))
    return _onward(state, "wait")


class Fan(BaseModel):
    """Branches and child sessions side by side, then a join with a change of its own."""

    session: str
    value: str
    parts: list[Chain]
    children: list[Chain]


fan = Agent("chaos-fan", state=Fan, version=1)


@fan.step(start=True, retries=RETRIES, timeout=TIMEOUT)
def spread(state: Fan) -> Spawn:
    """Fan out."""
    parts = [Branch("part", args={"chain": part.model_dump()}) for part in state.parts]
    children = [Child("chaos-chain", input=child) for child in state.children]
    return Spawn([*parts, *children], then="gather", state=state)


@fan.step(retries=RETRIES, timeout=TIMEOUT)
def part(state: Fan, ctx: Context, chain: dict[str, Any]) -> Next | Done:
    """One change of a branch, and on."""
    mine = Chain.model_validate(chain)
    mine.took(ctx.call(BY_KIND[mine.kinds[len(mine.trail)]], mine.order()))
    if len(mine.trail) == len(mine.kinds):
        return Done(mine.trail)
    return Next("part", state, args={"chain": mine.model_dump()})


@fan.step(retries=RETRIES, timeout=TIMEOUT)
def gather(state: Fan, ctx: Context) -> Done:
    """Join: one more change, made of all answers."""
    answers = "+".join(str(result.value[-1]) for result in ctx.results)
    value = hashlib.sha256(answers.encode()).hexdigest()[:16]
    return Done(ctx.call(BY_KIND["idempotent"], Order(session=state.session, place="join", value=value, pause_s=0.1)))


class Poison(BaseModel):
    """A step that takes its process with it."""

    session: str
    hog: bool = False


poison = Agent("chaos-poison", state=Poison, version=1)


@poison.step(start=True, retries=RETRIES, timeout="60s")
def swallow(state: Poison) -> Done:
    """Tell the service who runs it, then die; a hog, alone in quarantine, waits to be killed from outside."""
    alone = threading.current_thread() is threading.main_thread()  # a prefork child runs its step there
    place = "alone" if alone else "among others"
    say("ran", Order(session=state.session, place=place, value=""))
    if state.hog and alone:
        time.sleep(HOG_S)
    os.kill(os.getpid(), signal.SIGKILL)
    return Done(None)
