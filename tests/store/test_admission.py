"""Admission: the broker gets as much of a tenant's backlog as its cap allows, never more."""

from __future__ import annotations

import threading
from collections.abc import Callable

import psycopg
import pytest

from agentq.step import StepRef
from agentq.store.operators import Operators
from agentq.store.pool import Store
from agentq.store.recovery import By, Recovery
from agentq.verdicts import Failure, Wake
from tests.support.hands import Hands, at_once, step
from tests.support.until import until


def cap(admin: psycopg.Connection, hands: Hands, concurrency: int) -> None:
    admin.execute("update agentq.tenant set concurrency = %s where name = %s", (concurrency, hands.tenant))


def admitted(hands: Hands) -> int:
    return hands.rows("select count(*) as n from agentq.ledger_entry where state in ('queued', 'running')")[0]["n"]


def test_the_cap_is_exact(hands: Hands, admin: psycopg.Connection) -> None:
    """
    Sixteen admissions at once admit exactly the cap, and each step once.
    """
    cap(admin, hands, 7)
    for _ in range(20):
        hands.start()

    wakes = [wake for found in at_once(*[hands.admit] * 16) for wake in found]

    assert len({wake.step_id for wake in wakes}) == len(wakes) == 7
    assert hands.admit() == []


def test_two_admissions_never_share_a_slot(hands: Hands, admin: psycopg.Connection) -> None:
    """
    While one admission has not committed, another one of the same tenant waits, and then finds the slots taken.
    """
    cap(admin, hands, 3)
    for _ in range(8):
        hands.start()
    results: list[list[Wake]] = []
    second = threading.Thread(target=lambda: results.append(hands.admit()))
    waits = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
    with hands.store.transaction(hands.tenant) as connection:
        first = connection.execute("select agentq.admit(%s, 100)", (hands.tenant,)).fetchall()
        second.start()
        until(lambda: admin.execute(waits).fetchone() != (0,) or not second.is_alive(), 10)
    second.join(10)
    assert (len(first), results) == (3, [[]])


def test_the_cap_holds_while_steps_end(hands: Hands, admin: psycopg.Connection) -> None:
    """
    Admissions and settlements race, and at no moment is more than the cap admitted; nothing is forgotten.
    """
    cap(admin, hands, 5)
    sessions = 60
    hands.sessions.start([hands.new_session() for _ in range(sessions)], create_with=None)
    todo = [*hands.admit()]
    lock, over = threading.Lock(), []

    def work() -> int:
        done = 0
        while done_in_all() < sessions:
            with lock:
                wake = todo.pop() if todo else None
            if wake is None:
                more = hands.admit()
            else:
                more = list(hands.settle(hands.claim(hands.ref(wake)), "end").wakes)
                done += 1
            with lock:
                todo.extend(more)
            if (now := admitted(hands)) > 5:
                over.append(now)
        return done

    def done_in_all() -> int:
        return hands.rows("select count(*) as n from agentq.session where state = 'done'")[0]["n"]

    done = at_once(*[work] * 8)

    assert over == []
    assert sum(done) == sessions


def test_a_step_that_ends_hands_its_slot_on(hands: Hands, admin: psycopg.Connection) -> None:
    """
    The settlement itself admits the tenant's next step, so no polling stands in the hot path.
    """
    cap(admin, hands, 1)
    first, second = hands.start(), hands.start()
    hands.admit()

    settled = hands.settle(hands.claim(first), "end")

    assert [wake.step_id for wake in settled.wakes] == [second.step_id]
    assert hands.entry(second)["state"] == "queued"


def test_a_retry_hands_its_slot_on(hands: Hands, admin: psycopg.Connection) -> None:
    """
    A step in its backoff holds no slot.
    """
    cap(admin, hands, 1)
    first, second = hands.start(), hands.start()
    hands.admit()
    settled = hands.settle(hands.claim(first), "retry", delay_s=60.0)
    assert [wake.step_id for wake in settled.wakes] == [second.step_id]


def test_a_chain_keeps_its_slot(hands: Hands, admin: psycopg.Connection) -> None:
    """
    A step that follows takes over the slot of the one before; a waiting session does not slip between.
    """
    cap(admin, hands, 1)
    first, waiting = hands.start(), hands.start()
    hands.admit()
    follower = step("second")
    settled = hands.follow(hands.claim(first), follower)
    assert [wake.step_id for wake in settled.wakes] == [follower.step_id]
    assert hands.entry(waiting)["state"] == "ready"


