"""
The broker tab on RabbitMQ: how much waits in each queue, asked over AMQP.

Flower itself asks RabbitMQ's management interface, which is a plugin that many do not run. Where
`--broker_api` (FLOWER_BROKER_API) names it, Flower does so still, and shows more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import Any

from flower.utils import broker as theirs

from agentq.broker.connection import connect
from agentq.broker.publisher import Publisher
from agentq.settings import load


class RabbitMQ(theirs.RabbitMQ):  # type: ignore[misc]
    """Flower's, without the need for the management interface."""

    def __init__(self, broker_url: str, http_api: str | None, **more: Any) -> None:
        super().__init__(broker_url, http_api, **more)
        self._url = None if http_api else broker_url

    async def queues(self, names: Iterable[str]) -> Any:
        """Name and count of each; more of them from the management interface."""
        if self._url is None:
            return await super().queues(names)
        return await asyncio.get_running_loop().run_in_executor(None, partial(_depths, self._url, sorted(names)))


def _depths(url: str, names: list[str]) -> list[dict[str, Any]]:
    settings = load().model_copy(update={"broker_url": url})
    publisher = Publisher(lambda: connect(settings))
    try:
        return [{"name": name, "messages": publisher.depth(name)} for name in names]
    finally:
        publisher.close()


def install() -> None:
    """Let Flower's pages and API use it."""
    theirs.RabbitMQ = RabbitMQ
