"""The client: sessions started, watched and stopped, and bad requests refused with words."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session as OrmSession

from agentq import Agent, AsyncClient, Branch, Client, Context, Done, Next, SessionFailed, Spawn, WaitTimeout
from agentq.agents.registry import Registry
from agentq.errors import (
    InvalidInput,
    InvalidName,
    InvalidState,
    KeyConflict,
    PayloadTooLarge,
    UnknownAgent,
    UnknownSession,
    UnknownTenant,
)
from agentq.settings import Settings
from agentq.store.pool import Store
from agentq.testing import LocalFleet
from tests.support.hands import at_once

Local = Callable[..., LocalFleet]


class Ticket(BaseModel):
    """An input."""

    text: str = "hello"
    n: int = 0


@pytest.fixture(autouse=True)
def robot(registry: Registry) -> Agent[Ticket]:
    """An agent of two steps that reports its progress."""
    agent = Agent("robot", state=Ticket, registry=registry)

    @agent.step(start=True)
    def first(state: Ticket, ctx: Context) -> Next:
        ctx.progress("looking", n=state.n)
        return Next(second)

    @agent.step
    def second(state: Ticket) -> Done:
        return Done(state.text.upper())

    return agent


def sessions(store: Store, tenant: str) -> int:
    with store.transaction(tenant) as connection:
        row = connection.execute("select count(*) from agentq.session").fetchone()
    assert row is not None
    return int(row[0])


# ── starting ─────────────────────────────────────────────────────────────────


def test_a_session_is_started_and_waited_for(client: Client, tenant: str, local: Local) -> None:
    """
    The handle has the id, says that the session is new, and waits for its end.
    """
    session = client.start("robot", tenant=tenant, input={"text": "abc"}, key="k")
    assert session.created
    with pytest.raises(WaitTimeout):
        session.view().result  # noqa: B018
    fleet = local()
    thread = threading.Thread(target=lambda: fleet.drain(session))
    thread.start()
    view = session.wait(timeout=20)
    thread.join(10)
    assert (view.state, view.result, view.steps, view.key, view.ended) == ("done", "ABC", 2, "k", True)
    assert client.get(tenant, session.id).view() == view


def test_the_same_key_finds_the_same_session(client: Client, tenant: str, store: Store) -> None:
    """
    I1 through the client, with fields in another order, and as a model instead of a mapping.
    """
    asks = [{"text": "a", "n": 1}, {"n": 1, "text": "a"}, Ticket(text="a", n=1)]
    found = at_once(*[lambda ask=ask: client.start("robot", tenant=tenant, input=ask, key="k") for ask in asks * 10])
    assert len({session.id for session in found}) == 1
    assert [session.created for session in found].count(True) == 1
    assert sessions(store, tenant) == 1
    with pytest.raises(KeyConflict):
        client.start("robot", tenant=tenant, input={"text": "b"}, key="k")


def test_many_are_started_in_bulk(client: Client, tenant: str, store: Store) -> None:
    """
    More than one batch, in order; the same call again starts nothing.
    """
    items: list[Any] = [({"n": n}, f"k{n}") for n in range(2100)]
    first = client.start_many("robot", tenant=tenant, items=items)
    again = client.start_many("robot", tenant=tenant, items=items)
    assert [session.id for session in first] == [session.id for session in again]
    assert all(session.created for session in first)
    assert not any(session.created for session in again)
    assert sessions(store, tenant) == 2100
    assert client.start_many("robot", tenant=tenant, items=[]) == []


def test_one_bad_item_stops_the_bulk_before_it_begins(client: Client, tenant: str, store: Store) -> None:
    """
    All are checked before the first is started.
    """
    items: list[Any] = [*[({"n": n}, f"k{n}") for n in range(1500)], ({"n": "x"}, "bad")]
    with pytest.raises(InvalidState):
        client.start_many("robot", tenant=tenant, items=items)
    assert sessions(store, tenant) == 0


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"agent": "nobody"}, UnknownAgent, "known: robot@1"),
    ({"version": 9}, UnknownAgent, "robot version 9"),
    ({"agent": "No Agent"}, InvalidName, "agent name"),
    ({"tenant": "Acme Inc"}, InvalidName, "tenant name"),
    ({"tenant": "acme'; drop table"}, InvalidName, "tenant name"),
    ({"tenant": "*"}, InvalidName, "tenant name"),
    ({"tenant": ""}, InvalidName, "tenant name"),
    ({"tenant": None}, InvalidName, "tenant name"),
    ({"tenant": "nobody-here"}, UnknownTenant, "agentq tenant add nobody-here"),
    ({"input": {"n": "many"}}, InvalidState, "n: Input should be a valid integer"),
    ({"input": {"text": 5, "n": []}}, InvalidState, "text: .*; n: "),
    ({"input": {"text": "half a pair \ud800"}}, InvalidInput, "."),
    ({"input": "text"}, InvalidInput, "a mapping or a state model, not str"),
    ({"input": None}, InvalidInput, "a mapping or a state model, not NoneType"),
    ({"input": [1]}, InvalidInput, "a mapping or a state model, not list"),
    ({"input": {"text": "x" * 2_000_000}}, PayloadTooLarge, "the limit is 1,048,576"),
    ({"key": ""}, InvalidInput, "1 to 200 characters"),
    ({"key": "x" * 201}, InvalidInput, "1 to 200 characters"),
    ({"key": "zero \0"}, InvalidInput, "1 to 200 characters"),
    ({"key": "half \ud800"}, InvalidInput, "session key"),
    ({"key": 7}, InvalidInput, "session key"),
    ({"priority": -1}, InvalidInput, "priority"),
    ({"priority": 10}, InvalidInput, "priority"),
    ({"priority": "high"}, InvalidInput, "priority"),
    ({"priority": True}, InvalidInput, "priority"),
    ({"deadline": "tomorrow"}, InvalidInput, "is not a duration"),
    ({"deadline": -5}, InvalidInput, "out of range"),
    ({"version": "1"}, InvalidInput, "."),
    ({"version": [1]}, InvalidInput, "."),
]


@pytest.mark.parametrize(("change", "error", "words"), BAD, ids=[ascii(change)[:60] for change, _, _ in BAD])
def test_a_bad_request_is_refused_with_words(
    client: Client, tenant: str, store: Store, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    """
    Refused at the door: the error says what is wrong, shows no value of the input, and nothing is stored.
    """
    asked: dict[str, Any] = {"agent": "robot", "tenant": tenant, "input": {"text": "secret words"}} | change
    with pytest.raises(error, match=words) as raised:
        client.start(asked.pop("agent"), **asked)
    assert isinstance(raised.value, InvalidInput)
    assert "secret words" not in str(raised.value)
    assert sessions(store, tenant) == 0


def test_a_state_that_cannot_be_read_back_is_refused(registry: Registry, client: Client, tenant: str) -> None:
    """
    A model that does not accept what it wrote itself would fail at its first step; the producer learns it now.
    """

    class Aliased(BaseModel):
        n: int = Field(alias="number")

    agent = Agent("aliased", state=Aliased, registry=registry)
    agent.step(ends)
    with pytest.raises(InvalidState, match="number: Field required"):
        client.start("aliased", tenant=tenant, input={"number": 3})


def ends(state: Any) -> Done:
    return Done()


def test_a_tenant_is_created_when_that_is_wanted(settings: Settings, registry: Registry, tenant: str) -> None:
    """
    `unknown_tenant=create` is for those who keep their tenants elsewhere.
    """
    with Client(settings.model_copy(update={"unknown_tenant": "create"}), registry) as client:
        assert client.start("robot", tenant=f"{tenant}-made", input={}).created
        assert f"{tenant}-made" in {row.name for row in client.tenants.ls()}


@pytest.mark.parametrize("joins", [False, True])
def test_a_tenant_is_created_from_a_policy(
    settings: Settings, registry: Registry, tenant: str, client: Client, joins: bool
) -> None:
    """
    The record, budgets and rates of the tenant that the settings name, once, and the audit says where it came from.
    """
    session = client.start("robot", tenant=tenant, input={})
    change: dict[str, Any] = {"weight": 2.5, "concurrency": 3, "agents": ["robot"], "retention_days": 30}
    client.tenants.set(tenant, **change, state="draining", reason="a template")
    client.budgets.set(tenant, cost_usd="5", period="month", reason="a template")
    client.budgets.set(tenant, scope="session", period="session", tokens=1000, on_refusal="park", reason="a template")
    client.budgets.set(
        tenant, scope="session", subject=session.id, period="session", tokens=9, on_refusal="end", reason="one of its"
    )
    client.rates.set("openai", tenant=tenant, requests_per_min=7, reason="a template")
    made = f"{tenant}-like{int(joins)}"
    with (
        Client(
            settings.model_copy(update={"unknown_tenant": "create", "new_tenant_like": tenant}), registry
        ) as creating,
        psycopg.connect(settings.database_url) as connection,
    ):
        for _ in range(2):
            creating.start("robot", tenant=made, input={}, connection=connection if joins else None)
    [row] = [row for row in client.tenants.ls() if row.name == made]
    assert {name: getattr(row, name) for name in change} | {"state": row.state} == change | {"state": "active"}
    budgets = [(b.scope, b.subject, b.period, b.cost_micros, b.tokens, b.on_refusal) for b in client.budgets.ls(made)]
    assert budgets == [("session", "", "session", None, 1000, "park"), ("tenant", "", "month", 5_000_000, None, "wait")]
    assert [(r.provider, r.requests_per_min) for r in client.rates.ls() if r.tenant == made] == [("openai", 7)]
    [action] = client.operators.actions(tenant=made)
    assert (action.operator, action.action, action.detail) == ("agentq", "tenant add", {"like": tenant})


def test_a_policy_that_is_not_there_creates_nothing(settings: Settings, registry: Registry, tenant: str) -> None:
    """
    Without the budgets that were meant for it, a tenant is not let in.
    """
    change = {"unknown_tenant": "create", "new_tenant_like": f"{tenant}-gone"}
    with Client(settings.model_copy(update=change), registry) as creating, pytest.raises(UnknownTenant):
        creating.start("robot", tenant=f"{tenant}-made", input={})


# ── the caller's transaction ─────────────────────────────────────────────────


def joining(settings: Settings, kind: str) -> Iterator[tuple[Any, Callable[[], None], Callable[[], None]]]:
    """A connection of the caller's, with its commit and its rollback."""
    url = settings.database_url.replace("postgresql://", "postgresql+psycopg://", 1)
    if kind == "psycopg":
        with psycopg.connect(settings.database_url) as connection:
            yield connection, connection.commit, connection.rollback
        return
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    if kind == "sqlalchemy connection":
        with engine.connect() as core:
            yield core, core.commit, core.rollback
    elif kind == "sqlalchemy orm":
        with OrmSession(engine) as orm:
            yield orm, orm.commit, orm.rollback
    else:
        from psycopg.rows import dict_row

        with psycopg.connect(settings.database_url, row_factory=dict_row) as connection:  # type: ignore[arg-type]
            yield connection, connection.commit, connection.rollback


