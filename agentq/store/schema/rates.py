"""Rates: how often a provider may be called, and the buckets that count where the broker cannot."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, Integer, Table, Text
from sqlalchemy.dialects.postgresql import REAL

from agentq.store.schema.base import metadata, time

rate_limit = Table(
    "rate_limit",
    metadata,
    Column("tenant", Text, primary_key=True, comment="*: of the whole fleet, divided among the tenants that call"),
    Column("provider", Text, primary_key=True),
    Column("requests_per_min", Integer, comment="as an operator set it"),
    Column("tokens_per_min", BigInteger),
    Column("learned_requests", Integer, comment="as the provider's headers said last"),
    Column("learned_tokens", BigInteger),
    time("changed_at", nullable=False, now=True),
    CheckConstraint("requests_per_min > 0 and tokens_per_min > 0", name="amounts"),
    CheckConstraint("learned_requests > 0 and learned_tokens > 0", name="learned"),
)

# Where there is no Redis, or it does not answer. The fleet's rows: each tenant's limits depend on all others'.
rate_bucket = Table(
    "rate_bucket",
    metadata,
    Column("bucket", Text, primary_key=True),
    time("full_at", nullable=False),
)

rate_caller = Table(
    "rate_caller",
    metadata,
    Column("provider", Text, primary_key=True),
    Column("caller", Text, primary_key=True),
    Column("weight", REAL, nullable=False),
    time("seen_at", nullable=False),
)
