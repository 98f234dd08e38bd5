"""
The watchdog: a worker that lives but no longer receives notices it by itself.

Its evidence is the ledger's: steps that should come to this process stay queued, the same ones at every
look, although it has free slots and nothing has come. A broker that does not answer is no evidence, and
neither are busy slots. First the consumer is restarted; when that does not help, the process is drained
and ends with an error, so that whatever supervises it starts another. So it does when half of its slots are
lost to steps that were abandoned and do not return: no thread can be stopped from outside.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from typing import Protocol

from agentq.broker.publisher import Publisher
from agentq.broker.queues import QUARANTINE
from agentq.engine import InFlight
from agentq.errors import BrokerUnavailable, StoreUnavailable
from agentq.store.ledger import Ledger

log = logging.getLogger("agentq.watchdog")

# Of the wait, so that a stall is noticed soon after it counts as one.
_LOOKS = 5.0


class Consumer(Protocol):
    """What the watchdog asks of a worker's consumer."""

    def queues(self) -> list[str]:
        """The queues that it listens to."""

    def is_full(self) -> bool:
        """Whether every slot of the pool is taken."""

    def slots(self) -> int:
        """How many steps its pool runs at once."""

    def restart(self) -> None:
        """Drop the connection and connect anew."""


class Watchdog:
    """Looks a few times within `stall_s` seconds, in a thread of its own."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        publisher: Publisher,
        in_flight: InFlight,
        consumer: Consumer,
        serves: list[str],
        stall_s: float,
        give_up: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._publisher = publisher
        self._in_flight = in_flight
        self._consumer = consumer
        self._serves = serves
        self._stall_s = stall_s
        self._give_up = give_up
        self._clock = clock
        self._seen: dict[tuple[uuid.UUID, int], tuple[float, int]] = {}
        self._restarted = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agentq-watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ending.set()

    def look(self) -> None:
        """One look; acts when what it saw has lasted."""
        stranded, slots = self._in_flight.stranded, self._consumer.slots()
        if 2 * stranded >= slots and not self._in_flight.draining:
            log.critical(
                "%s of %s slots are lost to steps that ignored their deadline and do not return: this process drains "
                "and ends", stranded, slots,
            )  # fmt: skip
            self._give_up()
            return
        now, delivered = self._clock(), self._in_flight.delivered
        if delivered is not None and now - delivered < self._stall_s:
            self._restarted = False  # what was done has helped
            self._seen.clear()
            return
        if self._in_flight.draining or self._consumer.is_full():
            self._seen.clear()
            return
        stalled = self._stalled(now)
        if not stalled:
            return
        if self._restarted:
            log.critical("restarting the consumer did not help: this process drains and ends")
            self._give_up()
            return
        log.error(
            "%s due steps have not come for %g s although slots are free (the first is %s): the consumer is restarted",
            len(stalled), self._stall_s, stalled[0],
        )  # fmt: skip
        self._restarted = True
        self._in_flight.consumer_restarts += 1
        self._in_flight.consumer_restarted = now
        self._seen.clear()
        self._consumer.restart()

    def _stalled(self, now: float) -> list[uuid.UUID]:
        """Steps that were here at every look for long enough, and whose message is or was in the broker."""
        queues = self._consumer.queues()
        quarantine = QUARANTINE in queues
        found = self._ledger.unclaimed(queues=queues, quarantine=quarantine, serves=self._serves)
        self._seen = {key: self._seen.get(key, (now, sent)) for key, (_, sent) in found.items()}
        long = [key for key, (since, _) in self._seen.items() if now - since >= self._stall_s]
        if not long:
            return []
        # A message that is lost comes back by the relay; only one that is there, or was sent again, should have come.
        names = {found[key][0] for key in long}
        depths = {name: self._publisher.depth(QUARANTINE if quarantine else name) for name in names}
        return [key[0] for key in long if depths[found[key][0]] or found[key][1] > self._seen[key][1]]

    def _run(self) -> None:
        while not self._ending.wait(self._stall_s / _LOOKS):
            try:
                self.look()
            except (StoreUnavailable, BrokerUnavailable) as error:
                self._seen.clear()  # an outage is nobody's stall
                log.debug("the watchdog waits: %s", error)
            except Exception:
                log.exception("the watchdog could not look")
