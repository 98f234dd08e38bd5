"""The supervisor, with small real programs: what dies comes back, what is stopped has drained."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentq.embedded import Child, Stack, Supervisor, processes, supervisor
from agentq.errors import ConfigError

Make = Callable[..., Child]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Children that run a few lines of Python; `ready` is the file that the lines write."""

    def child(name: str, program: str, *arguments: str) -> Child:
        ready = tmp_path / f"{name}.ready"
        command = [sys.executable, "-c", textwrap.dedent(program), str(ready), *arguments]
        return Child(name, command, log=tmp_path / f"{name}.log", ready=lambda _child: ready.exists())

    return child


@pytest.fixture
def said() -> list[str]:
    """What the supervisor announces."""
    return []


@pytest.fixture
def watched(said: list[str]) -> Iterator[Callable[..., Supervisor]]:
    """Supervisors that are stopped whatever happens."""
    made: list[Supervisor] = []

    def supervise(*children: Child, **more: object) -> Supervisor:
        made.append(Supervisor(children, announce=said.append, **more))  # type: ignore[arg-type]
        made[-1].start()
        return made[-1]

    yield supervise
    for one in made:
        one.hurry()
        one.stop(0.0)


WORK = """
    import pathlib, sys, time
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(600)
"""

DRAIN = """
    import pathlib, signal, sys, time
    def drain(*_):
        time.sleep(0.3)
        pathlib.Path(sys.argv[2]).write_text("handed back")
        sys.exit(0)
    signal.signal(signal.SIGTERM, drain)
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(600)
"""

STUBBORN = """
    import pathlib, signal, subprocess, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "600"])
    pathlib.Path(sys.argv[2]).write_text(str(child.pid))
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(600)
"""


def test_a_killed_program_comes_back_and_it_is_said(
    make: Make, watched: Callable[..., Supervisor], said: list[str]
) -> None:
    """Within a second, with the reason and the log to look at."""
    child = make("worker", WORK)
    watched(child).wait_ready(10)
    former = child.pid
    assert former is not None
    os.kill(former, signal.SIGKILL)
    assert processes.wait_until(lambda: child.pid not in (None, former), 5)
    assert child.deaths == 1
    assert "worker was killed by SIGKILL; starting it again" in said[0]
    assert "worker.log" in said[0]


def test_a_program_that_keeps_dying_is_restarted_more_and_more_slowly(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it cannot eat the machine."""
    clock = [100.0]
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: clock[0])
    child = make("worker", "raise SystemExit(3)")
    pauses = []
    for _ in range(9):
        child.start()
        assert child._process is not None
        child._process.wait()
        assert child.take_exit() == 3
        assert child.take_exit() is None
        pauses.append(child.due - clock[0])
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_a_program_that_cannot_start_ends_the_wait_with_its_last_words(
    make: Make, watched: Callable[..., Supervisor]
) -> None:
    """Whoever typed `agentq up` sees why, without looking for the log."""
    child = make("worker", "raise SystemExit('no module named tasks')")
    with pytest.raises(ConfigError, match=r"(?s)worker died 3 times.*no module named tasks"):
        watched(child).wait_ready(30)


def test_a_program_that_is_never_ready_ends_the_wait(make: Make, watched: Callable[..., Supervisor]) -> None:
    """Waiting has a bound."""
    with pytest.raises(ConfigError, match=r"(?s)worker is not ready after 0\.5 s.*said nothing"):
        watched(make("worker", "import time; time.sleep(600)")).wait_ready(0.5)


def test_stopping_waits_for_the_drain(make: Make, watched: Callable[..., Supervisor], tmp_path: Path) -> None:
    """SIGTERM first, and time to hand steps back."""
    proof = tmp_path / "drained"
    child = make("worker", DRAIN, str(proof))
    one = watched(child)
    one.wait_ready(10)
    one.stop(10)
    assert proof.read_text() == "handed back"
    assert child.pid is None
    assert child.deaths == 0


def test_what_does_not_drain_is_killed_with_all_it_started(
    make: Make, watched: Callable[..., Supervisor], tmp_path: Path, said: list[str]
) -> None:
    """Nothing outlives the fleet."""
    grandchild = tmp_path / "grandchild"
    child = make("worker", STUBBORN, str(grandchild))
    one = watched(child)
    one.wait_ready(10)
    one.stop(0.3)
    assert child.pid is None
    assert processes.wait_until(lambda: processes.has_ended(int(grandchild.read_text())), 5)
    assert "worker: not drained, killed" in said[-1]


def test_a_server_that_dies_is_noticed_and_returns_to_its_port(
    stack: Stack, watched: Callable[..., Supervisor], said: list[str]
) -> None:
    """Clients find it where it was."""
    with stack:
        port, former = stack.valkey.port, stack.valkey.pid
        one = watched(servers=stack.servers)
        stack.valkey.kill()
        assert processes.wait_until(lambda: stack.valkey.pid not in (None, former), 10)
        one.stop(0)
        assert stack.valkey.port == port
        assert f"valkey is gone; starting it again on port {port}" in said[0]
