"""A worker's life: it drains when told, and tells no secrets."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from agentq.agents.registry import load_agents
from agentq.client import Client
from agentq.settings import Settings
from agentq.worker import headroom
from tests.support.fleet import Fleet
from tests.support.until import until


@pytest.fixture
def producer(settings: Settings) -> Any:
    """A client that knows the agents that the workers have."""
    with Client(settings, load_agents(["tests.support.agents"])) as client:
        yield client


def test_a_worker_drains_on_sigterm(
    fleet: Fleet, producer: Client, admin: psycopg.Connection[Any], tenant: str
) -> None:
    """
    It ends by itself with 0, says goodbye, and what it was running is finished or handed back, not crashed.
    """
    first = fleet.worker(concurrency=4, AGENTQ_DRAIN_S="1")
    session = producer.start("wait", tenant=tenant, input={"seconds": 3})
    until(lambda: session.steps()[0].state == "running", 15)
    assert first.stop() == 0
    row = admin.execute("select state from agentq.worker where pid = %s order by started_at desc", (first.pid,))
    assert row.fetchone() == ("stopped",)
    assert session.steps()[0].crashes == 0
    fleet.worker(concurrency=4)
    assert session.wait(timeout=20).result == "waited"
    assert session.steps()[0].crashes == 0


def test_no_secret_is_logged(fleet: Fleet, producer: Client, settings: Settings, tenant: str) -> None:
    """
    Neither the broker's nor the database's password, not even at debug level.
    """
    worker = fleet.worker(concurrency=2, AGENTQ_LOG_LEVEL="DEBUG")
    producer.start("count", tenant=tenant, input={}).wait(timeout=15)
    worker.stop()
    for url in (settings.database_url, settings.broker_url):
        password = url.partition("://")[2].partition("@")[0].partition(":")[2]
        assert len(password) > 8
        assert password not in worker.log


def test_who_comes_while_every_slot_is_held_does_not_wait(
    fleet: Fleet, producer: Client, tenant: str, other_tenant: str
) -> None:
    """
    I8: a flood of slow steps holds the slots, all of them and no more, and another tenant's step runs beside it.
    """
    fleet.worker(concurrency=4)
    slow = producer.start_many("wait", tenant=tenant, items=[({"seconds": 600}, None)] * 8)

    def running() -> int:
        return sum(step.state == "running" for session in slow for step in session.steps())

    until(lambda: running() == 4, 60, "the slots are held")
    assert producer.start("count", tenant=other_tenant, input={}).wait(timeout=60).state == "done"
    assert running() == 4
    for session in slow:
        session.cancel(reason="the test is over")


def test_a_process_of_few_slots_has_no_more_threads_than_these() -> None:
    """
    Who asks for one thread wants one step at a time.
    """
    assert [headroom(slots) for slots in (0, 1, 3, 4, 64)] == [0, 0, 0, 1, 16]
