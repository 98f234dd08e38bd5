"""Concurrency keys: of the sessions with one key only one runs, and none is forgotten."""

from __future__ import annotations

import threading
import uuid
from functools import partial
from typing import Any

import psycopg
import pytest

from agentq.errors import SessionBusy
from agentq.step import StepRef
from agentq.store.recovery import By, Recovery
from agentq.verdicts import Failure
from tests.support.hands import Hands, at_once

KEY = "conversation-7"


def start(hands: Hands, on_conflict: str = "queue", **more: Any) -> tuple[uuid.UUID, bool, StepRef]:
    new = hands.new_session(concurrency_key=KEY, on_conflict=on_conflict, **more)
    [(session_id, created)] = hands.sessions.start([new], create_with=None)
    return session_id, created, StepRef(new.tenant, new.session_id, new.step_id)


def state(hands: Hands, ref: StepRef) -> tuple[str, str]:
    return hands.session(ref)["state"], hands.entry(ref)["state"]


def test_a_queued_session_waits_for_its_turn(hands: Hands) -> None:
    """
    First come, first served; the turn passes with the settlement that ends the one before.
    """
    refs = [start(hands)[2] for _ in range(3)]
    assert [state(hands, ref) for ref in refs] == [("running", "ready"), ("paused", "held"), ("paused", "held")]
    assert hands.session(refs[1])["hold"]["kind"] == "turn"
    for number, ref in enumerate(refs):
        hands.admit()
        hands.settle(hands.claim(ref), "end" if number else "fail")
        live = [hands.session(other)["state"] for other in refs[number + 1 :]]
        assert live == ["running", "paused"][: len(live)]


def test_other_keys_and_no_key_do_not_wait(hands: Hands) -> None:
    start(hands)
    other = hands.start(concurrency_key="conversation-8")
    plain = hands.start()
    assert state(hands, other) == state(hands, plain) == ("running", "ready")


def test_reject_starts_nothing(hands: Hands) -> None:
    """
    The error names the session that has the turn.
    """
    first = start(hands)[0]
    with pytest.raises(SessionBusy) as raised:
        start(hands, "reject")
    assert raised.value.session_id == str(first)
    assert len(hands.rows("select from agentq.session")) == 1


def test_merge_joins_the_newest(hands: Hands) -> None:
    """
    Nothing is started, and the caller gets the session that will have the last word.
    """
    start(hands)
    second = start(hands)[0]
    assert start(hands, "merge")[:2] == (second, False)
    assert len(hands.rows("select from agentq.session")) == 2


def test_replace_ends_all_before_it(hands: Hands) -> None:
    """
    The running one and those that wait; no turn passes to one of them on the way.
    """
    before = [start(hands)[2] for _ in range(3)]
    hands.admit()
    claim = hands.claim(before[0])
    latest = start(hands, "replace")[2]
    assert [hands.session(ref)["state"] for ref in before] == ["cancelled"] * 3
    assert state(hands, latest) == ("running", "ready")
    hands.settle(claim, "end")
    assert hands.session(before[0])["state"] == "cancelled"


@pytest.mark.parametrize("on_conflict", ["queue", "reject", "replace", "merge"])
def test_the_same_idempotency_key_is_the_same_session(hands: Hands, on_conflict: str) -> None:
    """
    I1: a start that is repeated does not conflict with itself.
    """
    first = start(hands, on_conflict, key="k")[:2]
    assert start(hands, on_conflict, key="k")[:2] == (first[0], False)
    assert hands.rows("select state from agentq.session") == [{"state": "running"}]


def test_of_many_starts_at_once_one_runs(hands: Hands) -> None:
    refs = [found[2] for found in at_once(*[lambda: start(hands)] * 12)]
    assert sorted(hands.session(ref)["state"] for ref in refs) == ["paused"] * 11 + ["running"]


def test_a_start_and_an_end_at_once_lose_no_turn(hands: Hands) -> None:
    """
    I7: whoever comes while the one before ends either waits and is called, or finds the turn free.
    """
    for _ in range(15):
        first = start(hands)[2]
        hands.admit()
        claim = hands.claim(first)
        _, (_, _, second) = at_once(lambda claim=claim: hands.settle(claim, "end"), lambda: start(hands))
        assert hands.session(second)["state"] == "running"
        hands.admit()
        hands.settle(hands.claim(second), "end")


