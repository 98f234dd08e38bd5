"""Queues: one per tenant, one for suspects, one door for submissions."""

from __future__ import annotations

from kombu import Exchange, Queue

QUARANTINE = "agentq.quarantine"
SUBMIT = "agentq.submit"
SUBMIT_DEAD = "agentq.submit.dead"
UNROUTED = "agentq.unrouted"

# Holds one message for as long as the broker keeps its data: without it, the broker was wiped.
DEAD_MARK = "agentq.dead.mark"

_TENANT = "agentq.t."
_DEAD = ".dead"


def tenant_queue(tenant: str) -> str:
    """The queue that carries a tenant's steps."""
    return _TENANT + tenant


def dead_queue(tenant: str) -> str:
    """The queue that tells of a tenant's dead letters. No worker listens to it."""
    return _TENANT + tenant + _DEAD


def tenant_of(queue: str) -> str | None:
    """The tenant whose steps a queue carries, None for any other queue."""
    return queue.removeprefix(_TENANT) if queue.startswith(_TENANT) and not queue.endswith(_DEAD) else None


def carries_wakes(queue: str) -> bool:
    """Whether a queue holds nothing but wake-ups, each of which the ledger can send again."""
    return tenant_of(queue) is not None or queue == QUARANTINE


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
