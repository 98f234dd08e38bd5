"""Dependencies: breakers that the fleet shares, counters of the failure classes, effects resolved by hand"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004_dependencies"
down_revision = "0003_dead_letters"
branch_labels = None
depends_on = None
phase = "before"

_NAME = "~ '^[a-z0-9][a-z0-9_-]{0,62}$'"


def _time(name: str, **more: object) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), **more)  # type: ignore[arg-type]


def _now(name: str) -> sa.Column[object]:
    return _time(name, server_default=sa.text("agentq.now()"), nullable=False)


def _count(
    name: str, comment: str | None = None, kind: type[sa.types.TypeEngine[int]] = sa.BigInteger
) -> sa.Column[int]:
    return sa.Column(name, kind(), server_default="0", nullable=False, comment=comment)


def upgrade() -> None:
    op.create_table(
        "dependency",
        sa.Column(
            "tenant",
            sa.Text(),
            nullable=False,
            comment="'*': all tenants together; else that tenant's own access to it",
        ),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="closed", nullable=False),
        _now("changed_at"),
        _now("seen_at"),
        _time("probe_at"),
        _time("forced_until"),
        sa.Column(
            "pause_s",
            postgresql.REAL(),
            server_default="0",
            nullable=False,
            comment="the latest pause between two probes",
        ),
        _count("good", "probes that went well since it is half open", sa.Integer),
        _count("ok_total", "calls that were answered"),
        _count("bad_total", "calls that spoke against it"),
        _count("refused_total", "times a step was held back"),
        _count("openings"),
        sa.Column(
            "last_failure",
            postgresql.JSONB(),
            comment="kind, type and status of the latest; no message, which may be a tenant's",
        ),
        sa.CheckConstraint(f"name {_NAME}", name=op.f("dependency_name")),
        sa.CheckConstraint(f"tenant = '*' or tenant {_NAME}", name=op.f("dependency_tenant")),
        sa.CheckConstraint(
            "state in ('closed', 'open', 'half_open', 'forced_open', 'forced_shut')", name=op.f("dependency_state")
        ),
        sa.CheckConstraint("state <> 'open' or probe_at is not null", name=op.f("dependency_probe")),
        sa.CheckConstraint(
            "forced_until is null or state in ('forced_open', 'forced_shut')", name=op.f("dependency_forced")
        ),
        sa.PrimaryKeyConstraint("tenant", "name", name=op.f("dependency_pk")),
        schema="agentq",
    )
    op.create_table(
        "dependency_window",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("slot", sa.BigInteger(), nullable=False),
        _count("ok", kind=sa.Integer),
        _count("bad", kind=sa.Integer),
        sa.CheckConstraint("ok >= 0 and bad >= 0", name=op.f("dependency_window_counts")),
        sa.PrimaryKeyConstraint("tenant", "name", "slot", name=op.f("dependency_window_pk")),
        schema="agentq",
    )
    op.create_table(
        "dependency_probe",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("probe", sa.Uuid(), nullable=False),
        sa.Column("worker", sa.Uuid(), comment="the process that tries, when it is one of the fleet's"),
        _time("expires_at", nullable=False),
        sa.PrimaryKeyConstraint("tenant", "name", "probe", name=op.f("dependency_probe_pk")),
        schema="agentq",
    )
    op.create_table(
        "dependency_change",
        sa.Column("change_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        _now("at"),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("change_id", name=op.f("dependency_change_pk")),
        schema="agentq",
    )
    op.create_index(
        "dependency_change_name",
        "dependency_change",
        ["name", "tenant", sa.text("change_id desc")],
        unique=False,
        schema="agentq",
    )
    for column in (
        _count("repairs", "wrong answers fed back to it", sa.SmallInteger),
        _count("refusals", "times it was put off, without fault", sa.Integer),
        _count(
            "blamed",
            "failed attempts laid to a dependency: given back when that turns out to be out of order",
            sa.SmallInteger,
        ),
        sa.Column("repair", postgresql.JSONB(), comment="the wrong answer that the next attempt is told of"),
    ):
        op.add_column("ledger_entry", column, schema="agentq")
    op.create_check_constraint(
        op.f("ledger_entry_uncounted"),
        "ledger_entry",
        "repairs >= 0 and refusals >= 0 and blamed >= 0",
        schema="agentq",
    )
    op.add_column(
        "effect",
        sa.Column("resolved_by", sa.Text(), comment="who told what had become of it, when its outcome was not known"),
        schema="agentq",
    )
    op.create_index(
        "effect_open",
        "effect",
        ["tenant", "claimed_at"],
        unique=False,
        schema="agentq",
        postgresql_where=sa.text("state in ('pending', 'unknown')"),
    )


def downgrade() -> None:
    op.drop_index("effect_open", table_name="effect", schema="agentq")
    op.drop_column("effect", "resolved_by", schema="agentq")
    op.drop_constraint(op.f("ledger_entry_uncounted"), "ledger_entry", schema="agentq")
    for column in ("repair", "blamed", "refusals", "repairs"):
        op.drop_column("ledger_entry", column, schema="agentq")
    for table in ("dependency_change", "dependency_probe", "dependency_window", "dependency"):
        op.drop_table(table, schema="agentq")
