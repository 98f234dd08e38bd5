"""Dead letters: what was buried, why, and what became of it"""

revision = "0003_dead_letters"
down_revision = "0002_recovery"
branch_labels = None
depends_on = None
phase = "before"


def upgrade() -> None:
    """To be filled by its area."""
