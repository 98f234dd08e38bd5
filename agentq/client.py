"""The client: how producer services start sessions, watch them, and stop them."""

from __future__ import annotations

import asyncio
import getpass
import os
import random
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any, Self, cast

from pydantic import BaseModel

from agentq.agents.registry import Registry, load_agents
from agentq.agents.returns import Duration
from agentq.broker.connection import connect
from agentq.broker.publisher import Publisher
from agentq.door import Door
from agentq.errors import InvalidInput, SessionFailed, StoreUnavailable, UnknownSession, WaitTimeout
from agentq.payload import decode
from agentq.settings import Settings, load
from agentq.step import StepRef, valid_name
from agentq.store.ledger import Ledger
from agentq.store.operators import Operators, TenantRow
from agentq.store.pool import Connection, Store
from agentq.store.sessions import NewSession, SessionListing, SessionRow, Sessions, StepRow
from agentq.verdicts import Failure

Input = BaseModel | Mapping[str, Any]

ENDED = frozenset({"done", "failed", "cancelled"})

# Polling: quick at first, because most waits are short, then gentle.
_POLL_FIRST_S, _POLL_LAST_S = 0.02, 0.5
_ADMIT_MAX = 500
_BULK = 1000
_EVENTS_OVERLAP = 1000


@dataclass(frozen=True)
class SessionView:
    """A session at one moment."""

    tenant: str
    id: str
    agent: str
    version: int
    key: str | None
    state: str
    failure: Mapping[str, Any] | None
    created_at: datetime
    ended_at: datetime | None
    steps: int
    cost_usd: float
    input_tokens: int
    output_tokens: int
    _result: bytes | None = field(repr=False)

    @property
    def ended(self) -> bool:
        """Whether no further step will run."""
        return self.state in ENDED

    @property
    def result(self) -> Any:
        """
        What the agent returned with `Done`.

        Raises:
            SessionFailed: it ended without one.
            WaitTimeout: it has not ended.
        """
        if self.state == "done":
            return decode(cast(bytes, self._result))
        if self.failure is not None:
            raise SessionFailed(self.id, self.state, str(self.failure.get("message", "")))
        raise WaitTimeout(f"session {self.id} has not ended ({self.state})")


@dataclass(frozen=True)
class Event:
    """Something that happened in a session: a step's end, progress that a step reported, the session's end."""

    kind: str
    at: datetime
    step: str | None
    data: Mapping[str, Any]


class Session:
    """A started session. It runs on whatever this handle does."""

    def __init__(self, client: Client, tenant: str, session_id: uuid.UUID, *, created: bool) -> None:
        self._client = client
        self._uuid = session_id
        self.tenant = tenant
        self.id = str(session_id)
        self.created = created

    def __repr__(self) -> str:
        return f"<session {self.tenant}/{self.id}>"

    def view(self) -> SessionView:
        """The session as it stands now."""
        return _view(self._client.sessions.get(self.tenant, self._uuid))

    def steps(self) -> list[StepRow]:
        """Its ledger entries so far."""
        return self._client.sessions.steps(self.tenant, self._uuid)

    def wait(self, timeout: float | None = None) -> SessionView:
        """
        The session once it has ended.

        A Postgres that is away for a moment is waited for; `timeout` is in seconds.

        Raises:
            WaitTimeout: it has not; the session goes on.
        """
        for _ in _polls(timeout):
            try:
                state = self._client.sessions.state(self.tenant, self._uuid)
                if state is None:
                    raise UnknownSession(self.tenant, self.id)
                if state in ENDED:
                    return self.view()
            except StoreUnavailable:
                continue
        raise WaitTimeout(f"session {self.id} had not ended after {timeout} s")

    def events(self, timeout: float | None = None) -> Iterator[Event]:
        """
        What happens, as it happens, from the session's beginning to its end.

        Raises:
            WaitTimeout: the session has not ended within `timeout` seconds.
        """
        feed = _Feed(self._client, self.tenant, self._uuid)
        for _ in _polls(timeout, reset=feed.take_news):
            try:
                yield from feed.read()
            except StoreUnavailable:
                continue
            if feed.ended:
                return
        raise WaitTimeout(f"session {self.id} had not ended after {timeout} s")

    def cancel(self, reason: str = "cancelled by the caller") -> str:
        """End it; its state afterwards, which is not `cancelled` when it had ended before."""
        return self._client.cancel(self.tenant, self.id, reason=reason)


