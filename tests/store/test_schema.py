"""The schema: migrations equal the metadata, impossible rows are refused, tenants do not see each other."""

from __future__ import annotations

import types
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from agentq.embedded import Stack
from agentq.errors import ConfigError, StoreUnavailable
from agentq.store import migrate
from agentq.store.anomalies import Anomalies, Tally
from agentq.store.budgets import Budgets, Wanted
from agentq.store.dependencies import Breakers, Report
from agentq.store.effects import Effects
from agentq.store.memory import Memories
from agentq.store.operators import Operators
from agentq.store.pool import Store, name_tenant
from agentq.store.rates import StoredRates
from agentq.store.schema import TENANT_TABLES, metadata
from agentq.store.sessions import Sessions
from agentq.verdicts import Decision, Extras, Granted, MemoryWrite, TraceEvent
from tests.conftest import new_tenant
from tests.support.breakers import RULES
from tests.support.hands import Hands, at_once, new_ask, step

# ── migrations ───────────────────────────────────────────────────────────────


def test_migrations_make_what_the_metadata_says(servers: Any) -> None:
    """
    After every migration, the tables in Postgres are the tables in `schema.py`, to the last index.
    """
    status = migrate.check(servers.admin_url)
    assert status.differences == ()
    assert status.pending == ()
    assert status.ready
    assert status.current == status.head


def test_check_constraints_are_those_of_the_metadata(admin: psycopg.Connection[Any]) -> None:
    """
    Alembic does not compare check constraints, so this does: by name, for every table.
    """
    for table in metadata.sorted_tables:
        rows = admin.execute(
            "select conname from pg_constraint where contype = 'c' and conrelid = %s::regclass", (table.fullname,)
        ).fetchall()
        declared = {str(c.name) for c in table.constraints if type(c).__name__ == "CheckConstraint"}
        assert {row[0] for row in rows} == declared


def test_an_alteration_by_hand_is_found(servers: Any, admin: psycopg.Connection[Any]) -> None:
    """
    `db check` tells what somebody changed in the database itself.
    """
    admin.execute("alter table agentq.refused_submission add column extra text")
    try:
        status = migrate.check(servers.admin_url)
        assert not status.ready
        assert "extra" in status.differences[0]
    finally:
        admin.execute("alter table agentq.refused_submission drop column extra")


@pytest.mark.parametrize(
    "damage", ["disable row level security", "no force row level security", "drop policy tenant_rows"]
)
def test_row_security_that_is_gone_is_found_and_put_back(scratch: str, damage: str) -> None:
    """
    I8: `db check`, and with it `doctor`, says which table shows every tenant's rows; `db upgrade` mends it.
    """
    migrate.upgrade(scratch)
    with psycopg.connect(scratch, autocommit=True) as owner:
        drops = damage.startswith("drop")
        owner.execute(f"{damage} on agentq.memory" if drops else f"alter table agentq.memory {damage}")
    status = migrate.check(scratch)
    assert not status.ready
    assert status.differences == ("row security of agentq.memory is off or has no policy: run `agentq db upgrade`",)
    migrate.upgrade(scratch)
    assert migrate.check(scratch).ready


def test_upgrading_again_changes_nothing(servers: Any) -> None:
    """
    A second upgrade, or four at once from four machines, finds nothing to do.
    """
    assert at_once(*[lambda: migrate.upgrade(servers.admin_url)] * 4) == [[], [], [], []]


@pytest.fixture
def scratch(stack: Stack) -> Iterator[str]:
    """A database of its own, not migrated."""
    name = f"scratch_{uuid.uuid4().hex[:8]}"
    with stack.postgres._connect("postgres") as superuser:
        superuser.execute(f"create database {name} owner agentq_owner")
    yield stack.postgres._url("agentq_owner", name)
    with stack.postgres._connect("postgres") as superuser:
        superuser.execute(f"drop database {name} with (force)")


