"""
The Redis transport: kombu's own, with three changes.

A list entry that is no message at all ends kombu's consumer with an error and is lost; here it is
handed to `on_damaged` and the consumer goes on.

Steps' wake-ups are not written to the `unacked` hash. That hash protects a message against the loss
of its consumer, which the ledger does already and better: a hash entry comes back only after the
visibility timeout, or all at once, running steps included, when a connection blinks. It cost two of
the three Redis transactions of a delivery. Submissions, which only the broker has, stay protected.

The client object, which kombu builds anew for each operation, is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kombu import Connection
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

from agentq.broker.queues import carries_wakes

log = logging.getLogger("agentq.broker")

# How long a lost broker is waited for before it is looked for again.
RECONNECT_FIRST_S, RECONNECT_STEP_S, RECONNECT_MAX_S = 0.2, 0.3, 3.0


def _log_damaged(queue: str, raw: bytes) -> None:
    log.error("an entry of %s is no message and was dropped (%s bytes)", queue, len(raw))


# Where damaged entries go; a worker keeps them, with the reason.
on_damaged: Callable[[str, bytes], object] = _log_damaged


class QoS(kombu_redis.QoS):  # type: ignore[misc]
    """Counts unacknowledged wake-ups in memory alone, for the prefetch limit."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._wakes: set[str] = set()

    def append(self, message: Any, delivery_tag: str) -> None:
        if not carries_wakes(message.delivery_info["routing_key"]):
            super().append(message, delivery_tag)
            return
        self._wakes.add(delivery_tag)
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        if self.channel.closed:
            return  # a step that outlived its connection: what was open then has been given back
        if delivery_tag not in self._wakes:
            super().ack(delivery_tag)
            return
        self._wakes.discard(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if self.channel.closed or delivery_tag in self._wakes:
            self.ack(delivery_tag)  # not put back: the relay finds it missing
            return
        super().reject(delivery_tag, requeue=requeue)

    def restore_unacked(self, client: Any = None) -> None:
        for tag in self._wakes:
            self._delivered.pop(tag, None)
        self._wakes.clear()
        if self._delivered:  # or a connection that is lost would be asked for nothing
            super().restore_unacked(client=client)


class Channel(kombu_redis.Channel):  # type: ignore[misc]
    """A channel that survives damaged entries and keeps its client."""

    QoS = QoS

    _kept_client: Any = None
    _reply: Any = None

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """A client for one operation; it takes a connection from the pool for each command, so it can be shared."""
        if client:
            yield client
            return
        # A lost connection has no pool any more, and could make none: the client of before still tells so.
        if self._kept_client is None or (
            self._pool is not None and self._kept_client.connection_pool is not self._pool
        ):
            self._kept_client = self._create_client()
        yield self._kept_client

    def _has_queue(self, queue: str, **_: Any) -> bool:
        """Whether the list exists. kombu asks with EXISTS, to which its key prefix is not added."""
        return bool(self._size(queue))

    def _create_client(self, asynchronous: bool = False) -> Any:
        client = super()._create_client(asynchronous=asynchronous)
        if asynchronous:
            self._remember_replies(client)
        return client

    def _remember_replies(self, client: Any) -> None:
        """Keep the last popped entry at hand: once popped it exists nowhere else."""
        parse = client.parse_response

        def parse_response(connection: Any, command: str, **options: Any) -> Any:
            self._reply = None
            reply = parse(connection, command, **options)
            if command == "BRPOP":
                self._reply = reply
            return reply

        client.parse_response = parse_response

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            if self._reply is None or self._is_message(self._reply[1]):
                raise
            queue, raw = self._reply
            on_damaged(bytes_to_str(queue), raw if isinstance(raw, bytes) else str(raw).encode())
            return True
        finally:
            self._reply = None

    def _is_message(self, raw: bytes) -> bool:
        try:
            message = self.Message(loads(bytes_to_str(raw)), channel=self)
        except Exception:
            return False
        return bool(message.delivery_tag) and "exchange" in message.delivery_info


class Transport(kombu_redis.Transport):  # type: ignore[misc]
    """kombu's Redis transport on our channel."""

    Channel = Channel


class BrokerConnection(Connection):  # type: ignore[misc]
    """A kombu connection that speaks Redis through our transport; other brokers are kombu's own."""

    def get_transport_cls(self) -> Any:
        """The transport's class; the scheme in the URL stays what people know."""
        found = super().get_transport_cls()
        return Transport if found is kombu_redis.Transport else found

    def _ensure_connection(
        self,
        errback: Any = None,
        max_retries: int | None = None,
        interval_start: float = RECONNECT_FIRST_S,
        interval_step: float = RECONNECT_STEP_S,
        interval_max: float = RECONNECT_MAX_S,
        *rest: Any,
        **more: Any,
    ) -> Any:
        # kombu waits two seconds longer after each try, up to half a minute: a broker that is back after twenty
        # seconds would go unnoticed for ten more, and Celery's worker offers no setting for it.
        return super()._ensure_connection(
            errback, max_retries, interval_start, interval_step, interval_max, *rest, **more
        )
