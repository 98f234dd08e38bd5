"""Placement: who has which queue, who serves it, and what a move leaves behind."""

from __future__ import annotations

import secrets
from typing import Any

import psycopg
import pytest

from agentq.broker.routes import CHECKED_S, FRESH_S, KEPT_S, Routes
from agentq.client import Client
from agentq.errors import InvalidInput, StoreUnavailable, UnknownTenant
from agentq.store.operators import Operators
from agentq.store.placement import LATELY_S, Placement
from agentq.store.pool import Store
from agentq.store.workers import Registration
from agentq.verdicts import NotGranted
from tests.conftest import new_tenant
from tests.support.hands import PIN, Hands

SHARDS = 8


@pytest.fixture
def group() -> str:
    """A group that no other test uses."""
    return f"g{secrets.token_hex(4)}"


def placement(store: Store, own_max: int = 2, shards: int = SHARDS) -> Placement:
    return Placement(store, own_max=own_max, shards=shards)


def move(store: Store, name: str, *, queue: str | None = None, group: str | None = None, **terms: int) -> str | None:
    with store.transaction("*") as connection:
        return placement(store, **terms).change(connection, name, placement=queue, group=group)


def queues(places: Placement, names: list[str]) -> dict[str, str]:
    """The queues of these, without those of tenants that other tests have moved of late."""
    return {name: queue for name, queue in places.queues_of(names).items() if name in names}


def row(admin: psycopg.Connection[Any], name: str) -> tuple[Any, ...]:
    found = admin.execute(
        "select worker_group, placement, shard, former_queues from agentq.tenant where name = %s", (name,)
    ).fetchone()
    assert found is not None
    return found


def worker(store: Store, group: str) -> Registration:
    made = Registration(store, group=group, role="steps", host="test", pid=2, release="0", serves=[PIN])
    made.beat(3600.0)
    return made


# ── queues ───────────────────────────────────────────────────────────────────


def test_a_group_has_few_queues_of_tenants_and_shards_beyond(
    store: Store, admin: psycopg.Connection[Any], group: str
) -> None:
    """
    The first tenants of a group get their own queue, later ones a shard, always the same one for a name.
    """
    names = [new_tenant(admin) for _ in range(5)]
    queues = [move(store, name, group=group) for name in names]
    assert queues[:2] == [f"agentq.t.{name}" for name in names[:2]]
    assert all(str(queue).startswith(f"agentq.shard.{group}.") for queue in queues[2:])
    assert {int(str(queue).rpartition(".")[2]) for queue in queues[2:]} <= set(range(SHARDS))
    assert move(store, names[4]) == queues[4]
    assert sorted(placement(store).followed(group)) == sorted({str(queue) for queue in queues})


def test_other_settings_move_nobody_by_themselves(store: Store, admin: psycopg.Connection[Any], group: str) -> None:
    """
    A process with other settings places new tenants by them, and leaves the others where they are.
    """
    names = [new_tenant(admin) for _ in range(3)]
    before = {name: move(store, name, group=group) for name in names}
    other = placement(store, own_max=0, shards=3)
    other.place_new()
    assert queues(other, names) == before
    again = other.place_again(names, dry_run=True)
    assert all(queue.startswith("agentq.shard.") for queue in again.values())
    assert queues(other, names) == before
    assert other.place_again(names) == again == queues(other, names)


def test_a_tenant_that_nobody_placed_is_placed_when_it_is_published_for(
    store: Store, admin: psycopg.Connection[Any], group: str
) -> None:
    """
    One that a start has just created gets its queue before its first message goes out.
    """
    name = new_tenant(admin)
    admin.execute("update agentq.tenant set worker_group = %s where name = %s", (group, name))
    found = placement(store, own_max=0).queues_of([name, "test-nobody-here"])
    assert "test-nobody-here" not in found
    assert found[name] == placement(store).followed(group)[0]
    assert row(admin, name)[3] == []


def test_who_asks_for_others_hears_of_a_move(store: Store, admin: psycopg.Connection[Any], group: str) -> None:
    """
    For some time after it, and no longer: whoever has asked each second has heard.
    """
    name, other, places = new_tenant(admin), new_tenant(admin), placement(store)
    move(store, name, group=group)
    move(store, other, group=group)
    assert name not in places.queues_of([other]), "its first place is no move"
    shard = move(store, name, queue="shard")
    assert places.queues_of([other])[name] == shard
    admin.execute(
        "update agentq.tenant set placed_at = placed_at - make_interval(secs => %s) where name = %s",
        (LATELY_S, name),
    )
    assert name not in places.queues_of([other])


