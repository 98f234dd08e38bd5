"""The broker's connection: one set of options for workers, producers and the relay."""

from __future__ import annotations

from typing import Any

from agentq.broker.transport import BrokerConnection
from agentq.settings import Settings


def is_redis(url: str) -> bool:
    """Whether the broker speaks the Redis protocol."""
    return url.partition(":")[0] in ("redis", "rediss", "valkey", "valkeys", "redis+socket")


def transport_options(settings: Settings) -> dict[str, Any]:
    """Options of the transport, each with its reason."""
    if not is_redis(settings.broker_url):
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
