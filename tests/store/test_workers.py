"""Worker processes: who is dead, who merely blinked, and what becomes of their steps."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg
import pytest

from agentq.engine import InFlight
from agentq.errors import StoreUnavailable
from agentq.heart import Heart
from agentq.store.ledger import Ledger
from agentq.store.pool import Store
from agentq.store.workers import Registration, Workers
from agentq.testing import Clock
from tests.support.hands import PIN, Hands, at_once
from tests.support.until import until


@pytest.fixture
def workers(store: Store, servers: Any) -> Workers:
    """The search for the dead, on a server that has been up for longer than the leases here."""
    up = "select clock_timestamp() - pg_postmaster_start_time() > interval '1.1 s'"
    with psycopg.connect(servers.admin_url) as connection:
        until(lambda: connection.execute(up).fetchone() == (True,))
    return Workers(store)


def look(workers: Workers) -> list[uuid.UUID]:
    """One look, with no pause wanted between two of them."""
    return workers.look_for_dead(lease_s=1.0, look_s=0.0)


def row(hands: Hands, worker: uuid.UUID) -> dict[str, Any]:
    [found] = hands.rows("select * from agentq.worker where worker_id = %s", worker)
    return found


def die(registration: Registration) -> None:
    """What Postgres sees of a SIGKILL: the connection is gone, and no word was said."""
    registration.disconnect()


def test_a_dead_process_is_found_at_the_second_look(hands: Hands, workers: Workers) -> None:
    """
    Its lock is free at two looks with no heartbeat between them, long before its lease is over.
    """
    registration = hands.registration(lease_s=3600)
    die(registration)

    assert registration.worker_id not in until_free(workers, hands, registration)
    assert registration.worker_id in look(workers)
    assert row(hands, registration.worker_id)["state"] == "dead"


def until_free(workers: Workers, hands: Hands, registration: Registration) -> list[uuid.UUID]:
    """Look until a look notices the missing lock: Postgres needs a moment to see that a socket is closed."""
    found: list[uuid.UUID] = []

    def noticed() -> bool:
        found.extend(look(workers))
        return row(hands, registration.worker_id)["missing_since"] is not None

    until(noticed, 5)
    return found


def test_two_looks_need_a_pause_between_them(hands: Hands, workers: Workers) -> None:
    """
    The relays of a fleet look often; only time without a sign counts, not the number of looks.
    """
    registration = hands.registration(lease_s=3600)
    die(registration)
    until_free(workers, hands, registration)
    for _ in range(5):
        assert registration.worker_id not in workers.look_for_dead(lease_s=1.0, look_s=60.0)
    assert registration.worker_id in look(workers)


def test_a_blinked_connection_is_no_death(hands: Hands, workers: Workers) -> None:
    """
    A process that lost its connection, and its lock with it, and then beats again, stays alive.
    """
    registration = hands.registration(lease_s=3600)
    die(registration)
    until_free(workers, hands, registration)

    assert registration.beat(3600) == "live"

    for _ in range(3):
        assert registration.worker_id not in look(workers)
    assert row(hands, registration.worker_id)["missing_since"] is None


def test_a_lost_connection_is_noticed_before_the_relay_looks_twice(
    hands: Hands, workers: Workers, admin: psycopg.Connection[Any]
) -> None:
    """
    The looks are closer together than the heartbeats, so the heart notices the loss itself, at its next tick.
    """
    heart = Heart(
        hands.store, in_flight=InFlight(), group="default", role="steps", release="0", serves=[], heartbeat_s=60.0,
        lease_s=3600.0,
    )  # fmt: skip
    heart.start(None)
    try:
        worker = heart.worker_id
        key = heart._registration._facts["lock_key"]
        with psycopg.connect(hands.store.url, autocommit=True) as killer:
            killed = "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and objid = %s::bigint"
            assert killer.execute(killed, (key & 0xFFFFFFFF,)).fetchone() == (True,)
        workers.look_for_dead(lease_s=1.0, look_s=60.0)
        until(heart._registration.holds_lock, 30, "the lock is ours again, long before a heartbeat is due")
        for _ in range(3):
            assert worker not in workers.look_for_dead(lease_s=1.0, look_s=0.0)
        assert row(hands, worker)["state"] == "live"
    finally:
        heart.stop()


def test_a_heartbeat_between_two_looks_outweighs_a_missing_lock(
    hands: Hands, workers: Workers, admin: psycopg.Connection[Any]
) -> None:
    """
    A lock that stays free while the heartbeats go on is no death either: the second look starts anew.
    """
    registration = hands.registration(lease_s=3600)
    die(registration)
    until_free(workers, hands, registration)
    for _ in range(3):
        admin.execute("update agentq.worker set seen_at = agentq.now() where worker_id = %s", (registration.worker_id,))
        assert registration.worker_id not in look(workers)


def test_a_living_process_whose_lease_is_over_is_dead(hands: Hands, workers: Workers) -> None:
    """
    The lock only hastens, the lease decides: a frozen process holds its lock and is dead all the same.
    """
    registration = hands.registration(lease_s=0.0)
    look(workers)
    assert registration.worker_id in look(workers)


def test_a_process_that_lives_is_left_alone(hands: Hands, workers: Workers) -> None:
    """
    Lock held, lease running: no look finds it.
    """
    registration = hands.registration(lease_s=3600)
    for _ in range(4):
        assert registration.worker_id not in look(workers)


def test_nobody_is_dead_while_postgres_has_just_started(
    hands: Hands, workers: Workers, admin: psycopg.Connection[Any]
) -> None:
    """
    A restart of Postgres frees every lock: who was not heard since has a lease's time to come back, and no more.
    """
    registration = hands.registration(lease_s=0.0)
    worker = registration.worker_id
    die(registration)
    before = "update agentq.worker set seen_at = pg_postmaster_start_time() - interval '1 s' where worker_id = %s"
    admin.execute(before, (worker,))
    for _ in range(4):
        assert worker not in workers.look_for_dead(lease_s=10_000_000.0, look_s=0.0)
    assert row(hands, worker)["state"] == "live"

    after = "update agentq.worker set seen_at = pg_postmaster_start_time() + interval '1 ms' where worker_id = %s"
    admin.execute(after, (worker,))
    workers.look_for_dead(lease_s=10_000_000.0, look_s=0.0)
    assert worker in workers.look_for_dead(lease_s=10_000_000.0, look_s=0.0)


def test_the_lease_is_measured_by_the_databases_clock(hands: Hands, workers: Workers, store: Store) -> None:
    """
    A minute later, seen by Postgres, a lease of half a minute is over.
    """
    registration = hands.registration(lease_s=30.0)
    mine = hands.worker
    later = Store(store.url, size=1)
    clock = Clock(later)
    try:
        clock.advance("31s")
        both = Workers(later)
        both.look_for_dead(lease_s=1.0, look_s=0.0)
        found = both.look_for_dead(lease_s=1.0, look_s=0.0)
    finally:
        later.close()
    assert registration.worker_id in found
    assert mine not in found


def test_a_process_taken_for_dead_beats_no_more(hands: Hands, admin: psycopg.Connection[Any]) -> None:
    """
    Its heartbeat finds no row, so that it knows: it must fence its steps and register anew.
    """
    registration = hands.registration()
    admin.execute(
        "update agentq.worker set state='dead', stopped_at=agentq.now() where worker_id=%s", (registration.worker_id,)
    )
    assert registration.beat(3600) is None


def test_a_registration_whose_answer_was_lost_is_repeated(hands: Hands) -> None:
    """
    The row may be there although the process never heard so; registering again finds it.
    """
    registration = hands.registration()
    registration._registered = False
    assert registration.beat(3600) == "live"


def test_a_half_open_connection_does_not_keep_its_process_from_beating(
    hands: Hands, admin: psycopg.Connection[Any]
) -> None:
    """
    After a network fault Postgres may hold the old connection, and its lock, for hours. The process must beat anyway.
    """
    registration = hands.registration()
    with psycopg.connect(hands.store.url, autocommit=True) as ghost:
        registration.disconnect()
        key = registration._facts["lock_key"]
        until(lambda: ghost.execute("select pg_try_advisory_lock(%s)", (key,)).fetchone() == (True,), 5)
        registration._store.connect_arguments["options"] += " -c lock_timeout=2s"
        try:
            assert registration.beat(3600) == "live"
        except StoreUnavailable:
            pytest.fail("the process waits for the lock of its own former connection, and will be taken for dead")
        finally:
            options = registration._store.connect_arguments["options"].replace(" -c lock_timeout=2s", "")
            registration._store.connect_arguments["options"] = options


def test_goodbye_is_no_death(hands: Hands, workers: Workers) -> None:
    """
    A process that ends on purpose is stopped, not dead; nobody counts a crash.
    """
    registration = hands.registration()
    registration.drain()
    assert row(hands, registration.worker_id)["state"] == "draining"
    assert registration.beat(3600) == "draining"
    registration.stop()
    look(workers)
    look(workers)
    assert row(hands, registration.worker_id)["state"] == "stopped"


def test_rows_of_yesterday_are_forgotten_unless_they_own_something(
    hands: Hands, workers: Workers, admin: psycopg.Connection[Any]
) -> None:
    """
    The worker table does not grow for ever, and no running step loses the row that explains it.
    """
    gone, owner = hands.register(), hands.register()
    ref = hands.start()
    hands.admit()
    hands.claim(ref, worker=owner)
    admin.execute(
        "update agentq.worker set state='dead', stopped_at=agentq.now() - interval '2 days' where worker_id = any(%s)",
        ([gone, owner],),
    )
    workers.forget()
    left = {found["worker_id"] for found in hands.rows("select worker_id from agentq.worker")}
    assert gone not in left
    assert owner in left


# ── whose end the kernel told ────────────────────────────────────────────────


def look_at(workers: Workers, *registrations: Registration, told_s: float = 0.0) -> list[uuid.UUID]:
    """One look at those of whose end word came so long ago."""
    return workers.look_at_ended({one.worker_id: told_s for one in registrations}, lease_s=1.0)


def until_let_go(hands: Hands, registration: Registration) -> None:
    """Wait until Postgres has seen that the socket is closed."""
    query = "select from pg_locks where locktype = 'advisory' and objid = %s::bigint::oid"
    key = registration._facts["lock_key"]
    until(lambda: not hands.rows(query, key & 0xFFFFFFFF), 5, "the lock is free")


def test_the_kernels_word_makes_one_look_enough(hands: Hands, workers: Workers) -> None:
    """
    Who is told to have ended and holds no lock is dead at the first look; who is not told, at the second as before.
    """
    told, untold = hands.registration(lease_s=3600), hands.registration(lease_s=3600)
    for registration in (told, untold):
        die(registration)
        until_let_go(hands, registration)

    assert look_at(workers, told) == [told.worker_id]
    found = row(hands, told.worker_id)
    assert (found["state"], found["stopped_at"] is None) == ("dead", False)
    assert row(hands, untold.worker_id)["state"] == "live"
    assert untold.worker_id not in look(workers)


def test_a_held_lock_outweighs_the_kernels_word(hands: Hands, workers: Workers) -> None:
    """
    However often it is looked at: whose connection lives is not dead, whatever ended.
    """
    registration = hands.registration(lease_s=3600)
    for _ in range(3):
        assert look_at(workers, registration) == []
    assert row(hands, registration.worker_id)["state"] == "live"
    assert registration.beat(3600) == "live"
    assert registration.holds_lock()


def test_a_heartbeat_since_outweighs_the_kernels_word(hands: Hands, workers: Workers) -> None:
    """
    A process that was heard after its end was told has not ended, though its connection was cut this moment.
    """
    registration = hands.registration(lease_s=3600)
    die(registration)
    until_let_go(hands, registration)
    assert look_at(workers, registration, told_s=60.0) == []
    assert look_at(workers, registration) == [registration.worker_id]


def test_a_word_does_not_hasten_what_postgres_made_unclear(
    hands: Hands, workers: Workers, admin: psycopg.Connection[Any]
) -> None:
    """
    A restart of Postgres freed every lock: who was not heard since is left to the lease, as without a word.
    """
    registration = hands.registration(lease_s=3600)
    worker = registration.worker_id
    die(registration)
    until_let_go(hands, registration)
    moved = "update agentq.worker set seen_at = pg_postmaster_start_time() + %s::interval where worker_id = %s"
    admin.execute(moved, ("-1 s", worker))
    assert workers.look_at_ended({worker: 0.0}, lease_s=10_000_000.0) == []
    admin.execute(moved, ("1 ms", worker))
    assert workers.look_at_ended({worker: 0.0}, lease_s=10_000_000.0) == [worker]


def test_a_word_about_who_said_goodbye_changes_nothing(hands: Hands, workers: Workers) -> None:
    """
    A process that ends on purpose ends too; its row says more.
    """
    registration = hands.registration()
    registration.stop()
    until_let_go(hands, registration)
    assert look_at(workers, registration) == []
    assert row(hands, registration.worker_id)["state"] == "stopped"


def test_of_many_who_heard_it_one_finds_the_dead(hands: Hands, workers: Workers) -> None:
    """
    All relays of a machine are told at the same moment; none waits for another, and one tells of the death.
    """
    registration = hands.registration(lease_s=3600)
    die(registration)
    until_let_go(hands, registration)
    found = at_once(*[lambda: look_at(workers, registration)] * 6)
    assert sorted(found, key=len) == [[]] * 5 + [[registration.worker_id]]


# ── steps of the dead ────────────────────────────────────────────────────────


def crash(hands: Hands, admin: psycopg.Connection[Any], ref: Any, *, quarantine: bool = False) -> str:
    """A worker claims the step and dies; what is decided for the step."""
    worker = hands.register()
    hands.claim(ref, worker=worker, quarantine=quarantine)
    admin.execute("update agentq.worker set state='dead', stopped_at=agentq.now() where worker_id=%s", (worker,))
    taken = [step for step in Ledger(hands.store).take_back(1000) if step.step_id == ref.step_id]
    assert len(taken) == 1
    return taken[0].fate


def test_again_then_suspect_then_buried(hands: Hands, admin: psycopg.Connection[Any]) -> None:
    """
    I9: the first death sends the step back to the pool, the second to quarantine, and only one there buries it.
    """
    ref = hands.start(attempts_max=1)
    hands.admit()

    assert crash(hands, admin, ref) == "again"
    assert (hands.entry(ref)["quarantine"], hands.entry(ref)["crashes"]) == (False, 1)
    assert crash(hands, admin, ref) == "suspect"
    assert (hands.entry(ref)["quarantine"], hands.entry(ref)["crashes"]) == (True, 2)
    assert crash(hands, admin, ref, quarantine=True) == "buried"

    entry = hands.entry(ref)
    assert (entry["state"], entry["crashes"], entry["failure"]["kind"]) == ("dead", 3, "worker_lost")
    assert hands.session(ref)["state"] == "failed"
    assert hands.session(ref)["failure"]["type"] == "WorkerLost"


def test_crashes_cost_no_attempts(hands: Hands, admin: psycopg.Connection[Any]) -> None:
    """
    A step whose machine died twice still has all of its attempts.
    """
    ref = hands.start(attempts_max=1)
    hands.admit()
    crash(hands, admin, ref)
    crash(hands, admin, ref)
    assert hands.claim(ref, quarantine=True).attempt == 1


def test_a_step_that_is_taken_back_is_sent_at_once(hands: Hands, admin: psycopg.Connection[Any]) -> None:
    """
    The one who takes it back publishes it; nobody waits for its message to be missed.
    """
    ref = hands.start()
    hands.admit()
    worker = hands.register()
    hands.claim(ref, worker=worker)
    admin.execute("update agentq.worker set state='dead', stopped_at=agentq.now() where worker_id=%s", (worker,))
    [taken] = [step for step in hands.ledger.take_back(1000) if step.step_id == ref.step_id]
    assert taken.wake is not None
    assert not taken.wake.quarantine
    assert [step for step in hands.ledger.take_back(1000) if step.step_id == ref.step_id] == []


def test_steps_of_the_living_are_not_taken_back(hands: Hands) -> None:
    """
    Neither of a live worker nor of one that is draining.
    """
    registration = hands.registration()
    ref = hands.start()
    hands.admit()
    hands.claim(ref, worker=registration.worker_id)
    registration.drain()
    assert [step for step in hands.ledger.take_back(1000) if step.step_id == ref.step_id] == []


def test_neighbours_of_a_poisonous_step_are_not_punished(hands: Hands, admin: psycopg.Connection[Any]) -> None:
    """
    I9: two hundred innocent steps on the same dead worker go back to the pool, not to quarantine.
    """
    refs = [hands.start() for _ in range(20)]
    hands.admit()
    worker = hands.register()
    for ref in refs:
        hands.claim(ref, worker=worker)
    admin.execute("update agentq.worker set state='dead', stopped_at=agentq.now() where worker_id=%s", (worker,))
    fates = {step.fate for step in hands.ledger.take_back(1000) if step.tenant == hands.tenant}
    assert fates == {"again"}


def test_a_buried_branch_is_a_failed_branch(hands: Hands, admin: psycopg.Connection[Any]) -> None:
    """
    Burying a branch's step closes the branch, so that its join does not wait for ever.
    """
    join, [arm, other] = hands.spawn(hands.begin(), 2, collect=True)
    hands.settle(hands.claim(other), "end")
    crash(hands, admin, arm)
    crash(hands, admin, arm)
    assert crash(hands, admin, arm, quarantine=True) == "buried"
    assert hands.entry(join)["state"] == "queued"
    assert PIN in hands.claim(join).agent + "@1"
