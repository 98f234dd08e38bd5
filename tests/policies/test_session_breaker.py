"""The session breaker: loops are noticed, ordinary work is not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from agentq.policies.session_breaker import Action, Breaker, Hint, Trip, Window, judge, note_actions, note_answer


def act(tool: str, arguments: Any = None, result: Any = None, **more: Any) -> Action:
    return Action(tool=tool, arguments=arguments, result=result, **more)


def watch(actions: Iterator[list[Action]], breaker: Breaker | None = None, turns: int = 40) -> tuple[int, Any]:
    """After how many turns the breaker trips, and why."""
    window = Window()
    for turn in range(1, turns + 1):
        window = note_actions(window, next(actions))
        found = judge(window, breaker or Breaker())
        if isinstance(found, Trip):
            return turn, found
    return turns, None


def cycle(*actions: Action) -> Iterator[list[Action]]:
    while True:
        for action in actions:
            yield [action]


@pytest.mark.parametrize(("length", "turns"), [(1, 7), (2, 8), (4, 10)])
def test_the_same_calls_with_the_same_results_stop_within_ten(length: int, turns: int) -> None:
    """
    The stale streak: six actions in a row that were seen before, whatever the cycle between them.
    """
    stopped, trip = watch(cycle(*[act("search", {"q": n}, "nothing") for n in range(length)]))
    assert (stopped, trip.rule) == (turns, "stale")
    assert trip.evidence["streak"] == 6


def test_a_hint_comes_before_the_stop_and_once() -> None:
    window, hints = Window(), []
    for turn in range(1, 8):
        window = note_actions(window, [act("search", {"q": 1}, "nothing")])
        if isinstance(judge(window, Breaker()), Hint):
            hints.append(turn)
    assert hints == [5]


def test_polling_is_no_loop() -> None:
    """
    A tool that says so may have the same answer for ever; limits of steps and time hold it.
    """
    assert watch(cycle(act("poll", {"job": 1}, "running", poll=True)), turns=60)[1] is None


def test_the_same_calls_over_and_over_are_a_cycle_even_with_new_results() -> None:
    """
    A result with a time in it is never the same; the calls are.
    """

    def clocked() -> Iterator[list[Action]]:
        for n in range(1000):
            yield [act("status", {"id": n % 2}, f"at {n}")]

    turns, trip = watch(clocked())
    assert (turns, trip.rule) == (24, "cycle")


def test_new_words_with_no_news_stop() -> None:
    """
    Paraphrased arguments escape the streak; that nothing new comes of them does not.
    """

    def paraphrased() -> Iterator[list[Action]]:
        for n in range(1000):
            yield [act("search", {"q": f"words {n}"}, "no results")]

    turns, trip = watch(paraphrased())
    assert trip.rule == "no_news"
    assert turns == 16


def test_work_that_says_only_ok_is_work() -> None:
    """
    A tool that changes something answers the same each time, for other arguments.
    """

    def sending() -> Iterator[list[Action]]:
        for n in range(1000):
            yield [act("send", {"to": n}, "ok", changes=True)]

    assert watch(sending(), turns=100)[1] is None


def test_answers_that_cannot_be_used() -> None:
    window = Window()
    for n in range(12):
        window = note_answer(window, tokens=10, flawed=n % 2 == 0)
    found = judge(window, Breaker())
    assert isinstance(found, Trip)
    assert found.rule == "semantic"


def test_tokens_that_take_off() -> None:
    """
    A history that grows by the same each turn does not; one that multiplies does.
    """
    window = Window()
    for turn in range(1, 60):
        window = note_answer(window, tokens=3_000 * turn, flawed=False)
        assert judge(window, Breaker()) is None
    window = Window()
    for tokens in [2_000] * 5 + [20_000] * 5:
        window = note_answer(window, tokens=tokens, flawed=False)
    found = judge(window, Breaker())
    assert isinstance(found, Trip)
    assert found.rule == "acceleration"


def test_ordinary_runs_are_left_alone() -> None:
    """
    Runs of mixed tools with some repetition: at most two of a hundred are stopped.
    """
    draw = random.Random(7)
    stopped = 0
    for _ in range(100):
        turns = iter(
            [
                [act(draw.choice(["search", "read", "send"]), {"n": draw.randrange(30)}, draw.randrange(50))]
                for _ in range(40)
            ]
        )
        stopped += watch(turns)[1] is not None
    assert stopped <= 2


def test_what_is_remembered_stays_small() -> None:
    window = Window()
    for n in range(2000):
        window = note_actions(window, [act("t", {"n": n}, n)])
        window = note_answer(window, tokens=10**6, flawed=True)
    assert len(window.model_dump_json()) < 1200


def test_each_rule_can_be_switched_off() -> None:
    off = Breaker(hint_after=0, stale=0, turns_without_news=0, semantic=0, cycle=0, acceleration=0)
    assert watch(cycle(act("search", {}, "nothing")), off, turns=60)[1] is None
