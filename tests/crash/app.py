"""
A test build of the worker: the real app, with an engine that kills its own process where it is told.

`celery -A tests.crash.app worker`. An order is a file with a point and a count; the process that passes
the point for the count-th time takes the file and dies, so that one order kills one process. Where there
is a next order, it puts that in the place of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentq import engine, heart
from agentq.broker.publisher import Publisher
from agentq.broker.queues import QUARANTINE, declared
from agentq.celery_app import app
from agentq.errors import StoreUnavailable
from agentq.store.pool import Store

ORDERS = Path(os.environ["CRASH_ORDERS"])
_passed: Counter[str] = Counter()
_lock = threading.Lock()
_order_seen: tuple[float, str] | None = None


def probe(point: str) -> None:
    """Die here if the order of the day says so."""
    global _order_seen
    order = ORDERS / "order"
    try:
        about = order.stat()
        wanted, _, count = order.read_text().partition(":")
    except OSError:
        return
    with _lock:
        if _order_seen != (about.st_mtime, wanted):
            _order_seen = (about.st_mtime, wanted)
            _passed.clear()
        _passed[point] += 1
        if point != wanted or _passed[point] < int(count or 1):
            return
    try:
        order.rename(ORDERS / "taken")  # one process wins
    except FileNotFoundError:
        return
    with contextlib.suppress(FileNotFoundError):
        (ORDERS / "next").rename(order)
    note = {"point": point, "pid": os.getpid(), "at": time.time(), "in_flight": _in_flight()}
    (ORDERS / "died.new").write_text(json.dumps(note))
    (ORDERS / "died.new").rename(ORDERS / f"died-{time.time_ns()}")
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def _in_flight() -> int:
    from agentq.runtime import runtime

    return len(runtime().in_flight.attempts())


engine.probe = probe


def _around(owner: Any, name: str, before: str, after: str) -> None:
    inner: Callable[..., Any] = getattr(owner, name)

    def outer(*args: Any, **kwargs: Any) -> Any:
        probe(before)
        result = inner(*args, **kwargs)
        probe(after)
        return result

    setattr(owner, name, outer)


# The publisher stands below the engine, so it has no probe of its own.
_around(Publisher, "_publish_batch", "publishing", "published")


def _lose_answers(share: float, seed: int) -> None:
    """Pretend that Postgres went away before or after a statement, now and then."""
    draw = random.Random(seed)
    query = Store.query
    query_as = Store.query_as

    def lossy(inner: Callable[..., Any]) -> Callable[..., Any]:
        def outer(*args: Any) -> Any:
            with _lock:
                lost = draw.random()
            if lost < share / 2:
                raise StoreUnavailable("a test lost the question")
            rows = inner(*args)
            if lost < share:
                raise StoreUnavailable("a test lost the answer")
            return rows

        return outer

    Store.query = lossy(query)  # type: ignore[method-assign]
    Store.query_as = lossy(query_as)  # type: ignore[method-assign]


if share := float(os.environ.get("CRASH_LOSE", "0")):
    _lose_answers(share, int(os.environ.get("CRASH_SEED", "1")))

if os.environ.get("CRASH_QUARANTINE"):
    app.amqp.queues.add(declared(QUARANTINE))
    app.amqp.queues.select([QUARANTINE])  # as `agentq worker --group quarantine` does
    app.conf.worker_pool = "prefork"  # Celery takes `-P prefork` for "not given"

if os.environ.get("CRASH_DEAF"):
    # Nobody tells the steps of a zombie: only the fence in Postgres stands between it and the ledger.
    engine.InFlight.fence_all = lambda self: None  # type: ignore[method-assign]

if tick := os.environ.get("CRASH_TICK_S"):
    heart._TICK_S = min(heart._TICK_S, float(tick))

__all__ = ["app"]
