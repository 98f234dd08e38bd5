"""Joins: branches counted in Postgres, woken exactly once, whatever meets whatever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from agentq.step import StepRef
from agentq.store.pool import Store
from agentq.verdicts import Extras, Failure, Granted, Settlement
from tests.support.hands import BROKEN, Hands, at_once, step
from tests.support.until import until


def branches(hands: Hands) -> list[str]:
    return [row["state"] for row in hands.rows("select state from agentq.branch order by branch")]


@pytest.fixture
def blocked(admin: psycopg.Connection[Any]) -> Iterator[Any]:
    """Tells whether some backend waits for another one's lock."""
    query = (
        "select count(*) from pg_locks where not granted"
        " and pid in (select pid from pg_stat_activity where application_name = %s)"
    )
    return lambda name: (admin.execute(query, (name,)).fetchone() or (0,))[0]


def test_the_last_branch_wakes_the_join(hands: Hands) -> None:
    """
    The join waits until the last of its branches has ended, and not longer.
    """
    join, arms = hands.spawn(hands.begin(), 3)
    claims = [hands.claim(arm) for arm in arms]

    assert hands.settle(claims[2], "end").wakes == ()
    assert hands.settle(claims[0], "end").wakes == ()
    assert hands.entry(join)["state"] == "waiting"
    [wake] = hands.settle(claims[1], "end").wakes

    assert wake.step_id == join.step_id
    assert hands.claim(join).fan == 3
    assert [row.state for row in hands.ledger.branches(join)] == ["done"] * 3


def test_siblings_that_end_at_one_instant_wake_the_join_once(hands: Hands, blocked: Any) -> None:
    """
    The second sibling's settlement stands at the session's row until the first has committed, and then sees its count.
    """
    join, arms = hands.spawn(hands.begin(), 2)
    first, second = [hands.claim(arm) for arm in arms]
    other = Store(hands.store.url, size=1, name="agentq second sibling")
    late = Hands.__new__(Hands)
    late.__dict__ |= hands.__dict__ | {"ledger": type(hands.ledger)(other)}
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(late.settle(second, "end")))
    try:
        with hands.store.transaction(hands.tenant) as connection:
            settled = hands.ledger.settle(
                first, Settlement("end", kind="full", state=b"{}", result=b"1"), on=connection
            )
            assert settled.wakes == ()
            thread.start()
            until(lambda: blocked("agentq second sibling") == 1, 10, "the second sibling waits for the first")
            assert results == []
        thread.join(10)
    finally:
        other.close()

    assert [wake.step_id for wake in results[0].wakes] == [join.step_id]
    assert hands.entry(join)["waits_for"] == 0


def test_branches_that_append_at_once_lose_no_message(hands: Hands) -> None:
    """
    Each branch's messages stand together in the history, and no number is given twice.
    """
    _, arms = hands.spawn(hands.begin(), 8)
    claims = [hands.claim(arm) for arm in arms]
    said = Extras(messages=((b"1", "me"), (b"2", "me")))
    at_once(*[lambda claim=claim: hands.settle(claim, "end", extras=said) for claim in claims])
    rows = hands.rows("select seq, step_id, body from agentq.message order by seq")
    assert [row["seq"] for row in rows] == list(range(1, 17))
    assert [row["body"] for row in rows] == [b"1", b"2"] * 8
    assert all(rows[n]["step_id"] == rows[n + 1]["step_id"] for n in range(0, 16, 2))


@pytest.mark.parametrize("round_", range(5))
def test_many_siblings_at_once_wake_the_join_once(hands: Hands, round_: int) -> None:
    """
    Twelve branches end in twelve transactions at once; one of them wakes the join.
    """
    join, arms = hands.spawn(hands.begin(), 12)
    claims = [hands.claim(arm) for arm in arms]

    settled = at_once(*[lambda claim=claim: hands.settle(claim, "end") for claim in claims])

    woken = [wake.step_id for answer in settled for wake in answer.wakes]
    assert woken == [join.step_id]
    assert branches(hands) == ["done"] * 12


