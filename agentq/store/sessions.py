"""Sessions: started once per key, cancelled, and read by people and producers."""

from __future__ import annotations

import asyncio
import struct
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from psycopg.rows import tuple_row

from agentq.errors import ConfigError, InvalidInput, KeyConflict, NotAllowed, SessionBusy, UnknownSession, UnknownTenant
from agentq.payload import encode
from agentq.store import sealing
from agentq.store.ledger import failure_json
from agentq.store.pool import ALL_TENANTS, Connection, Row, Store, run, schema_errors
from agentq.store.queries import load
from agentq.store.vault import Vault
from agentq.verdicts import Failure, Wake

SQL = load("sessions")

# What a start does while a session with the same concurrency key lives.
OnConflict = Literal["queue", "reject", "replace", "merge"]


# A start for a tenant that nobody has added is refused (None), or makes it: with so much concurrency, or as another is.
Creating = int | str | None


@dataclass(frozen=True, slots=True)
class TraceParent:
    """The producer's trace and span, under which a session's own spans hang."""

    trace_id: uuid.UUID
    span_id: int


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session to start, checked at the door and encoded."""

    tenant: str
    session_id: uuid.UUID
    agent: str
    version: int
    key: str | None
    input: bytes
    input_hash: bytes
    step_id: uuid.UUID
    name: str
    attempts_max: int
    timeout_s: float
    priority: int = 0
    deadline_s: float | None = None
    concurrency_key: str | None = None
    on_conflict: OnConflict = "queue"
    trace: TraceParent | None = None


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session as stored."""

    tenant: str
    session_id: uuid.UUID
    agent: str
    agent_version: int
    key: str | None
    state: str
    result: bytes | None
    failure: dict[str, Any] | None
    priority: int
    parent_session: uuid.UUID | None
    created_at: datetime
    ended_at: datetime | None
    deadline_at: datetime | None
    input: bytes
    steps_recorded: int
    cost_micros: int
    tokens_in: int
    tokens_out: int
    trace_parent: int | None = None  # a span's id as Postgres holds it: signed


@dataclass(frozen=True, slots=True)
class SessionListing:
    """A session in a list."""

    tenant: str
    session_id: uuid.UUID
    agent: str
    agent_version: int
    key: str | None
    state: str
    created_at: datetime
    ended_at: datetime | None
    failure: dict[str, Any] | None


# What a page that no index serves looks at, so many at a time and for so long: it is then said how far it came.
LOOKED_AT_MAX = 5_000
_LOOK, _LOOK_S = 500, 0.1

# A place in the list of sessions, newest first.
Place = tuple[datetime, uuid.UUID]
_NEWEST: Place = (datetime(9999, 1, 1, tzinfo=UTC), uuid.UUID(int=2**128 - 1))


@dataclass(frozen=True, slots=True)
class SessionPage:
    """A part of the list, and where to go on; not `full`: it is short because it looked far enough."""

    rows: list[SessionListing]
    more: Place | None
    full: bool


@dataclass(frozen=True, slots=True)
class StepRow:
    """A ledger entry as people look at it."""

    step_id: uuid.UUID
    seq: int
    name: str
    state: str
    fence: int
    attempt: int
    attempts_max: int
    crashes: int
    quarantine: bool
    worker: uuid.UUID | None
    due_at: datetime
    queued_at: datetime | None
    started_at: datetime | None
    settled_at: datetime | None
    branch: int | None
    waits_for: int
    fan: int
    failure: dict[str, Any] | None
    repairs: int
    refusals: int


