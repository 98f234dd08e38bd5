"""A session's story: its attempts and what they did, its states, decisions and cost, ready to be shown."""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from agentq.payload import fold, readable
from agentq.store.sessions import SessionRow, Sessions, StepRow
from agentq.store.traces import NOTHING, ChargeRow, CheckpointRow, DecisionRow, Relative, Totals, TraceRow, Traces
from agentq.verdicts import Usage

Redact = Callable[..., Any]

# Rows of time that nobody worked: no use and no cost.
WAITS = ("wait", "approval")


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
    tokens_cached: int = 0  # of those in
    tokens_reasoning: int = 0  # of those out
    repairs: int = 0  # of those times: a model asked again for what it wrote wrong, and attempts so answered
    repair_micros: int = 0  # of the waste
    recalled: int = 0  # answers that were there already: no calls, and in neither `count` nor `seconds`


@dataclass(frozen=True, slots=True)
class StepLine:
    """What all steps of one name came to: how many there were, and how many attempts they took."""

    name: str
    steps: int
    attempts: int
    wasted: int  # attempts that came to nothing
    seconds: float
    tokens_in: int
    tokens_out: int
    cost_micros: int
    waste_micros: int
    repair_micros: int = 0  # of the waste


@dataclass(frozen=True, slots=True)
class Story:
    """Everything that there is to see of one session."""

    session: SessionRow
    trace_id: uuid.UUID
    acts: tuple[Act, ...]
    waiting: tuple[StepRow, ...]
    family: tuple[Relative, ...]
    cost: tuple[CostLine, ...]
    beyond: Totals = NOTHING  # of attempts in the middle of a session that is too long to be shown whole

    @property
    def operations(self) -> int:
        """Steps that were begun, however many attempts each of them took."""
        return len({act.row.step_id for act in self.acts})

    @property
    def steps(self) -> tuple[StepLine, ...]:
        """By the steps' names, the dearest first."""
        return tuple(step_lines(self.acts))

    @property
    def tokens_in(self) -> int:
        return sum(act.row.tokens_in for act in self.acts) + self.beyond.tokens_in

    @property
    def tokens_out(self) -> int:
        return sum(act.row.tokens_out for act in self.acts) + self.beyond.tokens_out

    @property
    def cost_micros(self) -> int:
        return sum(act.row.cost_micros for act in self.acts) + self.beyond.cost_micros

    @property
    def waste_micros(self) -> int:
        """What was paid for attempts that came to nothing, and for repairs."""
        return sum(act.row.waste_micros for act in self.acts) + self.beyond.waste_micros

    @property
    def repairs(self) -> int:
        return sum(act.row.repairs for act in self.acts) + self.beyond.repairs

    @property
    def repair_micros(self) -> int:
        """What of the waste was for repairs."""
        return sum(act.row.repair_micros for act in self.acts) + self.beyond.repair_micros

    def seconds_of(self, kind: str) -> float:
        """The time that calls of a kind took: `model`, `tool`, `sandbox`."""
        return sum(line.seconds for line in self.cost if line.kind == kind)

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
    told, beyond = traces.told(tenant, session_id, session.created_at)
    rows = [_safe(row, redact) for row in told]
    session = replace(session, failure=redact("failure", session.failure))
    decisions = traces.decisions(tenant, session_id, session.created_at)
    states = _states(traces.checkpoints(tenant, session_id))
    beginnings = traces.beginnings(tenant, session_id)
    trace_id, family = traces.family(tenant, session_id)
    done: dict[tuple[uuid.UUID, int], list[TraceRow]] = defaultdict(list)
    for row in rows:
        if row.ordinal:
            done[row.step_id, row.fence].append(row)
    chosen: dict[tuple[uuid.UUID, int], list[DecisionRow]] = defaultdict(list)
    for made in decisions:
        chosen[made.step_id, made.fence].append(made)
    shown: dict[uuid.UUID | None, Any] = {}  # most states are one step's end and the next one's beginning

    def state_of(saved: uuid.UUID | None, data: bytes | None) -> Any:
        if saved not in shown:
            shown[saved] = redact("state", None if data is None else readable(data))
        return shown[saved]

    def act(row: TraceRow) -> Act:
        same = (row.step_id, row.fence)
        state_from, args = beginnings.get(row.step_id, (None, None))
        known = state_from if state_from in states else None
        before = state_of(known, states[known][0] if known in states else session.input)
        saved = states.get(row.step_id) if not row.wasted else None
        # A checkpoint without a state of its own left the state as it was.
        after = None if saved is None else before if saved[0] is None else state_of(row.step_id, saved[0])
        return Act(
            row=row,
            events=tuple(done[same]),
            decisions=tuple(chosen[same]),
            given={"state": before, "arguments": redact("input", readable(args))} if args else before,
            made=after,
            result=redact("output", readable(saved[1])) if saved is not None and saved[1] is not None else None,
            changes=tuple(changes(before, after)) if after is not None else (),
        )

    acts = tuple(act(row) for row in rows if row.ordinal == 0)
    cost = tuple(cost_lines(acts, traces.charged(tenant, session_id), beyond))
    open_steps = tuple(step for step in sessions.steps(tenant, session_id) if step.settled_at is None)
    return Story(session, trace_id, acts, open_steps, tuple(family), cost, beyond)


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


