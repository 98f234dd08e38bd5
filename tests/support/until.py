"""Waiting for a condition, never for a time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# A machine that others use as well is slow without being wrong.
_PATIENCE = 4.0 if os.environ.get("CI") else 1.0


def until(condition: Callable[[], T], timeout_s: float = 15.0, what: str = "") -> T:
    """What the condition returns once that is true; fails when it never is."""
    timeout_s *= _PATIENCE
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"still not, after {timeout_s} s: {what or condition}"
        time.sleep(0.01)
    return found
