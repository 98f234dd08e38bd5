"""Traces: what an attempt leaves for people to read, written with its settlement."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from agentq.errors import UnknownSession
from agentq.payload import storable
from agentq.store import sealing
from agentq.store.pool import ALL_TENANTS, Connection, Store, run
from agentq.store.queries import load
from agentq.store.vault import Place, Vault
from agentq.verdicts import Decision, Extras, TraceEvent

SQL = load("traces")

WEEKS_AHEAD = 3
ROWS_MAX = 10_000
# How far a clock that is set back may go without an attempt ending in an hour that is summed up already.
GRACE_S = 60.0
# Longer windows begin with a whole day: see `spend_since`.
_LONG_S = 2 * 86_400
TOLD = 100
_NOT_TOLD, _OTHER_SESSIONS = "(not told apart)", "(other sessions)"


@dataclass(frozen=True, slots=True)
class TraceRow:
    """An attempt, or something that one did."""

    step_id: uuid.UUID
    fence: int
    ordinal: int
    kind: str
    name: str
    agent: str
    agent_version: int
    seq: int
    branch: int | None
    attempt: int
    queued_at: datetime | None
    started_at: datetime
    ended_at: datetime
    closing: str | None
    failure: dict[str, Any] | None
    worker: uuid.UUID | None
    leads_to: str | None
    tokens_in: int
    tokens_out: int
    cost_micros: int
    detail: dict[str, Any] | None
    input: bytes | None
    output: bytes | None

    @property
    def took_s(self) -> float:
        return max((self.ended_at - self.started_at).total_seconds(), 0.0)

    @property
    def wasted(self) -> bool:
        """Whether it came to nothing: an attempt that brought its session no further."""
        return self.closing is not None and self.closing not in ("next", "end", "fail")

    @property
    def mends(self) -> bool:
        """Whether it is a repair: a call that asks a model again for what it wrote wrong, or an attempt so answered."""
        return self.closing == "repair" or (self.ordinal > 0 and (self.detail or {}).get("repair") is True)

    @property
    def repairs(self) -> int:
        """How many repairs are in it."""
        return 1 if self.mends else self._noted("repairs")

    @property
    def repair_micros(self) -> int:
        """The part of its cost that was for repairs."""
        return self.cost_micros if self.mends else self._noted("repair_micros")

    @property
    def waste_micros(self) -> int:
        """The part of its cost that came to nothing: all of a failed attempt's, and repairs."""
        return self.cost_micros if self.wasted else self.repair_micros

    def _noted(self, name: str) -> int:
        noted = (self.detail or {}).get(name) if self.ordinal == 0 else None
        return noted if isinstance(noted, int) else 0


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """A choice that an attempt made."""

    step_id: uuid.UUID
    fence: int
    ordinal: int
    decided_at: datetime
    step: str
    options: bytes
    picked: str
    why: str | None
    confidence: float | None
    limits: dict[str, Any] | None
    approver: str | None


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """A step's stored state and result."""

    step_id: uuid.UUID
    kind: str
    parent: uuid.UUID | None
    state: bytes | None
    result: bytes | None
    agent_version: int
    saved_at: datetime
    cost_micros: int
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True, slots=True)
class Totals:
    """What attempts came to together."""

    attempts: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost_micros: int = 0
    waste_micros: int = 0
    repairs: int = 0
    repair_micros: int = 0


NOTHING = Totals()


@dataclass(frozen=True, slots=True)
class Relative:
    """A session of the same trace."""

    session_id: uuid.UUID
    parent_session: uuid.UUID | None
    agent: str
    agent_version: int
    state: str
    created_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class Ended:
    """A session that ended, and what its tenant says of content."""

    tenant: str
    session_id: uuid.UUID
    ended_at: datetime
    content: str | None


