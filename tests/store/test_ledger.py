"""The ledger: who may work a step, and what became of it."""

from __future__ import annotations

import threading
import uuid

import psycopg
import pytest

from agentq.errors import FenceLost
from agentq.step import StepRef, new_id
from agentq.store.ledger import SQL
from agentq.store.pool import run
from agentq.verdicts import Extras, Failure, Granted, NotGranted, Usage, Wake
from tests.support.hands import PIN, Hands, at_once, step


def refusal(hands: Hands, ref: StepRef, **more: object) -> str:
    """Why a claim is refused."""
    answer = hands.try_claim(ref, **more)
    assert isinstance(answer, NotGranted), answer
    return answer.reason


# ── claims ───────────────────────────────────────────────────────────────────


def test_one_of_many_claims_is_granted(hands: Hands) -> None:
    """
    However often a message is delivered, one delivery gets the step and the others learn that it runs.
    """
    ref = hands.start()
    hands.admit()

    answers = at_once(*[lambda: hands.try_claim(ref)] * 20)

    granted = [answer for answer in answers if isinstance(answer, Granted)]
    assert len(granted) == 1
    assert {answer.reason for answer in answers if isinstance(answer, NotGranted)} == {"running"}
    assert (granted[0].fence, granted[0].attempt) == (1, 1)


def test_a_claim_says_what_there_is_to_do(hands: Hands) -> None:
    """
    A granted claim carries the state, the limits and the names, so that no second question is needed.
    """
    claim = hands.begin(input=b'{"n":7}', timeout_s=9.0, attempts_max=4)

    assert (claim.name, claim.agent, claim.agent_version, claim.timeout_s) == ("first", "robot", 1, 9.0)
    assert (claim.input, claim.states, claim.attempts_max, claim.seq) == (b'{"n":7}', None, 4, 0)
    assert claim.remaining_s is None


def test_a_step_that_does_not_exist_is_missing(hands: Hands) -> None:
    """
    A forged or very old message finds nothing.
    """
    assert refusal(hands, StepRef(hands.tenant, new_id(), new_id())) == "missing"


def test_another_tenants_step_is_missing(hands: Hands, other_tenant: str) -> None:
    """
    I8: ids of another tenant's step, under one's own name, open nothing.
    """
    ref = hands.start()
    hands.admit()
    assert refusal(hands, StepRef(other_tenant, ref.session_id, ref.step_id)) == "missing"
    assert hands.entry(ref)["state"] == "queued"


def test_a_repeat_of_a_finished_step_is_dropped(hands: Hands) -> None:
    """
    A duplicate that arrives after the end changes nothing.
    """
    claim = hands.begin()
    hands.settle(claim, "end")
    before = hands.everything()
    assert refusal(hands, claim.ref) == "settled"
    assert hands.everything() == before


def test_a_step_that_was_not_admitted_is_not_due(hands: Hands) -> None:
    """
    A forged message cannot jump the queue: only what admission let through is granted.
    """
    ref = hands.start()
    assert refusal(hands, ref) == "not_due"
    assert hands.entry(ref)["state"] == "ready"


def test_a_queued_step_before_its_time_is_not_due(hands: Hands, admin: psycopg.Connection) -> None:
    """
    Not even an admitted step runs before it is due.
    """
    ref = hands.start()
    hands.admit()
    admin.execute(
        "update agentq.ledger_entry set due_at = agentq.now() + interval '1 hour' where step_id = %s", (ref.step_id,)
    )
    assert refusal(hands, ref) == "not_due"


def test_a_step_of_an_ended_session_is_cancelled_at_its_claim(hands: Hands, admin: psycopg.Connection) -> None:
    """
    A step that slipped past the end of its session is found by its message, and ends with it.
    """
    ref = hands.start()
    hands.admit()
    admin.execute(
        "update agentq.session set state = 'cancelled', failure = '{}', ended_at = agentq.now() where session_id = %s",
        (ref.session_id,),
    )
    assert refusal(hands, ref) == "ended"
    assert hands.entry(ref)["state"] == "cancelled"


