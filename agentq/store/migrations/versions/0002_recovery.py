"""Recovery: holds, generations, and places that a replay finds again"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002_recovery"
down_revision = "0001_ledger"
branch_labels = None
depends_on = None
phase = "before"

_ENDED = "state in ('done', 'dead', 'cancelled')"


def upgrade() -> None:
    _session()
    _ledger_entry()
    _worker()


def _worker() -> None:
    for column in (
        sa.Column("delivered_at", sa.DateTime(timezone=True)),
        sa.Column(
            "watchdog_restarts", sa.Integer(), server_default="0", nullable=False, comment="of its consumer, by itself"
        ),
        sa.Column("restarted_at", sa.DateTime(timezone=True)),
    ):
        op.add_column("worker", column, schema="agentq")


def _session() -> None:
    for column in (
        sa.Column("hold", postgresql.JSONB(), comment="why a paused session is paused: kind, by, reason, at, evidence"),
        sa.Column(
            "generation", sa.SmallInteger(), server_default="0", nullable=False, comment="replays and redrives so far"
        ),
        sa.Column("forked_from", sa.Uuid(), comment="the session whose step this one began as"),
        sa.Column(
            "dry_effects",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="recorded effects only",
        ),
    ):
        op.add_column("session", column, schema="agentq")
    op.create_check_constraint(op.f("session_hold"), "session", "hold is null or state = 'paused'", schema="agentq")
    op.create_check_constraint(op.f("session_generation"), "session", "generation >= 0", schema="agentq")


def _ledger_entry() -> None:
    for column in (
        sa.Column("path", sa.Uuid(), comment="its place in the session, found again by a replay"),
        sa.Column(
            "generation",
            sa.SmallInteger(),
            server_default="0",
            nullable=False,
            comment="the replay that began its line",
        ),
        sa.Column("superseded", sa.SmallInteger(), comment="the generation that took its place"),
        sa.Column(
            "unserved", sa.Text(), comment="agent@version that no worker serves: held without a slot until one does"
        ),
    ):
        op.add_column("ledger_entry", column, schema="agentq")
    # What ran before keeps its step's id as its place, and its effects are found there.
    op.execute("select set_config('agentq.tenant', '*', true)")
    op.execute("update agentq.ledger_entry set path = step_id")
    op.execute(
        "update agentq.effect set effect_key = 's:' || split_part(effect_key, ':', 3) || ':' || "
        "split_part(effect_key, ':', 4) where effect_key ~ '^s:[0-9a-f-]{36}:[0-9a-f-]{36}:[0-9]+$'"
    )
    op.alter_column("ledger_entry", "path", nullable=False, schema="agentq")
    for name, condition in (
        ("superseded", f"superseded is null or {_ENDED}"),
        ("unserved", "unserved is null or state = 'held'"),
    ):
        op.create_check_constraint(op.f(f"ledger_entry_{name}"), "ledger_entry", condition, schema="agentq")
    op.create_index(
        "ledger_entry_superseded",
        "ledger_entry",
        ["tenant", "session_id"],
        schema="agentq",
        postgresql_where=sa.text("superseded is not null"),
    )
    op.create_index(
        "ledger_entry_unserved",
        "ledger_entry",
        ["unserved"],
        schema="agentq",
        postgresql_where=sa.text("unserved is not null"),
    )
