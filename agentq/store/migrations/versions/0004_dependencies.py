"""Dependencies: breakers that the fleet shares"""

revision = "0004_dependencies"
down_revision = "0003_dead_letters"
branch_labels = None
depends_on = None
phase = "before"


def upgrade() -> None:
    """To be filled by its area."""