def test_a_failed_branch_fails_the_session(hands: Hands) -> None:
    """
    Unless failures are collected, the first one ends the session, and what waits is cancelled.
    """
    claim = hands.begin()
    join, arms = hands.spawn(claim, 3)
    running, failing = hands.claim(arms[0]), hands.claim(arms[1])

    hands.settle(failing, "dead")

    assert hands.session(claim.ref)["state"] == "failed"
    assert [hands.entry(ref)["state"] for ref in (join, arms[1], arms[2])] == ["cancelled", "dead", "cancelled"]
    assert hands.settle(running, "end").session_ended_before


def test_collected_failures_are_results(hands: Hands) -> None:
    """
    With `collect`, a failed branch counts like any other, and the join finds its error in its place.
    """
    join, arms = hands.spawn(hands.begin(), 3, collect=True)
    claims = [hands.claim(arm) for arm in arms]
    hands.settle(claims[0], "end")
    hands.settle(claims[1], "dead")
    [wake] = hands.settle(claims[2], "fail").wakes

    assert wake.step_id == join.step_id
    found = hands.ledger.branches(join)
    assert [row.state for row in found] == ["done", "failed", "failed"]
    assert found[1].failure is not None
    assert found[1].failure["message"] == BROKEN.message


def test_a_branch_is_closed_once(hands: Hands) -> None:
    """
    A child that was cancelled while a step of it still ran does not count a second time.
    """
    claim, join, child = with_child(hands, collect=True)
    running = hands.claim(child)
    hands.sessions.cancel(hands.tenant, child.session_id, Failure("cancelled", "X", "no"))
    hands.settle(running, "end")
    with hands.store.transaction(hands.tenant) as connection:
        # Whoever asks again, the branch is closed: this is what a repeated end comes to.
        again = connection.execute(
            "select agentq.finish_branch(%s, %s, %s, 0, true, 'x', null, agentq.now())",
            (hands.tenant, join.session_id, join.step_id),
        ).fetchone()
    assert again == (None,)
    [row] = hands.ledger.branches(join)
    assert row.state == "failed"
    assert hands.session(claim.ref)["state"] == "running"


def test_a_branch_of_several_steps_ends_with_its_last(hands: Hands) -> None:
    """
    A branch goes on through `Next` and its attempts; only its end counts.
    """
    claim = hands.begin()
    join, [arm] = hands.spawn(claim, 1)
    more = step("more", join_step=join.step_id, branch=0)
    hands.follow(hands.claim(arm), more)
    assert hands.entry(join)["state"] == "waiting"
    second = hands.claim(hands.ref(more, claim.ref.session_id))
    hands.settle(second, "retry")
    hands.admit()
    [wake] = hands.settle(hands.claim(second.ref), "end").wakes
    assert wake.step_id == join.step_id


def spawn_within(hands: Hands, arm: Granted, count: int, **more: Any) -> tuple[Any, list[Any]]:
    """A branch that spawns branches of its own."""
    return hands.spawn(arm, count, join_step=arm.join_step, branch=arm.branch, **more)


def test_spawns_within_spawns_join_from_the_inside_out(hands: Hands) -> None:
    """
    An inner join is a step of the outer branch; the outer join waits for it.
    """
    outer, [arm, plain] = hands.spawn(hands.begin(), 2)
    inner, [left, right] = spawn_within(hands, hands.claim(arm), 2)
    hands.settle(hands.claim(plain), "end")
    hands.settle(hands.claim(left), "end")
    [wake] = hands.settle(hands.claim(right), "end").wakes
    assert wake.step_id == inner.step_id
    assert hands.entry(outer)["state"] == "waiting"
    [wake] = hands.settle(hands.claim(inner), "end").wakes
    assert wake.step_id == outer.step_id


def test_a_failure_within_a_collected_branch_is_collected(hands: Hands) -> None:
    """
    A join that collects also gets the failures of what its branches spawned: they fail the branch, not the session.
    """
    claim = hands.begin()
    outer, [arm, plain] = hands.spawn(claim, 2, collect=True)
    inner, [left, right] = spawn_within(hands, hands.claim(arm), 2)
    hands.settle(hands.claim(left), "dead")

    assert hands.session(claim.ref)["state"] == "running"
    assert [hands.entry(ref)["state"] for ref in (inner, right)] == ["cancelled", "cancelled"]
    [wake] = hands.settle(hands.claim(plain), "end").wakes
    assert wake.step_id == outer.step_id
    assert [row.state for row in hands.ledger.branches(outer)] == ["failed", "done"]


# ── children ─────────────────────────────────────────────────────────────────


