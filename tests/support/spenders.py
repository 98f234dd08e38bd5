"""An agent that spends money, and writes down each call that went out."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pydantic import BaseModel

from agentq import Agent, Context, Done, Next, Transient


class Purse(BaseModel):
    """Where the calls are written down, and how long each takes."""

    journal: str
    seconds: float = 0.2


spender = Agent("spender", state=Purse)


@spender.step(start=True, retries=5)
def buy(state: Purse, ctx: Context) -> Done:
    """One call of exactly a thousand micros, which is what it reserves."""
    with ctx.spend(model="test-purse:robot", input_tokens=400, max_tokens=600) as call:
        line = f"{ctx.session_id} {call.reservation_id}\n".encode()
        with Path(state.journal).open("ab", buffering=0) as journal:
            journal.write(line)
        time.sleep(state.seconds)
        call.used(input_tokens=400, output_tokens=600)
    return Done(os.getpid())


class Basket(Purse):
    """What it has bought so far."""

    bought: int = 0


shopper = Agent("shopper", state=Basket)


@shopper.step(start=True, retries=5)
def shop(state: Basket, ctx: Context) -> Next[Basket] | Done:
    """
    Two calls to a step, three steps; the second step's first attempt fails once it has spent.

    The first call of each is traced and partly cached, the second is not traced at all.
    """
    with (
        ctx.trace("model", "robot", provider="test-purse") as span,
        ctx.spend(model="test-purse:robot", input_tokens=400, max_tokens=600) as call,
    ):
        call.used(input_tokens=300, output_tokens=200, cached_input_tokens=100)
        span.used(input_tokens=300, output_tokens=200, cached_tokens=100, cost_micros=call.cost_micros)
    with ctx.spend(model="test-purse:parrot", input_tokens=70, max_tokens=30) as call:
        line = f"{ctx.session_id} {call.reservation_id}\n".encode()
        with Path(state.journal).open("ab", buffering=0) as journal:
            journal.write(line)
        time.sleep(state.seconds)
        call.used(input_tokens=61, output_tokens=7)
    if state.bought == 1 and ctx.attempt == 1:
        raise Transient("once more")
    state.bought += 1
    return Done(state.bought) if state.bought == 3 else Next(shop, state)
