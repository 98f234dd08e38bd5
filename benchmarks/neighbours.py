"""What the neighbours' benchmark runs: steps that wait, on agentq and as bare Celery tasks."""

from __future__ import annotations

import time

from pydantic import BaseModel

from agentq import Agent, Done, Next
from benchmarks.bare import app, done


class Work(BaseModel):
    """So many steps of so many seconds."""

    left: int = 1
    seconds: float = 0.05


neighbour = Agent("bench-neighbour", state=Work)


@neighbour.step(start=True)
def work(state: Work) -> Next | Done:
    """Wait, then go on."""
    time.sleep(state.seconds)
    state.left -= 1
    return Next(work, state) if state.left > 0 else Done()


@app.task(name="bare.neighbour", ignore_result=True, bind=True)
def bare_work(self: object, left: int, seconds: float, run: str, queue: str, began: float) -> None:
    """The same as a Celery task that sends the next to its queue."""
    time.sleep(seconds)
    if left > 1:
        bare_work.apply_async((left - 1, seconds, run, queue, began), queue=queue)
    elif run:
        done.rpush(run, time.time() - began)
