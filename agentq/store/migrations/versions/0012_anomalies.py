"""Anomalies: what is normal for an agent, and what was not"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012_anomalies"
down_revision = "0011_keys"
branch_labels = None
depends_on = None
phase = "before"

NAME = "~ '^[a-z0-9][a-z0-9_-]{0,62}$'"


def _time(name: str, *, nullable: bool = True, now: bool = False) -> sa.Column[object]:
    return sa.Column(
        name, sa.DateTime(timezone=True), nullable=nullable, server_default=sa.text("agentq.now()") if now else None
    )


def upgrade() -> None:
    op.create_table(
        "session_tally",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("agent_version", sa.Integer(), nullable=False, comment="of the latest attempt"),
        sa.Column("steps", sa.Integer(), nullable=False, comment="attempts that ended, well or not"),
        sa.Column("failures", sa.Integer(), nullable=False, comment="those of them that failed"),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost_micros", sa.BigInteger(), nullable=False),
        sa.Column("busy_ms", sa.BigInteger(), nullable=False, comment="the time its attempts ran, added up"),
        sa.Column("tools", postgresql.JSONB(), comment="calls by tool"),
        sa.Column("classes", postgresql.JSONB(), comment="failed attempts by class"),
        sa.Column(
            "due", sa.Boolean(), nullable=False, comment="to be looked at: every few steps, and when the session ended"
        ),
        sa.CheckConstraint(
            "steps >= 0 and failures >= 0 and tokens >= 0 and cost_micros >= 0 and busy_ms >= 0",
            name=op.f("session_tally_counts"),
        ),
        sa.PrimaryKeyConstraint("tenant", "session_id", name=op.f("session_tally_pk")),
        schema="agentq",
        postgresql_with={"fillfactor": 70},
    )
    op.create_index("session_tally_due", "session_tally", ["tenant"], schema="agentq", postgresql_where=sa.text("due"))
    op.create_table(
        "anomaly_baseline",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("agent_version", sa.Integer(), nullable=False),
        sa.Column("runs", sa.BigInteger(), server_default="0", nullable=False, comment="sessions learned from"),
        sa.Column("facts", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        _time("changed_at", nullable=False, now=True),
        sa.CheckConstraint("runs >= 0", name=op.f("anomaly_baseline_runs")),
        sa.PrimaryKeyConstraint("tenant", "agent", "agent_version", name=op.f("anomaly_baseline_pk")),
        schema="agentq",
    )
    op.create_table(
        "anomaly",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("anomaly_id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column(
            "session_id", sa.Uuid(), nullable=False, comment="the one that stands out, or the dearest of the hour"
        ),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("agent_version", sa.Integer(), nullable=False),
        sa.Column(
            "measure", sa.Text(), nullable=False, comment="steps, tokens, cost, duration, failures, tool:NAME, …"
        ),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("value", postgresql.DOUBLE_PRECISION(), nullable=False),
        sa.Column("low", postgresql.DOUBLE_PRECISION(), nullable=False, comment="the normal range"),
        sa.Column("high", postgresql.DOUBLE_PRECISION(), nullable=False),
        sa.Column("runs", sa.BigInteger(), nullable=False, comment="that the range was learned from"),
        sa.Column("why", sa.Text(), nullable=False, comment="names and numbers alone, never content"),
        sa.Column("running", sa.Boolean(), nullable=False, comment="found while the session ran"),
        sa.Column(
            "parked",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="the session was parked for it",
        ),
        sa.Column("state", sa.Text(), server_default="open", nullable=False),
        _time("found_at", nullable=False, now=True),
        _time("seen_at", nullable=False, now=True),
        _time("muted_at"),
        sa.Column("muted_by", sa.Text()),
        sa.CheckConstraint("state in ('open', 'muted')", name=op.f("anomaly_state")),
        sa.CheckConstraint("(state = 'muted') = (muted_at is not null)", name=op.f("anomaly_muted")),
        sa.PrimaryKeyConstraint("tenant", "anomaly_id", name=op.f("anomaly_pk")),
        sa.ForeignKeyConstraint(
            ["tenant", "session_id"],
            ["agentq.session.tenant", "agentq.session.session_id"],
            name=op.f("anomaly_tenant_fk"),
        ),
        sa.UniqueConstraint("tenant", "session_id", "measure", name="anomaly_once"),
        schema="agentq",
    )
    op.create_index("anomaly_newest", "anomaly", ["found_at"], schema="agentq")
    op.create_index(
        "anomaly_open", "anomaly", ["found_at"], schema="agentq", postgresql_where=sa.text("state = 'open'")
    )
    op.create_index("anomaly_id", "anomaly", ["anomaly_id"], schema="agentq")
    op.create_table(
        "anomaly_order",
        sa.Column("tenant", sa.Text(), nullable=False, comment="'*': every tenant"),
        sa.Column("agent", sa.Text(), nullable=False, comment="empty: every agent"),
        sa.Column("measure", sa.Text(), nullable=False, comment="empty: every measure"),
        sa.Column("action", sa.Text(), nullable=False),
        _time("until"),
        sa.Column("operator", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        _time("changed_at", nullable=False, now=True),
        sa.CheckConstraint("action in ('flag', 'park', 'mute')", name=op.f("anomaly_order_action")),
        sa.CheckConstraint(f"tenant = '*' or tenant {NAME}", name=op.f("anomaly_order_tenant")),
        sa.CheckConstraint(f"agent = '' or agent {NAME}", name=op.f("anomaly_order_agent")),
        sa.PrimaryKeyConstraint("tenant", "agent", "measure", name=op.f("anomaly_order_pk")),
        schema="agentq",
    )
    # A notice tells of an approval or of an anomaly.
    op.alter_column("notice", "approval_id", nullable=True, schema="agentq", comment="what it tells of: this")
    op.add_column("notice", sa.Column("anomaly_id", sa.Uuid(), comment="or this"), schema="agentq")
    op.create_foreign_key(
        "notice_anomaly",
        "notice",
        "anomaly",
        ["tenant", "anomaly_id"],
        ["tenant", "anomaly_id"],
        source_schema="agentq",
        referent_schema="agentq",
    )
    op.drop_constraint(op.f("notice_kind"), "notice", schema="agentq")
    op.create_check_constraint(
        op.f("notice_kind"), "notice", "kind in ('asked', 'reminder', 'decided', 'anomaly')", schema="agentq"
    )
    op.create_check_constraint(
        op.f("notice_of_anomaly"), "notice", "(kind = 'anomaly') = (anomaly_id is not null)", schema="agentq"
    )
    op.create_check_constraint(
        op.f("notice_of_one"), "notice", "(approval_id is null) = (anomaly_id is not null)", schema="agentq"
    )
