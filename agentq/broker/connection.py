"""The broker's connection: one set of options for workers, producers and the relay."""

from __future__ import annotations

from typing import Any

from agentq.broker.transport import BrokerConnection
from agentq.settings import Settings


def is_redis(url: str) -> bool:
    """Whether the broker speaks the Redis protocol."""
    return url.partition(":")[0] in ("redis", "rediss", "valkey", "valkeys", "redis+socket")


def is_amqp(url: str) -> bool:
    """Whether the broker is RabbitMQ."""
    return url.partition(":")[0] in ("amqp", "amqps", "pyamqp")


def transport_options(settings: Settings) -> dict[str, Any]:
    """Options of the transport, each with its reason."""
    if not is_redis(settings.broker_url):
        # Not `confirm_publish`: it would wait for the disk at each of Celery's events. The publisher asks for
        # confirms itself, many at once.
        return {}
    return {
        # One list per queue instead of four: a quarter of the keys in each BRPOP.
        "priority_steps": [0],
        # Longer than any step, or a second copy runs beside it. Recovery does not wait for it.
        "visibility_timeout": settings.visibility_timeout_s,
        "unacked_restore_interval": 60,
        "unacked_restore_throttle": 1,
        # Tenants take turns.
        "queue_order_strategy": "round_robin",
        "global_keyprefix": settings.key_prefix,
        # A half-open connection is noticed within a minute instead of never. No retry options beside
        # these: they would switch off batched publishing.
        "socket_timeout": 10,
        "socket_connect_timeout": 3,
        "socket_keepalive": True,
        "health_check_interval": 25,
    }


def connect(settings: Settings) -> BrokerConnection:
    """A connection for publishing; nothing is opened until it is used."""
    return BrokerConnection(settings.broker_url, transport_options=transport_options(settings), connect_timeout=5)


def explain(error: BaseException) -> str:
    """What a broker that cannot be used said, and where it is the address that is wrong, which part of it."""
    code = str(getattr(error, "reply_code", ""))
    if code == "403":
        return f"the broker refuses the user or password of AGENTQ_BROKER_URL ({error})"
    if code == "530":
        return f"the broker has no such vhost, or not for this user: see the path of AGENTQ_BROKER_URL ({error})"
    if code == "406":
        return f"the broker has a queue of this name that is of another kind, and not agentq's ({error})"
    return f"the broker did not answer: {error}"
