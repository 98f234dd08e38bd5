"""Budgets: what may be spent, what is reserved, what was charged, and at which price."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKeyConstraint,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)

from agentq.store.schema.base import metadata, one_of, time

BUDGET_SCOPES = ("agent", "provider", "session", "tenant")
BUDGET_PERIODS = ("session", "day", "month")
ON_REFUSAL = ("wait", "park", "end")
RESERVATION_STATES = ("held", "charged", "uncertain", "released")

budget = Table(
    "budget",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("scope", Text, primary_key=True),
    Column("subject", Text, primary_key=True, comment="agent, provider or session; empty: the tenant, or each session"),
    Column("period", Text, primary_key=True),
    Column("cost_micros", BigInteger),
    Column("tokens", BigInteger),
    Column("on_refusal", Text, nullable=False),
    time("changed_at", nullable=False, now=True),
    ForeignKeyConstraint(["tenant"], ["agentq.tenant.name"]),
    CheckConstraint(one_of("scope", BUDGET_SCOPES), name="scope"),
    CheckConstraint(one_of("period", BUDGET_PERIODS), name="period"),
    CheckConstraint("(scope = 'session') = (period = 'session')", name="of_session"),
    CheckConstraint("(scope in ('agent', 'provider')) <= (subject <> '')", name="subject"),
    CheckConstraint("(scope = 'tenant') <= (subject = '')", name="of_tenant"),
    CheckConstraint(one_of("on_refusal", ON_REFUSAL), name="on_refusal"),
    CheckConstraint("(scope = 'session') <= (on_refusal <> 'wait')", name="never_opens"),
    CheckConstraint("cost_micros >= 0 and tokens >= 0", name="amounts"),
    CheckConstraint("cost_micros is not null or tokens is not null", name="limit"),
)

# Sums of the reservations, kept with them: a budget is checked without adding up its calls.
budget_window = Table(
    "budget_window",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("scope", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("period", Text, primary_key=True),
    Column("starts_at", DateTime(timezone=True), primary_key=True),
    Column("reserved_micros", BigInteger, nullable=False, server_default="0"),
    Column("spent_micros", BigInteger, nullable=False, server_default="0"),
    Column("reserved_tokens", BigInteger, nullable=False, server_default="0"),
    Column("spent_tokens", BigInteger, nullable=False, server_default="0"),
    Column("calls", Integer, nullable=False, server_default="0", comment="reservations ever made in it"),
    Column("declared_micros", BigInteger, comment="the limit that the agent's code gives its session"),
    Column("declared_tokens", BigInteger),
    CheckConstraint(one_of("scope", BUDGET_SCOPES), name="scope"),
    CheckConstraint(one_of("period", BUDGET_PERIODS), name="period"),
    CheckConstraint("reserved_micros >= 0 and reserved_tokens >= 0", name="reserved"),
    CheckConstraint("spent_micros >= 0 and spent_tokens >= 0", name="spent"),
)

reservation = Table(
    "reservation",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("reservation_id", Text, primary_key=True, comment="session:step:fence:ordinal, so a repeat finds itself"),
    Column("session_id", Uuid, nullable=False),
    Column("step_id", Uuid, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("agent", Text, nullable=False),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("price_version", Text, comment="where the price came from; null: unknown, and only tokens count"),
    time("day", nullable=False),
    time("month", nullable=False),
    Column("state", Text, nullable=False, server_default="held"),
    Column("input_tokens", BigInteger, nullable=False, comment="as estimated"),
    Column("max_tokens", BigInteger, nullable=False),
    Column("reserved_micros", BigInteger, comment="null: the price is unknown"),
    Column("charged_micros", BigInteger),
    Column("used_input", BigInteger),
    Column("used_cached", BigInteger),
    Column("used_output", BigInteger),
    time("at", nullable=False, now=True),
    time("settled_at"),
    Column("settled_by", Text, comment="settlement, step: before its next call; relay: its attempt was gone; late"),
    Column("note", Text, comment="why it was released, or is uncertain"),
    CheckConstraint(one_of("state", RESERVATION_STATES), name="state"),
    CheckConstraint("(state = 'held') = (settled_at is null)", name="settled"),
    CheckConstraint("(state = 'held') = (settled_by is null)", name="settled_by"),
    CheckConstraint("(state in ('charged', 'uncertain')) = (used_input is not null)", name="charged"),
    CheckConstraint("(used_input is null) = (used_output is null)", name="used"),
    CheckConstraint("input_tokens >= 0 and max_tokens >= 0 and reserved_micros >= 0", name="wanted"),
    CheckConstraint("charged_micros >= 0 and used_input >= 0 and used_output >= 0 and used_cached >= 0", name="got"),
    Index("reservation_session", "tenant", "session_id"),
    Index("reservation_held", "tenant", "session_id", postgresql_where=text("state = 'held'")),
    Index("reservation_month", "tenant", "month"),
)

# One row each time a budget passes half, four fifths, or all of its limit: once per window.
budget_alert = Table(
    "budget_alert",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("scope", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("period", Text, primary_key=True),
    Column("starts_at", DateTime(timezone=True), primary_key=True),
    Column("threshold", SmallInteger, primary_key=True),
    time("at", nullable=False, now=True),
    Column("session_id", Uuid, comment="whose call passed it"),
    Column("detail", Text),
    CheckConstraint("threshold in (50, 80, 100)", name="threshold"),
)

# Prices that the operator sets go before the ones that come with `genai-prices`; the fleet's own, not a tenant's.
model_price = Table(
    "model_price",
    metadata,
    Column("model", Text, primary_key=True, comment="provider:model"),
    Column("input_micros", BigInteger, nullable=False, comment="for a million tokens"),
    Column("output_micros", BigInteger, nullable=False),
    Column("cached_micros", BigInteger, nullable=False),
    Column("revision", Integer, nullable=False, server_default="1"),
    time("changed_at", nullable=False, now=True),
    CheckConstraint("input_micros >= 0 and output_micros >= 0 and cached_micros >= 0", name="amounts"),
    CheckConstraint("model like '%_:_%'", name="model"),
)