def test_a_paused_tenants_own_queue_is_not_listened_to(
    store: Store, admin: psycopg.Connection[Any], group: str
) -> None:
    name = new_tenant(admin)
    queue = move(store, name, group=group)
    assert placement(store).followed(group) == [queue]
    admin.execute("update agentq.tenant set state = 'paused' where name = %s", (name,))
    assert placement(store).followed(group) == []


def test_what_was_left_is_listened_to_for_a_while_and_then_removed(
    store: Store, admin: psycopg.Connection[Any], group: str
) -> None:
    """
    A queue of one's own that was left for a shard is consumed until publishers have heard; then nobody needs it.
    """
    name, places = new_tenant(admin), placement(store)
    own, shard = move(store, name, group=group), move(store, name, queue="shard")
    assert row(admin, name)[3] == [own]
    assert set(places.followed(group)) == {own, shard}
    assert (name, own, False) not in places.left_behind()
    admin.execute("update agentq.tenant set placed_at = placed_at - interval '1 minute' where name = %s", (name,))
    assert places.followed(group) == [shard]
    assert (name, own, False) in places.left_behind()
    places.forget(name, str(own))
    assert row(admin, name)[3] == []


def test_a_shard_that_others_use_is_not_removed(store: Store, admin: psycopg.Connection[Any], group: str) -> None:
    one, other = new_tenant(admin), new_tenant(admin)
    shards = [move(store, name, queue="shard", group=group, shards=1) for name in (one, other)]
    assert shards[0] == shards[1]
    move(store, one, queue="own")
    admin.execute("update agentq.tenant set placed_at = placed_at - interval '1 minute' where name = %s", (one,))
    assert (one, shards[0], True) in placement(store).left_behind()
    move(store, other, queue="own")
    assert (one, shards[0], False) in placement(store).left_behind()


def test_a_tenant_that_comes_back_keeps_its_queue(store: Store, admin: psycopg.Connection[Any], group: str) -> None:
    name = new_tenant(admin)
    own = move(store, name, group=group)
    shard = move(store, name, queue="shard")
    assert move(store, name, queue="own") == own
    assert row(admin, name)[3] == [shard]


# ── groups ───────────────────────────────────────────────────────────────────


def test_only_its_group_runs_a_tenants_steps(hands: Hands, store: Store, group: str) -> None:
    """
    A wake-up that reaches another group's worker, late or forged, is sent again to the group that serves it now.
    """
    ref = hands.start()
    hands.admit()
    move(store, hands.tenant, group=group)
    assert hands.try_claim(ref) == NotGranted(ref, "elsewhere")
    assert hands.entry(ref)["state"] == "ready"
    assert [wake.step_id for wake in hands.admit()] == [ref.step_id]
    theirs = worker(store, group)
    try:
        assert hands.claim(ref, worker=theirs.worker_id).ref == ref
    finally:
        theirs.stop()


def test_quarantine_serves_every_group(hands: Hands, store: Store, group: str, admin: psycopg.Connection[Any]) -> None:
    ref = hands.start()
    hands.admit()
    move(store, hands.tenant, group=group)
    admin.execute("update agentq.ledger_entry set quarantine = true where step_id = %s", (ref.step_id,))
    assert hands.claim(ref, quarantine=True).ref == ref


def test_a_group_without_workers_is_named(hands: Hands, store: Store, group: str) -> None:
    """
    It is a warning of the doctor's until a worker of the group lives; steps wait in the meantime.
    """
    hands.start()
    move(store, hands.tenant, group=group)
    [found] = [one for one in placement(store).deserted() if one.group == group]
    assert (found.tenants, found.tenant, found.due) == (1, hands.tenant, 1)
    theirs = worker(store, group)
    try:
        assert group not in {one.group for one in placement(store).deserted()}
    finally:
        theirs.stop()


def test_what_was_queued_before_a_move_is_missed_at_once(hands: Hands, store: Store) -> None:
    """
    Its message is in the queue that the tenant left: the new one lacks it, and nobody waits for it to grow old.
    """
    ref = hands.start()
    move(store, hands.tenant, queue="own")
    hands.admit()

    def missing() -> tuple[int, int]:
        [found] = [row[2:] for row in hands.ledger.broker_should_hold(60.0) if hands.tenant in row[1]]
        return found

    assert missing() == (1, 0)
    move(store, hands.tenant, queue="shard")
    expected, stale = missing()  # others may be in the shard as well
    assert stale >= 1
    [wake] = hands.ledger.republish(hands.tenant, quarantine=False, age_s=60.0, limit=10)
    assert wake.step_id == ref.step_id
    assert missing() == (expected, stale - 1)
    assert hands.ledger.republish(hands.tenant, quarantine=False, age_s=60.0, limit=10) == []


