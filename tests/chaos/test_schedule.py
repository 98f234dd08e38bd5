"""The schedule and the plan follow from the seed alone."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from agentq.chaos import plan, schedule
from agentq.chaos.faults import DEEDS
from agentq.cli import main


@pytest.mark.parametrize("profile", [schedule.SHORT, schedule.LONG, schedule.OUTSIDE], ids=lambda p: p.name)
def test_the_same_seed_gives_the_same_run(profile: schedule.Profile) -> None:
    """Blows, sessions and poisons are equal for one seed, and differ between seeds."""
    first, again, other = (schedule.make(profile, seed) for seed in (7, 7, 8))
    assert first == again
    assert first.blows != other.blows
    assert plan.sessions(7, count=30, over_s=9, run="") == plan.sessions(7, count=30, over_s=9, run="")
    assert plan.sessions(7, count=30, over_s=9, run="") != plan.sessions(8, count=30, over_s=9, run="")


def test_the_same_seed_in_another_process(tmp_path: Path) -> None:
    """`--dry-run` prints the schedule; nothing in it depends on the process, such as the order of a set."""
    command = [sys.executable, "-m", "agentq", "chaos", "--profile", "long", "--seed", "11", "--dry-run", "--json"]
    found = [
        subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    ]
    assert found[0] == found[1]
    here = [dataclasses.asdict(blow) for blow in schedule.make(schedule.LONG, 11).blows]
    assert json.loads(found[0])["blows"] == here


def test_every_fault_is_in_the_long_profile_and_has_a_deed() -> None:
    """Nothing is promised that does not fall."""
    assert set(DEEDS) == set(schedule.FAULTS) == {blow.fault for blow in schedule.make(schedule.LONG, 3).blows}
    for fault, least in (("slow network", 3), ("network parted", 3), ("connections reset", 3)):
        servers = [blow.server for blow in schedule.make(schedule.LONG, 3).blows if blow.fault == fault]
        assert Counter(servers) == dict.fromkeys(schedule.SERVERS, 1), f"{fault} spares a server"
        assert len(servers) == least


def test_the_short_profile_has_three_of_each_family() -> None:
    """Each family of faults is in the run that every change goes through."""
    families = Counter(schedule.FAULTS[name].family for name in schedule.SHORT.faults)
    assert families == {"processes": 4, "broker": 4, "postgres": 3, "network": 4, "tools": 3, "poison": 1}


def test_lanes_do_not_overlap_themselves() -> None:
    """Within a lane the next fault waits for the end of the one before it."""
    drawn = schedule.make(schedule.LONG, 5)
    for lane in ("processes and servers", "network and tools"):
        blows = [blow for blow in drawn.blows if schedule.FAULTS[blow.fault].lane == lane]
        assert all(a.at_s + a.lasts_s <= b.at_s for a, b in itertools.pairwise(blows))


def test_a_session_has_five_steps_or_more() -> None:
    """And among two hundred there are joins, sleeps, each kind of effect, and keys submitted twice."""
    sessions = plan.sessions(1, count=200, over_s=60, run="")
    assert all(len(each.operations) >= 5 for each in sessions)
    assert {each.agent for each in sessions} == {"chaos-chain", "chaos-async", "chaos-fan"}
    assert {operation.kind for each in sessions for operation in each.operations} == {"idempotent", "checked", "plain"}
    assert {each.doors for each in sessions} == {("client",), ("client", "client"), ("broker",), ("client", "broker")}
    assert any(any(each.input.get("naps", [])) for each in sessions)
    assert len({each.tenant for each in sessions}) == 3


@pytest.mark.parametrize("seed", ["x", "-1", "9-3", "1-99999", ""])
def test_a_seed_that_is_none(run_cli: CliRunner, seed: str) -> None:
    """Refused, with what is wanted."""
    ran = run_cli.invoke(main, ["chaos", "--seed", seed, "--dry-run"])
    assert ran.exit_code == 2
    assert "want a" in ran.output
