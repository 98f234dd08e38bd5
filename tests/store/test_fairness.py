"""Fairness in the tables: allowances are written, kept by admission, and taken away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import psycopg
import pytest

from agentq.policies.fairness import divide
from agentq.store.fairness import Demand, Fairness, Share
from agentq.store.pool import Store
from tests.support.hands import Hands

SLOTS = 8


@pytest.fixture
def rival(store: Store, other_tenant: str) -> Iterator[Hands]:
    """A second tenant's hand."""
    hands = Hands(store, other_tenant)
    yield hands
    hands.close()


@pytest.fixture
def share(hands: Hands, rival: Hands, admin: psycopg.Connection) -> Iterator[Fairness]:
    """Divides eight slots between these two tenants, whatever else the database holds."""

    def ours(_: int, demands: Sequence[Demand]) -> Sequence[Share]:
        return divide(SLOTS, [demand for demand in demands if demand.name in (hands.tenant, rival.tenant)])

    admin.execute("update agentq.tenant set shared_at = null")
    admin.execute("update agentq.worker set slots = %s where worker_id = %s", (SLOTS, hands.worker))
    yield Fairness(hands.store, ours)
    admin.execute("update agentq.tenant set shared_at = null, allowance = null, shedding = false")


def again(admin: psycopg.Connection, share: Fairness) -> int:
    """Divide once more, as the relay does a quarter of a second later."""
    admin.execute("update agentq.tenant set shared_at = shared_at - interval '0.3 s'")
    return share.share()


def admitted(hands: Hands) -> int:
    return hands.rows("select count(*) as n from agentq.ledger_entry where state in ('queued', 'running')")[0]["n"]


def test_weights_divide_what_is_too_little(
    hands: Hands, rival: Hands, share: Fairness, admin: psycopg.Connection
) -> None:
    """
    I8: two floods share the slots three to one, and a slot that ends is handed on within its share.
    """
    admin.execute("update agentq.tenant set weight = 3 where name = %s", (hands.tenant,))
    for one in (hands, rival):
        one.sessions.start([one.new_session() for _ in range(30)], create_with=None)
    assert share.share() == 2
    wakes = hands.admit() + rival.admit()
    assert (admitted(hands), admitted(rival)) == (6, 2)
    assert hands.settle(hands.claim(hands.ref(wakes[0])), "end").wakes
    assert admitted(hands) == 6


def test_while_there_is_enough_nobody_has_an_allowance(hands: Hands, rival: Hands, share: Fairness) -> None:
    for one in (hands, rival):
        one.sessions.start([one.new_session() for _ in range(4)], create_with=None)
    assert share.share() == 0
    assert len(hands.admit()) == 4


def test_a_flood_gives_way_to_who_comes_later(
    hands: Hands, rival: Hands, share: Fairness, admin: psycopg.Connection
) -> None:
    """
    I8: a tenant above its share hands no slot on until the other has its own.
    """
    hands.sessions.start([hands.new_session() for _ in range(30)], create_with=None)
    wakes = hands.admit(SLOTS)
    rival.sessions.start([rival.new_session() for _ in range(30)], create_with=None)
    assert share.share() == 2
    assert len(rival.admit()) == SLOTS // 2
    for wake in wakes[: SLOTS // 2]:
        assert hands.settle(hands.claim(hands.ref(wake)), "end").wakes == ()
    assert hands.admit() == []
    assert admitted(hands) == SLOTS // 2


def test_the_time_that_steps_held_slots_counts(
    hands: Hands, rival: Hands, share: Fairness, admin: psycopg.Connection
) -> None:
    """
    What ended and what runs now: a tenant whose steps took long gets fewer slots.
    """
    for one in (hands, rival):
        one.sessions.start([one.new_session() for _ in range(40)], create_with=None)
    share.share()
    claims = [hands.claim(hands.ref(wake)) for wake in hands.admit()]
    rival.admit()
    admin.execute(
        "update agentq.ledger_entry set started_at = started_at - interval '4 s'"
        " where tenant = %s and state = 'running'",
        (hands.tenant,),
    )
    hands.settle(claims[0], "end")
    again(admin, share)
    allowances = dict(admin.execute("select name, allowance from agentq.tenant where allowance is not null").fetchall())
    assert allowances[hands.tenant] < allowances[rival.tenant]
    assert sum(allowances.values()) == SLOTS


def test_an_allowance_that_nobody_renews_binds_nobody(
    hands: Hands, rival: Hands, share: Fairness, admin: psycopg.Connection
) -> None:
    """
    I7: the relays may all be gone, and admission goes on by the caps.
    """
    for one in (hands, rival):
        one.sessions.start([one.new_session() for _ in range(30)], create_with=None)
    share.share()
    admin.execute("update agentq.tenant set shared_at = shared_at - interval '6 s' where name = %s", (hands.tenant,))
    assert len(hands.admit()) == 30


def test_two_relays_do_not_divide_at_once(hands: Hands, rival: Hands, share: Fairness) -> None:
    for one in (hands, rival):
        one.sessions.start([one.new_session() for _ in range(30)], create_with=None)
    assert share.share() == 2
    assert share.share() == 0
