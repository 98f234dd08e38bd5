"""Fairness in the tables: allowances are written, kept by admission, and taken away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import LiteralString

import psycopg
import pytest

from agentq.policies.fairness import divide
from agentq.store.fairness import Demand, Fairness, Share
from agentq.store.pool import Store
from agentq.verdicts import Granted, Settlement
from tests.conftest import new_tenant
from tests.support.hands import Hands

SLOTS = 8


@pytest.fixture
def rival(store: Store, other_tenant: str) -> Iterator[Hands]:
    """A second tenant's hand."""
    hands = Hands(store, other_tenant)
    yield hands
    hands.close()


@pytest.fixture
def third(store: Store, admin: psycopg.Connection) -> Iterator[Hands]:
    """A third tenant's hand."""
    hands = Hands(store, new_tenant(admin))
    yield hands
    hands.close()


@pytest.fixture
def share(hands: Hands, rival: Hands, admin: psycopg.Connection) -> Iterator[Fairness]:
    """Divides eight slots between these two tenants, whatever else the database holds."""

    def ours(_: int, demands: Sequence[Demand]) -> Sequence[Share]:
        return divide(SLOTS, [demand for demand in demands if demand.name in (hands.tenant, rival.tenant)])

    admin.execute("update agentq.tenant set shared_at = null")
    alone(admin, hands, rival)
    yield Fairness(hands.store, ours)
    admin.execute("update agentq.tenant set shared_at = null, allowance = null, shedding = false")


def alone(admin: psycopg.Connection, hands: Hands, rival: Hands) -> None:
    """Two tenants and one worker of a group of their own: what other tests have left, and leave now, holds no slot."""
    group = f"of-{hands.tenant}"
    admin.execute(
        "update agentq.tenant set worker_group = %s where name = any (%s)", (group, [hands.tenant, rival.tenant])
    )
    admin.execute("update agentq.worker set slots = 0 where worker_group = '*'")
    for one, slots in ((hands, SLOTS), (rival, 0)):
        admin.execute(
            "update agentq.worker set worker_group = %s, slots = %s where worker_id = %s", (group, slots, one.worker)
        )


def again(admin: psycopg.Connection, share: Fairness) -> int:
    """Divide once more, as the relay does a quarter of a second later."""
    admin.execute("update agentq.tenant set shared_at = shared_at - interval '0.3 s'")
    return share.share()


def allowances(admin: psycopg.Connection) -> dict[str, int]:
    return dict(admin.execute("select name, allowance from agentq.tenant where allowance is not null").fetchall())


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
    for one in (hands, rival):
        for wake in one.admit():
            one.claim(one.ref(wake))
    admin.execute(
        "update agentq.ledger_entry set started_at = started_at - interval '4 s'"
        " where tenant = %s and state = 'running'",
        (hands.tenant,),
    )
    again(admin, share)
    by_what_runs = allowances(admin)
    assert by_what_runs[hands.tenant] < by_what_runs[rival.tenant]
    assert sum(by_what_runs.values()) == SLOTS
    share.tell({rival.tenant: (10, 60.0)})
    again(admin, share)
    by_what_ended = allowances(admin)
    assert by_what_ended[hands.tenant] > by_what_ended[rival.tenant]
    assert sum(by_what_ended.values()) == SLOTS


def test_time_is_kept_also_where_the_allowance_stays(
    hands: Hands, rival: Hands, share: Fairness, admin: psycopg.Connection
) -> None:
    """
    A division writes down only what has changed, and what a tenant ran has, whatever it may hold now.
    """
    for one in (hands, rival):
        one.sessions.start([one.new_session() for _ in range(40)], create_with=None)
    share.share()
    before = dict(admin.execute("select name, time_used from agentq.tenant where sharing").fetchall())
    held = {hands.tenant: (1, 0.001), rival.tenant: (1, 0.001)}
    allowed = allowances(admin)
    share.tell(held)
    again(admin, share)
    assert allowances(admin) == allowed
    after = dict(admin.execute("select name, time_used from agentq.tenant where sharing").fetchall())
    assert {name: round(after[name] - before[name], 6) for name in held} == dict.fromkeys(held, 0.001)
    admin.execute(
        "update agentq.ledger_entry set state = 'held' where tenant = any (%s) and state = 'ready'", (list(held),)
    )
    again(admin, share)
    assert allowances(admin) == {}
    assert admin.execute("select count(*) from agentq.tenant where sharing").fetchone() == (0,)


