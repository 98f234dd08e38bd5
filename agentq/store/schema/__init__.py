"""
The schema: every table, and the rows that Postgres itself refuses.

`tenant` leads every key. Payload columns (`bytea`) hold JSON text as bytes; a first byte below 0x20
marks another encoding. Functions and row security stand in `sql/functions/` and `sql/security.sql`.

Locks are taken in one order: a child's session before its parent's, a session before its ledger
entries, entries by id. Admission takes the tenant's advisory lock before any row. Keys of memories come after
all of these, in the order of their hashes; windows of budgets come last.
"""

from __future__ import annotations

from sqlalchemy import Table

from agentq.store.schema.anomalies import anomaly, anomaly_baseline, anomaly_order, session_tally
from agentq.store.schema.approvals import APPROVAL_STATES, approval, notice
from agentq.store.schema.base import NOW, SCHEMA, metadata
from agentq.store.schema.budgets import (
    budget,
    budget_alert,
    budget_window,
    model_price,
    reservation,
)
from agentq.store.schema.dead_letters import dead_letter, poison_message, redrive_job, redrive_policy
from agentq.store.schema.dependencies import (
    BREAKER_STATES,
    FLEET,
    dependency,
    dependency_change,
    dependency_probe,
    dependency_window,
)
from agentq.store.schema.fleet import operator_action, refused_submission, slot_use, worker
from agentq.store.schema.keys import api_token, tenant_key
from agentq.store.schema.ledger import (
    ENTRY_ENDED,
    ENTRY_LIVE,
    SESSION_ENDED,
    SESSION_LIVE,
    TENANT_STATES,
    branch,
    checkpoint,
    effect,
    ledger_entry,
    message,
    session,
    session_event,
    tenant,
)
from agentq.store.schema.memory import memory, memory_words
from agentq.store.schema.rates import rate_bucket, rate_caller, rate_limit
from agentq.store.schema.spend import spend_day, spend_hour, spend_mark, spend_session
from agentq.store.schema.traces import decision, trace

# Tables whose rows belong to one tenant: row security is forced on each of them.
TENANT_TABLES: tuple[Table, ...] = (
    session,
    ledger_entry,
    checkpoint,
    branch,
    message,
    effect,
    session_event,
    dead_letter,
    poison_message,
    operator_action,
    refused_submission,
    trace,
    decision,
    approval,
    notice,
    budget,
    budget_window,
    reservation,
    budget_alert,
    rate_limit,
    dependency,
    dependency_window,
    dependency_probe,
    dependency_change,
    memory,
    tenant_key,
    session_tally,
    anomaly_baseline,
    anomaly,
    anomaly_order,
    spend_hour,
    spend_day,
    spend_session,
)

__all__ = [
    "APPROVAL_STATES",
    "BREAKER_STATES",
    "ENTRY_ENDED",
    "ENTRY_LIVE",
    "FLEET",
    "NOW",
    "SCHEMA",
    "SESSION_ENDED",
    "SESSION_LIVE",
    "TENANT_STATES",
    "TENANT_TABLES",
    "anomaly",
    "anomaly_baseline",
    "anomaly_order",
    "api_token",
    "approval",
    "branch",
    "budget",
    "budget_alert",
    "budget_window",
    "checkpoint",
    "dead_letter",
    "decision",
    "dependency",
    "dependency_change",
    "dependency_probe",
    "dependency_window",
    "effect",
    "ledger_entry",
    "memory",
    "memory_words",
    "message",
    "metadata",
    "model_price",
    "notice",
    "operator_action",
    "poison_message",
    "rate_bucket",
    "rate_caller",
    "rate_limit",
    "redrive_job",
    "redrive_policy",
    "refused_submission",
    "reservation",
    "session",
    "session_event",
    "session_tally",
    "slot_use",
    "spend_day",
    "spend_hour",
    "spend_mark",
    "spend_session",
    "tenant",
    "tenant_key",
    "trace",
    "worker",
]
