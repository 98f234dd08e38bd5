"""A whole run in the short profile, and one against a fleet whose guard is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner
from rich.console import Console

from agentq.chaos import schedule
from agentq.chaos.arena import Arena
from agentq.chaos.play import play, play_outside
from agentq.chaos.screen import Screen
from agentq.chaos.strike import is_gone
from agentq.chaos.tools import SERVICE
from agentq.cli import main
from agentq.embedded import ports
from agentq.errors import ConfigError

pytestmark = pytest.mark.crash

ROOT = Path(__file__).resolve().parents[2]
SEED = os.environ.get("AGENTQ_TEST_SEED", "7")


@pytest.mark.timeout(400)
def test_the_short_profile(tmp_path: Path) -> None:
    """
    Nothing is lost, repeated, corrupt, out of order or stuck, whatever breaks; and everything did break.

    On a crowded machine a blow may find nothing to hit, which shows nothing: then another seed is tried.
    """
    found = _short(int(SEED), tmp_path)
    if {violation["kind"] for violation in found["violations"]} == {"fault without effect"}:
        found = _short(int(SEED) + 1000, tmp_path)
    assert found["ok"], found["violations"]
    assert not found["violations"]
    figures = found["figures"]
    assert figures["blows that hit"] == figures["blows"] >= 19
    assert figures["calls repeated under their key"] > 0, "no call was cut off: this proves nothing"
    assert figures["sessions done"] >= 40
    page = (tmp_path / f"chaos-short-{found['seed']}.html").read_text("utf-8")
    assert "<svg" in page
    assert not list(tmp_path.glob("run-*")), "the run left its servers' folder"


def _short(seed: int, folder: Path) -> dict[str, Any]:
    command = ["chaos", "--profile", "short", "--seed", str(seed), "--out", str(folder), "--json"]
    ran = CliRunner().invoke(main, command)
    found: dict[str, Any] = json.loads(ran.stdout)
    assert ran.exit_code == (0 if found["ok"] else 1), ran.output[-4000:]
    return found


@pytest.mark.skipif(not os.environ.get("AGENTQ_TEST_LONG"), reason="set AGENTQ_TEST_LONG=1")
@pytest.mark.parametrize(
    ("broken", "faults", "violation"),
    [
        ("repeats", {"worker killed": 3, "worker frozen": 1}, "silent duplicate"),
        ("forgets", {"broker emptied": 2, "messages dropped": 2}, "stuck"),
        ("leaves", {"worker killed": 2}, "stuck"),
    ],
)
def test_a_fleet_without_a_guard_fails(broken: str, faults: dict[str, int], violation: str, tmp_path: Path) -> None:
    """The judge sees through a fleet that repeats unknown effects, forgets messages, or leaves dead workers' steps."""
    profile = replace(schedule.SHORT, name=broken, sessions=40, faults=faults, patience_s=12.0)
    run = play(
        profile,
        int(SEED),
        tmp_path / "run",
        Screen(Console(stderr=True)),
        environment={"AGENTQ_AGENTS": "agentq.chaos.agents,tests.chaos.broken", "CHAOS_BROKEN": broken},
    )
    assert violation in {found.kind for found in run.judgement.violations}


def test_staging_wants_to_be_named(tmp_path: Path) -> None:
    """Nothing is touched until the phrase names the server; the message says which phrase."""
    command = ["chaos", "staging", "--url", "postgresql://u:secret@db.example:5432/a", "--broker", "redis://b:6379/0"]
    command += ["--service", "127.0.0.1:0", "--reason", "drill"]
    for phrase in ([], ["--i-understand", "break db.example"]):
        ran = CliRunner().invoke(main, [*command, *phrase, "--out", str(tmp_path / "out")])
        assert ran.exit_code == 2
        assert "break db.example:5432" in ran.output
        assert "secret" not in ran.output
    ran = CliRunner().invoke(main, [*command, "--dry-run", "--seed", "3", "--json"])
    assert {blow["fault"] for blow in json.loads(ran.stdout)["blows"]} == set(schedule.OUTSIDE.faults)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not os.environ.get("AGENTQ_TEST_LONG"), reason="set AGENTQ_TEST_LONG=1")
def test_a_staging_fleet_from_outside(tmp_path: Path) -> None:
    """A fleet that somebody else runs, with our agents in it: broken from outside, judged the same."""
    port = ports.pick()
    arena = Arena(replace(schedule.SHORT, workers=2), tmp_path / "theirs", environment={SERVICE: f"127.0.0.1:{port}"})
    profile = replace(
        schedule.OUTSIDE, sessions=40, faults=dict.fromkeys(schedule.OUTSIDE.faults, 1), longest_s=2.5, patience_s=20.0
    )
    with arena:
        run = play_outside(
            arena.settings,
            int(SEED),
            tmp_path / "out",
            Screen(Console(stderr=True)),
            bind=f"127.0.0.1:{port}",
            reason="a drill",
            profile=profile,
        )
    assert run.ok, run.judgement.violations
    assert run.judgement.figures["blows that hit"] == 8


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    """Interrupted in the middle: exit code 130, no process and no folder of the run is left."""
    command = [sys.executable, "-m", "agentq", "chaos", "--profile", "short", "--seed", SEED, "--out", str(tmp_path)]
    watched = {**os.environ, "CI": ""}  # where it is set, a run says its verdict alone
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=watched)
    assert running.stderr is not None
    seen: list[str] = []
    for line in running.stderr:
        seen.append(line)
        if "calls in flight" in line:
            break
    else:
        pytest.fail("".join(seen))
    family = [child.pid for child in psutil.Process(running.pid).children(recursive=True)]
    assert len(family) > 5, "its fleet was not there yet"
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 130
    running.stderr.close()
    assert not [pid for pid in family if not is_gone(pid)]
    assert not (tmp_path / f"run-short-{SEED}").exists()


@pytest.mark.skipif(not os.environ.get("AGENTQ_TEST_LONG"), reason="set AGENTQ_TEST_LONG=1")
def test_a_killed_run_is_cleared_away_by_the_next(tmp_path: Path) -> None:
    """SIGKILL leaves servers and workers; the next run in the folder ends them, and one beside it is refused."""
    with Arena(schedule.SHORT, tmp_path / "run", environment={}) as first:
        with pytest.raises(ConfigError, match="already running"):
            Arena(schedule.SHORT, tmp_path / "run", environment={}).start()
        left = {pid for child in first.supervisor.children for pid in first.family(child)}
        left |= {server.pid for server in first.stack.servers if server.pid is not None}
        assert len(left) >= 6
        first.stack._lock.release()  # as the kernel does for a process that is gone
        first.supervisor._stopping.set()
        with Arena(schedule.SHORT, tmp_path / "run", environment={}) as second:
            assert not [pid for pid in left if not is_gone(pid)]
            assert all(child.is_ready() for child in second.supervisor.children)
