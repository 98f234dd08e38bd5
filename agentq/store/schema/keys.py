"""The tables of secrets: wrapped data keys of tenants, and tokens that let producers in."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, Index, Integer, LargeBinary, Table, Text, Uuid, text
from sqlalchemy.dialects.postgresql import ARRAY

from agentq.store.schema.base import metadata, one_of, time

# No reference to the tenant: `*` has keys for what belongs to nobody, and a destroyed key outlives what it sealed.
tenant_key = Table(
    "tenant_key",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("key_no", Integer, primary_key=True, comment="named in each payload that it seals"),
    Column("state", Text, nullable=False, server_default="active"),
    Column("kek", Text, nullable=False, comment="which key of the provider wraps it"),
    Column("wrapped", LargeBinary, comment="null once it is destroyed"),
    time("created_at", nullable=False, now=True),
    time("retired_at"),
    time("destroyed_at"),
    CheckConstraint(one_of("state", ("active", "retired", "destroyed")), name="state"),
    CheckConstraint("(state = 'destroyed') = (wrapped is null)", name="wrapped"),
    CheckConstraint("(state = 'destroyed') = (destroyed_at is not null)", name="destroyed"),
    CheckConstraint("key_no > 0", name="key_no"),
    Index("tenant_key_active", "tenant", unique=True, postgresql_where=text("state = 'active'")),
)

# An operator's row, not a tenant's: one token may serve several tenants. The token itself is nowhere.
api_token = Table(
    "api_token",
    metadata,
    Column("token_id", Uuid, primary_key=True, server_default=text("gen_random_uuid()")),
    Column("name", Text, nullable=False, comment="who uses it, for people"),
    Column("digest", LargeBinary, nullable=False, comment="SHA-256 of the token"),
    Column("tenants", ARRAY(Text), nullable=False, comment="those it may submit for"),
    Column("agents", ARRAY(Text), comment="those it may start; null: every one"),
    Column("created_by", Text, nullable=False),
    time("created_at", nullable=False, now=True),
    time("expires_at"),
    time("used_at"),
    time("revoked_at"),
    CheckConstraint("octet_length(digest) = 32", name="digest"),
    CheckConstraint("cardinality(tenants) > 0", name="tenants"),
    CheckConstraint("cardinality(agents) > 0", name="agents"),
)
