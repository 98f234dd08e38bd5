"""What waits for a person: approvals with their deadline and decision, and the notices that tell of them."""

from __future__ import annotations

from sqlalchemy import (
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY

from agentq.store.schema.base import metadata, one_of, time

APPROVAL_STATES = ("open", "granted", "denied", "expired", "void")

approval = Table(
    "approval",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("approval_id", Uuid, primary_key=True),
    Column("session_id", Uuid, nullable=False),
    Column("step_id", Uuid, nullable=False, comment="the step that waits for it"),
    Column("fence", Integer, nullable=False, comment="the attempt that asked"),
    Column("generation", Integer, nullable=False, comment="of the session when it was asked"),
    Column("kind", Text, nullable=False, comment="ask: a step asked; effect: a call waits for it"),
    Column("name", Text, nullable=False, comment="the effect, or the step that follows"),
    Column("effect_key", Text),
    Column("args", LargeBinary, nullable=False, comment="what would be done, by argument"),
    Column("args_hash", LargeBinary, nullable=False),
    Column("question", Text, nullable=False),
    Column("details", LargeBinary, comment="for the approver's eyes"),
    Column("groups", ARRAY(Text), nullable=False, comment="who may decide: one of these"),
    Column("channels", ARRAY(Text), nullable=False, server_default=text("'{}'"), comment="who is told, and how"),
    Column("state", Text, nullable=False, server_default="open"),
    time("asked_at", nullable=False, now=True),
    time("deadline_at", nullable=False),
    time("remind_at"),
    time("decided_at"),
    Column("decided_by", Text),
    Column("decided_via", Text, comment="how the name was made sure of: token, login or policy"),
    Column("comment", Text),
    Column("edited", LargeBinary, comment="the arguments as the approver changed them"),
    Column("edited_hash", LargeBinary),
    Column("diff", LargeBinary, comment="path, before and after of each change"),
    ForeignKeyConstraint(["tenant", "session_id"], ["agentq.session.tenant", "agentq.session.session_id"]),
    CheckConstraint(one_of("state", APPROVAL_STATES), name="state"),
    CheckConstraint(one_of("kind", ("ask", "effect")), name="kind"),
    CheckConstraint("(kind = 'effect') = (effect_key is not null)", name="effect_key"),
    CheckConstraint("(state = 'open') = (decided_at is null)", name="decided"),
    CheckConstraint("(state in ('granted', 'denied')) = (decided_by is not null)", name="decided_by"),
    CheckConstraint("(decided_by is null) = (decided_via is null)", name="decided_via"),
    CheckConstraint("(edited is null) = (edited_hash is null)", name="edited_hash"),
    CheckConstraint("edited is null or state = 'granted'", name="edited"),
    # The law of the deadline, also for whoever writes past the functions.
    CheckConstraint("state not in ('granted', 'denied') or decided_at <= deadline_at", name="deadline"),
    CheckConstraint("cardinality(groups) > 0", name="groups"),
    Index("approval_session", "tenant", "session_id"),
    Index("approval_effect", "tenant", "effect_key", postgresql_where=text("effect_key is not null")),
    Index("approval_deadline", "deadline_at", postgresql_where=text("state = 'open'")),
    Index("approval_remind", "remind_at", postgresql_where=text("state = 'open' and remind_at is not null")),
)

notice = Table(
    "notice",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("notice_id", Uuid, primary_key=True, server_default=text("gen_random_uuid()")),
    Column("approval_id", Uuid, comment="what it tells of: this"),
    Column("anomaly_id", Uuid, comment="or this"),
    Column("kind", Text, nullable=False),
    Column("channel", Text, nullable=False),
    Column("state", Text, nullable=False, server_default="due"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    time("due_at", nullable=False, now=True),
    time("sent_at"),
    Column("failure", Text, comment="of the latest attempt"),
    ForeignKeyConstraint(["tenant", "approval_id"], ["agentq.approval.tenant", "agentq.approval.approval_id"]),
    ForeignKeyConstraint(
        ["tenant", "anomaly_id"], ["agentq.anomaly.tenant", "agentq.anomaly.anomaly_id"], name="notice_anomaly"
    ),
    CheckConstraint(one_of("kind", ("asked", "reminder", "decided", "anomaly")), name="kind"),
    CheckConstraint("(kind = 'anomaly') = (anomaly_id is not null)", name="of_anomaly"),
    CheckConstraint("(approval_id is null) = (anomaly_id is not null)", name="of_one"),
    CheckConstraint(one_of("channel", ("webhook", "email")), name="channel"),
    CheckConstraint(one_of("state", ("due", "sent", "failed")), name="state"),
    CheckConstraint("(state = 'sent') = (sent_at is not null)", name="sent"),
    Index("notice_due", "due_at", postgresql_where=text("state = 'due'")),
    Index("notice_approval", "tenant", "approval_id"),
)
