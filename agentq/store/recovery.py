"""Recovery: sessions paused, resumed, killed and reopened, each with the row that says who and why."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from psycopg.types.json import Jsonb

from agentq.errors import NotReopened, UnknownSession
from agentq.step import new_id
from agentq.store.ledger import failure_json
from agentq.store.operators import record
from agentq.store.pool import Connection, Store, run
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
        failure = failure_json(Failure("cancelled", "SessionKilled", by.reason))
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
        copy = new_id() if step_id is not None else None
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
                "deadline_s": deadline_s,
            },
        )
        self._known(tenant, session_id, None if outcome == "missing" else outcome)
        if outcome != "reopened":
            raise NotReopened(str(session_id), outcome)
        more = {"step": str(step_id) if step_id else None, "generation": now, "sessions": [str(s) for s in sessions]}
        _audit(on, (tenant, session_id), action, by, more | (detail or {}))
        return Reopened(session_id, copy, now, tuple(sessions))

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