class Tenants:
    """The tenant table, editable while the fleet runs."""

    def __init__(self, operators: Operators, settings: Settings) -> None:
        self._operators = operators
        self._settings = settings

    def add(self, name: str, *, concurrency: int | None = None, weight: float = 1.0, reason: str = "added") -> bool:
        """Add a tenant; False when it was there already, unchanged. Workers listen to it within a second."""
        valid_name("tenant", name)
        cap = self._settings.tenant_concurrency if concurrency is None else concurrency
        _check_limits(cap, weight)
        return self._operators.add_tenant(name, concurrency=cap, weight=weight, operator=operator_name(), reason=reason)

    def set(
        self,
        name: str,
        *,
        concurrency: int | None = None,
        weight: float | None = None,
        state: str | None = None,
        reason: str,
    ) -> None:
        """
        Change what is given: `state` is active, paused or draining.

        Raises:
            UnknownTenant, InvalidInput: there is none, or a value is out of range.
        """
        _check_limits(concurrency, weight)
        if state not in (None, "active", "paused", "draining"):
            raise InvalidInput(f"a tenant is active, paused or draining, not {state!r}")
        self._operators.change_tenant(
            valid_name("tenant", name),
            concurrency=concurrency,
            weight=weight,
            state=state,
            operator=operator_name(),
            reason=reason,
        )

    def ls(self) -> list[TenantRow]:
        """Every tenant, by name."""
        return self._operators.tenants()


