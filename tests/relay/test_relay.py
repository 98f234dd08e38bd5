"""The relay: what is missing is sent again, what was lost is taken back, what is over is ended."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import psycopg
import pytest

from agentq.errors import BrokerUnavailable, StoreUnavailable
from agentq.relay.relay import _ADMIT_AT_ONCE, Chore, Relay
from agentq.store.approvals import Approvals
from agentq.store.placement import Placement
from agentq.store.workers import Workers
from agentq.verdicts import Wake
from tests.conftest import new_tenant
from tests.support.hands import Hands, step


class Broker:
    """A publisher that keeps what it is given, and loses what it is told to lose."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.queues: dict[str, list[Wake]] = {}
        self.down = False

    def send(self, wakes: Iterable[Wake]) -> None:
        for wake in wakes:
            if wake.tenant == self.tenant and not self.down:
                name = "agentq.quarantine" if wake.quarantine else f"agentq.t.{wake.tenant}"
                self.queues.setdefault(name, []).append(wake)

    def depth(self, name: str) -> int:
        if self.down:
            raise BrokerUnavailable("down")
        return len(self.queues.get(name, []))

    def declare(self, name: str) -> None:
        """There is nothing to declare here."""

    def purge(self, name: str) -> None:
        self.queues.pop(name, None)

    remove = purge

    @property
    def mine(self) -> list[Wake]:
        return self.queues.setdefault(f"agentq.t.{self.tenant}", [])


@pytest.fixture
def broker(tenant: str) -> Broker:
    return Broker(tenant)


@pytest.fixture
def relay(hands: Hands, broker: Broker) -> Relay:
    return Relay(
        ledger=hands.ledger,
        workers=Workers(hands.store),
        approvals=Approvals(hands.store),
        publisher=broker,  # type: ignore[arg-type]
        follow_tenants=lambda names: None,
        interval_s=0.1,
        batch=500,
        lease_s=1.0,
        look_s=0.0,
        stale_s=10.0,
        placement=Placement(hands.store, own_max=100_000),
    )


def age(admin: psycopg.Connection[Any], hands: Hands, seconds: float = 60.0) -> None:
    """Let time pass since everything was sent."""
    admin.execute(
        "update agentq.ledger_entry set queued_at = queued_at - make_interval(secs => %s)"
        " where tenant = %s and state = 'queued'",
        (seconds, hands.tenant),
    )


def test_what_nobody_sent_is_admitted_and_sent(hands: Hands, relay: Relay, broker: Broker) -> None:
    """
    A producer that died after its commit, or that joined somebody's transaction, leaves the sending to the relay.
    """
    refs = {hands.start().step_id for _ in range(3)}
    relay.admit_due()
    assert {wake.step_id for wake in broker.mine} == refs
    relay.admit_due()
    assert len(broker.mine) == 3


def test_however_many_tenants_are_due_all_are_admitted(
    hands: Hands, relay: Relay, admin: psycopg.Connection[Any]
) -> None:
    """
    They are taken in batches; the last one too.
    """
    names = [new_tenant(admin) for _ in range(2 * _ADMIT_AT_ONCE + 1)]
    for name in names:
        hands.sessions.start([hands.new_session(tenant=name)], create_with=None)
    relay.admit_due()
    left = "select count(*) from agentq.ledger_entry where tenant = any (%s) and state = 'ready'"
    assert admin.execute(left, (names,)).fetchone() == (0,)


