"""A worker is killed at each point of the protocol, before and after each write; nothing recorded runs again."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from agentq.worker import headroom
from tests.crash.arena import ROOT, TENANT, Arena, wait_until

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
        arena.order("claimed", 12, then=point)
    else:
        arena.order(point, count)
    if point == "admitted":
        # A backlog; otherwise the client would admit all of it.
        arena.set_concurrency(6)
    sessions = {
        kind: arena.walks(kind, number, pause_s=0.05)
        for kind, number in (("repeatable", 10), ("checked", 6), ("undeclared", 6))
    }
    if point == "admitted":
        # And room for it that no settlement hands on: the relay finds it.
        arena.set_concurrency(12)
    if point == "republished":
        # Again and again: at one moment there may be nothing in the broker.
        wait_until(lambda: arena.stack.valkey.wipe() or arena.deaths(), 30, "a lost message is sent again")
    began = time.monotonic()
    expected_deaths = 2 if point == "took_back" else 1
    arena.await_deaths(expected_deaths, point)
    arena.start(threads=THREADS)  # for the next test; it comes too late for this one
    for kind, group in sessions.items():
        states = arena.wait(group)
        if kind != "undeclared":
            assert states == {"done": len(group)}
    ended_s = time.monotonic() - began

    history = arena.assert_nothing_recorded_ran_again()
    in_flight = sum(step.crashes for group in sessions.values() for session in group for step in session.steps())
    assert in_flight <= expected_deaths * (THREADS + headroom(THREADS))
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


@pytest.mark.parametrize("point", ["settled", "ran", "claimed"])
def test_a_worker_killed_among_branches(arena: Arena, point: str) -> None:
    """Fan-out, timers, children, joins and appended messages: each join wakes once, with every branch's result."""
    arena.crew(2, threads=THREADS)
    arena.order(point, 40)
    sessions = arena.fans(8, pause_s=0.05)
    arena.await_deaths(1, point)
    arena.start(threads=THREADS)
    assert arena.wait(sessions, 60) == {"done": 8}
    for session in sessions:
        assert session.view().result == {"parts": [0, 1, 2, 3, 4], "children": 2, "said": 5}
    history = arena.assert_nothing_recorded_ran_again()
    assert history.repeated_runs <= THREADS + headroom(THREADS)


PRODUCER = """
import os, signal, sys
from agentq.client import Client
Client._admit = lambda self, tenant: os.kill(os.getpid(), signal.SIGKILL)
with Client.from_env() as client:
    client.start("walk", tenant="acme", input={}, key=sys.argv[1])
"""


def test_a_producer_killed_between_commit_and_publish(arena: Arena) -> None:
    """The session was accepted when it was committed; nobody needs to start it again, and doing so finds it."""
    arena.crew(1, threads=THREADS)
    done = subprocess.run(
        [sys.executable, "-c", PRODUCER, "ticket-1"], cwd=ROOT, env=arena.environment(), timeout=30, check=False
    )
    assert done.returncode == -signal.SIGKILL
    session = arena.client.start("walk", tenant=TENANT, input={}, key="ticket-1")
    assert not session.created
    assert arena.wait([session], 10) == {"done": 1}
    arena.assert_done([session])
