"""Routes: each tenant's queue as its record says, kept by whoever publishes until it moves."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping

from agentq.broker.queues import tenant_queue
from agentq.errors import AgentqError

log = logging.getLogger("agentq.broker")

FRESH_S = 1.0
# The store tells of moves for somewhat longer (`LATELY_S` of agentq/store/placement.py).
KEPT_S = 15.0
# And whatever was missed all the same, such as a move that took long to commit, is found so late.
CHECKED_S = 60.0
_KNOWN_MAX = 100_000

# The queues of the tenants that are asked for, and of those that have moved of late.
Look = Callable[[Iterable[str]], Mapping[str, str]]


class Routes:
    """
    Not for two threads at once: the publisher's own.

    A move is seen within `FRESH_S`, by one question for all tenants, however many there are: a question for each
    would cost every step of a large fleet a round trip. What was sent to the old queue meanwhile is a wake-up, which
    the relay sends again; while Postgres is away, what was known last is good enough for the same reason.
    """

    def __init__(self, look: Look, clock: Callable[[], float] = time.monotonic) -> None:
        self._look = look
        self._clock = clock
        self._known: dict[str, str] = {}
        self._asked_at = self._checked_at = float("-inf")
        self._not_before = float("-inf")

    def of(self, tenants: Iterable[str]) -> dict[str, str]:
        """The queue of each of these tenants."""
        wanted, now = set(tenants), self._clock()
        new = wanted - self._known.keys()
        if (new or now - self._asked_at >= FRESH_S) and now >= self._not_before:
            self._ask(wanted, new, now)
        return {name: self._known.get(name) or tenant_queue(name) for name in wanted}

    def _ask(self, wanted: set[str], new: set[str], now: float) -> None:
        forget = now - self._asked_at > KEPT_S or len(self._known) > _KNOWN_MAX
        check = now - self._checked_at > CHECKED_S
        try:
            found = self._look(wanted if forget else new | self._known.keys() if check else new)
        except AgentqError as error:
            self._not_before = now + FRESH_S
            log.debug("queues are taken as they were: %s", error)
            return
        if forget:
            self._known.clear()  # of those that moved meanwhile nobody may tell any more
        if forget or check:
            self._checked_at = now
        self._known.update(found)
        self._asked_at = now