def test_a_lowered_cap_sheds_and_recovers(hands: Hands, admin: psycopg.Connection, store: Store) -> None:
    """
    Above a lowered cap, ending steps hand nothing on until the tenant is below it; then all is as before.
    """
    cap(admin, hands, 4)
    refs = [hands.start() for _ in range(8)]
    hands.admit()
    running = [hands.claim(ref) for ref in refs[:4]]
    Operators(store).change_tenant(hands.tenant, concurrency=2, operator="test", reason="less")

    assert hands.settle(running[0], "end").wakes == ()
    assert hands.settle(running[1], "end").wakes == ()
    assert admitted(hands) == 2
    assert hands.admit() == []
    [wake] = hands.settle(running[2], "end").wakes

    assert admitted(hands) == 2
    assert hands.entry(hands.ref(wake))["state"] == "queued"


def test_a_chain_above_a_lowered_cap_waits_its_turn(hands: Hands, admin: psycopg.Connection, store: Store) -> None:
    """
    A tenant that is shedding does not keep its surplus alive by chaining.
    """
    cap(admin, hands, 2)
    refs = [hands.start(), hands.start()]
    hands.admit()
    running = [hands.claim(ref) for ref in refs]
    Operators(store).change_tenant(hands.tenant, concurrency=1, operator="test", reason="less")

    settled = hands.follow(running[0], step("second"))

    assert settled.wakes == ()
    assert hands.admit() == []
    assert len(hands.settle(running[1], "end").wakes) == 1


def test_a_paused_tenant_admits_nothing(hands: Hands, admin: psycopg.Connection) -> None:
    """
    Its running steps end, and neither they nor the relay admit more.
    """
    first, _ = hands.start(), hands.start()
    hands.admit(1)
    claim = hands.claim(first)
    admin.execute("update agentq.tenant set state = 'paused' where name = %s", (hands.tenant,))
    assert hands.follow(claim, step("second")).wakes == ()
    assert hands.admit() == []
    assert hands.tenant not in hands.ledger.backlogged()


def test_a_draining_tenant_finishes_what_it_has(hands: Hands, admin: psycopg.Connection) -> None:
    """
    I7: draining refuses new sessions; those it has go on to their end.
    """
    first, second = hands.start(), hands.start()
    hands.admit(1)
    claim = hands.claim(first)
    admin.execute("update agentq.tenant set state = 'draining' where name = %s", (hands.tenant,))

    settled = hands.follow(claim, step("second"))

    assert len(settled.wakes) == 1
    assert [wake.step_id for wake in hands.admit()] == [second.step_id]


def test_priority_first_then_age(hands: Hands, admin: psycopg.Connection) -> None:
    """
    Lower numbers go first; within one priority, the step that is due longest.
    """
    cap(admin, hands, 1)
    low, old, young, first = (hands.start(priority=p) for p in (9, 5, 5, 0))
    admin.execute("update agentq.ledger_entry set due_at = due_at - interval '1 s' where step_id = %s", (old.step_id,))
    order = []
    [wake] = hands.admit()
    while True:
        order.append(wake.step_id)
        wakes = hands.settle(hands.claim(hands.ref(wake)), "end").wakes
        if not wakes:
            break
        [wake] = wakes
    assert order == [first.step_id, old.step_id, young.step_id, low.step_id]


def test_only_where_there_is_something_to_admit_is_it_tried(hands: Hands, admin: psycopg.Connection) -> None:
    """
    Many tenants that only sleep, or hold all they may, cost the relay one query and no round trip each.
    """
    later = "update agentq.ledger_entry set due_at = due_at + interval '1 h' where step_id = %s"
    asleep = hands.start()
    admin.execute(later, (asleep.step_id,))
    assert hands.ledger.backlogged()[hands.tenant] is False
    cap(admin, hands, 1)
    hands.start()
    assert hands.ledger.backlogged()[hands.tenant] is True
    hands.admit()
    low = hands.start(priority=2)
    assert hands.ledger.backlogged()[hands.tenant] is False, "there is no room"
    admin.execute("update agentq.ledger_entry set due_at = due_at - interval '61 s' where step_id = %s", (low.step_id,))
    assert hands.ledger.backlogged()[hands.tenant] is True, "it is to go before all that comes later"
    assert hands.admit() == []
    assert hands.ledger.backlogged()[hands.tenant] is False
    admin.execute("update agentq.tenant set shedding = true where name = %s", (hands.tenant,))
    assert hands.ledger.backlogged()[hands.tenant] is True


def test_every_tenant_with_a_backlog_is_found(hands: Hands, other_tenant: str, store: Store) -> None:
    """
    I8: the flood of one tenant hides no other.
    """
    other = Hands(store, other_tenant)
    hands.sessions.start([hands.new_session() for _ in range(300)], create_with=None)
    other.start()
    try:
        assert {hands.tenant, other_tenant} <= set(hands.ledger.backlogged())
        hands.admit()
        assert hands.tenant not in hands.ledger.backlogged()
    finally:
        other.close()


