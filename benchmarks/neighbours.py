"""What the neighbours' benchmark runs: steps that wait, fail, are tried again or kill their worker."""

from __future__ import annotations

import os
import signal
import time

from pydantic import BaseModel

from agentq import Agent, Done, Next, Permanent, Transient
from benchmarks.bare import app, done

RETRIES = 3


class Work(BaseModel):
    """So many steps of so many seconds, and how they end."""

    left: int = 1
    seconds: float = 0.05
    ends: str = "well"


neighbour = Agent("bench-neighbour", state=Work)


@neighbour.step(start=True, retries=RETRIES)
def work(state: Work) -> Next | Done:
    """Wait, then go on."""
    time.sleep(state.seconds)
    match state.ends:
        case "failing":
            raise Permanent("as it was asked to")
        case "retrying":
            raise Transient("as it was asked to")
        case "poison":
            os.kill(os.getpid(), signal.SIGKILL)
    state.left -= 1
    return Next(work, state) if state.left > 0 else Done()


@app.task(name="bare.neighbour", ignore_result=True, bind=True)
def bare_work(
    self: object, left: int, seconds: float, run: str, queue: str, began: float, ends: str = "well", tries: int = 0
) -> None:
    """The same as a Celery task that sends the next to its queue."""
    time.sleep(seconds)
    match ends:
        case "failing":
            raise ValueError("as it was asked to")
        case "retrying" if tries < RETRIES:
            bare_work.apply_async((left, seconds, run, queue, began, ends, tries + 1), queue=queue)
            return
        case "poison":
            os.kill(os.getpid(), signal.SIGKILL)
    if left > 1:
        bare_work.apply_async((left - 1, seconds, run, queue, began), queue=queue)
    elif run:
        done.rpush(run, time.time() - began)
