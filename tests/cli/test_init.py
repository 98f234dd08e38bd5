"""`agentq init`: what it lays out runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agentq.cli.init import template
from tests.cli.conftest import Cli, Program
from tests.support.fleet import ROOT
from tests.support.until import until

NO_SERVERS: dict[str, str] = {}


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A command in the new project, as its user would give it."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("AGENTQ_")}
    known["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), known.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=known, capture_output=True, text=True, check=False, timeout=60
    )


def test_a_new_project_runs(bare: Cli, tmp_path: Path, program: Callable[..., Program]) -> None:
    """
    Its test passes, `agentq up` serves its agent, and Ctrl-C ends it with 0.
    """
    folder = tmp_path / "desk"
    assert "agentq up" in bare.ok("init", "desk")
    tested = run(folder, "pytest", "-q", "-p", "no:cacheprovider")
    assert tested.returncode == 0, tested.stdout
    up = program("up", folder=folder, variables=NO_SERVERS | {"AGENTQ_FLOWER_PORT": "0"})
    until(lambda: up.says("Ctrl-C drains"), 90, "the fleet")
    assert run(folder, "agentq", "tenant", "add", "acme").returncode == 0
    started = run(folder, "agentq", "start", "greeter", "--tenant", "acme", "--input", '{"name": "Ada"}', "--wait")
    assert (started.returncode, started.stdout) == (0, "HELLO, ADA!\n"), started.stderr
    assert run(folder, "agentq", "doctor").returncode == 0
    assert up.end(signal.SIGINT, 60) == 0
    assert run(folder, "agentq", "session", "ls").returncode == 3


def test_nothing_is_overwritten(bare: Cli, tmp_path: Path) -> None:
    """
    One file that is there refuses the whole, and nothing was written.
    """
    (tmp_path / "Procfile").write_text("mine", "utf-8")
    assert "Procfile would be overwritten" in bare.refused(2, "init")
    assert [path.name for path in tmp_path.iterdir()] == ["Procfile"]
    assert (tmp_path / "Procfile").read_text("utf-8") == "mine"


def test_a_dry_run_writes_nothing(bare: Cli, tmp_path: Path) -> None:
    facts = bare.json("init", "new", "--dry-run")
    assert sorted(facts["files"]) == sorted(f"new/{name}" for name in template())
    assert list(tmp_path.iterdir()) == []


def test_where_it_cannot_write(bare: Cli, tmp_path: Path) -> None:
    """
    A file in the way of the folder.
    """
    (tmp_path / "desk").write_text("", "utf-8")
    assert "not a folder" in bare.refused(2, "init", "desk")
    assert "cannot be written" in bare.refused(2, "init", "desk/below")


@pytest.mark.parametrize("name", sorted(template()))
def test_templates_speak_of_no_other_place(name: str) -> None:
    """
    No path and no secret of whoever wrote them.
    """
    assert not [part for part in ("/home/", "/root/", "/tmp/", "/opt/") if part in template()[name]]
