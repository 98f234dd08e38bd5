"""Agents that remember, for real workers: one may die right after it has, within an effect or before its settlement."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from pydantic import BaseModel

from agentq import Agent, Context, Done, Next, effect

BOOK = Path(os.environ.get("MEMORY_TEST_BOOK", "/nonexistent"))


class Note(BaseModel):
    """What is remembered."""

    name: str = ""


keeper = Agent("keeper", state=Note)


def _perhaps_die(where: str) -> None:
    """Once for each place: the worker is gone, with all that it had at hand."""
    try:
        (BOOK / where).unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


@keeper.step(start=True)
def note(state: Note, ctx: Context) -> Next:
    """Within an effect, which writes at once and may be repeated."""

    @effect(idempotent=True)
    def remember() -> int:
        version = ctx.memory.put("effects", state.name, state.name).version
        _perhaps_die("kill-effect")
        return version

    ctx.call(remember)
    return Next(keep)


@keeper.step
def keep(state: Note, ctx: Context) -> Done:
    """In the step itself, to be committed with it; and a count that all of them raise."""
    ctx.memory.put("steps", state.name, state.name)
    found = ctx.memory.get("all", "count")
    ctx.memory.put("all", "count", (found.value if found else 0) + 1, if_version=found.version if found else 0)
    _perhaps_die("kill-step")
    return Done(ctx.attempt)
