"""Memory: what agents keep beyond a session"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009_memory"
down_revision = "0008_agents"
branch_labels = None
depends_on = None
phase = "before"


def _time(name: str, **more: object) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), **more)  # type: ignore[arg-type]


def upgrade() -> None:
    op.create_table(
        "memory",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("namespace", sa.Text(collation="C"), nullable=False, comment="parts joined by slashes"),
        sa.Column("key", sa.Text(collation="C"), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("memory_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("value", sa.LargeBinary(), comment="null: its content is gone"),
        sa.Column(
            "fields",
            postgresql.ARRAY(sa.Text()),
            comment="the fields of the value that are searched; null: all of it",
        ),
        sa.Column(
            "embedding",
            postgresql.ARRAY(postgresql.REAL()),
            comment="real[], so that servers without pgvector have the same table",
        ),
        sa.Column(
            "embedded_by",
            sa.Text(),
            comment="the embedding's model and size; vectors of two are never compared",
        ),
        sa.Column("digest", sa.LargeBinary(), nullable=False, comment="of what was written, to know a repeat by"),
        sa.Column("op", sa.Text(), comment="the write's place in its step, or in its effect; a replay finds it again"),
        sa.Column("session_id", sa.Uuid(), comment="who wrote it; null: an operator or a producer"),
        sa.Column("step_id", sa.Uuid()),
        sa.Column("agent", sa.Text()),
        sa.Column("attempt", sa.Integer()),
        sa.Column("written_by", sa.Text(), nullable=False, comment="the step's name, or who acted"),
        _time("written_at", server_default=sa.text("agentq.now()"), nullable=False),
        _time("expires_at"),
        _time("gone_at"),
        sa.CheckConstraint("version > 0", name=op.f("memory_version")),
        sa.CheckConstraint(
            "length(namespace) between 1 and 400 and length(key) between 1 and 200", name=op.f("memory_name")
        ),
        sa.CheckConstraint("value is not null or gone_at is not null", name=op.f("memory_value")),
        sa.CheckConstraint("(embedding is null) = (embedded_by is null)", name=op.f("memory_embedded_by")),
        sa.CheckConstraint("embedding is null or gone_at is null", name=op.f("memory_embedding")),
        sa.CheckConstraint("(session_id is null) = (step_id is null)", name=op.f("memory_step")),
        sa.ForeignKeyConstraint(["tenant"], ["agentq.tenant.name"], name=op.f("memory_tenant_fk")),
        sa.PrimaryKeyConstraint("tenant", "namespace", "key", "version", name=op.f("memory_pk")),
        sa.UniqueConstraint("memory_id", name=op.f("memory_memory_id_key")),
        schema="agentq",
    )
    for name, columns, unique, where in (
        ("memory_live", ["tenant", "namespace", "key"], True, "gone_at is null"),
        ("memory_newest", ["tenant", "written_at"], False, "gone_at is null"),
        ("memory_expiry", ["expires_at"], False, "expires_at is not null and gone_at is null"),
        ("memory_gone", ["gone_at"], False, "gone_at is not null"),
    ):
        op.create_index(name, "memory", columns, unique=unique, schema="agentq", postgresql_where=sa.text(where))
    op.create_table(
        "memory_words",
        sa.Column("memory_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column(
            "words",
            postgresql.TSVECTOR(),
            nullable=False,
            comment="and digests of the tenant with each namespace it lies in",
        ),
        sa.ForeignKeyConstraint(
            ["memory_id"],
            ["agentq.memory.memory_id"],
            name=op.f("memory_words_memory_id_fk"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("memory_id", name=op.f("memory_words_pk")),
        schema="agentq",
    )
    op.create_index("memory_words_words", "memory_words", ["words"], schema="agentq", postgresql_using="gin")
    op.add_column(
        "tenant",
        sa.Column(
            "memory_days",
            sa.Integer(),
            comment="memories are removed so long after they were written; null: as its sessions, 0: never",
        ),
        schema="agentq",
    )
    op.create_check_constraint(op.f("tenant_memory_days"), "tenant", "memory_days >= 0", schema="agentq")


def downgrade() -> None:
    op.drop_constraint(op.f("tenant_memory_days"), "tenant", schema="agentq")
    op.drop_column("tenant", "memory_days", schema="agentq")
    op.drop_table("memory_words", schema="agentq")
    op.drop_table("memory", schema="agentq")