def with_child(hands: Hands, **more: Any) -> tuple[Granted, Any, Any]:
    """A session that waits for one child: its first claim, the join, the child's first step."""
    claim = hands.begin()
    join = step("join", fan=1, **more)
    child = hands.child(join, 0)
    hands.follow(claim, join, children=[child])
    hands.admit()
    return claim, hands.ref(join, claim.ref.session_id), StepRef(hands.tenant, child.session_id, child.step_id)


def test_a_child_sessions_end_wakes_its_parent(hands: Hands) -> None:
    """
    The child's result is the branch's, and the settlement that ends the child publishes the parent's join.
    """
    _, join, child = with_child(hands)
    [wake] = hands.settle(hands.claim(child), "end", result=b"42").wakes
    assert (wake.session_id, wake.step_id) == (join.session_id, join.step_id)
    [row] = hands.ledger.branches(join)
    assert (row.state, row.result, row.child_session) == ("done", b"42", child.session_id)


def test_a_failed_child_fails_its_parent(hands: Hands) -> None:
    """
    As a failed branch does.
    """
    claim, _, child = with_child(hands)
    hands.settle(hands.claim(child), "fail", failure=Failure("gave_up", "Fail", "no"))
    assert hands.session(claim.ref)["state"] == "failed"
    assert hands.session(claim.ref)["failure"]["message"] == "no"


def test_a_cancelled_child_is_a_failed_branch(hands: Hands) -> None:
    """
    A join that collects learns that its child was cancelled.
    """
    _, join, child = with_child(hands, collect=True)
    hands.sessions.cancel(hands.tenant, child.session_id, Failure("cancelled", "X", "not needed"))
    hands.admit()
    assert hands.claim(join)
    [row] = hands.ledger.branches(join)
    assert (row.state, (row.failure or {})["message"]) == ("failed", "not needed")


def test_children_end_with_their_parent(hands: Hands) -> None:
    """
    I7: a child whose parent was cancelled is found and cancelled, even when nobody told it.
    """
    claim, _, child = with_child(hands)
    hands.sessions.cancel(hands.tenant, claim.ref.session_id, Failure("cancelled", "X", "stop"))
    assert hands.session(child)["state"] == "running"
    hands.ledger.expire_sessions(1000)
    assert hands.session(child)["state"] == "cancelled"
    assert hands.entry(child)["state"] == "cancelled"


def test_a_deadline_ends_parent_and_child(hands: Hands, admin: psycopg.Connection[Any]) -> None:
    """
    A child has its parent's deadline; when it passes, both end, in whatever order they are found.
    """
    claim, join, child = with_child(hands)
    admin.execute(
        "update agentq.session set deadline_at = agentq.now() - interval '1 s' where session_id = any(%s)",
        ([claim.ref.session_id, child.session_id],),
    )
    at_once(*[lambda: hands.ledger.expire_sessions(1000)] * 4)
    hands.ledger.expire_sessions(1000)
    assert hands.session(claim.ref)["state"] == "failed"
    assert hands.session(child)["state"] in ("failed", "cancelled")
    assert hands.entry(join)["state"] == "cancelled"


def test_a_spawn_that_meets_a_cancellation_leaves_nothing_waiting(hands: Hands, blocked: Any) -> None:
    """
    I7: a session is cancelled while one of its steps settles a spawn; no join waits for ever afterwards.
    """
    claim = hands.begin()
    join = step("join", fan=1)
    arm = step("arm", join_step=join.step_id, branch=0)
    settlement = Settlement("next", kind="full", state=b"{}", state_from=claim.ref.step_id, steps=(join, arm))
    cancelling = threading.Thread(
        target=lambda: hands.sessions.cancel(hands.tenant, claim.ref.session_id, Failure("cancelled", "X", "stop"))
    )
    with hands.store.transaction(hands.tenant) as connection:
        hands.ledger.settle(claim, settlement, on=connection)
        cancelling.start()
        until(
            lambda: blocked("agentq tests") > 0 or not cancelling.is_alive(), 10, "the cancellation waits or is through"
        )
    cancelling.join(10)

    hands.admit()
    hands.try_claim(hands.ref(arm, claim.ref.session_id))
    live = hands.rows("select name, state from agentq.ledger_entry where state not in ('done', 'cancelled')")
    assert live == []