def test_a_step_of_a_paused_session_is_held(hands: Hands, admin: psycopg.Connection) -> None:
    """
    It leaves the broker's share, so that nobody sends it again and again.
    """
    ref = hands.start()
    hands.admit()
    admin.execute("update agentq.session set state = 'paused' where session_id = %s", (ref.session_id,))
    assert refusal(hands, ref) == "paused"
    assert hands.entry(ref)["state"] == "held"


def test_a_step_of_a_paused_tenant_waits_for_admission(hands: Hands, admin: psycopg.Connection) -> None:
    """
    It goes back to the tenant's backlog, and comes again once the tenant is active.
    """
    ref = hands.start()
    hands.admit()
    admin.execute("update agentq.tenant set state = 'paused' where name = %s", (hands.tenant,))
    assert refusal(hands, ref) == "tenant_paused"
    assert hands.entry(ref)["state"] == "ready"
    assert hands.admit() == []

    admin.execute("update agentq.tenant set state = 'active' where name = %s", (hands.tenant,))
    assert len(hands.admit()) == 1


def test_a_suspect_is_refused_outside_quarantine_and_others_inside(hands: Hands, admin: psycopg.Connection) -> None:
    """
    I9: the ordinary pool never runs a suspect, and quarantine runs nothing else.
    """
    ref = hands.start()
    hands.admit()
    assert refusal(hands, ref, quarantine=True) == "quarantined"
    admin.execute("update agentq.ledger_entry set quarantine = true where step_id = %s", (ref.step_id,))
    assert refusal(hands, ref) == "quarantined"
    assert isinstance(hands.try_claim(ref, quarantine=True), Granted)


@pytest.mark.parametrize("serves", [[], ["robot@2"], ["robo@1", "robot"]])
def test_a_worker_without_the_agents_version_is_refused(hands: Hands, serves: list[str]) -> None:
    """
    I10: a session stays with the version with which it began.
    """
    ref = hands.start()
    hands.admit()
    assert refusal(hands, ref, serves=serves) == "unserved"
    assert isinstance(hands.try_claim(ref, serves=["robot@2", PIN]), Granted)


def test_a_worker_taken_for_dead_claims_nothing(hands: Hands, admin: psycopg.Connection) -> None:
    """
    What a dead process claims would be taken back at once; it must register anew first.
    """
    ref = hands.start()
    hands.admit()
    lost = hands.register()
    admin.execute("update agentq.worker set state='dead', stopped_at=agentq.now() where worker_id=%s", (lost,))

    assert refusal(hands, ref, worker=lost) == "worker_dead"
    assert refusal(hands, ref, worker=uuid.uuid4()) == "worker_dead"
    assert hands.entry(ref)["state"] == "queued"


# ── settlements ──────────────────────────────────────────────────────────────


def test_a_settlement_writes_result_state_costs_and_successors(hands: Hands) -> None:
    """
    I2: one settlement leaves the checkpoint, the messages, the usage and the next step.
    """
    claim = hands.begin()
    follower = step("second", args=b'{"x":1}')

    settled = hands.settle(
        claim,
        "next",
        steps=(follower,),
        extras=Extras(messages=((b'"hello"', "me"),), usage=Usage(10, 20, 30)),
    )

    assert [wake.step_id for wake in settled.wakes] == [follower.step_id]
    [checkpoint] = hands.rows("select * from agentq.checkpoint")
    assert (checkpoint["tokens_in"], checkpoint["tokens_out"], checkpoint["cost_micros"]) == (10, 20, 30)
    assert [row["body"] for row in hands.rows("select body from agentq.message")] == [b'"hello"']
    after = hands.entry(hands.ref(follower, claim.ref.session_id))
    assert (after["state"], after["seq"], after["args"]) == ("queued", 1, b'{"x":1}')
    assert hands.entry(claim.ref)["state"] == "done"


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": (step("second", attempts_max=0),)},
        {"steps": (step("second"), step("third", attempts_max=0))},
        {"extras": Extras(messages=((b"1", "me"),), usage=Usage(tokens_in=-5))},
        {"kind": "delta"},
        {"state": None},
    ],
    ids=["the successor", "one of the successors", "usage", "checkpoint's kind", "no state"],
)
def test_a_settlement_that_fails_leaves_nothing(hands: Hands, bad: dict[str, object]) -> None:
    """
    I2: when any part of it is refused, none of it is written, and the attempt still runs.
    """
    claim = hands.begin()
    before = hands.everything()

    with pytest.raises(psycopg.IntegrityError):
        hands.settle(claim, "next", **{"steps": (step("second"),)} | bad)

    assert hands.everything() == before
    assert hands.settle(claim, "next", steps=(step("second"),)).wakes


