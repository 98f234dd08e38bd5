"""Recovery: sessions paused, killed and reopened, whatever runs, waits or has ended around them."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from agentq.errors import FenceLost, NotReopened, UnknownSession
from agentq.step import StepRef, new_id
from agentq.store.budgets import Budgets, Wanted
from agentq.store.recovery import By, Recovery, Reopened
from agentq.store.workers import Registration
from agentq.verdicts import Charge, Extras, Failure, Granted, NewApproval, NotGranted, Settlement
from tests.support.hands import BROKEN, PIN, Hands, at_once, step

BY = By("tester", "to see")


@pytest.fixture
def recovery(hands: Hands) -> Recovery:
    return Recovery(hands.store)


def go_back(recovery: Recovery, ref: StepRef, to: StepRef | None, *, generation: int = 0, **more: Any) -> Reopened:
    """Reopen a session; the first of its steps, or where it stopped."""
    step_id = to.step_id if to else None
    return recovery.reopen(ref.tenant, ref.session_id, BY, generation=generation, step_id=step_id, **more)


def current(hands: Hands, ref: StepRef) -> list[dict[str, Any]]:
    """The steps of a session that no replay has replaced, in order."""
    return hands.rows(
        "select * from agentq.ledger_entry where session_id = %s and superseded is null"
        " order by seq, branch nulls first",
        ref.session_id,
    )


def waiting(call: Callable[[], Any]) -> threading.Thread:
    """Start a call that will stand at a lock which this thread holds; it is joined later."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive(), "it was to wait for the lock"
    return thread


def states(hands: Hands, ref: StepRef) -> list[tuple[str, str]]:
    return [(row["name"], row["state"]) for row in current(hands, ref)]


def claim_next(hands: Hands, ref: StepRef) -> Granted:
    """Admit and claim the session's only step that is due."""
    hands.admit()
    [row] = [row for row in current(hands, ref) if row["state"] == "queued"]
    return hands.claim(StepRef(ref.tenant, ref.session_id, row["step_id"]))


def walk(hands: Hands, names: str = "bcd") -> list[Granted]:
    """A session whose first steps have run, one after another; the last one runs now."""
    claims = [hands.begin()]
    for name in names:
        follower = step(name)
        hands.follow(claims[-1], follower)
        claims.append(hands.claim(hands.ref(follower, claims[-1].ref.session_id)))
    return claims


# ── places ───────────────────────────────────────────────────────────────────


def test_a_replayed_part_has_the_same_places(hands: Hands, recovery: Recovery) -> None:
    """
    What is begun anew stands under the path of what it replaces, and so does all that follows, children included.
    """

    def play(claim: Granted) -> list[uuid.UUID]:
        join = step("join", fan=2)
        arm = step("arm", join_step=join.step_id, branch=0)
        child = hands.child(join, 1)
        hands.follow(claim, join, arm, children=[child])
        hands.admit()
        one = hands.claim(hands.ref(arm, claim.ref.session_id))
        tail = step("tail", join_step=join.step_id, branch=0)
        hands.follow(one, tail)
        hands.settle(hands.claim(hands.ref(tail, claim.ref.session_id)), "end")
        two = hands.claim(StepRef(hands.tenant, child.session_id, child.step_id))
        hands.settle(two, "end")
        last = hands.claim(hands.ref(join, claim.ref.session_id))
        hands.settle(last, "end")
        return [row["path"] for row in current(hands, claim.ref)] + [two.path]

    first = hands.begin()
    before = play(first)
    assert len(set(before)) == 5
    go_back(recovery, first.ref, first.ref)
    assert play(claim_next(hands, first.ref)) == before


def test_alike_steps_of_one_session_have_places_of_their_own(hands: Hands) -> None:
    """
    A loop, two branches of one name and a join named like them are all different places.
    """
    claims = walk(hands, "aaa")
    join = step("arm", fan=2)
    hands.follow(claims[-1], join, *[step("arm", join_step=join.step_id, branch=n) for n in range(2)])
    paths = [row["path"] for row in current(hands, claims[0].ref)]
    assert len(set(paths)) == len(paths) == 7


# ── pause and resume ─────────────────────────────────────────────────────────


