"""What must hold whatever plan Postgres chooses."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from agentq.store.queries import load
from agentq.store.sessions import SQL
from tests.support.databases import Databases

ROWS = """
insert into agentq.session (tenant, session_id, agent, agent_version, input, input_hash)
select 't', gen_random_uuid(), 'a', 1, '{}', 'h' from generate_series(1, %s);
"""
ENTRIES = """
insert into agentq.ledger_entry (tenant, session_id, step_id, seq, name, state, attempts_max, timeout_s,
    path)
select 't', session_id, gen_random_uuid(), 0, 's', 'ready', 1, 1, gen_random_uuid() from agentq.session s
 where not exists (select from agentq.ledger_entry e where e.session_id = s.session_id);
"""


@pytest.fixture(scope="module")
def misled(databases: Databases) -> Iterator[psycopg.Connection]:
    """A database whose statistics say one row where there are six, as after a burst."""
    with databases.one() as database, psycopg.connect(database.admin_url, autocommit=True) as connection:
        connection.execute("select set_config('agentq.tenant', '*', false)")
        connection.execute("insert into agentq.tenant (name, concurrency) values ('t', 1)")
        connection.execute(ROWS, (1,))
        connection.execute(ENTRIES)
        connection.execute("analyze agentq.ledger_entry")
        connection.execute(ROWS, (5,))
        connection.execute(ENTRIES)
        yield connection


@pytest.mark.parametrize("without", [(), ("enable_hashjoin", "enable_mergejoin"), ("enable_seqscan",)])
@pytest.mark.parametrize(
    ("statement", "rows"),
    [("select agentq.admit('t', 100)", 1), ("select agentq.hand_on_slot('t', agentq.now())", 1)],
)
def test_a_limit_holds_in_every_plan(
    misled: psycopg.Connection, statement: str, rows: int, without: tuple[str, ...]
) -> None:
    """
    A locking subquery with a limit is run once, not once for each row it is joined to.

    As a plain subquery, Postgres joined it from the other side: admission went past the tenant's cap,
    and a settlement that handed on its slot failed with "query returned more than one row".
    """
    with misled.transaction(force_rollback=True):
        for setting in without:
            misled.execute(f"set local {setting} = off")
        misled.execute("select set_config('agentq.tenant', 't', true)")
        woken = [row[0] for row in misled.execute(statement).fetchall() if row[0] is not None]
        admitted = misled.execute("select count(*) from agentq.ledger_entry where state = 'queued'").fetchone()

    assert len(woken) == rows
    assert admitted == (rows,)


BURST = """
with s as (insert into agentq.session (tenant, session_id, agent, agent_version, input, input_hash)
           select %(tenant)s, gen_random_uuid(), 'a', 1, '\\x0161', 'h' from generate_series(1, %(count)s)
           returning tenant, session_id)
insert into agentq.ledger_entry (tenant, session_id, step_id, seq, name, state, attempts_max, timeout_s, path,
                                 settled_at)
select tenant, session_id, gen_random_uuid(), 0, 's', %(state)s, 1, 1, gen_random_uuid(),
       case when %(state)s = 'done' then agentq.now() end from s
