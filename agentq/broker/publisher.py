"""
The publisher: sends wake-ups in batches, from one thread per process, and never insists.

Everything else that is asked of the broker goes over a line of its own, so that a thousand notices of dead letters
are in no step's way.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kombu import Connection

from agentq.broker.connection import explain
from agentq.broker.envelope import step_message
from agentq.broker.line import GONE_S, Line
from agentq.broker.queues import QUARANTINE, declared
from agentq.broker.routes import Look, Routes
from agentq.errors import BrokerUnavailable
from agentq.verdicts import Wake

log = logging.getLogger("agentq.broker")

_BATCH_MAX = 200
_QUIET_S = 5.0  # one warning per outage and interval, not one per step

# A body and its headers.
Message = tuple[Any, dict[str, Any]]


class Publisher:
    """
    Hands committed steps to the broker.

    `send` returns at once, or after one command to a broker that answered before. Whatever cannot be
    sent is dropped here, because the ledger still holds it as queued and the relay will find it
    missing. Not shared across a fork.
    """

    def __init__(self, connect: Callable[[], Connection], queues: Look = lambda _: {}) -> None:
        self._routes = Routes(queues)
        self._waiting: queue.SimpleQueue[Wake | threading.Event | None] = queue.SimpleQueue()
        self._wakes = Line(connect)
        self._others = Line(connect)
        self._seen: set[str] = set()
        self._complained_at = float("-inf")
        self._busy = False
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
        self._wakes.disconnect(goodbye=True)
        self._others.disconnect(goodbye=True)

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
            if self._others.confirms is None:
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
        if self._ask(lambda channel: self._bind(channel, name)) is None:
            time.sleep(GONE_S)
            self._ask(lambda channel: declared(name).bind(channel).declare())
        self._seen.add(name)

    def _bind(self, channel: Any, name: str) -> bool:
        """
        The queue is there, of our kind, and bound. On RabbitMQ one that was there before is not made here again.

        Whoever deletes it does so between any two commands, and whoever listens is to hear of it (see `GONE_S`).
        """
        queue = declared(name).bind(channel)
        if self._others.confirms is None:
            queue.declare()
            return True
        channel.queue_declare(queue=name, passive=True)
        if name not in self._seen:
            queue.queue_declare()  # its kind is compared once
        queue.exchange.declare()
        queue.queue_bind()
        return True

    def publish(self, name: str, messages: Sequence[Message]) -> None:
        """
        Publish messages of another kind, now and together.

        Raises:
            BrokerUnavailable: they may or may not have arrived.
        """
        line = self._others
        with line.lock:
            try:
                with line.ready().batch(max_size=_BATCH_MAX):
                    for body, headers in messages:
                        line.publish(name, body, headers)
                line.confirm()
            except line.gone() as error:
                line.disconnect()
                raise BrokerUnavailable(f"the broker did not take the message: {error}") from error

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        """The broker's answer; None: there is no such queue."""
        with self._others.lock:
            return self._others.ask(question)

    def _send_here(self, wake: Wake) -> bool:
        """
        Publish in the caller's thread where nothing is before it: waking another thread takes longer than the command.

        Of a broker that no longer answers one caller at a time learns, the others leave it to the publisher's thread.
        So do all where the broker confirms: waiting for it once for each message would cost more than the thread.
        """
        line = self._wakes
        if line.producer is None or line.confirms is not None or self._busy or not self._waiting.empty():
            return False
        if not line.lock.acquire(blocking=False):
            return False
        try:
            if line.producer is None:
                return False
            self._try_batch([wake])
            return True
        finally:
            line.lock.release()

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            self._busy = True  # or callers could keep taking the lock before it
            wakes = [item for item in batch if isinstance(item, Wake)]
            if wakes:
                with self._wakes.lock:
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
            self._wakes.disconnect()

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
        line = self._wakes
        try:
            producer = line.ready()
            if len(wakes) == 1 and line.confirms is None:
                self._publish_one(wakes[0], queues)
                return
            with producer.batch(max_size=_BATCH_MAX):
                for wake in wakes:
                    self._publish_one(wake, queues)
            line.confirm()
        except line.gone() as error:
            # Uncertain is as good as lost: a repeat is dropped at the claim.
            line.disconnect()
            self._complain(len(wakes), error)

    def _publish_one(self, wake: Wake, queues: dict[str, str]) -> None:
        body, headers, properties = step_message(wake)
        self._wakes.publish(QUARANTINE if wake.quarantine else queues[wake.tenant], body, headers, **properties)

    def _complain(self, count: int, error: BaseException) -> None:
        if time.monotonic() - self._complained_at > _QUIET_S:
            self._complained_at = time.monotonic()
            log.warning("%s steps wait for the broker, the relay will send them: %s", count, explain(error))