def test_a_paused_session_holds_what_follows(hands: Hands, recovery: Recovery) -> None:
    """
    The step that runs finishes; the next is held, takes no slot, and goes on once the session is resumed.
    """
    claim = hands.begin()
    assert recovery.pause(hands.tenant, claim.ref.session_id, BY) == ("paused", True)
    assert recovery.pause(hands.tenant, claim.ref.session_id, BY) == ("paused", False)
    hold = hands.session(claim.ref)["hold"]
    assert (hold["kind"], hold["by"], hold["reason"], "at" in hold) == ("operator", "tester", "to see", True)

    follower = step("next")
    assert hands.follow(claim, follower).wakes == ()
    assert states(hands, claim.ref) == [("first", "done"), ("next", "held")]
    assert hands.admit() == []

    assert recovery.resume(hands.tenant, claim.ref.session_id, BY) == ("running", True)
    assert hands.session(claim.ref)["hold"] is None
    assert [wake.step_id for wake in hands.admit()] == [follower.step_id]
    actions = hands.rows(
        "select action from agentq.operator_action where target = %s order by action_id", str(claim.ref.session_id)
    )
    assert [row["action"] for row in actions] == ["session pause", "session resume"]


def test_a_queued_step_of_a_paused_session_gives_its_slot_back(hands: Hands, recovery: Recovery) -> None:
    """
    Its message finds nothing to do, whether it comes before or after the session is resumed.
    """
    ref = hands.start()
    hands.admit()
    recovery.pause(hands.tenant, ref.session_id, BY)
    assert hands.entry(ref)["state"] == "held"
    answer = hands.try_claim(ref)
    assert isinstance(answer, NotGranted)
    recovery.resume(hands.tenant, ref.session_id, BY)
    assert hands.entry(ref)["state"] == "ready"


def test_children_of_a_paused_session_begin_paused(hands: Hands, recovery: Recovery) -> None:
    """
    A step that was running when its session was paused may still spawn; its children wait with it.
    """
    claim = hands.begin()
    recovery.pause(hands.tenant, claim.ref.session_id, BY)
    join = step("join", fan=1)
    child = hands.child(join, 0)
    hands.follow(claim, join, children=[child])
    ref = StepRef(hands.tenant, child.session_id, child.step_id)
    assert (hands.session(ref)["state"], hands.entry(ref)["state"]) == ("paused", "held")
    assert recovery.paused_with(hands.tenant, claim.ref.session_id) == [child.session_id]
    recovery.resume(hands.tenant, child.session_id, BY)
    assert hands.entry(ref)["state"] == "ready"


def test_a_parked_step_pauses_its_session(hands: Hands) -> None:
    """
    The entry is held, no attempt is counted, and the session says why.
    """
    claim = hands.begin()
    hands.settle(claim, "park", hold={"kind": "breaker", "reason": "a loop"})
    row = hands.entry(claim.ref)
    assert (row["state"], row["attempt"], row["fence"]) == ("held", 0, 1)
    session = hands.session(claim.ref)
    assert (session["state"], session["hold"]["kind"]) == ("paused", "breaker")


def test_a_settlement_that_meets_a_resumption_is_not_held_for_ever(hands: Hands, recovery: Recovery) -> None:
    """
    A settlement that read the session as paused looks again under its lock before it holds what follows.
    """
    claim = hands.begin()
    recovery.pause(hands.tenant, claim.ref.session_id, BY)
    follower = step("next")
    with psycopg.connect(hands.store.url) as other:
        other.execute("select agentq.resume_session(%s, %s)", (hands.tenant, claim.ref.session_id))
        settling = waiting(lambda: hands.follow(claim, follower))
        other.commit()
        settling.join(30)
    assert hands.entry(hands.ref(follower, claim.ref.session_id))["state"] != "held"


# ── kill ─────────────────────────────────────────────────────────────────────


def test_a_killed_session_throws_away_what_still_runs(hands: Hands, recovery: Recovery) -> None:
    """
    I3: its attempt has lost the fence at once, and its slot is free.
    """
    claim = hands.begin()
    assert recovery.kill(hands.tenant, claim.ref.session_id, BY) == ("cancelled", True, 1)
    assert hands.entry(claim.ref)["state"] == "cancelled"
    before = hands.everything()
    with pytest.raises(FenceLost):
        hands.settle(claim, "end")
    assert hands.everything() == before
    assert recovery.kill(hands.tenant, claim.ref.session_id, BY) == ("cancelled", False, 0)


