"""Approvals: what waits for a person"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005_approvals"
down_revision = "0004_dependencies"
branch_labels = None
depends_on = None
phase = "before"

_TIME = sa.DateTime(timezone=True)
_NOW = sa.text("agentq.now()")


def upgrade() -> None:
    op.create_table(
        "approval",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("approval_id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("step_id", sa.Uuid(), nullable=False, comment="the step that waits for it"),
        sa.Column("fence", sa.Integer(), nullable=False, comment="the attempt that asked"),
        sa.Column("generation", sa.Integer(), nullable=False, comment="of the session when it was asked"),
        sa.Column("kind", sa.Text(), nullable=False, comment="ask: a step asked; effect: a call waits for it"),
        sa.Column("name", sa.Text(), nullable=False, comment="the effect, or the step that follows"),
        sa.Column("effect_key", sa.Text(), nullable=True),
        sa.Column("args", sa.LargeBinary(), nullable=False, comment="what would be done, by argument"),
        sa.Column("args_hash", sa.LargeBinary(), nullable=False),
        sa.Column("question", sa.Text(), nullable=False),
        sa.Column("details", sa.LargeBinary(), nullable=True, comment="for the approver's eyes"),
        sa.Column("groups", postgresql.ARRAY(sa.Text()), nullable=False, comment="who may decide: one of these"),
        sa.Column(
            "channels",
            postgresql.ARRAY(sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="who is told, and how",
        ),
        sa.Column("state", sa.Text(), server_default="open", nullable=False),
        sa.Column("asked_at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("deadline_at", _TIME, nullable=False),
        sa.Column("remind_at", _TIME, nullable=True),
        sa.Column("decided_at", _TIME, nullable=True),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column(
            "decided_via", sa.Text(), nullable=True, comment="how the name was made sure of: token, login or policy"
        ),
        sa.Column("comment", sa.Text(), nullable=True),
        sa.Column("edited", sa.LargeBinary(), nullable=True, comment="the arguments as the approver changed them"),
        sa.Column("edited_hash", sa.LargeBinary(), nullable=True),
        sa.Column("diff", sa.LargeBinary(), nullable=True, comment="path, before and after of each change"),
        sa.CheckConstraint("state in ('open', 'granted', 'denied', 'expired', 'void')", name=op.f("approval_state")),
        sa.CheckConstraint("kind in ('ask', 'effect')", name=op.f("approval_kind")),
        sa.CheckConstraint("(kind = 'effect') = (effect_key is not null)", name=op.f("approval_effect_key")),
        sa.CheckConstraint("(state = 'open') = (decided_at is null)", name=op.f("approval_decided")),
        sa.CheckConstraint(
            "(state in ('granted', 'denied')) = (decided_by is not null)", name=op.f("approval_decided_by")
        ),
        sa.CheckConstraint("(decided_by is null) = (decided_via is null)", name=op.f("approval_decided_via")),
        sa.CheckConstraint("(edited is null) = (edited_hash is null)", name=op.f("approval_edited_hash")),
        sa.CheckConstraint("edited is null or state = 'granted'", name=op.f("approval_edited")),
        sa.CheckConstraint(
            "state not in ('granted', 'denied') or decided_at <= deadline_at", name=op.f("approval_deadline")
        ),
        sa.CheckConstraint("cardinality(groups) > 0", name=op.f("approval_groups")),
        sa.ForeignKeyConstraint(
            ["tenant", "session_id"],
            ["agentq.session.tenant", "agentq.session.session_id"],
            name=op.f("approval_tenant_fk"),
        ),
        sa.PrimaryKeyConstraint("tenant", "approval_id", name=op.f("approval_pk")),
        schema="agentq",
    )
    op.create_index("approval_session", "approval", ["tenant", "session_id"], schema="agentq")
    op.create_index(
        "approval_effect",
        "approval",
        ["tenant", "effect_key"],
        schema="agentq",
        postgresql_where=sa.text("effect_key is not null"),
    )
    op.create_index(
        "approval_deadline", "approval", ["deadline_at"], schema="agentq", postgresql_where=sa.text("state = 'open'")
    )
    op.create_index(
        "approval_remind",
        "approval",
        ["remind_at"],
        schema="agentq",
        postgresql_where=sa.text("state = 'open' and remind_at is not null"),
    )
    op.create_table(
        "notice",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("notice_id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("approval_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="due", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("due_at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("sent_at", _TIME, nullable=True),
        sa.Column("failure", sa.Text(), nullable=True, comment="of the latest attempt"),
        sa.CheckConstraint("kind in ('asked', 'reminder', 'decided')", name=op.f("notice_kind")),
        sa.CheckConstraint("channel in ('webhook', 'email')", name=op.f("notice_channel")),
        sa.CheckConstraint("state in ('due', 'sent', 'failed')", name=op.f("notice_state")),
        sa.CheckConstraint("(state = 'sent') = (sent_at is not null)", name=op.f("notice_sent")),
        sa.ForeignKeyConstraint(
            ["tenant", "approval_id"],
            ["agentq.approval.tenant", "agentq.approval.approval_id"],
            name=op.f("notice_tenant_fk"),
        ),
        sa.PrimaryKeyConstraint("tenant", "notice_id", name=op.f("notice_pk")),
        schema="agentq",
    )
    op.create_index("notice_due", "notice", ["due_at"], schema="agentq", postgresql_where=sa.text("state = 'due'"))
    op.create_index("notice_approval", "notice", ["tenant", "approval_id"], schema="agentq")
    op.add_column(
        "ledger_entry",
        sa.Column("approval", sa.Uuid(), nullable=True, comment="what it waits for, or whose answer it was given"),
        schema="agentq",
    )
    op.drop_constraint("ledger_entry_waiting", "ledger_entry", schema="agentq")
    op.create_check_constraint(
        op.f("ledger_entry_waiting"),
        "ledger_entry",
        "state <> 'waiting' or waits_for > 0 or approval is not null",
        schema="agentq",
    )
    op.add_column(
        "tenant",
        sa.Column(
            "preapproved",
            postgresql.ARRAY(sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="effects that need nobody",
        ),
        schema="agentq",
    )
