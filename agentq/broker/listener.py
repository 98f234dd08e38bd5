"""
The listener: kombu's consumer, except that it hears when RabbitMQ ends one of its queues.

RabbitMQ says so when a queue is deleted, or has lost its leader. By itself py-amqp raises that as an error wherever the
connection happens to be read. Celery's loop connects anew then, with every queue of the worker, because of one; and
where it reads with its eyes shut, just after it has connected, the word is lost and the queue is listened to by nobody.
"""

from __future__ import annotations

from collections.abc import Callable

from kombu import Consumer, Queue


class Listener(Consumer):  # type: ignore[misc]
    """Tells `on_lost` the name of a queue that the broker ended; it may be listened to again after that."""

    on_lost: Callable[[str], object] | None = None

    def _basic_consume(
        self, queue: Queue, consumer_tag: str | None = None, no_ack: bool | None = None, nowait: bool = True
    ) -> str:
        # As kombu's, which leaves `on_cancel` out.
        tag: str | None = self._active_tags.get(queue.name)
        if tag is None:
            tag = self._add_tag(queue, consumer_tag)
            no_ack = queue.no_ack if no_ack is None else no_ack
            self._active_queue_no_ack[queue.name] = no_ack
            queue.consume(tag, self._receive_callback, no_ack=no_ack, nowait=nowait, on_cancel=self._on_cancel)
        return tag

    def cancel(self) -> None:
        """End all; kombu's own stumbles when the broker ends one meanwhile."""
        for tag in list(self._active_tags.values()):
            self.channel.basic_cancel(tag)
        self._active_tags.clear()
        self._active_queue_no_ack.clear()

    close = cancel

    def _on_cancel(self, tag: str) -> None:
        """Called while the connection is read: nothing may be asked of it from here."""
        for name in [name for name, active in self._active_tags.items() if active == tag]:
            del self._active_tags[name]
            self._active_queue_no_ack.pop(name, None)
            self._queues.pop(name, None)
            if self.on_lost is not None:
                self.on_lost(name)
