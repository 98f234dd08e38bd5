"""Budgets under real workers: a race for the last calls, and workers that die while they spend."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from agentq.agents.registry import Registry, load_agents
from agentq.client import Client
from agentq.store.budgets import Budgets
from agentq.store.pool import Store
from tests.support.fleet import Fleet
from tests.support.until import until

pytestmark = pytest.mark.crash

AGENTS = "tests.support.spenders"
PRICE = 1000  # micros of each call
AFFORDABLE, SESSIONS = 20, 64


@pytest.fixture
def registry() -> Registry:
    return load_agents((AGENTS,))


@pytest.fixture
def budgets(store: Store, tenant: str) -> Budgets:
    """A budget for twenty calls, and half of one more."""
    budgets = Budgets(store)
    who = {"operator": "test", "reason": "a race"}
    budgets.set_price("test-purse:robot", (1_000_000, 1_000_000, 1_000_000), **who)
    limit = AFFORDABLE * PRICE + PRICE // 2
    budgets.set_budget(tenant, "tenant", "", "day", micros=limit, tokens=None, on_refusal="end", **who)
    return budgets


@pytest.mark.parametrize("kills", [0, 2])
def test_sixty_four_sessions_race_for_twenty_calls(
    client: Client, fleet: Fleet, budgets: Budgets, tenant: str, tmp_path: Path, kills: int
) -> None:
    """
    I6: exactly what is affordable is charged, no call goes out without its money, and nothing stays reserved.

    A worker that is killed while it spends may have made its call: that one is charged, and not made again for free.
    """
    journal = tmp_path / "calls"
    journal.touch()
    items = [({"journal": str(journal)}, None) for _ in range(SESSIONS)]
    for _ in range(2):
        fleet.worker(concurrency=8, agents=AGENTS)
    sessions = client.start_many("spender", tenant=tenant, items=items)
    for number in range(kills):
        until(lambda n=number: len(journal.read_text().splitlines()) > 4 * n, 20, "calls are made")
        fleet.workers[number].kill()
        fleet.worker(concurrency=8, agents=AGENTS)

    states = Counter(client.wait_all(sessions, timeout=60).values())
    until(lambda: not held(budgets, tenant), 20, "every reservation is settled or freed")

    rows = [row for session in sessions for row in budgets.ledger(tenant, session._uuid)]
    calls = [line.split()[1] for line in journal.read_text().splitlines()]
    fates = Counter(row.state for row in rows)
    assert sum(row.charged_micros or 0 for row in rows) == AFFORDABLE * PRICE
    assert len(calls) == len(set(calls)) <= AFFORDABLE
    assert set(calls) <= {row.reservation_id for row in rows if row.state in ("charged", "uncertain")}
    assert states["done"] == fates["charged"] == AFFORDABLE - fates["uncertain"]
    assert states["failed"] == SESSIONS - states["done"]
    assert (fates["uncertain"] > 0) == (kills > 0)
    if not kills:
        assert len(calls) == AFFORDABLE
    assert budgets.check(tenant) == []


def held(budgets: Budgets, tenant: str) -> int:
    return sum(row.reserved_micros for row in budgets.windows(tenant))
