"""Approvals as rows: one decision each, by its deadline, by those who may, for what still waits."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from agentq.errors import FenceLost
from agentq.step import StepRef
from agentq.store.approvals import Approvals, Decision
from agentq.store.pool import Store
from agentq.testing import Clock
from agentq.verdicts import Granted, NotGranted
from tests.support.hands import Hands, at_once, new_ask, step
from tests.support.until import until


@pytest.fixture
def approvals(hands: Hands) -> Approvals:
    return Approvals(hands.store)


def asked(hands: Hands, **more: Any) -> tuple[uuid.UUID, StepRef]:
    """A session that waits for people; its approval and the step that waits."""
    claim = hands.begin()
    waiting = step("then", approval=uuid.uuid4())
    question = new_ask(waiting, **more)
    hands.settle(claim, "next", steps=(waiting,), asks=(question,))
    return question.approval_id, hands.ref(waiting, claim.ref.session_id)


def release(hands: Hands, ref: StepRef) -> None:
    """Wake what waits, as nobody should."""
    hands.rows("update agentq.ledger_entry set state = 'ready' where step_id = %s returning 1 as one", ref.step_id)


def decide(approvals: Approvals, hands: Hands, approval: uuid.UUID, verdict: Any = "granted", **more: Any) -> Decision:
    facts: dict[str, Any] = {"by": "ada", "via": "login", "groups": None, "reason": "why"}
    return approvals.decide(hands.tenant, approval, verdict, **facts | more)


def test_what_waits_for_people_takes_no_slot(hands: Hands, approvals: Approvals) -> None:
    """
    Neither ready nor queued: admission, the broker and the workers never hear of it.
    """
    _, ref = asked(hands)
    assert hands.entry(ref)["state"] == "waiting"
    assert hands.admit() == []
    assert isinstance(hands.try_claim(ref), NotGranted)
    depth = hands.ledger.queue_depth(hands.tenant)
    assert depth is not None
    assert depth.queued + depth.running + depth.ready == 0


def test_a_decision_passes_admission_like_any_step(hands: Hands, approvals: Approvals) -> None:
    approval, ref = asked(hands)
    assert decide(approvals, hands, approval).outcome == "decided"
    assert hands.entry(ref)["state"] == "ready"
    [wake] = hands.admit()
    assert wake.step_id == ref.step_id
    assert hands.claim(ref).approval == approval


def test_of_two_at_once_one_decides(hands: Hands, approvals: Approvals) -> None:
    """
    Twelve approvers at the same moment, half of them against: one wins, and all others are told who.
    """
    approval, ref = asked(hands)
    calls = [
        lambda n=n: decide(approvals, hands, approval, "granted" if n % 2 else "denied", by=f"p{n}") for n in range(12)
    ]
    results = at_once(*calls)
    [winner] = [result for result in results if result.outcome == "decided"]
    assert {result.outcome for result in results if result is not winner} == {"taken"}
    assert {(result.state, result.decided_by) for result in results} == {(winner.state, winner.decided_by)}
    assert hands.entry(ref)["state"] == "ready"
    actions = hands.rows("select operator, action from agentq.operator_action where target = %s", str(approval))
    assert [row["operator"] for row in actions] == [winner.decided_by]


def test_a_grant_at_the_deadline_counts_and_a_microsecond_later_does_not(
    hands: Hands, approvals: Approvals, admin: psycopg.Connection[Any]
) -> None:
    """
    The update that decides looks at the deadline, whether or not the relay has noticed that it is over.
    """
    for late_us, outcome in ((0, "decided"), (1, "late")):
        approval, ref = asked(hands)
        with hands.store.transaction(hands.tenant) as connection:
            moment = connection.execute("select agentq.now()").fetchone()
        assert moment is not None
        frozen = moment[0]
        with hands.store.transaction(hands.tenant) as connection:
            connection.execute(
                "update agentq.approval set deadline_at = %s - make_interval(secs => %s / 1e6) where approval_id = %s",
                (frozen, late_us, approval),
            )
        assert approvals_at(admin, hands, approval, frozen) == outcome
        assert hands.entry(ref)["state"] == "ready"
        [row] = hands.rows("select state, decided_by from agentq.approval where approval_id = %s", approval)
        assert (row["state"], row["decided_by"]) == (("granted", "ada") if not late_us else ("expired", None))


def approvals_at(admin: psycopg.Connection[Any], hands: Hands, approval: uuid.UUID, moment: Any) -> str:
    """Decide with the database's clock standing still at a moment."""
    clock = admin.execute("select pg_get_functiondef('agentq.now()'::regprocedure)").fetchone()
    assert clock is not None
    with admin.transaction():
        admin.execute(
            "create or replace function agentq.now() returns timestamptz language sql volatile parallel safe as "
            f"$$ select '{moment.isoformat()}'::timestamptz $$"
        )
        row = admin.execute(
            "select outcome from agentq.decide_approval(%s, %s, 'granted', 'ada', 'login', null, '', null, null, null)",
            (hands.tenant, approval),
        ).fetchone()
        admin.execute(clock[0])
    admin.execute("select set_config('agentq.tenant', '*', false)")
    assert row is not None
    return str(row[0])


