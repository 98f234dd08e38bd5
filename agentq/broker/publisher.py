"""
The publisher: sends wake-ups in batches, from one thread per process, and never insists.

Redis has a message when it answers. RabbitMQ has it when it confirms, which takes a disk's time: there the
publisher's thread waits for a whole batch at once. A queue that RabbitMQ does not have is made when it sends
back what was meant for it, so that nothing has to be declared beforehand.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from kombu import Connection, Producer
from kombu.exceptions import KombuError

from agentq.broker.confirms import Confirms, NotConfirmed
from agentq.broker.connection import explain
from agentq.broker.envelope import step_message
from agentq.broker.queues import QUARANTINE, declared, holds_copies
from agentq.broker.routes import Look, Routes
from agentq.errors import BrokerUnavailable
from agentq.verdicts import Wake

log = logging.getLogger("agentq.broker")

_BATCH_MAX = 200
_QUIET_S = 5.0  # one warning per outage and interval, not one per step
_CONFIRM_S = 5.0
# A RabbitMQ that is short of memory or disk stops reading from those who publish, without a word.
_ANSWER_S = 10.0
# A queue that took nothing so often, within so long, while others do, has lost its leader for good.
_STRIKES = 2
_STRIKES_S = 120.0


class Publisher:
    """
    Hands committed steps to the broker.

    `send` returns at once, or after one command to a broker that answered before. Whatever cannot be
    sent is dropped here, because the ledger still holds it as queued and the relay will find it
    missing. Not shared across a fork.
    """

    def __init__(self, connect: Callable[[], Connection], queues: Look = lambda _: {}) -> None:
        self._connect = connect
        self._routes = Routes(queues)
        self._waiting: queue.SimpleQueue[Wake | threading.Event | None] = queue.SimpleQueue()
        self._connection: Connection | None = None
        self._producer: Producer | None = None
        self._confirms: Confirms | None = None  # of RabbitMQ only
        self._strikes: dict[str, tuple[int, float]] = {}
        # The channel for questions: RabbitMQ closes the channel of one that it minds, and with it what is unconfirmed.
        self._desk: Any = None
        self._complained_at = float("-inf")
        self._busy = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="agentq-publisher", daemon=True)
        self._thread.start()

    def send(self, wakes: Iterable[Wake]) -> None:
        """Publish soon, or leave it to the relay."""
        wakes = tuple(wakes)
        if len(wakes) == 1 and self._send_here(wakes[0]):
            return
        for wake in wakes:
            self._waiting.put(wake)

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until everything sent so far was tried; False when time ran out."""
        reached = threading.Event()
        self._waiting.put(reached)
        return reached.wait(timeout_s)

    def close(self) -> None:
        """Try what is waiting, then stop."""
        self._waiting.put(None)
        self._thread.join(timeout=5.0)
        self._disconnect(goodbye=True)

    def depth(self, name: str) -> int:
        """
        How many messages wait in a queue of the broker, not counting those that workers hold.

        Raises:
            BrokerUnavailable: it did not answer.
        """
        # None: Redis has no empty lists, and RabbitMQ no queues that nobody has used yet.
        found = self._ask(lambda channel: channel.queue_declare(queue=name, passive=True))
        return int(found.message_count) if found is not None else 0

    def purge(self, name: str) -> None:
        """
        Take every waiting message out of a queue.

        Raises:
            BrokerUnavailable: it did not answer.
        """
        self._ask(lambda channel: channel.queue_purge(queue=name))

    def remove(self, name: str) -> None:
        """
        Remove a queue with all that waits in it, unless somebody listens where the broker can tell.

        Raises:
            BrokerUnavailable: it did not answer.
        """

        def remove(channel: Any) -> None:
            queue = declared(name).bind(channel)
            if self._confirms is None:
                queue.declare()  # or kombu's Redis transport knows of nothing to remove
                queue.delete(if_unused=True)
            elif not channel.queue_declare(queue=name, passive=True).consumer_count:
                # Not `if_unused`: quorum queues know no such thing. Who begins to listen just now connects anew.
                queue.delete()
                queue.exchange.delete()

        self._ask(remove)

    def declare(self, name: str) -> None:
        """
        Bind a queue to its exchange again, for producers that are not agentq's.

        Raises:
            BrokerUnavailable: it did not answer, or has a queue of that name and of another kind.
        """
        self._ask(lambda channel: declared(name).bind(channel).declare())

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        """The broker's answer; None: there is no such queue."""
        with self._lock:
            try:
                producer = self._ready()
                if self._desk is None:
                    # Redis needs no second channel: none of its answers closes one.
                    self._desk = producer.connection.channel() if self._confirms else producer.channel
                return question(self._desk)
            except self._gone() as error:
                code = str(getattr(error, "reply_code", ""))
                if code not in ("404", "406") or self._confirms is None:
                    self._disconnect()  # else the channel alone was closed, and has opened itself again
                if code == "404":
                    return None
                raise BrokerUnavailable(explain(error)) from error

    def publish(self, name: str, body: Any, headers: dict[str, Any], **properties: Any) -> None:
        """
        Publish one message of another kind, now.

        Raises:
            BrokerUnavailable: it may or may not have arrived.
        """
        with self._lock:
            try:
                producer = self._ready()
                self._expect(name)
                producer.publish(
                    body,
                    routing_key=name,
                    exchange="",
                    headers=headers,
                    serializer="json",
                    declare=[],
                    mandatory=self._confirms is not None,
                    **properties,
                )
                self._confirm()
            except self._gone() as error:
                self._disconnect()
                raise BrokerUnavailable(f"the broker did not take the message: {error}") from error

    def _send_here(self, wake: Wake) -> bool:
        """
        Publish in the caller's thread where nothing is before it: waking another thread takes longer than the command.

        Of a broker that no longer answers one caller at a time learns, the others leave it to the publisher's thread.
        So do all where the broker confirms: waiting for it once for each message would cost more than the thread.
        """
        if self._producer is None or self._confirms is not None or self._busy or not self._waiting.empty():
            return False
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._producer is None:
                return False
            self._try_batch([wake])
            return True
        finally:
            self._lock.release()

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            self._busy = True  # or callers could keep taking the lock before it
            wakes = [item for item in batch if isinstance(item, Wake)]
            if wakes:
                with self._lock:
                    self._try_batch(wakes)
            self._busy = False
            for item in batch:
                if isinstance(item, threading.Event):
                    item.set()

    def _try_batch(self, wakes: list[Wake]) -> None:
        try:
            self._publish_batch(wakes)
        except Exception:
            # Whatever it was, the next batch deserves a fresh connection and a living thread.
            log.exception("%s steps could not be published, the relay will send them", len(wakes))
            self._disconnect()

    def _next_batch(self) -> list[Wake | threading.Event] | None:
        """Whatever waits now, so that a busy process batches by itself and an idle one does not wait."""
        batch: list[Wake | threading.Event] = []
        item = self._waiting.get()
        while item is not None:
            batch.append(item)
            if len(batch) == _BATCH_MAX:
                return batch
            try:
                item = self._waiting.get_nowait()
            except queue.Empty:
                return batch
        if batch:
            self._waiting.put(None)
            return batch
        return None

    def _publish_batch(self, wakes: list[Wake]) -> None:
        queues = self._routes.of(wake.tenant for wake in wakes if not wake.quarantine)
        try:
            producer = self._ready()
            if len(wakes) == 1 and self._confirms is None:
                self._publish_one(producer, wakes[0], queues)
                return
            with producer.batch(max_size=_BATCH_MAX):
                for wake in wakes:
                    self._publish_one(producer, wake, queues)
            self._confirm()
        except self._gone() as error:
            # Uncertain is as good as lost: a repeat is dropped at the claim.
            self._disconnect()
            self._complain(len(wakes), error)

    def _publish_one(self, producer: Producer, wake: Wake, queues: dict[str, str]) -> None:
        body, headers, properties = step_message(wake)
        queue = QUARANTINE if wake.quarantine else queues[wake.tenant]
        self._expect(queue)
        producer.publish(
            body,
            routing_key=queue,
            exchange="",
            headers=headers,
            serializer="json",
            declare=[],
            retry=False,
            mandatory=self._confirms is not None,
            **properties,
        )

    def _expect(self, queue: str) -> None:
        """A message goes out now; before, because publishing itself looks for what the broker says."""
        if self._confirms is not None:
            self._confirms.expect(queue)

    def _confirm(self) -> None:
        """Wait until RabbitMQ has what was published; make the queues that it did not have."""
        if self._confirms is None:
            return
        try:
            self._settle(self._confirms)
        except NotConfirmed as error:
            self._mend(error.queues)
            raise

    def _settle(self, confirms: Confirms) -> None:
        if not (returned := confirms.wait(_CONFIRM_S)):
            return
        assert self._connection is not None
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
        self._disconnect()
        producer = self._ready()
        assert self._confirms is not None
        probe = producer.channel.queue_declare(exclusive=True, auto_delete=True).queue
        self._confirms.expect(probe)
        producer.publish({}, routing_key=probe, exchange="", serializer="json", declare=[], mandatory=True)
        self._confirms.wait(_CONFIRM_S)
        for name in broken:
            self._strikes.pop(name, None)
            log.error("queue %s takes no messages any more, although the broker does: it is made anew", name)
            with producer.connection.channel() as channel:
                channel.queue_delete(queue=name)
                declared(name).bind(channel).declare()

    def _ready(self) -> Producer:
        if self._producer is None:
            self._connection = self._connect()
            self._connection.connect()
            # auto_declare off: declaring costs a round trip and leaves binding keys behind.
            self._producer = Producer(self._connection.default_channel, auto_declare=False)
            if self._connection.transport.driver_type == "amqp":
                self._connection.connection.transport.sock.settimeout(_ANSWER_S)
                self._confirms = Confirms(self._producer.channel)
        return self._producer

    def _gone(self) -> tuple[type[BaseException], ...]:
        known: tuple[type[BaseException], ...] = (OSError, KombuError, BrokerUnavailable)
        if self._connection is not None:
            known += tuple(self._connection.connection_errors) + tuple(self._connection.channel_errors)
        return known

    def _disconnect(self, *, goodbye: bool = False) -> None:
        connection, self._connection, self._producer = self._connection, None, None
        confirms, self._confirms, self._desk = self._confirms, None, None
        if connection is not None:
            try:
                if confirms is not None and not goodbye:
                    connection.collect()  # a goodbye would be answered late, or never
                else:
                    connection.release()
            except Exception as error:
                log.debug("closing a broken broker connection: %s", error)

    def _complain(self, count: int, error: BaseException) -> None:
        if time.monotonic() - self._complained_at > _QUIET_S:
            self._complained_at = time.monotonic()
            log.warning("%s steps wait for the broker, the relay will send them: %s", count, error)
