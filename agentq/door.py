"""The door: a request for a session, checked before anything is stored."""

from __future__ import annotations

import re
import sys
import uuid
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from agentq.agents.act import Planner, input_hash
from agentq.agents.registry import Registry
from agentq.agents.returns import Duration, seconds
from agentq.errors import InvalidInput
from agentq.payload import bounded, storable
from agentq.settings import Settings
from agentq.step import new_id, valid_name
from agentq.store.sessions import Creating, NewSession, OnConflict, TraceParent

KEY_MAX = 200
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")


class Door:
    """Turns requests into sessions to start, or refuses them with a reason the caller can act on."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self._registry = registry
        self._max_bytes = settings.payload_max_bytes
        self._plan = Planner(
            registry,
            retries=settings.step_retries,
            timeout_s=settings.step_timeout_s,
            payload_max_bytes=settings.payload_max_bytes,
        )
        creating = settings.new_tenant_like or settings.tenant_concurrency
        self.create_with: Creating = creating if settings.unknown_tenant == "create" else None

    def check(
        self,
        agent: str,
        *,
        tenant: str,
        input: BaseModel | Mapping[str, Any],
        key: str | None = None,
        version: int | None = None,
        priority: int = 0,
        deadline: Duration | None = None,
        concurrency_key: str | None = None,
        on_conflict: OnConflict = "queue",
        traceparent: str | None = None,
    ) -> NewSession:
        """
        The session to start. It belongs to the trace of `traceparent`, else to OpenTelemetry's current one if any.

        Raises:
            InvalidName, UnknownAgent, InvalidState, PayloadTooLarge, InvalidInput: what is wrong with it.
        """
        valid_name("tenant", tenant)
        valid_name("agent", agent)
        if not isinstance(input, BaseModel | Mapping):
            raise InvalidInput(f"the input of a session is a mapping or a state model, not {type(input).__name__}")
        if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority <= 9:
            raise InvalidInput("priority is a whole number from 0 (first) to 9")
        if version is not None and (isinstance(version, bool) or not isinstance(version, int)):
            raise InvalidInput("version is a whole number, or left out for the newest")
        trace = trace_parent(traceparent) if traceparent is not None else _current_trace()
        if traceparent is not None and trace is None:
            raise InvalidInput("traceparent is a W3C trace context: 00-<32 hex digits>-<16 hex digits>-01")
        found = self._registry.find(agent, version)
        data = bounded("the input", found.admit(input), self._max_bytes)
        first = self._plan.first_step(found)
        return NewSession(
            tenant=tenant,
            session_id=new_id(),
            agent=found.name,
            version=found.version,
            key=_valid_key(key),
            input=data,
            input_hash=input_hash(found, data),
            step_id=first.step_id,
            name=first.name,
            attempts_max=first.attempts_max,
            timeout_s=first.timeout_s,
            priority=priority,
            deadline_s=seconds(deadline) if deadline is not None else None,
            concurrency_key=_valid_key(concurrency_key),
            on_conflict=_valid_conflict(on_conflict),
            trace=trace,
        )


def trace_parent(text: object) -> TraceParent | None:
    """A W3C `traceparent`; None: it is none."""
    found = _TRACEPARENT.fullmatch(text) if isinstance(text, str) else None
    if found is None or not int(found[1], 16) or not int(found[2], 16):
        return None
    return TraceParent(uuid.UUID(found[1]), int(found[2], 16))


def _current_trace() -> TraceParent | None:
    """The span in whose context the caller is; without OpenTelemetry in the process there is none."""
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry.trace import get_current_span

    context = get_current_span().get_span_context()
    return TraceParent(uuid.UUID(int=context.trace_id), context.span_id) if context.is_valid else None


def _valid_key(key: str | None) -> str | None:
    if key is None:
        return None
    if not isinstance(key, str) or not 0 < len(key) <= KEY_MAX or storable(key) != key:
        raise InvalidInput(f"a session key is text of 1 to {KEY_MAX} characters")
    return key


def _valid_conflict(on_conflict: OnConflict) -> OnConflict:
    if on_conflict not in ("queue", "reject", "replace", "merge"):
        raise InvalidInput(f"on_conflict is queue, reject, replace or merge, not {on_conflict!r}")
    return on_conflict
