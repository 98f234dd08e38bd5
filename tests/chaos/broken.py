"""A worker with one guard gone, by the environment: imported beside the agents, to see the judge notice."""

from __future__ import annotations

import os
from typing import Any

from agentq.agents.calls import Calls
from agentq.relay.relay import Relay
from agentq.store.effects import EffectClaim

BROKEN = os.environ.get("CHAOS_BROKEN", "")


def _repeat_what_is_unknown() -> None:
    """A call that was cut off goes out again, whatever was declared."""
    decide = Calls._decide

    def careless(self: Calls, call: Any, found: EffectClaim) -> Any:
        if found.state in ("pending", "unknown") and not call.declared.idempotent and call.declared.check is None:
            self._take_over(call, calling=True)
            return None
        return decide(self, call, found)

    Calls._decide = careless  # type: ignore[method-assign]


def _forget_lost_messages() -> None:
    """What the broker lost is never looked for."""
    Relay.find_missing = lambda self: None  # type: ignore[method-assign]


def _leave_the_dead() -> None:
    """The steps of a dead worker stay with it."""
    Relay.take_back_lost = lambda self: None  # type: ignore[method-assign]


{"repeats": _repeat_what_is_unknown, "forgets": _forget_lost_messages, "leaves": _leave_the_dead}.get(
    BROKEN, lambda: None
)()
