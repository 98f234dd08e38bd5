"""
agentq runs AI agents in production as a fleet of Celery workers: every step durable in Postgres.

What stands in `__all__` is the public interface; the rest may change.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentq.agents.agent import Agent, Step
    from agentq.agents.context import AsyncContext, AsyncTransaction, Context
    from agentq.agents.effects import effect, idempotency_key
    from agentq.agents.embedding import Embedder
    from agentq.agents.memory import AsyncStepMemory, StepMemory, chunks
    from agentq.agents.memory_tools import memory_tools
    from agentq.agents.model import Compaction, ModelAgent, drop_old_tool_results, sliding_window
    from agentq.agents.returns import Answer, Ask, Branch, BranchResult, Child, Done, Fail, Next, Sleep, Spawn
    from agentq.agents.tools import ToolContext, tool
    from agentq.client import AsyncClient, AsyncSession, Client, Event, Session, SessionView
    from agentq.errors import (
        AgentqError,
        ApprovalClosed,
        ApprovalDenied,
        ApprovalExpired,
        ApprovalRefused,
        BudgetExceeded,
        ConfigError,
        DeadlineExceeded,
        InvalidInput,
        KeyConflict,
        KeyUnavailable,
        MemoryConflict,
        MemoryTooLarge,
        NotAnApprover,
        Permanent,
        Semantic,
        SessionCancelled,
        SessionFailed,
        StoreUnavailable,
        Transient,
        UnknownApproval,
        UnknownEffect,
        UnknownPrice,
        WaitTimeout,
    )
    from agentq.policies.kinds import classify_as
    from agentq.policies.limits import Limits, Price
    from agentq.policies.session_breaker import Breaker
    from agentq.store.memory import Memory
    from agentq.store.vault import KeyProvider

__all__ = [
    # Agents and steps
    "Agent",
    "Step",
    "Context",
    "AsyncContext",
    "AsyncTransaction",
    # Model agents and their tools
    "ModelAgent",
    "tool",
    "ToolContext",
    "Limits",
    "Breaker",
    "Price",
    "Compaction",
    "drop_old_tool_results",
    "sliding_window",
    # What a step returns
    "Next",
    "Done",
    "Fail",
    "Sleep",
    "Ask",
    "Answer",
    "Spawn",
    "Branch",
    "Child",
    "BranchResult",
    # Effects
    "effect",
    "idempotency_key",
    # Memory
    "Memory",
    "StepMemory",
    "AsyncStepMemory",
    "Embedder",
    "memory_tools",
    "chunks",
    # Encryption with a KMS of one's own
    "KeyProvider",
    "KeyUnavailable",
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
    "MemoryConflict",
    "MemoryTooLarge",
    "StoreUnavailable",
    "WaitTimeout",
    "SessionFailed",
    "SessionCancelled",
    "DeadlineExceeded",
    "Transient",
    "Semantic",
    "Permanent",
    "UnknownEffect",
    "ApprovalRefused",
    "ApprovalDenied",
    "ApprovalExpired",
    "ApprovalClosed",
    "NotAnApprover",
    "UnknownApproval",
    "BudgetExceeded",
    "UnknownPrice",
    "classify_as",
]

# Where each name lives. It is imported when it is first used, so that a command that needs none of
# them starts in a fraction of the time.
_HOMES = {
    "classify_as": "agentq.policies.kinds",
    "Agent": "agentq.agents.agent",
    "ModelAgent": "agentq.agents.model",
    "Compaction": "agentq.agents.model",
    "drop_old_tool_results": "agentq.agents.model",
    "sliding_window": "agentq.agents.model",
    "tool": "agentq.agents.tools",
    "ToolContext": "agentq.agents.tools",
    "Limits": "agentq.policies.limits",
    "Price": "agentq.policies.limits",
    "Breaker": "agentq.policies.session_breaker",
    "Step": "agentq.agents.agent",
    "AsyncContext": "agentq.agents.context",
    "AsyncTransaction": "agentq.agents.context",
    "Context": "agentq.agents.context",
    "effect": "agentq.agents.effects",
    "idempotency_key": "agentq.agents.effects",
    "Memory": "agentq.store.memory",
    "KeyProvider": "agentq.store.vault",
    "KeyUnavailable": "agentq.errors",
    "StepMemory": "agentq.agents.memory",
    "AsyncStepMemory": "agentq.agents.memory",
    "Embedder": "agentq.agents.embedding",
    "memory_tools": "agentq.agents.memory_tools",
    "chunks": "agentq.agents.memory",
    "Answer": "agentq.agents.returns",
    "Ask": "agentq.agents.returns",
    "Branch": "agentq.agents.returns",
    "BranchResult": "agentq.agents.returns",
    "Child": "agentq.agents.returns",
    "Done": "agentq.agents.returns",
    "Fail": "agentq.agents.returns",
    "Next": "agentq.agents.returns",
    "Sleep": "agentq.agents.returns",
    "Spawn": "agentq.agents.returns",
    "AsyncClient": "agentq.client",
    "AsyncSession": "agentq.client",
    "Client": "agentq.client",
    "Event": "agentq.client",
    "Session": "agentq.client",
    "SessionView": "agentq.client",
    "AgentqError": "agentq.errors",
    "ApprovalClosed": "agentq.errors",
    "ApprovalDenied": "agentq.errors",
    "ApprovalExpired": "agentq.errors",
    "ApprovalRefused": "agentq.errors",
    "NotAnApprover": "agentq.errors",
    "UnknownApproval": "agentq.errors",
    "BudgetExceeded": "agentq.errors",
    "ConfigError": "agentq.errors",
    "DeadlineExceeded": "agentq.errors",
    "InvalidInput": "agentq.errors",
    "KeyConflict": "agentq.errors",
    "MemoryConflict": "agentq.errors",
    "MemoryTooLarge": "agentq.errors",
    "Permanent": "agentq.errors",
    "Semantic": "agentq.errors",
    "SessionCancelled": "agentq.errors",
    "SessionFailed": "agentq.errors",
    "StoreUnavailable": "agentq.errors",
    "Transient": "agentq.errors",
    "UnknownEffect": "agentq.errors",
    "UnknownPrice": "agentq.errors",
    "WaitTimeout": "agentq.errors",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'agentq' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(home), name)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
