"""Budgets: what may be spent, what is reserved, what was charged"""

revision = "0006_budgets"
down_revision = "0005_approvals"
branch_labels = None
depends_on = None
phase = "before"


def upgrade() -> None:
    """To be filled by its area."""