class Sessions:
    """Starts, ends from outside, and reports."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def start(
        self, sessions: list[NewSession], *, create_with: Creating, on: Connection | None = None
    ) -> list[tuple[uuid.UUID, bool]]:
        """
        Start each session, or find the one that its key already started; all in one transaction.

        Returns the session's id and whether it is new, in the order given. With `on`, within the
        caller's transaction.

        Raises:
            UnknownTenant, KeyConflict, InvalidInput: one was refused; none was started.
        """
        sessions = [self.sealed(new) for new in sessions]
        if on is not None:
            return [
                _started(new, row) for new, row in zip(sessions, _start_all(on, sessions, create_with), strict=True)
            ]
        with self.store.connection() as connection, schema_errors(), connection.transaction():
            rows = _start_all(connection, sessions, create_with)
            return [_started(new, row) for new, row in zip(sessions, rows, strict=True)]

    def sealed(self, new: NewSession) -> NewSession:
        """The session with its input as Postgres is to keep it; before any transaction is open."""
        return replace(new, input=self.store.vault.seal(new.tenant, sealing.input_of(new.session_id), new.input))

    def cancel(self, tenant: str, session_id: uuid.UUID, failure: Failure) -> tuple[str, list[Wake]]:
        """
        End a session from outside; its state afterwards, and steps of its parent to wake.

        Raises:
            UnknownSession: there is none.
        """
        parameters = {
            "tenant": tenant,
            "session": session_id,
            "failure": failure_json(self.store.vault, tenant, failure),
        }
        [(found, state, dispatch)] = self.store.query(SQL["cancel"], parameters)
        if not found:
            raise UnknownSession(tenant, str(session_id))
        return state, [Wake.from_json(tenant, facts) for facts in dispatch or ()]

    def children(self, tenant: str, session_id: uuid.UUID) -> list[uuid.UUID]:
        """Child sessions that have not ended."""
        rows = self.store.query_as(tenant, SQL["children"], {"tenant": tenant, "session": session_id})
        return [row[0] for row in rows]

    def get(self, tenant: str, session_id: uuid.UUID) -> SessionRow:
        """
        The session as it stands.

        Raises:
            UnknownSession: the tenant has none of that id.
        """
        rows = self.store.query_as(tenant, SQL["get"], {"tenant": tenant, "session": session_id})
        if not rows:
            raise UnknownSession(tenant, str(session_id))
        row, vault = SessionRow(*rows[0]), self.store.vault
        return replace(
            row,
            # For eyes alone, here; the result is what a producer goes by.
            input=vault.show(tenant, sealing.input_of(session_id), row.input) or b"null",
            result=vault.open(tenant, sealing.result_of(session_id), row.result),
            failure=vault.open_failure(tenant, row.failure),
        )

    def find(self, prefix: str, tenant: str | None = None) -> list[tuple[str, uuid.UUID]]:
        """Up to three sessions whose id begins so, of one tenant or of all."""
        digits = prefix.replace("-", "").lower()
        if not digits or len(digits) > 32 or any(digit not in "0123456789abcdef" for digit in digits):
            raise InvalidInput(f"{prefix!r} is not the beginning of a session id: use hexadecimal digits")
        low, high = uuid.UUID(digits.ljust(32, "0")), uuid.UUID(digits.ljust(32, "f"))
        parameters = {"low": low, "high": high, "tenant": tenant}
        return [(row[0], row[1]) for row in self.store.query_as(tenant or ALL_TENANTS, SQL["find"], parameters)]

    def state(self, tenant: str, session_id: uuid.UUID) -> str | None:
        """Its state, cheaply; None when there is no such session."""
        rows = self.store.query_as(tenant, SQL["state"], {"tenant": tenant, "session": session_id})
        return rows[0][0] if rows else None

    def states(self, tenant: str, sessions: list[uuid.UUID]) -> dict[uuid.UUID, str]:
        """The states of many sessions in one question."""
        rows = self.store.query_as(tenant, SQL["states"], {"tenant": tenant, "sessions": sessions})
        return {row[0]: row[1] for row in rows}

    def steps(self, tenant: str, session_id: uuid.UUID) -> list[StepRow]:
        """Its ledger entries, in order."""
        rows = self.store.query_as(tenant, SQL["steps"], {"tenant": tenant, "session": session_id})
        return [_open(self.store.vault, tenant, StepRow(*row)) for row in rows]

    def settled_steps(self, tenant: str, session_id: uuid.UUID) -> list[Row]:
        """Steps that have ended: id, seq, name, state, attempt, when, failure."""
        rows = self.store.query_as(tenant, SQL["settled_steps"], {"tenant": tenant, "session": session_id})
        return [(*row[:6], self.store.vault.open_failure(tenant, row[6])) for row in rows]

    def events(self, tenant: str, session_id: uuid.UUID, after: int) -> list[Row]:
        """Progress that steps reported: id, step, kind, body, when."""
        parameters = {"tenant": tenant, "session": session_id, "after": after}
        rows = self.store.query_as(tenant, SQL["events"], parameters)
        opened = self.store.vault.open
        return [
            (*row[:3], opened(tenant, sealing.event_of(session_id, row[1], row[2]), row[3]), *row[4:]) for row in rows
        ]

    def effects(self, tenant: str, session_id: uuid.UUID) -> list[Row]:
        """What it did outside: key, step, name, state, calls, when claimed and settled, failure."""
        rows = self.store.query_as(tenant, SQL["effects"], {"tenant": tenant, "session": session_id})
        return [(*row[:7], self.store.vault.open_failure(tenant, row[7])) for row in rows]

    def listing(
        self,
        *,
        tenant: str | None = None,
        agent: str | None = None,
        state: str | None = None,
        key: str | None = None,
        text: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 50,
    ) -> list[SessionListing]:
        """The newest sessions that match, and began since a moment and before another; see `page`."""
        rows: list[SessionListing] = []
        before: Place | None = (until, uuid.UUID(int=0)) if until is not None else None
        while len(rows) < limit:
            found = self.page(
                tenant=tenant, agent=agent, state=state, key=key, text=text, before=before, limit=limit - len(rows)
            )
            rows, before = rows + found.rows, found.more
            if before is None or (since is not None and before[0] < since):
                break
        return [row for row in rows if since is None or row.created_at >= since]

    def page(
        self,
        *,
        tenant: str | None = None,
        agent: str | None = None,
        state: str | None = None,
        key: str | None = None,
        prefix: str | None = None,
        text: str | None = None,
        within_input: bool = True,
        before: Place | None = None,
        limit: int = 50,
    ) -> SessionPage:
        """
        The newest sessions that match and stand before a place in the list.

        Keyset pages on an index, whatever is asked for. Where the best index does not serve all of it, a page
        looks at 5,000 sessions at most, and at fewer where that takes long, because they have to be read from the disk:
        it may then be short or empty, and `more` says where to go on. `text`
        is looked for in the key, the failure and the first 8 kB of the input, where they are not encrypted; not
        `within_input` for somebody who may not see what redaction hides, and could guess at it by searching.
        """
        low, high = _range(prefix) if prefix else (None, None)
        given: dict[str, Any] = {"tenant": tenant, "agent": agent, "state": state, "key": key, "low": low, "high": high}
        given |= {"within_input": within_input, "text": _needle(text)}
        if key is not None or prefix is not None:
            by, looks = "named", 1
        else:
            by, looks = _index_for(tenant, agent, state), LOOKED_AT_MAX // _LOOK
        began, place, rows = time.monotonic(), before or _NEWEST, list[SessionListing]()
        with self.store.transaction(tenant or ALL_TENANTS) as connection, schema_errors():
            run(connection, SQL["by_index"], {})
            for _ in range(looks):
                left = {"before_at": place[0], "before_id": place[1], "look": _LOOK, "limit": limit + 1 - len(rows)}
                found = run(connection, SQL[f"page_{by}"], given | left)
                rows += [_open(self.store.vault, row[0], SessionListing(*row[:9])) for row in found if row[9]]
                if len(rows) > limit:
                    last = rows[limit - 1]
                    return SessionPage(rows[:limit], (last.created_at, last.session_id), full=True)
                if not found or found[-1][10] < _LOOK:
                    return SessionPage(rows, None, full=False)
                place = (found[-1][6], found[-1][1])
                if time.monotonic() - began > _LOOK_S:
                    break
        return SessionPage(rows, place, full=False)


def _index_for(tenant: str | None, agent: str | None, state: str | None) -> str:
    """Which of the pages' indices leaves least to look at."""
    if tenant is not None:
        return "tenant_state" if state is not None else "tenant"
    if state in ("running", "paused", "failed", "cancelled"):
        return "state"  # few of them, beside those of an agent
    if agent is not None:
        return "agent"
    return "state" if state is not None else "all"


