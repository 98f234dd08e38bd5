"""Poison: a step that kills its worker is buried alone; its neighbours live."""

from __future__ import annotations

import os
import signal

import pytest

from tests.crash.arena import Arena, wait_until

pytestmark = pytest.mark.crash


def test_poison_is_buried_and_its_neighbours_live(lonely: Arena) -> None:
    """One step that SIGKILLs its worker, among a hundred sessions in the same process: only it dies."""
    lonely.ready(lonely.start(quarantine=True), *lonely.crew(1, threads=32))
    innocents = lonely.walks("repeatable", 100, steps=3, pause_s=0.2)
    [poison] = lonely.deeds("die")

    def ended() -> bool:
        lonely.crew(1, threads=32)
        return poison.view().ended

    wait_until(ended, 60, "the poison is buried")
    lonely.crew(1, threads=32)
    assert lonely.wait(innocents, 60) == {"done": 100}
    view = poison.view()
    assert view.state == "failed"
    assert view.failure is not None
    assert view.failure["kind"] == "worker_lost"
    lonely.assert_done(innocents)
    history = lonely.assert_nothing_recorded_ran_again()
    [step] = poison.steps()
    runs = len(history.runs[poison.id, str(step.step_id)])
    assert runs <= 4
    assert history.repeated_runs > runs - 1, "no neighbour was hit: this proves nothing"
    print(f"\npoison: {runs} runs, {history.repeated_runs - runs + 1} runs of neighbours repeated, 0 of 100 dead")


def test_a_killed_child_gives_its_step_back_while_its_parent_lives(lonely: Arena) -> None:
    """The child has a lease of its own: the parent's heartbeat does not keep its step."""
    parent = lonely.start(quarantine=True)
    lonely.ready(parent)
    [session] = lonely.deeds("sleep", seconds=1.0)
    with lonely.admin() as connection:
        connection.execute("update agentq.ledger_entry set quarantine = true, crashes = 2")

    def child() -> int | None:
        runs = [run for runs in lonely.history().runs.values() for run in runs]
        return int(runs[0]["pid"]) if runs else None

    victim = wait_until(child, 15, "the step runs in a child")
    assert victim != parent.pid
    os.kill(victim, signal.SIGKILL)

    assert lonely.wait([session], 15) == {"failed": 1}  # it died alone in quarantine: its third death buries it
    assert parent.alive
    [after] = lonely.deeds("sleep")
    with lonely.admin() as connection:
        connection.execute("update agentq.ledger_entry set quarantine = true, crashes = 2 where state <> 'dead'")
    assert lonely.wait([after], 20) == {"done": 1}
