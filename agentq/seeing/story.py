"""A session's story: its attempts and what they did, its states, decisions and cost, ready to be shown."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from agentq.payload import decode, fold
from agentq.store.sessions import SessionRow, Sessions, StepRow
from agentq.store.traces import CheckpointRow, DecisionRow, Relative, TraceRow, Traces

Redact = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Act:
    """One attempt, with what it did and what became of it."""

    row: TraceRow
    events: tuple[TraceRow, ...]
    decisions: tuple[DecisionRow, ...]
    given: Any  # the state and arguments that it began from, redacted
    made: Any  # the state that it left, redacted; None when it left none
    result: Any
    changes: tuple[str, ...]  # from the one to the other, a line a field


@dataclass(frozen=True, slots=True)
class CostLine:
    """What one model, tool or step used, and how much of it came to nothing."""

    what: str
    kind: str
    count: int
    tokens_in: int
    tokens_out: int
    cost_micros: int
    waste_micros: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Story:
    """Everything that there is to see of one session."""

    session: SessionRow
    trace_id: uuid.UUID
    acts: tuple[Act, ...]
    waiting: tuple[StepRow, ...]
    family: tuple[Relative, ...]
    cost: tuple[CostLine, ...]

    @property
    def tokens_in(self) -> int:
        return sum(act.row.tokens_in for act in self.acts)

    @property
    def tokens_out(self) -> int:
        return sum(act.row.tokens_out for act in self.acts)

    @property
    def cost_micros(self) -> int:
        return sum(act.row.cost_micros for act in self.acts)

    @property
    def waste_micros(self) -> int:
        return sum(act.row.cost_micros for act in self.acts if act.row.wasted)

    @property
    def children(self) -> tuple[Relative, ...]:
        """The sessions that this one waits for, or waited."""
        return tuple(one for one in self.family if one.parent_session == self.session.session_id)


def tell(sessions: Sessions, traces: Traces, tenant: str, session_id: uuid.UUID, redact: Redact) -> Story:
    """
    The story of one session.

    States are stored whole, because a replay needs them; here they are redacted like everything else.

    Raises:
        UnknownSession: the tenant has none of that id.
    """
    session = sessions.get(tenant, session_id)
    rows = [_safe(row, redact) for row in traces.of_session(tenant, session_id, session.created_at)]
    session = replace(session, failure=redact("failure", session.failure))
    decisions = traces.decisions(tenant, session_id, session.created_at)
    states = _states(traces.checkpoints(tenant, session_id))
    beginnings = traces.beginnings(tenant, session_id)
    trace_id, family = traces.family(tenant, session_id)

    def act(row: TraceRow) -> Act:
        same = (row.step_id, row.fence)
        state_from, args = beginnings.get(row.step_id, (None, None))
        before = _read(states[state_from][0] if state_from in states else session.input)
        saved = states.get(row.step_id) if not row.wasted else None
        # A checkpoint without a state of its own left the state as it was.
        after = None if saved is None else before if saved[0] is None else _read(saved[0])
        before, after = redact("state", before), redact("state", after)
        return Act(
            row=row,
            events=tuple(other for other in rows if other.ordinal and (other.step_id, other.fence) == same),
            decisions=tuple(made for made in decisions if (made.step_id, made.fence) == same),
            given={"state": before, "arguments": redact("input", _read(args))} if args else before,
            made=after,
            result=redact("output", _read(saved[1])) if saved is not None and saved[1] is not None else None,
            changes=tuple(changes(before, after)) if after is not None else (),
        )

    acts = tuple(act(row) for row in rows if row.ordinal == 0)
    open_steps = tuple(step for step in sessions.steps(tenant, session_id) if step.settled_at is None)
    return Story(session, trace_id, acts, open_steps, tuple(family), tuple(cost_lines(acts)))


def _safe(row: TraceRow, redact: Redact) -> TraceRow:
    """The row with what its failure quotes taken out: inputs and outputs were redacted before they were kept."""
    return row if row.failure is None else replace(row, failure=redact("failure", row.failure))


def _states(checkpoints: list[CheckpointRow]) -> dict[uuid.UUID | None, tuple[bytes | None, bytes | None]]:
    """Each checkpoint's whole state and its result; `same` has no state of its own."""
    chains: dict[uuid.UUID, tuple[bytes, ...]] = {}
    found: dict[uuid.UUID | None, tuple[bytes | None, bytes | None]] = {}
    for row in checkpoints:
        if row.state is not None:
            before = chains.get(row.parent, ()) if row.kind == "delta" and row.parent is not None else ()
            if row.kind == "delta" and not before:
                continue  # what it changes is beyond what was read
            chains[row.step_id] = (*before, row.state)
            found[row.step_id] = (fold(chains[row.step_id]), row.result)
        else:
            found[row.step_id] = (None, row.result)
    return found