def test_a_deploy_has_two_phases(scratch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Before the deploy, the migrations stop ahead of the first that must wait for the old release to be gone.
    """
    pending = migrate._pending

    class Later:
        revision = "0099_later"
        module = types.SimpleNamespace(phase="after")

    ran: list[str] = []
    monkeypatch.setattr(migrate, "_pending", lambda connection: [*pending(connection), Later()])
    monkeypatch.setattr(migrate.command, "upgrade", lambda config, revision: ran.append(revision))
    before = [script.revision for script in reversed(list(migrate._scripts().iterate_revisions("head", "base")))]
    assert migrate.upgrade(scratch, phase="before") == before
    assert before[0] == "0001_ledger"
    assert ran == before[-1:]
    monkeypatch.setattr(migrate, "_pending", lambda connection: [Later()])
    assert migrate.upgrade(scratch, phase="before") == []


def test_a_schema_that_was_never_made_is_not_ready(scratch: str) -> None:
    """
    Checking a fresh database tells what is missing, and makes nothing.
    """
    status = migrate.check(scratch)
    assert (status.ready, status.current) == (False, None)
    assert status.pending
    with psycopg.connect(scratch) as connection:
        assert connection.execute("select to_regclass('agentq.session')").fetchone() == (None,)


def test_the_fleets_role_may_not_migrate(stack: Stack, scratch: str) -> None:
    """
    The fleet cannot change its own tables, and the error names the setting that helps.
    """
    migrate.upgrade(scratch, fleet_role="agentq_fleet")
    with stack.postgres._connect(scratch.rpartition("/")[2]) as superuser:
        superuser.execute(f"grant connect on database {scratch.rpartition('/')[2]} to agentq_fleet")
    fleet = stack.postgres._url("agentq_fleet", scratch.rpartition("/")[2])
    with pytest.raises(ConfigError, match="AGENTQ_ADMIN_DATABASE_URL"):
        migrate.upgrade(fleet)


def test_a_postgres_that_is_not_there_is_said_to_be_away() -> None:
    """
    No stack trace of three libraries: one error, one line.
    """
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        migrate.upgrade("postgresql://nobody@127.0.0.1:9/none?connect_timeout=1")


def test_the_fleet_can_change_neither_record_nor_table(store: Store, tenant: str) -> None:
    """
    What operators did is written and read, never altered; and no table is the fleet's to drop.
    """
    for statement in (
        "delete from agentq.operator_action",
        "update agentq.operator_action set reason = ''",
        "drop table agentq.message",
        "alter table agentq.session disable row level security",
        "update agentq.schema_version set version_num = ''",
    ):
        with store.transaction(tenant) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement)


# ── impossible rows ──────────────────────────────────────────────────────────

IMPOSSIBLE = {
    "tenant": [
        ("name", "name = 'Not A Name'"),
        ("state", "state = 'asleep'"),
        ("concurrency", "concurrency = 0"),
        ("weight", "weight = 0"),
        ("retention_days", "retention_days = 0"),
        ("memory_days", "memory_days = -1"),
        ("trace_content", "trace_content = 'loud'"),
        ("placement", "placement = 'nowhere'"),
        ("worker_group", "worker_group = 'quarantine'"),
        ("shard", "shard = -1"),
    ],
    "session": [
        ("agent", "agent = 'Robot!'"),
        ("agent_version", "agent_version = 0"),
        ("state", "state = 'asleep'"),
        ("ended", "ended_at = now()"),
        ("ended", "state = 'failed', failure = '{}'"),
        ("result", "result = 'x'"),
        ("result", "state = 'done', ended_at = now()"),
        ("failure", "failure = '{}'"),
        ("failure", "state = 'failed', ended_at = now()"),
        ("hold", "hold = '{}'"),
        ("generation", "generation = -1"),
        ("parent", "parent_session = gen_random_uuid(), parent_branch = 0"),
        ("branch", "parent_session = gen_random_uuid(), parent_join = gen_random_uuid()"),
    ],
    "ledger_entry": [
        ("state", "state = 'asleep'"),
        ("worker", "worker = gen_random_uuid()"),
        ("worker", "state = 'running', fence_token = 1"),
        ("token", "fence_token = 1"),
        ("token", "state = 'running', worker = gen_random_uuid()"),
        ("settled", "settled_at = now()"),
        ("settled", "state = 'done'"),
        ("queued", "state = 'queued', queued_at = null"),
        ("waiting", "state = 'waiting'"),
        ("dead", "state = 'dead', settled_at = now()"),
        ("waits_for", "waits_for = 1"),
        ("waits_for", "fan = 1, waits_for = -1"),
        ("branch", "join_step = null"),
        ("branch", "branch = null"),
        ("attempt", "attempt = 1"),
        ("attempt", "attempt = -1"),
        ("superseded", "superseded = 1"),
        ("unserved", "unserved = 'robot@1'"),
        ("counts", "attempts_max = 0"),
        ("counts", "seq = -1"),
        ("counts", "crashes = -1"),
        ("uncounted", "repairs = -1"),
        ("uncounted", "refusals = -1"),
        ("uncounted", "blamed = -1"),
    ],
    "checkpoint": [
        ("kind", "kind = 'half'"),
        ("state", "state = null"),
        ("state", "kind = 'same'"),
        ("parent", "parent = gen_random_uuid()"),
        ("parent", "kind = 'delta'"),
        ("usage", "cost_micros = -1"),
        ("usage", "tokens_in = -1"),
        ("usage", "tokens_out = -1"),
    ],
    "branch": [
        ("state", "state = 'ajar'"),
        ("result", "result = 'x'"),
        ("result", "state = 'done'"),
        ("failure", "failure = '{}'"),
        ("failure", "state = 'failed'"),
    ],
    "message": [("seq", "seq = 0")],
    "effect": [
        ("state", "state = 'maybe', settled_at = now()"),
        ("result", "result = 'x'"),
        ("result", "state = 'done', settled_at = now()"),
        ("settled", "settled_at = now()"),
        ("settled", "state = 'unknown', failure = '{}'"),
        ("failure", "state = 'unknown', settled_at = now()"),
        ("failure", "state = 'failed', settled_at = now()"),
        ("calls", "calls = 0"),
    ],
    "trace": [
        ("ordinal", "kind = 'model'"),
        ("ordinal", "ordinal = -ordinal - 1, kind = 'x', closing = null"),
        ("closing", "closing = case ordinal when 0 then null else closing end"),
        ("closing", "closing = 'next'"),
        ("usage", "cost_micros = -1"),
        ("usage", "tokens_in = -1"),
        ("usage", "tokens_out = -1"),
    ],
    "decision": [("confidence", "confidence = 1.5"), ("confidence", "confidence = -1")],
    "approval": [
        ("state", "state = 'maybe', decided_at = now()"),
        ("kind", "kind = 'plea'"),
        ("effect_key", "effect_key = 'k'"),
        ("effect_key", "kind = 'effect'"),
        ("decided", "decided_at = now()"),
        ("decided", "state = 'void'"),
        ("decided_by", "decided_by = 'ada', decided_via = 'login'"),
        ("decided_by", "state = 'granted', decided_at = now()"),
        ("decided_via", "decided_via = 'login'"),
        ("edited", "edited = 'x', edited_hash = 'h'"),
        ("edited_hash", "edited_hash = 'h'"),
        (
            "deadline",
            "state = 'granted', decided_by = 'ada', decided_via = 'login', "
            "decided_at = deadline_at + interval '1 microsecond'",
        ),
        ("groups", "groups = '{}'"),
    ],
    "notice": [
        ("kind", "kind = 'gossip'"),
        ("channel", "channel = 'pigeon'"),
        ("state", "state = 'lost'"),
        ("sent", "state = 'sent'"),
        ("sent", "sent_at = now()"),
        ("of_anomaly", "kind = 'anomaly'"),
        ("of_one", "approval_id = null"),
    ],
    "session_tally": [("counts", "steps = -1"), ("counts", "cost_micros = -1")],
    "anomaly_baseline": [("runs", "runs = -1")],
    "anomaly": [("state", "state = 'asleep'"), ("muted", "state = 'muted'"), ("muted", "muted_at = now()")],
    "anomaly_order": [("action", "action = 'shout'"), ("tenant", "tenant = 'Not A Name'"), ("agent", "agent = 'No!'")],
    "budget": [
        ("scope", "scope = 'galaxy'"),
        ("period", "period = 'year'"),
        ("of_session", "period = 'session'"),
        ("subject", "scope = 'agent'"),
        ("of_tenant", "subject = 'x'"),
        ("on_refusal", "on_refusal = 'shrug'"),
        ("never_opens", "scope = 'session', period = 'session'"),
        ("amounts", "cost_micros = -1"),
        ("amounts", "tokens = -1"),
        ("limit", "cost_micros = null, tokens = null"),
    ],
    "budget_window": [
        ("scope", "scope = 'galaxy'"),
        ("period", "period = 'year'"),
        ("reserved", "reserved_micros = -1"),
        ("reserved", "reserved_tokens = -1"),
        ("spent", "spent_micros = -1"),
        ("spent", "spent_tokens = -1"),
    ],
    "reservation": [
        ("state", "state = 'lost', settled_at = now(), settled_by = 'x'"),
        ("settled", "settled_at = now()"),
        ("settled_by", "settled_by = 'relay'"),
        ("charged", "used_input = 1, used_output = 1"),
        ("used", "state = 'charged', settled_at = now(), settled_by = 'x', used_input = 1"),
        ("wanted", "reserved_micros = -1"),
        ("got", "charged_micros = -1"),
    ],
    "rate_limit": [
        ("amounts", "requests_per_min = 0"),
        ("amounts", "tokens_per_min = 0"),
        ("learned", "learned_requests = 0"),
        ("learned", "learned_tokens = 0"),
    ],
    "tenant_key": [
        ("state", "state = 'lost', wrapped = 'w', destroyed_at = null"),
        ("wrapped", "wrapped = 'w'"),
        ("destroyed", "destroyed_at = null"),
        ("key_no", "key_no = 0"),
    ],
    "api_token": [("digest", "digest = 'short'"), ("tenants", "tenants = '{}'"), ("agents", "agents = '{}'")],
    "budget_alert": [("threshold", "threshold = 42")],
    "spend_hour": [("kind", "kind = 'guess'")],
    "spend_day": [("kind", "kind = 'guess'")],
    "spend_mark": [
        ("one", "one = 2"),
        ("closing", "closing_until = null, waits_for = '{}'"),
        ("order", "rolled_until = 'infinity', closed_until = now()"),
        ("sessions", "sessions_until = 'infinity', rolled_until = now(), closed_until = now(), days_until = null"),
    ],
    "spend_session": [("times", "first_at = last_at + interval '1 s'")],
    "model_price": [("amounts", "input_micros = -1"), ("model", "model = 'nobodys'")],
    "worker": [
        ("state", "state = 'asleep'"),
        ("role", "role = 'boss'"),
        ("stopped", "state = 'dead'"),
        ("stopped", "stopped_at = now()"),
    ],
    "dependency": [
        ("name", "name = 'Not A Name'"),
        ("tenant", "tenant = 'Not A Name'"),
        ("state", "state = 'ajar'"),
        ("probe", "state = 'open', probe_at = null"),
        ("forced", "forced_until = now()"),
    ],
    "memory": [
        ("version", "version = 0"),
        ("name", "key = ''"),
        ("value", "value = null"),
        ("embedded_by", "embedding = null"),
        ("embedding", "gone_at = now()"),
        ("step", "step_id = null"),
    ],
    "dependency_window": [("counts", "ok = -1"), ("counts", "bad = -1")],
    "dead_letter": [
        ("state", "state = 'asleep'"),
        ("redriving", "state = 'redriving'"),
        ("counts", "generation = -1"),
        ("counts", "cost_micros = -1"),
        ("counts", "effects_pending = -1"),
        ("counts", "effects_unknown = -1"),
    ],
    "poison_message": [("counts", "times = 0"), ("counts", "size_bytes = 1")],
    "redrive_job": [
        ("state", "state = 'asleep'"),
        ("ended", "ended_at = now()"),
        ("ended", "state = 'done'"),
        ("cursor", "cursor_at = now()"),
    ],
    "redrive_policy": [
        ("name", "name = 'Not A Name'"),
        ("bounds", "quiet_s = -1"),
        ("bounds", "canary = 0"),
        ("bounds", "rate_per_s = 0"),
        ("bounds", "max_generation = 0"),
        ("threshold", "threshold = 0"),
        ("threshold", "threshold = 1.5"),
    ],
}


def fill_dependencies(hands: Hands) -> None:
    """A breaker that is half open, with a probe out and a failure in its window."""
    breakers = Breakers(hands.store, {**RULES, "volume_min": 1, "pause_s": 0.0})
    scope = (hands.tenant, "stripe")
    breakers.report([Report(scope, bad=1)])
    assert breakers.claim_probe(scope).probe is not None
    window = "insert into agentq.dependency_window (tenant, name, slot) values (%s, 'stripe', 1) returning slot"
    hands.rows(window, hands.tenant)


EVENT = TraceEvent("model", "robot-1", 0.0, 0.1)
KNOWN = MemoryWrite(
    "put", "shop", "tea", b"h", value=b'"oolong"', text="oolong", embedding=(1.0,), embedded_by="test@1"
)
CHOICE = Decision(0.0, b'["pay", "ask"]', "ask", confidence=0.5)


@pytest.fixture(scope="module")
def filled(store: Store, admin: psycopg.Connection[Any]) -> Iterator[Hands]:
    """A tenant with a row in every table."""
    hands = Hands(store, new_tenant(admin))
    fill(hands)
    yield hands
    hands.close()


def fill(hands: Hands) -> None:
    """A row in every tenant table."""
    claim = hands.begin()
    Effects(hands.store).claim(claim, "k", name="pay", args_hash=b"h", durable=False)
    fill_keys(hands)
    fill_budgets(hands, claim)
    fill_spend(hands, claim)
    fill_anomalies(hands, claim)
    join = step("join", fan=1)
    arm = step("arm", join_step=join.step_id, branch=0)
    question = new_ask(arm, channels=("webhook",))
    hands.settle(
        claim,
        "next",
        steps=(join, arm),
        extras=Extras(((b"1", "me"),), trace=(EVENT,), decisions=(CHOICE,), memories=(KNOWN,)),
        asks=(question,),
    )
    hands.ledger.add_event(claim.ref, "progress", b"{}")
    hands.settle(hands.begin(), "dead")
    fill_dependencies(hands)
    hands.rows("select agentq.keep_poison(%s, 'q', 'is no message', 'd', 'body', 4)", hands.tenant)
    Operators(hands.store).refuse_submission(tenant=hands.tenant, reason="no such agent", body=b"body")
    hands.rows(
        "insert into agentq.redrive_job (job_id, same_as, operator, reason, selection, terms, state, until)"
        " values (gen_random_uuid(), %s, %s, 'why', '{}', '{}', 'running', now()) returning job_id",
        hands.tenant,
        hands.tenant,
    )
    hands.rows(
        "insert into agentq.redrive_policy (name, selection, quiet_s, canary, threshold, rate_per_s, max_generation,"
        " operator, reason, enabled) values (%s, '{}', 60, 1, 1, 1, 1, 'me', 'why', false) returning name",
        hands.tenant,
    )


def fill_keys(hands: Hands) -> None:
    # Destroyed: the other rows here are plain, and workers of other tests have no provider.
    hands.rows(
        "insert into agentq.tenant_key (tenant, key_no, kek, state, destroyed_at)"
        " values (%s, 99, 'k', 'destroyed', now()) returning key_no",
        hands.tenant,
    )
    hands.rows(
        "insert into agentq.api_token (name, digest, tenants, created_by) values"
        " (%s, sha256('t'), array[%s], 'me') returning name",
        hands.tenant,
        hands.tenant,
    )


def fill_anomalies(hands: Hands, claim: Granted) -> None:
    anomalies = Anomalies(hands.store)
    tally = Tally(hands.tenant, claim.ref.session_id, "robot", 1, 9, 0, 0, 0, 0, None, None)
    facts: dict[str, Any] = {"value": 9.0, "low": 1.0, "high": 2.0, "runs": 200, "why": "9 steps", "running": True}
    anomalies.raise_(tally, session=claim.ref.session_id, measure="steps", rule="p99", channels=(), **facts)
    with hands.store.transaction("*") as connection:
        anomalies.hold(connection, [tally.whose])
    anomalies.order(hands.tenant, "robot", "", "flag", for_s=None, operator="test", reason="filled")


def fill_spend(hands: Hands, claim: Granted) -> None:
    for table in ("spend_hour", "spend_day"):
        hands.rows(
            f"insert into agentq.{table} values (%s, now(), 'attempt', 'robot', '', 1, 1, 1, 1, 1, 0, 0, 0, 0, 0)"
            " returning tenant",
            hands.tenant,
        )
    hands.rows(
        "insert into agentq.spend_session values"
        " (%s, %s, 'robot', now(), now(), now(), 1, 1, 1, 1, 0, 0, 0) returning tenant",
        hands.tenant,
        claim.ref.session_id,
    )


def fill_budgets(hands: Hands, claim: Granted) -> None:
    budgets, who = Budgets(hands.store), {"operator": "test", "reason": "filled"}
    budgets.set_budget(hands.tenant, "tenant", "", "day", micros=1, tokens=None, on_refusal="wait", **who)
    budgets.set_price(f"test:{hands.tenant}", (1, 1, 1), **who)
    StoredRates(hands.store).set(hands.tenant, "test", requests=1, tokens=1, **who)
    for number, micros in enumerate((1, 2)):  # the second one is refused, which is an alert
        budgets.reserve(claim, Wanted(f"{claim.ref.session_id}:{number}", "test", "model", 1, 1, micros, "test"))


def test_every_check_constraint_has_an_impossible_row() -> None:
    """
    A constraint that is added gets its impossible row here.
    """
    for table in metadata.sorted_tables:
        declared = {str(c.name) for c in table.constraints if type(c).__name__ == "CheckConstraint"}
        assert {f"{table.name}_{name}" for name, _ in IMPOSSIBLE.get(table.name, [])} == declared, table.name


@pytest.mark.parametrize(
    ("table", "constraint", "change"),
    [(table, name, change) for table, rows in IMPOSSIBLE.items() for name, change in rows],
)
def test_the_database_refuses_the_impossible(
    filled: Hands, admin: psycopg.Connection[Any], table: str, constraint: str, change: str
) -> None:
    """
    Whatever code does wrong, such a row cannot be.
    """
    where = {
        "tenant": f"name = '{filled.tenant}'",
        # One that runs: an ended one would break two laws at once, and which is told hangs on the plan.
        "session": f"tenant = '{filled.tenant}' and state = 'running'",
        "worker": f"worker_id = '{filled.worker}'",
        "ledger_entry": f"tenant = '{filled.tenant}' and name = 'arm'",
        "redrive_job": f"operator = '{filled.tenant}'",
        "redrive_policy": f"name = '{filled.tenant}'",
        "budget_window": f"tenant = '{filled.tenant}' and scope = 'session'",
        "api_token": f"name = '{filled.tenant}'",
        "model_price": f"model = 'test:{filled.tenant}'",
        "spend_mark": "true",
    }.get(table, f"tenant = '{filled.tenant}'")
    with pytest.raises(psycopg.errors.CheckViolation) as raised, admin.transaction():
        admin.execute(f"update agentq.{table} set {change} where {where}")
    assert raised.value.diag.constraint_name == f"{table}_{constraint}"


# ── row security ─────────────────────────────────────────────────────────────

TABLES = [table.name for table in TENANT_TABLES]


def test_every_table_with_a_tenant_is_guarded() -> None:
    """
    I8: a table that gets a tenant column gets row security; those open to the fleet are named here, and have none.
    """
    with_tenant = {table.name for table in metadata.sorted_tables if "tenant" in table.c}
    assert with_tenant == set(TABLES)
    assert {table.name for table in metadata.sorted_tables} - with_tenant == {
        "tenant", "worker", "slot_use", "api_token", "model_price", "rate_bucket", "rate_caller", "redrive_job",
        "redrive_policy", "memory_words", "trace_export", "spend_mark",
    }  # fmt: skip


def test_every_relation_that_postgres_has_is_guarded(admin: psycopg.Connection[Any]) -> None:
    """
    I8: also partitions, and whatever somebody made by hand: with a tenant in it, row security is on and forced, and
    one policy lets through what the transaction has named.
    """
    rows = admin.execute(
        "select c.relname, c.relrowsecurity, c.relforcerowsecurity,"
        " (select count(*) from pg_policy where polrelid = c.oid)"
        " from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant' and not a.attisdropped"
        " where c.relnamespace = 'agentq'::regnamespace and c.relkind in ('r', 'p', 'v', 'm')"
    ).fetchall()
    assert len(rows) > len(TABLES), "partitions are among them"
    assert {row[0] for row in rows if row[1:] != (True, True, 1)} == set()


def visible(connection: psycopg.Connection[Any], table: str) -> set[str]:
    return {row[0] for row in connection.execute(f"select tenant from agentq.{table}").fetchall()}


@pytest.mark.parametrize("table", TABLES)
def test_a_tenant_sees_its_own_rows_only(filled: Hands, store: Store, other_tenant: str, table: str) -> None:
    """
    I8: who names tenant A sees A's rows, who names B sees none of them, who names nobody sees nothing.
    """
    with store.transaction(filled.tenant) as connection:
        assert visible(connection, table) == {filled.tenant}
    with store.transaction(other_tenant) as connection:
        assert visible(connection, table) == set()
    with store.connection() as connection:
        assert visible(connection, table) == set()


@pytest.mark.parametrize("table", TABLES)
def test_a_tenant_changes_its_own_rows_only(filled: Hands, store: Store, other_tenant: str, table: str) -> None:
    """
    I8: updates and deletes do not reach another tenant's rows, and no row moves to another tenant.
    """
    with store.transaction(other_tenant) as connection:
        if table != "operator_action":  # which the fleet alters in no case
            assert connection.execute(f"delete from agentq.{table}").rowcount == 0
            assert connection.execute(f"update agentq.{table} set tenant = tenant").rowcount == 0
    with store.transaction(filled.tenant) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(f"update agentq.{table} set tenant = %s", (other_tenant,))


def test_no_query_of_a_tenant_sees_another(filled: Hands, store: Store, other_tenant: str) -> None:
    """
    I8: whatever is asked of the client in tenant B's name, none of A's rows is in the answer.
    """
    claims = filled.rows("select session_id from agentq.session")
    budgets, sessions = Budgets(store), Sessions(store)
    for session_id in [row["session_id"] for row in claims]:
        assert budgets.ledger(other_tenant, session_id) == []
        assert sessions.state(other_tenant, session_id) is None
        assert sessions.find(str(session_id), other_tenant) == []
        for read in (sessions.steps, sessions.settled_steps, sessions.effects, sessions.children):
            assert list(read(other_tenant, session_id)) == []
        assert sessions.events(other_tenant, session_id, 0) == []
    assert sessions.listing(tenant=other_tenant) == []
    memories = Memories(store)
    assert memories.get(filled.tenant, "shop", "tea") is not None
    assert memories.get(other_tenant, "shop", "tea") is None
    assert memories.below(other_tenant, "", limit=9) == memories.versions(other_tenant, "shop", "tea") == []
    assert memories.search(other_tenant, "", "oolong", language="simple", limit=9) == []
    assert budgets.windows(other_tenant) == budgets.budgets(other_tenant) == budgets.alerts(other_tenant) == []


@pytest.mark.parametrize("table", TABLES)
def test_the_walk_notices_a_policy_that_is_gone(
    filled: Hands, admin: psycopg.Connection[Any], other_tenant: str, table: str
) -> None:
    """
    I8: without its row security a table would show A's rows to B, so the tests above would fail.
    """
    assert filled.tenant
    with admin.transaction(force_rollback=True):
        admin.execute("select set_config('agentq.tenant', %s, true)", (other_tenant,))
        assert visible(admin, table) == set()  # forced: the owner is bound as well
        admin.execute(f"alter table agentq.{table} disable row level security")
        assert filled.tenant in visible(admin, table)


def test_the_name_of_a_tenant_ends_with_its_transaction(filled: Hands, store: Store) -> None:
    """
    A pooled connection does not remember whose rows it saw last.
    """
    with store.connection() as connection:
        with connection.transaction():
            name_tenant(connection, filled.tenant)
            assert visible(connection, "session") == {filled.tenant}
        assert visible(connection, "session") == set()


def test_the_fleets_role_does_not_escape_row_security(servers: Any, stack: Stack) -> None:
    """
    `db check` says when the fleet connects as a role to which row security means nothing.
    """
    assert not migrate.check(stack.postgres.url).bypasses_row_security
    assert migrate.check(stack.postgres._url("postgres")).bypasses_row_security


def test_the_sql_of_the_packages_needs_no_tenant_in_python() -> None:
    """
    House rule: no SQL in Python outside migrations and the pool's own naming of the tenant.
    """
    root = Path(migrate.__file__).parents[1]
    allowed = {"store/pool.py", "store/migrate.py", "store/ledger.py"}
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        if name in allowed or "/migrations/" in name:
            continue
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            text = line.strip().lower()
            assert not text.startswith(('"select ', '"update agentq', '"insert into', '"delete from')), (
                f"{name}:{number}"
            )
