"""Agents for real workers, registered as `AGENTQ_AGENTS` finds them."""

from __future__ import annotations

import threading
import time

from pydantic import BaseModel

from agentq import Agent, AsyncContext, Branch, Context, Done, Fail, Next, Spawn, Transient, effect


class Count(BaseModel):
    """A number that goes up."""

    n: int = 0
    until: int = 3


count = Agent("count", state=Count)


@count.step(start=True)
def up(state: Count) -> Next | Done:
    state.n += 1
    return Next(up, state) if state.n < state.until else Done(state.n)


class Url(BaseModel):
    text: str = ""
    parts: int = 3


fan = Agent("fan", state=Url)


@fan.step(start=True)
async def split(state: Url, ctx: AsyncContext) -> Spawn:
    return Spawn([Branch(part, args={"number": n}) for n in range(state.parts)], then=gather, state=state)


@fan.step
async def part(state: Url, ctx: AsyncContext, number: int) -> Done:
    return Done(await ctx.call(upper, f"{state.text}{number}"))


@fan.step
def gather(state: Url, ctx: Context) -> Done:
    return Done([result.value for result in ctx.results])


@effect(idempotent=True)
async def upper(text: str) -> str:
    return text.upper()


class Wait(BaseModel):
    seconds: float = 30.0


wait = Agent("wait", state=Wait)


@wait.step(start=True, retries=0)
def linger(state: Wait, ctx: Context) -> Done:
    """Runs until it is stopped."""
    end = time.monotonic() + state.seconds
    while time.monotonic() < end:
        ctx.check()
        threading.Event().wait(0.02)
    return Done("waited")


class Flaky(BaseModel):
    fails: int = 1


flaky = Agent("flaky", state=Flaky)


@flaky.step(start=True, retries=5)
def try_it(state: Flaky, ctx: Context) -> Done | Fail:
    if ctx.attempt <= state.fails:
        raise Transient(f"attempt {ctx.attempt} fails")
    return Done(ctx.attempt)
