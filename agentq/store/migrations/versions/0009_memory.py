"""Memory: what agents keep beyond a session"""

revision = "0009_memory"
down_revision = "0008_agents"
branch_labels = None
depends_on = None
phase = "before"


def upgrade() -> None:
    pass