def cancel(hands: Hands, child: StepRef, _: psycopg.Connection) -> None:
    hands.sessions.cancel(hands.tenant, child.session_id, Failure("cancelled", "X", "no"))


def kill(hands: Hands, child: StepRef, _: psycopg.Connection) -> None:
    Recovery(hands.store).kill(hands.tenant, child.session_id, By("jane", "it runs away"))


def expire(hands: Hands, child: StepRef, admin: psycopg.Connection) -> None:
    late = "update agentq.session set deadline_at = agentq.now() - interval '1 s' where session_id = %s"
    admin.execute(late, (child.session_id,))
    hands.ledger.expire_sessions(100)


@pytest.mark.parametrize("end", [cancel, kill, expire])
def test_a_child_that_ends_unrun_does_not_push_its_parent_past_the_cap(
    hands: Hands, admin: psycopg.Connection, end: Callable[[Hands, StepRef, psycopg.Connection], None]
) -> None:
    """
    Only a step that leaves a slot may hand one on: a session that is ended while it waits leaves none.
    """
    cap(admin, hands, 1)
    claim = hands.begin()
    busy = hands.start()
    join = step("join", fan=1, collect=True)
    child = hands.child(join, 0)
    hands.follow(claim, join, children=[child])
    hands.claim(busy)
    assert admitted(hands) == 1

    end(hands, StepRef(hands.tenant, child.session_id, child.step_id), admin)

    assert admitted(hands) == 1
    assert hands.entry(hands.ref(join, claim.ref.session_id))["state"] in ("ready", "queued")


@pytest.mark.parametrize("closing", ["end", "retry", "dead", "release"])
def test_no_slot_is_lost(hands: Hands, admin: psycopg.Connection, closing: str) -> None:
    """
    However a step ends, the tenant is as full afterwards as before, while it has a backlog.
    """
    cap(admin, hands, 2)
    refs = [hands.start() for _ in range(6)]
    hands.admit()
    hands.settle(hands.claim(refs[0]), closing, **({"delay_s": 60.0} if closing == "retry" else {}))
    assert admitted(hands) == 2


def test_a_low_priority_does_not_starve(hands: Hands, admin: psycopg.Connection) -> None:
    """
    I7: what has waited half a minute for each step of its priority goes before what came later.
    """
    cap(admin, hands, 1)
    old, young = hands.start(priority=2), hands.start(priority=2)
    age = "update agentq.ledger_entry set due_at = due_at - interval '61 s' where step_id = %s"
    admin.execute(age, (old.step_id,))
    urgent = hands.start(priority=0)
    order = []
    [wake] = hands.admit()
    while True:
        order.append(wake.step_id)
        if not (wakes := hands.settle(hands.claim(hands.ref(wake)), "end").wakes):
            break
        [wake] = wakes
    assert order == [old.step_id, urgent.step_id, young.step_id]


def test_a_batch_gives_way_between_its_steps(hands: Hands, admin: psycopg.Connection) -> None:
    """
    A long chain of low priority does not keep what is urgent waiting for its end, but for that of one step; and
    what is not more urgent does not push it aside.
    """
    cap(admin, hands, 1)
    batch = hands.start(priority=5)
    hands.admit()
    alike = hands.start(priority=5)
    second, third = step("second"), step("third")
    assert [wake.step_id for wake in hands.follow(hands.claim(batch), second).wakes] == [second.step_id]
    urgent = hands.start(priority=0)
    [wake] = hands.follow(hands.claim(StepRef(hands.tenant, batch.session_id, second.step_id)), third).wakes
    assert wake.step_id == urgent.step_id
    assert admitted(hands) == 1
    [wake] = hands.settle(hands.claim(urgent), "end").wakes
    assert wake.step_id in (third.step_id, alike.step_id)


def test_a_batch_that_has_waited_long_gives_way_no_more(hands: Hands, admin: psycopg.Connection) -> None:
    """
    I7: urgent work without end does not starve it: once it has aged, it keeps its slot to its own end.
    """
    cap(admin, hands, 1)
    batch, urgent = hands.start(priority=1), hands.start(priority=0)
    age = "update agentq.ledger_entry set due_at = due_at - interval '31 s' where step_id = %s"
    admin.execute(age, (batch.step_id,))
    assert [wake.step_id for wake in hands.admit()] == [batch.step_id]
    second = step("second")
    assert [wake.step_id for wake in hands.follow(hands.claim(batch), second).wakes] == [second.step_id]
    assert hands.entry(urgent)["state"] == "ready"
