"""The audit walk: whatever the client changes by hand leaves a row that says who, what and why."""

from __future__ import annotations

import base64
import inspect
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from agentq.agents.registry import Registry
from agentq.client import Client, Selection, Session
from agentq.settings import Settings
from agentq.store.providers import provider_of
from agentq.store.redrives import Job, Policy
from tests.cli.test_walks import World
from tests.client.test_isolation import PARTS
from tests.support.hands import Hands

pytestmark = pytest.mark.usefixtures("no_keys_left")

WHY = "the walk's own reason"


@pytest.fixture
def filled(hands: Hands, tmp_path: Any) -> World:
    """A tenant with a row in every table."""
    return World(None, hands, tmp_path)  # type: ignore[arg-type]


@pytest.fixture
def asked(settings: Settings, registry: Registry, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client; for what is done to keys, one that holds the providers' key."""
    with Client(settings, registry) as client:
        if "keys." in request.node.name:
            key = base64.b64encode(bytes(range(32))).decode()
            keyed = settings.model_copy(update={"encryption_keys": key})
            client.keys._keyring.store.vault.provider = provider_of(keyed)
        yield client


def policy(world: World) -> Policy:
    return Policy(
        name=world.name, selection={"tenant": world.tenant}, quiet_s=60, canary=1, threshold=1.0, rate_per_s=1.0,
        max_generation=1, enabled=False, operator="walker", reason=WHY,
    )  # fmt: skip


def paused(client: Client, world: World) -> str:
    client.recovery.pause(world.tenant, world.live, reason="to prepare")
    return world.live


def muted(client: Client, world: World) -> str:
    client.anomalies.mute(world.anomaly, reason="to prepare")
    return world.anomaly


def priced(client: Client, world: World) -> str:
    client.budgets.set_price(f"walk:{world.name}", input_usd=1, output_usd=1, reason="to prepare")
    return f"walk:{world.name}"


def token(client: Client, world: World) -> str:
    return client.tokens.create("a shop", tenants=[world.tenant], reason="to prepare").id


def closed(client: Client, world: World) -> str:
    client.tenants.set(world.tenant, state="paused", reason="to prepare")
    return world.tenant


def with_policy(client: Client, world: World) -> str:
    client.dead_letters.set_policy(policy(world))
    return world.name


def misplaced(world: World) -> None:
    world.hands.store.query_as(
        "*",
        "update agentq.tenant set placed_at = now(), shard = 3, placement = 'auto', worker_group = %(group)s"
        " where name = %(name)s",
        {"group": world.name, "name": world.tenant},
    )


def left(client: Client, world: World) -> Job:
    """A redrive that nobody drives."""
    return client.dead_letters.redrives.get(uuid.UUID(world.left_redrive()))


def session(client: Client, world: World, which: str) -> Session:
    return client.get(world.tenant, which)


WRITES: dict[str, Callable[[Client, World], Any]] = {
    "client.cancel": lambda c, w: c.cancel(w.tenant, w.live, reason=WHY),
    "session.cancel": lambda c, w: session(c, w, w.live).cancel(WHY),
    "session.pause": lambda c, w: session(c, w, w.live).pause(WHY),
    "session.resume": lambda c, w: session(c, w, paused(c, w)).resume(WHY),
    "session.kill": lambda c, w: session(c, w, w.live).kill(WHY),
    "session.replay": lambda c, w: session(c, w, w.dead).replay(WHY),
    "session.fork": lambda c, w: session(c, w, w.dead).fork(WHY, from_step="0"),
    "recovery.pause": lambda c, w: c.recovery.pause(w.tenant, w.live, reason=WHY),
    "recovery.resume": lambda c, w: c.recovery.resume(w.tenant, paused(c, w), reason=WHY),
    "recovery.kill": lambda c, w: c.recovery.kill(w.tenant, w.live, reason=WHY),
    "recovery.replay": lambda c, w: c.recovery.replay(w.tenant, w.dead, reason=WHY),
    "recovery.fork": lambda c, w: c.recovery.fork(w.tenant, w.dead, reason=WHY, from_step="0"),
    "tenants.add": lambda c, w: c.tenants.add(w.name, reason=WHY),
    "tenants.set": lambda c, w: c.tenants.set(w.tenant, weight=2.0, reason=WHY),
    "tenants.erase": lambda c, w: c.tenants.erase(closed(c, w), reason=WHY),
    "tenants.place_again": lambda c, w: (misplaced(w), c.tenants.place_again(reason=WHY)),
    "approvals.grant": lambda c, w: c.approvals.grant(w.question(), reason=WHY, who=c.approvals.who("walker")),
    "approvals.deny": lambda c, w: c.approvals.deny(w.question(), reason=WHY, who=c.approvals.who("walker")),
    "effects.resolve": lambda c, w: c.effects.resolve(w.unknown_effect(), done=False, reason=WHY, tenant=w.tenant),
    "anomalies.mute": lambda c, w: c.anomalies.mute(w.anomaly, reason=WHY),
    "anomalies.unmute": lambda c, w: c.anomalies.unmute(muted(c, w), reason=WHY),
    "anomalies.order": lambda c, w: c.anomalies.order("park", reason=WHY, tenant=w.tenant, agent="robot"),
    "dependencies.force": lambda c, w: c.dependencies.force("stripe", "open", reason=WHY, tenant=w.tenant),
    "dead_letters.discard": lambda c, w: c.dead_letters.discard(Selection(tenant=w.tenant), reason=WHY),
    "dead_letters.redrive": lambda c, w: list(c.dead_letters.redrive(Selection(tenant=w.tenant), reason=WHY)),
    "dead_letters.stop": lambda c, w: c.dead_letters.stop(left(c, w), reason=WHY),
    "dead_letters.resume": lambda c, w: list(c.dead_letters.resume(left(c, w), reason=WHY)),
    "dead_letters.set_policy": lambda c, w: c.dead_letters.set_policy(policy(w)),
    "dead_letters.remove_policy": lambda c, w: c.dead_letters.remove_policy(with_policy(c, w), reason=WHY),
    "keys.rotate": lambda c, w: c.keys.rotate(w.tenant, reason=WHY),
    "keys.reseal": lambda c, w: c.keys.reseal(w.tenant, reason=WHY),
    "keys.rewrap": lambda c, w: c.keys.rewrap(w.tenant, reason=WHY),
    "tokens.create": lambda c, w: c.tokens.create("a shop", tenants=[w.tenant], reason=WHY),
    "tokens.revoke": lambda c, w: c.tokens.revoke(token(c, w), reason=WHY),
    "rates.set": lambda c, w: c.rates.set("walk", tenant=w.tenant, requests_per_min=5, reason=WHY),
    "memory.put": lambda c, w: c.memory.put(w.tenant, "shop", "milk", "oat", reason=WHY),
    "memory.delete": lambda c, w: c.memory.delete(w.tenant, "shop", "tea", reason=WHY),
    "memory.reindex": lambda c, w: c.memory.reindex(w.tenant, reason=WHY),
    "budgets.set": lambda c, w: c.budgets.set(w.tenant, cost_usd="1", reason=WHY),
    "budgets.set_price": lambda c, w: c.budgets.set_price(f"walk:{w.name}", input_usd=1, output_usd=1, reason=WHY),
    "budgets.remove_price": lambda c, w: c.budgets.remove_price(priced(c, w), reason=WHY),
}

# Below the client, called with an operator's name by what is walked here.
BELOW = frozenset({"sessions", "ledger", "operators"})


def public(thing: Any) -> Iterator[tuple[str, Any]]:
    return ((name, method) for name, method in inspect.getmembers(thing, callable) if not name.startswith("_"))


def test_every_method_that_asks_why_is_walked(client: Client) -> None:
    """
    One that is added fails here until it is walked. A policy names its reason itself.
    """
    parts = [("client", client), ("session", Session), *((part, getattr(client, part)) for part in PARTS)]
    asking = {
        f"{part}.{name}"
        for part, thing in parts
        if part not in BELOW
        for name, method in public(thing)
        if not inspect.isclass(method) and "reason" in inspect.signature(method).parameters
    }
    assert asking | {"dead_letters.set_policy"} == set(WRITES)


@pytest.mark.parametrize("name", WRITES)
def test_every_write_leaves_an_audit_row(
    asked: Client, filled: World, admin: psycopg.Connection[Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    I11: under the name that the environment gives, with the reason.
    """
    operator = f"walker-{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("AGENTQ_OPERATOR", operator)
    WRITES[name](asked, filled)
    rows = admin.execute("select operator from agentq.operator_action where reason = %s", (WHY,)).fetchall()
    assert {operator, "walker"} & {row[0] for row in rows}, name
