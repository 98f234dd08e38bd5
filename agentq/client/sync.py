"""The client: starts sessions, waits for them, cancels them."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from pydantic import BaseModel

from agentq.agents.dependencies import rules_of
from agentq.agents.registry import Registry, load_agents
from agentq.agents.returns import Duration
from agentq.broker.connection import connect
from agentq.broker.publisher import Publisher
from agentq.client.anomalies import ClientAnomalies
from agentq.client.approvals import Approvals
from agentq.client.budgets import ClientBudgets
from agentq.client.dead_letters import DeadLetters
from agentq.client.effects import ClientDependencies, ClientEffects
from agentq.client.inspection import Inspection
from agentq.client.joining import driver_connection
from agentq.client.keys import ClientKeys, ClientTokens
from agentq.client.memory import ClientMemory
from agentq.client.rates import ClientRates
from agentq.client.recovery import Recoveries
from agentq.client.tenants import Tenants, operator_name
from agentq.client.views import ENDED, Event, Feed, SessionView, polls, view_of
from agentq.door import Door
from agentq.errors import StoreUnavailable, UnknownSession, WaitTimeout
from agentq.settings import Settings, load
from agentq.step import valid_name
from agentq.store.approvals import Approvals as StoredApprovals
from agentq.store.budgets import Budgets
from agentq.store.keyring import Keyring
from agentq.store.ledger import Ledger
from agentq.store.operators import Operators
from agentq.store.placement import Placement
from agentq.store.pool import Store
from agentq.store.providers import provider_of
from agentq.store.rates import StoredRates
from agentq.store.recovery import Recovery
from agentq.store.sessions import NewSession, OnConflict, SessionListing, Sessions, StepRow
from agentq.store.tokens import Tokens
from agentq.verdicts import Failure

Input = BaseModel | Mapping[str, Any]

_ADMIT_MAX = 500
_BULK = 1000


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
        return view_of(self._client.sessions.get(self.tenant, self._uuid))

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
        for _ in polls(timeout):
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
        feed = Feed(self._client.sessions, self.tenant, self._uuid)
        for _ in polls(timeout, reset=feed.take_news):
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

    def pause(self, reason: str) -> str:
        """Hold it and its children: what runs now finishes, nothing follows. Its state afterwards."""
        return self._client.recovery.pause(self.tenant, self._uuid, reason=reason)

    def resume(self, reason: str) -> str:
        """Let it go on after a pause; its state afterwards."""
        return self._client.recovery.resume(self.tenant, self._uuid, reason=reason)

    def kill(self, reason: str) -> str:
        """End it now and throw away whatever still runs; its state afterwards."""
        return self._client.recovery.kill(self.tenant, self._uuid, reason=reason)[0]

    def replay(self, reason: str, *, from_step: str | None = None, **more: Any) -> None:
        """Let it go on from a step, in a new generation; see `Recoveries.replay`."""
        self._client.recovery.replay(self.tenant, self._uuid, reason=reason, from_step=from_step, **more)

    def fork(self, reason: str, *, from_step: str, **more: Any) -> Session:
        """Begin another session at one of its steps; see `Recoveries.fork`."""
        fork = self._client.recovery.fork(self.tenant, self._uuid, reason=reason, from_step=from_step, **more)
        return Session(self._client, self.tenant, fork, created=True)

    def inspect(self) -> Inspection:
        """Where it stands, what it waits for, and why."""
        return self._client.recovery.inspect(self.tenant, self._uuid)


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
        self._store = Store(
            settings.database_url,
            size=max(4, settings.database_pool // 2),
            name="agentq client",
            keys=provider_of(settings),
        )
        self._door = Door(settings, self.registry)
        placement = Placement(self._store, own_max=settings.own_queues_max, shards=settings.queue_shards)
        self._publisher = Publisher(lambda: connect(settings), placement.queues_of)
        self.ledger = Ledger(self._store)
        self.sessions = Sessions(self._store)
        self.operators = Operators(self._store)
        self.tenants = Tenants(self.operators, settings, placement, self._publisher)
        self.recovery = Recoveries(Recovery(self._store), self.sessions, self.registry, self._admit)
        self.approvals = Approvals(StoredApprovals(self._store), settings, self._admit)
        self.effects = ClientEffects(self._store)
        self.anomalies = ClientAnomalies(self._store)
        self.dependencies = ClientDependencies(self._store, rules_of(settings).as_json())
        self.dead_letters = DeadLetters(self._store, self.operators, self.registry)
        self.keys = ClientKeys(Keyring(self._store), self.operators)
        self.tokens = ClientTokens(Tokens(self._store), self.operators)
        self.rates = ClientRates(StoredRates(self._store), self.operators)
        self.memory = ClientMemory(self._store, self.operators, settings)
        self.budgets = ClientBudgets(Budgets(self._store), self.operators)

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
        concurrency_key: str | None = None,
        on_conflict: OnConflict = "queue",
        traceparent: str | None = None,
        connection: Any = None,
    ) -> Session:
        """
        Start a session, or find the one that `key` already started for this tenant.

        `connection` (psycopg, or SQLAlchemy connection or session on psycopg) makes the start part of
        the caller's transaction: it exists when that commits, and runs within a relay round.

        Of the sessions of a tenant with one `concurrency_key` only one runs at a time. While one lives, a
        start does what `on_conflict` says: `queue`: waits for its turn, first come first served; `reject`:
        raises SessionBusy; `replace`: ends all before it, running or waiting; `merge`: starts nothing and
        returns the newest of them, whose work this start's input is not part of.

        The session's spans hang under the caller's: OpenTelemetry's current span, or a W3C `traceparent`.

        Raises:
            InvalidInput: refused at the door; the subclass and message say what is wrong.
            StoreUnavailable: Postgres is away; with a key, the same call is safe to repeat.
        """
        new = self._door.check(
            agent, tenant=tenant, input=input, key=key, version=version, priority=priority, deadline=deadline,
            concurrency_key=concurrency_key, on_conflict=on_conflict, traceparent=traceparent,
        )  # fmt: skip
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
        text: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 50,
    ) -> list[SessionListing]:
        """
        The newest sessions that match, and began `since` a moment and before another (`until`).

        `text` is looked for in the key, the failure and the beginning of the input, where they are not encrypted.
        """
        return self.sessions.listing(
            tenant=tenant, agent=agent, state=state, key=key, text=text, since=since, until=until, limit=limit
        )

    def wait_all(self, sessions: Sequence[Session], timeout: float | None = None) -> dict[str, str]:
        """
        The state of each session by id, once all have ended; asked in one question per tenant.

        Raises:
            WaitTimeout: some had not ended.
        """
        states: dict[str, str] = {}
        waiting = {session.id: session for session in sessions}
        for _ in polls(timeout, last_s=0.25):
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


def _uuid(tenant: str, session_id: str) -> uuid.UUID:
    valid_name("tenant", tenant)
    try:
        return uuid.UUID(session_id)
    except (ValueError, AttributeError, TypeError):
        raise UnknownSession(tenant, str(session_id)) from None


def _batches(items: Sequence[NewSession], size: int) -> Iterator[list[NewSession]]:
    for first in range(0, len(items), size):
        yield list(items[first : first + size])
