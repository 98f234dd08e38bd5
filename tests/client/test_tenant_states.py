"""What each state of a tenant does: to starts, to submissions, to what runs, and to what that leads to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from agentq import Agent, Child, Context, Done, Spawn
from agentq.agents.registry import Registry
from agentq.broker.connection import connect
from agentq.broker.publisher import Publisher
from agentq.client import Client
from agentq.engine import InFlight
from agentq.errors import InvalidInput
from agentq.settings import Settings
from agentq.store.pool import Store
from agentq.submissions import Submissions
from agentq.testing import LocalFleet

Local = Callable[..., LocalFleet]
WHY = "a test"


class Trip(BaseModel):
    """How many go along."""

    children: int = 2


@pytest.fixture
def during() -> list[Callable[[], None]]:
    """What happens while the parent's first step runs."""
    return []


@pytest.fixture(autouse=True)
def agents(registry: Registry, during: list[Callable[[], None]]) -> None:
    parent, child = Agent("parent", state=Trip, registry=registry), Agent("child", state=Trip, registry=registry)

    @parent.step(start=True)
    def leave(state: Trip, ctx: Context) -> Spawn:
        for happens in during:
            happens()
        return Spawn([Child("child", input={}) for _ in range(state.children)], then=arrive, state=state)

    @parent.step
    def arrive(state: Trip, ctx: Context) -> Done:
        return Done(sum(result.value for result in ctx.results))

    @child.step(start=True)
    def walk(state: Trip) -> Done:
        return Done(1)


@pytest.fixture
def submit(settings: Settings, registry: Registry, store: Store) -> Iterator[Callable[[str, str], None]]:
    """The broker-only door."""
    publisher = Publisher(lambda: connect(settings))
    publisher.publish = lambda *facts: None  # type: ignore[method-assign]
    door = Submissions(settings, registry, store, publisher, InFlight())
    yield lambda tenant, key: door.take((), {"agent": "parent", "tenant": tenant, "key": key, "input": {}})
    publisher.close()


def run(fleet: LocalFleet, tenant: str) -> int:
    """How many steps there are to run now."""
    steps = 0
    while fleet.carry_next(tenant) is not None:
        steps += 1
    return steps


def states(client: Client, tenant: str) -> dict[str | None, str]:
    return {row.key: row.state for row in client.list(tenant=tenant) if row.key is not None}


def test_a_paused_tenant_takes_work_and_does_none(
    client: Client, tenant: str, local: Local, during: list[Callable[[], None]], submit: Callable[[str, str], None]
) -> None:
    """
    Starts and submissions are accepted and wait. A step that runs when it is paused ends, and is recorded; its
    children and its join wait. Active again, everything goes on where it was, each step once.
    """
    fleet, ran = local(), list[int]()
    during.append(lambda: ran.append(1))
    during.append(lambda: client.tenants.set(tenant, state="paused", reason=WHY) if len(ran) == 1 else None)
    client.start("parent", tenant=tenant, input={}, key="first")
    assert run(fleet, tenant) == 1
    client.start("parent", tenant=tenant, input={}, key="second")
    submit(tenant, "third")
    assert run(fleet, tenant) == 0
    assert states(client, tenant) == {"first": "running", "second": "running", "third": "running"}
    assert len(client.list(tenant=tenant)) == 5  # the first one's children have begun to wait

    client.tenants.set(tenant, state="active", reason=WHY)
    assert run(fleet, tenant) == 3 + 4 + 4
    assert states(client, tenant) == {"first": "done", "second": "done", "third": "done"}
    assert len(ran) == 3


def test_a_draining_tenant_ends_what_it_has_and_takes_nothing(
    client: Client,
    tenant: str,
    local: Local,
    during: list[Callable[[], None]],
    submit: Callable[[str, str], None],
    admin: psycopg.Connection[Any],
) -> None:
    """
    A start is refused, a submission kept with the reason; a key that started something finds it. What had begun goes
    to its end, with children that it spawns only now.
    """
    fleet = local()
    during.append(lambda: client.tenants.set(tenant, state="draining", reason=WHY))
    begun, waiting = (client.start("parent", tenant=tenant, input={}, key=key) for key in ("begun", "waiting"))
    fleet.carry_next(tenant)
    with pytest.raises(InvalidInput, match="draining"):
        client.start("parent", tenant=tenant, input={}, key="new")
    with pytest.raises(InvalidInput, match="draining"):
        client.start_many("parent", tenant=tenant, items=[({}, None)])
    submit(tenant, "sent")
    refused = admin.execute("select reason from agentq.refused_submission where tenant = %s", (tenant,)).fetchall()
    assert [row[0] for row in refused] == [f"tenant {tenant!r} is draining and takes no new sessions"]
    assert client.start("parent", tenant=tenant, input={}, key="begun").id == begun.id
    run(fleet, tenant)
    assert states(client, tenant) == {"begun": "done", "waiting": "done"}
    assert waiting.view().result == 2
    with pytest.raises(Exception, match="draining"):
        begun.fork(WHY, from_step="0")
    client.tenants.set(tenant, state="active", reason=WHY)
    client.start("parent", tenant=tenant, input={}, key="new")


def test_a_tenant_that_nobody_added_is_refused_at_every_door(
    client: Client, submit: Callable[[str, str], None], admin: psycopg.Connection[Any]
) -> None:
    """
    With the settings as they come: no session, no record, and the submission is kept.
    """
    name = "nobody-added-this"
    with pytest.raises(InvalidInput, match=name):
        client.start("parent", tenant=name, input={})
    submit(name, "k")
    assert not client.tenants.has(name)
    query = "delete from agentq.refused_submission where tenant = %s returning reason"
    assert len(admin.execute(query, (name,)).fetchall()) == 1
