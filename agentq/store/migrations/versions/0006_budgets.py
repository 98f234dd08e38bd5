"""Budgets: what may be spent, what is reserved, what was charged"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006_budgets"
down_revision = "0005_approvals"
branch_labels = None
depends_on = None
phase = "before"


def upgrade() -> None:
    _money()
    _rates()
    _tenants()


def _money() -> None:
    op.create_table(
        "budget_alert",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("threshold", sa.SmallInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("agentq.now()"), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=True, comment="whose call passed it"),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.CheckConstraint("threshold in (50, 80, 100)", name=op.f("budget_alert_threshold")),
        sa.PrimaryKeyConstraint(
            "tenant", "scope", "subject", "period", "starts_at", "threshold", name=op.f("budget_alert_pk")
        ),
        schema="agentq",
    )
    op.create_table(
        "budget_window",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reserved_micros", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("spent_micros", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("reserved_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("spent_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("calls", sa.Integer(), server_default="0", nullable=False, comment="reservations ever made in it"),
        sa.Column(
            "declared_micros",
            sa.BigInteger(),
            nullable=True,
            comment="the limit that the agent's code gives its session",
        ),
        sa.Column("declared_tokens", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("period in ('session', 'day', 'month')", name=op.f("budget_window_period")),
        sa.CheckConstraint("scope in ('agent', 'provider', 'session', 'tenant')", name=op.f("budget_window_scope")),
        sa.CheckConstraint("reserved_micros >= 0 and reserved_tokens >= 0", name=op.f("budget_window_reserved")),
        sa.CheckConstraint("spent_micros >= 0 and spent_tokens >= 0", name=op.f("budget_window_spent")),
        sa.PrimaryKeyConstraint("tenant", "scope", "subject", "period", "starts_at", name=op.f("budget_window_pk")),
        schema="agentq",
    )
    op.create_table(
        "model_price",
        sa.Column("model", sa.Text(), nullable=False, comment="provider:model"),
        sa.Column("input_micros", sa.BigInteger(), nullable=False, comment="for a million tokens"),
        sa.Column("output_micros", sa.BigInteger(), nullable=False),
        sa.Column("cached_micros", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.Integer(), server_default="1", nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.text("agentq.now()"), nullable=False),
        sa.CheckConstraint("model like '%%_:_%%'", name=op.f("model_price_model")),
        sa.CheckConstraint(
            "input_micros >= 0 and output_micros >= 0 and cached_micros >= 0", name=op.f("model_price_amounts")
        ),
        sa.PrimaryKeyConstraint("model", name=op.f("model_price_pk")),
        schema="agentq",
    )
    op.create_table(
        "reservation",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column(
            "reservation_id", sa.Text(), nullable=False, comment="session:step:fence:ordinal, so a repeat finds itself"
        ),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("step_id", sa.Uuid(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column(
            "price_version",
            sa.Text(),
            nullable=True,
            comment="where the price came from; null: unknown, and only tokens count",
        ),
        sa.Column("day", sa.DateTime(timezone=True), nullable=False),
        sa.Column("month", sa.DateTime(timezone=True), nullable=False),
        sa.Column("state", sa.Text(), server_default="held", nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False, comment="as estimated"),
        sa.Column("max_tokens", sa.BigInteger(), nullable=False),
        sa.Column("reserved_micros", sa.BigInteger(), nullable=True, comment="null: the price is unknown"),
        sa.Column("charged_micros", sa.BigInteger(), nullable=True),
        sa.Column("used_input", sa.BigInteger(), nullable=True),
        sa.Column("used_cached", sa.BigInteger(), nullable=True),
        sa.Column("used_output", sa.BigInteger(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("agentq.now()"), nullable=False),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "settled_by",
            sa.Text(),
            nullable=True,
            comment="settlement, step: before its next call; relay: its attempt was gone; late",
        ),
        sa.Column("note", sa.Text(), nullable=True, comment="why it was released, or is uncertain"),
        sa.CheckConstraint("(state = 'held') = (settled_at is null)", name=op.f("reservation_settled")),
        sa.CheckConstraint("(state = 'held') = (settled_by is null)", name=op.f("reservation_settled_by")),
        sa.CheckConstraint(
            "(state in ('charged', 'uncertain')) = (used_input is not null)", name=op.f("reservation_charged")
        ),
        sa.CheckConstraint("state in ('held', 'charged', 'uncertain', 'released')", name=op.f("reservation_state")),
        sa.CheckConstraint("(used_input is null) = (used_output is null)", name=op.f("reservation_used")),
        sa.CheckConstraint(
            "charged_micros >= 0 and used_input >= 0 and used_output >= 0 and used_cached >= 0",
            name=op.f("reservation_got"),
        ),
        sa.CheckConstraint(
            "input_tokens >= 0 and max_tokens >= 0 and reserved_micros >= 0", name=op.f("reservation_wanted")
        ),
        sa.PrimaryKeyConstraint("tenant", "reservation_id", name=op.f("reservation_pk")),
        schema="agentq",
    )
    op.create_index(
        "reservation_held",
        "reservation",
        ["tenant", "session_id"],
        unique=False,
        schema="agentq",
        postgresql_where=sa.text("state = 'held'"),
    )
    op.create_index("reservation_month", "reservation", ["tenant", "month"], unique=False, schema="agentq")
    op.create_index("reservation_session", "reservation", ["tenant", "session_id"], unique=False, schema="agentq")
    op.create_table(
        "budget",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column(
            "subject",
            sa.Text(),
            nullable=False,
            comment="agent, provider or session; empty: the tenant, or each session",
        ),
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("cost_micros", sa.BigInteger(), nullable=True),
        sa.Column("tokens", sa.BigInteger(), nullable=True),
        sa.Column("on_refusal", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.text("agentq.now()"), nullable=False),
        sa.CheckConstraint("(scope = 'session') <= (on_refusal <> 'wait')", name=op.f("budget_never_opens")),
        sa.CheckConstraint("(scope = 'session') = (period = 'session')", name=op.f("budget_of_session")),
        sa.CheckConstraint("(scope = 'tenant') <= (subject = '')", name=op.f("budget_of_tenant")),
        sa.CheckConstraint("(scope in ('agent', 'provider')) <= (subject <> '')", name=op.f("budget_subject")),
        sa.CheckConstraint("on_refusal in ('wait', 'park', 'end')", name=op.f("budget_on_refusal")),
        sa.CheckConstraint("period in ('session', 'day', 'month')", name=op.f("budget_period")),
        sa.CheckConstraint("scope in ('agent', 'provider', 'session', 'tenant')", name=op.f("budget_scope")),
        sa.CheckConstraint("cost_micros >= 0 and tokens >= 0", name=op.f("budget_amounts")),
        sa.CheckConstraint("cost_micros is not null or tokens is not null", name=op.f("budget_limit")),
        sa.ForeignKeyConstraint(["tenant"], ["agentq.tenant.name"], name=op.f("budget_tenant_fk")),
        sa.PrimaryKeyConstraint("tenant", "scope", "subject", "period", name=op.f("budget_pk")),
        schema="agentq",
    )


def _rates() -> None:
    op.create_table(
        "rate_limit",
        sa.Column(
            "tenant",
            sa.Text(),
            nullable=False,
            comment="*: of the whole fleet, divided among the tenants that call",
        ),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("requests_per_min", sa.Integer(), nullable=True, comment="as an operator set it"),
        sa.Column("tokens_per_min", sa.BigInteger(), nullable=True),
        sa.Column("learned_requests", sa.Integer(), nullable=True, comment="as the provider's headers said last"),
        sa.Column("learned_tokens", sa.BigInteger(), nullable=True),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.text("agentq.now()"), nullable=False),
        sa.CheckConstraint("requests_per_min > 0 and tokens_per_min > 0", name=op.f("rate_limit_amounts")),
        sa.CheckConstraint("learned_requests > 0 and learned_tokens > 0", name=op.f("rate_limit_learned")),
        sa.PrimaryKeyConstraint("tenant", "provider", name=op.f("rate_limit_pk")),
        schema="agentq",
    )
    op.create_table(
        "rate_bucket",
        sa.Column("bucket", sa.Text(), nullable=False),
        sa.Column("full_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("bucket", name=op.f("rate_bucket_pk")),
        schema="agentq",
    )
    op.create_table(
        "rate_caller",
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("weight", sa.REAL(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("provider", "caller", name=op.f("rate_caller_pk")),
        schema="agentq",
    )


def _tenants() -> None:
    columns: list[sa.Column[Any]] = [
        sa.Column("agents", postgresql.ARRAY(sa.Text()), comment="the ones it may start; null: every one"),
        sa.Column("tools", postgresql.ARRAY(sa.Text()), comment="the effects it may perform; null: every one"),
        sa.Column("retention_days", sa.Integer(), comment="ended sessions are removed after so many; null: never"),
        sa.Column(
            "allowance",
            sa.Integer(),
            comment="slots it may hold while there are too few for all; null: its concurrency",
        ),
        sa.Column(
            "time_used",
            postgresql.DOUBLE_PRECISION(),
            comment="seconds its steps ran while slots were shared, over its weight",
        ),
        sa.Column("shared_at", sa.DateTime(timezone=True)),
    ]
    for column in columns:
        op.add_column("tenant", column, schema="agentq")
    op.create_table(
        "slot_use",
        sa.Column("use_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("seconds", postgresql.DOUBLE_PRECISION(), nullable=False),
        sa.PrimaryKeyConstraint("use_id", name=op.f("slot_use_pk")),
        schema="agentq",
        prefixes=["UNLOGGED"],
    )
    op.add_column(
        "worker",
        sa.Column(
            "slots", sa.Integer(), server_default="0", nullable=False, comment="steps it runs at once; 0: not said"
        ),
        schema="agentq",
    )
    op.create_check_constraint(op.f("tenant_retention_days"), "tenant", "retention_days > 0", schema="agentq")
    op.add_column(
        "session",
        sa.Column("concurrency_key", sa.Text(), nullable=True, comment="at most one live session of it runs"),
        schema="agentq",
    )
    op.create_index(
        "session_turn",
        "session",
        ["tenant", "concurrency_key", "created_at"],
        schema="agentq",
        postgresql_where=sa.text("concurrency_key is not null and state in ('running', 'paused')"),
    )