@dataclass(slots=True)
class _Sum:
    """What is added up for one line."""

    count: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost_micros: int = 0
    waste_micros: int = 0
    seconds: float = 0.0
    tokens_cached: int = 0
    tokens_reasoning: int = 0
    repairs: int = 0
    repair_micros: int = 0
    recalled: int = 0

    def add(self, part: _Used, *, waste: bool, repairs: int = 0) -> None:
        self.tokens_in += part.tokens_in
        self.tokens_out += part.tokens_out
        self.cost_micros += part.cost_micros
        self.waste_micros += part.cost_micros if waste or repairs else 0
        self.repairs += repairs
        self.repair_micros += part.cost_micros if repairs else 0


class _Used(Protocol):
    """Whatever says what it used."""

    @property
    def tokens_in(self) -> int: ...
    @property
    def tokens_out(self) -> int: ...
    @property
    def cost_micros(self) -> int: ...


def cost_lines(acts: Sequence[Act], charges: Sequence[ChargeRow] = (), beyond: Totals = NOTHING) -> list[CostLine]:
    """
    By model and tool, then what steps used beyond; together exactly what the attempts used.

    Reserved calls that no event tells of, such as those of an attempt that was lost, are told by the ledger.
    """
    sums: dict[tuple[str, str], _Sum] = defaultdict(_Sum)
    for act in acts:
        for event in act.events:
            if event.kind in WAITS:
                continue
            detail = event.detail or {}
            kind = "sandbox" if detail.get("sandbox") is True else event.kind
            line = sums[_model_of(event) if event.kind == "model" else event.name, kind]
            line.add(event, waste=act.row.wasted, repairs=int(_mends(act, event)))
            if detail.get("outcome") == "recalled":
                line.recalled += 1
                continue
            line.count += 1
            line.seconds += event.took_s
            line.tokens_cached += cached if isinstance(cached := detail.get("cached_tokens"), int) else 0
            line.tokens_reasoning += some if isinstance(some := detail.get("reasoning_tokens"), int) else 0
        row, left = act.row, _less(act.row, act.events)
        for charge in _untold(act, charges, left):
            line = sums[charge.model, "model"]
            line.add(charge, waste=row.wasted, repairs=charge.count if row.mends else 0)
            line.count += charge.count
            line.tokens_cached += charge.tokens_cached
            left = _less(left, [charge])
        if left.tokens_in or left.tokens_out or left.cost_micros:
            line = sums[row.name, "step"]
            line.add(left, waste=row.wasted, repairs=int(row.mends))
            line.count += 1
            line.seconds += row.took_s
    if beyond.attempts:
        line = sums["(attempts in the middle, not shown)", "step"]
        line.add(beyond, waste=False)
        line.count, line.waste_micros = beyond.attempts, beyond.waste_micros
        line.repairs, line.repair_micros = beyond.repairs, beyond.repair_micros
    lines = [CostLine(what, kind, **asdict(line)) for (what, kind), line in sums.items()]
    return sorted(lines, key=lambda line: (-line.cost_micros, -line.tokens_in, line.what))


def step_lines(acts: Sequence[Act]) -> list[StepLine]:
    """Attempts by the names of their steps: operations and attempts counted apart, waste shown."""
    by_name: dict[str, list[TraceRow]] = defaultdict(list)
    for act in acts:
        by_name[act.row.name].append(act.row)
    lines = [
        StepLine(
            name,
            steps=len({row.step_id for row in rows}),
            attempts=len(rows),
            wasted=sum(row.wasted for row in rows),
            seconds=sum(row.took_s for row in rows),
            tokens_in=sum(row.tokens_in for row in rows),
            tokens_out=sum(row.tokens_out for row in rows),
            cost_micros=sum(row.cost_micros for row in rows),
            waste_micros=sum(row.waste_micros for row in rows),
            repair_micros=sum(row.repair_micros for row in rows),
        )
        for name, rows in by_name.items()
    ]
    return sorted(lines, key=lambda line: (-line.cost_micros, -line.seconds, line.name))


def _mends(act: Act, event: TraceRow) -> bool:
    """Whether a call is a repair: marked as one, or of an attempt whose answer was to be repaired."""
    return event.mends or (act.row.mends and bool(event.cost_micros or event.tokens_in or event.tokens_out))


def _model_of(event: TraceRow) -> str:
    return str((event.detail or {}).get("model") or event.name)


def _less(whole: _Used, parts: Sequence[_Used]) -> Usage:
    return Usage(
        whole.tokens_in - sum(part.tokens_in for part in parts),
        whole.tokens_out - sum(part.tokens_out for part in parts),
        whole.cost_micros - sum(part.cost_micros for part in parts),
    )


def _untold(act: Act, charges: Sequence[ChargeRow], left: Usage) -> list[ChargeRow]:
    """The attempt's reserved calls that its events do not tell; none where they may be the same by another name."""
    told = {_model_of(event) for event in act.events if event.cost_micros or event.tokens_in or event.tokens_out}
    attempt = (act.row.step_id, act.row.fence)
    found = [one for one in charges if (one.step_id, one.fence) == attempt and one.model not in told]
    after = _less(left, found)
    return found if min(after.tokens_in, after.tokens_out, after.cost_micros) >= 0 else []


def waste_text(waste_micros: int, repair_micros: int) -> str | None:
    """What came to nothing, and how much of it was for repairs; None when there is none."""
    if not waste_micros:
        return None
    return dollars(waste_micros) + (f", {dollars(repair_micros)} of it for repairs" if repair_micros else "")


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


__all__ = [
    "WAITS",
    "Act",
    "CostLine",
    "StepLine",
    "Story",
    "changes",
    "cost_lines",
    "dollars",
    "seconds_text",
    "short",
    "tell",
    "waste_text",
]
