"""An agent that spends money, and writes down each call that went out."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pydantic import BaseModel

from agentq import Agent, Context, Done


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
