"""Traces: what an attempt leaves for people to read, written with its settlement."""

from __future__ import annotations

import base64
from typing import Any

from agentq.payload import storable
from agentq.store.pool import Store
from agentq.store.queries import load
from agentq.verdicts import Decision, Extras, TraceEvent

SQL = load("traces")

WEEKS_AHEAD = 3


def as_plan(extras: Extras) -> dict[str, Any]:
    """
    Events and decisions as the settle function reads them.

    Whatever they hold can be stored: a trace must never be the reason why a settlement is refused.
    """
    plan: dict[str, Any] = {}
    if extras.trace:
        plan["trace"] = [_event(number, event) for number, event in enumerate(extras.trace, 1)]
    if extras.decisions:
        plan["decisions"] = [_decision(number, made) for number, made in enumerate(extras.decisions, 1)]
    return plan


def _event(number: int, event: TraceEvent) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "n": number,
        "kind": storable(event.kind),
        "name": storable(event.name),
        "at_s": max(event.at_s, 0.0),
        "took_s": max(event.took_s, 0.0),
    }
    usage = event.usage
    if usage.tokens_in or usage.tokens_out or usage.cost_micros:
        facts |= {"tokens_in": usage.tokens_in, "tokens_out": usage.tokens_out, "cost_micros": usage.cost_micros}
    if event.failure is not None:
        facts["failure"] = event.failure.as_json()
    if event.detail:
        facts["detail"] = _plain(event.detail)
    for name, data in (("input", event.input), ("output", event.output)):
        if data is not None:
            facts[name] = _text(data)
    return facts


def _decision(number: int, made: Decision) -> dict[str, Any]:
    return {
        "n": number,
        "at_s": max(made.at_s, 0.0),
        "options": _text(made.options),
        "picked": storable(made.picked),
        "why": storable(made.why) if made.why is not None else None,
        "confidence": made.confidence,
        "limits": _plain(made.limits) if made.limits else None,
        "approver": storable(made.approver) if made.approver is not None else None,
    }


def _plain(value: Any) -> Any:
    """A value that a jsonb column takes: no zero characters, no halves of surrogate pairs, no NaN."""
    match value:
        case str():
            return storable(value)
        case bool() | int() | None:
            return value
        case float():
            return value if value - value == 0 else str(value)
        case list() | tuple():
            return [_plain(item) for item in value]
        case _ if hasattr(value, "items"):
            return {storable(str(name)): _plain(item) for name, item in value.items()}
        case _:
            return storable(str(value))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


class Traces:
    """What was traced, for reports; and the weeks that it is kept in."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def prepare(self, weeks_ahead: int) -> list[str]:
        """Make the partitions of the coming weeks; those that were missing."""
        return [row[0] for row in self.store.query(SQL["prepare"], {"ahead": weeks_ahead})]

    def forget(self, keep_days: int) -> list[str]:
        """Drop the weeks that are older; what was dropped."""
        return [row[0] for row in self.store.query(SQL["forget"], {"keep_days": keep_days})]
