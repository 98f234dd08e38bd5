"""Approvals: what waits for a person"""

revision = "0005_approvals"
down_revision = "0004_dependencies"
branch_labels = None
depends_on = None
phase = "before"


def upgrade() -> None:
    """To be filled by its area."""
