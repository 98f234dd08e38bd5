"""
The schema: every table, and the rows that Postgres itself refuses.

`tenant` leads every key. Payload columns (`bytea`) hold JSON text as bytes; a first byte below 0x20
marks another encoding. Functions and row security stand in `sql/functions.sql` and `sql/security.sql`.

Locks are taken in one order: a child's session before its parent's, a session before its ledger
entries, entries by id. Admission takes the tenant's advisory lock before any row.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, REAL

SCHEMA = "agentq"

metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "pk": "%(table_name)s_pk",
        "ix": "%(table_name)s_%(column_0_name)s",
        "uq": "%(table_name)s_%(column_0_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s",
        "fk": "%(table_name)s_%(column_0_name)s_fk",
    },
)

_NAME = "~ '^[a-z0-9][a-z0-9_-]{0,62}$'"
NOW = text("agentq.now()")


def _one_of(column: str, values: tuple[str, ...]) -> str:
    return f"{column} in ({', '.join(repr(value) for value in values)})"


TENANT_STATES = ("active", "paused", "draining")
SESSION_LIVE = ("running", "paused")
SESSION_ENDED = ("done", "failed", "cancelled")
ENTRY_LIVE = ("ready", "queued", "running", "waiting", "held")
ENTRY_ENDED = ("done", "dead", "cancelled")


def _time(name: str, *, nullable: bool = True, now: bool = False) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=nullable, server_default=NOW if now else None)


tenant = Table(
    "tenant",
    metadata,
    Column("name", Text, primary_key=True),
    Column("state", Text, nullable=False, server_default="active"),
    Column("concurrency", Integer, nullable=False, comment="steps admitted to the broker or running, at most"),
    Column("weight", REAL, nullable=False, server_default="1"),
    Column("shedding", Boolean, nullable=False, server_default=text("false"), comment="above a lowered cap"),
    _time("created_at", nullable=False, now=True),
    _time("changed_at", nullable=False, now=True),
    CheckConstraint(f"name {_NAME}", name="name"),
    CheckConstraint(_one_of("state", TENANT_STATES), name="state"),
    CheckConstraint("concurrency > 0", name="concurrency"),
    CheckConstraint("weight > 0", name="weight"),
)

session = Table(
    "session",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("session_id", Uuid, primary_key=True),
    Column("agent", Text, nullable=False),
    Column("agent_version", Integer, nullable=False),
    Column("key", Text, comment="the caller's idempotency key"),
    Column("state", Text, nullable=False, server_default="running"),
    Column("input", LargeBinary, nullable=False),
    Column("input_hash", LargeBinary, nullable=False, comment="of agent and input: a reused key must mean the same"),
    Column("result", LargeBinary),
    Column("failure", JSONB),
    Column("priority", SmallInteger, nullable=False, server_default="0", comment="lower goes first"),
    Column("parent_session", Uuid),
    Column("parent_join", Uuid, comment="the parent's step that waits for this session"),
    Column("parent_branch", Integer),
    _time("deadline_at"),
    _time("created_at", nullable=False, now=True),
    _time("ended_at"),
    ForeignKeyConstraint(["tenant"], ["agentq.tenant.name"]),
    CheckConstraint(f"agent {_NAME}", name="agent"),
    CheckConstraint("agent_version > 0", name="agent_version"),
    CheckConstraint(_one_of("state", SESSION_LIVE + SESSION_ENDED), name="state"),
    CheckConstraint(f"({_one_of('state', SESSION_ENDED)}) = (ended_at is not null)", name="ended"),
    CheckConstraint("(state = 'done') = (result is not null)", name="result"),
    CheckConstraint("(state in ('failed', 'cancelled')) = (failure is not null)", name="failure"),
    CheckConstraint("(parent_session is null) = (parent_join is null)", name="parent"),
    CheckConstraint("(parent_session is null) = (parent_branch is null)", name="branch"),
    Index("session_key", "tenant", "key", unique=True, postgresql_where=text("key is not null")),
    Index("session_recent", "tenant", "created_at"),
    Index(
        "session_deadline",
        "deadline_at",
        postgresql_where=text("deadline_at is not null and state in ('running', 'paused')"),
    ),
    Index(
        "session_children",
        "tenant",
        "parent_session",
        postgresql_where=text("parent_session is not null and state in ('running', 'paused')"),
    ),
)

ledger_entry = Table(
    "ledger_entry",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("session_id", Uuid, primary_key=True),
    Column("step_id", Uuid, primary_key=True),
    Column("seq", Integer, nullable=False, comment="distance from the session's first step"),
    Column("name", Text, nullable=False, comment="the agent's step that runs"),
    Column("state", Text, nullable=False),
    Column("fence", Integer, nullable=False, server_default="0", comment="claims so far; grows with each lease"),
    Column("fence_token", BigInteger, comment="random, new with each claim: a claim lost in a crash is not the next"),
    Column("attempt", Integer, nullable=False, server_default="0", comment="attempts that count against the limit"),
    Column("attempts_max", Integer, nullable=False),
    Column("crashes", SmallInteger, nullable=False, server_default="0", comment="workers that died under it"),
    Column("quarantine", Boolean, nullable=False, server_default=text("false")),
    Column("worker", Uuid),
    Column("priority", SmallInteger, nullable=False, server_default="0"),
    Column("dispatches", SmallInteger, nullable=False, server_default="0", comment="repeats of a missing message"),
    _time("due_at", nullable=False, now=True),
    _time("queued_at"),
    _time("started_at"),
    _time("settled_at"),
    Column("timeout_s", REAL, nullable=False),
    Column("state_from", Uuid, comment="the checkpoint with the state this step begins from; null: the input"),
    Column("args", LargeBinary),
    Column("join_step", Uuid, comment="the join that this step's branch belongs to"),
    Column("branch", Integer),
    Column("fan", Integer, nullable=False, server_default="0", comment="branches this join waits for, in all"),
    Column("waits_for", Integer, nullable=False, server_default="0", comment="branches still open"),
    Column("collect", Boolean, nullable=False, server_default=text("false"), comment="failed branches are values"),
    Column("failure", JSONB, comment="of the latest failed attempt"),
    ForeignKeyConstraint(["tenant", "session_id"], ["agentq.session.tenant", "agentq.session.session_id"]),
    CheckConstraint(_one_of("state", ENTRY_LIVE + ENTRY_ENDED), name="state"),
    CheckConstraint("(state = 'running') = (worker is not null)", name="worker"),
    CheckConstraint("(state = 'running') = (fence_token is not null)", name="token"),
    CheckConstraint(f"({_one_of('state', ENTRY_ENDED)}) = (settled_at is not null)", name="settled"),
    CheckConstraint("state <> 'queued' or queued_at is not null", name="queued"),
    CheckConstraint("state <> 'waiting' or waits_for > 0", name="waiting"),
    CheckConstraint("state <> 'dead' or failure is not null", name="dead"),
    CheckConstraint("waits_for between 0 and fan", name="waits_for"),
    CheckConstraint("(join_step is null) = (branch is null)", name="branch"),
    CheckConstraint("attempt between 0 and fence", name="attempt"),
    CheckConstraint("attempts_max > 0 and seq >= 0 and crashes >= 0", name="counts"),
    # The backlog of each tenant, in the order of admission.
    Index("ledger_entry_ready", "tenant", "priority", "due_at", postgresql_where=text("state = 'ready'")),
    # What is with the broker or a worker: small, because the broker is kept shallow.
    Index(
        "ledger_entry_admitted",
        "state",
        "tenant",
        "queued_at",
        postgresql_where=text("state in ('queued', 'running')"),
    ),
)

checkpoint = Table(
    "checkpoint",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("session_id", Uuid, primary_key=True),
    Column("step_id", Uuid, primary_key=True),
    Column("kind", Text, nullable=False, comment="full: a state; delta: changes to `parent`; same: as before"),
    Column("parent", Uuid, comment="the checkpoint that a delta changes"),
    Column("state", LargeBinary),
    Column("result", LargeBinary, comment="what the session or branch ended with"),
    Column("agent_version", Integer, nullable=False, comment="of the code that wrote it"),
    Column("cost_micros", BigInteger, nullable=False, server_default="0"),
    Column("tokens_in", BigInteger, nullable=False, server_default="0"),
    Column("tokens_out", BigInteger, nullable=False, server_default="0"),
    _time("saved_at", nullable=False, now=True),
    CheckConstraint(_one_of("kind", ("full", "delta", "same")), name="kind"),
    CheckConstraint("(kind = 'same') = (state is null)", name="state"),
    CheckConstraint("(kind = 'delta') = (parent is not null)", name="parent"),
    CheckConstraint("cost_micros >= 0 and tokens_in >= 0 and tokens_out >= 0", name="usage"),
)

branch = Table(
    "branch",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("session_id", Uuid, primary_key=True),
    Column("join_step", Uuid, primary_key=True),
    Column("branch", Integer, primary_key=True),
    Column("child_session", Uuid),
    Column("state", Text, nullable=False, server_default="open"),
    Column("result", LargeBinary),
    Column("failure", JSONB),
    ForeignKeyConstraint(
        ["tenant", "session_id", "join_step"],
        ["agentq.ledger_entry.tenant", "agentq.ledger_entry.session_id", "agentq.ledger_entry.step_id"],
    ),
    CheckConstraint(_one_of("state", ("open", "done", "failed")), name="state"),
    CheckConstraint("(state = 'done') = (result is not null)", name="result"),
    CheckConstraint("(state = 'failed') = (failure is not null)", name="failure"),
)

message = Table(
    "message",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("session_id", Uuid, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("step_id", Uuid, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("written_by", Text, nullable=False, comment="format and version of the writer"),
    _time("saved_at", nullable=False, now=True),
    ForeignKeyConstraint(["tenant", "session_id"], ["agentq.session.tenant", "agentq.session.session_id"]),
    CheckConstraint("seq > 0", name="seq"),
)

effect = Table(
    "effect",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("effect_key", Text, primary_key=True),
    Column("session_id", Uuid, nullable=False),
    Column("step_id", Uuid, nullable=False),
    Column("fence", Integer, nullable=False, comment="the attempt that claimed it last"),
    Column("name", Text, nullable=False),
    Column("args_hash", LargeBinary, nullable=False),
    Column("state", Text, nullable=False, server_default="pending"),
    Column("calls", Integer, nullable=False, server_default="1", comment="times the call went out"),
    Column("result", LargeBinary),
    Column("failure", JSONB),
    _time("claimed_at", nullable=False, now=True),
    _time("settled_at"),
    ForeignKeyConstraint(["tenant", "session_id"], ["agentq.session.tenant", "agentq.session.session_id"]),
    CheckConstraint(_one_of("state", ("pending", "done", "failed", "unknown")), name="state"),
    CheckConstraint("(state = 'done') = (result is not null)", name="result"),
    CheckConstraint("(state in ('failed', 'unknown')) <= (failure is not null)", name="failure"),
    CheckConstraint("(state = 'pending') = (settled_at is null)", name="settled"),
    CheckConstraint("calls > 0", name="calls"),
    Index("effect_session", "tenant", "session_id", "step_id"),
)

session_event = Table(
    "session_event",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("session_id", Uuid, primary_key=True),
    Column("event_id", BigInteger, Identity(always=True), primary_key=True),
    Column("step_id", Uuid),
    Column("kind", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    _time("at", nullable=False, now=True),
    ForeignKeyConstraint(["tenant", "session_id"], ["agentq.session.tenant", "agentq.session.session_id"]),
)

worker = Table(
    "worker",
    metadata,
    Column("worker_id", Uuid, primary_key=True),
    Column("lock_key", BigInteger, nullable=False, unique=True, comment="advisory lock held while the process lives"),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("worker_group", Text, nullable=False),
    Column("role", Text, nullable=False, comment="relay: a prefork parent, which runs no steps itself"),
    Column("release", Text, nullable=False),
    Column("serves", ARRAY(Text), nullable=False, comment="agent@version pairs"),
    Column("state", Text, nullable=False, server_default="live"),
    _time("started_at", nullable=False, now=True),
    _time("seen_at", nullable=False, now=True),
    _time("lease_until", nullable=False),
    _time("missing_since"),
    _time("stopped_at"),
    CheckConstraint(_one_of("state", ("live", "draining", "dead", "stopped")), name="state"),
    CheckConstraint(_one_of("role", ("steps", "relay")), name="role"),
    CheckConstraint("(state in ('dead', 'stopped')) = (stopped_at is not null)", name="stopped"),
    Index("worker_present", "state", postgresql_where=text("state in ('live', 'draining')")),
)

operator_action = Table(
    "operator_action",
    metadata,
    Column("action_id", BigInteger, Identity(always=True), primary_key=True),
    _time("at", nullable=False, now=True),
    Column("operator", Text, nullable=False),
    Column("tenant", Text),
    Column("action", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("detail", JSONB),
)

refused_submission = Table(
    "refused_submission",
    metadata,
    Column("submission_id", BigInteger, Identity(always=True), primary_key=True),
    _time("at", nullable=False, now=True),
    Column("tenant", Text, comment="as named in the submission, when it could be read"),
    Column("reason", Text, nullable=False),
    Column("body", LargeBinary, nullable=False, comment="as it came, cut at the payload limit"),
)

# Tables whose rows belong to one tenant: row security is forced on each of them.
TENANT_TABLES = (session, ledger_entry, checkpoint, branch, message, effect, session_event)
