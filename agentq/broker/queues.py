"""Queues: one per tenant, one for suspects, one door for submissions."""

from __future__ import annotations

from kombu import Exchange, Queue

QUARANTINE = "agentq.quarantine"
SUBMIT = "agentq.submit"
SUBMIT_DEAD = "agentq.submit.dead"
UNROUTED = "agentq.unrouted"

_TENANT = "agentq.t."


def tenant_queue(tenant: str) -> str:
    """The queue that carries a tenant's steps."""
    return _TENANT + tenant


def tenant_of(queue: str) -> str | None:
    """The tenant of a queue, None for the fleet's own queues."""
    return queue.removeprefix(_TENANT) if queue.startswith(_TENANT) else None


def carries_wakes(queue: str) -> bool:
    """Whether a queue holds nothing but wake-ups, each of which the ledger can send again."""
    return queue.startswith(_TENANT) or queue == QUARANTINE


def queue_for(tenant: str, *, quarantine: bool) -> str:
    """Where a step is published: its tenant's queue, or quarantine for a suspect."""
    return QUARANTINE if quarantine else tenant_queue(tenant)


def declared(name: str) -> Queue:
    """
    The queue as workers declare it, on the exchange of its own name, where any Celery client looks for it.

    agentq itself publishes past the exchange, by the queue's name alone: an exchange's bindings are
    forgotten by a broker that is wiped, and what is sent to it then is dropped without a word.
    """
    return Queue(name, Exchange(name, type="direct"), routing_key=name, durable=True)