def test_the_start_waits_for_an_end_that_has_not_committed(hands: Hands, admin: psycopg.Connection[Any]) -> None:
    first = start(hands)[2]
    done: list[StepRef] = []
    with hands.store.transaction(hands.tenant) as connection:
        connection.execute(
            "select agentq.end_session(%s, %s, 'cancelled', null, '{}', agentq.now())", (hands.tenant, first.session_id)
        )
        thread = threading.Thread(target=lambda: done.append(start(hands)[2]))
        thread.start()
        thread.join(0.3)
        assert not done
    thread.join(10)
    assert hands.session(done[0])["state"] == "running"


def test_a_start_waits_for_another_that_has_not_committed(hands: Hands) -> None:
    """
    Two starts of one key never both find the turn free.
    """
    done: list[StepRef] = []
    with hands.store.transaction(hands.tenant) as connection:
        hands.sessions.start([hands.new_session(concurrency_key=KEY)], create_with=None, on=connection)
        thread = threading.Thread(target=lambda: done.append(start(hands)[2]))
        thread.start()
        thread.join(0.3)
        assert not done
    thread.join(10)
    assert state(hands, done[0]) == ("paused", "held")


def test_a_cancelled_waiter_is_passed_over(hands: Hands) -> None:
    first, second, third = (start(hands)[2] for _ in range(3))
    hands.sessions.cancel(hands.tenant, second.session_id, Failure("cancelled", "SessionCancelled", "no"))
    hands.sessions.cancel(hands.tenant, first.session_id, Failure("cancelled", "SessionCancelled", "no"))
    assert state(hands, third) == ("running", "ready")


def test_a_turn_that_lies_idle_is_found(hands: Hands, admin: psycopg.Connection[Any]) -> None:
    """
    I7: the relay gives a turn on that nobody passed.
    """
    first, second = (start(hands)[2] for _ in range(2))
    assert hands.ledger.pass_turns(10) == 0
    admin.execute("delete from agentq.ledger_entry where session_id = %s", (first.session_id,))
    admin.execute("delete from agentq.session where session_id = %s", (first.session_id,))
    assert hands.ledger.pass_turns(10) >= 1
    assert state(hands, second) == ("running", "ready")


def test_one_that_is_brought_back_waits_for_its_turn(hands: Hands) -> None:
    """
    A replay or a redrive does not run beside the session that has the turn by now; it is next.
    """
    first, second, third = (start(hands)[2] for _ in range(3))
    hands.admit()
    hands.settle(hands.claim(first), "fail")
    assert hands.session(second)["state"] == "running"
    recovery, by = Recovery(hands.store), By("tester", "a test")
    recovery.reopen(hands.tenant, first.session_id, by, generation=0)
    assert hands.session(first)["state"] == "paused"
    assert hands.session(first)["hold"]["kind"] == "turn"
    steps = "select step_id, state from agentq.ledger_entry where session_id = %s and superseded is null"
    assert [row["state"] for row in hands.rows(steps, first.session_id)] == ["held"]
    # Nor by a resume, which is for pauses of people.
    assert recovery.resume(hands.tenant, first.session_id, by) == ("paused", False)
    hands.admit()
    hands.settle(hands.claim(second), "end")
    assert [hands.session(ref)["state"] for ref in (first, third)] == ["running", "paused"]
    [row] = hands.rows(steps, first.session_id)
    hands.admit()
    hands.settle(hands.claim(StepRef(hands.tenant, first.session_id, row["step_id"])), "end")
    assert hands.session(third)["state"] == "running"


def test_one_that_is_brought_back_while_nobody_has_the_turn_goes_on(hands: Hands) -> None:
    first = start(hands)[2]
    hands.admit()
    hands.settle(hands.claim(first), "fail")
    Recovery(hands.store).reopen(hands.tenant, first.session_id, By("tester", "a test"), generation=0)
    assert hands.session(first)["state"] == "running"
    assert state(hands, start(hands)[2]) == ("paused", "held")


def test_a_replay_and_a_start_at_once_share_no_turn(hands: Hands) -> None:
    """
    Both look for the turn under its lock.
    """
    for _ in range(10):
        first = start(hands, "replace")[2]
        hands.admit()
        hands.settle(hands.claim(first), "fail")
        reopen = partial(Recovery(hands.store).reopen, hands.tenant, first.session_id, By("t", "w"), generation=0)
        at_once(reopen, lambda: start(hands))
        live = hands.rows("select session_id from agentq.session where concurrency_key = %s and state = 'running'", KEY)
        assert len(live) == 1
