"""Placement: queues of their own, shards, and groups of workers"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010_placement"
down_revision = "0009_memory"
branch_labels = None
depends_on = None
phase = "before"


def upgrade() -> None:
    columns: list[sa.Column[Any]] = [
        sa.Column(
            "worker_group", sa.Text(), server_default="default", nullable=False, comment="the workers that serve it"
        ),
        sa.Column(
            "placement", sa.Text(), server_default="auto", nullable=False, comment="the queue that was asked for"
        ),
        sa.Column("shard", sa.Integer(), comment="of its group, whose queue it shares; null: a queue of its own"),
        sa.Column("placed_at", sa.DateTime(timezone=True)),
        sa.Column(
            "former_queues",
            postgresql.ARRAY(sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="left, to be removed",
        ),
    ]
    for column in columns:
        op.add_column("tenant", column, schema="agentq")
    checks = {
        "placement": "placement in ('auto', 'own', 'shard')",
        "worker_group": "worker_group ~ '^[a-z0-9][a-z0-9_-]{0,62}$' and worker_group <> 'quarantine'",
        "shard": "shard is null or (shard >= 0 and placement <> 'own')",
    }
    for name, check in checks.items():
        op.create_check_constraint(op.f(f"tenant_{name}"), "tenant", check, schema="agentq")
    indices = {
        "tenant_own_queue": (["worker_group", "name"], "shard is null"),
        "tenant_in_shard": (["worker_group", "shard"], "shard is not null"),
        "tenant_not_placed": (["name"], "placed_at is null"),
        "tenant_moved": (["placed_at"], "former_queues <> '{}'"),
    }
    for name, (of, where) in indices.items():
        op.create_index(name, "tenant", of, schema="agentq", postgresql_where=sa.text(where))
