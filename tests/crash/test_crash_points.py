"""A worker is killed at each point of the protocol, before and after each write; nothing recorded runs again."""

from __future__ import annotations

import time

import pytest

from tests.crash.arena import Arena, wait_until

pytestmark = pytest.mark.crash

THREADS = 8

# Where, and at which passage: late enough that steps are in flight, early enough that others follow.
POINTS = [
    ("received", 12),
    ("claimed", 12),
    ("effect_claimed", 12),
    ("effect_called", 12),
    ("effect_stored", 12),
    ("ran", 12),
    ("settled", 12),
    ("dispatched", 12),
    ("publishing", 8),
    ("published", 8),
    ("admitted", 1),
    ("took_back", 1),
    ("republished", 1),
]


@pytest.mark.parametrize(("point", "count"), POINTS, ids=[point for point, _ in POINTS])
def test_a_worker_killed_at(arena: Arena, point: str, count: int) -> None:
    """
    Every session ends; no recorded step runs again; no more is repeated than was in flight.

    What is not declared repeatable is never called twice: those sessions fail, visibly, as unknown.
    """
    arena.crew(2, threads=THREADS)
    if point == "took_back":
        # Somebody must have died before anything is taken back; a third one lives to see it through.
        arena.crew(3, threads=THREADS)
        arena.order("claimed", 12)
    else:
        arena.order(point, count)
    if point == "admitted":
        # A backlog, which the relay admits; otherwise the client would have done it.
        arena.set_concurrency(6)
    sessions = {
        kind: arena.walks(kind, number, pause_s=0.05)
        for kind, number in (("repeatable", 10), ("checked", 6), ("undeclared", 6))
    }
    if point == "took_back":
        wait_until(arena.deaths, 20, "the first death")
        arena.order(point)
    if point == "republished":
        time.sleep(0.3)
        arena.stack.valkey.wipe()
    began = time.monotonic()
    expected_deaths = 2 if point == "took_back" else 1
    wait_until(lambda: len(arena.deaths()) == expected_deaths, 30, f"a death at {point}")
    for kind, group in sessions.items():
        states = arena.wait(group)
        if kind != "undeclared":
            assert states == {"done": len(group)}
    ended_s = time.monotonic() - began

    history = arena.assert_nothing_recorded_ran_again()
    in_flight = sum(step.crashes for group in sessions.values() for session in group for step in session.steps())
    assert in_flight <= expected_deaths * THREADS
    assert in_flight or point not in ("claimed", "effect_claimed", "effect_called", "effect_stored", "ran")
    arena.assert_done([*sessions["repeatable"], *sessions["checked"]])
    unknown = 0
    for session in sessions["undeclared"]:
        view = session.view()
        if view.state != "done":
            assert view.failure is not None
            assert view.failure["kind"] == "unknown", view.failure
            unknown += 1
    assert unknown <= in_flight
    assert history.repeated_runs <= in_flight
    assert history.repeated_calls <= in_flight
    once = {str(s.id) for kind in ("checked", "undeclared") for s in sessions[kind]}
    twice = [key for key, calls in history.calls.items() if calls > 1 and key.split(":")[1] in once]
    assert not twice, f"called twice without leave: {twice}"
    print(
        f"\n{point}: {in_flight} in flight, {history.repeated_runs} runs and {history.repeated_calls} calls repeated, "
        f"{unknown} unknown, {sum(map(len, sessions.values()))} sessions ended {ended_s:.1f} s after"
    )