KINDS = ["psycopg", "psycopg with dict rows", "sqlalchemy connection", "sqlalchemy orm"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_joins_the_callers_transaction(
    client: Client, settings: Settings, tenant: str, store: Store, local: Local, kind: str
) -> None:
    """
    The session exists when the caller commits, and runs then; when the caller rolls back there is nothing.
    """
    for connection, commit, rollback in joining(settings, kind):
        client.start("robot", tenant=tenant, input={}, key="k", connection=connection)
        assert sessions(store, tenant) == 0
        rollback()
        assert sessions(store, tenant) == 0
        session = client.start("robot", tenant=tenant, input={}, key="k", connection=connection)
        assert session.created
        again = client.start("robot", tenant=tenant, input={}, key="k", connection=connection)
        assert (again.id, again.created) == (session.id, False)
        commit()
    assert sessions(store, tenant) == 1
    assert local().drain(session).result == "HELLO"


def test_a_refused_start_leaves_the_callers_transaction_usable(
    client: Client, settings: Settings, tenant: str, store: Store
) -> None:
    """
    A conflict is an answer, not an aborted transaction: the caller may go on and commit.
    """
    client.start("robot", tenant=tenant, input={"n": 1}, key="k")
    with psycopg.connect(settings.database_url) as connection:
        with pytest.raises(KeyConflict):
            client.start("robot", tenant=tenant, input={"n": 2}, key="k", connection=connection)
        client.start("robot", tenant=tenant, input={"n": 2}, key="other", connection=connection)
    assert sessions(store, tenant) == 2


@pytest.mark.parametrize("connection", [object(), "postgresql://", 7])
def test_what_is_no_connection_is_refused(client: Client, tenant: str, connection: Any) -> None:
    """
    The error names what is taken.
    """
    with pytest.raises(InvalidInput, match="psycopg"):
        client.start("robot", tenant=tenant, input={}, connection=connection)


def test_an_async_start_joins_a_psycopg_connection(
    settings: Settings, registry: Registry, tenant: str, store: Store
) -> None:
    """
    As with the plain client: nothing before the commit, nothing after a rollback.
    """

    async def play() -> str:
        async with (
            AsyncClient(settings, registry) as client,
            await psycopg.AsyncConnection.connect(settings.database_url) as connection,
        ):
            await client.start("robot", tenant=tenant, input={}, key="k", connection=connection)
            await connection.rollback()
            assert sessions(store, tenant) == 0
            session = await client.start("robot", tenant=tenant, input={}, key="k", connection=connection)
            assert sessions(store, tenant) == 0
            await connection.commit()
            return session.id

    session_id = asyncio.run(play())
    assert sessions(store, tenant) == 1
    assert session_id


def test_an_async_start_joins_sqlalchemys_connections(
    settings: Settings, registry: Registry, tenant: str, store: Store
) -> None:
    """
    SQLAlchemy's async connection, and its async session, on psycopg.
    """
    from sqlalchemy.ext.asyncio import AsyncSession as AsyncOrmSession
    from sqlalchemy.ext.asyncio import create_async_engine

    url = settings.database_url.replace("postgresql://", "postgresql+psycopg://", 1)

    async def play() -> None:
        engine = create_async_engine(url, poolclass=sa.NullPool)
        async with AsyncClient(settings, registry) as client:
            async with engine.connect() as connection:
                await client.start("robot", tenant=tenant, input={}, key="a", connection=connection)
                await connection.rollback()
                await client.start("robot", tenant=tenant, input={}, key="b", connection=connection)
                await connection.commit()
            async with AsyncOrmSession(engine) as orm:
                await client.start("robot", tenant=tenant, input={}, key="c", connection=orm)
                await orm.commit()
        await engine.dispose()

    asyncio.run(play())
    with store.transaction(tenant) as connection:
        keys = {row[0] for row in connection.execute("select key from agentq.session").fetchall()}
    assert keys == {"b", "c"}


# ── watching ─────────────────────────────────────────────────────────────────


def test_events_come_in_order_and_once(client: Client, tenant: str, local: Local) -> None:
    """
    Steps and progress as they happened, and the end last; read again, they are the same.
    """
    session = client.start("robot", tenant=tenant, input={"n": 4})
    fleet = local()
    thread = threading.Thread(target=lambda: fleet.drain(session))
    thread.start()
    events = list(session.events(timeout=20))
    thread.join(10)
    assert [(event.kind, event.step) for event in events] == [
        ("progress", events[0].step), ("step", "first"), ("step", "second"), ("ended", None),
    ]  # fmt: skip
    assert events[0].data == {"text": "looking", "n": 4}
    assert [event.at for event in events] == sorted(event.at for event in events)
    assert list(session.events(timeout=5)) == events


def test_progress_that_commits_late_is_not_missed(client: Client, tenant: str, store: Store, local: Local) -> None:
    """
    Two branches report at once, and the one that was numbered first becomes visible last: both are seen.
    """
    session = client.start("robot", tenant=tenant, input={})
    seen: list[Any] = []
    insert = (
        "insert into agentq.session_event (tenant, session_id, kind, body)"
        " values (%s, %s, 'progress', convert_to(%s, 'utf8'))"
    )
    events = session.events(timeout=20)
    with store.transaction(tenant) as slow:
        slow.execute(insert, (tenant, session.id, '{"text": "slow"}'))
        with store.transaction(tenant) as quick:
            quick.execute(insert, (tenant, session.id, '{"text": "quick"}'))
        seen.append(next(events).data["text"])
    local().drain(session)
    seen += [event.data["text"] for event in events if event.kind == "progress"]
    assert sorted(seen) == ["looking", "quick", "slow"]


def test_waiting_has_an_end(client: Client, tenant: str) -> None:
    """
    `wait` and `events` give up when told to; the session goes on.
    """
    session = client.start("robot", tenant=tenant, input={})
    began = time.monotonic()
    with pytest.raises(WaitTimeout, match=r"0\.2 s"):
        session.wait(timeout=0.2)
    with pytest.raises(TimeoutError):
        list(session.events(timeout=0.2))
    with pytest.raises(WaitTimeout, match="1 of 1"):
        client.wait_all([session], timeout=0.2)
    assert time.monotonic() - began < 5
    assert session.view().state == "running"


def test_the_result_of_a_failed_session_is_an_error(client: Client, tenant: str) -> None:
    """
    Nobody mistakes a session that was cancelled for one that answered None.
    """
    session = client.start("robot", tenant=tenant, input={})
    session.cancel("no longer needed")
    with pytest.raises(SessionFailed, match="cancelled: no longer needed"):
        session.wait(timeout=5).result  # noqa: B018


def test_many_are_waited_for_together(client: Client, tenant: str, local: Local) -> None:
    """
    One question for all of them.
    """
    started = client.start_many("robot", tenant=tenant, items=[({"n": n}, None) for n in range(10)])
    fleet = local()
    for session in started:
        fleet.drain(session)
    assert set(client.wait_all(started, timeout=5).values()) == {"done"}


def test_the_async_client_does_what_the_plain_one_does(
    settings: Settings, registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    Start, watch, wait, cancel, get, without holding up the loop.
    """
    fleet = local()

    async def play() -> None:
        async with AsyncClient(settings, registry) as many:
            session = await many.start("robot", tenant=tenant, input={"text": "abc"})
            drained = asyncio.create_task(asyncio.to_thread(fleet.drain, client.get(tenant, session.id)))
            kinds = [event.kind async for event in session.events(timeout=20)]
            assert kinds == ["progress", "step", "step", "ended"]
            assert (await session.wait(timeout=20)).result == "ABC"
            await drained
            [other] = await many.start_many("robot", tenant=tenant, items=[({}, "k")])
            assert await other.cancel() == "cancelled"
            assert (await (await many.get(tenant, other.id)).view()).state == "cancelled"
            with pytest.raises(WaitTimeout):
                await (await many.start("robot", tenant=tenant, input={})).wait(timeout=0.1)

    asyncio.run(play())


# ── looking and stopping ─────────────────────────────────────────────────────


@pytest.mark.parametrize("session_id", ["", "123", "not-an-id", "00000000-0000-0000-0000-000000000000", None])
def test_a_session_that_is_not_there_is_unknown(client: Client, tenant: str, session_id: Any) -> None:
    """
    Whatever its id looks like.
    """
    with pytest.raises(UnknownSession):
        client.get(tenant, session_id)
    with pytest.raises(UnknownSession):
        client.cancel(tenant, session_id, reason="x")


def test_another_tenants_session_is_unknown(client: Client, tenant: str, other_tenant: str) -> None:
    """
    I8: an id alone opens nothing.
    """
    session = client.start("robot", tenant=tenant, input={})
    with pytest.raises(UnknownSession):
        client.get(other_tenant, session.id)
    with pytest.raises(UnknownSession):
        client.cancel(other_tenant, session.id, reason="theirs")


def test_cancelling_leaves_a_record(client: Client, tenant: str, admin: psycopg.Connection[Any]) -> None:
    """
    I11: who, what, why; a reason with odd characters does no harm.
    """
    session = client.start("robot", tenant=tenant, input={})
    assert client.cancel(tenant, session.id, reason="a customer's zero \0 and half \ud800") == "cancelled"
    row = admin.execute(
        "select action, target, reason, operator from agentq.operator_action where tenant = %s", (tenant,)
    ).fetchone()
    assert row is not None
    assert row[:2] == ("session cancel", session.id)
    assert row[2].startswith("a customer's zero")
    assert row[3]


def test_tenants_are_added_and_changed(client: Client, tenant: str) -> None:
    """
    Adding twice changes nothing; what is out of range is refused.
    """
    name = f"{tenant}-new"
    assert client.tenants.add(name, concurrency=3)
    assert not client.tenants.add(name, concurrency=9)
    client.tenants.set(name, concurrency=5, state="paused", reason="test")
    [row] = [row for row in client.tenants.ls() if row.name == name]
    assert (row.concurrency, row.state) == (5, "paused")
    for bad in ({"concurrency": 0}, {"weight": 0}, {"state": "asleep"}, {"concurrency": 10**9}):
        with pytest.raises(InvalidInput):
            client.tenants.set(name, reason="test", **bad)  # type: ignore[arg-type]
    with pytest.raises(UnknownTenant):
        client.tenants.set(f"{tenant}-nobody", concurrency=1, reason="test")
    with pytest.raises(InvalidName):
        client.tenants.add("No Name")


def test_sessions_are_listed_newest_first(client: Client, tenant: str) -> None:
    """
    By agent, state and key.
    """
    first = client.start("robot", tenant=tenant, input={}, key="a")
    second = client.start("robot", tenant=tenant, input={}, key="b")
    first.cancel()
    assert [str(row.session_id) for row in client.list(tenant=tenant)] == [second.id, first.id]
    assert [row.key for row in client.list(tenant=tenant, state="cancelled")] == ["a"]
    assert [row.key for row in client.list(tenant=tenant, key="b", agent="robot")] == ["b"]


def test_branches_that_report_at_once_are_all_seen(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    Every branch's progress reaches the watcher.
    """
    agent = Agent("fan", state=Ticket, registry=registry)

    @agent.step(start=True)
    def split(state: Ticket) -> Spawn:
        return Spawn([Branch(part, args={"number": n}) for n in range(6)], then=join)

    @agent.step
    def part(state: Ticket, ctx: Context, number: int) -> Done:
        ctx.progress(f"part {number}")
        return Done()

    @agent.step
    def join(state: Ticket) -> Done:
        return Done()

    session = client.start("fan", tenant=tenant, input={})
    local().drain(session)
    texts = {event.data["text"] for event in session.events(timeout=5) if event.kind == "progress"}
    assert texts == {f"part {n}" for n in range(6)}