def attempts(hands: Hands, ref: StepRef) -> list[tuple[Any, ...]]:
    """How each attempt ended, by whom it was worked and what it cost, as its row says."""
    query = "select * from agentq.trace where session_id = %s and kind = 'attempt' order by ended_at, step_id, fence"
    rows = hands.rows(query, ref.session_id)
    return [(row["name"], row["fence"], row["closing"], row["worker"], row["cost_micros"]) for row in rows]


def reserve(hands: Hands, claim: Granted, ordinal: int = 1) -> Charge:
    """Reserve a call; the charge that it will come to."""
    name = f"{claim.ref.session_id}:{claim.ref.step_id}:{claim.fence}:{ordinal}"
    Budgets(hands.store).reserve(claim, Wanted(name, "openai", "big", 50, 40, 900, "test"))
    return Charge(name, "charged", 70, 7, 0, 3)


def test_a_killed_attempt_leaves_its_row(hands: Hands, recovery: Recovery) -> None:
    """
    I11: who worked it, and that it was killed and why; once, and nothing that comes later adds another.
    """
    claim = hands.begin()
    join, arms = hands.spawn(claim, 3)
    claims = [hands.claim(arm) for arm in arms]
    hands.settle(claims[0], "end")
    assert recovery.kill(hands.tenant, claim.ref.session_id, BY) == ("cancelled", True, 2)
    assert recovery.kill(hands.tenant, claim.ref.session_id, BY) == ("cancelled", False, 0)
    with pytest.raises(FenceLost):
        hands.settle(claims[1], "end")
    found = attempts(hands, claim.ref)
    assert found[:2] == [("first", 1, "next", hands.worker, 0), ("arm0", 1, "end", hands.worker, 0)]
    assert sorted(found[2:]) == [(name, 1, "cancelled", hands.worker, 0) for name in ("arm1", "arm2")]
    whys = hands.rows("select failure from agentq.trace where closing = 'cancelled'")
    assert [row["failure"]["type"] for row in whys] == ["SessionKilled"] * 2
    assert join.step_id not in {claim.ref.step_id for claim in claims}


def test_a_kill_waits_for_a_settlement_that_is_under_way(hands: Hands, recovery: Recovery) -> None:
    """
    What was settled first keeps its row, and gets no second one.
    """
    claim = hands.begin()
    with hands.store.transaction(hands.tenant) as connection:
        settlement = Settlement("next", kind="full", state=b"{}", state_from=claim.ref.step_id, steps=(step("second"),))
        hands.ledger.settle(claim, settlement, on=connection)
        killing = waiting(lambda: recovery.kill(hands.tenant, claim.ref.session_id, BY))
    killing.join(10)
    assert attempts(hands, claim.ref) == [("first", 1, "next", hands.worker, 0)]
    assert hands.session(claim.ref)["state"] == "cancelled"


@pytest.mark.parametrize("first", ["charge", "kill"])
def test_a_kill_and_a_charge_at_once_lose_no_money(hands: Hands, recovery: Recovery, first: str) -> None:
    """
    I6: a call is settled ahead of its step while the session is killed; whoever comes second sees the other.
    """
    claim = hands.begin()
    charge = reserve(hands, claim)
    budgets = Budgets(hands.store)
    with hands.store.transaction(hands.tenant) as connection:
        if first == "charge":
            arguments = (hands.tenant, claim.ref.session_id, claim.ref.step_id, claim.fence, Jsonb([charge.as_json()]))
            connection.execute("select agentq.settle_charges(%s, %s, %s, %s, %s, 'step')", arguments)
            second = waiting(lambda: recovery.kill(hands.tenant, claim.ref.session_id, BY))
        else:
            failure = Jsonb({"kind": "cancelled", "type": "SessionKilled", "message": ""})
            arguments = (hands.tenant, claim.ref.session_id, failure)  # type: ignore[assignment]
            connection.execute("select agentq.kill_session(%s, %s, %s)", arguments)
            second = waiting(lambda: budgets.settle(claim, (charge,)))
    second.join(10)
    assert attempts(hands, claim.ref) == [("first", 1, "cancelled", hands.worker, 70)]
    assert budgets.check(hands.tenant) == []


def test_a_replaced_attempt_leaves_its_row(hands: Hands, recovery: Recovery) -> None:
    """
    I6, I11: a replay takes the fence of what runs after its step, and of nothing else.
    """
    first, second = walk(hands, "b")
    hands.ledger.charge_late(second, (reserve(hands, second),))
    go_back(recovery, first.ref, second.ref)
    assert attempts(hands, first.ref) == [
        ("first", 1, "next", hands.worker, 0), ("b", 1, "cancelled", hands.worker, 70),
    ]  # fmt: skip
    hands.settle(claim_next(hands, first.ref), "end")
    assert [row[2] for row in attempts(hands, first.ref)] == ["next", "cancelled", "end"]


