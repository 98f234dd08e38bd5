"""Placement: queues of their own, shards, and groups of workers"""

revision = "0010_placement"
down_revision = "0009_memory"
branch_labels = None
depends_on = None
phase = "before"


def upgrade() -> None:
    pass
