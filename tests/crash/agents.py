"""Agents that tell an outside service of each run and each effect, so that a test can count them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import psycopg
from pydantic import BaseModel

import agentq
from agentq import Agent, Branch, Child, Context, Done, Next, Sleep, Spawn, effect
from tests.crash.service import ask

PORT = int(os.environ.get("CRASH_SERVICE", "0"))


def _call(what: str, pause_s: float) -> str:
    answer: str = ask(PORT, kind="call", key=agentq.idempotency_key(), answer=f"done {what}", pause_s=pause_s)
    return answer


def _happened(what: str, pause_s: float) -> str | None:
    answer: str | None = ask(PORT, kind="check", key=agentq.idempotency_key())
    return answer


@effect(idempotent=True)
def repeatable(what: str, pause_s: float) -> str:
    return _call(what, pause_s)


@effect(check=_happened)
def checked(what: str, pause_s: float) -> str:
    return _call(what, pause_s)


def undeclared(what: str, pause_s: float) -> str:
    return _call(what, pause_s)


def _domain(what: str, pause_s: float) -> str:
    return f"shared:{what}"


@effect(idempotent=True, key=_domain)
def shared(what: str, pause_s: float) -> str:
    return _call(what, pause_s)


@effect(check=_happened, key=_domain)
def shared_checked(what: str, pause_s: float) -> str:
    return _call(what, pause_s)


EFFECTS: dict[str, Any] = {
    function.__name__: function for function in (repeatable, checked, undeclared, shared, shared_checked)
}


def began(ctx: Context) -> None:
    """Tell the service that an attempt runs, with its fence: a run after the settlement has a higher one."""
    claim = ctx._attempt.claim
    ask(PORT, kind="ran", session=ctx.session_id, step=ctx.step_id, fence=claim.fence, pid=os.getpid())


class Walk(BaseModel):
    """A session of so many steps, with one effect each."""

    kind: str = "repeatable"
    steps: int = 5
    pause_s: float = 0.0
    n: int = 0
    trail: list[str] = []
    what: str = ""


walk = Agent("walk", state=Walk, version=1)


@walk.step(start=True, retries=10)
def go(state: Walk, ctx: Context) -> Next | Done:
    began(ctx)
    what = state.what or f"{ctx.session_id}:{state.n}"
    state.trail.append(ctx.call(EFFECTS[state.kind], what, state.pause_s))
    state.n += 1
    return Next(go, state) if state.n < state.steps else Done(state.trail)


class Fan(BaseModel):
    """A session that fans out, joins, and adds up."""

    width: int = 5
    pause_s: float = 0.0


fan = Agent("crash-fan", state=Fan, version=1)


@fan.step(start=True)
def spread(state: Fan, ctx: Context) -> Spawn:
    began(ctx)
    branches = [Branch(part, args={"n": n}) for n in range(state.width)]
    children = [Child("walk", input={"steps": 2, "pause_s": state.pause_s}) for _ in range(2)]
    return Spawn([*branches, *children], then=gather, state=state)


@fan.step(retries=10)
def part(state: Fan, ctx: Context, n: int) -> Next:
    began(ctx)
    ctx.call(repeatable, f"{ctx.session_id}:{n}", state.pause_s)
    ctx.messages.append({"part": n})
    return Next(rest, state, args={"n": n})


@fan.step(retries=10)
def rest(state: Fan, ctx: Context, n: int) -> Sleep | Done:
    began(ctx)
    return Sleep("0.1s", then=last, state=state, args={"n": n})


@fan.step(retries=10)
def last(state: Fan, ctx: Context, n: int) -> Done:
    began(ctx)
    return Done(n)


@fan.step(retries=10)
def gather(state: Fan, ctx: Context) -> Done:
    began(ctx)
    assert all(result.ok for result in ctx.results)
    values = [result.value for result in ctx.results]
    return Done({"parts": values[: state.width], "children": len(values[state.width :]), "said": len(ctx.messages)})


class Deed(BaseModel):
    """One step that does something to its own process, and how often."""

    what: str
    seconds: float = 0.0
    marker: str = ""


deed = Agent("deed", state=Deed, version=1)


@deed.step(start=True, retries=3, timeout="120s")
def do(state: Deed, ctx: Context) -> Done:
    began(ctx)
    match state.what:
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "die_once":
            if not Path(state.marker).exists():
                Path(state.marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        case "sleep":
            time.sleep(state.seconds)
        case "sleep_once":
            if ctx._attempt.claim.fence == 1:
                time.sleep(state.seconds)
        case "bad_message":
            raise ValueError(f"not for a database: {chr(0)} {chr(0xD800)}")
        case "bad_write":
            with ctx.transaction() as connection:
                connection.execute("select 1/0")
        case "bad_commit":
            with ctx.transaction() as connection, contextlib.suppress(psycopg.Error):
                connection.execute("select 1/0")
    return Done(os.getpid())
