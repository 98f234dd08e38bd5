"""The publisher: sends wake-ups in batches, from one thread per process, and never insists."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from kombu import Connection, Producer
from kombu.exceptions import KombuError

from agentq.broker.envelope import step_message
from agentq.broker.queues import QUARANTINE, declared
from agentq.broker.routes import Look, Routes
from agentq.errors import BrokerUnavailable
from agentq.verdicts import Wake

log = logging.getLogger("agentq.broker")

_BATCH_MAX = 200
_QUIET_S = 5.0  # one warning per outage and interval, not one per step


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
        self._disconnect()

    def depth(self, name: str) -> int:
        """
        How many messages wait in a queue of the broker, not counting those that workers hold.

        Raises:
            BrokerUnavailable: it did not answer.
        """
        with self._lock:
            try:
                channel = self._ready().channel
                return int(channel.queue_declare(queue=name, passive=True).message_count)
            except self._gone() as error:
                if str(getattr(error, "reply_code", "")) == "404":
                    return 0  # Redis has no empty lists: a queue without messages is not there
                self._disconnect()
                raise BrokerUnavailable(f"the broker did not answer: {error}") from error

    def purge(self, name: str) -> None:
        """
        Take every waiting message out of a queue.

        Raises:
            BrokerUnavailable: it did not answer.
        """
        with self._lock:
            try:
                self._ready().channel.queue_purge(queue=name)
            except self._gone() as error:
                self._disconnect()
                if str(getattr(error, "reply_code", "")) != "404":
                    raise BrokerUnavailable(f"the broker did not answer: {error}") from error

    def remove(self, name: str) -> None:
        """
        Remove a queue with all that waits in it, unless somebody listens where the broker can tell.

        Raises:
            BrokerUnavailable: it did not answer.
        """
        with self._lock:
            try:
                queue = declared(name).bind(self._ready().channel)
                queue.declare()  # or kombu's Redis transport knows of nothing to remove
                queue.delete(if_unused=True)
            except self._gone() as error:
                self._disconnect()
                if str(getattr(error, "reply_code", "")) not in ("404", "406"):
                    raise BrokerUnavailable(f"the broker did not answer: {error}") from error

    def declare(self, name: str) -> None:
        """
        Bind a queue to its exchange again, for producers that are not agentq's.

        Raises:
            BrokerUnavailable: it did not answer.
        """
        with self._lock:
            try:
                declared(name).bind(self._ready().channel).declare()
            except self._gone() as error:
                self._disconnect()
                raise BrokerUnavailable(f"the broker did not answer: {error}") from error

    def publish(self, name: str, body: Any, headers: dict[str, Any], **properties: Any) -> None:
        """
        Publish one message of another kind, now.

        Raises:
            BrokerUnavailable: it may or may not have arrived.
        """
        with self._lock:
            try:
                self._ready().publish(
                    body, routing_key=name, exchange="", headers=headers, serializer="json", declare=[], **properties
                )
            except self._gone() as error:
                self._disconnect()
                raise BrokerUnavailable(f"the broker did not take the message: {error}") from error

    def _send_here(self, wake: Wake) -> bool:
        """
        Publish in the caller's thread where nothing is before it: waking another thread takes longer than the command.

        Of a broker that no longer answers one caller at a time learns, the others leave it to the publisher's thread.
        """
        if self._producer is None or self._busy or not self._waiting.empty() or not self._lock.acquire(blocking=False):
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
            if len(wakes) == 1:
                self._publish_one(producer, wakes[0], queues)
                return
            with producer.batch(max_size=_BATCH_MAX):
                for wake in wakes:
                    self._publish_one(producer, wake, queues)
        except self._gone() as error:
            # Uncertain is as good as lost: a repeat is dropped at the claim.
            self._disconnect()
            self._complain(len(wakes), error)

    @staticmethod
    def _publish_one(producer: Producer, wake: Wake, queues: dict[str, str]) -> None:
        body, headers, properties = step_message(wake)
        producer.publish(
            body,
            routing_key=QUARANTINE if wake.quarantine else queues[wake.tenant],
            exchange="",
            headers=headers,
            serializer="json",
            declare=[],
            retry=False,
            **properties,
        )

    def _ready(self) -> Producer:
        if self._producer is None:
            self._connection = self._connect()
            self._connection.connect()
            # auto_declare off: declaring costs a round trip and leaves binding keys behind.
            self._producer = Producer(self._connection.default_channel, auto_declare=False)
        return self._producer

    def _gone(self) -> tuple[type[BaseException], ...]:
        known: tuple[type[BaseException], ...] = (OSError, KombuError)
        if self._connection is not None:
            known += tuple(self._connection.connection_errors) + tuple(self._connection.channel_errors)
        return known

    def _disconnect(self) -> None:
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            try:
                connection.release()
            except Exception as error:
                log.debug("closing a broken broker connection: %s", error)

    def _complain(self, count: int, error: BaseException) -> None:
        if time.monotonic() - self._complained_at > _QUIET_S:
            self._complained_at = time.monotonic()
            log.warning("%s steps wait for the broker, the relay will send them: %s", count, error)
