"""Seeing: what the pages search by"""

from alembic import op

revision = "0013_seeing"
down_revision = "0012_anomalies"
branch_labels = None
depends_on = None
phase = "before"


def upgrade() -> None:
    # With the id, so that a page begins at its place also where a thousand sessions began at once.
    for name, columns in (("session_recent", ["tenant"]), ("session_in_state", ["state"])):
        op.drop_index(name, "session", schema="agentq")
        op.create_index(name, "session", [*columns, "created_at", "session_id"], schema="agentq")
    op.create_index("session_tenant_state", "session", ["tenant", "state", "created_at", "session_id"], schema="agentq")
    op.create_index("session_agent", "session", ["agent", "created_at", "session_id"], schema="agentq")
