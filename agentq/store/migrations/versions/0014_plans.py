"""Plans that do not depend on when the last analyze came by"""

from alembic import op

revision = "0014_plans"
down_revision = "0013_seeing"
branch_labels = None
depends_on = None
phase = "before"

TABLES = (
    "session", "ledger_entry", "checkpoint", "branch", "message", "effect", "session_event", "session_tally",
    "dead_letter", "approval", "reservation", "notice",
)  # fmt: skip


def upgrade() -> None:
    # A tenant whose first flood came after the last analyze is unknown to the statistics: by them it has one row, and
    # to walk all of its rows looks as cheap as to go by the key. Without statistics of this column Postgres takes a
    # tenant for a two-hundredth of the table, and goes by the key.
    for table in TABLES:
        op.execute(f"alter table agentq.{table} alter column tenant set statistics 0")
    # What an analyze has left there stays otherwise. Before PostgreSQL 18 nothing else takes it away.
    clear = "".join(f"perform pg_clear_attribute_stats('agentq', '{table}', 'tenant', false); " for table in TABLES)
    op.execute(f"do $$ begin if to_regproc('pg_clear_attribute_stats') is not null then {clear} end if; end $$")
