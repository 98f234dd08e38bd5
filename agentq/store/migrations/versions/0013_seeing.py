"""Seeing: what the pages search by"""

revision = "0013_seeing"
down_revision = "0012_anomalies"
branch_labels = None
depends_on = None
phase = "before"


def upgrade() -> None:
    pass
