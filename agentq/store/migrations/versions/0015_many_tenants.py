"""Many tenants: what is looked for among them is found by an index"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0015_many_tenants"
down_revision = "0014_plans"
branch_labels = None
depends_on = None
phase = "before"


def upgrade() -> None:
    sharing: sa.Column[Any] = sa.Column(
        "sharing",
        sa.Boolean(),
        server_default=sa.text("false"),
        nullable=False,
        comment="had part in the last division",
    )
    op.add_column("tenant", sharing, schema="agentq")
    indices = {
        "tenant_sharing": ("tenant", "name", "sharing"),
        "tenant_keeps": ("tenant", "name", "retention_days is not null or memory_days is not null"),
        "tenant_restricted": ("tenant", "name", "agents is not null or tools is not null"),
        "tenant_weighted": ("tenant", "name", "weight <> 1"),
        "dependency_held": (
            "dependency", "name", "tenant <> '*' and state in ('open', 'half_open', 'forced_open')",
        ),
        "dependency_fleet": ("dependency", "seen_at", "tenant = '*'"),
    }  # fmt: skip
    for name, (table, column, where) in indices.items():
        op.create_index(name, table, [column], schema="agentq", postgresql_where=sa.text(where))
