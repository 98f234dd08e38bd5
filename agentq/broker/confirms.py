"""Confirms: what RabbitMQ says of messages that were published, for many of them at once."""

from __future__ import annotations

import time
from typing import Any

from agentq.errors import BrokerUnavailable


class Confirms:
    """
    One channel's published messages: taken, refused, or sent back because no queue has that name.

    Without confirms a full or dying RabbitMQ loses what it was sent; without `mandatory` it drops what names
    no queue, and says nothing of either. Not for two threads at once.
    """

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._count = 0
        self._open: set[int] = set()
        self._refused = 0
        self._returned: list[tuple[str, Any]] = []
        channel.confirm_select()
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)
        channel.events["basic_return"].add(self._on_return)

    def expect(self) -> None:
        """One message will be published now."""
        self._count += 1
        self._open.add(self._count)

    def wait(self, timeout_s: float) -> list[tuple[str, Any]]:
        """
        Wait for word of all that was published; what was sent back, by queue.

        Raises:
            BrokerUnavailable: it did not confirm in time, or refused some.
        """
        deadline = time.monotonic() + timeout_s
        while self._open:
            left = deadline - time.monotonic()
            if left <= 0:
                raise BrokerUnavailable(f"the broker did not confirm {len(self._open)} messages within {timeout_s:g} s")
            self._channel.connection.drain_events(timeout=left)
        returned, self._returned = self._returned, []
        refused, self._refused = self._refused, 0
        if refused:
            raise BrokerUnavailable(f"the broker refused {refused} messages: a queue is full, or has no leader")
        return returned

    def again(self, queue: str, message: Any) -> None:
        """Publish what was sent back once more."""
        self.expect()
        self._channel.basic_publish(message, exchange="", routing_key=queue, mandatory=True)

    def _on_ack(self, tag: int, multiple: bool) -> None:
        self._close(tag, multiple)

    def _on_nack(self, tag: int, multiple: bool) -> None:
        self._refused += self._close(tag, multiple)

    def _close(self, tag: int, multiple: bool) -> int:
        closed = {number for number in self._open if number <= tag} if multiple else {tag}
        self._open -= closed
        return len(closed)

    def _on_return(self, _error: BaseException, _exchange: str, queue: str, message: Any) -> None:
        self._returned.append((queue, message))
