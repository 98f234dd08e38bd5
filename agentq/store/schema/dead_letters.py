"""Dead letters: what was buried, the redrives that bring it back, and messages that nobody understood."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, REAL

from agentq.store.schema.base import NAME, metadata, one_of, time

LETTER_STATES = ("open", "redriving", "redriven", "discarded", "resolved")
JOB_STATES = ("canary", "waiting", "running", "done", "stopped")

# Not partitioned: listing, grouping and planning 100,000 rows of it stay far below a second (see
# benchmarks/dead_letters.py), and a partition key in each unique constraint would cost the guard
# against a second letter for one death.
dead_letter = Table(
    "dead_letter",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("letter_id", Uuid, primary_key=True, comment="random, so that its first digits tell it from others"),
    Column("session_id", Uuid, nullable=False),
    Column("step_id", Uuid, nullable=False),
    Column("generation", Integer, nullable=False, comment="replays and redrives of the session before this death"),
    Column("agent", Text, nullable=False),
    Column("agent_version", Integer, nullable=False),
    Column("step", Text, nullable=False, comment="the step's name"),
    Column("seq", Integer, nullable=False),
    Column("class", Text, nullable=False, comment="the kind of the last failure"),
    # Compared by prefix: collation C, so that an index serves it in every database.
    Column("cause", Text(collation="C"), nullable=False, comment="fingerprint; see agentq.causes"),
    Column("cause_text", Text, nullable=False),
    Column("dependency", Text, comment="the named dependency or provider that failed, when the failure tells"),
    Column("failure", JSONB, nullable=False),
    Column("attempts", JSONB, nullable=False, comment="the failures of its last attempts, oldest first"),
    Column("attempt", Integer, nullable=False),
    Column("crashes", SmallInteger, nullable=False),
    Column("state_from", Uuid, comment="the checkpoint it began from; null: the session's input"),
    Column("cost_micros", BigInteger, nullable=False, comment="of the session so far"),
    Column("effects_pending", Integer, nullable=False, comment="of the session, when it was buried"),
    Column("effects_unknown", Integer, nullable=False),
    Column("state", Text, nullable=False, server_default="open"),
    Column("announced", Boolean, nullable=False, server_default=text("false"), comment="a message was sent, or waived"),
    Column("job_id", Uuid, comment="the redrive that took it up"),
    Column("canary", Boolean, nullable=False, server_default=text("false")),
    Column("redriven_as", Uuid, comment="the step that runs in its place"),
    Column("changed_by", Text),
    Column("note", Text, comment="why it was discarded or redriven, or what resolved it"),
    time("died_at", nullable=False),
    time("changed_at", nullable=False),
    ForeignKeyConstraint(["tenant", "session_id"], ["agentq.session.tenant", "agentq.session.session_id"]),
    # One letter for one death, whoever else reports it.
    UniqueConstraint("tenant", "session_id", "step_id", "generation", name="dead_letter_death"),
    CheckConstraint(one_of("state", LETTER_STATES), name="state"),
    CheckConstraint("state <> 'redriving' or job_id is not null", name="redriving"),
    CheckConstraint(
        "generation >= 0 and cost_micros >= 0 and effects_pending >= 0 and effects_unknown >= 0", name="counts"
    ),
    # What waits for a person, newest first; by cause, by tenant. Small again once it has been dealt with.
    Index("dead_letter_open", "died_at", postgresql_where=text("state = 'open'")),
    Index("dead_letter_cause", "cause", "died_at", postgresql_where=text("state = 'open'")),
    Index("dead_letter_tenant", "tenant", "died_at", postgresql_where=text("state = 'open'")),
    Index("dead_letter_all", "died_at"),
    # For an operator who has an id, or its beginning, and no tenant.
    Index("dead_letter_id", "letter_id"),
    Index("dead_letter_job", "job_id", postgresql_where=text("job_id is not null")),
    Index("dead_letter_unsent", "tenant", postgresql_where=text("not announced")),
)

# An operator's row, not a tenant's: one redrive may cover many tenants. It holds no payload.
redrive_job = Table(
    "redrive_job",
    metadata,
    Column("job_id", Uuid, primary_key=True),
    Column("same_as", Text, nullable=False, comment="digest of selection and terms: the same command again goes on"),
    Column("operator", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("policy", Text, comment="the policy that began it, when no person did"),
    Column("selection", JSONB, nullable=False, comment="which letters, as agentq.letters() reads it"),
    Column("terms", JSONB, nullable=False, comment="canary, threshold, rate, what is done about unknown effects, …"),
    Column("state", Text, nullable=False),
    time("until", nullable=False),  # letters of later deaths are not its matter
    time("cursor_at"),  # where it has come to: no letter is looked at twice in one pass
    Column("cursor_letter", Uuid),
    Column("matched", BigInteger, nullable=False, server_default="0"),
    Column("redriven", BigInteger, nullable=False, server_default="0"),
    Column("refused", BigInteger, nullable=False, server_default="0"),
    Column("driver", Text, comment="the process that drives it now"),
    time("driver_until"),
    time("created_at", nullable=False, now=True),
    time("waiting_since"),
    time("ended_at"),
    Column("note", Text),
    CheckConstraint(one_of("state", JOB_STATES), name="state"),
    CheckConstraint("(state in ('done', 'stopped')) = (ended_at is not null)", name="ended"),
    CheckConstraint("(cursor_at is null) = (cursor_letter is null)", name="cursor"),
    # Two people who give the same command at once share one job.
    Index("redrive_job_live", "same_as", unique=True, postgresql_where=text("ended_at is null")),
    Index("redrive_job_recent", "created_at"),
)

redrive_policy = Table(
    "redrive_policy",
    metadata,
    Column("name", Text, primary_key=True),
    Column("selection", JSONB, nullable=False),
    Column("quiet_s", REAL, nullable=False, comment="so long without a death that matches, before it begins"),
    Column("canary", Integer, nullable=False),
    Column("threshold", REAL, nullable=False),
    Column("rate_per_s", REAL, nullable=False),
    Column("max_generation", Integer, nullable=False),
    Column("enabled", Boolean, nullable=False, server_default=text("true")),
    Column("operator", Text, nullable=False),
    Column("reason", Text, nullable=False),
    time("changed_at", nullable=False, now=True),
    CheckConstraint(f"name {NAME}", name="name"),
    CheckConstraint("quiet_s >= 0 and canary > 0 and rate_per_s > 0 and max_generation > 0", name="bounds"),
    CheckConstraint("threshold > 0 and threshold <= 1", name="threshold"),
)

poison_message = Table(
    "poison_message",
    metadata,
    # Empty for a queue that belongs to no tenant: seen by operators alone.
    Column("tenant", Text, primary_key=True),
    Column("poison_id", BigInteger, Identity(always=True), primary_key=True),
    Column("queue", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False, comment="of the whole body: the same one again is counted"),
    Column("body", LargeBinary, nullable=False, comment="as it came, cut at a limit"),
    Column("size_bytes", Integer, nullable=False),
    Column("times", Integer, nullable=False, server_default="1"),
    time("first_at", nullable=False, now=True),
    time("last_at", nullable=False, now=True),
    UniqueConstraint("tenant", "queue", "digest", name="poison_message_digest"),
    CheckConstraint("times > 0 and size_bytes >= octet_length(body)", name="counts"),
)