def test_a_chore_that_fails_keeps_no_other_from_its_work(
    hands: Hands, relay: Relay, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Whatever is wrong with approvals, or with the broker in one of them, lost steps are still woken.
    """
    done: list[str] = []

    def fail() -> None:
        done.append("failed")
        raise RuntimeError("this one never works")

    def no_broker() -> None:
        raise BrokerUnavailable("down")

    def no_postgres() -> None:
        raise StoreUnavailable("down")

    relay._urgent = tuple(
        Chore(name, run, every_s)
        for name, run, every_s in (
            ("broken", fail, 3600.0),
            ("unreachable", no_broker, 0.0),
            ("sound", lambda: done.append("sound"), 0.0),
            ("without a store", no_postgres, 0.0),
            ("hopeless", lambda: done.append("hopeless"), 0.0),
        )
    )
    relay.round()
    relay.round()
    assert done == ["failed", "sound", "sound"]
    assert "a chore of the relay failed (broken)" in caplog.text
    assert "the relay waits for Postgres" in caplog.text


def test_what_takes_long_keeps_no_step_waiting(hands: Hands, relay: Relay) -> None:
    """
    Watching, telling and tidying up have a thread of their own; one that hangs shows in the relay's age.
    """
    free, turns = threading.Event(), threading.Semaphore(0)
    relay._patient = (Chore("endless", lambda: free.wait(60), 0.0),)
    relay._urgent = (Chore("admission", turns.release, 0.0),)
    relay.start()
    try:
        assert all(turns.acquire(timeout=10) for _ in range(5))
        assert relay.round_age_s() > 0.2
    finally:
        free.set()
        relay.stop()
    assert not any(thread.is_alive() for thread in relay._threads)


def test_only_as_many_as_are_missing_are_sent_again(
    hands: Hands, relay: Relay, broker: Broker, admin: psycopg.Connection[Any]
) -> None:
    """
    Ten steps are queued, four messages are lost: four are sent again, and a queue that is merely slow gets none.
    """
    for _ in range(10):
        hands.start()
    relay.admit_due()
    age(admin, hands)
    relay.find_missing()
    assert len(broker.mine) == 10

    del broker.mine[:4]
    relay.find_missing()
    assert len(broker.mine) == 10
    relay.find_missing()
    assert len(broker.mine) == 10


def test_a_wiped_broker_is_filled_again(
    hands: Hands, relay: Relay, broker: Broker, admin: psycopg.Connection[Any]
) -> None:
    """
    I4: after a FLUSHALL every queued step is sent again, and nothing that is finished.
    """
    done = hands.start()
    relay.admit_due()
    hands.settle(hands.claim(done), "end")
    refs = {hands.start().step_id for _ in range(5)}
    relay.admit_due()
    broker.queues.clear()
    age(admin, hands)
    relay.find_missing()
    assert {wake.step_id for wake in broker.mine} == refs


def test_young_messages_are_not_missed(hands: Hands, relay: Relay, broker: Broker) -> None:
    """
    A message on its way is not missing yet.
    """
    hands.start()
    relay.admit_due()
    broker.queues.clear()
    relay.find_missing()
    assert broker.mine == []


def test_a_broker_that_is_down_costs_only_time(
    hands: Hands, relay: Relay, broker: Broker, admin: psycopg.Connection[Any]
) -> None:
    """
    What could not be sent stays queued in the ledger, and is sent once the broker is back.
    """
    ref = hands.start()
    broker.down = True
    relay.admit_due()
    age(admin, hands)
    with pytest.raises(BrokerUnavailable):
        relay.find_missing()
    broker.down = False
    age(admin, hands, 600)
    relay.find_missing()
    assert [wake.step_id for wake in broker.mine] == [ref.step_id]


def test_suspects_are_missed_in_quarantine(
    hands: Hands, relay: Relay, broker: Broker, admin: psycopg.Connection[Any]
) -> None:
    """
    A suspect's message is looked for, and sent again, in its own queue.
    """
    ref = hands.start()
    hands.admit()
    admin.execute("update agentq.ledger_entry set quarantine = true where step_id = %s", (ref.step_id,))
    age(admin, hands)
    relay.find_missing()
    assert broker.mine == []
    assert [wake.step_id for wake in broker.queues["agentq.quarantine"]] == [ref.step_id]


def test_a_dead_workers_steps_are_sent_again(
    hands: Hands, relay: Relay, broker: Broker, admin: psycopg.Connection[Any]
) -> None:
    """
    Found, taken back and published within one round.
    """
    ref = hands.start()
    hands.admit()
    worker = hands.register()
    hands.claim(ref, worker=worker)
    admin.execute("update agentq.worker set state='dead', stopped_at=agentq.now() where worker_id=%s", (worker,))
    relay.take_back_lost()
    assert [wake.step_id for wake in broker.mine] == [ref.step_id]
    assert hands.claim(ref).attempt == 1


def test_a_sessions_deadline_is_kept_without_any_worker(
    hands: Hands, relay: Relay, admin: psycopg.Connection[Any]
) -> None:
    """
    I7: a session that nobody serves ends at its deadline all the same.
    """
    ref = hands.start(deadline_s=0.0)
    relay.end_overdue()
    session = hands.session(ref)
    assert (session["state"], session["failure"]["kind"]) == ("failed", "deadline")
    assert hands.entry(ref)["state"] == "cancelled"


def test_a_child_past_its_deadline_wakes_its_parent(hands: Hands, relay: Relay, broker: Broker) -> None:
    """
    A parent that collects goes on with the child's failure.
    """
    claim = hands.begin()
    join = step("join", fan=1, collect=True)
    child = hands.child(join, 0)
    hands.follow(claim, join, children=[child])
    hands.rows(
        "update agentq.session set deadline_at = agentq.now() where session_id = %s returning 1", child.session_id
    )
    relay.end_overdue()
    relay.admit_due()
    assert join.step_id in {wake.step_id for wake in broker.mine}


def test_a_paused_tenant_is_neither_admitted_nor_listened_to(
    hands: Hands, relay: Relay, broker: Broker, admin: psycopg.Connection[Any]
) -> None:
    """
    Its queue is left out of what workers follow; an active one's is in.
    """
    hands.start()
    places = Placement(hands.store, own_max=100_000)
    queue = places.queues_of([hands.tenant])[hands.tenant]
    assert queue in places.followed("default")
    admin.execute("update agentq.tenant set state = 'paused' where name = %s", (hands.tenant,))
    assert queue not in places.followed("default")
    relay.admit_due()
    assert broker.mine == []


def test_a_round_does_everything_and_may_be_repeated(hands: Hands, relay: Relay, broker: Broker) -> None:
    """
    A second round finds nothing left to do.
    """
    hands.start()
    relay.round()
    before = hands.everything()
    relay.round()
    assert hands.everything() == before
    assert len(broker.mine) == 1


def test_memories_past_their_time_lose_their_content(
    hands: Hands, relay: Relay, admin: psycopg.Connection[Any]
) -> None:
    """
    One of the relay's rounds takes what nobody can read any more.
    """
    from agentq.agents.memory import Remembering
    from agentq.store.memory import Memories

    made = Remembering(Memories(hands.store))
    for key, ttl in (("over", "1h"), ("stays", None)):
        made.memories.put(hands.tenant, made.write("shop", key, "tea", ttl=ttl), by="ada")
    admin.execute("update agentq.memory set expires_at = now() where tenant = %s and key = 'over'", (hands.tenant,))
    relay.round()
    kept = hands.rows("select key, value from agentq.memory order by key")
    assert [(row["key"], row["value"] is None) for row in kept] == [("over", True), ("stays", False)]


def test_retention_goes_on_while_there_is_time(
    hands: Hands, relay: Relay, admin: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Several small batches in a round, so that a busy fleet's sessions do not outgrow their removal; and one at least.
    """
    for _ in range(6):
        hands.settle(hands.begin(), "end")
    admin.execute(
        "update agentq.session set created_at = created_at - interval '9 d', ended_at = ended_at - interval '9 d'"
        " where tenant = %s",
        (hands.tenant,),
    )
    admin.execute("update agentq.tenant set retention_days = 8 where name = %s", (hands.tenant,))
    monkeypatch.setattr("agentq.relay.relay._REMOVE_MAX", 2)
    monkeypatch.setattr("agentq.relay.relay._REMOVE_S", 0.0)
    relay.remove_expired()
    assert len(hands.rows("select session_id from agentq.session")) == 4
    monkeypatch.setattr("agentq.relay.relay._REMOVE_S", 60.0)
    relay.remove_expired()
    assert hands.rows("select session_id from agentq.session") == []
