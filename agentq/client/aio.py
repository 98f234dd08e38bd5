"""The client for asyncio: the same calls, awaited; statements run in threads, so no loop is held up."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Self

from agentq.agents.registry import Registry
from agentq.client.approvals import AsyncApprovals
from agentq.client.dead_letters import AsyncDeadLetters
from agentq.client.inspection import Inspection
from agentq.client.joining import async_driver_connection
from agentq.client.memory import AsyncClientMemory
from agentq.client.sync import Client, Input, Session
from agentq.client.views import Event, Feed, SessionView, async_polls
from agentq.errors import StoreUnavailable, WaitTimeout
from agentq.settings import Settings, load
from agentq.store.sessions import start_on_async


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
        async for _ in async_polls(timeout):
            try:
                view = await asyncio.to_thread(self._session.view)
            except StoreUnavailable:
                continue
            if view.ended:
                return view
        raise WaitTimeout(f"session {self.id} had not ended after {timeout} s")

    async def events(self, timeout: float | None = None) -> AsyncIterator[Event]:
        """As `Session.events`."""
        feed = Feed(self._session._client.sessions, self.tenant, uuid.UUID(self.id))
        async for _ in async_polls(timeout):
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

    async def pause(self, reason: str) -> str:
        """As `Session.pause`."""
        return await asyncio.to_thread(self._session.pause, reason)

    async def resume(self, reason: str) -> str:
        """As `Session.resume`."""
        return await asyncio.to_thread(self._session.resume, reason)

    async def kill(self, reason: str) -> str:
        """As `Session.kill`."""
        return await asyncio.to_thread(self._session.kill, reason)

    async def replay(self, reason: str, *, from_step: str | None = None, **more: Any) -> None:
        """As `Session.replay`."""
        await asyncio.to_thread(lambda: self._session.replay(reason, from_step=from_step, **more))

    async def fork(self, reason: str, *, from_step: str, **more: Any) -> AsyncSession:
        """As `Session.fork`."""
        return AsyncSession(await asyncio.to_thread(lambda: self._session.fork(reason, from_step=from_step, **more)))

    async def inspect(self) -> Inspection:
        """As `Session.inspect`."""
        return await asyncio.to_thread(self._session.inspect)


class AsyncClient:
    """The client for asyncio: the same calls, awaited. Statements run in threads, so no loop is held up."""

    def __init__(self, settings: Settings, registry: Registry | None = None) -> None:
        self._client = Client(settings, registry)
        self.tenants = self._client.tenants
        self.effects = self._client.effects
        self.anomalies = self._client.anomalies
        self.dependencies = self._client.dependencies
        self.approvals = AsyncApprovals(self._client.approvals)
        self.memory = AsyncClientMemory(self._client.memory)
        self.dead_letters = AsyncDeadLetters(self._client.dead_letters, asyncio.to_thread)

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
        new = self._client._door.check(agent, tenant=tenant, input=input, **more)
        row = await start_on_async(connection, new, self._client._door.create_with, self._client.sessions.sealed)
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