def _needle(text: str | None) -> str | None:
    """A text as it stands in what is searched: as JSON writes it, letters small, beyond ASCII as `encode` escapes."""
    if not text:
        return None
    raw = encode(text)[1:-1].lower()
    return "".join("\\\\" if byte == 0x5C else chr(byte) if byte < 0x80 else f"\\{byte:03o}" for byte in raw)


Failed = TypeVar("Failed", SessionListing, StepRow)


def _open(vault: Vault, tenant: str, row: Failed) -> Failed:
    return row if row.failure is None else replace(row, failure=vault.open_failure(tenant, row.failure))


def _range(prefix: str) -> tuple[uuid.UUID, uuid.UUID]:
    """The first and the last id that begin so."""
    digits = prefix.replace("-", "").lower()
    if not digits or len(digits) > 32 or any(digit not in "0123456789abcdef" for digit in digits):
        raise InvalidInput(f"{prefix!r} is not the beginning of a session id: use hexadecimal digits")
    return uuid.UUID(digits.ljust(32, "0")), uuid.UUID(digits.ljust(32, "f"))


async def start_on_async(
    connection: Any, new: NewSession, create_with: Creating, sealed: Callable[[NewSession], NewSession]
) -> tuple[uuid.UUID, bool]:
    """As `Sessions.start`, within the transaction of a psycopg `AsyncConnection`; `sealed` is `Sessions.sealed`."""
    new = await asyncio.to_thread(sealed, new)
    async with connection.cursor(binary=True, row_factory=tuple_row) as cursor:
        if isinstance(create_with, str):
            await cursor.execute(SQL["add_like"], {"tenant": new.tenant, "like": create_with})
        await cursor.execute(SQL["start"], _start_parameters(new, create_with))
        return _started(new, await cursor.fetchone())


