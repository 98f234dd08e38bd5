"""Brokers to break: Valkey and RabbitMQ behind one face, for the contract that both must keep."""

from __future__ import annotations

import base64
import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kombu
import redis

from agentq.broker.queues import declared
from agentq.embedded import Stack
from tests.support.rabbit import Rabbit


class Broker(ABC):
    """A real server of the test's own, looked at past agentq's code."""

    name: str

    @property
    @abstractmethod
    def url(self) -> str:
        """Where it is, with its password."""

    @abstractmethod
    def start(self) -> None:
        """Start it, with the data that it has."""

    @abstractmethod
    def stop(self) -> None:
        """Stop it as an operator would."""

    @abstractmethod
    def kill(self) -> None:
        """SIGKILL it."""

    @abstractmethod
    def wipe(self) -> None:
        """Lose everything that it holds."""

    @abstractmethod
    def close(self) -> None:
        """End it; nothing of it is left."""

    @abstractmethod
    def put(self, queue: str, body: bytes, *, content_type: str, headers: dict[str, Any] | None = None) -> None:
        """A message as anybody who reaches the broker could send it."""

    @abstractmethod
    def take(self, queue: str) -> list[dict[str, Any]]:
        """Take every message that waits: body, content_type, headers; the oldest first."""

    @abstractmethod
    def has(self, queue: str) -> bool:
        """Whether there is such a queue, as far as this broker knows of queues without messages."""


class ValkeyBroker(Broker):
    """Lists under a prefix."""

    name = "valkey"

    def __init__(self, folder: Path, prefix: str) -> None:
        self._stack = Stack(folder, postgres=False)
        self._prefix = prefix
        self._stack.start()

    @property
    def url(self) -> str:
        return self._stack.valkey.url

    def start(self) -> None:
        self._stack.valkey.start(same_port=True)

    def stop(self) -> None:
        self._stack.valkey.stop()

    def kill(self) -> None:
        self._stack.valkey.kill()

    def wipe(self) -> None:
        self._stack.valkey.wipe()

    def close(self) -> None:
        self._stack.remove()

    def put(self, queue: str, body: bytes, *, content_type: str, headers: dict[str, Any] | None = None) -> None:
        envelope = {
            "body": base64.b64encode(body).decode(),
            "content-type": content_type,
            "content-encoding": "utf-8",
            "headers": headers or {},
            "properties": {
                "delivery_info": {"exchange": "", "routing_key": queue},
                "body_encoding": "base64",
                "delivery_tag": base64.b64encode(body[:30]).decode() or "tag",
            },
        }
        with redis.Redis.from_url(self.url) as client:
            client.lpush(self._prefix + queue, json.dumps(envelope))

    def take(self, queue: str) -> list[dict[str, Any]]:
        with redis.Redis.from_url(self.url) as client:
            raws: list[bytes] = client.lrange(self._prefix + queue, 0, -1)  # type: ignore[assignment]
            client.delete(self._prefix + queue)
        found = [json.loads(raw) for raw in reversed(raws)]
        return [
            {
                "body": base64.b64decode(one["body"]),
                "content_type": one["content-type"],
                "headers": one["headers"],
            }
            for one in found
        ]

    def has(self, queue: str) -> bool:
        with redis.Redis.from_url(self.url) as client:
            return bool(client.exists(self._prefix + queue) or client.exists(f"{self._prefix}_kombu.binding.{queue}"))


class RabbitBroker(Broker):
    """Quorum queues of a node of its own."""

    name = "rabbitmq"

    def __init__(self, folder: Path) -> None:
        self.node = Rabbit(folder)
        self.node.start()

    @property
    def url(self) -> str:
        return self.node.url

    def start(self) -> None:
        self.node.start()

    def stop(self) -> None:
        self.node.stop()

    def kill(self) -> None:
        self.node.kill()

    def wipe(self) -> None:
        self.node.wipe()

    def close(self) -> None:
        self.node.close()

    def put(self, queue: str, body: bytes, *, content_type: str, headers: dict[str, Any] | None = None) -> None:
        with self._connection() as connection:
            channel = connection.channel()
            declared(queue).bind(channel).declare()
            message = channel.prepare_message(
                body, content_type=content_type, content_encoding="utf-8", headers=headers, properties={}
            )
            channel.basic_publish(message, exchange="", routing_key=queue)

    def take(self, queue: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        with self._connection() as connection:
            channel = connection.channel()
            if not self.has(queue):
                return []
            while (got := channel.basic_get(queue, no_ack=True)) is not None:
                message = channel.message_to_python(got)
                body = message.body if isinstance(message.body, bytes) else message.body.encode()
                found.append({"body": body, "content_type": message.content_type, "headers": message.headers})
        return found

    def has(self, queue: str) -> bool:
        with self._connection() as connection:
            channel = connection.channel()
            try:
                channel.queue_declare(queue=queue, passive=True)
            except connection.channel_errors:
                return False
            return True

    def listeners(self, queue: str) -> int:
        """How many listen to it, as RabbitMQ counts them; 0 also where there is no such queue."""
        with self._connection() as connection:
            channel = connection.channel()
            try:
                return int(channel.queue_declare(queue=queue, passive=True).consumer_count)
            except connection.channel_errors:
                return 0

    def declare(self, queue: str, **arguments: Any) -> None:
        """A queue as somebody else made it."""
        with self._connection() as connection:
            connection.channel().queue_declare(queue=queue, durable=True, auto_delete=False, arguments=arguments)

    def delete(self, queue: str) -> None:
        """Delete it under whoever listens."""
        with self._connection() as connection:
            connection.channel().queue_delete(queue=queue)

    def listen(self, queue: str, on_end: Callable[[str], object]) -> kombu.Connection:
        """A stranger who wants to be told when the queue ends; what it gets is not read but by `heard`."""
        connection = self._connection()
        connection.channel().basic_consume(queue=queue, callback=lambda _: None, on_cancel=on_end)
        return connection

    @staticmethod
    def heard(connection: kombu.Connection) -> None:
        """Read what RabbitMQ has said since."""
        with contextlib.suppress(TimeoutError):
            connection.drain_events(timeout=0.1)

    def consume(self, queue: str) -> kombu.Connection:
        """A stranger who listens, until the connection is closed."""
        connection = self._connection()
        connection.channel().basic_consume(queue=queue, callback=lambda _: None)
        return connection

    def _connection(self) -> kombu.Connection:
        return kombu.Connection(self.url, connect_timeout=5)
