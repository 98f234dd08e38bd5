"""Anomalies: what is normal for an agent, and what was not"""

revision = "0012_anomalies"
down_revision = "0011_keys"
branch_labels = None
depends_on = None
phase = "before"


def upgrade() -> None:
    pass
