"""One asyncio loop per process, in a thread of its own, for `async def` steps and effects."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

# Threads for what blocks in `async def` steps. Python's own default, a few more than there are cores, would let
# some steps of a process wait for all the others; they are started as they are needed.
_THREADS_MAX = 256

_lock = threading.Lock()
_loops: dict[int, asyncio.AbstractEventLoop] = {}


def process_loop() -> asyncio.AbstractEventLoop:
    """This process's loop, started on first use; after a fork the child gets its own."""
    with _lock:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = asyncio.new_event_loop()
            loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(_THREADS_MAX, "agentq-blocking"))
            _loops[os.getpid()] = loop
            threading.Thread(target=loop.run_forever, name="agentq-loop", daemon=True).start()
        return loop


def submit(coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
    """Run a coroutine on the process's loop from any other thread."""
    return asyncio.run_coroutine_threadsafe(coroutine, process_loop())