def test_a_disowned_attempt_leaves_a_row_when_it_called_something(hands: Hands) -> None:
    """
    I6: a claim that nobody has worked leaves none; one that had reserved a call does, and its charge goes there.
    """
    idle, busy = hands.begin(), hands.begin()
    charge = reserve(hands, busy)
    for claim in (idle, busy):
        assert hands.ledger.disown(claim.ref, claim.token) is not None
        assert hands.ledger.disown(claim.ref, claim.token) is None
    assert attempts(hands, idle.ref) == []
    assert attempts(hands, busy.ref) == [("first", 1, "release", hands.worker, 0)]
    hands.ledger.charge_late(busy, (charge,))
    assert attempts(hands, busy.ref) == [("first", 1, "release", hands.worker, 70)]
    assert hands.claim(busy.ref).attempt == 1


def test_unknown_sessions_are_said_to_be_unknown(hands: Hands, recovery: Recovery, other_tenant: str) -> None:
    """
    I8: another tenant's session is as unknown as one that never was.
    """
    ref = hands.start()
    for tenant, session_id in ((other_tenant, ref.session_id), (hands.tenant, new_id())):
        for call in (recovery.pause, recovery.resume, recovery.kill):
            with pytest.raises(UnknownSession):
                call(tenant, session_id, BY)
        with pytest.raises(UnknownSession):
            recovery.reopen(tenant, session_id, BY, generation=0)


# ── reopening ────────────────────────────────────────────────────────────────


def test_a_dead_session_goes_on_where_it_stopped(hands: Hands, recovery: Recovery) -> None:
    """
    The dead step is begun anew, with attempts of its own; what was recorded before it stays.
    """
    claims = walk(hands)
    hands.settle(claims[-1], "dead")
    assert hands.session(claims[0].ref)["state"] == "failed"

    found = go_back(recovery, claims[0].ref, None)

    assert (found.generation, found.sessions) == (1, (claims[0].ref.session_id,))
    session = hands.session(claims[0].ref)
    assert (session["state"], session["failure"], session["ended_at"]) == ("running", None, None)
    assert states(hands, claims[0].ref) == [("first", "done"), ("b", "done"), ("c", "done"), ("d", "ready")]
    old = hands.entry(claims[-1].ref)
    assert (old["state"], old["superseded"]) == ("dead", 1)
    again = claim_next(hands, claims[0].ref)
    assert (again.attempt, again.path, again.states) == (1, claims[-1].path, claims[-1].states)
    hands.settle(again, "end")
    assert hands.session(claims[0].ref)["state"] == "done"


def test_a_replay_keeps_each_generations_checkpoints(hands: Hands, recovery: Recovery) -> None:
    """
    What came after the step is superseded, not removed; the first generation can still be read.
    """
    claims = walk(hands)
    hands.settle(claims[-1], "end")
    before = hands.rows("select * from agentq.checkpoint order by step_id")

    found = go_back(recovery, claims[0].ref, claims[1].ref)

    assert states(hands, claims[0].ref) == [("first", "done"), ("b", "ready")]
    assert hands.rows("select * from agentq.checkpoint order by step_id") == before
    assert [hands.entry(claim.ref)["superseded"] for claim in claims] == [None, 1, 1, 1]
    again = claim_next(hands, claims[0].ref)
    assert again.ref.step_id == found.step_id
    assert again.generation == 1
    with pytest.raises(NotReopened, match="replaced by an earlier replay"):
        go_back(recovery, claims[0].ref, claims[2].ref, generation=1)


def test_an_edited_state_is_what_the_step_begins_from(hands: Hands, recovery: Recovery) -> None:
    """
    The edit is a checkpoint of its own; the one it replaces is still there.
    """
    claims = walk(hands, "b")
    hands.settle(claims[-1], "dead")
    go_back(recovery, claims[0].ref, claims[-1].ref, state=b'{"n":9}')
    assert claim_next(hands, claims[0].ref).states == (b'{"n":9}',)


