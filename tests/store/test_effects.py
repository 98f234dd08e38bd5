"""Effects in the store: one claim per key, and only by the holder of the fence."""

from __future__ import annotations

import pytest

from agentq.store.effects import Effects
from agentq.verdicts import Failure, Granted
from tests.support.hands import Hands, at_once

BROKE = Failure("transient", "E", "broke")


@pytest.fixture
def effects(hands: Hands) -> Effects:
    return Effects(hands.store)


def claim(effects: Effects, step: Granted, key: str = "k", args: bytes = b"a") -> str:
    return effects.claim(step, key, name="pay", args_hash=args, durable=True).state


def again(hands: Hands, step: Granted) -> Granted:
    """The next attempt, after the worker of this one died."""
    hands.ledger.disown(step.ref, step.token)
    return hands.claim(step.ref)


def test_fresh_then_done(hands: Hands, effects: Effects) -> None:
    """
    The first claim is fresh; once the result is stored, every further one recalls it.
    """
    step = hands.begin()
    assert claim(effects, step) == "fresh"
    assert effects.settle(step, "k", "done", result=b"7")
    found = effects.claim(again(hands, step), "k", name="pay", args_hash=b"a", durable=True)
    assert (found.state, found.result) == ("done", b"7")


def test_an_attempt_that_died_leaves_it_pending(hands: Hands, effects: Effects) -> None:
    """
    I5: between claim and result nobody knows; the next attempt is told so.
    """
    step = hands.begin()
    claim(effects, step)
    assert claim(effects, again(hands, step)) == "pending"


def test_a_call_that_failed_may_go_out_again(hands: Hands, effects: Effects) -> None:
    """
    A call known not to have happened is claimed again, and counted.
    """
    step = hands.begin()
    claim(effects, step)
    effects.settle(step, "k", "failed", failure=BROKE)
    second = again(hands, step)
    assert claim(effects, second) == "again"
    assert hands.rows("select state, calls, fence from agentq.effect") == [
        {"state": "pending", "calls": 2, "fence": second.fence}
    ]


def test_unknown_stays_unknown(hands: Hands, effects: Effects) -> None:
    """
    I5: what only a person can settle is not repeated by any attempt.
    """
    step = hands.begin()
    claim(effects, step)
    effects.settle(step, "k", "unknown", failure=BROKE)
    assert claim(effects, again(hands, step)) == "unknown"


def test_a_key_with_other_arguments_is_a_conflict(hands: Hands, effects: Effects) -> None:
    """
    A key must mean one request; a changed argument is never silently answered with the old result.
    """
    step = hands.begin()
    claim(effects, step, args=b"a")
    effects.settle(step, "k", "done", result=b"1")
    assert claim(effects, step, args=b"b") == "conflict"


def test_a_zombie_claims_and_stores_nothing(hands: Hands, effects: Effects) -> None:
    """
    I3 for effects: whoever lost the fence may not call, may not take over, and its late result is refused.
    """
    zombie = hands.begin()
    claim(effects, zombie)
    fresh = again(hands, zombie)
    assert claim(effects, zombie, key="another") == "superseded"
    assert not effects.take_over(zombie, "k", calling=True)
    assert effects.take_over(fresh, "k", calling=True)
    assert not effects.settle(zombie, "k", "done", result=b"zombie")
    assert effects.settle(fresh, "k", "done", result=b"fresh")


def test_two_steps_with_one_domain_key_call_once(hands: Hands, effects: Effects) -> None:
    """
    I5: a key that the tool declares is the tenant's: of two sessions one calls, the other waits and then recalls.
    """
    steps = [hands.begin(), hands.begin()]

    answers = at_once(*[lambda step=step: claim(effects, step) for step in steps])

    assert sorted(answers) == ["fresh", "held"]
    caller = steps[answers.index("fresh")]
    effects.settle(caller, "k", "done", result=b"1")
    assert claim(effects, steps[answers.index("held")]) == "done"


def test_an_effect_of_a_dead_step_can_be_taken_over_by_another(hands: Hands, effects: Effects) -> None:
    """
    Held only while its holder runs: afterwards another session finds it pending, and one takes it over.
    """
    first, second = hands.begin(), hands.begin()
    claim(effects, first)
    hands.ledger.disown(first.ref, first.token)
    assert claim(effects, second) == "pending"
    assert effects.take_over(second, "k", calling=True)
    revived = hands.claim(first.ref)
    assert claim(effects, revived) == "held"
    assert not effects.take_over(revived, "k", calling=True)


def test_a_call_stored_once_is_told_so(hands: Hands, effects: Effects) -> None:
    """
    Storing again what is stored already, because the answer was lost, is no loss of the fence.
    """
    step = hands.begin()
    claim(effects, step)
    assert effects.settle(step, "k", "done", result=b"1")
    assert effects.settle(step, "k", "done", result=b"1")
    assert not effects.settle(step, "k", "failed", failure=BROKE)


def test_keys_belong_to_their_tenant(hands: Hands, effects: Effects, other_tenant: str) -> None:
    """
    I8: two tenants' effects never meet, whatever their keys.
    """
    other = Hands(hands.store, other_tenant)
    try:
        assert claim(effects, hands.begin(), args=b"a") == "fresh"
        assert claim(effects, other.begin(), args=b"b") == "fresh"
    finally:
        other.close()
