"""The fleet's own rows: its processes, what operators did, what was refused at the door."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, DOUBLE_PRECISION, JSONB

from agentq.store.schema.base import metadata, one_of, time

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
    Column("slots", Integer, nullable=False, server_default="0", comment="steps it runs at once; 0: not said"),
    Column("serves", ARRAY(Text), nullable=False, comment="agent@version pairs"),
    Column("state", Text, nullable=False, server_default="live"),
    time("started_at", nullable=False, now=True),
    time("seen_at", nullable=False, now=True),
    time("lease_until", nullable=False),
    time("missing_since"),
    time("delivered_at"),
    Column("watchdog_restarts", Integer, nullable=False, server_default="0", comment="of its consumer, by itself"),
    time("restarted_at"),
    time("stopped_at"),
    Column("place", Text, comment="where its pid means this process: boot and pid namespace; null: nobody can tell"),
    CheckConstraint(one_of("state", ("live", "draining", "dead", "stopped")), name="state"),
    CheckConstraint(one_of("role", ("steps", "relay")), name="role"),
    CheckConstraint("(state in ('dead', 'stopped')) = (stopped_at is not null)", name="stopped"),
    Index("worker_present", "state", postgresql_where=text("state in ('live', 'draining')")),
)

# What steps took while slots were shared, until the next division adds it up. Unlogged: losing it costs nothing.
slot_use = Table(
    "slot_use",
    metadata,
    Column("use_id", BigInteger, Identity(always=True), primary_key=True),
    Column("holder", Text, nullable=False),
    Column("steps", Integer, nullable=False),
    Column("seconds", DOUBLE_PRECISION, nullable=False),
    prefixes=["UNLOGGED"],
)

operator_action = Table(
    "operator_action",
    metadata,
    Column("action_id", BigInteger, Identity(always=True), primary_key=True),
    time("at", nullable=False, now=True),
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
    time("at", nullable=False, now=True),
    Column("tenant", Text, comment="as named in the submission, when it could be read"),
    Column("reason", Text, nullable=False),
    Column("body", LargeBinary, nullable=False, comment="as it came, cut at the payload limit"),
)
