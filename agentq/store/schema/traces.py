"""
The tables of traces: what each attempt did, decided and used.

Both are partitioned by week, made ahead and dropped when old by functions of `sql/functions/traces.sql`.
A row that no week was made for goes to the partition `…_rest`, so that a trace never refuses a settlement.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, REAL

from agentq.store.schema.base import metadata, time

trace = Table(
    "trace",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("session_id", Uuid, primary_key=True),
    Column("step_id", Uuid, primary_key=True),
    Column("fence", Integer, primary_key=True, comment="the attempt's"),
    Column("ordinal", SmallInteger, primary_key=True, comment="0: the attempt; then what it did, in order"),
    Column("ended_at", DateTime(timezone=True), primary_key=True, comment="the partition's key"),
    Column("kind", Text, nullable=False, comment="attempt, model, tool, wait, approval, or the user's own"),
    Column("name", Text, nullable=False, comment="of the step, the model, the tool"),
    Column("agent", Text, nullable=False),
    Column("agent_version", Integer, nullable=False),
    Column("seq", Integer, nullable=False),
    Column("branch", Integer),
    Column("attempt", Integer, nullable=False),
    time("queued_at"),
    time("started_at", nullable=False),
    Column("closing", Text, comment="how the attempt was settled; lost: its worker died under it"),
    Column("failure", JSONB),
    Column("worker", Uuid),
    Column("leads_to", Text, comment="the steps that follow"),
    Column("tokens_in", BigInteger, nullable=False, server_default="0"),
    Column("tokens_out", BigInteger, nullable=False, server_default="0"),
    Column("cost_micros", BigInteger, nullable=False, server_default="0"),
    Column("detail", JSONB, comment="of an event: model, provider, tokens by kind, effect key, price's version"),
    Column("input", LargeBinary, comment="redacted"),
    Column("output", LargeBinary, comment="redacted"),
    CheckConstraint("(ordinal = 0) = (kind = 'attempt') and ordinal >= 0", name="ordinal"),
    CheckConstraint("(ordinal = 0) = (closing is not null)", name="closing"),
    CheckConstraint("cost_micros >= 0 and tokens_in >= 0 and tokens_out >= 0", name="usage"),
    # What was paid for, by time: few rows beside those of steps that used nothing.
    Index(
        "trace_spend",
        "ended_at",
        "tenant",
        postgresql_where=text("cost_micros > 0 or tokens_in > 0 or tokens_out > 0"),
    ),
    # All attempts of an hour: rows come in the order of their end, so a few pages' bounds are enough, and
    # writing one costs nothing.
    Index(
        "trace_time",
        "ended_at",
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 32, "autosummarize": "on"},
    ),
    postgresql_partition_by="RANGE (ended_at)",
)

decision = Table(
    "decision",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("session_id", Uuid, primary_key=True),
    Column("step_id", Uuid, primary_key=True),
    Column("fence", Integer, primary_key=True),
    Column("ordinal", SmallInteger, primary_key=True),
    Column("decided_at", DateTime(timezone=True), primary_key=True, comment="the partition's key"),
    Column("agent", Text, nullable=False),
    Column("step", Text, nullable=False, comment="the step's name"),
    Column("options", LargeBinary, nullable=False, comment="what was considered, redacted"),
    Column("picked", Text, nullable=False),
    Column("why", Text, comment="as far as the model or the code says"),
    Column("confidence", REAL),
    Column("limits", JSONB, comment="in force at that moment"),
    Column("approver", Text),
    CheckConstraint("confidence between 0 and 1", name="confidence"),
    postgresql_partition_by="RANGE (decided_at)",
)

# How far an export has come. No tenant's row: one export covers all of them.
trace_export = Table(
    "trace_export",
    metadata,
    Column("name", Text, primary_key=True),
    Column("ended_at", DateTime(timezone=True), nullable=False, comment="of the last session exported"),
    Column("session_id", Uuid, nullable=False),
)

__all__ = ["decision", "trace", "trace_export"]
