"""Anomalies: what live sessions have used so far, what is normal for an agent, and what was not."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import DOUBLE_PRECISION, JSONB

from agentq.store.schema.base import NAME, metadata, one_of, time

ANOMALY_STATES = ("open", "muted")
ORDERS = ("flag", "park", "mute")

# One narrow row for each live session, written with its attempts' traces and taken away once it was judged.
session_tally = Table(
    "session_tally",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("session_id", Uuid, primary_key=True),
    Column("agent", Text, nullable=False),
    Column("agent_version", Integer, nullable=False, comment="of the latest attempt"),
    Column("steps", Integer, nullable=False, comment="attempts that ended, well or not"),
    Column("failures", Integer, nullable=False, comment="those of them that failed"),
    Column("tokens", BigInteger, nullable=False),
    Column("cost_micros", BigInteger, nullable=False),
    Column("busy_ms", BigInteger, nullable=False, comment="the time its attempts ran, added up"),
    Column("tools", JSONB, comment="calls by tool"),
    Column("classes", JSONB, comment="failed attempts by class"),
    Column("due", Boolean, nullable=False, comment="to be looked at: every few steps, and when the session ended"),
    CheckConstraint(
        "steps >= 0 and failures >= 0 and tokens >= 0 and cost_micros >= 0 and busy_ms >= 0", name="counts"
    ),
    Index("session_tally_due", "tenant", postgresql_where=text("due")),
    postgresql_with={"fillfactor": 70},  # its updates stay on their page
)

# Sketches and counts of the runs that went as usual, a few kilobytes; see agentq/policies/anomalies.py.
anomaly_baseline = Table(
    "anomaly_baseline",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("agent", Text, primary_key=True),
    Column("agent_version", Integer, primary_key=True),
    Column("runs", BigInteger, nullable=False, server_default="0", comment="sessions learned from"),
    Column("facts", JSONB, nullable=False, server_default=text("'{}'")),
    time("changed_at", nullable=False, now=True),
    CheckConstraint("runs >= 0", name="runs"),
)

anomaly = Table(
    "anomaly",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("anomaly_id", Uuid, primary_key=True, server_default=text("gen_random_uuid()")),
    Column("session_id", Uuid, nullable=False, comment="the one that stands out, or the dearest of the hour"),
    Column("agent", Text, nullable=False),
    Column("agent_version", Integer, nullable=False),
    Column("measure", Text, nullable=False, comment="steps, tokens, cost, duration, failures, tool:NAME, …"),
    Column("rule", Text, nullable=False),
    Column("value", DOUBLE_PRECISION, nullable=False),
    Column("low", DOUBLE_PRECISION, nullable=False, comment="the normal range"),
    Column("high", DOUBLE_PRECISION, nullable=False),
    Column("runs", BigInteger, nullable=False, comment="that the range was learned from"),
    Column("why", Text, nullable=False, comment="names and numbers alone, never content"),
    Column("running", Boolean, nullable=False, comment="found while the session ran"),
    Column("parked", Boolean, nullable=False, server_default=text("false"), comment="the session was parked for it"),
    Column("state", Text, nullable=False, server_default="open"),
    time("found_at", nullable=False, now=True),
    time("seen_at", nullable=False, now=True),
    time("muted_at"),
    Column("muted_by", Text),
    ForeignKeyConstraint(["tenant", "session_id"], ["agentq.session.tenant", "agentq.session.session_id"]),
    # Said once, however often it is looked at and by however many.
    UniqueConstraint("tenant", "session_id", "measure", name="anomaly_once"),
    CheckConstraint(one_of("state", ANOMALY_STATES), name="state"),
    CheckConstraint("(state = 'muted') = (muted_at is not null)", name="muted"),
    # The newest of all, of the open ones, of a tenant. What stands last is looked at without the row.
    Index("anomaly_newest", "found_at", "anomaly_id", "agent"),
    Index("anomaly_open", "found_at", "anomaly_id", "agent", postgresql_where=text("state = 'open'")),
    Index("anomaly_tenant", "tenant", "found_at", "anomaly_id", "state", "agent"),
    Index("anomaly_id", "anomaly_id"),
)

# What operators want done: of one agent and measure, or of all of them. The most specific one counts.
anomaly_order = Table(
    "anomaly_order",
    metadata,
    Column("tenant", Text, primary_key=True, comment="'*': every tenant"),
    Column("agent", Text, primary_key=True, comment="empty: every agent"),
    Column("measure", Text, primary_key=True, comment="empty: every measure"),
    Column("action", Text, nullable=False),
    time("until"),
    Column("operator", Text, nullable=False),
    Column("reason", Text, nullable=False),
    time("changed_at", nullable=False, now=True),
    CheckConstraint(one_of("action", ORDERS), name="action"),
    CheckConstraint(f"tenant = '*' or tenant {NAME}", name="tenant"),
    CheckConstraint(f"agent = '' or agent {NAME}", name="agent"),
)

__all__ = ["ANOMALY_STATES", "ORDERS", "anomaly", "anomaly_baseline", "anomaly_order", "session_tally"]
