"""Routes: each tenant's queue as its record says, known for a moment by whoever publishes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping

from agentq.broker.queues import tenant_queue
from agentq.errors import AgentqError

log = logging.getLogger("agentq.broker")

FRESH_S = 1.0
_KNOWN_MAX = 20_000

Look = Callable[[Iterable[str]], Mapping[str, str]]


class Routes:
    """
    Not for two threads at once: the publisher's own.

    A move is seen within `FRESH_S`. What was sent to the old queue meanwhile is a wake-up, which the relay
    sends again; while Postgres is away, what was known last is good enough for the same reason.
    """

    def __init__(self, look: Look, clock: Callable[[], float] = time.monotonic) -> None:
        self._look = look
        self._clock = clock
        self._known: dict[str, tuple[str, float]] = {}
        self._not_before = float("-inf")

    def of(self, tenants: Iterable[str]) -> dict[str, str]:
        """The queue of each of these tenants."""
        wanted, now = set(tenants), self._clock()
        stale = {name for name in wanted if self._until(name) <= now}
        if stale and now >= self._not_before:
            self._refresh(stale, now)
        return {name: self._known[name][0] if name in self._known else tenant_queue(name) for name in wanted}

    def _until(self, name: str) -> float:
        return self._known[name][1] if name in self._known else float("-inf")

    def _refresh(self, names: set[str], now: float) -> None:
        if len(self._known) > _KNOWN_MAX:
            self._known.clear()
        try:
            found = self._look(names)
        except AgentqError as error:
            self._not_before = now + FRESH_S
            log.debug("queues are taken as they were: %s", error)
            return
        self._known.update({name: (queue, now + FRESH_S) for name, queue in found.items()})
