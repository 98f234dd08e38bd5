"""Agents: which version wrote a session's input, once another has taken it over"""

import sqlalchemy as sa
from alembic import op

revision = "0008_agents"
down_revision = "0007_traces"
branch_labels = None
depends_on = None
phase = "before"


def upgrade() -> None:
    column = sa.Column(
        "input_version", sa.Integer(), comment="of the agent that took the input, once a newer one has taken over"
    )
    op.add_column("session", column, schema="agentq")