def _start_all(connection: Connection, sessions: list[NewSession], create_with: Creating) -> list[Row]:
    with connection.cursor(binary=True, row_factory=tuple_row) as cursor:
        for tenant in {new.tenant for new in sessions} if isinstance(create_with, str) else ():
            cursor.execute(SQL["add_like"].encode(), {"tenant": tenant, "like": create_with})
        cursor.executemany(
            SQL["start"].encode(), [_start_parameters(new, create_with) for new in sessions], returning=True
        )
        rows = []
        for result in cursor.results():
            rows.extend(result.fetchall())
        return rows


def _start_parameters(new: NewSession, create_with: Creating) -> dict[str, Any]:
    return {
        "tenant": new.tenant,
        "session": new.session_id,
        "agent": new.agent,
        "version": new.version,
        "key": new.key,
        "input": new.input,
        "hash": new.input_hash,
        "step": new.step_id,
        "name": new.name,
        "attempts_max": new.attempts_max,
        "timeout_s": new.timeout_s,
        "priority": new.priority,
        "deadline_s": new.deadline_s,
        "create_with": create_with if isinstance(create_with, int) else None,
        "turn": new.concurrency_key,
        "on_conflict": new.on_conflict,
        "trace": new.trace.trace_id if new.trace else None,
        # 64 bits without a sign, in a column that has one.
        "span": struct.unpack("q", struct.pack("Q", new.trace.span_id))[0] if new.trace else None,
    }


def _started(new: NewSession, row: Row) -> tuple[uuid.UUID, bool]:
    outcome, session_id = row
    match outcome:
        case "created":
            return session_id, True
        case "found":
            return session_id, False
        case "conflict":
            raise KeyConflict("session key", str(new.key))
        case "busy":
            raise SessionBusy(new.tenant, str(new.concurrency_key), str(session_id))
        case "agent_refused":
            raise NotAllowed(new.tenant, "agent", new.agent)
        case "unsealed":
            raise ConfigError(
                f"payloads of tenant {new.tenant!r} are encrypted and this process has no key provider: "
                "set encryption_key_file, encryption_keys or encryption_provider as the fleet has it"
            )
        case "tenant_closed":
            raise InvalidInput(f"tenant {new.tenant!r} is draining and takes no new sessions")
        case _:
            raise UnknownTenant(new.tenant)
