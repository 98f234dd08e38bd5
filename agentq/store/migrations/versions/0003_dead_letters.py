"""Dead letters: what was buried, why, and what became of it"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003_dead_letters"
down_revision = "0002_recovery"
branch_labels = None
depends_on = None
phase = "before"


def upgrade() -> None:
    op.create_table(
        "poison_message",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("poison_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column(
            "digest", sa.LargeBinary(), nullable=False, comment="of the whole body: the same one again is counted"
        ),
        sa.Column("body", sa.LargeBinary(), nullable=False, comment="as it came, cut at a limit"),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("times", sa.Integer(), server_default="1", nullable=False),
        sa.Column("first_at", sa.DateTime(timezone=True), server_default=sa.text("agentq.now()"), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), server_default=sa.text("agentq.now()"), nullable=False),
        sa.CheckConstraint("times > 0 and size_bytes >= octet_length(body)", name=op.f("poison_message_counts")),
        sa.PrimaryKeyConstraint("tenant", "poison_id", name=op.f("poison_message_pk")),
        sa.UniqueConstraint("tenant", "queue", "digest", name="poison_message_digest"),
        schema="agentq",
    )
    op.create_table(
        "redrive_job",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column(
            "same_as",
            sa.Text(),
            nullable=False,
            comment="digest of selection and terms: the same command again goes on",
        ),
        sa.Column("operator", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=True, comment="the policy that began it, when no person did"),
        sa.Column(
            "selection",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="which letters, as agentq.letters() reads it",
        ),
        sa.Column(
            "terms",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="canary, threshold, rate, what is done about unknown effects, …",
        ),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("cursor_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cursor_letter", sa.Uuid(), nullable=True),
        sa.Column("matched", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("redriven", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("refused", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("driver", sa.Text(), nullable=True, comment="the process that drives it now"),
        sa.Column("driver_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("agentq.now()"), nullable=False),
        sa.Column("waiting_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("note", sa.Text(), nullable=True),
        sa.CheckConstraint("(state in ('done', 'stopped')) = (ended_at is not null)", name=op.f("redrive_job_ended")),
        sa.CheckConstraint(
            "state in ('canary', 'waiting', 'running', 'done', 'stopped')", name=op.f("redrive_job_state")
        ),
        sa.CheckConstraint("(cursor_at is null) = (cursor_letter is null)", name=op.f("redrive_job_cursor")),
        sa.PrimaryKeyConstraint("job_id", name=op.f("redrive_job_pk")),
        schema="agentq",
    )
    op.create_index(
        "redrive_job_live",
        "redrive_job",
        ["same_as"],
        unique=True,
        schema="agentq",
        postgresql_where=sa.text("ended_at is null"),
    )
    op.create_index("redrive_job_recent", "redrive_job", ["created_at"], unique=False, schema="agentq")
    op.create_table(
        "redrive_policy",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("selection", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "quiet_s", sa.REAL(), nullable=False, comment="so long without a death that matches, before it begins"
        ),
        sa.Column("canary", sa.Integer(), nullable=False),
        sa.Column("threshold", sa.REAL(), nullable=False),
        sa.Column("rate_per_s", sa.REAL(), nullable=False),
        sa.Column("max_generation", sa.Integer(), nullable=False),
        sa.Column("enabled", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("operator", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.text("agentq.now()"), nullable=False),
        sa.CheckConstraint("name ~ '^[a-z0-9][a-z0-9_-]{0,62}$'", name=op.f("redrive_policy_name")),
        sa.CheckConstraint(
            "quiet_s >= 0 and canary > 0 and rate_per_s > 0 and max_generation > 0", name=op.f("redrive_policy_bounds")
        ),
        sa.CheckConstraint("threshold > 0 and threshold <= 1", name=op.f("redrive_policy_threshold")),
        sa.PrimaryKeyConstraint("name", name=op.f("redrive_policy_pk")),
        schema="agentq",
    )
    op.create_table(
        "dead_letter",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column(
            "letter_id", sa.Uuid(), nullable=False, comment="random, so that its first digits tell it from others"
        ),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("step_id", sa.Uuid(), nullable=False),
        sa.Column(
            "generation", sa.Integer(), nullable=False, comment="replays and redrives of the session before this death"
        ),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("agent_version", sa.Integer(), nullable=False),
        sa.Column("step", sa.Text(), nullable=False, comment="the step's name"),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("class", sa.Text(), nullable=False, comment="the kind of the last failure"),
        sa.Column("cause", sa.Text(collation="C"), nullable=False, comment="fingerprint; see agentq.causes"),
        sa.Column("cause_text", sa.Text(), nullable=False),
        sa.Column(
            "dependency",
            sa.Text(),
            nullable=True,
            comment="the named dependency or provider that failed, when the failure tells",
        ),
        sa.Column("failure", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "attempts",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="the failures of its last attempts, oldest first",
        ),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("crashes", sa.SmallInteger(), nullable=False),
        sa.Column(
            "state_from", sa.Uuid(), nullable=True, comment="the checkpoint it began from; null: the session's input"
        ),
        sa.Column("cost_micros", sa.BigInteger(), nullable=False, comment="of the session so far"),
        sa.Column("effects_pending", sa.Integer(), nullable=False, comment="of the session, when it was buried"),
        sa.Column("effects_unknown", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), server_default="open", nullable=False),
        sa.Column(
            "announced",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="a message was sent, or waived",
        ),
        sa.Column("job_id", sa.Uuid(), nullable=True, comment="the redrive that took it up"),
        sa.Column("canary", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("redriven_as", sa.Uuid(), nullable=True, comment="the step that runs in its place"),
        sa.Column("changed_by", sa.Text(), nullable=True),
        sa.Column("note", sa.Text(), nullable=True, comment="why it was discarded or redriven, or what resolved it"),
        sa.Column("died_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("state <> 'redriving' or job_id is not null", name=op.f("dead_letter_redriving")),
        sa.CheckConstraint(
            "state in ('open', 'redriving', 'redriven', 'discarded', 'resolved')", name=op.f("dead_letter_state")
        ),
        sa.CheckConstraint(
            "generation >= 0 and cost_micros >= 0 and effects_pending >= 0 and effects_unknown >= 0",
            name=op.f("dead_letter_counts"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant", "session_id"],
            ["agentq.session.tenant", "agentq.session.session_id"],
            name=op.f("dead_letter_tenant_fk"),
        ),
        sa.PrimaryKeyConstraint("tenant", "letter_id", name=op.f("dead_letter_pk")),
        sa.UniqueConstraint("tenant", "session_id", "step_id", "generation", name="dead_letter_death"),
        schema="agentq",
    )
    op.create_index("dead_letter_all", "dead_letter", ["died_at"], unique=False, schema="agentq")
    op.create_index(
        "dead_letter_cause",
        "dead_letter",
        ["cause", "died_at"],
        unique=False,
        schema="agentq",
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_index("dead_letter_id", "dead_letter", ["letter_id"], unique=False, schema="agentq")
    op.create_index(
        "dead_letter_job",
        "dead_letter",
        ["job_id"],
        unique=False,
        schema="agentq",
        postgresql_where=sa.text("job_id is not null"),
    )
    op.create_index(
        "dead_letter_open",
        "dead_letter",
        ["died_at"],
        unique=False,
        schema="agentq",
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_index(
        "dead_letter_tenant",
        "dead_letter",
        ["tenant", "died_at"],
        unique=False,
        schema="agentq",
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_index(
        "dead_letter_unsent",
        "dead_letter",
        ["tenant"],
        unique=False,
        schema="agentq",
        postgresql_where=sa.text("not announced"),
    )
    op.add_column(
        "ledger_entry",
        sa.Column(
            "failures",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=True,
            comment="of the last attempts that failed, oldest first; bounded",
        ),
        schema="agentq",
    )
