"""Traces: what each attempt did, decided and used"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007_traces"
down_revision = "0006_budgets"
branch_labels = None
depends_on = None
phase = "before"


def upgrade() -> None:
    op.add_column(
        "session",
        sa.Column("trace_id", sa.Uuid(), nullable=True, comment="one for all it leads to; null: its own id"),
        schema="agentq",
    )
    op.add_column(
        "session",
        sa.Column("trace_parent", sa.BigInteger(), nullable=True, comment="the producer's span, where it gave one"),
        schema="agentq",
    )
    op.create_index(
        "session_trace",
        "session",
        ["tenant", "trace_id"],
        schema="agentq",
        postgresql_where=sa.text("trace_id is not null"),
    )
    # Counted at each scrape.
    op.create_index(
        "session_paused", "session", ["tenant"], schema="agentq", postgresql_where=sa.text("state = 'paused'")
    )
    # What ended, in the order in which exports take it.
    op.create_index(
        "session_ended",
        "session",
        ["ended_at", "session_id"],
        schema="agentq",
        postgresql_where=sa.text("ended_at is not null"),
    )
    # Lists of all tenants, and of those in one state, newest first.
    op.create_index("session_newest", "session", ["created_at", "session_id"], schema="agentq")
    op.create_index("session_in_state", "session", ["state", "created_at"], schema="agentq")
    op.add_column(
        "tenant",
        sa.Column(
            "trace_content", sa.Text(), nullable=True, comment="inputs and outputs in traces; null: as the fleet"
        ),
        schema="agentq",
    )
    op.create_check_constraint(
        op.f("tenant_trace_content"), "tenant", "trace_content in ('off', 'kept', 'exported')", schema="agentq"
    )
    op.create_table(
        "trace",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("step_id", sa.Uuid(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False, comment="the attempt's"),
        sa.Column("ordinal", sa.SmallInteger(), nullable=False, comment="0: the attempt; then what it did, in order"),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False, comment="the partition's key"),
        sa.Column("kind", sa.Text(), nullable=False, comment="attempt, model, tool, wait, approval, or the user's own"),
        sa.Column("name", sa.Text(), nullable=False, comment="of the step, the model, the tool"),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("agent_version", sa.Integer(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("branch", sa.Integer(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("queued_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "closing", sa.Text(), nullable=True, comment="how the attempt was settled; lost: its worker died under it"
        ),
        sa.Column("failure", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("worker", sa.Uuid(), nullable=True),
        sa.Column("leads_to", sa.Text(), nullable=True, comment="the steps that follow"),
        sa.Column("tokens_in", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("tokens_out", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cost_micros", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column(
            "detail",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=True,
            comment="of an event: model, provider, tokens by kind, effect key, price's version",
        ),
        sa.Column("input", sa.LargeBinary(), nullable=True, comment="redacted"),
        sa.Column("output", sa.LargeBinary(), nullable=True, comment="redacted"),
        sa.CheckConstraint("(ordinal = 0) = (kind = 'attempt') and ordinal >= 0", name=op.f("trace_ordinal")),
        sa.CheckConstraint("(ordinal = 0) = (closing is not null)", name=op.f("trace_closing")),
        sa.CheckConstraint("cost_micros >= 0 and tokens_in >= 0 and tokens_out >= 0", name=op.f("trace_usage")),
        sa.PrimaryKeyConstraint(
            "tenant", "session_id", "step_id", "fence", "ordinal", "ended_at", name=op.f("trace_pk")
        ),
        schema="agentq",
        postgresql_partition_by="RANGE (ended_at)",
    )
    op.create_index(
        "trace_spend",
        "trace",
        ["ended_at", "tenant"],
        schema="agentq",
        postgresql_where=sa.text("cost_micros > 0 or tokens_in > 0 or tokens_out > 0"),
    )
    op.create_table(
        "decision",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("step_id", sa.Uuid(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("ordinal", sa.SmallInteger(), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False, comment="the partition's key"),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("step", sa.Text(), nullable=False, comment="the step's name"),
        sa.Column("options", sa.LargeBinary(), nullable=False, comment="what was considered, redacted"),
        sa.Column("picked", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=True, comment="as far as the model or the code says"),
        sa.Column("confidence", sa.REAL(), nullable=True),
        sa.Column("limits", postgresql.JSONB(astext_type=sa.Text()), nullable=True, comment="in force at that moment"),
        sa.Column("approver", sa.Text(), nullable=True),
        sa.CheckConstraint("confidence between 0 and 1", name=op.f("decision_confidence")),
        sa.PrimaryKeyConstraint(
            "tenant", "session_id", "step_id", "fence", "ordinal", "decided_at", name=op.f("decision_pk")
        ),
        schema="agentq",
        postgresql_partition_by="RANGE (decided_at)",
    )
    for name in ("trace", "decision"):
        op.execute(f"create table agentq.{name}_rest partition of agentq.{name} default")
    op.create_table(
        "trace_export",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False, comment="of the last session exported"),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("trace_export_pk")),
        schema="agentq",
    )
