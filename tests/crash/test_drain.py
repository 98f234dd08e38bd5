"""SIGTERM: running steps end within the grace, longer ones are handed back, and a rolling restart costs nothing."""

from __future__ import annotations

import signal
import time

import pytest

from tests.crash.arena import Arena, thorough, wait_until

pytestmark = pytest.mark.crash


def _running(arena: Arena) -> int:
    with arena.admin() as connection:
        return int(connection.execute("select count(*) from agentq.ledger_entry where state = 'running'").fetchone()[0])


def test_running_steps_finish_within_the_grace(lonely: Arena) -> None:
    """A worker told to stop finishes what it runs: no step is run by anybody else, none is counted as a crash."""
    first, second = lonely.crew(2, threads=4, AGENTQ_DRAIN_S="10")
    sessions = lonely.deeds("sleep", 8, seconds=3.0)
    wait_until(lambda: _running(lonely) == 8, 10, "all steps run")
    first.send(signal.SIGTERM)
    wait_until(lambda: not first.alive, 15, "the worker has left")
    left_at = time.time()

    assert lonely.wait(sessions, 20) == {"done": 8}
    history = lonely.assert_nothing_recorded_ran_again()
    assert history.repeated_runs == 0
    assert all(run["at"] <= left_at for runs in history.runs.values() for run in runs)
    assert {step.crashes for session in sessions for step in session.steps()} == {0}
    assert second.alive


def test_a_step_longer_than_the_grace_is_handed_back_uncounted(lonely: Arena) -> None:
    """What outlives the grace runs again elsewhere at once, and neither an attempt nor a crash is counted."""
    [first] = lonely.crew(1, threads=4, AGENTQ_DRAIN_S="1")
    sessions = lonely.deeds("sleep_once", 3, seconds=30.0)
    wait_until(lambda: _running(lonely) == 3, 10, "all steps run")
    lonely.crew(2, threads=4)
    first.send(signal.SIGTERM)

    assert lonely.wait(sessions, 15) == {"done": 3}
    wait_until(lambda: not first.alive, 15, "the worker has left")
    for session in sessions:
        [step] = session.steps()
        assert (step.fence, step.attempt, step.crashes, step.quarantine) == (2, 1, 0, False)
    lonely.assert_nothing_recorded_ran_again()


@thorough
def test_a_quarantined_step_is_not_buried_by_a_deploy(lonely: Arena) -> None:
    """A suspect that runs when its prefork worker is told to stop ends there, or comes back uncounted."""
    worker = lonely.start(quarantine=True, AGENTQ_DRAIN_S="1")
    default = lonely.start(threads=2)
    lonely.ready(worker, default)
    [session] = lonely.deeds("sleep", 1, seconds=4.0)
    wait_until(lambda: _running(lonely) == 1, 10, "it runs")
    for _ in range(2):
        [died] = [w for w in lonely.workers if w.alive and w.name.startswith("worker")]
        died.kill()
        lonely.crew(1, threads=2)
        wait_until(lambda: _running(lonely) == 1 or session.steps()[0].quarantine, 15, "it runs again")
    wait_until(lambda: session.steps()[0].quarantine and _running(lonely) == 1, 15, "it runs in quarantine")
    worker.send(signal.SIGTERM)
    lonely.start(quarantine=True)

    assert lonely.wait([session], 40) == {"done": 1}
    assert session.steps()[0].crashes == 2


def test_a_prefork_child_that_outlives_the_grace_is_handed_back_uncounted(lonely: Arena) -> None:
    """The parent disowns its child's step before it kills the child: nobody's crash, and nothing is buried."""
    first = lonely.start(quarantine=True, AGENTQ_DRAIN_S="1")
    [session] = lonely.deeds("sleep_once", 1, seconds=60.0)
    with lonely.admin() as connection:
        connection.execute("select set_config('agentq.tenant', '*', false)")
        connection.execute("update agentq.ledger_entry set quarantine = true, crashes = 2")
    lonely.ready(first)
    wait_until(lambda: _running(lonely) == 1, 20, "it runs in quarantine")
    first.send(signal.SIGTERM)
    lonely.start(quarantine=True)

    assert lonely.wait([session], 30) == {"done": 1}
    [step] = session.steps()
    assert (step.fence, step.attempt, step.crashes) == (2, 1, 2)
    wait_until(lambda: not first.alive, 20, "the worker has left")


def test_a_rolling_restart_repeats_nothing(lonely: Arena) -> None:
    """Two workers replaced one after the other under load: no failed session, no repeated call or run."""
    workers = lonely.crew(2, AGENTQ_DRAIN_S="10")
    sessions = [
        session for kind in ("repeatable", "undeclared") for session in lonely.walks(kind, 20, steps=20, pause_s=0.05)
    ]
    in_flight = []
    for worker in workers:
        replacement = lonely.start(AGENTQ_DRAIN_S="10")
        lonely.ready(replacement)
        # However long the start took, there is work when the old worker is told to go.
        for kind in ("repeatable", "undeclared"):
            sessions += lonely.walks(kind, 10, steps=20, pause_s=0.05)
        wait_until(lambda: _running(lonely) > 0, 10, "steps run")
        in_flight.append(_running(lonely))
        worker.send(signal.SIGTERM)
        wait_until(lambda w=worker: not w.alive, 20, "the old worker has left")

    assert lonely.wait(sessions, 60) == {"done": 80}
    lonely.assert_done(sessions)
    history = lonely.assert_nothing_recorded_ran_again()
    assert min(in_flight) > 0, "there was no load at a restart"
    assert (history.repeated_runs, history.repeated_calls) == (0, 0)
    print(f"\nrolling restart: {in_flight} in flight, 80 sessions of 20 steps, nothing repeated")
