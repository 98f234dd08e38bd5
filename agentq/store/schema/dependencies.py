"""Dependencies: what the fleet calls outside, and the breaker that it shares for each."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, Identity, Index, Integer, Table, Text, Uuid, text
from sqlalchemy.dialects.postgresql import JSONB, REAL

from agentq.store.schema.base import NAME, metadata, one_of, time

FLEET = "*"
BREAKER_STATES = ("closed", "open", "half_open", "forced_open", "forced_shut")

_SCOPE = f"tenant = '{FLEET}' or tenant {NAME}"


def _count(name: str, comment: str | None = None) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default="0", comment=comment)


dependency = Table(
    "dependency",
    metadata,
    Column("tenant", Text, primary_key=True, comment="'*': all tenants together; else that tenant's own access to it"),
    Column("name", Text, primary_key=True),
    Column("state", Text, nullable=False, server_default="closed"),
    time("changed_at", nullable=False, now=True),
    time("seen_at", nullable=False, now=True),
    time("probe_at"),
    time("forced_until"),
    Column("pause_s", REAL, nullable=False, server_default="0", comment="the latest pause between two probes"),
    Column("good", Integer, nullable=False, server_default="0", comment="probes that went well since it is half open"),
    _count("ok_total", "calls that were answered"),
    _count("bad_total", "calls that spoke against it"),
    _count("refused_total", "times a step was held back"),
    _count("openings"),
    Column("last_failure", JSONB, comment="kind, type and status of the latest; no message, which may be a tenant's"),
    CheckConstraint(f"name {NAME}", name="name"),
    CheckConstraint(_SCOPE, name="tenant"),
    CheckConstraint(one_of("state", BREAKER_STATES), name="state"),
    CheckConstraint("state <> 'open' or probe_at is not null", name="probe"),
    CheckConstraint("forced_until is null or state in ('forced_open', 'forced_shut')", name="forced"),
    # Tenants' own that are not closed, and the fleet's: of the many rows of tenants, the few that people look for.
    Index(
        "dependency_held",
        "name",
        postgresql_where=text(f"tenant <> '{FLEET}' and state in ('open', 'half_open', 'forced_open')"),
    ),
    Index("dependency_fleet", "seen_at", postgresql_where=text(f"tenant = '{FLEET}'")),
)

# The sliding window, a tenth of it in each row.
dependency_window = Table(
    "dependency_window",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("slot", BigInteger, primary_key=True),
    Column("ok", Integer, nullable=False, server_default="0"),
    Column("bad", Integer, nullable=False, server_default="0"),
    CheckConstraint("ok >= 0 and bad >= 0", name="counts"),
)

# Who tries, while it is half open. One whose process died gives way.
dependency_probe = Table(
    "dependency_probe",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("probe", Uuid, primary_key=True),
    Column("worker", Uuid, comment="the process that tries, when it is one of the fleet's"),
    time("expires_at", nullable=False),
)

# When it opened and closed, and why: how long an outage was, afterwards.
dependency_change = Table(
    "dependency_change",
    metadata,
    Column("change_id", BigInteger, Identity(always=True), primary_key=True),
    time("at", nullable=False, now=True),
    Column("tenant", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("why", Text, nullable=False),
    Index("dependency_change_name", "name", "tenant", text("change_id desc")),
)
