"""Agents: what a model remembers"""

revision = "0008_agents"
down_revision = "0007_traces"
branch_labels = None
depends_on = None
phase = "before"


def upgrade() -> None:
    """To be filled by its area."""