# ── by hand ──────────────────────────────────────────────────────────────────


def test_moves_are_audited_and_bad_ones_refused(client: Client, tenant: str, group: str) -> None:
    client.tenants.set(tenant, queue="shard", group=group, reason="they are small")
    [known] = [one for one in client.tenants.ls() if one.name == tenant]
    assert (known.group, known.placement) == (group, "shard")
    [action] = Operators(client._store).actions(tenant=tenant, action="tenant set")
    assert action.detail == {"queue": "shard", "group": group, "placed": known.queue}
    for bad in ({"queue": "elsewhere"}, {"group": "quarantine"}, {"group": "Not A Name"}):
        with pytest.raises(InvalidInput):
            client.tenants.set(tenant, **bad, reason="x")  # type: ignore[arg-type]
    with pytest.raises(UnknownTenant):
        client.tenants.set(f"{tenant}-not", queue="own", reason="x")
    assert [one for one in client.tenants.ls() if one.name == tenant] == [known]


# ── what a publisher knows ───────────────────────────────────────────────────


class Book:
    """What publishers ask for queues, as a table of tenants that may move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.away = False
        self.asked: list[set[str]] = []
        self.queues = {"a": "agentq.t.a", "b": "agentq.shard.1"}
        self.moved: dict[str, float] = {}
        self.routes = Routes(self.look, clock=lambda: self.now)

    def look(self, names: Any) -> dict[str, str]:
        self.asked.append(set(names))
        if self.away:
            raise StoreUnavailable("away")
        lately = {name for name, at in self.moved.items() if self.now - at < LATELY_S}
        return {name: self.queues[name] for name in {*names, *lately} if name in self.queues}

    def move(self, name: str, queue: str, *, told: bool = True) -> None:
        self.queues[name] = queue
        if told:
            self.moved[name] = self.now


def test_a_publisher_asks_for_tenants_once_and_for_moves_each_second() -> None:
    """
    One question for a batch of unknown tenants, none for those that are known, and one for whoever has moved.
    """
    book = Book()
    assert book.routes.of(["a", "b", "a"]) == book.queues
    assert book.routes.of(["a", "b"]) == book.queues
    assert book.asked == [{"a", "b"}]
    book.move("a", "agentq.shard.2")
    book.now += FRESH_S
    assert book.routes.of(["b"])["b"] == "agentq.shard.1"
    assert book.asked[1:] == [set()], "nobody new, and one question for all that may have moved"
    assert book.routes.of(["a"])["a"] == "agentq.shard.2"
    assert len(book.asked) == 2


def test_what_is_known_outlives_postgres() -> None:
    """
    Without it, the last answer counts, and it is not asked for each message.
    """
    book = Book()
    book.routes.of(["a"])
    book.away = True
    book.now += FRESH_S
    assert book.routes.of(["a", "c"]) == {"a": "agentq.t.a", "c": "agentq.t.c"}
    book.asked.clear()
    assert book.routes.of(["a", "c"]) == {"a": "agentq.t.a", "c": "agentq.t.c"}
    assert book.asked == []


def test_who_has_not_asked_for_long_knows_nothing_any_more() -> None:
    """
    Of a move that was longer ago than moves are told of, a publisher that was idle, or without Postgres, hears too.
    """
    book = Book()
    book.routes.of(["a", "b"])
    book.move("a", "agentq.shard.2")
    book.now += LATELY_S + 1
    assert book.routes.of(["a"])["a"] == "agentq.shard.2"
    assert book.asked[-1] == {"a"}
    assert KEPT_S < LATELY_S, "or a move between would be missed"


def test_a_move_that_nobody_told_is_found_within_a_minute() -> None:
    """
    One whose transaction took so long that it was no news any more when it could be seen.
    """
    book = Book()
    book.routes.of(["a", "b"])
    book.move("a", "agentq.shard.2", told=False)
    while book.now <= CHECKED_S + FRESH_S:
        book.now += FRESH_S
        book.routes.of(["b"])
    assert book.routes.of(["a"])["a"] == "agentq.shard.2"
