"""I8 by kind: two tenants use the same name for each thing that has one, and neither meets the other's."""

from __future__ import annotations

import inspect
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import psycopg
import pytest
import redis
from pydantic import BaseModel

from agentq import Agent, Context, Done, effect
from agentq.agents.registry import Registry
from agentq.broker.connection import connect
from agentq.broker.publisher import Publisher
from agentq.broker.queues import dead_queue, tenant_of, tenant_queue
from agentq.broker.rates import RedisRates
from agentq.client import Client
from agentq.policies.rates import Gate
from agentq.settings import Settings
from agentq.store.rates import StoredRates
from agentq.testing import LocalFleet
from tests.contract.test_seam import wake

WHO = {"operator": "test", "reason": "a test"}


class Name(BaseModel):
    """Whose it is; every other name is the same for both."""

    whose: str


@dataclass
class World:
    """Two tenants and what they share."""

    client: Client
    registry: Registry
    settings: Settings
    broker: redis.Redis
    ours: str
    theirs: str

    def run_both(self, **more: object) -> list[object]:
        """One session of the only agent for each, one after the other; their results."""
        [pin] = self.registry.pins()
        with LocalFleet(self.client) as fleet:
            sessions = [
                self.client.start(pin.partition("@")[0], tenant=tenant, input={"whose": whose}, key="same", **more)
                for tenant, whose in ((self.ours, "ours"), (self.theirs, "theirs"))
            ]
            return [fleet.drain(session).result for session in sessions]


@pytest.fixture
def world(
    client: Client,
    registry: Registry,
    settings: Settings,
    broker: redis.Redis,
    tenant: str,
    other_tenant: str,
    admin: psycopg.Connection[object],
) -> World:
    return World(client, registry, settings, broker, tenant, other_tenant)


def effect_keys(world: World) -> None:
    """One domain key: both call, and each recalls what its own call returned."""
    calls = []

    @effect(idempotent=True, key=lambda _: "refund:order-1")
    def refund(whose: str) -> str:
        calls.append(whose)
        return f"paid by {whose}"

    agent = Agent("shop", state=Name, registry=world.registry)

    @agent.step
    def pay(state: Name, ctx: Context) -> Done:
        return Done([ctx.call(refund, state.whose), ctx.call(refund, state.whose)])

    assert world.run_both() == [["paid by ours"] * 2, ["paid by theirs"] * 2]
    assert calls == ["ours", "theirs"]


def memories(world: World) -> None:
    """One namespace and key: what the other wrote is neither read, listed nor found."""
    agent = Agent("shop", state=Name, registry=world.registry)

    @agent.step
    def remember(state: Name, ctx: Context) -> Done:
        before = ctx.memory.get("customers", "c1")
        ctx.memory.put("customers", "c1", {"note": f"oolong for {state.whose}"})
        listed, found = ctx.memory.list("customers"), ctx.memory.search((), "oolong")
        values = [one.value["note"] for one in (*listed, *found)]
        return Done([before is None, values])

    assert world.run_both() == [[True, ["oolong for ours"] * 2], [True, ["oolong for theirs"] * 2]]


def session_keys(world: World) -> None:
    """One idempotency key and one concurrency key: two sessions, of which none waits for the other."""
    agent = Agent("shop", state=Name, registry=world.registry)

    @agent.step
    def say(state: Name) -> Done:
        return Done(state.whose)

    assert world.run_both(concurrency_key="order-1", on_conflict="reject") == ["ours", "theirs"]


def queues(world: World) -> None:
    """Wake-ups and notices of dead letters lie in queues whose names no other tenant's queue can have."""
    publisher = Publisher(lambda: connect(world.settings))
    try:
        publisher.send([wake(world.ours)])
        publisher.publish(dead_queue(world.ours), [({}, {})])
        publisher.flush()
        for name in (tenant_queue, dead_queue):
            assert publisher.depth(name(world.ours)) == 1
            assert publisher.depth(name(world.theirs)) == 0
    finally:
        publisher.purge(tenant_queue(world.ours))
        publisher.purge(dead_queue(world.ours))
        publisher.close()
    assert tenant_of(tenant_queue(world.ours)) == world.ours
    assert tenant_of(dead_queue(world.ours)) is None, "no tenant can be called so: a name has no dot"


def rate_keys(world: World) -> None:
    """A tenant that has used up its rate of a provider holds up itself alone, in Redis and in Postgres."""
    for counter in (RedisRates(world.settings), None):
        stored, provider = StoredRates(world.client.sessions.store), f"p{uuid.uuid4().hex[:8]}"
        for tenant in (world.ours, world.theirs):
            stored.set(tenant, provider, requests=6, tokens=None, **WHO)
        gate = Gate(stored, counter)
        waits = [gate.wait_s(world.ours, provider, 1) for _ in range(5)]
        assert waits[0] == 0
        assert waits[-1] > 0
        assert gate.wait_s(world.theirs, provider, 1) == 0


KINDS: tuple[Callable[[World], None], ...] = (effect_keys, memories, session_keys, queues, rate_keys)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_name_is_its_tenants_own(world: World, kind: Callable[[World], None]) -> None:
    """
    I8: the same key, name or place in two tenants is two things. Files and sandboxes: tests/sandbox/test_tenants.py.
    """
    kind(world)


def test_every_kind_is_in_the_table() -> None:
    here = sys.modules[__name__]
    written = {
        function
        for _, function in inspect.getmembers(here, inspect.isfunction)
        if function.__module__ == __name__ and list(inspect.signature(function).parameters) == ["world"]
    }
    assert written == set(KINDS)