def test_of_two_who_reopen_at_once_one_wins(hands: Hands, recovery: Recovery) -> None:
    """
    The generation that each has seen decides; the step is begun anew once.
    """
    claim = hands.begin()
    hands.settle(claim, "dead")
    answers = at_once(*[lambda: go_back(recovery, claim.ref, claim.ref)] * 8)
    assert sum(isinstance(answer, Reopened) for answer in answers) == 1
    assert {a.outcome for a in answers if not isinstance(a, Reopened)} == {"moved"}
    assert states(hands, claim.ref) == [("first", "ready")]


def test_a_late_attempt_of_a_replaced_step_writes_nothing(hands: Hands, recovery: Recovery) -> None:
    """
    I3: a step that runs while its session is sent back before it has lost its fence.
    """
    claims = walk(hands)
    go_back(recovery, claims[0].ref, claims[1].ref)
    with pytest.raises(FenceLost):
        hands.follow(claims[-1], step("e"))
    assert states(hands, claims[0].ref) == [("first", "done"), ("b", "ready")]


def test_a_settlement_under_way_is_waited_for(hands: Hands, recovery: Recovery) -> None:
    """
    A follower that is committed while the session is being reopened is superseded like the rest, not left to run.
    """
    claims = walk(hands, "b")
    with psycopg.connect(hands.store.url) as other:
        other.execute("select set_config('agentq.tenant', %s, true)", (hands.tenant,))
        late = Settlement("next", kind="full", state=b"{}", state_from=new_id(), steps=(step("late"),))
        hands.ledger.settle(claims[-1], late, on=other)
        reopening = waiting(lambda: go_back(recovery, claims[0].ref, claims[0].ref))
        other.commit()
        reopening.join(30)
    assert states(hands, claims[0].ref) == [("first", "ready")]


def test_a_stopped_attempt_of_a_reopened_session_comes_back(hands: Hands, recovery: Recovery) -> None:
    """
    It was told to stop because its session had ended, and settles after somebody has reopened that.
    """
    join, arms = hands.spawn(hands.begin(), 2)
    one, two = [hands.claim(arm) for arm in arms]
    hands.settle(one, "dead")
    go_back(recovery, join, None)
    [wake] = hands.settle(two, "cancelled").wakes
    assert wake.step_id == two.ref.step_id
    assert hands.entry(two.ref)["attempt"] == 0


def test_what_was_cancelled_beside_it_is_revived(hands: Hands, recovery: Recovery) -> None:
    """
    A branch that died had ended the session: its siblings and the join go on as if nothing had happened.
    """
    join, arms = hands.spawn(hands.begin(), 3)
    claims = [hands.claim(arm) for arm in arms[:2]]
    hands.settle(claims[0], "end")
    hands.settle(claims[1], "dead")
    assert [row["state"] for row in current(hands, join)] == ["done", "done", "dead", "cancelled", "cancelled"]

    go_back(recovery, join, arms[1])

    assert states(hands, join) == [
        ("first", "done"), ("arm0", "done"), ("arm1", "ready"), ("arm2", "ready"), ("join", "waiting"),
    ]  # fmt: skip
    for row in [r for r in current(hands, join) if r["state"] == "ready"]:
        hands.admit()
        hands.settle(hands.claim(StepRef(hands.tenant, join.session_id, row["step_id"])), "end")
    assert [row.state for row in hands.ledger.branches(join)] == ["done"] * 3
    hands.settle(hands.claim(join), "end")
    assert hands.session(join)["state"] == "done"


def test_a_branch_of_a_join_that_ran_runs_the_join_again(hands: Hands, recovery: Recovery) -> None:
    """
    Replayed, one branch alone runs again; the join gets a copy that waits for it and knows what the others came to.
    """
    join, arms = hands.spawn(hands.begin(), 2)
    for number, arm in enumerate(arms):
        hands.settle(hands.claim(arm), "end", result=b"%d" % number)
    after = step("after")
    hands.follow(hands.claim(join), after)
    hands.settle(hands.claim(hands.ref(after, join.session_id)), "end")

    go_back(recovery, join, arms[0])

    assert states(hands, join) == [("first", "done"), ("arm0", "ready"), ("arm1", "done"), ("join", "waiting")]
    hands.settle(claim_next(hands, join), "end", result=b"7")
    again = claim_next(hands, join)
    assert [row.result for row in hands.ledger.branches(again.ref)] == [b"7", b"1"]
    # And once more: the copy's branches are replayed like the first one's.
    hands.settle(again, "end")
    [arm1] = [row for row in current(hands, join) if row["name"] == "arm1"]
    go_back(recovery, join, StepRef(hands.tenant, join.session_id, arm1["step_id"]), generation=1)
    hands.settle(claim_next(hands, join), "end", result=b"8")
    assert [row.result for row in hands.ledger.branches(claim_next(hands, join).ref)] == [b"7", b"8"]


