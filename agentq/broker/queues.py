"""Queues: one per tenant or shared by many, one for suspects, one door for submissions."""

from __future__ import annotations

from typing import Any

from kombu import Exchange, Queue

QUARANTINE = "agentq.quarantine"
SUBMIT = "agentq.submit"
SUBMIT_DEAD = "agentq.submit.dead"
UNROUTED = "agentq.unrouted"

# Holds one message for as long as the broker keeps its data: without it, the broker was wiped.
DEAD_MARK = "agentq.dead.mark"

# Deliveries of a message that nobody finishes with: RabbitMQ counts them. Below its own limit of 20 (since 4.0),
# over which it would drop submissions too.
DELIVERIES_MAX = 10
DELIVERIES_HEADER = "x-delivery-count"

_TENANT = "agentq.t."
_DEAD = ".dead"
_SHARD = "agentq.shard."


def tenant_queue(tenant: str) -> str:
    """The queue that carries the steps of a tenant with a queue of its own."""
    return _TENANT + tenant


def dead_queue(tenant: str) -> str:
    """The queue that tells of a tenant's dead letters. No worker listens to it."""
    return _TENANT + tenant + _DEAD


def tenant_of(queue: str) -> str | None:
    """The tenant whose steps a queue carries, None for any other queue."""
    return queue.removeprefix(_TENANT) if queue.startswith(_TENANT) and not queue.endswith(_DEAD) else None


def carries_wakes(queue: str) -> bool:
    """Whether a queue holds nothing but wake-ups, each of which the ledger can send again."""
    return follows_tenants(queue) or queue == QUARANTINE


def holds_copies(queue: str) -> bool:
    """Whether all that a queue holds is in Postgres too, and may be lost: wake-ups, and boards of dead letters."""
    return carries_wakes(queue) or queue == DEAD_MARK or (queue.startswith(_TENANT) and queue.endswith(_DEAD))


def follows_tenants(queue: str) -> bool:
    """Whether a queue carries the steps of one tenant, or of those that share it."""
    return tenant_of(queue) is not None or queue.startswith(_SHARD)


def arguments_of(name: str) -> dict[str, Any]:
    """
    How RabbitMQ is to keep a queue; Redis knows no kinds of queues and passes over it.

    RabbitMQ refuses whoever declares a queue with other arguments than it has. So what foreign producers
    declare too has none but the kind, which Celery gives it with `task_create_missing_queue_type="quorum"`; there
    the worker counts deliveries. A wake-up that comes back too often is dropped by RabbitMQ: it is lost, as
    any may be, and the relay sends another.
    """
    limit = {"x-delivery-limit": DELIVERIES_MAX} if carries_wakes(name) else {}
    return {"x-queue-type": "quorum", **limit}


def declared(name: str) -> Queue:
    """
    The queue as workers declare it, on the exchange of its own name, where any Celery client looks for it.

    agentq itself publishes past the exchange, by the queue's name alone: an exchange's bindings are
    forgotten by a broker that is wiped, and what is sent to it then is dropped without a word.
    """
    exchange = Exchange(name, type="direct")
    return Queue(name, exchange, routing_key=name, durable=True, queue_arguments=arguments_of(name))
