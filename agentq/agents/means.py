"""Means: what every context of a process works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from agentq.agents.asking import Asking
from agentq.agents.dependencies import Dependencies
from agentq.agents.memory import Remembering
from agentq.agents.permissions import Permissions
from agentq.agents.spending import Budgeting
from agentq.agents.tracing import Tracing
from agentq.store.effects import Effects
from agentq.store.ledger import Ledger
from agentq.store.pool import Store
from agentq.verdicts import Failure


@dataclass(frozen=True, slots=True)
class Means:
    """What every context of a process works with."""

    store: Store
    ledger: Ledger
    effects: Effects
    asking: Asking
    classify: Callable[[BaseException], Failure]
    ambiguous: Callable[[BaseException], bool]
    payload_max_bytes: int
    budgeting: Budgeting
    permissions: Permissions
    dependencies: Dependencies
    remembering: Remembering
    patience_s: float = 120.0
    tracing: Tracing = field(default_factory=Tracing)
