"""Mines: a worker process that is told to dies inside its relay, between its commit and its message."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from agentq import engine

ORDERS = "AGENTQ_CHAOS_ORDERS"
# The relay has committed that something is to be sent, and has not sent it.
RELAY_POINTS = frozenset({"admitted", "took_back", "republished"})


def lay() -> None:
    """Watch for orders, where the environment names a folder of them; does nothing elsewhere."""
    folder = os.environ.get(ORDERS)
    if not folder:
        return
    order = Path(folder) / "relay"

    def probe(point: str) -> None:
        if point in RELAY_POINTS and order.exists():
            _take(order, point)

    engine.probe = probe


def _take(order: Path, point: str) -> None:
    try:
        order.rename(order.with_name("taken"))  # one process wins
    except FileNotFoundError:
        return
    died = order.with_name("died")
    died.with_suffix(".new").write_text(f"{os.getpid()} {point}")
    died.with_suffix(".new").rename(died)
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