"""
WORKER = """
insert into agentq.worker (worker_id, lock_key, host, pid, worker_group, role, release, slots, serves, lease_until)
values (%s, 1, 'h', 1, 'default', 'steps', '0', 100, array['a@1'], agentq.now() + interval '1 day')
"""
# Pages that one call may look at, planning of its own included; of a table walked over it is ten times as many.
PAGES_MAX, PAGES_MAX_AFTER_MANY = 400, 160


def pages(connection: psycopg.Connection, statement: str, *values: object) -> int:
    """How many pages a call looked at."""
    [[plan]] = connection.execute(f"explain (analyze, buffers, format json) {statement}", values).fetchall()
    return int(plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"])


@pytest.mark.parametrize("before", ["ready", "done", "running", "others"])
def test_a_burst_that_no_analyze_has_seen_is_found_by_its_keys(databases: Databases, before: str) -> None:
    """
    A tenant's first flood is not in the statistics, and none of the hot path's statements walks over it.

    While they were, handing on a slot took a third of a second with twenty thousand steps in the backlog, for each
    settlement, until an analyze came by.
    """
    worker = uuid.uuid4()
    with databases.one() as database, psycopg.connect(database.admin_url, autocommit=True) as connection:
        execute = connection.execute
        for table in ("ledger_entry", "session", "session_tally"):
            execute(f"alter table agentq.{table} set (autovacuum_enabled = off)")
        execute("select set_config('agentq.tenant', '*', false)")
        execute("insert into agentq.tenant (name, concurrency) values ('t', 100), ('o', 100)")
        execute(WORKER, (worker,))
        if before == "others":
            execute(BURST, {"tenant": "o", "count": 500, "state": "done"})
        else:
            execute(BURST, {"tenant": "t", "count": 1, "state": "done" if before == "done" else "ready"})
        if before == "running":
            execute(
                "update agentq.ledger_entry set state = 'running', fence = 1, fence_token = 1,"
                " started_at = agentq.now(), worker = %s",
                (worker,),
            )
        for table in ("ledger_entry", "session", "session_tally"):
            execute(f"analyze agentq.{table}")
        for state in ("done", "ready"):
            execute(BURST, {"tenant": "t", "count": 5000, "state": state})

        found = {}
        for _ in range(2):  # the first of each reads catalogues, and does not count
            found["admit"] = pages(connection, "select agentq.admit('t', 5)")
            found["hand on"] = pages(connection, "select agentq.hand_on_slot('t', agentq.now())")
        execute("select set_config('agentq.tenant', '*', false)")
        queued = execute("select session_id, step_id from agentq.ledger_entry where state = 'queued'").fetchall()
        granted = "select * from agentq.claim('t', %s, %s, %s, 7, array['a@1'], false)"
        for session, step in queued[:2]:
            found["claim"] = pages(connection, granted, session, step, worker)
        settle = (
            "select * from agentq.settle('t', %s, %s, 1, 7, 'end', null, 'full', '\\x0161', null, null, 1,"
            " '\\x0161', null, null, null, null, null, null, null, %s)"
        )
        for session, step in queued[:2]:
            found["settle"] = pages(connection, settle, session, step, worker)
        execute("select set_config('agentq.tenant', '*', false)")
        ended = execute("select count(*) from agentq.session where state = 'done'").fetchone()

    assert ended == (2,)  # it was the statements themselves, not their refusals, that were measured
    # After as many rows as make an analyze worth while, the keys alone are looked at, of sessions too.
    assert max(found.values()) < (PAGES_MAX_AFTER_MANY if before == "others" else PAGES_MAX), found


TENANTS = "insert into agentq.tenant (name, concurrency) select 't' || i, 1 from generate_series(0, 19) i"
MANY = """
insert into agentq.session (tenant, session_id, agent, agent_version, input, input_hash, state, key, created_at)
select 't' || i % 19, gen_random_uuid(), 'a' || i % 17, 1, '{}', 'h',
       case when i % 23 = 0 then 'paused' else 'running' end, 'k' || i, agentq.now() - make_interval(secs => i)
  from generate_series(1, 8000) i