def test_a_grant_that_waits_for_a_lock_beyond_the_deadline_is_late(
    hands: Hands, approvals: Approvals, admin: psycopg.Connection[Any]
) -> None:
    """
    The clock is read once the session is held, not when the call came in.
    """
    approval, _ = asked(hands, within_s=0.3)
    results: list[Decision] = []
    with psycopg.connect(admin.info.dsn, password=admin.info.password, autocommit=False) as blocker:
        blocker.execute("select set_config('agentq.tenant', '*', true)")
        blocker.execute("select 1 from agentq.session where tenant = %s for no key update", (hands.tenant,))
        thread = threading.Thread(target=lambda: results.append(decide(approvals, hands, approval)))
        thread.start()
        until_waiting(admin)
        time.sleep(0.35)  # past the deadline; the decider holds its question from before it
        blocker.rollback()
    thread.join(10)
    assert results[0].outcome == "late"


def until_waiting(admin: psycopg.Connection[Any]) -> None:
    query = "select 1 from pg_locks where not granted"
    until(lambda: admin.execute(query).fetchone(), 5, "the decider waits for the session")


def test_only_the_groups_that_are_asked_may_decide(hands: Hands, approvals: Approvals) -> None:
    approval, ref = asked(hands, groups=("finance", "board"))
    assert decide(approvals, hands, approval, groups=["ops"]).outcome == "not_allowed"
    assert hands.entry(ref)["state"] == "waiting"
    assert decide(approvals, hands, approval, groups=["board"]).outcome == "decided"


def test_an_ended_session_voids_what_it_asked(hands: Hands, approvals: Approvals) -> None:
    approval, ref = asked(hands)
    hands.rows("select agentq.end_session(%s, %s, 'failed', null, '{}', agentq.now())", hands.tenant, ref.session_id)
    [row] = hands.rows("select state from agentq.approval where approval_id = %s", approval)
    assert row["state"] == "void"
    assert decide(approvals, hands, approval).outcome == "taken"


def test_a_decision_finds_out_by_itself_that_nothing_waits(
    hands: Hands, approvals: Approvals, admin: psycopg.Connection[Any]
) -> None:
    """
    Whatever ended the step without a word to the approval: a grant voids it and wakes nothing.
    """
    approval, ref = asked(hands)
    admin.execute(
        "update agentq.ledger_entry set state = 'cancelled', settled_at = now() where step_id = %s", (ref.step_id,)
    )
    assert decide(approvals, hands, approval).outcome == "void"
    assert hands.entry(ref)["state"] == "cancelled"


def test_one_that_cannot_be_read_is_listed_beside_the_others(
    admin: psycopg.Connection[Any], hands: Hands, approvals: Approvals
) -> None:
    """
    Its key is gone, or held elsewhere: the others are shown to those who decide, and of it that it cannot be read.
    """
    fine, _ = asked(hands)
    broken, _ = asked(hands)
    admin.execute(
        "update agentq.approval set args = '\\x010000000900', details = '\\x010000000900' where approval_id = %s",
        (broken,),
    )
    found = {row.approval_id: row for row in approvals.waiting(hands.tenant)}
    assert found.keys() == {fine, broken}
    assert found[broken].question.startswith("cannot be read here: ")
    assert (found[broken].args, found[broken].details) == (b"{}", None)
    assert not found[fine].question.startswith("cannot be read")


def test_silence_ends_at_the_deadline(store: Store, hands: Hands) -> None:
    """
    The relay expires what is over, leaves the rest, and does it once.
    """
    clocked = Store(store.url, size=2, name="agentq tests clock")
    clock = Clock(clocked)
    approvals = Approvals(clocked)
    try:
        approval, ref = asked(hands, within_s=100.0)
        other, _ = asked(hands, within_s=1000.0)
        clock.advance(101)
        expired = [row for row in approvals.expire(500) if row[0] == hands.tenant]
        assert expired == [(hands.tenant, approval, "expired")]
        assert hands.entry(ref)["state"] == "ready"
        assert [row for row in approvals.expire(500) if row[0] == hands.tenant] == []
        assert [row.approval_id for row in approvals.listing(tenant=hands.tenant, state="open")] == [other]
    finally:
        clocked.close()