@dataclass(frozen=True, slots=True)
class SpendRow:
    """
    What was used under one name. Waste is the part that came to nothing, and what repairs cost a part of the waste;
    cached tokens are some of those in.

    A session counts once, where it was first seen: the day on which it first used something, its first use of a model.
    So the sessions of all days come to those of the window; by session, one that began before the window counts none.
    """

    of: str
    count: int
    sessions: int
    tokens_in: int
    tokens_out: int
    cost_micros: int
    waste_micros: int
    tokens_cached: int = 0  # by model alone
    seconds: float = 0.0  # by model and tool
    recalled: int = 0  # by tool: answers that were there already, and are no calls
    seconds_sandbox: float = 0.0  # by tool: of those seconds
    repairs: int = 0  # calls that asked a model again for what it wrote wrong, and attempts so answered
    repair_micros: int = 0


@dataclass(frozen=True, slots=True)
class ChargeRow:
    """What an attempt's reserved calls of one model came to."""

    step_id: uuid.UUID
    fence: int
    model: str
    count: int
    tokens_in: int
    tokens_out: int
    cost_micros: int
    tokens_cached: int


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
        "bare": _text(made.bare_options) if made.bare_options is not None else None,
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

    def of_session(self, tenant: str, session_id: uuid.UUID, since: datetime, limit: int = ROWS_MAX) -> list[TraceRow]:
        """What the session's attempts left, in the order in which it began."""
        parameters = {"tenant": tenant, "session": session_id, "since": since, "max": limit}
        rows = self.store.query_as(tenant, SQL["of_session"], parameters)
        return [_trace_row(self.store.vault, tenant, session_id, TraceRow(*row)) for row in rows]

    def told(
        self, tenant: str, session_id: uuid.UUID, since: datetime, limit: int = ROWS_MAX
    ) -> tuple[list[TraceRow], Totals]:
        """
        As `of_session`, but of a session that left more rows its beginning and its end; and what is left out.

        What went wrong is mostly at the end.
        """
        rows = self.of_session(tenant, session_id, since, limit)
        if len(rows) < limit:
            return rows, NOTHING
        parameters = {"tenant": tenant, "session": session_id, "since": since, "max": limit // 2}
        ends = [TraceRow(*row) for row in self.store.query_as(tenant, SQL["end_of_session"], parameters)]
        first = {(row.step_id, row.fence, row.ordinal): row for row in rows[: limit // 2]}
        last = [
            _trace_row(self.store.vault, tenant, session_id, row)
            for row in reversed(ends)
            if (row.step_id, row.fence, row.ordinal) not in first
        ]
        shown = [*first.values(), *last]
        whole = Totals(*self.store.query_as(tenant, SQL["totals"], parameters)[0])
        acts = [row for row in shown if row.ordinal == 0]
        return shown, Totals(
            whole.attempts - len(acts),
            whole.tokens_in - sum(row.tokens_in for row in acts),
            whole.tokens_out - sum(row.tokens_out for row in acts),
            whole.cost_micros - sum(row.cost_micros for row in acts),
            whole.waste_micros - sum(row.waste_micros for row in acts),
            whole.repairs - sum(row.repairs for row in acts),
            whole.repair_micros - sum(row.repair_micros for row in acts),
        )

    def decisions(self, tenant: str, session_id: uuid.UUID, since: datetime) -> list[DecisionRow]:
        """The choices that the session made."""
        parameters = {"tenant": tenant, "session": session_id, "since": since, "max": ROWS_MAX}
        rows = self.store.query_as(tenant, SQL["decisions"], parameters)
        return [_decision_row(self.store.vault, tenant, session_id, DecisionRow(*row)) for row in rows]

    def checkpoints(self, tenant: str, session_id: uuid.UUID) -> list[CheckpointRow]:
        """The session's stored states as they are stored: whole, or as what changed."""
        parameters = {"tenant": tenant, "session": session_id, "max": ROWS_MAX}
        vault = self.store.vault
        rows = []
        for *facts, branch in self.store.query_as(tenant, SQL["checkpoints"], parameters):
            row = CheckpointRow(*facts)
            [state] = (
                (None,)
                if row.state is None
                else sealing.open_states(vault, tenant, session_id, (row.state,), at=row.step_id)
            )
            result = vault.open(tenant, sealing.result_of(session_id, branch), row.result)
            rows.append(replace(row, state=state, result=result))
        return rows

    def beginnings(self, tenant: str, session_id: uuid.UUID) -> dict[uuid.UUID, tuple[uuid.UUID | None, bytes | None]]:
        """Each step's beginning: the checkpoint with its state (None: the input), and its arguments."""
        parameters = {"tenant": tenant, "session": session_id, "max": ROWS_MAX}
        rows = self.store.query_as(tenant, SQL["beginnings"], parameters)
        opened = self.store.vault.open
        return {row[0]: (row[1], opened(tenant, sealing.args_at(session_id, row[3]), row[2])) for row in rows}

    def family(self, tenant: str, session_id: uuid.UUID) -> tuple[uuid.UUID, list[Relative]]:
        """
        The trace that a session belongs to, and every session in it.

        Raises:
            UnknownSession: the tenant has none of that id.
        """
        of = {"tenant": tenant, "session": session_id}
        with self.store.transaction(tenant) as connection:
            found = run(connection, SQL["trace_id"], of)
            if not found:
                raise UnknownSession(tenant, str(session_id))
            trace_id: uuid.UUID = found[0][0]
            rows = run(connection, SQL["family"], {"tenant": tenant, "trace": trace_id})
        return trace_id, [Relative(*row) for row in rows]

    def trace_id(self, tenant: str, session_id: uuid.UUID) -> uuid.UUID:
        """
        The trace that a session belongs to.

        Raises:
            UnknownSession: the tenant has none of that id.
        """
        found = self.store.query_as(tenant, SQL["trace_id"], {"tenant": tenant, "session": session_id})
        if not found:
            raise UnknownSession(tenant, str(session_id))
        return uuid.UUID(str(found[0][0]))

    def charged(self, tenant: str, session_id: uuid.UUID) -> list[ChargeRow]:
        """What the session's reserved calls came to, by attempt and model."""
        rows = self.store.query_as(tenant, SQL["charged"], {"tenant": tenant, "session": session_id})
        return [ChargeRow(*row) for row in rows]

    def spend(
        self, by: str, *, seconds: float, tenant: str | None = None, agent: str | None = None, limit: int = TOLD
    ) -> list[SpendRow]:
        """
        What was used within the last so many seconds, the dearest first: by agent, tenant, day, session, model or tool.

        All but tools come to the same sum. What attempts used beyond their events and reserved calls has a line of its
        own among the models; what was used beyond the dearest `limit` sessions has one among the sessions. More than an
        hour begins with a whole one, more than two days with a whole day, and reach back further than traces are kept.
        """
        if by != "session":
            return self.spends((by,), seconds=seconds, tenant=tenant, agent=agent)[by]
        with self._window(seconds, tenant, agent) as (connection, window):
            rows = [SpendRow(*row) for row in run(connection, SQL["spend_by_session"], window | {"limit": limit})]
            total = _spends(connection, {"tenant"}, window)["tenant"]
        rest = _rest(_OTHER_SESSIONS, total, rows)
        return rows if rest is None else [*rows, rest]

    def spends(
        self, by: Sequence[str], *, seconds: float, tenant: str | None = None, agent: str | None = None
    ) -> dict[str, list[SpendRow]]:
        """What was used, by several things (not by session) and as of one moment."""
        with self._window(seconds, tenant, agent) as (connection, window):
            found = _spends(connection, {*by} | ({"tenant"} if "model" in by else set()), window)
        if "model" in by and (rest := _rest(_NOT_TOLD, found["tenant"], found["model"])) is not None:
            # Attempts and not requests: those have been counted where they are told.
            found["model"].append(replace(rest, count=0, sessions=0))
        return {one: found[one] for one in by}

    @contextmanager
    def _window(
        self, seconds: float, tenant: str | None, agent: str | None
    ) -> Iterator[tuple[Connection, dict[str, Any]]]:
        """A transaction that sees one moment, and the window that ends with it."""
        with self.store.snapshot(tenant or ALL_TENANTS) as connection:
            [[since]] = run(connection, SQL["spend_since"], {"seconds": seconds})
            yield connection, {"since": since, "long": seconds > _LONG_S, "tenant": tenant, "agent": agent}

    def roll(self, *, grace_s: float = GRACE_S) -> str | None:
        """One turn at summing up what was used, by hour and day; what was done, or None when nothing was left to do."""
        [[done]] = self.store.query(SQL["roll_spend"], {"grace_s": grace_s})
        return done  # type: ignore[no-any-return]

    def export(
        self, name: str, deliver: Callable[[list[Ended]], None], *, limit: int = 50, late_s: float = 5.0
    ) -> int | None:
        """
        Hand sessions that ended since the last time to `deliver`; how many, or None when another process does.

        When `deliver` raises, they come again: at least once. A new export begins with what ends from now on.
        """
        with self.store.transaction(ALL_TENANTS) as connection:
            run(connection, SQL["export_begin"], {"name": name})
            place = run(connection, SQL["export_place"], {"name": name})
            if not place:
                return None
            ended_at, session_id = place[0]
            after = {"ended_at": ended_at, "session": session_id, "late_s": late_s, "max": limit}
            ended = [Ended(*row) for row in run(connection, SQL["export_next"], after)]
            if ended:
                deliver(ended)
                last = {"name": name, "ended_at": ended[-1].ended_at, "session": ended[-1].session_id}
                run(connection, SQL["export_move"], last)
            return len(ended)


def _trace_row(vault: Vault, tenant: str, session: uuid.UUID, row: TraceRow) -> TraceRow:
    def place(column: str) -> Place:
        return sealing.traced(session, row.step_id, row.fence, row.ordinal, column)

    return replace(
        row,
        failure=vault.open_failure(tenant, row.failure),
        detail=vault.open_facts(tenant, place("detail"), row.detail),
        input=vault.show(tenant, place("input"), row.input),
        output=vault.show(tenant, place("output"), row.output),
    )


def _decision_row(vault: Vault, tenant: str, session: uuid.UUID, row: DecisionRow) -> DecisionRow:
    def place(column: str) -> Place:
        return sealing.decided(session, row.step_id, row.fence, row.ordinal, column)

    return replace(
        row,
        options=vault.show(tenant, place("options"), row.options) or b"null",
        picked=vault.open_text(tenant, place("picked"), row.picked),
        why=vault.open_text(tenant, place("why"), row.why),
    )


def _spends(connection: Connection, by: set[str], window: dict[str, Any]) -> dict[str, list[SpendRow]]:
    found: dict[str, list[SpendRow]] = {one: [] for one in by}
    parameters = window | {"by": sorted(by), "parts": sorted(by & {"model", "tool"})}
    for name, *facts in run(connection, SQL["spend"], parameters):
        found[name].append(SpendRow(*facts))
    return found


def _rest(of: str, total: list[SpendRow], told: list[SpendRow]) -> SpendRow | None:
    """What was used beyond what is told, so that the sums are equal."""
    left = {
        name: max(sum(getattr(row, name) for row in total) - sum(getattr(row, name) for row in told), 0)
        for name in (
            "count", "sessions", "tokens_in", "tokens_out", "cost_micros", "waste_micros", "repairs", "repair_micros",
        )
    }  # fmt: skip
    used = left["tokens_in"] or left["tokens_out"] or left["cost_micros"]
    return SpendRow(of, **left) if used else None
