"""The command line in this process, with the run's servers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from agentq.cli import main
from agentq.settings import Settings
from tests.conftest import Servers
from tests.support.fleet import ROOT
from tests.support.fleet import Fleet as Workers


class Cli:
    """`agentq ARGUMENTS`, without a process of its own."""

    def __call__(self, *arguments: str, input: str | None = None) -> Result:
        return CliRunner().invoke(main, arguments, input=input, prog_name="agentq")

    def ok(self, *arguments: str, input: str | None = None) -> str:
        """What it printed, having succeeded."""
        result = self(*arguments, input=input)
        assert result.exit_code == 0, (arguments, result.output, result.exception)
        return result.stdout

    def json(self, *arguments: str) -> Any:
        """What it printed, which was JSON and nothing else."""
        return json.loads(self.ok(*arguments, "--json"))

    def refused(self, code: int, *arguments: str, input: str | None = None) -> str:
        """Its one line on standard error, having ended with that code; nothing else was said."""
        result = self(*arguments, input=input)
        assert result.exit_code == code, (arguments, result.exit_code, result.output, result.exception)
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        return result.stderr


def environment(settings: Settings, servers: Servers, folder: Path) -> dict[str, str]:
    """The settings of the run as variables, with the owner's URL."""
    variables = Workers(settings, folder).environment(AGENTQ_ADMIN_DATABASE_URL=servers.admin_url)
    return {name: value for name, value in variables.items() if name.startswith("AGENTQ_") and value}


@pytest.fixture
def cli(settings: Settings, servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line of a fleet."""
    for name, value in environment(settings, servers, tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AGENTQ_OPERATOR", "tester")
    monkeypatch.chdir(tmp_path)
    return Cli()


@pytest.fixture
def idle(cli: Cli, tenant: str) -> str:
    """A tenant that takes sessions and runs none of their steps, now or after the test."""
    cli.ok("tenant", "set", tenant, "--state", "paused", "--reason", "so that nothing runs")
    return tenant


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line where nothing is set and nothing runs."""
    for name in [name for name in os.environ if name.startswith(("AGENTQ_", "FLOWER_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return Cli()


class Program:
    """`agentq ARGUMENTS` as a process; its output is read as it comes."""

    def __init__(self, arguments: tuple[str, ...], folder: Path, variables: dict[str, str]) -> None:
        known = {name: value for name, value in os.environ.items() if not name.startswith("AGENTQ_")}
        known["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), known.get("PYTHONPATH", "")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agentq", *arguments],
            cwd=folder,
            env=known | {"PYTHONUNBUFFERED": "1"} | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.pid = self.process.pid
        self.output = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line

    def says(self, text: str) -> bool:
        """Whether it has said so; fails when it has ended without."""
        ended = self.process.poll() is not None
        if ended:
            self._reader.join(5)
        assert text in self.output or not ended, self.output
        return text in self.output

    def end(self, number: int = signal.SIGTERM, timeout_s: float = 30.0) -> int:
        """Signal it; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(timeout_s)
        self._reader.join(5)
        return code

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.process.wait(10)


@pytest.fixture
def program(settings: Settings, servers: Servers, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Starts `agentq ...` as a process with the run's servers (or with `variables`); none is left."""
    started: list[Program] = []

    def start(*arguments: str, folder: Path = tmp_path, variables: dict[str, str] | None = None) -> Program:
        known = environment(settings, servers, tmp_path) if variables is None else variables
        started.append(Program(arguments, folder, known))
        return started[-1]

    yield start
    for one in started:
        one.kill()