"""


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("all", "session_newest"),
        ("tenant", "session_recent"),
        ("tenant_state", "session_tenant_state"),
        ("agent", "session_agent"),
        ("state", "session_in_state"),
        ("named", "session_key"),
    ],
)
@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
def test_a_page_of_sessions_goes_by_its_index(misled: psycopg.Connection, name: str, index: str, mode: str) -> None:
    """
    Whatever is asked, and also by the plan that a prepared statement keeps: nothing reads or sorts the whole table.
    """
    of = {"tenant": "t3", "agent": "a3", "state": "paused", "key": None, "text": None, "low": None, "high": None}
    of |= {
        "before_at": "9999-01-01",
        "before_id": str(uuid.UUID(int=2**128 - 1)),
        "limit": 51,
        "look": 500,
        "within_input": True,
    }
    of |= {"key": "k7"} if name == "named" else {}
    with misled.transaction(force_rollback=True):
        misled.execute(TENANTS)
        misled.execute(MANY)
        misled.execute("analyze agentq.session")
        misled.execute(SQL["by_index"])
        misled.execute(f"set local plan_cache_mode = {mode}")
        rows = misled.execute("explain " + SQL[f"page_{name}"], of, prepare=True).fetchall()
        plan = "\n".join(row[0] for row in rows)
        assert index in plan, plan
        assert "Seq Scan on session" not in plan, plan
        assert "Sort" not in plan or name == "named", plan


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize(
    ("name", "index"), [("usual_cost", "session_agent"), ("usual_cost_of", "session_tenant_state|session_recent")]
)
def test_what_a_redrive_would_cost_is_read_from_an_index(
    misled: psycopg.Connection, name: str, index: str, mode: str
) -> None:
    """
    Backwards from the newest session of each agent, or of the tenant; whatever the number of sessions.
    """
    of = {"agents": ["a3", "a4"], "tenant": "t3", "limit": 200}
    with misled.transaction(force_rollback=True):
        misled.execute(TENANTS)
        misled.execute(MANY)
        misled.execute(
            "update agentq.session set state = 'done', result = '1', ended_at = now() where state = 'running'"
        )
        misled.execute("analyze agentq.session")
        misled.execute(SQL["by_index"])
        misled.execute(f"set local plan_cache_mode = {mode}")
        rows = misled.execute("explain " + load("dead_letters")[name], of, prepare=True).fetchall()
    plan = "\n".join(row[0] for row in rows)
    assert re.search(index, plan), plan
    assert "Seq Scan on session" not in plan, plan


OPEN = """
insert into agentq.approval (tenant, approval_id, session_id, step_id, fence, generation, kind, name, args, args_hash,
    question, groups, state, deadline_at, decided_at)
select tenant, gen_random_uuid(), session_id, gen_random_uuid(), 1, 0, 'ask', 'pay', '{}', 'h', '?', '{ops}',
       case when row_number() over () % 9 = 0 then 'open' else 'void' end, created_at + interval '9 days',
       case when row_number() over () % 9 > 0 then created_at end
  from agentq.session
"""


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("tenant", [None, "t3"])
def test_what_waits_for_people_is_read_by_its_deadline(
    misled: psycopg.Connection, tenant: str | None, mode: str
) -> None:
    """
    What was decided long ago costs nothing.
    """
    with misled.transaction(force_rollback=True):
        misled.execute(TENANTS)
        misled.execute(MANY)
        misled.execute(OPEN)
        misled.execute("analyze agentq.approval")
        misled.execute(f"set local plan_cache_mode = {mode}")
        of = {"tenant": tenant, "limit": 100}
        rows = misled.execute("explain " + load("approvals")["waiting"], of, prepare=True).fetchall()
    plan = "\n".join(row[0] for row in rows)
    assert "approval_deadline" in plan, plan
    assert "Seq Scan on approval" not in plan, plan


def test_sums_are_found_by_their_time(misled: psycopg.Connection) -> None:
    """
    Days and hours within the window alone, of years of them; attempts of an hour by the bounds of their pages.
    """
    rows = "select t, now() - interval '1 day' * i, k, 'a' || i % 7, 'm' || i % 5, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0"
    many = "from generate_series(1, 900) i, unnest(array['attempt', 'model', 'tool']) k, unnest(array['t', 'u', '*']) t"
    of = {"tenant": None, "agent": None, "by": ["model"], "parts": ["model"], "long": True}
    of |= {"since": datetime.now(UTC) - timedelta(days=30)}
    with misled.transaction(force_rollback=True):
        for table in ("spend_day", "spend_hour"):
            misled.execute(f"insert into agentq.{table} {rows} {many}")
            misled.execute(f"analyze agentq.{table}")
        misled.execute("update agentq.spend_mark set closed_until = now(), rolled_until = now(), days_until = now()")
        plan = "\n".join(row[0] for row in misled.execute("explain " + load("traces")["spend"], of).fetchall())
        # Attempts of all tenants by their time; of models the rows of all tenants together.
        for index in ("spend_day_time", "spend_hour_time", "spend_day_pk", "spend_hour_pk"):
            assert index in plan, plan
        assert "Seq Scan on spend_" not in plan.replace("spend_mark", ""), plan


SPENT = """
insert into agentq.spend_session (tenant, session_id, agent, day, first_at, last_at, uses, tokens_in, tokens_out,
                                  cost_micros, waste_micros, repairs, repair_micros)
