"""Spend: what was used and paid, by hour and by day"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0016_spend"
down_revision = "0015_many_tenants"
branch_labels = None
depends_on = None
phase = "before"


def _sums(name: str) -> None:
    counts = ("tokens_in", "tokens_out", "cost_micros", "waste_micros", "tokens_cached", "took_us", "recalled")
    op.create_table(
        name,
        sa.Column("tenant", sa.Text(), nullable=False, comment="'*': all tenants together, of models and tools"),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "kind", sa.Text(), nullable=False, comment="attempts hold all that was used; models and tools are parts"
        ),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False, comment="of the model or tool"),
        sa.Column("uses", sa.BigInteger(), nullable=False),
        sa.Column("sessions", sa.BigInteger(), nullable=False, comment="that were never counted in such a row before"),
        *(sa.Column(count, sa.BigInteger(), nullable=False) for count in (*counts, "sandbox_us")),
        sa.CheckConstraint("kind in ('attempt', 'model', 'tool')", name=op.f(f"{name}_kind")),
        sa.PrimaryKeyConstraint("tenant", "starts_at", "kind", "agent", "name", name=op.f(f"{name}_pk")),
        schema="agentq",
    )
    op.create_index(f"{name}_time", name, ["kind", "starts_at"], schema="agentq")


def upgrade() -> None:
    _sums("spend_hour")
    _sums("spend_day")
    op.create_table(
        "spend_mark",
        sa.Column("one", sa.SmallInteger(), server_default="1", nullable=False),
        sa.Column("rolled_until", sa.DateTime(timezone=True)),
        sa.Column("days_until", sa.DateTime(timezone=True)),
        sa.Column("closed_until", sa.DateTime(timezone=True)),
        sa.Column("closing_until", sa.DateTime(timezone=True)),
        sa.Column(
            "waits_for",
            postgresql.ARRAY(sa.Text()),
            comment="transactions that ran when the hours before closing_until were over",
        ),
        sa.CheckConstraint("one = 1", name=op.f("spend_mark_one")),
        sa.CheckConstraint("(closing_until is null) = (waits_for is null)", name=op.f("spend_mark_closing")),
        sa.CheckConstraint(
            "rolled_until <= closed_until and days_until <= rolled_until", name=op.f("spend_mark_order")
        ),
        sa.PrimaryKeyConstraint("one", name=op.f("spend_mark_pk")),
        schema="agentq",
    )
    op.execute("insert into agentq.spend_mark default values")
    op.create_index(
        "trace_time",
        "trace",
        ["ended_at"],
        schema="agentq",
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 32, "autosummarize": "on"},
    )
