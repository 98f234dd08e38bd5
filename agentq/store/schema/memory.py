"""
The tables of long-term memory: what agents keep beyond a session, in versions, and the words it is found by.

A key has one live row at most, and older ones with the time since when they are read no more: replaced by a
newer version, deleted, or expired. The newest row of a key that is gone keeps its number without its content,
so that a version is never given twice.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, REAL, TSVECTOR

from agentq.store.schema.base import metadata, time

memory = Table(
    "memory",
    metadata,
    Column("tenant", Text, primary_key=True),
    # Sorted by bytes, so that what lies below a namespace is one range of the key.
    Column("namespace", Text(collation="C"), primary_key=True, comment="parts joined by slashes"),
    Column("key", Text(collation="C"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("memory_id", BigInteger, Identity(always=True), nullable=False, unique=True),
    Column("value", LargeBinary, comment="null: its content is gone"),
    Column("fields", ARRAY(Text), comment="the fields of the value that are searched; null: all of it"),
    Column("embedding", ARRAY(REAL), comment="real[], so that servers without pgvector have the same table"),
    Column("embedded_by", Text, comment="the embedding's model and size; vectors of two are never compared"),
    Column("digest", LargeBinary, nullable=False, comment="of what was written, to know a repeat by"),
    Column("op", Text, comment="the write's place in its step, or in its effect; a replay finds it again"),
    Column("session_id", Uuid, comment="who wrote it; null: an operator or a producer"),
    Column("step_id", Uuid),
    Column("agent", Text),
    Column("attempt", Integer),
    Column("written_by", Text, nullable=False, comment="the step's name, or who acted"),
    time("written_at", nullable=False, now=True),
    time("expires_at"),
    time("gone_at"),
    ForeignKeyConstraint(["tenant"], ["agentq.tenant.name"]),
    CheckConstraint("version > 0", name="version"),
    CheckConstraint("length(namespace) between 1 and 400 and length(key) between 1 and 200", name="name"),
    CheckConstraint("value is not null or gone_at is not null", name="value"),
    CheckConstraint("(embedding is null) = (embedded_by is null)", name="embedded_by"),
    CheckConstraint("embedding is null or gone_at is null", name="embedding"),
    CheckConstraint("(session_id is null) = (step_id is null)", name="step"),
    Index("memory_live", "tenant", "namespace", "key", unique=True, postgresql_where=text("gone_at is null")),
    Index("memory_newest", "tenant", "written_at", postgresql_where=text("gone_at is null")),
    Index("memory_expiry", "expires_at", postgresql_where=text("expires_at is not null and gone_at is null")),
    Index("memory_gone", "gone_at", postgresql_where=text("gone_at is not null")),
)

# Postgres uses no index of words for rows that row security guards: the operator might tell of rows that are not
# to be seen. So the words stand beside them, without a tenant, closed to the fleet but for three functions that
# give out ids; what an id stands for is read under row security.
memory_words = Table(
    "memory_words",
    metadata,
    Column("memory_id", BigInteger, primary_key=True, autoincrement=False),
    Column("words", TSVECTOR, nullable=False, comment="and digests of the tenant with each namespace it lies in"),
    ForeignKeyConstraint(["memory_id"], ["agentq.memory.memory_id"], ondelete="CASCADE"),
    Index("memory_words_words", "words", postgresql_using="gin"),
)
