"""The judge finds each kind of violation in a doctored history, and none in a clean one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentq.chaos.judge import KINDS, History, counts, judge
from agentq.chaos.plan import Wanted
from tests.chaos.histories import BEGAN, clean, first_of, with_ends, with_request, without


def _found(history: History) -> set[str]:
    return {violation.kind for violation in judge(history).violations}


def _plain(history: History) -> Wanted:
    return next(wanted for wanted in history.wanted if wanted.may_be_unknown)


def _sturdy(history: History) -> Wanted:
    return next(wanted for wanted in history.wanted if not wanted.may_be_unknown and not wanted.poison)


def test_a_clean_history_passes() -> None:
    """Nothing is found where nothing is wrong, for many seeds."""
    for seed in range(20):
        found = judge(clean(seed))
        assert found.ok, found.violations
        assert found.figures["effects done"] == found.figures["effects wanted"] > 0
        assert set(counts(found.violations)) == set(KINDS)


def test_an_accepted_session_that_is_not_there_is_lost() -> None:
    """The client does not list what a producer was told is accepted."""
    history = clean()
    assert _found(without(history, _sturdy(history).key)) == {"lost"}


def test_a_submission_that_never_returned_is_lost() -> None:
    """The producers gave up."""
    history = clean()
    key = _sturdy(history).key
    assert "lost" in _found(replace(history, accepted=[each for each in history.accepted if each.key != key]))


def test_two_sessions_for_one_key() -> None:
    """The same key has two ids, by the list or by the producers' answers."""
    history = clean()
    end = history.ends[0]
    assert "doubled" in _found(replace(history, ends=[*history.ends, replace(end, session_id="another")]))
    accepted = history.accepted[0]
    again = replace(accepted, session_id="another", created=False)
    assert "doubled" in _found(replace(history, accepted=[*history.accepted, again]))
    assert _found(replace(history, accepted=[*history.accepted, accepted])) == {"doubled"}  # both created it


def test_a_done_session_whose_effect_never_arrived() -> None:
    """The session says done, the service was never asked."""
    history = clean()
    request = first_of(history, "checked")
    assert "effect missing" in _found(with_request(history, request.number, applied=False))


@pytest.mark.parametrize(
    ("kind", "violation"),
    [("idempotent", "effect repeated"), ("checked", "silent duplicate"), ("plain", "silent duplicate")],
)
def test_an_effect_done_twice(kind: str, violation: str) -> None:
    """The service did it under two keys, or twice where it does not look at keys."""
    history = clean()
    request = first_of(history, kind)
    again = replace(request, number=10_000, key=request.key + "'", at=request.at + 0.2)
    assert _found(replace(history, requests=[*history.requests, again])) == {violation}


def test_a_call_repeated_under_its_key_is_no_duplicate() -> None:
    """The service saw the repeat for what it is, and did nothing."""
    history = clean()
    request = first_of(history, "idempotent")
    again = replace(request, number=10_000, at=request.at + 0.2, applied=False)
    assert judge(replace(history, requests=[*history.requests, again])).ok


def test_a_result_that_does_not_follow() -> None:
    """The result, or a value on the way, is not what the inputs lead to."""
    history = clean()
    assert _found(with_ends(history, _sturdy(history).key, result=["wrong"])) == {"corrupt"}
    assert _found(with_request(history, first_of(history, "idempotent").number, value="wrong")) == {"corrupt"}


def test_a_change_that_nobody_planned() -> None:
    """A place that the session does not have."""
    history = clean()
    stray = replace(history.requests[0], number=10_000, place="99", key="stray")
    assert "corrupt" in _found(replace(history, requests=[*history.requests, stray]))


def test_steps_out_of_order() -> None:
    """A step's change was asked for before the one that it builds upon."""
    history = clean()
    second = next(request for request in history.requests if request.place == "1")
    assert _found(with_request(history, second.number, at=BEGAN - 5)) == {"out of order"}


def test_a_join_before_its_branches() -> None:
    """A fan's join waits for every branch."""
    history = clean()
    join = next(request for request in history.requests if request.place == "join")
    assert _found(with_request(history, join.number, at=BEGAN - 5)) == {"out of order"}


@pytest.mark.parametrize("state", ["running", "queued", "cancelling"])
def test_a_session_that_has_not_ended(state: str) -> None:
    """Long after the last fault it neither ended nor waits for a person."""
    history = clean()
    assert _found(with_ends(history, _sturdy(history).key, state=state, result=None)) == {"stuck"}


def test_an_innocent_that_died() -> None:
    """It failed, for whatever reason, and nothing was wrong with it."""
    history = clean()
    dead = {"state": "failed", "result": None, "failure_kind": "worker_lost"}
    assert _found(with_ends(history, _sturdy(history).key, **dead)) == {"innocent dead"}
    cancelled = {"state": "cancelled", "result": None}
    assert _found(with_ends(history, _sturdy(history).key, **cancelled)) == {"innocent dead"}


def test_unknown_is_for_effects_that_nobody_can_ask_about() -> None:
    """Parked is honest only where neither a repeat nor a question helps."""
    history = clean()
    unknown = {"state": "failed", "result": None, "failure_kind": "unknown"}
    assert _found(with_ends(history, _sturdy(history).key, **unknown)) == {"innocent dead"}
    assert judge(with_ends(history, _plain(history).key, **unknown)).ok
    waits = {"state": "paused", "result": None, "waits_for_person": True}
    assert judge(with_ends(history, _plain(history).key, **waits)).ok


def test_parked_without_a_fault() -> None:
    """Nothing fell while it was in flight, so nothing was unknown."""
    history = clean()
    parked = with_ends(history, _plain(history).key, state="failed", result=None, failure_kind="unknown")
    assert _found(replace(parked, hits=[])) == {"parked without a fault"}
    late = [replace(hit, began=BEGAN + 9_000, healed=BEGAN + 9_000) for hit in history.hits]
    assert _found(replace(parked, hits=late)) == {"parked without a fault"}


def test_poison_that_runs_on_or_is_called_something_else() -> None:
    """More than four runs, another end than a lost worker, or none."""
    history = clean()
    key = next(wanted.key for wanted in history.wanted if wanted.poison)
    run = next(request for request in history.requests if request.what == "ran")
    more = [replace(run, number=10_000 + n) for n in range(2)]
    assert _found(replace(history, requests=[*history.requests, *more])) == {"poison alive"}
    assert _found(with_ends(history, key, state="done", failure_kind="")) == {"poison alive"}
    assert _found(with_ends(history, key, state="running", failure_kind="")) == {"stuck"}


def test_a_fault_that_hit_nothing_fails_the_run() -> None:
    """A run shows something only if its faults did something."""
    history = clean()
    missed = [replace(hit, missed="no worker had a call in flight") for hit in history.hits]
    assert _found(replace(history, hits=missed)) == {"fault without effect"}
