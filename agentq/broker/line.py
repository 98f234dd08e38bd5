"""
A line: one connection to the broker, with what was published over it and is not confirmed yet.

Redis has a message when it answers. RabbitMQ has it when it confirms, which takes a disk's time: there a whole batch
is waited for at once. A queue that RabbitMQ does not have is made when it sends back what was meant for it, so that
nothing has to be declared beforehand.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from kombu import Connection, Producer
from kombu.exceptions import KombuError

from agentq.broker.confirms import Confirms, NotConfirmed
from agentq.broker.connection import explain
from agentq.broker.queues import declared, holds_copies
from agentq.errors import BrokerUnavailable

log = logging.getLogger("agentq.broker")

_CONFIRM_S = 5.0
# A RabbitMQ that is short of memory or disk stops reading from those who publish, without a word.
_ANSWER_S = 10.0
# Between a queue's end and a new one of its name. RabbitMQ tells each channel that listens to a queue of its end; one
# that finds a queue of that name by then takes the two for one, and hears nothing of either any more (3.10).
GONE_S = 0.25
# A queue that took nothing so often, within so long, while others do, has lost its leader for good.
_STRIKES = 2
_STRIKES_S = 120.0


class Line:
    """Opened when it is used, and anew after a fault. Whoever uses it holds `lock`."""

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self.lock = threading.Lock()
        self.producer: Producer | None = None
        self.confirms: Confirms | None = None  # of RabbitMQ only
        self._connect = connect
        self._connection: Connection | None = None
        # The channel for questions: RabbitMQ closes the channel of one that it minds, and with it what is unconfirmed.
        self._desk: Any = None
        self._strikes: dict[str, tuple[int, float]] = {}

    def ready(self) -> Producer:
        """What to publish with; connects where there is no connection."""
        if self.producer is None:
            self._connection = self._connect()
            self._connection.connect()
            # auto_declare off: declaring costs a round trip and leaves binding keys behind.
            self.producer = Producer(self._connection.default_channel, auto_declare=False)
            if self._connection.transport.driver_type == "amqp":
                self._connection.connection.transport.sock.settimeout(_ANSWER_S)
                self.confirms = Confirms(self.producer.channel)
        return self.producer

    def gone(self) -> tuple[type[BaseException], ...]:
        """What is raised when the broker does not answer, or not as it should."""
        known: tuple[type[BaseException], ...] = (OSError, KombuError, BrokerUnavailable)
        if self._connection is not None:
            known += tuple(self._connection.connection_errors) + tuple(self._connection.channel_errors)
        return known

    def disconnect(self, *, goodbye: bool = False) -> None:
        connection, self._connection, self.producer = self._connection, None, None
        confirms, self.confirms, self._desk = self.confirms, None, None
        if connection is not None:
            try:
                if confirms is not None and not goodbye:
                    connection.collect()  # a goodbye would be answered late, or never
                else:
                    connection.release()
            except Exception as error:
                log.debug("closing a broken broker connection: %s", error)

    def ask(self, question: Callable[[Any], Any]) -> Any:
        """
        The broker's answer; None: there is no such queue.

        Raises:
            BrokerUnavailable: it did not answer, or minds the question.
        """
        try:
            producer = self.ready()
            if self._desk is None:
                # Redis needs no second channel: none of its answers closes one.
                self._desk = producer.connection.channel() if self.confirms else producer.channel
            return question(self._desk)
        except self.gone() as error:
            code = str(getattr(error, "reply_code", ""))
            if code not in ("404", "406") or self.confirms is None:
                self.disconnect()  # else the channel alone was closed, and has opened itself again
            if code == "404":
                return None
            raise BrokerUnavailable(explain(error)) from error

    def publish(self, queue: str, body: Any, headers: dict[str, Any], **properties: Any) -> None:
        """Publish one message to the default exchange. `confirm` tells whether it arrived."""
        producer = self.ready()
        if self.confirms is not None:
            # Before, because publishing itself looks for what the broker says.
            self.confirms.expect(queue)
        producer.publish(
            body,
            routing_key=queue,
            exchange="",
            headers=headers,
            serializer="json",
            declare=[],
            retry=False,
            mandatory=self.confirms is not None,
            **properties,
        )

    def confirm(self) -> None:
        """Wait until RabbitMQ has what was published; make the queues that it did not have."""
        if self.confirms is None:
            return
        try:
            self._settle(self.confirms)
        except NotConfirmed as error:
            self._mend(error.queues)
            raise

    def _settle(self, confirms: Confirms) -> None:
        if not (returned := confirms.wait(_CONFIRM_S)):
            return
        assert self._connection is not None
        time.sleep(GONE_S)  # nobody has used it yet, or somebody has deleted it just now
        with self._connection.channel() as channel:
            for name in {queue for queue, _ in returned}:
                declared(name).bind(channel).declare()
        for name, message in returned:
            confirms.again(name, message)
        if left := confirms.wait(_CONFIRM_S):
            raise BrokerUnavailable(f"the broker has no queue {left[0][0]}, although it was just made")

    def _mend(self, queues: Iterable[str]) -> None:
        """
        Make anew the queues that take nothing, while the broker as a whole does.

        A quorum queue that was declared just before its only node was killed has no leader afterwards, and
        never will. Its messages are copies; who listens connects anew. A broker that is short of memory takes
        nothing at all, and is let be.
        """
        now = time.monotonic()
        for name in queues:
            count, since = self._strikes.get(name, (0, now))
            self._strikes[name] = (count + 1, since) if now - since < _STRIKES_S else (1, now)
        broken = [name for name in queues if self._strikes[name][0] >= _STRIKES and holds_copies(name)]
        if not broken:
            return
        self.disconnect()
        producer = self.ready()
        assert self.confirms is not None
        probe = producer.channel.queue_declare(exclusive=True, auto_delete=True).queue
        self.publish(probe, {}, {})
        self.confirms.wait(_CONFIRM_S)
        for name in broken:
            self._strikes.pop(name, None)
            log.error("queue %s takes no messages any more, although the broker does: it is made anew", name)
            with producer.connection.channel() as channel:
                channel.queue_delete(queue=name)
                time.sleep(GONE_S)
                declared(name).bind(channel).declare()