select 't' || i %% 3, gen_random_uuid(), 'a' || i %% 7, date_trunc('day', at, 'UTC'),
       at - make_interval(secs => i %% 90), at, 1, 1, 1, 1 + i * 7919::bigint %% 10007, 0, 0, 0
  from generate_series(1, %(count)s) i,
       lateral (select agentq.now() - interval '1 hour' - interval '29 days' * i / %(count)s) x (at)
"""

DEAREST = """
select cost_micros from agentq.spend_session where %(tenant)s::text is null or tenant = %(tenant)s
 order by 1 desc limit 20
"""


@pytest.mark.parametrize("tenant", [None, "t1"])
def test_the_dearest_sessions_are_read_from_their_days_alone(misled: psycopg.Connection, tenant: str | None) -> None:
    """
    Of 150,000 sessions in thirty days, the dearest of each day by an index.
    """
    with misled.transaction(force_rollback=True):
        misled.execute(SPENT, {"count": 150_000})
        misled.execute("analyze agentq.spend_session")
        misled.execute(
            "update agentq.spend_mark set closed_until = now(), rolled_until = now(), sessions_until = now()"
        )
        [(since,)] = misled.execute("select agentq.spend_since(30 * 86400)").fetchall()
        asked = "select * from agentq.spend_of_sessions(%s, %s, null, 20)"
        looked_at = min(pages(misled, asked, since, tenant) for _ in range(2))
        told = misled.execute(asked, (since, tenant)).fetchall()
        most = misled.execute(DEAREST, {"tenant": tenant}).fetchall()
    assert [row[5] for row in told] == [row[0] for row in most]
    # Twenty rows of each day, each on a page of its own at worst; all of them are on three thousand.
    assert looked_at < 31 * (20 + 8), looked_at


TRACED = """
insert into agentq.trace (tenant, session_id, step_id, fence, ordinal, ended_at, kind, name, agent, agent_version, seq,
                          attempt, started_at, closing, tokens_in)
select 't', gen_random_uuid(), gen_random_uuid(), 1, 0, at, 'attempt', 's', 'a', 1, 0, 1, at, 'end', 1
  from generate_series(0, 12000) i, lateral (select now() - interval '25 hours' * i / 12000) x (at)
"""


def test_a_report_reads_some_minutes_of_traces(misled: psycopg.Connection) -> None:
    """
    What is not summed up yet; of the beginning of a window nothing.

    While it began to the second, a report of a day read up to two hours of traces.
    """
    now = datetime.now(UTC)
    summed = now - timedelta(minutes=7)
    with misled.transaction(force_rollback=True):
        misled.execute(TRACED)
        misled.execute("analyze agentq.trace")
        misled.execute("update agentq.spend_mark set closed_until = %(to)s, rolled_until = %(to)s", {"to": summed})
        # So that it would begin within an hour, whatever the time is.
        seconds = 23.5 * 3600 + now.minute * 60 + now.second
        [(since,)] = misled.execute("select agentq.spend_since(%s)", (seconds,)).fetchall()
        of = {
            "tenant": None,
            "agent": None,
            "by": ["model", "tool"],
            "parts": ["model", "tool"],
            "long": False,
            "since": since,
        }
        explained = f"explain (analyze, buffers, format json) {load('traces')['spend']}"
        for _ in range(2):
            [[plan]] = misled.execute(explained, of).fetchall()
    looked_at = plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"]
    minutes = 12000 / 25 / 60
    # An index or two for each session of those minutes, in each of a few weeks.
    assert looked_at < 10 * minutes * 2 * 10, looked_at


ODD = """
insert into agentq.anomaly (tenant, session_id, agent, agent_version, measure, rule, value, low, high, runs, why,
                            running, state, found_at, muted_at)
