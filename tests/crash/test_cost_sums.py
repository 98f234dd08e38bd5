"""What was spent is the same sum wherever it is shown, also when workers died while they spent."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from prometheus_client.registry import CollectorRegistry

from agentq.agents.registry import Registry, load_agents
from agentq.client import Client
from agentq.seeing.metrics import FleetCollector
from agentq.store.budgets import Budgets
from agentq.store.pool import Store
from agentq.store.traces import Traces
from tests.cli.conftest import Cli, cli
from tests.support.fleet import Fleet
from tests.support.until import until

pytestmark = pytest.mark.crash

AGENTS = "tests.support.spenders"
SESSIONS = 6

__all__ = ["cli"]


@pytest.fixture
def registry() -> Registry:
    return load_agents((AGENTS,))


@pytest.fixture
def spent(client: Client, fleet: Fleet, store: Store, tenant: str, tmp_path: Path) -> Iterator[dict[str, list[int]]]:
    """Sessions that ended, one of whose workers was killed while it spent: what each reserved call was charged."""
    budgets, journal = Budgets(store), tmp_path / "calls"
    who = {"operator": "test", "reason": "a chaos run"}
    budgets.set_price("test-purse:robot", (1_000_000, 3_000_000, 100_000), **who)
    budgets.set_price("test-purse:parrot", (7_000_000, 11_000_000, 7_000_000), **who)
    budgets.set_budget(tenant, "tenant", "", "day", micros=10**9, tokens=None, on_refusal="end", **who)
    journal.touch()
    fleet.worker(concurrency=4, agents=AGENTS)
    fleet.worker(concurrency=4, agents=AGENTS)
    sessions = client.start_many(
        "shopper", tenant=tenant, items=[({"journal": str(journal), "seconds": 0.1}, None) for _ in range(SESSIONS)]
    )
    until(lambda: len(journal.read_text().splitlines()) > 3, 30, "calls are made")
    fleet.workers[0].kill()
    states = client.wait_all(sessions, timeout=120)
    assert set(states.values()) == {"done"}
    until(lambda: not any(row.reserved_micros for row in budgets.windows(tenant)), 60, "every reservation is settled")
    rows = {session.id: budgets.ledger(tenant, session._uuid) for session in sessions}
    assert any(row.settled_by == "relay" for found in rows.values() for row in found), "nothing was lost"
    assert any(row.settled_by == "step" for found in rows.values() for row in found)
    yield {
        id_: [
            sum(row.charged_micros or 0 for row in found),
            sum(row.used_input or 0 for row in found),
            sum(row.used_output or 0 for row in found),
        ]
        for id_, found in rows.items()
    }
    for model in ("test-purse:robot", "test-purse:parrot"):
        budgets.set_price(model, None, **who)


def test_cost_sums_are_equal_on_every_surface(
    cli: Cli, spent: dict[str, list[int]], client: Client, store: Store, tenant: str, admin: psycopg.Connection[tuple]
) -> None:
    """I2, I6: ledger, windows, traces, checkpoints and waste, commands, metrics and the cost tab agree to the micro."""
    total = [sum(numbers) for numbers in zip(*spent.values(), strict=True)]
    assert client.budgets.check(tenant) == []
    [window] = [row for row in Budgets(store).windows(tenant) if (row.scope, row.period) == ("tenant", "day")]
    assert (window.spent_micros, window.spent_tokens) == (total[0], total[1] + total[2])

    cached = 0
    for id_, (micros, tokens_in, tokens_out) in spent.items():
        told = cli.json("session", "cost", id_)
        assert told["total"]["cost_micros"] == micros
        assert (told["total"]["tokens_in"], told["total"]["tokens_out"]) == (tokens_in, tokens_out)
        assert sum(line["cost_micros"] for line in told["lines"]) == micros
        assert sum(line["waste_micros"] for line in told["lines"]) == told["total"]["waste_micros"]
        assert sum(row["charged_micros"] or 0 for row in cli.json("budget", "ledger", id_)) == micros
        kept = cli.json("session", "show", id_)["cost_usd"]
        assert round(kept * 1_000_000) == micros - told["total"]["waste_micros"]

        # Each call is told by its model, also those that no event tells of, with the cached part of what went in.
        assert {(line["what"], line["kind"]) for line in told["lines"]} == {("robot", "model"), ("parrot", "model")}
        of_session = sum(row["used_cached"] or 0 for row in cli.json("budget", "ledger", id_))
        assert sum(line["tokens_cached"] for line in told["lines"]) == of_session
        cached += of_session

    query = "select sum(cost_micros)::bigint, sum(tokens_in)::bigint, sum(tokens_out)::bigint from agentq.trace"
    where = " where tenant = %s and kind = 'attempt'"
    assert list(admin.execute(query + where, (tenant,)).fetchone() or ()) == total

    for by in ("agent", "tenant", "day", "session", "model"):
        rows = cli.json("cost", "ls", "--by", by, "--tenant", tenant)
        assert [sum(row[name] for row in rows) for name in ("cost_micros", "tokens_in", "tokens_out")] == total, by
        text = cli.ok("cost", "ls", "--by", by, "--tenant", tenant, "--csv")
        assert sum(int(row["cost_micros"]) for row in csv.DictReader(io.StringIO(text))) == total[0], by
        if by == "model":
            assert {row["of"] for row in rows} == {"robot", "parrot"}
            assert sum(row["tokens_cached"] for row in rows) == cached
        # What Flower's tab asks.
        assert sum(row.cost_micros for row in Traces(store).spend(by, seconds=86_400, tenant=tenant)) == total[0], by

    registry = CollectorRegistry()
    registry.register(FleetCollector(store, tenants_max=10_000))
    value = registry.get_sample_value("agentq_budget_spent_usd", {"tenant": tenant, "period": "day"})
    assert round((value or 0) * 1_000_000) == total[0]