def test_an_allowance_that_nobody_renews_binds_nobody(
    hands: Hands, rival: Hands, share: Fairness, admin: psycopg.Connection
) -> None:
    """
    I7: the relays may all be gone, and admission goes on by the caps and the slots that are free.
    """
    for one in (hands, rival):
        one.sessions.start([one.new_session() for _ in range(30)], create_with=None)
    share.share()
    admin.execute("update agentq.tenant set shared_at = shared_at - interval '6 s' where name = %s", (hands.tenant,))
    assert len(hands.admit()) == SLOTS


def test_two_relays_do_not_divide_at_once(hands: Hands, rival: Hands, share: Fairness) -> None:
    for one in (hands, rival):
        one.sessions.start([one.new_session() for _ in range(30)], create_with=None)
    assert share.share() == 2
    assert share.share() == 0


def test_a_flood_before_the_first_division_takes_what_is_free(
    hands: Hands, rival: Hands, share: Fairness, admin: psycopg.Connection
) -> None:
    """
    I8: the broker never holds more of a flood than can run, so who comes next waits for one step, not for many.
    """
    hands.sessions.start([hands.new_session() for _ in range(30)], create_with=None)
    assert len(hands.admit()) == SLOTS
    rival.sessions.start([rival.new_session() for _ in range(3)], create_with=None)
    assert len(rival.admit()) == 1
    assert rival.admit() == []


def test_what_comes_while_no_worker_is_there_does_not_fill_the_broker(
    hands: Hands, rival: Hands, share: Fairness, admin: psycopg.Connection
) -> None:
    """
    I8: or the first worker would serve every tenant's whole cap in turn, whatever their weights.
    """
    admin.execute("update agentq.worker set slots = 0 where worker_id = %s", (hands.worker,))
    for one in (hands, rival):
        one.sessions.start([one.new_session() for _ in range(30)], create_with=None)
    wakes = hands.ledger.admit_each([rival.tenant, hands.tenant], 100)
    assert sorted(wake.tenant for wake in wakes) == sorted([hands.tenant, rival.tenant] * 8)
    assert (admitted(hands), admitted(rival)) == (8, 8)
    assert hands.admit() == []


@pytest.mark.parametrize("sign", ["queued_at = queued_at - interval '31 s'", "dispatches = 2"])
def test_what_nobody_takes_holds_nobody_back(
    hands: Hands, rival: Hands, share: Fairness, admin: psycopg.Connection, sign: LiteralString
) -> None:
    """
    Work-conserving: steps that lie in a queue to which nobody listens neither hold slots nor get a share, however
    often their messages are sent again.
    """
    hands.sessions.start([hands.new_session() for _ in range(30)], create_with=None)
    hands.admit()
    rival.sessions.start([rival.new_session() for _ in range(30)], create_with=None)
    share.share()
    assert hands.tenant in allowances(admin)
    admin.execute(
        f"update agentq.ledger_entry set {sign} where tenant = %s and state = 'queued'",
        (hands.tenant,),
    )
    admin.execute(
        "update agentq.ledger_entry set state = 'held' where tenant = %s and state = 'ready'", (hands.tenant,)
    )
    again(admin, share)
    assert set(allowances(admin)) == {rival.tenant}


# ── a slot that falls free between two divisions ─────────────────────────────


@pytest.fixture
def divided(hands: Hands, rival: Hands, share: Fairness) -> Granted:
    """All slots are held, half by each; a running step of the rival, whose last it is."""
    for one in (hands, rival):
        one.sessions.start([one.new_session() for _ in range(30)], create_with=None)
    assert share.share() == 2
    wakes = rival.admit()
    assert len(hands.admit()) == len(wakes) == SLOTS // 2
    return rival.claim(rival.ref(wakes[0]))


def hold(admin: psycopg.Connection, *tenants: str) -> None:
    """What waits of these tenants is not due any more."""
    admin.execute(
        "update agentq.ledger_entry set state = 'held' where tenant = any (%s) and state = 'ready'", (list(tenants),)
    )


