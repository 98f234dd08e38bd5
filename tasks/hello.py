"""The first agent of one's own: two steps, one effect."""

from __future__ import annotations

from pydantic import BaseModel

from agentq import Agent, Context, Done, Next, effect


class Greeting(BaseModel):
    name: str = "world"


hello = Agent("hello", state=Greeting, version=1)


@effect(idempotent=True)  # after a crash in the middle, calling it again harms nobody
def compose(name: str) -> str:
    return f"Hello, {name}!"


@hello.step(start=True)
def think(state: Greeting) -> Next:
    return Next(say, state)


@hello.step
def say(state: Greeting, ctx: Context) -> Done:
    return Done(ctx.call(compose, state.name))  # remembered: a later attempt reads the result