def test_a_join_replayed_alone_keeps_its_branches(hands: Hands, recovery: Recovery) -> None:
    """
    Going back to the join does not run its branches again.
    """
    join, arms = hands.spawn(hands.begin(), 2)
    for arm in arms:
        claim = hands.claim(arm)
        tail = step("tail", join_step=join.step_id, branch=claim.branch)
        hands.follow(claim, tail)
        hands.settle(hands.claim(hands.ref(tail, join.session_id)), "end")
    hands.settle(hands.claim(join), "dead")
    go_back(recovery, join, join)
    again = claim_next(hands, join)
    assert (again.fan, len(hands.ledger.branches(again.ref))) == (2, 2)
    assert [name for name, state in states(hands, join) if state == "done"] == ["first", "arm0", "arm1", "tail", "tail"]


def test_a_failed_branch_within_a_branch_opens_both(hands: Hands, recovery: Recovery) -> None:
    """
    A join within a branch had been given up; it waits again, and so does the one around it.
    """
    outer, [arm] = hands.spawn(hands.begin(), 1, collect=True)
    claim = hands.claim(arm)
    _, arms = hands.spawn(claim, 2, join_step=outer.step_id, branch=0)
    hands.settle(hands.claim(arms[0]), "dead")
    assert hands.entry(outer)["state"] == "queued"
    hands.settle(hands.claim(outer), "end")

    go_back(recovery, outer, arms[0])

    rows = {(row["name"], row["seq"]): row["state"] for row in current(hands, outer)}
    assert sorted(rows.values()) == ["done", "done", "ready", "ready", "waiting", "waiting"]
    for _ in range(2):
        hands.admit()
        [*_, row] = [row for row in current(hands, outer) if row["state"] == "queued"]
        hands.settle(hands.claim(StepRef(hands.tenant, outer.session_id, row["step_id"])), "end")
    hands.settle(claim_next(hands, outer), "end")
    hands.settle(claim_next(hands, outer), "end")
    assert hands.session(outer)["state"] == "done"


def spawn_children(hands: Hands, count: int, *, collect: bool = False) -> tuple[StepRef, list[StepRef]]:
    """A session whose join waits for child sessions; the join, and their first steps, admitted."""
    claim = hands.begin()
    join = step("join", fan=count, collect=collect)
    children = [hands.child(join, number) for number in range(count)]
    hands.follow(claim, join, children=children)
    hands.admit()
    return hands.ref(join, claim.ref.session_id), [
        StepRef(hands.tenant, child.session_id, child.step_id) for child in children
    ]


def test_a_parent_that_failed_with_its_child_goes_on_with_it(hands: Hands, recovery: Recovery) -> None:
    """
    So do the other children, which had been ended because of that: the finished one closes its branch.
    """
    join, (one, two, three) = spawn_children(hands, 3)
    running = hands.claim(two)
    finishing = hands.claim(three)
    hands.settle(hands.claim(one), "dead")
    assert hands.session(join)["state"] == "failed"
    hands.settle(finishing, "end")  # too late for its parent
    hands.ledger.expire_sessions(100)
    assert hands.session(two)["state"] == "cancelled"
    assert hands.settle(running, "end").session_ended_before

    found = go_back(recovery, one, None)

    assert set(found.sessions) == {one.session_id, join.session_id, two.session_id}
    assert hands.session(three)["state"] == "done"
    assert [row.state for row in hands.ledger.branches(join)] == ["open", "open", "done"]
    hands.ledger.expire_sessions(100)
    for child in (one, two):
        hands.settle(claim_next(hands, child), "end")
    hands.settle(hands.claim(join), "end")
    assert hands.session(join)["state"] == "done"


def test_a_child_whose_branch_is_still_awaited_opens_it(hands: Hands, recovery: Recovery) -> None:
    """
    Its failure had been collected, but the join has not run yet.
    """
    join, (one, two) = spawn_children(hands, 2, collect=True)
    hands.settle(hands.claim(one), "dead")
    go_back(recovery, one, None)
    assert hands.entry(join)["waits_for"] == 2
    hands.settle(hands.claim(two), "end")
    hands.settle(claim_next(hands, one), "end")
    assert [row.state for row in hands.ledger.branches(join)] == ["done", "done"]


