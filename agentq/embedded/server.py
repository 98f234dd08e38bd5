"""
One embedded server: started on its own folder, found again after a crash of ours, killed for a test.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path

from agentq.embedded import ports, processes, run_as
from agentq.embedded.binaries import Program
from agentq.embedded.files import Remembered, explained, free_bytes, last_lines, open_log
from agentq.embedded.run_as import RunAs
from agentq.errors import ConfigError

START_TIMEOUT_S = 120.0  # a crashed server replays its log first
STOP_TIMEOUT_S = 15.0
ANSWER_TIMEOUT_S = 5.0  # for a server that a killed run left behind
PORT_PATIENCE_S = 10.0


class Server(ABC):
    """
    A server with a data folder, a port on loopback that it keeps, and a log.

    The folder is the truth about whether it runs: any object made for the same folder sees the same server.
    """

    name: str
    process_name: str
    program: Program
    stop_signals: tuple[signal.Signals, ...]

    def __init__(self, data_dir: Path, remembered: Remembered) -> None:
        self.folder = data_dir / self.name
        self.log = data_dir / "logs" / f"{self.name}.log"
        self.remembered = remembered
        self.version = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._executable: Path | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.folder} port={self.port} pid={self.pid}>"

    @property
    def port(self) -> int:
        """The port on loopback; 0 before the first start."""
        return self.remembered.port(f"{self.name}_port")

    @property
    def pid(self) -> int | None:
        """The running server's process; None when it does not run."""
        if self._process is not None:
            if self._process.poll() is None:
                return self._process.pid
            self._process = None
        pid = self._noted_pid()
        return pid if pid is not None and processes.runs_in(pid, self.process_name, self.folder) else None

    def is_running(self) -> bool:
        """Whether its process lives."""
        return self.pid is not None

    def start(self, *, same_port: bool = False) -> None:
        """
        Start it and wait until it answers. One that already runs on the folder is kept if it answers.

        `same_port` waits for the remembered port instead of choosing another: others know it by that port.

        Raises:
            ConfigError: it cannot start; the message holds the end of its log.
        """
        if self.is_running():
            if processes.wait_until(self._answers, ANSWER_TIMEOUT_S):
                self._executable, self.version = self._find_program()
                self._welcome()
                return
            self.stop()
        with explained(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            runner = run_as.choose(self.folder)
            self._executable, self.version = self.program.find(runner)
            self._found(runner)
            self._start(runner, same_port)
        self._welcome()

    def stop(self) -> None:
        """Stop it cleanly; more roughly when it does not listen. One that does not run is stopped."""
        for number in (*self.stop_signals, signal.SIGKILL):
            pid = self.pid
            if pid is None:
                return
            family = [pid, *processes.descendants(pid)] if number == signal.SIGKILL else [pid]
            processes.send(family, number)
            processes.wait_until(partial(self._is_over, family), STOP_TIMEOUT_S)

    def kill(self) -> None:
        """SIGKILL it and its children at once, as a power cut would. Its data stay."""
        pid = self.pid
        if pid is None:
            return
        family = [pid, *processes.descendants(pid)]
        processes.send(family, signal.SIGKILL)
        processes.wait_until(partial(self._is_over, family), STOP_TIMEOUT_S)

    def restart(self) -> None:
        """Stop it if it runs, and start it on the same port with the same data."""
        self.stop()
        self.start(same_port=True)

    def _is_over(self, family: list[int]) -> bool:
        return not self.is_running() and all(map(processes.has_ended, family))

    def _find_program(self) -> tuple[Path, str]:
        return self.program.find(run_as.choose(self.folder))

    def _start(self, runner: RunAs, same_port: bool) -> None:
        deadline = time.monotonic() + PORT_PATIENCE_S
        while True:
            port = self.port if same_port and self.port else ports.pick(self.port)
            self._prepare(port, runner)
            self.remembered.keep_port(f"{self.name}_port", port)
            since = self.log.stat().st_size if self.log.exists() else 0
            self._launch(runner)
            if self._await_answer():
                return
            why = last_lines(self.log, since=since)
            if not self._passes_by_itself(why) or time.monotonic() > deadline:
                raise self._refusal(str(self.log), why)
            time.sleep(0.2)

    def _launch(self, runner: RunAs) -> None:
        log = open_log(self.log)
        try:
            # A session of its own: Ctrl-C is for us, and we stop the servers after the workers.
            self._process = subprocess.Popen(
                self._command(runner),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                start_new_session=True,
                umask=0o077,
                **runner.identity,
            )
        finally:
            os.close(log)

    def _await_answer(self) -> bool:
        process = self._process
        assert process is not None
        processes.wait_until(lambda: process.poll() is not None or self._answers(), START_TIMEOUT_S)
        if process.poll() is None and self._answers():
            return True
        self.stop()
        return False

    def _passes_by_itself(self, why: str) -> bool:
        """Whether trying again is likely to help."""
        return "Address already in use" in why or "in use" in why

    def _refusal(self, source: str, why: str) -> ConfigError:
        room = f"{free_bytes(self.folder) // 1_000_000} MB free"
        lines = [line for line in why.splitlines() if line.strip()] or ["(it said nothing)"]
        indented = "\n".join(f"    {line}" for line in lines)
        return ConfigError(f"{self.name} did not start in {self.folder} ({room}); {source} says:\n{indented}")

    @abstractmethod
    def _noted_pid(self) -> int | None:
        """The pid that the server wrote down, which may be stale."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether the server in the folder is ready for us."""

    @abstractmethod
    def _found(self, runner: RunAs) -> None:
        """Make the folder ready, once."""

    @abstractmethod
    def _prepare(self, port: int, runner: RunAs) -> None:
        """Write what this start needs."""

    @abstractmethod
    def _command(self, runner: RunAs) -> list[str]:
        """What to run."""

    @abstractmethod
    def _welcome(self) -> None:
        """See to whatever must hold inside the server, once it answers."""


def _environment() -> dict[str, str]:
    # Nothing of ours: neither tokens of the surrounding shell nor PG* variables belong in a server.
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
    return kept | {"LC_ALL": "C", "TZ": "UTC"}
