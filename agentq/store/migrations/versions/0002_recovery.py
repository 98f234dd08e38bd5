"""Recovery: holds, generations, and places that a replay finds again"""

revision = "0002_recovery"
down_revision = "0001_ledger"
branch_labels = None
depends_on = None
phase = "before"


def upgrade() -> None:
    """To be filled by its area."""
