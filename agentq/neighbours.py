"""
The neighbours: other worker processes of this machine, whose end the kernel tells the moment it comes.

A process that is killed is no longer asked for twice, a second apart: whoever runs beside it hears of its end, looks
once whether its lock is free, and takes its steps back. This is only a faster way to what the relay finds by itself
(`look_for_dead`), which goes on beside it. Linux tells of a process's end by a pidfd, macOS by a kqueue; elsewhere, and
between machines or containers, nobody is a neighbour.

Why the word can be believed:

- A pid means a process only where it was given. So each row says its *place*, this boot of this kernel and the pid
  namespace, and only rows of one's own place are watched: not those of a container with the same host name.
- A pid that was given to another process leads to no false word. While a row's process lives, nobody else has its pid;
  so either what is watched under that pid is the process of the row, or the process of the row has ended before, and
  whatever is heard of the stranger's end has been true of it for longer. For the same reason it is a word that nobody
  has the pid. So nothing is looked at again after the descriptor was opened.
- The word alone kills nobody: Postgres looks whether the liveness lock is free, and whether a heartbeat has come since
  (`look_at_ended`). A process that lives and merely lost its connection gives no such word.

The lock falls a few milliseconds after the process, when Postgres sees that the socket is closed. So the look is
repeated after growing pauses, and left to the slower way after some seconds: somebody else may hold that socket,
such as a child that was forked later.
"""

from __future__ import annotations

import logging
import math
import os
import select
import subprocess
import sys
import threading
import time
import uuid
import weakref
from pathlib import Path
from typing import Protocol

from agentq.store.workers import Workers

log = logging.getLogger("agentq.neighbours")

_PATIENCE_S = 5.0
_PAUSE_S = 0.01
_PAUSE_MAX_S = 0.5


class End(Protocol):
    """What `select.poll` finds readable once a process has ended."""

    def fileno(self) -> int:
        """The descriptor."""

    def close(self) -> None:
        """Let go of it."""


class _Descriptor:
    """A descriptor that is closed once, at the latest with its last user."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        return self._number

    def close(self) -> None:
        number, self._number = self._number, -1
        if number >= 0:
            os.close(number)

    def __del__(self) -> None:
        self.close()


def place() -> str | None:
    """Where a pid of this process means it and no other; None where nobody can tell."""
    try:
        if sys.platform == "linux":
            boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
            return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
        if sys.platform == "darwin":
            asked = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
            return subprocess.run(asked, capture_output=True, check=True, text=True, timeout=5.0).stdout.strip() or None
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        log.debug("where this process is cannot be told: %s", error)
    return None


def end_of(pid: int) -> End | None:
    """
    What becomes readable when the process ends, also while nobody has waited for it; None: it cannot be had here.

    Raises:
        ProcessLookupError: nobody has this pid.
    """
    try:
        if sys.platform == "linux" and hasattr(os, "pidfd_open"):
            return _Descriptor(os.pidfd_open(pid))
        if sys.platform == "darwin":
            return _queue_of(pid)
    except ProcessLookupError:
        raise
    except OSError as error:  # a sandbox forbids it, or there are too many
        log.debug("the end of process %s cannot be watched: %s", pid, error)
    return None


if sys.platform == "darwin":

    def _queue_of(pid: int) -> End:
        """A queue of its own for each process, so that it is polled like a pidfd."""
        queue = select.kqueue()
        try:
            event = select.kevent(pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD, select.KQ_NOTE_EXIT)
            queue.control([event], 0)
        except OSError:
            queue.close()
            raise
        return queue


class Neighbours:
    """
    The ends of other processes here. One thread refreshes, rests and looks; any may `wake` it.

    Not used by a forked child, in which all descriptors are closed at once.
    """

    def __init__(self, workers: Workers, *, lease_s: float, patience_s: float = _PATIENCE_S) -> None:
        self._workers = workers
        self._lease_s = lease_s
        self._patience_s = patience_s
        self._place = place()
        self._ends: dict[uuid.UUID, End] = {}
        # When each end was heard of, as long as its row says that it lives.
        self._heard: dict[uuid.UUID, float] = {}
        self._look_at = math.inf
        self._pause_s = _PAUSE_S
        self._bell, self._button = map(_Descriptor, os.pipe())
        self._closing = threading.Lock()
        _open.add(self)

    def refresh(self) -> None:
        """Watch those who live here by their rows, and nobody else."""
        if self._place is None:
            return
        living = {worker: pid for worker, pid in self._workers.of_place(self._place).items() if pid != os.getpid()}
        for gone in self._ends.keys() - living.keys():
            self._ends.pop(gone).close()
        self._heard = {worker: at for worker, at in self._heard.items() if worker in living}
        for worker in living.keys() - self._ends.keys() - self._heard.keys():
            try:
                end = end_of(living[worker])
            except ProcessLookupError:
                self._hear(worker)
            else:
                if end is not None:
                    self._ends[worker] = end

    def rest(self, seconds: float) -> bool:
        """Wait, no longer than until an end is to be looked at; whether one is."""
        poll, watched = select.poll(), {end.fileno(): worker for worker, end in self._ends.items()}
        for descriptor in (self._bell.fileno(), *watched):
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(max(0.0, min(seconds, self._look_at - time.monotonic())) * 1000):
            if descriptor in watched:
                self._hear(watched[descriptor])
        return time.monotonic() >= self._look_at

    def look(self) -> dict[uuid.UUID, float]:
        """
        Which of those whose end was heard of Postgres finds dead, and since when, by the monotonic clock.

        Raises:
            StoreUnavailable: it is asked again after a pause.
        """
        now = time.monotonic()
        asked = {worker: at for worker, at in self._heard.items() if now - at <= self._patience_s}
        self._look_at = now + self._pause_s if asked else math.inf
        self._pause_s = min(2 * self._pause_s, _PAUSE_MAX_S)
        if not asked:
            return {}
        ages = {worker: now - at for worker, at in asked.items()}
        dead = {worker: self._heard.pop(worker) for worker in self._workers.look_at_ended(ages, lease_s=self._lease_s)}
        if len(dead) == len(asked):
            self._look_at = math.inf
        return dead

    def wake(self) -> None:
        """End the rest, for good."""
        with self._closing:
            if self._button.fileno() >= 0:
                os.write(self._button.fileno(), b"!")

    def close(self) -> None:
        """Watch nobody any more."""
        with self._closing:
            self._close()

    def _close(self) -> None:
        for end in (*self._ends.values(), self._bell, self._button):
            end.close()
        self._ends.clear()

    def _hear(self, worker: uuid.UUID) -> None:
        # Closed at once, as it stays readable.
        if (end := self._ends.pop(worker, None)) is not None:
            end.close()
        self._heard[worker] = self._look_at = time.monotonic()
        self._pause_s = _PAUSE_S


_open: weakref.WeakSet[Neighbours] = weakref.WeakSet()


def _close_in_child() -> None:
    """Without the lock: whoever held it is not in the child."""
    for neighbours in list(_open):
        neighbours._close()


os.register_at_fork(after_in_child=_close_in_child)
