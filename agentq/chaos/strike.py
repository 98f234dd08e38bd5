"""A strike: one blow while it falls, what it found to hit, and the evidence that it did."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agentq.chaos.plan import Wanted
from agentq.chaos.record import Open, Request, ServiceProcess
from agentq.chaos.schedule import Blow
from agentq.embedded import processes
from agentq.embedded.supervisor import Child

if TYPE_CHECKING:
    from agentq.chaos.arena import Arena

VICTIM_PATIENCE_S = 12.0
LOOK_EVERY_S = 0.03

Evidence = dict[str, Any]


class Missed(Exception):
    """The fault found nothing to hit, or left no trace."""


class Interrupted(Exception):
    """The run is being ended."""


@dataclass(frozen=True)
class Servers:
    """Where the fleet's servers are, and what its broker's keys begin with."""

    database_url: str
    broker_url: str
    prefix: str


@dataclass(frozen=True)
class Hit:
    """A blow that fell: when, whom it hit, and how we know. Times are the wall clock's, as the service's are."""

    number: int
    fault: str
    name: str
    began: float
    healed: float
    clock_from: float
    sessions: tuple[str, ...]
    evidence: Evidence = field(default_factory=dict)
    missed: str = ""


class Strike:
    """What a fault has to work with: the arena, a draw of its own, and the means to wait."""

    def __init__(
        self,
        blow: Blow,
        service: ServiceProcess,
        *,
        servers: Servers,
        arena: Arena | None,
        stop: threading.Event,
        busy: set[str],
        lock: threading.Lock,
        poisons: Iterable[Wanted] = (),
    ) -> None:
        self.blow = blow
        self.service = service
        self.database_url, self.broker_url, self.prefix = servers.database_url, servers.broker_url, servers.prefix
        self.draw = random.Random(blow.seed)
        self.poisons = tuple(poisons)
        self.began = self.healed = self.clock_from = time.time()
        self.sessions: set[str] = set()
        self._arena = arena
        self._stop = stop
        self._busy = busy
        self._lock = lock
        self._mine: set[str] = set()

    @property
    def outside(self) -> bool:
        """Whether the fleet is somebody else's."""
        return self._arena is None

    @property
    def arena(self) -> Arena:
        assert self._arena is not None, f"{self.blow.fault} needs a fleet of our own"
        return self._arena

    # ── time ─────────────────────────────────────────────────────────────────

    def wait(self, seconds: float) -> None:
        """
        Pause.

        Raises:
            Interrupted: the run is being ended.
        """
        if self._stop.wait(seconds):
            raise Interrupted

    def until(self, question: Callable[[], Any], timeout_s: float, why_not: str) -> Any:
        """
        The first answer that is true.

        Raises:
            Missed: there was none in time, with that reason.
        """
        deadline = time.monotonic() + timeout_s
        while not (answer := question()):
            if time.monotonic() > deadline:
                raise Missed(why_not)
            self.wait(LOOK_EVERY_S)
        return answer

    def begins(self, hit: Iterable[Open] = ()) -> None:
        """It falls now, on these calls."""
        self.began = self.healed = self.clock_from = time.time()
        self.sessions |= {call.session for call in hit}

    def heals(self) -> None:
        """The cause is gone; recovery is counted from here."""
        self.healed = self.clock_from = time.time()

    def lasted(self) -> None:
        """The cause is gone, but the fleet could go on without it: recovery is counted from the beginning."""
        self.healed = time.time()

    # ── victims ──────────────────────────────────────────────────────────────

    def calls(self, pids: set[int] | None = None) -> list[Open]:
        """The calls at the service now, of these processes or of all."""
        return [c for c in self.service.open() if c.what == "call" and (pids is None or c.pid in pids)]

    def victim(self, *, repeatable: bool = False) -> tuple[Child, list[Open]]:
        """
        A worker with calls in flight that no other blow has taken; the schedule says with whom to begin.

        `repeatable` wants calls that whoever takes them over will repeat or ask about, so that the service sees it.

        Raises:
            Missed: none had any.
        """
        found: tuple[Child, list[Open]] = self.until(
            lambda: self._find_victim(repeatable), VICTIM_PATIENCE_S, "no worker had a call in flight"
        )
        return found

    def _find_victim(self, repeatable: bool) -> tuple[Child, list[Open]] | None:
        workers = self.arena.workers
        first = self.blow.worker
        with self._lock:
            for worker in [*workers[first:], *workers[:first]]:
                pid = worker.pid
                if pid is None or worker.name in self._busy:
                    continue
                calls = self.calls({pid})
                if any(call.kind != "plain" or not repeatable for call in calls):
                    self._busy.add(worker.name)
                    self._mine.add(worker.name)
                    return worker, calls
        return None

    def everybody(self) -> list[Open]:
        """
        The calls in flight anywhere, for a fault that hits all.

        Raises:
            Missed: there are none.
        """
        found: list[Open] = self.until(self.calls, VICTIM_PATIENCE_S, "no call was in flight")
        return found

    def let_go(self) -> None:
        """Others may take our victims."""
        with self._lock:
            self._busy -= self._mine

    def since(self) -> list[Request]:
        """What the service has recorded since the blow fell."""
        return [request for request in self.service.read() if request.at >= self.began]

    def taken_over(self, pid: int) -> int:
        """How many of the hit sessions another process has worked on since."""
        return len({r.session for r in self.since() if r.session in self.sessions and r.pid != pid})

    def hit(self, evidence: Evidence, missed: str = "") -> Hit:
        """The blow as it fell."""
        blow = self.blow
        return Hit(
            blow.number,
            blow.fault,
            blow.name,
            self.began,
            self.healed,
            self.clock_from,
            tuple(sorted(self.sessions)),
            evidence,
            missed,
        )


def is_gone(pid: int) -> bool:
    """Whether the process has ended, asked for or not."""
    return processes.status(pid) in (None, "zombie")


def is_stopped(pid: int) -> bool:
    """Whether the process stands still."""
    return processes.status(pid) == "stopped"
