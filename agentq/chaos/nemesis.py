"""The nemesis: lets each blow fall at its time, and again when it found nothing to hit."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from agentq.chaos.arena import Arena
from agentq.chaos.faults import DEEDS
from agentq.chaos.plan import Wanted
from agentq.chaos.record import ServiceProcess
from agentq.chaos.schedule import Blow, Schedule
from agentq.chaos.strike import Hit, Interrupted, Missed, Servers, Strike

log = logging.getLogger("agentq.chaos")

TRIES = 3


class Nemesis:
    """Follows the schedule from threads of its own, one for each blow."""

    def __init__(
        self,
        schedule: Schedule,
        service: ServiceProcess,
        servers: Servers,
        *,
        arena: Arena | None,
        poisons: Sequence[Wanted],
        told: Callable[[Hit], None],
    ) -> None:
        self.hits: list[Hit] = []
        self._service = service
        self._servers = servers
        self._arena = arena
        self._poisons = poisons
        self._told = told
        self._stop = threading.Event()
        self._busy: set[str] = set()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._fall, args=(blow,), daemon=True) for blow in schedule.blows]
        self._began = 0.0

    def start(self) -> None:
        """Begin to count."""
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()

    @property
    def at_work(self) -> bool:
        """Whether a blow is still to fall or to end."""
        return any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Let no further blow fall; those under way are healed first."""
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout=60.0)

    def _fall(self, blow: Blow) -> None:
        if self._stop.wait(max(0.0, self._began + blow.at_s - time.monotonic())):
            return
        for tries in range(TRIES):
            hit = self._strike(blow)
            if hit is None:
                return  # interrupted
            if not hit.missed or tries == TRIES - 1:
                with self._lock:
                    self.hits.append(hit)
                self._told(hit)
                return

    def _strike(self, blow: Blow) -> Hit | None:
        strike = Strike(
            blow,
            self._service,
            servers=self._servers,
            arena=self._arena,
            stop=self._stop,
            busy=self._busy,
            lock=self._lock,
            poisons=self._poisons,
        )
        try:
            return strike.hit(DEEDS[blow.fault](strike))
        except Interrupted:
            return None
        except Missed as missed:
            return strike.hit({}, str(missed))
        except Exception as error:
            # Lanes overlap: a server that this fault needs may be down by another one. Seen as missed, tried again.
            log.debug("%s broke", blow.name, exc_info=True)
            self._stop.wait(2.0)
            return strike.hit({}, f"{type(error).__name__}: {error}")
        finally:
            strike.let_go()
