"""ctx.transaction: the caller's own writes commit with the checkpoint, exactly once, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from agentq import Agent, AsyncContext, Context, Done, Next, Transient
from agentq.agents.registry import Registry
from agentq.client import Client
from agentq.testing import LocalFleet
from agentq.verdicts import Carried, Superseded
from tests.support.until import until

Local = Callable[..., LocalFleet]


class State(BaseModel):
    """Nothing much."""

    n: int = 0


@pytest.fixture(scope="module", autouse=True)
def table(admin: psycopg.Connection[Any], servers: Any) -> Iterator[None]:
    """A table of the user's own, beside agentq's."""
    role = psycopg.conninfo.conninfo_to_dict(servers.database_url)["user"]
    admin.execute("create schema if not exists test_shop")
    admin.execute("create table test_shop.sale (who text, what text unique deferrable initially deferred)")
    admin.execute(f"grant usage on schema test_shop to {role}")
    admin.execute(f"grant all on test_shop.sale to {role}")
    yield
    admin.execute("drop schema test_shop cascade")


def sales(admin: psycopg.Connection[Any], tenant: str) -> list[str]:
    rows = admin.execute("select what from test_shop.sale where who = %s order by what", (tenant,)).fetchall()
    return [row[0].split(":")[1] for row in rows]


INSERT = "insert into test_shop.sale values (%s, %s)"


def selling(registry: Registry, act: Callable[[Any], None], *, is_async: bool, retries: int = 2) -> None:
    """An agent that sells something in its step's transaction, and then does something else."""
    agent = Agent("shop", state=State, registry=registry)
    if is_async:

        @agent.step(retries=retries, timeout="2s")
        async def sell(state: State, ctx: AsyncContext) -> Next | Done:
            async with ctx.transaction() as db:
                await db.execute(INSERT, (ctx.tenant, f"{ctx.tenant}:{state.n}"))
                assert await db.execute("select 1 as one") == [(1,)]
            act(ctx)
            state.n += 1
            return Next(sell) if state.n < 3 else Done("sold")
    else:

        @agent.step(retries=retries, timeout="2s")
        def sell(state: State, ctx: Context) -> Next | Done:
            with ctx.transaction() as db:
                db.execute(INSERT, (ctx.tenant, f"{ctx.tenant}:{state.n}"))
            act(ctx)
            state.n += 1
            return Next(sell) if state.n < 3 else Done("sold")


both = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


@both
def test_writes_commit_with_the_checkpoint(
    registry: Registry, client: Client, tenant: str, local: Local, admin: psycopg.Connection[Any], is_async: bool
) -> None:
    """
    Invisible while the step runs, there once it is settled, each exactly once.
    """
    during: list[int] = []
    selling(registry, lambda ctx: during.append(len(sales(admin, tenant))), is_async=is_async)
    assert local().drain(client.start("shop", tenant=tenant, input={})).result == "sold"
    assert during == [0, 1, 2]
    assert sales(admin, tenant) == ["0", "1", "2"]


@both
def test_an_exception_undoes_the_writes(
    registry: Registry, client: Client, tenant: str, local: Local, admin: psycopg.Connection[Any], is_async: bool
) -> None:
    """
    Every first attempt fails after writing: each sale stands once all the same.
    """

    def fail(ctx: Any) -> None:
        if ctx.attempt == 1:
            raise Transient("after writing")

    selling(registry, fail, is_async=is_async)
    assert local().drain(client.start("shop", tenant=tenant, input={})).result == "sold"
    assert sales(admin, tenant) == ["0", "1", "2"]


@both
def test_a_zombies_writes_are_undone(
    registry: Registry, client: Client, tenant: str, local: Local, admin: psycopg.Connection[Any], is_async: bool
) -> None:
    """
    I3: an attempt that lost its fence commits nothing of the user's either.
    """
    fleets: list[LocalFleet] = []

    def lose_the_fence(ctx: Any) -> None:
        if len(fleets) == 1:
            fleet = fleets[0]
            fleets.append(fleet)
            [attempt] = fleet.in_flight.attempts()
            fleet.ledger.disown(attempt.claim.ref, attempt.claim.token)

    selling(registry, lose_the_fence, is_async=is_async)
    session = client.start("shop", tenant=tenant, input={})
    fleets.append(local())
    assert fleets[0].carry_next(tenant) == Superseded(1)
    assert sales(admin, tenant) == []
    assert fleets[0].drain(session).result == "sold"
    assert sales(admin, tenant) == ["0", "1", "2"]