select tenant, session_id, agent, 1, 'cost', 'p99', 9, 1, 2, 500, 'dear', false,
       case when open then 'open' else 'muted' end, created_at, case when not open then created_at end
  from (select *, row_number() over () % 3 = 0 as open from agentq.session) s
"""


@pytest.mark.parametrize(
    ("name", "asked", "index"),
    [
        ("all", {"state": "open"}, "anomaly_open"),
        ("all", {}, "anomaly_newest"),
        ("all", {"agent": "a3", "state": "open"}, "anomaly_open"),
        ("tenant", {"tenant": "t3"}, "anomaly_tenant"),
        ("tenant", {"tenant": "t3", "state": "open", "agent": "a3"}, "anomaly_tenant"),
    ],
)
def test_a_page_of_anomalies_goes_by_its_index(
    misled: psycopg.Connection, name: str, asked: dict[str, str], index: str
) -> None:
    """
    From any place in the list on; sessions are looked up for those that are shown.
    """
    queries = load("anomalies")
    of = {"tenant": None, "agent": None, "state": None, "since": "0001-01-01", "before_at": "9999-01-01", "limit": 51}
    of |= {"before_id": str(uuid.UUID(int=0)), **asked}
    with misled.transaction(force_rollback=True):
        misled.execute(TENANTS)
        misled.execute(MANY)
        misled.execute(ODD)
        misled.execute("analyze agentq.anomaly")
        misled.execute("analyze agentq.session")
        misled.execute(queries["by_index"])
        plan = "\n".join(row[0] for row in misled.execute("explain " + queries[f"list_{name}"], of).fetchall())
        explained = f"explain (analyze, buffers, format json) {queries[f'list_{name}']}"
        for _ in range(2):
            [[told]] = misled.execute(explained, of).fetchall()
    assert index in plan, plan
    assert "Seq Scan" not in plan, plan
    assert "Sort" not in plan, plan
    # A row and its session's, by an index of a few floors.
    assert told[0]["Plan"]["Shared Hit Blocks"] + told[0]["Plan"]["Shared Read Blocks"] < 51 * 8, told


def test_a_look_for_what_no_index_serves_ends_soon(databases: Databases) -> None:
    """
    After so many sessions, the last of which comes back to go on from; sooner where enough are found.

    In a database of its own: among rows that other tests left behind, these would not lie side by side.
    """
    of = {"tenant": None, "agent": None, "state": None, "text": "nothing like it", "within_input": True, "limit": 51}
    of |= {"before_at": "9999-01-01", "before_id": str(uuid.UUID(int=2**128 - 1)), "look": 500}
    with databases.one() as database, psycopg.connect(database.admin_url) as connection:
        execute = connection.execute
        execute("select set_config('agentq.tenant', '*', true)")
        execute(TENANTS)
        execute(MANY)
        execute("analyze agentq.session")
        execute(SQL["by_index"])
        [last] = execute(SQL["page_all"], of).fetchall()
        looked_at = {}
        for text in ("nothing like it", "k"):
            explained = f"explain (analyze, buffers, format json) {SQL['page_all']}"
            for _ in range(2):
                [[told]] = execute(explained, of | {"text": text}).fetchall()
            looked_at[text] = told[0]["Plan"]["Shared Hit Blocks"] + told[0]["Plan"]["Shared Read Blocks"]
    assert last[9:] == (False, 500)
    # Of rows that lie side by side; all of them are on ten times as many pages.
    assert looked_at["k"] < looked_at["nothing like it"] < 60, looked_at
