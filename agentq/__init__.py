"""
agentq runs AI agents in production as a fleet of Celery workers: every step durable in Postgres.

What stands in `__all__` is the public interface; the rest may change.
"""

from agentq.agents.agent import Agent, Step
from agentq.agents.context import AsyncContext, AsyncTransaction, Context
from agentq.agents.effects import effect, idempotency_key
from agentq.agents.returns import Branch, BranchResult, Child, Done, Fail, Next, Sleep, Spawn
from agentq.client import AsyncClient, AsyncSession, Client, Event, Session, SessionView
from agentq.errors import (
    AgentqError,
    ConfigError,
    DeadlineExceeded,
    InvalidInput,
    KeyConflict,
    Permanent,
    Semantic,
    SessionCancelled,
    SessionFailed,
    StoreUnavailable,
    Transient,
    UnknownEffect,
    WaitTimeout,
)

__all__ = [
    # Agents and steps
    "Agent",
    "Step",
    "Context",
    "AsyncContext",
    "AsyncTransaction",
    # What a step returns
    "Next",
    "Done",
    "Fail",
    "Sleep",
    "Spawn",
    "Branch",
    "Child",
    "BranchResult",
    # Effects
    "effect",
    "idempotency_key",
    # Producers
    "Client",
    "AsyncClient",
    "Session",
    "AsyncSession",
    "SessionView",
    "Event",
    # Errors
    "AgentqError",
    "ConfigError",
    "InvalidInput",
    "KeyConflict",
    "StoreUnavailable",
    "WaitTimeout",
    "SessionFailed",
    "SessionCancelled",
    "DeadlineExceeded",
    "Transient",
    "Semantic",
    "Permanent",
    "UnknownEffect",
]
