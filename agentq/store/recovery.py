"""Recovery: sessions paused, resumed, killed and reopened, each with the row that says who and why."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from agentq.errors import NotReopened, UnknownSession
from agentq.payload import fold
from agentq.step import new_id
from agentq.store import moving, sealing
from agentq.store.ledger import failure_json
from agentq.store.operators import record
from agentq.store.pool import ALL_TENANTS, Connection, Row, Store, run
from agentq.store.queries import load
from agentq.verdicts import Failure

SQL = load("recovery")


@dataclass(frozen=True, slots=True)
class By:
    """Who acts, and why: kept with what was done."""

    operator: str
    reason: str


@dataclass(frozen=True, slots=True)
class Reopened:
    """A session that goes on: the step that was begun anew, and every session that goes on with it."""

    session_id: uuid.UUID
    step_id: uuid.UUID | None
    generation: int
    sessions: tuple[uuid.UUID, ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """Whose session it is, how often it was reopened, and whether its deadline is over."""

    agent: str
    agent_version: int
    state: str
    generation: int
    overdue: bool | None


@dataclass(frozen=True, slots=True)
class Place:
    """A step that a session may go back to."""

    step_id: uuid.UUID
    seq: int
    branch: int | None
    name: str
    state: str
    attempt: int

    @property
    def number(self) -> str:
        """As people name it: `3`, or `3.1` in a branch."""
        return str(self.seq) if self.branch is None else f"{self.seq}.{self.branch}"


@dataclass(frozen=True, slots=True)
class Chosen:
    """A filter of sessions."""

    states: tuple[str, ...]
    tenant: str | None = None
    agent: str | None = None
    older_s: float | None = None
    held_by: str | None = None

    def parameters(self) -> dict[str, Any]:
        """As the queries name it."""
        return {
            "states": list(self.states),
            "tenant": self.tenant,
            "agent": self.agent,
            "older_s": self.older_s,
            "held_by": self.held_by,
        }


@dataclass(frozen=True, slots=True)
class Held:
    """Why a session is paused, and where it comes from."""

    hold: dict[str, Any] | None
    generation: int
    forked_from: uuid.UUID | None
    dry_effects: bool
    parent_session: uuid.UUID | None


@dataclass(frozen=True, slots=True)
class WaitRow:
    """A step that has not ended, and everything that may keep it."""

    step_id: uuid.UUID
    seq: int
    branch: int | None
    name: str
    state: str
    attempt: int
    attempts_max: int
    crashes: int
    quarantine: bool
    fence: int
    due_at: datetime
    queued_at: datetime | None
    started_at: datetime | None
    later: bool
    failure: dict[str, Any] | None
    waits_for: int
    fan: int
    unserved: str | None
    timeout_s: float
    dispatches: int
    worker_id: uuid.UUID | None
    host: str | None
    pid: int | None
    worker_group: str | None
    worker_state: str | None
    silent_s: float | None
    running_s: float | None
    approval_id: uuid.UUID | None
    question: str | None
    groups: list[str] | None
    answer_by: datetime | None
    approval_state: str | None
    tenant_state: str
    concurrency: int
    shedding: bool
    admitted: int
    ahead: int | None
    serving: int
    tenant_group: str


class Recovery:
    """What people do to one session; each call is one transaction with its audit row."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def pause(self, tenant: str, session_id: uuid.UUID, by: By, *, parent: uuid.UUID | None = None) -> tuple[str, bool]:
        """
        Hold a running session: what runs now finishes, nothing follows. Its state, and whether that changed it.

        Raises:
            UnknownSession: there is none.
        """
        hold = {"kind": "operator", "by": by.operator, "reason": by.reason}
        if parent is not None:
            hold["with"] = str(parent)
        with self.store.transaction(tenant) as connection:
            ids = {"tenant": tenant, "session": session_id}
            [(state, changed)] = run(connection, SQL["pause"], ids | {"hold": Jsonb(hold)})
            self._known(tenant, session_id, state)
            if changed:
                _audit(connection, (tenant, session_id), "session pause", by)
            return state, changed

    def resume(self, tenant: str, session_id: uuid.UUID, by: By) -> tuple[str, bool]:
        """
        Let a paused session go on. Its state, and whether that changed it.

        Raises:
            UnknownSession: there is none.
        """
        with self.store.transaction(tenant) as connection:
            [(state, changed)] = run(connection, SQL["resume"], {"tenant": tenant, "session": session_id})
            self._known(tenant, session_id, state)
            if changed:
                _audit(connection, (tenant, session_id), "session resume", by)
            return state, changed

    def kill(self, tenant: str, session_id: uuid.UUID, by: By) -> tuple[str, bool, int]:
        """
        End a session now and fence off what runs. Its state, whether that changed it, and the attempts fenced.

        Raises:
            UnknownSession: there is none.
        """
        failure = failure_json(self.store.vault, tenant, Failure("cancelled", "SessionKilled", by.reason))
        with self.store.transaction(tenant) as connection:
            ids = {"tenant": tenant, "session": session_id}
            [(state, changed, fenced)] = run(connection, SQL["kill"], ids | {"failure": failure})
            self._known(tenant, session_id, state)
            if changed or fenced:
                _audit(connection, (tenant, session_id), "session kill", by, {"fenced": fenced})
            return state, changed, fenced

    def reopen(
        self,
        tenant: str,
        session_id: uuid.UUID,
        by: By,
        *,
        generation: int,
        step_id: uuid.UUID | None = None,
        state: bytes | None = None,
        deadline_s: float | None = None,
        action: str = "session replay",
        detail: dict[str, Any] | None = None,
        on: Connection | None = None,
    ) -> Reopened:
        """
        Let a session go on from a step, or from where it stopped, in a new generation.

        `generation` is the one the caller saw: of several who reopen at once, one wins. `state` replaces
        what the step begins from. `deadline_s`: None keeps the deadline, 0 takes it away. With `on`, in
        that connection's transaction, which must have named the tenant.

        Raises:
            UnknownSession: there is none.
            NotReopened: it cannot go on from there; nothing was changed.
        """
        if on is None:
            with self.store.transaction(tenant) as connection:
                return self.reopen(
                    tenant, session_id, by, generation=generation, step_id=step_id, state=state,
                    deadline_s=deadline_s, action=action, detail=detail, on=connection,
                )  # fmt: skip
        vault = self.store.vault
        copy = new_id() if step_id is not None else None
        edit = new_id() if state is not None else None
        if edit is not None:
            state = vault.seal(tenant, sealing.state_in(session_id), state, row=edit.bytes + bytes(16))
        [(outcome, now, sessions)] = run(
            on,
            SQL["reopen"],
            {
                "tenant": tenant,
                "session": session_id,
                "step": step_id,
                "copy": copy,
                "generation": generation,
                "state": state,
                "edit": edit,
                "deadline_s": deadline_s,
            },
        )
        self._known(tenant, session_id, None if outcome == "missing" else outcome)
        if outcome != "reopened":
            raise NotReopened(str(session_id), outcome)
        more = {"step": str(step_id) if step_id else None, "generation": now, "sessions": [str(s) for s in sessions]}
        _audit(on, (tenant, session_id), action, by, more | (vault.seal_audit(tenant, detail) or {}))
        return Reopened(session_id, copy, now, tuple(sessions))

    def fork(
        self,
        tenant: str,
        session_id: uuid.UUID,
        by: By,
        *,
        step_id: uuid.UUID,
        state: bytes,
        input_hash: bytes,
        dry: bool = False,
        deadline_s: float | None = None,
        detail: dict[str, Any] | None = None,
    ) -> uuid.UUID:
        """
        Begin a new session as one of another's steps, with this state; its id.

        Raises:
            UnknownSession: there is none.
            NotReopened: it has no such step, or a replay has replaced that.
        """
        fork, vault = new_id(), self.store.vault
        parameters = {
            "tenant": tenant,
            "session": session_id,
            "step": step_id,
            "fork": fork,
            "copy": new_id(),
            "input": vault.seal(tenant, sealing.input_of(fork), state),
            "hash": input_hash,
            "dry": dry,
            "deadline_s": deadline_s,
        }
        with self.store.transaction(tenant) as connection:
            [(outcome,)] = run(connection, SQL["fork"], parameters)
            self._known(tenant, session_id, None if outcome == "missing" else outcome)
            if outcome != "forked":
                raise NotReopened(str(session_id), outcome)
            moving.into_fork(vault, connection, tenant=tenant, session=session_id, step=step_id, fork=fork)
            more = {"fork": str(fork), "step": str(step_id), "dry_effects": dry}
            more |= vault.seal_audit(tenant, detail) or {}
            _audit(connection, (tenant, session_id), "session fork", by, more)
        return fork

    # ── looking ──────────────────────────────────────────────────────────────

    def standing(self, tenant: str, session_id: uuid.UUID) -> Standing:
        """
        What a replay must know of a session.

        Raises:
            UnknownSession: there is none.
        """
        rows = self.store.query_as(tenant, SQL["standing"], {"tenant": tenant, "session": session_id})
        if not rows:
            raise UnknownSession(tenant, str(session_id))
        return Standing(*rows[0])

    def places(self, tenant: str, session_id: uuid.UUID) -> list[Place]:
        """The steps that a replay or a fork may go back to, in order."""
        rows = self.store.query_as(tenant, SQL["places"], {"tenant": tenant, "session": session_id})
        return [Place(*row) for row in rows]

    def state_before(self, tenant: str, session_id: uuid.UUID, step_id: uuid.UUID) -> bytes:
        """
        The state that a step begins from.

        Raises:
            NotReopened: the session has no such step.
        """
        parameters = {"tenant": tenant, "session": session_id, "step": step_id}
        rows = self.store.query_as(tenant, SQL["state_before"], parameters)
        if not rows:
            raise NotReopened(str(session_id), "no_step")
        return fold(sealing.open_states(self.store.vault, tenant, session_id, rows[0][0], at=rows[0][1]))

    def state_now(self, tenant: str, session_id: uuid.UUID) -> tuple[bytes, str | None]:
        """The state of the last checkpoint on the main line, and the step that wrote it; else the input."""
        rows = self.store.query_as(tenant, SQL["state_now"], {"tenant": tenant, "session": session_id})
        states, name, _, at = rows[0]
        return fold(sealing.open_states(self.store.vault, tenant, session_id, states, at=at)), name

    def undone_after(self, tenant: str, session_id: uuid.UUID, step_id: uuid.UUID) -> tuple[int, int, int, int]:
        """What a replay from there meets: recorded steps, running ones, effects to recall, effects left open."""
        parameters = {"tenant": tenant, "session": session_id, "step": step_id}
        [row] = self.store.query_as(tenant, SQL["undone_after"], parameters)
        return row[0], row[1], row[2], row[3]

    def count(self, chosen: Chosen) -> int:
        """How many sessions a filter names."""
        return int(self.store.query_as(chosen.tenant or ALL_TENANTS, SQL["count"], chosen.parameters())[0][0])

    def select(self, chosen: Chosen, *, limit: int = 500) -> Iterator[tuple[str, uuid.UUID, str, str]]:
        """The sessions that a filter names: tenant, id, agent, state; read in portions while they are worked on."""
        after = uuid.UUID(int=0)
        while True:
            parameters = chosen.parameters() | {"after": after, "limit": limit}
            rows = self.store.query_as(chosen.tenant or ALL_TENANTS, SQL["select"], parameters)
            for row in rows:
                yield row[0], row[1], row[2], row[3]
            if len(rows) < limit:
                return
            after = rows[-1][1]

    def waits(self, tenant: str, session_id: uuid.UUID) -> list[WaitRow]:
        """Each step that has not ended, with everything that may keep it."""
        rows = self.store.query_as(tenant, SQL["waits"], {"tenant": tenant, "session": session_id})
        return [self._waiting(tenant, session_id, row) for row in rows]

    def _waiting(self, tenant: str, session_id: uuid.UUID, row: Row) -> WaitRow:
        *facts, name, key, args_hash = row
        found, vault = WaitRow(*facts), self.store.vault
        failure = vault.open_failure(tenant, found.failure)
        if found.question is None:
            return replace(found, failure=failure)
        place = sealing.asked(session_id, name, key, args_hash, "question")
        return replace(found, failure=failure, question=vault.open_text(tenant, place, found.question))

    def open_branches(
        self, tenant: str, session_id: uuid.UUID, step_id: uuid.UUID
    ) -> list[tuple[int, uuid.UUID | None, str | None]]:
        """What a join still waits for: branch, child session and its state; the first twenty."""
        parameters = {"tenant": tenant, "session": session_id, "step": step_id}
        rows = self.store.query_as(tenant, SQL["open_branches"], parameters)
        return [(row[0], row[1], row[2]) for row in rows]

    def held(self, tenant: str, session_id: uuid.UUID) -> Held:
        """Why it is paused, and where it comes from."""
        [row] = self.store.query_as(tenant, SQL["held"], {"tenant": tenant, "session": session_id})
        return Held(*row)

    def paused_with(self, tenant: str, session_id: uuid.UUID) -> list[uuid.UUID]:
        """The children that were paused together with this session."""
        rows = self.store.query_as(tenant, SQL["paused_with"], {"tenant": tenant, "session": session_id})
        return [row[0] for row in rows]

    @staticmethod
    def _known(tenant: str, session_id: uuid.UUID, state: str | None) -> None:
        if state is None:
            raise UnknownSession(tenant, str(session_id))


def _audit(
    connection: Connection, session: tuple[str, uuid.UUID], action: str, by: By, detail: dict[str, Any] | None = None
) -> None:
    tenant, session_id = session
    record(
        connection,
        operator=by.operator,
        tenant=tenant,
        action=action,
        target=str(session_id),
        reason=by.reason,
        detail=detail,
    )