def test_a_parent_that_went_on_is_left_alone(hands: Hands, recovery: Recovery) -> None:
    """
    The child runs to its end by itself; what the parent made of its failure stands.
    """
    join, (one,) = spawn_children(hands, 1, collect=True)
    hands.settle(hands.claim(one), "dead")
    hands.settle(hands.claim(join), "end")
    before = hands.session(join)
    assert go_back(recovery, one, None).sessions == (one.session_id,)
    hands.ledger.expire_sessions(100)
    hands.settle(claim_next(hands, one), "end")
    assert hands.session(one)["state"] == "done"
    assert hands.session(join) == before


def test_a_child_of_a_cancelled_parent_is_not_reopened(hands: Hands, recovery: Recovery) -> None:
    """
    The relay would end it at once; reopening the parent brings it back.
    """
    join, (one,) = spawn_children(hands, 1)
    hands.sessions.cancel(hands.tenant, join.session_id, Failure("cancelled", "SessionCancelled", ""))
    hands.ledger.expire_sessions(100)
    before = hands.everything()
    with pytest.raises(NotReopened, match="parent"):
        go_back(recovery, one, None)
    assert hands.everything() == before
    assert set(go_back(recovery, join, None).sessions) == {join.session_id, one.session_id}
    hands.settle(claim_next(hands, one), "end")
    hands.settle(hands.claim(join), "end")


def test_children_of_a_superseded_join_are_ended_and_do_no_harm(hands: Hands, recovery: Recovery) -> None:
    """
    The session went back before it spawned them: their failure fails nobody.
    """
    join, (one, two) = spawn_children(hands, 2)
    [first] = [row for row in current(hands, join) if row["name"] == "first"]
    go_back(recovery, join, StepRef(hands.tenant, join.session_id, first["step_id"]))
    hands.settle(hands.claim(one), "dead")
    assert hands.session(join)["state"] == "running"
    hands.ledger.expire_sessions(100)
    assert hands.session(two)["state"] == "cancelled"
    assert hands.session(join)["state"] == "running"


def test_a_deadline_that_is_over_must_be_set_anew(hands: Hands, recovery: Recovery) -> None:
    """
    Otherwise the relay would end the session again at once.
    """
    claim = hands.begin(deadline_s=0.0)
    hands.ledger.expire_sessions(100)
    assert hands.session(claim.ref)["state"] == "failed"
    with pytest.raises(NotReopened, match="deadline"):
        go_back(recovery, claim.ref, None)
    go_back(recovery, claim.ref, None, deadline_s=3600.0)
    assert hands.session(claim.ref)["deadline_at"] is not None
    hands.ledger.expire_sessions(100)
    assert hands.session(claim.ref)["state"] == "running"
    go_back(recovery, claim.ref, claim.ref, generation=1, deadline_s=0.0)
    assert hands.session(claim.ref)["deadline_at"] is None


def test_a_session_that_gave_up_does_its_last_step_again(hands: Hands, recovery: Recovery) -> None:
    """
    `Fail` is no error of the step, so no entry is dead; what decided so is what a person wants done again.
    """
    claims = walk(hands, "b")
    hands.settle(claims[-1], "fail", failure=Failure("gave_up", "Fail", "no"))
    go_back(recovery, claims[0].ref, None)
    assert states(hands, claims[0].ref) == [("first", "done"), ("b", "ready")]


@pytest.mark.parametrize("closing", [None, "end"])
def test_a_session_that_did_not_fail_needs_a_step(hands: Hands, recovery: Recovery, closing: str | None) -> None:
    """
    Where should it go on? It says so, and changes nothing.
    """
    claim = hands.begin()
    if closing:
        hands.settle(claim, closing)
    before = hands.everything()
    with pytest.raises(NotReopened):
        go_back(recovery, claim.ref, None)
    with pytest.raises(NotReopened):
        go_back(recovery, claim.ref, StepRef(hands.tenant, claim.ref.session_id, new_id()))
    assert hands.everything() == before