class Client:
    """
    Starts sessions and looks at them. Safe to share between threads; not across a fork.

    Acceptance is a commit in Postgres. The broker only hastens: while it is away, sessions start a
    moment later.
    """

    def __init__(self, settings: Settings, registry: Registry | None = None) -> None:
        settings.require_servers()
        self.settings = settings
        self.registry = load_agents(settings.agents) if registry is None else registry
        self._store = Store(settings.database_url, size=max(4, settings.database_pool // 2), name="agentq client")
        self._door = Door(settings, self.registry)
        self._publisher = Publisher(lambda: connect(settings))
        self.ledger = Ledger(self._store)
        self.sessions = Sessions(self._store)
        self.operators = Operators(self._store)
        self.tenants = Tenants(self.operators, settings)

    @classmethod
    def from_env(cls, **explicit: Any) -> Self:
        """
        A client for the servers and agents that the environment names (`AGENTQ_*`).

        Raises:
            ConfigError: servers or agents are missing.
        """
        return cls(load(**explicit))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Publish what waits, then let the connections go."""
        self._publisher.close()
        self._store.close()

    def start(
        self,
        agent: str,
        *,
        tenant: str,
        input: Input,
        key: str | None = None,
        version: int | None = None,
        priority: int = 0,
        deadline: Duration | None = None,
        connection: Any = None,
    ) -> Session:
        """
        Start a session, or find the one that `key` already started for this tenant.

        `connection` (psycopg, or SQLAlchemy connection or session on psycopg) makes the start part of
        the caller's transaction: it exists when that commits, and runs within a relay round.

        Raises:
            InvalidInput: refused at the door; the subclass and message say what is wrong.
            StoreUnavailable: Postgres is away; with a key, the same call is safe to repeat.
        """
        new = self._door.check(
            agent, tenant=tenant, input=input, key=key, version=version, priority=priority, deadline=deadline
        )
        joined = driver_connection(connection) if connection is not None else None
        [(session_id, created)] = self.sessions.start([new], create_with=self._door.create_with, on=joined)
        if joined is None and created:
            self._admit(tenant)
        return Session(self, tenant, session_id, created=created)

    def start_many(
        self,
        agent: str,
        *,
        tenant: str,
        items: Iterable[tuple[Input, str | None]],
        version: int | None = None,
        priority: int = 0,
        deadline: Duration | None = None,
    ) -> list[Session]:
        """
        Start many sessions from pairs of input and key, a thousand in a transaction.

        All are checked before the first is started. After an error, the same call with the same keys
        starts only what is missing.
        """
        news = [
            self._door.check(
                agent, tenant=tenant, input=input, key=key, version=version, priority=priority, deadline=deadline
            )
            for input, key in items
        ]
        started: list[Session] = []
        for batch in _batches(news, _BULK):
            found = self.sessions.start(batch, create_with=self._door.create_with)
            started += [Session(self, tenant, session_id, created=created) for session_id, created in found]
            self._admit(tenant)
        return started

    def get(self, tenant: str, session_id: str) -> Session:
        """
        A handle on a session that exists.

        Raises:
            UnknownSession: the tenant has none of that id.
        """
        known = _uuid(tenant, session_id)
        if self.sessions.state(tenant, known) is None:
            raise UnknownSession(tenant, session_id)
        return Session(self, tenant, known, created=False)

    def list(
        self,
        *,
        tenant: str | None = None,
        agent: str | None = None,
        state: str | None = None,
        key: str | None = None,
        limit: int = 50,
    ) -> list[SessionListing]:
        """The newest sessions that match."""
        return self.sessions.listing(tenant=tenant, agent=agent, state=state, key=key, limit=limit)

    def wait_all(self, sessions: Sequence[Session], timeout: float | None = None) -> dict[str, str]:
        """
        The state of each session by id, once all have ended; asked in one question per tenant.

        Raises:
            WaitTimeout: some had not ended.
        """
        states: dict[str, str] = {}
        waiting = {session.id: session for session in sessions}
        for _ in _polls(timeout, last_s=0.25):
            for tenant in {session.tenant for session in waiting.values()}:
                ids = [uuid.UUID(s.id) for s in waiting.values() if s.tenant == tenant]
                try:
                    found = self.sessions.states(tenant, ids)
                except StoreUnavailable:
                    continue
                states |= {str(session_id): state for session_id, state in found.items() if state in ENDED}
            waiting = {name: session for name, session in waiting.items() if name not in states}
            if not waiting:
                return states
        raise WaitTimeout(f"{len(waiting)} of {len(sessions)} sessions had not ended after {timeout} s")

    def cancel(self, tenant: str, session_id: str, *, reason: str) -> str:
        """
        End a session and its children; its state afterwards. Running steps stop at their next check.

        Raises:
            UnknownSession: there is none.
        """
        state = self._cancel_tree(tenant, _uuid(tenant, session_id), reason)
        self.operators.record_action(
            operator=operator_name(), tenant=tenant, action="session cancel", target=session_id, reason=reason
        )
        return state

    def _cancel_tree(self, tenant: str, session_id: uuid.UUID, reason: str) -> str:
        children = self.sessions.children(tenant, session_id)
        failure = Failure("cancelled", "SessionCancelled", reason)
        state, wakes = self.sessions.cancel(tenant, session_id, failure)
        self._publisher.send(wakes)
        if state == "cancelled":
            for child in children:
                self._cancel_tree(tenant, child, reason)
        return state

    def _admit(self, tenant: str) -> None:
        """Hasten what was committed; the relay would do the same a moment later."""
        try:
            self._publisher.send(self.ledger.admit(tenant, _ADMIT_MAX))
        except StoreUnavailable:
            return


class AsyncSession:
    """A started session, for asyncio."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.tenant, self.id, self.created = session.tenant, session.id, session.created

    def __repr__(self) -> str:
        return f"<session {self.tenant}/{self.id}>"

    async def view(self) -> SessionView:
        """As `Session.view`."""
        return await asyncio.to_thread(self._session.view)

    async def wait(self, timeout: float | None = None) -> SessionView:
        """As `Session.wait`; waiting holds no thread."""
        async for _ in _async_polls(timeout):
            try:
                view = await asyncio.to_thread(self._session.view)
            except StoreUnavailable:
                continue
            if view.ended:
                return view
        raise WaitTimeout(f"session {self.id} had not ended after {timeout} s")

    async def events(self, timeout: float | None = None) -> AsyncIterator[Event]:
        """As `Session.events`."""
        feed = _Feed(self._session._client, self.tenant, uuid.UUID(self.id))
        async for _ in _async_polls(timeout):
            try:
                events = await asyncio.to_thread(lambda: list(feed.read()))
            except StoreUnavailable:
                continue
            for event in events:
                yield event
            if feed.ended:
                return
        raise WaitTimeout(f"session {self.id} had not ended after {timeout} s")

    async def cancel(self, reason: str = "cancelled by the caller") -> str:
        """As `Session.cancel`."""
        return await asyncio.to_thread(self._session.cancel, reason)


class AsyncClient:
    """The client for asyncio: the same calls, awaited. Statements run in threads, so no loop is held up."""

    def __init__(self, settings: Settings, registry: Registry | None = None) -> None:
        self._client = Client(settings, registry)
        self.tenants = self._client.tenants

    @classmethod
    def from_env(cls, **explicit: Any) -> Self:
        """As `Client.from_env`."""
        return cls(load(**explicit))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._client.close)

    async def start(
        self, agent: str, *, tenant: str, input: Input, connection: Any = None, **more: Any
    ) -> AsyncSession:
        """
        As `Client.start`. `connection` may be a psycopg `AsyncConnection`, or SQLAlchemy's
        `AsyncConnection` or `AsyncSession`.
        """
        if connection is None:
            return AsyncSession(
                await asyncio.to_thread(lambda: self._client.start(agent, tenant=tenant, input=input, **more))
            )
        joined = await async_driver_connection(connection)
        return await self._start_on(joined, agent, tenant=tenant, input=input, **more)

    async def _start_on(self, connection: Any, agent: str, *, tenant: str, input: Input, **more: Any) -> AsyncSession:
        from agentq.store import sessions

        new = self._client._door.check(agent, tenant=tenant, input=input, **more)
        row = await sessions.start_on_async(connection, new, self._client._door.create_with)
        return AsyncSession(Session(self._client, tenant, row[0], created=row[1]))

    async def start_many(
        self, agent: str, *, tenant: str, items: Iterable[tuple[Input, str | None]], **more: Any
    ) -> list[AsyncSession]:
        """As `Client.start_many`."""
        pairs = list(items)
        started = await asyncio.to_thread(lambda: self._client.start_many(agent, tenant=tenant, items=pairs, **more))
        return [AsyncSession(session) for session in started]

    async def get(self, tenant: str, session_id: str) -> AsyncSession:
        """As `Client.get`."""
        return AsyncSession(await asyncio.to_thread(self._client.get, tenant, session_id))

    async def cancel(self, tenant: str, session_id: str, *, reason: str) -> str:
        """As `Client.cancel`."""
        return await asyncio.to_thread(lambda: self._client.cancel(tenant, session_id, reason=reason))


class _Feed:
    """Reads a session's events in order, each once."""

    def __init__(self, client: Client, tenant: str, session_id: uuid.UUID) -> None:
        self._client = client
        self._ref = StepRef(tenant, session_id, session_id)
        self._seen: set[uuid.UUID] = set()
        self._seen_events: set[int] = set()
        self._after = 0
        self._news = False
        self.ended = False

    def take_news(self) -> bool:
        """Whether the last read brought something; asked once."""
        news, self._news = self._news, False
        return news

    def read(self) -> Iterator[Event]:
        tenant, session_id = self._ref.tenant, self._ref.session_id
        sessions = self._client.sessions
        # The state first: whatever it says, everything before it is in what is read next.
        view = _view(sessions.get(tenant, session_id))
        found = [*self._steps(), *self._progress()]
        self._news = bool(found)
        yield from sorted(found, key=lambda event: event.at)
        if view.ended and view.ended_at is not None:
            self.ended = True
            failure = dict(view.failure) if view.failure else None
            yield Event("ended", view.ended_at, None, {"state": view.state, "failure": failure})

    def _steps(self) -> Iterator[Event]:
        for row in self._client.sessions.settled_steps(self._ref.tenant, self._ref.session_id):
            step_id, seq, name, state, attempt, settled_at, failure = row
            if step_id in self._seen:
                continue
            self._seen.add(step_id)
            data = {"state": state, "seq": seq, "attempt": attempt}
            yield Event("step", settled_at, name, data | ({"failure": failure} if failure else {}))

    def _progress(self) -> Iterator[Event]:
        # With an overlap: what was numbered first may be committed last.
        after = max(self._after - _EVENTS_OVERLAP, 0)
        for event_id, _, kind, body, at in self._client.sessions.events(self._ref.tenant, self._ref.session_id, after):
            if event_id in self._seen_events:
                continue
            self._seen_events.add(event_id)
            self._after = max(self._after, event_id)
            yield Event(kind, at, None, decode(body))


def driver_connection(connection: Any) -> Connection:
    """
    The psycopg connection beneath what the caller has.

    Raises:
        InvalidInput: there is none.
    """
    import psycopg

    found = connection
    if hasattr(found, "get_bind") and hasattr(found, "connection"):  # SQLAlchemy Session
        found = found.connection()
    if hasattr(found, "connection") and not isinstance(found, psycopg.Connection):  # SQLAlchemy Connection
        if hasattr(found, "in_transaction") and not found.in_transaction():
            found.begin()  # or its commit would do nothing: it does not see what runs on the driver's connection
        found = getattr(found.connection, "driver_connection", None)
    if not isinstance(found, psycopg.Connection):
        raise InvalidInput(
            f"connection= takes a psycopg connection, or a SQLAlchemy connection or session on the psycopg driver, "
            f"not {type(connection).__module__}.{type(connection).__qualname__}"
        )
    return found


async def async_driver_connection(connection: Any) -> Any:
    """
    The psycopg `AsyncConnection` beneath what the caller has.

    Raises:
        InvalidInput: there is none.
    """
    import psycopg

    found = connection
    if hasattr(found, "get_bind") and hasattr(found, "connection"):  # SQLAlchemy AsyncSession
        found = await found.connection()
    if hasattr(found, "get_raw_connection"):  # SQLAlchemy AsyncConnection
        if not found.in_transaction():
            await found.begin()  # or its commit would do nothing: it does not see what runs beneath it
        found = getattr(await found.get_raw_connection(), "driver_connection", None)
    if not isinstance(found, psycopg.AsyncConnection):
        raise InvalidInput(
            "connection= takes a psycopg AsyncConnection, or SQLAlchemy's AsyncConnection or AsyncSession on the "
            f"psycopg driver, not {type(connection).__module__}.{type(connection).__qualname__}"
        )
    return found


def operator_name() -> str:
    """Who acts, for the record: `AGENTQ_OPERATOR`, else the login name."""
    try:
        return os.environ.get("AGENTQ_OPERATOR") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _view(row: SessionRow) -> SessionView:
    return SessionView(
        tenant=row.tenant,
        id=str(row.session_id),
        agent=row.agent,
        version=row.agent_version,
        key=row.key,
        state=row.state,
        failure=row.failure,
        created_at=row.created_at,
        ended_at=row.ended_at,
        steps=row.steps_recorded,
        cost_usd=row.cost_micros / 1_000_000,
        input_tokens=row.tokens_in,
        output_tokens=row.tokens_out,
        _result=row.result,
    )


def _uuid(tenant: str, session_id: str) -> uuid.UUID:
    valid_name("tenant", tenant)
    try:
        return uuid.UUID(session_id)
    except (ValueError, AttributeError, TypeError):
        raise UnknownSession(tenant, str(session_id)) from None


def _check_limits(concurrency: int | None, weight: float | None) -> None:
    if concurrency is not None and not 1 <= concurrency <= 100_000:
        raise InvalidInput("concurrency is a whole number from 1 to 100,000")
    if weight is not None and not 0 < weight <= 1000:
        raise InvalidInput("weight is a number above 0, at most 1000")


def _polls(timeout: float | None, *, last_s: float = _POLL_LAST_S, reset: Any = None) -> Iterator[None]:
    """Yield at growing intervals until the time is up; once more after it."""
    deadline = None if timeout is None else time.monotonic() + timeout
    pause_s = _POLL_FIRST_S
    while True:
        yield
        left_s = float("inf") if deadline is None else deadline - time.monotonic()
        if left_s <= 0:
            return
        if reset is not None and reset():
            pause_s = _POLL_FIRST_S
        time.sleep(min(pause_s * (0.75 + random.random() / 2), left_s))
        pause_s = min(pause_s * 1.5, last_s)


async def _async_polls(timeout: float | None) -> AsyncIterator[None]:
    deadline = None if timeout is None else time.monotonic() + timeout
    pause_s = _POLL_FIRST_S
    while True:
        yield
        left_s = float("inf") if deadline is None else deadline - time.monotonic()
        if left_s <= 0:
            return
        await asyncio.sleep(min(pause_s * (0.75 + random.random() / 2), left_s))
        pause_s = min(pause_s * 1.5, _POLL_LAST_S)


def _batches(items: Sequence[NewSession], size: int) -> Iterator[list[NewSession]]:
    for first in range(0, len(items), size):
        yield list(items[first : first + size])
