"""Dead letters in the database: buried with the verdict, one for one death."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg
import pytest

from agentq.step import StepRef
from agentq.store.effects import Effects
from agentq.verdicts import Extras, Failure, Usage
from tests.support.hands import Hands, step

NO_FUNDS = Failure("permanent", "CardDeclined", "card 4242 of cus_93 has no funds", where="pay.py:12 charge")


def letters(hands: Hands) -> list[dict[str, Any]]:
    return hands.rows("select * from agentq.dead_letter order by died_at")


def letter(hands: Hands) -> dict[str, Any]:
    [row] = letters(hands)
    return row


def lose_worker(hands: Hands, ref: StepRef, times: int) -> None:
    """The step's worker dies that often, each time a new one."""
    for time in range(times):
        doomed = hands.registration()
        hands.claim(ref, worker=doomed.worker_id, quarantine=time >= 2)
        doomed.stop()
        taken = [taken for taken in hands.ledger.take_back(1000) if taken.step_id == ref.step_id]
        assert len(taken) == 1


def test_a_dead_verdict_leaves_a_letter(hands: Hands) -> None:
    """
    With the class, the cause, each attempt, the checkpoint it began from, and what the session has cost.
    """
    first = hands.begin()
    follower = step("pay")
    usage = Extras(usage=Usage(tokens_in=5, tokens_out=1, cost_micros=700))
    hands.settle(first, "next", steps=(follower,), extras=usage, state_from=first.ref.step_id)
    claim = hands.claim(hands.ref(follower, first.ref.session_id))
    hands.settle(claim, "retry", failure=Failure("transient", "ReadTimeout", "no answer"))
    hands.admit()
    hands.settle(hands.claim(claim.ref), "dead", failure=NO_FUNDS)
    found = letter(hands)
    assert (found["session_id"], found["step_id"], found["step"], found["seq"]) == (*_ids(claim.ref), "pay", 1)
    assert (found["agent"], found["agent_version"], found["generation"]) == ("robot", 1, 0)
    assert (found["class"], found["state"], found["announced"]) == ("permanent", "open", False)
    assert found["cause"] == NO_FUNDS.cause("robot", "pay").fingerprint
    assert found["cause_text"] == "CardDeclined in robot.pay: card <id> of <id> has no funds"
    assert [(one["kind"], one["attempt"]) for one in found["attempts"]] == [("transient", 1), ("permanent", 2)]
    assert all(one["at"] for one in found["attempts"])
    assert found["failure"]["message"] == NO_FUNDS.message
    assert (found["cost_micros"], found["state_from"]) == (700, first.ref.step_id)
    assert hands.session(claim.ref)["failure"]["cause"] == found["cause"]


def test_a_letter_counts_the_effects_that_are_not_settled(hands: Hands) -> None:
    claim = hands.begin()
    effects = Effects(hands.store)
    for key, state in (("a", "done"), ("b", "unknown"), ("c", None), ("d", "unknown")):
        effects.claim(claim, key, name="pay", args_hash=b"h", durable=False)
        if state:
            failure = NO_FUNDS if state == "unknown" else None
            effects.settle(claim, key, state, result=b"1" if state == "done" else None, failure=failure)
    hands.settle(claim, "dead", failure=NO_FUNDS)
    assert (letter(hands)["effects_pending"], letter(hands)["effects_unknown"]) == (1, 2)


def test_nothing_else_leaves_a_letter(hands: Hands) -> None:
    """
    A step that decides to fail has worked; a retry is not over; a cancelled session is nobody's matter.
    """
    hands.settle(hands.begin(), "fail")
    hands.settle(hands.begin(), "retry", failure=NO_FUNDS)
    hands.settle(hands.begin(), "end")
    late = hands.begin()
    hands.sessions.cancel(hands.tenant, late.ref.session_id, Failure("cancelled", "SessionCancelled", "enough"))
    hands.settle(late, "dead", failure=NO_FUNDS)
    assert letters(hands) == []


def test_the_letter_goes_with_the_verdict_or_not_at_all(hands: Hands, admin: psycopg.Connection[Any]) -> None:
    """
    I2: when the letter cannot be written, the step is not dead either.
    """
    claim = hands.begin()
    before = hands.everything()
    # The one death has a letter already: of a session that is told apart by its generation alone.
    admin.execute("alter table agentq.dead_letter add constraint nothing check (cause_text <> 'X in p: y') not valid")
    try:
        with pytest.raises(psycopg.errors.CheckViolation):
            hands.settle(claim, "dead", failure=Failure("permanent", "X", "y", place="p"))
    finally:
        admin.execute("alter table agentq.dead_letter drop constraint nothing")
    assert hands.everything() == before


def test_a_step_that_kills_its_workers_leaves_a_letter(hands: Hands) -> None:
    """
    I9: buried by the relay, and no worker reports it; the three deaths are told, and the cause is the step's.
    """
    ref = hands.start()
    hands.admit()
    lose_worker(hands, ref, 3)
    found = letter(hands)
    assert (found["class"], found["crashes"], found["state"]) == ("worker_lost", 3, "open")
    assert [one["type"] for one in found["attempts"]] == ["WorkerLost"] * 3
    assert found["cause_text"] == "WorkerLost in robot.first"
    assert len(found["cause"]) == len(NO_FUNDS.cause("a", "b").fingerprint)


def test_the_list_of_attempts_is_bounded(hands: Hands) -> None:
    """
    The last twenty are kept, whatever a step's retries; long messages are cut there.
    """
    claim = hands.begin(attempts_max=100)
    for _ in range(24):
        hands.settle(claim, "retry", failure=Failure("transient", "X", "y" * 5000))
        hands.admit()
        claim = hands.claim(claim.ref)
    hands.settle(claim, "dead", failure=NO_FUNDS)
    attempts = letter(hands)["attempts"]
    assert [one["attempt"] for one in attempts] == list(range(6, 26))
    assert len(attempts[0]["message"]) == 300


def test_a_failed_branch_that_its_join_takes_needs_nobody(hands: Hands) -> None:
    """
    The session goes on, so there is nothing to bring back; without `collect` the session has failed.
    """
    for collect, state in ((True, "resolved"), (False, "open")):
        claim = hands.begin()
        _, [arm, _] = hands.spawn(claim, 2, collect=collect)
        hands.settle(hands.claim(arm), "dead", failure=NO_FUNDS)
        assert letters(hands)[-1]["state"] == state, collect


def test_letters_of_other_tenants_are_not_there(hands: Hands, other_tenant: str) -> None:
    hands.settle(hands.begin(), "dead")
    with hands.store.transaction(other_tenant) as connection:
        assert connection.execute("select 1 from agentq.dead_letter").fetchall() == []


def _ids(ref: StepRef) -> tuple[uuid.UUID, uuid.UUID]:
    return ref.session_id, ref.step_id