def test_a_slot_that_its_tenant_has_no_use_for_is_passed_on(
    hands: Hands, rival: Hands, divided: Granted, admin: psycopg.Connection
) -> None:
    """
    I8, work-conserving: with the settlement that leaves it, not with the next division.
    """
    hold(admin, rival.tenant)
    [wake] = rival.settle(divided, "end").wakes
    assert wake.tenant == hands.tenant
    assert (admitted(hands), admitted(rival)) == (SLOTS // 2 + 1, SLOTS // 2 - 1)
    assert hands.claim(hands.ref(wake))


@pytest.mark.parametrize(("time_used", "goes_to"), [(-1.0, "third"), (1e9, "first")])
def test_a_slot_goes_to_who_is_furthest_behind(
    hands: Hands,
    rival: Hands,
    divided: Granted,
    admin: psycopg.Connection,
    third: Hands,
    time_used: float,
    goes_to: str,
) -> None:
    hold(admin, rival.tenant)
    third.sessions.start([third.new_session() for _ in range(3)], create_with=None)
    admin.execute(
        "update agentq.tenant set sharing = true, shared_at = agentq.now(), time_used = %s, worker_group = %s"
        " where name = %s",
        (time_used, f"of-{hands.tenant}", third.tenant),
    )
    expected = third if goes_to == "third" else hands
    assert [wake.tenant for wake in rival.settle(divided, "end").wakes] == [expected.tenant]


@pytest.mark.parametrize(
    "change", ["state = 'paused'", "concurrency = 4", "worker_group = 'another'", "sharing = false"]
)
def test_a_slot_is_not_passed_on_to_who_may_not_have_it(
    hands: Hands, rival: Hands, divided: Granted, admin: psycopg.Connection, change: LiteralString
) -> None:
    hold(admin, rival.tenant)
    admin.execute(f"update agentq.tenant set {change} where name = %s", (hands.tenant,))
    assert rival.settle(divided, "end").wakes == ()
    assert admitted(hands) == SLOTS // 2


def test_a_slot_that_nobody_else_wants_stays_where_it_is(
    hands: Hands, rival: Hands, divided: Granted, admin: psycopg.Connection
) -> None:
    """
    Also where its tenant is above its share: what that share is bound by has gone.
    """
    hold(admin, hands.tenant)
    admin.execute("update agentq.tenant set shedding = true where name = %s", (rival.tenant,))
    assert [wake.tenant for wake in rival.settle(divided, "end").wakes] == [rival.tenant]


def test_no_more_is_passed_on_than_there_are_slots(
    hands: Hands, rival: Hands, divided: Granted, admin: psycopg.Connection
) -> None:
    hold(admin, rival.tenant)
    admin.execute("update agentq.worker set slots = %s where worker_id = %s", (SLOTS - 1, hands.worker))
    assert rival.settle(divided, "end").wakes == ()


def test_a_slot_waits_for_nobodys_lock(hands: Hands, rival: Hands, divided: Granted, admin: psycopg.Connection) -> None:
    """
    Two settlements that pass slots on to each other's tenants, or admission beside them, cannot stand in a ring.
    """
    hold(admin, rival.tenant)
    with hands.store.transaction(hands.tenant) as admitting:
        admitting.execute("select pg_advisory_xact_lock(1634166382, hashtext(%s))", (hands.tenant,))
        assert rival.settle(divided, "end").wakes == ()


def test_a_slot_is_passed_on_within_the_tenants_view(
    hands: Hands, rival: Hands, divided: Granted, admin: psycopg.Connection
) -> None:
    """
    The settlement looks at all tenants for a moment; what follows in its transaction sees its own tenant alone.
    """
    hold(admin, rival.tenant)
    with hands.store.transaction(rival.tenant) as connection:
        end = Settlement("end", kind="full", state=b"{}", state_from=divided.ref.step_id, result=b"1")
        assert rival.ledger.settle(divided, end, on=connection).wakes
        assert connection.execute("select current_setting('agentq.tenant')").fetchone() == (rival.tenant,)


# ── a slot that is given up before it is claimed ─────────────────────────────


def test_a_slot_that_is_given_up_unclaimed_is_filled(
    hands: Hands, rival: Hands, divided: Granted, admin: psycopg.Connection
) -> None:
    """
    Work-conserving: by the tenant's own next step within its cap and share, else by who is furthest behind.
    """
    assert rival.ledger.refill(rival.tenant) == [], "its share is with the broker"
    [given_up] = rival.rows("select step_id from agentq.ledger_entry where state = 'queued' limit 1")
    give_up = "update agentq.ledger_entry set state = 'held' where tenant = %s and step_id = %s"
    admin.execute(give_up, (rival.tenant, given_up["step_id"]))
    assert [wake.tenant for wake in rival.ledger.refill(rival.tenant)] == [rival.tenant]
    assert admitted(rival) == SLOTS // 2
    hold(admin, rival.tenant)
    admin.execute(
        "update agentq.ledger_entry set state = 'held' where tenant = %s and state = 'queued'", (rival.tenant,)
    )
    assert [wake.tenant for wake in rival.ledger.refill(rival.tenant)] == [hands.tenant]
