"""Spend: what each session used; anomalies: the newest by an index, whatever is asked for"""

import sqlalchemy as sa
from alembic import op

revision = "0019_spend_session"
down_revision = "0018_neighbours"
branch_labels = None
depends_on = None
phase = "before"


def upgrade() -> None:
    op.create_table(
        "spend_session",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("day", sa.DateTime(timezone=True), nullable=False, comment="of its last attempt that used something"),
        sa.Column("first_at", sa.DateTime(timezone=True), nullable=False, comment="the end of the first such attempt"),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False)
            for name in ("uses", "tokens_in", "tokens_out", "cost_micros", "waste_micros", "repairs")
        ),
        sa.Column("repair_micros", sa.BigInteger(), nullable=False, comment="what of the waste they cost"),
        sa.CheckConstraint("first_at <= last_at and day <= last_at", name=op.f("spend_session_times")),
        sa.PrimaryKeyConstraint("tenant", "session_id", name=op.f("spend_session_pk")),
        schema="agentq",
    )
    dearest: list[str | sa.TextClause] = ["day", sa.text("cost_micros desc"), "session_id", "agent"]
    op.create_index("spend_session_tenant", "spend_session", ["tenant", *dearest], schema="agentq")
    op.create_index("spend_session_all", "spend_session", [*dearest], schema="agentq")
    op.create_index(
        "spend_session_days",
        "spend_session",
        ["tenant", "last_at", "first_at"],
        schema="agentq",
        postgresql_where=sa.text("first_at < day"),
    )
    # What was summed up by hour before is summed up by session from the beginning on.
    op.add_column("spend_mark", sa.Column("sessions_until", sa.DateTime(timezone=True)), schema="agentq")
    op.create_check_constraint(
        op.f("spend_mark_sessions"), "spend_mark", "sessions_until <= rolled_until", schema="agentq"
    )
    # Anomalies are few, so that their indices may be written while that locks them.
    for name in ("anomaly_newest", "anomaly_open"):
        op.drop_index(name, "anomaly", schema="agentq")
    op.create_index("anomaly_newest", "anomaly", ["found_at", "anomaly_id", "agent"], schema="agentq")
    op.create_index(
        "anomaly_open",
        "anomaly",
        ["found_at", "anomaly_id", "agent"],
        schema="agentq",
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_index(
        "anomaly_tenant", "anomaly", ["tenant", "found_at", "anomaly_id", "state", "agent"], schema="agentq"
    )
