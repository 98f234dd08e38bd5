"""A provider's outage, on real workers: nothing dies of it, no attempt is lost, and it is left in peace."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from agentq.agents.registry import Registry
from agentq.client import Client, Selection, Session
from agentq.settings import Settings
from tests.support.fleet import Fleet
from tests.support.outage import Provider, asker
from tests.support.until import until

SESSIONS = 60
OUTAGE_S = 4.0
THREADS = 8
# What is on its way when it breaks, and the tries afterwards: two at a time, and the pauses grow to a second.
# Without a breaker there would be three attempts for each session, 180 calls, and 60 dead letters.
CALLS_MAX = 2 * THREADS + 2 * (1 + int(OUTAGE_S / 0.3))


@pytest.fixture
def quick(settings: Settings) -> Settings:
    """An outage of hours, in seconds."""
    return settings.model_copy(
        update={
            "dependency_window_s": 5.0,
            "dependency_volume_min": 4,
            "dependency_pause_s": 0.3,
            "dependency_pause_max_s": 1.0,
            "dependency_good": 2,
            "dependency_report_s": 0.2,
            "step_refusals_max": 1000,
        }
    )


@pytest.fixture
def workers(quick: Settings, tmp_path: Path, admin: psycopg.Connection[Any]) -> Iterator[Fleet]:
    """Two real workers; the breaker is as new."""
    for table in ("dependency", "dependency_window", "dependency_probe", "dependency_change"):
        admin.execute(f"delete from agentq.{table} where name = 'test-provider'")
    with Fleet(quick, tmp_path) as fleet:
        for _ in range(2):
            fleet.worker(concurrency=THREADS, agents="tests.support.outage")
        yield fleet


@pytest.fixture
def asking(quick: Settings, registry: Registry) -> Iterator[Client]:
    registry.add(asker)
    with Client(quick, registry) as client:
        yield client


def breaker(admin: psycopg.Connection[Any], tenant: str = "*") -> str:
    row = admin.execute(
        "select state from agentq.dependency where name = 'test-provider' and tenant = %s", (tenant,)
    ).fetchone()
    return row[0] if row else "closed"


def ended(sessions: list[Session], state: str) -> bool:
    return all(session.view().state == state for session in sessions)


def start(client: Client, tenant: str, provider: Provider, number: int) -> list[Session]:
    items = [({"url": provider.url}, f"{tenant}-{n}") for n in range(number)]
    return client.start_many("asker", tenant=tenant, items=items)


@pytest.mark.load
def test_an_outage_kills_nothing_and_costs_nothing(
    workers: Fleet, asking: Client, tenant: str, admin: psycopg.Connection[Any]
) -> None:
    """
    60 sessions, and their provider down for as long as four retries last: no dead letter, no attempt lost, few
    calls while it was down, and all done afterwards.
    """
    with Provider() as provider:
        provider.down = True
        sessions = start(asking, tenant, provider, SESSIONS)
        until(lambda: breaker(admin) == "open", 20, "the breaker opens")
        threading.Event().wait(OUTAGE_S)  # an outage takes its time
        assert breaker(admin) in ("open", "half_open")
        assert not any(session.view().state != "running" for session in sessions)
        during = provider.calls_while_down
        provider.down = False
        until(lambda: ended(sessions, "done"), 30, "all are done")
        until(lambda: breaker(admin) == "closed", 10, "the breaker closes")
    print(f"{during} calls while it was down, of {SESSIONS} sessions; at most {CALLS_MAX}")
    assert during <= CALLS_MAX
    assert asking.dead_letters.count(Selection(tenant=tenant)) == 0
    rows = admin.execute(
        "select attempt, count(*), sum(refusals) from agentq.ledger_entry where tenant = %s group by attempt", (tenant,)
    ).fetchall()
    assert [(row[0], row[1]) for row in rows] == [(1, SESSIONS * 2)], (rows, during)
    [row] = [row for row in asking.dependencies.ls("test-provider") if row.tenant is None]
    assert row.openings == 1
    assert [change.state for change in asking.dependencies.changes("test-provider")] == ["closed", "open"]


@pytest.mark.load
def test_one_tenants_bad_key_holds_back_nobody_else(
    workers: Fleet, asking: Client, tenant: str, other_tenant: str, admin: psycopg.Connection[Any]
) -> None:
    """
    I8: refused credentials open that tenant's own breaker; the other tenant's sessions do not notice.
    """
    with Provider() as provider:
        provider.denied = {tenant}
        bad = start(asking, tenant, provider, 30)
        until(lambda: breaker(admin, tenant) == "open", 20, "its own breaker opens")
        good = start(asking, other_tenant, provider, 30)
        until(lambda: ended(good, "done"), 20, "the others are done")
        assert breaker(admin) == "closed"
        provider.denied = set()
        until(lambda: all(s.view().state != "running" for s in bad), 30, "the rest goes on with a good key")
    # Those that met the bad key before anybody could know are dead; the others have waited.
    assert sum(session.view().state == "failed" for session in bad) <= 2 * THREADS
    assert sum(session.view().state == "done" for session in bad) >= 30 - 2 * THREADS
