"""Keys: data keys of tenants, and tokens that let producers in"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0011_keys"
down_revision = "0010_placement"
branch_labels = None
depends_on = None
phase = "before"


def upgrade() -> None:
    now = sa.text("agentq.now()")
    op.create_table(
        "tenant_key",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("key_no", sa.Integer(), nullable=False, comment="named in each payload that it seals"),
        sa.Column("state", sa.Text(), server_default="active", nullable=False),
        sa.Column("kek", sa.Text(), nullable=False, comment="which key of the provider wraps it"),
        sa.Column("wrapped", sa.LargeBinary(), nullable=True, comment="null once it is destroyed"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=now, nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("destroyed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state in ('active', 'retired', 'destroyed')", name=op.f("tenant_key_state")),
        sa.CheckConstraint("(state = 'destroyed') = (wrapped is null)", name=op.f("tenant_key_wrapped")),
        sa.CheckConstraint("(state = 'destroyed') = (destroyed_at is not null)", name=op.f("tenant_key_destroyed")),
        sa.CheckConstraint("key_no > 0", name=op.f("tenant_key_key_no")),
        sa.PrimaryKeyConstraint("tenant", "key_no", name=op.f("tenant_key_pk")),
        schema="agentq",
    )
    op.create_index(
        "tenant_key_active",
        "tenant_key",
        ["tenant"],
        unique=True,
        schema="agentq",
        postgresql_where=sa.text("state = 'active'"),
    )
    op.create_table(
        "api_token",
        sa.Column("token_id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False, comment="who uses it, for people"),
        sa.Column("digest", sa.LargeBinary(), nullable=False, comment="SHA-256 of the token"),
        sa.Column("tenants", postgresql.ARRAY(sa.Text()), nullable=False, comment="those it may submit for"),
        sa.Column("agents", postgresql.ARRAY(sa.Text()), nullable=True, comment="those it may start; null: every one"),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=now, nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("octet_length(digest) = 32", name=op.f("api_token_digest")),
        sa.CheckConstraint("cardinality(tenants) > 0", name=op.f("api_token_tenants")),
        sa.CheckConstraint("cardinality(agents) > 0", name=op.f("api_token_agents")),
        sa.PrimaryKeyConstraint("token_id", name=op.f("api_token_pk")),
        schema="agentq",
    )
