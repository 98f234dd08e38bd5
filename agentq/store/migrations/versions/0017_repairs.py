"""Repairs: what of the waste was paid for mending what a model had written"""

import sqlalchemy as sa
from alembic import op

revision = "0017_repairs"
down_revision = "0016_spend"
branch_labels = None
depends_on = None
phase = "before"


def upgrade() -> None:
    for table in ("spend_hour", "spend_day"):
        repairs: sa.Column[int] = sa.Column("repairs", sa.BigInteger(), server_default="0", nullable=False)
        micros: sa.Column[int] = sa.Column(
            "repair_micros", sa.BigInteger(), server_default="0", nullable=False, comment="what of the waste they cost"
        )
        op.add_column(table, repairs, schema="agentq")
        op.add_column(table, micros, schema="agentq")
    # It returns these columns too, after the others; made anew with the functions, in this transaction. An earlier
    # release reads both alike, by place.
    op.execute("drop function if exists agentq.spend_lines(timestamptz, timestamptz, text, uuid[], boolean)")
