"""Neighbours: where the pid of a worker process means it"""

import sqlalchemy as sa
from alembic import op

revision = "0018_neighbours"
down_revision = "0017_repairs"
branch_labels = None
depends_on = None
phase = "before"


def upgrade() -> None:
    place = sa.Column(
        "place", sa.Text(), comment="where its pid means this process: boot and pid namespace; null: nobody can tell"
    )
    op.add_column("worker", place, schema="agentq")