@pytest.mark.parametrize("closing", ["next", "end", "fail", "retry", "dead", "release", "cancelled"])
def test_a_late_worker_cannot_overwrite_its_successor(hands: Hands, closing: str) -> None:
    """
    I3: an attempt that was taken back writes nothing, whatever it wants to say.
    """
    stale = hands.begin()
    hands.ledger.disown(stale.ref, stale.token)
    fresh = hands.claim(stale.ref)
    before = hands.everything()

    with pytest.raises(FenceLost):
        hands.settle(stale, closing, **({"steps": (step("second"),)} if closing == "next" else {}))

    assert stale.fence + 1 == fresh.fence
    assert hands.everything() == before


def test_the_token_tells_apart_what_a_crash_forgot(hands: Hands) -> None:
    """
    I3: a claim lost in a database crash has the same number as the next one, and yet is not it.
    """
    claim = hands.begin()
    forgotten = Granted(**{name: getattr(claim, name) for name in Granted.__slots__} | {"token": claim.token + 1})
    before = hands.everything()

    with pytest.raises(FenceLost):
        hands.settle(forgotten, "end")
    assert hands.ledger.disown(claim.ref, claim.token + 1) is None

    assert hands.everything() == before


def test_the_number_tells_apart_what_the_token_does_not(hands: Hands) -> None:
    """
    I3: the fence's number is part of the match, not only its token.
    """
    claim = hands.begin()
    other = Granted(**{name: getattr(claim, name) for name in Granted.__slots__} | {"fence": claim.fence + 1})
    with pytest.raises(FenceLost):
        hands.settle(other, "end")


def test_a_settlement_happens_once(hands: Hands) -> None:
    """
    Repeating one whose answer was lost is refused by the fence, and changes nothing.
    """
    claim = hands.begin()
    hands.settle(claim, "end")
    before = hands.everything()
    with pytest.raises(FenceLost):
        hands.settle(claim, "end")
    assert hands.everything() == before


def test_of_two_settlements_at_once_one_counts(hands: Hands) -> None:
    """
    I3 under concurrency: the thread of an abandoned step and the heart that abandons it race for one row.
    """
    claim = hands.begin()
    late = Failure("timeout", "T", "t")
    answers = at_once(lambda: hands.settle(claim, "end"), lambda: hands.settle(claim, "retry", failure=late))
    assert sum(isinstance(answer, FenceLost) for answer in answers) == 1


def test_a_retry_waits_in_the_ledger(hands: Hands) -> None:
    """
    A failed attempt comes back as a row with a due time; the failure stays visible.
    """
    claim = hands.begin()
    hands.settle(claim, "retry", delay_s=60.0, failure=Failure("transient", "E", "no luck"))

    entry = hands.entry(claim.ref)
    assert (entry["state"], entry["attempt"], entry["failure"]["message"]) == ("ready", 1, "no luck")
    assert hands.admit() == []
    [left] = hands.rows("select extract(epoch from due_at - agentq.now())::float as s from agentq.ledger_entry")
    assert 59 < left["s"] <= 60


