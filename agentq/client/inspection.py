"""Inspection: where a session stands now, what each step waits for and why, and the command that comes next."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from agentq.payload import decode
from agentq.store.recovery import Held, Recovery, WaitRow
from agentq.store.sessions import SessionRow, Sessions

# A worker beats every few seconds; silence beyond this is worth a word.
_SILENT_S = 15.0


@dataclass(frozen=True, slots=True)
class Waits:
    """What one step waits for: a word for programs, a sentence for people, and what to do."""

    step_id: uuid.UUID
    step: str
    state: str
    waits_for: str
    why: str
    since: datetime | None
    until: datetime | None
    worker: dict[str, Any] | None
    next_command: str | None


@dataclass(frozen=True, slots=True)
class Inspection:
    """A session as it stands."""

    tenant: str
    session_id: uuid.UUID
    agent: str
    state: str
    generation: int
    why: str
    since: datetime | None
    deadline_at: datetime | None
    hold: dict[str, Any] | None
    parent_session: uuid.UUID | None
    forked_from: uuid.UUID | None
    dry_effects: bool
    state_now: Any
    state_of: str | None
    steps: tuple[Waits, ...]
    unknown_effects: tuple[str, ...]
    next_command: str | None


def look_into(sessions: Sessions, recovery: Recovery, tenant: str, session_id: uuid.UUID) -> Inspection:
    """
    Where a session stands.

    Raises:
        UnknownSession: there is none.
    """
    row = sessions.get(tenant, session_id)
    held = recovery.held(tenant, session_id)
    state, state_of = recovery.state_now(tenant, session_id)
    rows = recovery.waits(tenant, session_id)
    steps = tuple(_Look(recovery, row, held, entry).waits() for entry in rows)
    unknown = tuple(
        f"{effect[2]} ({effect[0]})" for effect in sessions.effects(tenant, session_id) if effect[3] == "unknown"
    )
    why, next_command = _of_session(row, held, steps)
    return Inspection(
        tenant=tenant,
        session_id=session_id,
        agent=f"{row.agent}@{row.agent_version}",
        state=row.state,
        generation=held.generation,
        why=why,
        since=row.ended_at or row.created_at,
        deadline_at=row.deadline_at,
        hold=held.hold,
        parent_session=held.parent_session,
        forked_from=held.forked_from,
        dry_effects=held.dry_effects,
        state_now=decode(state),
        state_of=state_of,
        steps=steps,
        unknown_effects=unknown,
        next_command=next_command,
    )


def _of_session(row: SessionRow, held: Held, steps: tuple[Waits, ...]) -> tuple[str, str | None]:
    name = f"{row.session_id}"
    match row.state:
        case "done":
            return "it is done", f"agentq session show {name}"
        case "failed":
            failure = row.failure or {}
            why = f"it failed: {failure.get('type', '')}: {failure.get('message', '')}"
            return why, f"agentq session replay {name} --reason '…' --dry-run"
        case "cancelled":
            return f"it was cancelled: {(row.failure or {}).get('message', '')}", None
        case "paused":
            hold = held.hold or {}
            by = f" by {hold['by']}" if hold.get("by") else ""
            why = f"it is paused{by} ({hold.get('kind', 'unknown')}): {hold.get('reason', 'no reason is on record')}"
            return why, f"agentq session resume {name} --reason '…'"
    if not steps:
        return "it runs, but has no step left that could: `agentq doctor` should know why", "agentq doctor"
    first = steps[0] if len(steps) == 1 else next((s for s in steps if s.waits_for != "join"), steps[0])
    return first.why, first.next_command


class _Look:
    """One step, and the reasons that may keep it, the most telling first."""

    def __init__(self, recovery: Recovery, session: SessionRow, held: Held, entry: WaitRow) -> None:
        self._recovery = recovery
        self._session = session
        self._held = held
        self._e = entry

    def waits(self) -> Waits:
        word, why, since, until, command = next(self._reasons())
        e = self._e
        worker = None
        if e.worker_id is not None:
            worker = {
                "id": e.worker_id, "host": e.host, "pid": e.pid, "group": e.worker_group, "state": e.worker_state,
                "since": e.started_at, "last_heard_s": e.silent_s, "attempt": e.attempt, "fence": e.fence,
            }  # fmt: skip
        return Waits(e.step_id, e.name, e.state, word, why, since, until, worker, command)

    def _reasons(self) -> Iterator[tuple[str, str, datetime | None, datetime | None, str | None]]:
        e, name = self._e, str(self._session.session_id)
        match e.state:
            case "running":
                yield self._running()
            case "waiting" if e.waits_for > 0:
                yield "join", self._join(), None, None, self._child_command()
            case "waiting":
                groups = " or ".join(e.groups or ["somebody"])
                yield (
                    "approval",
                    f"{groups} must answer: {e.question}",
                    None,
                    e.answer_by,
                    f"agentq approval show {e.approval_id}",
                )
            case "held" if e.unserved:
                why = f"no living worker serves {e.unserved}; it holds no slot and goes on when one starts"
                yield "unserved", why, None, None, "agentq fleet ls"
            case "held":
                yield "paused", "its session is paused", None, None, f"agentq session resume {name} --reason '…'"
        if e.tenant_state == "paused":
            why, command = (
                "its tenant is paused",
                f"agentq tenant set {self._session.tenant} --state active --reason '…'",
            )
            yield "tenant", why, None, None, command
        if e.state == "ready" and e.later:
            yield self._later()
        if e.serving == 0:
            group = "quarantine" if e.quarantine else e.tenant_group
            pin = f"{self._session.agent}@{self._session.agent_version}"
            why = f"no living worker of the {group} group serves {pin}"
            yield (
                "unserved",
                why,
                e.queued_at,
                None,
                f"agentq worker --group {group}" if group != "default" else "agentq fleet ls",
            )
        if e.state == "ready":
            why = (
                f"its tenant has {e.admitted} of {e.concurrency} slots in use, and {e.ahead} steps are before this one"
            )
            if e.shedding:
                why += "; the cap was lowered, and slots are not handed on until fewer are in use"
            yield "slot", why, e.due_at, None, f"agentq queue ls --tenant {self._session.tenant}"
        why = f"its message is with the broker, and a free thread of {e.serving} workers should take it"
        if e.dispatches:
            why += f"; it was missing and sent again {e.dispatches} times"
        yield "worker", why, e.queued_at, None, "agentq fleet ls"

    def _running(self) -> tuple[str, str, datetime | None, datetime | None, str | None]:
        e = self._e
        where = f"attempt {e.attempt} of {e.attempts_max} runs on {e.host}, process {e.pid}"
        heard = f"heard {e.silent_s:.1f} s ago" if e.silent_s is not None else "not known"
        why = f"{where} ({heard}), for {e.running_s or 0:.1f} of {e.timeout_s:g} s"
        command = None
        if e.worker_state not in ("live", "draining"):
            why += "; that worker is gone, and the relay takes the step back"
        elif (e.silent_s or 0.0) > _SILENT_S:
            why += "; the worker is silent, and its lease decides"
            command = "agentq fleet ls"
        elif (e.running_s or 0.0) > e.timeout_s:
            why += "; it is over its time and is being abandoned"
            command = f"agentq session kill {self._session.session_id} --reason '…'"
        return "itself", why, e.started_at, None, command

    def _later(self) -> tuple[str, str, datetime | None, datetime | None, str | None]:
        e = self._e
        failure = e.failure or {}
        if failure.get("dependency"):
            name = failure["dependency"]
            why = f"{name} is held back: {failure.get('message', '')}"
            return "breaker", why, None, e.due_at, f"agentq dependency show {name}"
        if e.failure and e.attempt:
            why = f"attempt {e.attempt} of {e.attempts_max} failed ({failure.get('type')}: {failure.get('message')})"
            return "backoff", why, None, e.due_at, None
        if e.fence:
            return "backoff", "it was put off, and no attempt was counted", None, e.due_at, None
        return "timer", "it sleeps", None, e.due_at, None

    def _join(self) -> str:
        e = self._e
        branches = self._recovery.open_branches(self._session.tenant, self._session.session_id, e.step_id)
        told = [f"session {child} ({state})" if child else f"branch {number}" for number, child, state in branches[:5]]
        more = f" and {e.waits_for - len(told)} more" if e.waits_for > len(told) else ""
        return f"{e.waits_for} of {e.fan} branches have not ended: {', '.join(told)}{more}"

    def _child_command(self) -> str | None:
        e = self._e
        branches = self._recovery.open_branches(self._session.tenant, self._session.session_id, e.step_id)
        child = next((child for _, child, _ in branches if child is not None), None)
        return f"agentq session inspect {child}" if child else None