def test_history_of_what_was_replaced_is_not_read(hands: Hands, recovery: Recovery) -> None:
    """
    Messages that superseded steps appended stay stored, and the session goes on as if they had not been.
    """
    claim = hands.begin()
    follower = step("b")
    hands.settle(claim, "next", steps=(follower,), extras=Extras(messages=((b"1", "me"),)))
    second = hands.claim(hands.ref(follower, claim.ref.session_id))
    hands.settle(second, "fail", failure=BROKEN, extras=Extras(messages=((b"2", "me"),)))
    go_back(recovery, claim.ref, second.ref)
    assert [body for _, body, _ in hands.ledger.messages(claim.ref)] == [b"1"]
    hands.settle(claim_next(hands, claim.ref), "end", extras=Extras(messages=((b"3", "me"),)))
    assert [body for _, body, _ in hands.ledger.messages(claim.ref)] == [b"1", b"3"]
    assert len(hands.rows("select 1 from agentq.message")) == 3


def test_a_question_that_was_void_is_asked_again(hands: Hands, recovery: Recovery) -> None:
    """
    A step that may go on only with an answer does not run without one, however its session came back.
    """
    claim = hands.begin()
    approval, follower = new_id(), step("pay")
    follower = replace(follower, approval=approval)
    ask = NewApproval(approval, follower.step_id, "ask", "pay", b"{}", b"h", "Pay?", ("finance",), 60.0)
    hands.settle(claim, "next", steps=(follower,), asks=(ask,))
    ref = hands.ref(follower, claim.ref.session_id)
    hands.sessions.cancel(hands.tenant, ref.session_id, BROKEN)

    go_back(recovery, ref, None)

    rows = hands.rows("select approval_id, state, generation from agentq.approval order by asked_at")
    assert [(row["state"], row["generation"]) for row in rows] == [("void", 0), ("open", 1)]
    entry = hands.entry(ref)
    assert (entry["state"], entry["approval"]) == ("waiting", rows[1]["approval_id"])
    go_back(recovery, ref, claim.ref, generation=1)
    assert [row["state"] for row in hands.rows("select state from agentq.approval")] == ["void", "void"]


# ── versions that nobody serves ──────────────────────────────────────────────


def test_a_step_that_nobody_serves_waits_without_a_slot(hands: Hands, recovery: Recovery) -> None:
    """
    I10: it is held until a worker of its version is there, and then admitted like any other.
    """
    ref = hands.start(version=2)
    hands.admit()
    refused = hands.try_claim(ref)
    assert isinstance(refused, NotGranted)
    assert refused.reason == "unserved"
    entry = hands.entry(ref)
    assert (entry["state"], entry["unserved"]) == ("held", "robot@2")
    assert recovery.waits(hands.tenant, ref.session_id)[0].unserved == "robot@2"
    hands.ledger.offer_served()
    assert hands.entry(ref)["state"] == "held"

    newer = Registration(
        hands.store, group="default", role="steps", host="test", pid=2, release="0", serves=["robot@2"]
    )
    newer.beat(60.0)
    try:
        hands.ledger.offer_served()
        hands.admit()
        assert isinstance(hands.try_claim(ref, worker=newer.worker_id, serves=["robot@2"]), Granted)
    finally:
        newer.stop()


def test_a_step_that_another_worker_serves_keeps_its_slot(hands: Hands) -> None:
    """
    Its message came to the wrong worker of a rolling deploy; the right one is there.
    """
    ref = hands.start()
    hands.admit()
    refused = hands.try_claim(ref, serves=["robot@9"])
    assert isinstance(refused, NotGranted)
    assert hands.entry(ref)["state"] == "queued"


def test_an_unserved_step_of_a_paused_session_stays_held(hands: Hands, recovery: Recovery) -> None:
    """
    The worker that it waited for comes while the session is paused: it goes on when that is resumed.
    """
    ref = hands.start(version=2)
    hands.admit()
    hands.try_claim(ref)
    recovery.pause(hands.tenant, ref.session_id, BY)
    with hands.store.transaction(hands.tenant) as connection:
        connection.execute("update agentq.ledger_entry set unserved = %s where step_id = %s", (PIN, ref.step_id))
    hands.ledger.offer_served()
    assert (hands.entry(ref)["state"], hands.entry(ref)["unserved"]) == ("held", None)
    recovery.resume(hands.tenant, ref.session_id, BY)
    assert hands.entry(ref)["state"] == "ready"


def test_what_is_too_large_for_postgres_is_not_an_outage(hands: Hands) -> None:
    """
    It would be too large at every repeat, so nobody waits for Postgres to come back.
    """
    with pytest.raises(psycopg.errors.ProgramLimitExceeded), hands.store.transaction(hands.tenant) as connection:
        connection.execute("select repeat('x', 1024 * 1024 * 1024)")
