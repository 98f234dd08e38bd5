"""
Ten thousand registered tenants, ten with work: what the relay, pages and scrapes ask reads the rows of few of them.

Counted by Postgres itself, within functions too, so that it holds whatever a plan looks like.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from agentq.store import budgets, dead_letters, fairness, ledger, memory, metrics, operators, placement, rates
from agentq.store.pool import Store, run
from tests.support.databases import Databases

TENANTS, BUSY = 10_000, 10
# The group's own queues are as many as its settings say, here as shipped; a page and a turn are smaller than this.
FEW = 500

REGISTERED = """
insert into agentq.tenant (name, concurrency) select 't' || lpad(n::text, 5, '0'), 64 from generate_series(0, %s - 1) n
"""
WORK = """
insert into agentq.session (tenant, session_id, agent, agent_version, input, input_hash)
select 't' || lpad((b * 937)::text, 5, '0'), gen_random_uuid(), 'a', 1, '{}', 'h'
  from generate_series(1, %s) b, generate_series(1, 100);
"""
STEPS = """
insert into agentq.ledger_entry (tenant, session_id, step_id, seq, name, state, queued_at, attempts_max, timeout_s,
                                 path)
select tenant, session_id, gen_random_uuid(), 0, 's', case when n = 1 then 'queued' else 'ready' end, agentq.now(),
       1, 1, gen_random_uuid()
  from (select tenant, session_id, row_number() over (partition by tenant) as n from agentq.session) s
"""
MONEY = """
insert into agentq.budget (tenant, scope, subject, period, cost_micros, on_refusal)
select distinct tenant, 'tenant', '', 'day', 1000, 'wait' from agentq.session;
insert into agentq.budget_window (tenant, scope, subject, period, starts_at)
select name, 'tenant', '', p, date_trunc(p, agentq.now(), 'UTC') from agentq.tenant, unnest(array['day', 'month']) p
union all
select tenant, 'session', session_id::text, 'session', to_timestamp(0) from agentq.session;
"""
READ = """
select relname, seq_tup_read + idx_tup_fetch from pg_stat_xact_user_tables
 where schemaname = 'agentq' and relname in ('tenant', 'ledger_entry', 'budget_window', 'memory')
