"""
The tables of what was used and paid, summed up by hour, by day and by session, so that no report adds up traces.

Written by functions of `sql/functions/spend.sql`. Hours and days say neither session nor content, and like the budgets'
ledger they outlive both the traces and the sessions that they came from. What a session used goes with the session.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Column, DateTime, Index, SmallInteger, Table, Text, Uuid, text
from sqlalchemy.dialects.postgresql import ARRAY

from agentq.store.schema.base import metadata, one_of, time

SPEND_KINDS = ("attempt", "model", "tool")


def _sums() -> list[Column[Any]]:
    return [
        Column("tenant", Text, primary_key=True, comment="'*': all tenants together, of models and tools"),
        Column("starts_at", DateTime(timezone=True), primary_key=True),
        Column("kind", Text, primary_key=True, comment="attempts hold all that was used; models and tools are parts"),
        Column("agent", Text, primary_key=True),
        Column("name", Text, primary_key=True, comment="of the model or tool"),
        Column("uses", BigInteger, nullable=False),
        Column("sessions", BigInteger, nullable=False, comment="that were never counted in such a row before"),
        Column("tokens_in", BigInteger, nullable=False),
        Column("tokens_out", BigInteger, nullable=False),
        Column("cost_micros", BigInteger, nullable=False),
        Column("waste_micros", BigInteger, nullable=False),
        Column("tokens_cached", BigInteger, nullable=False),
        Column("took_us", BigInteger, nullable=False),
        Column("recalled", BigInteger, nullable=False),
        Column("sandbox_us", BigInteger, nullable=False),
        Column("repairs", BigInteger, nullable=False, server_default="0"),
        Column("repair_micros", BigInteger, nullable=False, server_default="0", comment="what of the waste they cost"),
    ]


spend_hour = Table(
    "spend_hour",
    metadata,
    *_sums(),
    CheckConstraint(one_of("kind", SPEND_KINDS), name="kind"),
    Index("spend_hour_time", "kind", "starts_at"),
)

spend_day = Table(
    "spend_day",
    metadata,
    *_sums(),
    CheckConstraint(one_of("kind", SPEND_KINDS), name="kind"),
    Index("spend_day_time", "kind", "starts_at"),
)

# What each session used in all: a row for each, which its later attempts add to.
spend_session = Table(
    "spend_session",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("session_id", Uuid, primary_key=True),
    Column("agent", Text, nullable=False),
    Column("day", DateTime(timezone=True), nullable=False, comment="of its last attempt that used something"),
    Column("first_at", DateTime(timezone=True), nullable=False, comment="the end of the first such attempt"),
    Column("last_at", DateTime(timezone=True), nullable=False),
    Column("uses", BigInteger, nullable=False),
    Column("tokens_in", BigInteger, nullable=False),
    Column("tokens_out", BigInteger, nullable=False),
    Column("cost_micros", BigInteger, nullable=False),
    Column("waste_micros", BigInteger, nullable=False),
    Column("repairs", BigInteger, nullable=False),
    Column("repair_micros", BigInteger, nullable=False, comment="what of the waste they cost"),
    CheckConstraint("first_at <= last_at and day <= last_at", name="times"),
    # The dearest of each day, of a tenant and of all; the agent stands last, to be read without the row.
    Index("spend_session_tenant", "tenant", "day", text("cost_micros desc"), "session_id", "agent"),
    Index("spend_session_all", "day", text("cost_micros desc"), "session_id", "agent"),
    # Of more than one day: those that may have begun before a window.
    Index("spend_session_days", "tenant", "last_at", "first_at", postgresql_where=text("first_at < day")),
)

# How far it has come: one row, the fleet's. Whoever changes sums holds it.
spend_mark = Table(
    "spend_mark",
    metadata,
    Column("one", SmallInteger, primary_key=True, server_default="1"),
    time("rolled_until"),
    time("days_until"),
    time("sessions_until"),
    time("closed_until"),
    time("closing_until"),
    Column("waits_for", ARRAY(Text), comment="transactions that ran when the hours before closing_until were over"),
    CheckConstraint("one = 1", name="one"),
    CheckConstraint("(closing_until is null) = (waits_for is null)", name="closing"),
    CheckConstraint("rolled_until <= closed_until and days_until <= rolled_until", name="order"),
    CheckConstraint("sessions_until <= rolled_until", name="sessions"),
)

__all__ = ["SPEND_KINDS", "spend_day", "spend_hour", "spend_mark", "spend_session"]
