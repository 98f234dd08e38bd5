"""Confirms: what RabbitMQ says of messages that were published, for many of them at once."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from agentq.errors import BrokerUnavailable


class NotConfirmed(BrokerUnavailable):
    """Nothing was said of messages to these queues, for as long as was waited."""

    def __init__(self, queues: frozenset[str], waited_s: float) -> None:
        super().__init__(queues, waited_s)
        self.queues = queues
        self.waited_s = waited_s

    def __str__(self) -> str:
        return f"the broker did not confirm messages to {', '.join(sorted(self.queues))} within {self.waited_s:g} s"


class Confirms:
    """
    One channel's published messages: taken, refused, or sent back because no queue has that name.

    Without confirms a full or dying RabbitMQ loses what it was sent; without `mandatory` it drops what names
    no queue, and says nothing of either. Not for two threads at once.
    """

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._count = 0
        self._open: dict[int, str] = {}
        self._refused = 0
        self._returned: list[tuple[str, Any]] = []
        channel.confirm_select()
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)
        channel.events["basic_return"].add(self._on_return)

    def expect(self, queue: str) -> None:
        """One message will be published now."""
        self._count += 1
        self._open[self._count] = queue

    def wait(self, timeout_s: float) -> list[tuple[str, Any]]:
        """
        Wait for word of all that was published; what was sent back, by queue.

        Raises:
            NotConfirmed: it did not confirm in time.
            BrokerUnavailable: it refused some.
        """
        deadline = time.monotonic() + timeout_s
        while self._open:
            left = deadline - time.monotonic()
            if left <= 0:
                raise NotConfirmed(frozenset(self._open.values()), timeout_s)
            with suppress(TimeoutError):
                self._channel.connection.drain_events(timeout=left)
        returned, self._returned = self._returned, []
        refused, self._refused = self._refused, 0
        if refused:
            raise BrokerUnavailable(f"the broker refused {refused} messages: a queue is full, or has no leader")
        return returned

    def again(self, queue: str, message: Any) -> None:
        """Publish what was sent back once more."""
        self.expect(queue)
        self._channel.basic_publish(message, exchange="", routing_key=queue, mandatory=True)

    def _on_ack(self, tag: int, multiple: bool) -> None:
        self._close(tag, multiple)

    def _on_nack(self, tag: int, multiple: bool) -> None:
        self._refused += self._close(tag, multiple)

    def _close(self, tag: int, multiple: bool) -> int:
        closed = [number for number in self._open if number <= tag] if multiple else [tag]
        for number in closed:
            self._open.pop(number, None)
        return len(closed)

    def _on_return(self, _error: BaseException, _exchange: str, queue: str, message: Any) -> None:
        self._returned.append((queue, message))