@both
def test_a_commit_that_is_refused_fails_the_step(
    registry: Registry, client: Client, tenant: str, local: Local, admin: psycopg.Connection[Any], is_async: bool
) -> None:
    """
    A deferred constraint of the user's speaks only at the commit: the step ends, and its checkpoint is not there.
    """
    admin.execute(INSERT, (tenant, f"{tenant}:1"))
    selling(registry, lambda ctx: None, is_async=is_async, retries=0)
    session = client.start("shop", tenant=tenant, input={})
    fleet = local()
    assert fleet.carry_next(tenant) == Carried("next")
    assert fleet.carry_next(tenant) == Carried("dead")
    assert session.view().state == "failed"
    assert sales(admin, tenant) == ["0", "1"]


def test_an_error_that_the_step_swallows_does_not_leave_it_running(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    I7: the transaction is aborted although the step goes on; its settlement is refused, and the step ends.
    """
    agent = Agent("shop", state=State, registry=registry)

    @agent.step(retries=0)
    def sell(state: State, ctx: Context) -> Done:
        with ctx.transaction() as db, contextlib.suppress(psycopg.errors.DivisionByZero):
            db.execute("select 1 / 0")
        return Done("as if nothing had happened")

    session = client.start("shop", tenant=tenant, input={})
    assert local().carry_next(tenant) == Carried("dead")
    assert session.view().state == "failed"


def test_a_connection_that_breaks_is_a_failed_attempt(
    registry: Registry, client: Client, tenant: str, local: Local, admin: psycopg.Connection[Any]
) -> None:
    """
    What was written on it is gone, so the step runs again.
    """
    agent = Agent("shop", state=State, registry=registry)

    @agent.step(retries=1)
    def sell(state: State, ctx: Context) -> Done:
        with ctx.transaction() as db:
            db.execute(INSERT, (ctx.tenant, f"{ctx.tenant}:{ctx.attempt}"))
            if ctx.attempt == 1:
                with psycopg.connect(client.settings.database_url, autocommit=True) as killer:
                    killer.execute("select pg_terminate_backend(%s)", (db.info.backend_pid,))
        return Done(ctx.attempt)

    assert local().drain(client.start("shop", tenant=tenant, input={})).result == 2
    assert sales(admin, tenant) == ["2"]


def test_a_step_sees_only_its_tenants_rows(
    registry: Registry, client: Client, tenant: str, other_tenant: str, local: Local
) -> None:
    """
    I8: the transaction names the tenant, so that agentq's own tables show nobody else's rows.
    """
    agent = Agent("shop", state=State, registry=registry)

    @agent.step
    def look(state: State, ctx: Context) -> Done:
        with ctx.transaction() as db:
            return Done([row[0] for row in db.execute("select distinct tenant from agentq.session").fetchall()])

    client.start("shop", tenant=other_tenant, input={})
    assert local().drain(client.start("shop", tenant=tenant, input={})).result == [tenant]


def test_a_coroutine_that_outlives_its_attempt_writes_nothing(
    registry: Registry, client: Client, tenant: str, local: Local, admin: psycopg.Connection[Any]
) -> None:
    """
    I8: a step that swallows its cancellation must not write through a connection that serves another by now.
    """
    agent = Agent("shop", state=State, registry=registry)
    over, outcome = threading.Event(), []

    @agent.step(timeout="200ms", retries=0)
    async def stubborn(state: State, ctx: AsyncContext) -> Done:
        async with ctx.transaction() as db:
            try:
                await asyncio.sleep(20)
            except asyncio.CancelledError:
                await asyncio.to_thread(over.wait, 10)
            try:
                await db.execute(INSERT, (ctx.tenant, f"{ctx.tenant}:zombie"))
                outcome.append("written")
            except Exception as error:
                outcome.append(type(error).__name__)
            try:
                async with ctx.transaction():
                    outcome.append("opened")
            except Exception as error:
                outcome.append(type(error).__name__)
        return Done()

    client.start("shop", tenant=tenant, input={})
    fleet = local()
    assert fleet.carry_next(tenant) == Carried("dead")
    over.set()
    until(lambda: len(outcome) == 2, 10)
    assert outcome[0] == "FenceLost"
    assert outcome[1] in ("FenceLost", "DeadlineExceeded")
    assert sales(admin, tenant) == []