def _read(data: bytes | None) -> Any:
    if data is None:
        return None
    try:
        return decode(data)
    except ValueError:
        return data.decode("utf-8", "replace")


def changes(before: Any, after: Any, path: str = "", depth: int = 0) -> list[str]:
    """What differs between two values, a line for each field that does."""
    if before == after:
        return []
    if isinstance(before, dict) and isinstance(after, dict) and depth < 6:
        lines: list[str] = []
        for name in [*before, *(name for name in after if name not in before)]:
            where = f"{path}.{name}" if path else str(name)
            if name not in after:
                lines.append(f"- {where}: {short(before[name])}")
            elif name not in before:
                lines.append(f"+ {where}: {short(after[name])}")
            else:
                lines += changes(before[name], after[name], where, depth + 1)
        return lines
    if isinstance(before, list) and isinstance(after, list) and after[: len(before)] == before:
        return [f"+ {path}[{number}]: {short(item)}" for number, item in enumerate(after) if number >= len(before)]
    return [f"~ {path or 'value'}: {short(before)} → {short(after)}"]


def short(value: Any, limit: int = 120) -> str:
    """A value in one line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[:limit]}…"


def cost_lines(acts: tuple[Act, ...]) -> list[CostLine]:
    """By model and tool, then what steps used beyond; together exactly what the attempts used."""
    sums: dict[tuple[str, str], list[float]] = {}

    def add(what: str, kind: str, numbers: tuple[int, int, int], *, waste: bool, seconds: float) -> None:
        line = sums.setdefault((what, kind), [0, 0, 0, 0, 0, 0.0])
        tokens_in, tokens_out, micros = numbers
        for at, number in enumerate((1, tokens_in, tokens_out, micros, micros if waste else 0, seconds)):
            line[at] += number

    for act in acts:
        told = [0, 0, 0]
        for event in act.events:
            numbers = (event.tokens_in, event.tokens_out, event.cost_micros)
            told = [sum(pair) for pair in zip(told, numbers, strict=True)]
            waste = act.row.wasted or bool((event.detail or {}).get("repair"))
            what = str((event.detail or {}).get("model") or event.name) if event.kind == "model" else event.name
            add(what, event.kind, numbers, waste=waste, seconds=event.took_s)
        row = act.row
        rest = (row.tokens_in - told[0], row.tokens_out - told[1], row.cost_micros - told[2])
        if any(rest):
            add(row.name, "step", rest, waste=row.wasted, seconds=row.took_s)
    lines = [
        CostLine(what, kind, int(n), int(tin), int(tout), int(micros), int(waste), seconds)
        for (what, kind), (n, tin, tout, micros, waste, seconds) in sums.items()
    ]
    return sorted(lines, key=lambda line: (-line.cost_micros, -line.tokens_in, line.what))


def dollars(micros: int) -> str:
    """Money as people read it: cents where there are some, more digits where there are none."""
    usd = micros / 1_000_000
    return f"${usd:,.2f}" if abs(usd) >= 1 or usd == 0 else f"${usd:.4f}"


def seconds_text(seconds: float) -> str:
    """A duration that people can read at a glance."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} d"


__all__ = ["Act", "CostLine", "Story", "changes", "cost_lines", "dollars", "seconds_text", "short", "tell"]