"""


@pytest.fixture(scope="module")
def crowd(databases: Databases) -> Iterator[psycopg.Connection[Any]]:
    """The database of such a fleet, placed as the settings are shipped, a live worker in it."""
    with databases.one() as database:
        with psycopg.connect(database.url, autocommit=True) as connection:
            connection.execute("select set_config('agentq.tenant', '*', false)")
            connection.execute(REGISTERED, (TENANTS,))
            while connection.execute("select agentq.place(null, 200, 32, 1000)").fetchall():
                pass
            connection.execute(WORK, (BUSY,))
            connection.execute(STEPS)
            for statement in MONEY.split(";")[:2]:
                connection.execute(statement)
            connection.execute(
                "insert into agentq.worker (worker_id, lock_key, host, pid, worker_group, role, release, serves, slots,"
                " lease_until) values (gen_random_uuid(), 1, 'h', 1, 'default', 'steps', '0', '{a@1}', 16,"
                " agentq.now() + interval '1 hour')"
            )
            connection.execute("update agentq.tenant set retention_days = 30 where name < 't00300'")
            for name in ("t05000", "t05001"):
                connection.execute("select agentq.change_placement(%s, 'own', null, 200, 32)", (name,))
            connection.execute(
                "update agentq.tenant set placed_at = agentq.now() - interval '1 minute' where former_queues <> '{}'"
            )
        with database.superuser() as admin:
            admin.execute("vacuum analyze")
        with psycopg.connect(database.url, autocommit=True) as connection:
            yield connection


def read(connection: psycopg.Connection[Any], statement: str, parameters: dict[str, Any]) -> tuple[dict[str, int], int]:
    """How many rows of each table the statement read, and how many it returned. Nothing is kept."""
    with connection.transaction(force_rollback=True):
        connection.execute("select set_config('agentq.tenant', '*', true)")
        before = dict(connection.execute(READ).fetchall())
        rows = run(connection, statement, parameters)
        after = dict(connection.execute(READ).fetchall())
    return {table: after[table] - before[table] for table in after}, len(rows)


TURN = {"after": "", "tenants": 200, "again": [], "max": 50}
PAGE = {"limit": 51, "match": None, "state": None}
ASKED: list[tuple[str, dict[str, str], str, dict[str, Any]]] = [
    # the relay
    ("place", placement.SQL, "place", {"names": None, "own_max": 200, "shards": 32, "max": 1000}),
    ("followed", placement.SQL, "followed", {"group": "default", "linger_s": 10.0}),
    ("left behind", placement.SQL, "left_behind", {"age_s": 20.0}),
    ("admission", ledger.SQL, "backlogged", {}),
    ("admit", ledger.SQL, "admit", {"tenant": "t00937", "max": 10}),
    ("division, begun", fairness.SQL, "begin", {}),
    ("division, demands", fairness.SQL, "demands", {"most": 65}),
    ("division, cleared", fairness.SQL, "clear", {"but": ["t00937"]}),
    ("missing", ledger.SQL, "broker_should_hold", {"age_s": 0.0}),
    ("served again", ledger.SQL, "offer_served", {}),
    ("taken back", ledger.SQL, "take_back", {"max": 100}),
    ("retention", operators.SQL, "remove_expired", TURN),
    ("memories", memory.SQL, "expire", {"max": 50, "keep_days": 30}),
    ("memories of tenants", memory.SQL, "expire_of", TURN),
    ("boards", dead_letters.SQL, "open_per_tenant", {"most": 1000}),
    ("unknown boards", dead_letters.SQL, "tenants", {"after": "t04000", "limit": 200}),
    # publishers and calls
    ("routes", placement.SQL, "queues_of", {"names": ["t00937"], "lately_s": 20.0}),
    ("weights", rates.SQL, "weights", {}),
    ("restricted", operators.SQL, "restricted", {}),
    # scrapes and pages
    ("metrics, tenants", ledger.SQL, "busiest", {"top": 20}),
    ("metrics, budgets", budgets.SQL, "tightest", {"top": 20}),
    ("metrics, groups", metrics.SQL, "deserted", {"top": 20}),
    ("page, with work", ledger.SQL, "busy_depths", PAGE | {"offset": 0}),
    ("page, without", ledger.SQL, "idle_depths", PAGE | {"after": "t03000"}),
    ("page, budgets", budgets.SQL, "windows_of", {"tenants": ["t00937", "t01874"]}),
    ("one tenant's", ledger.SQL, "queue_depths", {"tenant": "t00937"}),
    ("tenant ls", operators.SQL, "tenants", PAGE | {"after": "t03000"}),
    ("tenant get", operators.SQL, "tenant", {"name": "t00937"}),
    ("known", operators.SQL, "known", {"names": ["t00937", "nobody"]}),
    ("doctor, groups", placement.SQL, "deserted", {}),
]  # fmt: skip


@pytest.mark.parametrize("mode", ["auto", "force_generic_plan"])
@pytest.mark.parametrize(("sql", "name", "parameters"), [of[1:] for of in ASKED], ids=[of[0] for of in ASKED])
def test_few_tenants_are_read(
    crowd: psycopg.Connection[Any], sql: dict[str, str], name: str, parameters: dict[str, Any], mode: str
) -> None:
    """
    Of ten thousand, those that have work, or that a page shows: never all, whichever plan a statement keeps.
    """
    crowd.execute(f"set plan_cache_mode = {mode}")
    found, _ = read(crowd, sql[name], parameters)
    assert found["tenant"] <= FEW, found
    assert found["budget_window"] <= FEW, found


def test_steps_that_are_over_are_not_walked_to_count_those_that_wait(crowd: psycopg.Connection[Any]) -> None:
    """
    What waits is counted from its own index: a fleet has a hundred times as much behind it.
    """
    with crowd.transaction(force_rollback=True):
        crowd.execute("select set_config('agentq.tenant', '*', true)")
        crowd.execute(
            "update agentq.ledger_entry set state = 'done', settled_at = agentq.now() where tenant > 't01000'"
        )
        before = dict(crowd.execute(READ).fetchall())
        rows = run(crowd, ledger.SQL["busiest"], {"top": 1})
        after = dict(crowd.execute(READ).fetchall())
    assert [row[0] for row in rows] == ["t00937"]
    assert after["ledger_entry"] - before["ledger_entry"] < BUSY * 100


def test_pages_show_each_tenant_once_and_work_first(crowd: psycopg.Connection[Any]) -> None:
    """
    Whoever waits longest comes first, then the others by name; a part of a name and a state narrow it.
    """
    store = Store(_url(crowd), size=1)
    try:
        asked = ledger.Ledger(store)
        seen: list[str] = []
        place, pages = None, 0
        while pages == 0 or place is not None:
            page = asked.queue_depths(limit=777, after=place)
            seen += [row.tenant for row in page.rows]
            place, pages = page.more, pages + 1
        assert len(seen) == len(set(seen)) == TENANTS
        busy = {f"t{n * 937:05}" for n in range(1, BUSY + 1)}
        assert set(seen[:BUSY]) == busy
        assert seen[BUSY:] == sorted(set(seen) - busy)
        for size in (BUSY - 1, BUSY, BUSY + 1):  # where the two kinds meet
            first = asked.queue_depths(limit=size)
            second = asked.queue_depths(limit=size, after=first.more)
            assert [row.tenant for row in (*first.rows, *second.rows)] == seen[: 2 * size]
        narrow = asked.queue_depths(limit=50, match="t0093")
        assert narrow.rows[0].tenant == "t00937"
        assert {row.tenant for row in narrow.rows} == {f"t0093{n}" for n in range(10)}
        assert narrow.more is None
        assert asked.queue_depths(limit=50, state="paused").rows == []
    finally:
        store.close()


def _url(connection: psycopg.Connection[Any]) -> str:
    facts = connection.info.get_parameters() | {"password": connection.info.password}
    return psycopg.conninfo.make_conninfo(**facts)
