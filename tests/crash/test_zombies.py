"""Zombies: a worker stopped past its lease and woken again writes nothing, and then works on."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass

import pytest

from tests.crash.arena import ROOT, Arena, Worker, wait_until

pytestmark = pytest.mark.crash

SHORT = {"AGENTQ_LEASE_S": "1.0", "AGENTQ_HEARTBEAT_S": "0.3"}


def test_a_zombie_writes_nothing(lonely: Arena) -> None:
    """Stopped in the middle of its calls until another finished its steps; its late answers are refused."""
    arena = lonely
    zombie = arena.crew(1, **SHORT)[0]
    with arena.admin() as connection:
        [old] = connection.execute("select worker_id from agentq.worker where state = 'live'").fetchall()[0]
    sessions = arena.walks("repeatable", 4, steps=2, pause_s=0.7)
    wait_until(lambda: len(arena.history().calls) == 4, 10, "the zombie-to-be is inside its calls")
    zombie.send(signal.SIGSTOP)
    try:
        other = arena.start(**SHORT)
        arena.ready(other)
        assert arena.wait(sessions, 30) == {"done": 4}
        before = _rows(arena)
    finally:
        zombie.send(signal.SIGCONT)

    wait_until(lambda: b"was taken for dead" in zombie.log.read_bytes(), 10, "the zombie notices")
    wait_until(lambda: b"was superseded" in zombie.log.read_bytes() or _rows(arena) != before, 10, "it tried to write")
    time.sleep(0.5)
    assert _rows(arena) == before, "a zombie wrote"
    history = arena.assert_nothing_recorded_ran_again()
    assert history.repeated_runs == 4
    assert len(history.calls) == 8  # the other side saw the same keys
    arena.assert_done(sessions)

    # It goes on working, under a new name.
    other.kill()
    later = arena.walks("repeatable", 4)
    assert arena.wait(later, 30) == {"done": 4}
    with arena.admin() as connection:
        names = connection.execute(
            "select worker_id from agentq.worker where state = 'live' and pid = %s", (zombie.pid,)
        ).fetchall()
    assert names
    assert names != [(old,)]


def _rows(arena: Arena) -> list[tuple[object, ...]]:
    with arena.admin() as connection:
        return [
            *connection.execute("select * from agentq.ledger_entry order by step_id").fetchall(),
            *connection.execute("select * from agentq.checkpoint order by step_id").fetchall(),
            *connection.execute("select * from agentq.effect order by effect_key").fetchall(),
            *connection.execute("select * from agentq.session order by session_id").fetchall(),
        ]


@dataclass
class Race:
    """A zombie and its successor, both of which ran the same steps: whose results count, and what each was told."""

    zombie: Worker
    other: Worker
    winners: set[object]

    @staticmethod
    def superseded(worker: Worker) -> int:
        """How often it was told that its end of a step counts no more."""
        return worker.log.read_bytes().count(b"was superseded")


def _race_a_zombie(arena: Arena) -> Race:
    """
    A zombie that wakes while its successor still runs the step, and that nobody told of its death.
    """
    zombie = arena.crew(1, threads=4, CRASH_DEAF="1", **SHORT)[0]
    sessions = arena.deeds("sleep", 4, seconds=2.5)
    wait_until(lambda: len(arena.history().runs) == 4, 10, "the zombie-to-be runs its steps")
    zombie.send(signal.SIGSTOP)
    other = arena.start(threads=4, **SHORT)
    try:
        wait_until(lambda: arena.history().repeated_runs == 4, 30, "another runs them")
    finally:
        zombie.send(signal.SIGCONT)
    assert arena.wait(sessions, 30) == {"done": 4}
    return Race(zombie, other, {session.view().result for session in sessions})


def test_a_deaf_zombie_is_refused_by_the_fence(lonely: Arena) -> None:
    """Without the heart's warning the fence alone keeps its writes out, and its successor's results count."""
    race = _race_a_zombie(lonely)
    wait_until(lambda: race.superseded(race.zombie) == 4, 10, "the zombie is told so")
    assert race.winners == {race.other.pid}
    assert race.superseded(race.other) == 0


def test_without_the_fence_the_zombie_wins(lonely: Arena) -> None:
    """The test above holds the fence: taken out of the query, it fails."""
    functions = (ROOT / "agentq/store/sql/functions/ledger.sql").read_text("utf-8")
    begin = functions.index("create or replace function agentq.settle(")
    settle = functions[begin : functions.index("end $$;", begin) + len("end $$;")]
    fence = " and l.fence = p_fence and l.fence_token = p_token"
    assert settle.count(fence) == 1
    with lonely.admin() as connection:
        connection.execute(settle.replace(fence, ""))
        try:
            race = _race_a_zombie(lonely)
        finally:
            connection.execute(settle)
    assert race.zombie.pid in race.winners