def test_reminders_come_at_half_time_and_near_the_end(store: Store, hands: Hands) -> None:
    """
    Two of them, for those who are told at all, and none once it is decided.
    """
    clocked = Store(store.url, size=2, name="agentq tests clock")
    clock = Clock(clocked)
    approvals = Approvals(clocked)

    def told() -> list[str]:
        return [notice.kind for notice in approvals.notices(hands.tenant, approval)]

    try:
        approval, _ = asked(hands, within_s=1000.0, channels=("webhook",))
        asked(hands, within_s=1000.0)
        assert told() == ["asked"]
        for at_s, expected in ((499, 1), (2, 2), (300, 2), (110, 3), (80, 3)):
            clock.advance(at_s)
            approvals.remind(500)
            assert len(told()) == expected, at_s
        assert told() == ["asked", "reminder", "reminder"]
    finally:
        clocked.close()


def test_a_superseded_attempt_asks_nobody(hands: Hands, approvals: Approvals) -> None:
    """
    An attempt that lost its fence cannot park the step: the settlement is refused, and no approval is made.
    """
    claim = hands.begin()
    wake = hands.ledger.disown(claim.ref, claim.token)
    assert wake is not None
    fresh = hands.claim(claim.ref)
    ask = new_ask(step("first"), kind="effect", effect_key="k", approval_id=uuid.uuid4())
    with pytest.raises(FenceLost):
        hands.settle(claim, "await", awaits=ask.approval_id, asks=(ask,))
    assert approvals.listing(tenant=hands.tenant) == []
    assert (
        approvals.permit(claim, "k", name="pay", args=b"{}", args_hash=b"h", question="?", auto=True).state
        == "superseded"
    )
    assert isinstance(fresh, Granted)


def test_what_a_step_asked_before_is_void_when_it_asks_anew(hands: Hands, approvals: Approvals) -> None:
    claim = hands.begin()
    first = new_ask(step("x"), kind="effect", effect_key="k", approval_id=uuid.uuid4())
    first = replace(first, step_id=claim.ref.step_id)
    hands.settle(claim, "await", awaits=first.approval_id, asks=(first,))
    release(hands, claim.ref)
    hands.admit()
    again = hands.claim(claim.ref)
    second = replace(first, approval_id=uuid.uuid4(), args_hash=b"other")
    hands.settle(again, "await", awaits=second.approval_id, asks=(second,))
    states = {row.approval_id: row.state for row in approvals.listing(tenant=hands.tenant)}
    assert states == {first.approval_id: "void", second.approval_id: "open"}
    assert decide(approvals, hands, first.approval_id).outcome == "taken"


def test_a_decision_between_look_and_park_is_not_lost(hands: Hands, approvals: Approvals) -> None:
    """
    An attempt sees the question open and parks; somebody grants in between. The step must not wait for ever.
    """
    claim = hands.begin()
    ask = new_ask(step("x"), kind="effect", effect_key="k", approval_id=uuid.uuid4())
    ask = replace(ask, step_id=claim.ref.step_id)
    hands.settle(claim, "await", awaits=ask.approval_id, asks=(ask,))
    release(hands, claim.ref)
    hands.admit()
    again = hands.claim(claim.ref)
    assert decide(approvals, hands, ask.approval_id).outcome == "decided"
    hands.settle(again, "await", awaits=ask.approval_id)
    assert hands.entry(claim.ref)["state"] in ("ready", "queued")


def test_a_thousand_that_wait_cost_the_relay_nothing(hands: Hands, approvals: Approvals) -> None:
    """
    A round looks at indexes of what is over, not at what waits: its time stays as it was.
    """

    def round_s() -> float:
        best = 1.0
        for _ in range(5):
            began = time.perf_counter()
            hands.ledger.backlogged()
            hands.ledger.take_back(500)
            hands.ledger.broker_should_hold(1.0)
            hands.ledger.expire_sessions(500)
            approvals.expire(500)
            approvals.remind(500)
            best = min(best, time.perf_counter() - began)
        return best

    round_s()
    before = round_s()
    asked(hands, channels=("webhook",))
    for table in ("session", "ledger_entry", "approval"):
        copy_rows(hands, table, ["session_id", "approval_id"], 999)
    after = round_s()
    assert after < 3 * before + 0.01, (before, after)
    assert len(approvals.listing(tenant=hands.tenant, state="open", limit=2000)) == 1000


def copy_rows(hands: Hands, table: str, ids: list[str], count: int) -> None:
    """Each row of this tenant that often, under other ids; the same ones in every table."""
    names = [row["column_name"] for row in hands.rows(
        "select column_name from information_schema.columns where table_schema = 'agentq' and table_name = %s "
        "and is_generated = 'NEVER'", table)]  # fmt: skip
    chosen = [f"md5(t.{name}::text || n)::uuid" if name in ids else f"t.{name}" for name in names]
    hands.rows(
        f"insert into agentq.{table} ({', '.join(names)}) select {', '.join(chosen)} "
        f"from agentq.{table} t, generate_series(1, {count}) n where t.tenant = %s returning 1 as one",
        hands.tenant,
    )
