"""
Agents for a worker whose queue is deleted at the one moment at which Celery reads with its eyes shut.

Having connected, Celery drains its connection once and passes over what is raised there. The queue that
`DELETED_QUEUE` names is deleted just before that, and RabbitMQ's word of it waits to be read.
"""

from __future__ import annotations

import os
import select
from typing import Any

import kombu
from celery.worker import loops

from tests.support import agents  # noqa: F401 - registered by being imported

_drain = loops._quick_drain


def _delete_before(connection: Any, timeout: float = 0.1) -> None:
    loops._quick_drain = _drain  # once
    with kombu.Connection(os.environ["AGENTQ_BROKER_URL"]) as other:
        other.channel().queue_delete(queue=os.environ["DELETED_QUEUE"])
    word, *_ = select.select([connection.connection.sock], [], [], 10)
    assert word, "RabbitMQ said nothing to the listener of a deleted queue"
    _drain(connection, timeout)


loops._quick_drain = _delete_before
