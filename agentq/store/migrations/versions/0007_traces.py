"""Traces: what each attempt did, decided and used"""

revision = "0007_traces"
down_revision = "0006_budgets"
branch_labels = None
depends_on = None
phase = "before"


def upgrade() -> None:
    """To be filled by its area."""