def test_a_released_step_costs_no_attempt(hands: Hands) -> None:
    """
    A step that a draining worker hands back is queued again, with all of its attempts.
    """
    claim = hands.begin()
    settled = hands.settle(claim, "release")
    assert [wake.step_id for wake in settled.wakes] == [claim.ref.step_id]
    again = hands.claim(claim.ref)
    assert (again.fence, again.attempt) == (2, 1)


def test_a_step_settles_into_a_session_that_has_ended(hands: Hands) -> None:
    """
    What a step returns after its session was cancelled is thrown away: no checkpoint, no successor.
    """
    claim = hands.begin()
    hands.sessions.cancel(hands.tenant, claim.ref.session_id, Failure("cancelled", "X", "stop"))

    settled = hands.settle(claim, "next", steps=(step("second"),))

    assert settled.session_ended_before
    assert settled.wakes == ()
    assert hands.entry(claim.ref)["state"] == "cancelled"
    assert hands.rows("select * from agentq.checkpoint") == []
    assert len(hands.rows("select * from agentq.ledger_entry")) == 1


def test_in_a_paused_session_what_follows_is_held(hands: Hands, admin: psycopg.Connection) -> None:
    """
    A step that ran into the pause keeps its result; its successor waits.
    """
    claim = hands.begin()
    admin.execute("update agentq.session set state = 'paused' where session_id = %s", (claim.ref.session_id,))
    follower = step("second")
    assert hands.settle(claim, "next", steps=(follower,)).wakes == ()
    assert hands.entry(hands.ref(follower, claim.ref.session_id))["state"] == "held"


def test_disowning_gives_the_step_back(hands: Hands) -> None:
    """
    A claim whose answer was lost is queued again, without costing an attempt, once.
    """
    claim = hands.begin()
    wake = hands.ledger.disown(claim.ref, claim.token)
    assert wake is not None
    assert hands.ledger.disown(claim.ref, claim.token) is None
    assert hands.claim(claim.ref).attempt == 1


# ── republishing ─────────────────────────────────────────────────────────────


def test_missing_messages_are_sent_again_less_and_less_often(hands: Hands, admin: psycopg.Connection) -> None:
    """
    A queued step's age counts from its last sending, and doubles with each repeat.
    """
    ref = hands.start()
    hands.admit()

    def age(seconds: float) -> None:
        admin.execute(
            "update agentq.ledger_entry set queued_at = agentq.now() - make_interval(secs => %s) where step_id = %s",
            (seconds, ref.step_id),
        )

    def again() -> int:
        return len(hands.ledger.republish(hands.tenant, quarantine=False, age_s=10, limit=100))

    assert again() == 0
    age(11)
    assert again() == 1
    age(11)
    assert again() == 0
    age(21)
    assert again() == 1
    assert hands.ledger.republish(hands.tenant, quarantine=True, age_s=0, limit=100) == []


def test_two_relays_never_send_one_message_twice(hands: Hands, admin: psycopg.Connection) -> None:
    """
    Rows that one relay is sending again are skipped by the others, which do not even wait for it.
    """
    refs = [hands.start() for _ in range(5)]
    hands.admit()
    admin.execute(
        "update agentq.ledger_entry set queued_at = queued_at - interval '1 hour' where tenant = %s", (hands.tenant,)
    )
    parameters = {"tenants": [hands.tenant], "quarantine": False, "age_s": 1.0, "max": 100}
    answers: list[list[Wake]] = []
    other = threading.Thread(
        target=lambda: answers.append(hands.ledger.republish(hands.tenant, quarantine=False, age_s=1.0, limit=100))
    )
    with hands.store.transaction(hands.tenant) as connection:
        first = run(connection, SQL["republish"], parameters)
        other.start()
        other.join(10)
        waited = other.is_alive()
    other.join(10)
    assert (len(first), answers, waited) == (len(refs), [[]], False)
