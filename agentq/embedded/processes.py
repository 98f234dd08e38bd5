"""
Processes: whether a number still means the program we started, since numbers are given out again.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

try:
    import psutil
except ModuleNotFoundError:  # servers of one's own need nothing from the `embedded` extra
    psutil = None


def runs_in(pid: int, program: str, folder: Path) -> bool:
    """
    Whether `pid` is that program, alive, working in that folder.

    A server keeps its data folder as its working directory, so no other process passes for it.
    """
    if psutil is None:
        return False
    try:
        found = psutil.Process(pid)
        if found.status() == psutil.STATUS_ZOMBIE or not found.name().startswith(program[:15]):
            return False
        return os.path.samefile(found.cwd(), folder)
    except (psutil.Error, OSError, ValueError):
        return False


def has_ended(pid: int) -> bool:
    """Whether the process has let go of files and ports, even if nobody has asked for its exit code yet."""
    if psutil is None:
        return True
    try:
        found = psutil.Process(pid)
        # A killed program's first thread is a zombie while its others are still dying.
        return bool(found.status() == psutil.STATUS_ZOMBIE and found.num_threads() <= 1)
    except psutil.Error:
        return True


def is_ours(pid: int, born: float, marker: str) -> bool:
    """Whether `pid` was born at that time and has the marker in its command line."""
    if psutil is None:
        return False
    try:
        found = psutil.Process(pid)
        return (
            found.status() != psutil.STATUS_ZOMBIE
            and abs(found.create_time() - born) < 2.0
            and any(marker in word for word in found.cmdline())
        )
    except psutil.Error:
        return False


def status(pid: int) -> str | None:
    """What the system says of it: `running`, `sleeping`, `stopped`, `zombie` and so on; None when it is gone."""
    if psutil is None:
        return None
    try:
        return str(psutil.Process(pid).status())
    except psutil.Error:
        return None


def born(pid: int) -> float:
    """When the process began, in seconds since 1970; 0.0 when it is gone."""
    if psutil is None:
        return 0.0
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return 0.0


def descendants(pid: int) -> list[int]:
    """Its children, their children, and so on."""
    if psutil is None:
        return []
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Signal each of them; those already gone are passed over."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def wait_until(true: Callable[[], bool], timeout_s: float, pause_s: float = 0.02) -> bool:
    """Wait for it to come true; False when the time is up."""
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause_s)
    return True
