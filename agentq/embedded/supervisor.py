"""
The supervisor: keeps the fleet's programs running, says so when one dies, and drains them at the end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from agentq.embedded import processes
from agentq.embedded.files import explained, last_lines, open_log
from agentq.embedded.server import Server
from agentq.errors import AgentqError, ConfigError

LOOK_EVERY_S = 0.2
QUICK_DEATH_S = 10.0  # a program that lived shorter is restarted more and more slowly
BACKOFF_BASE_S, BACKOFF_MAX_S = 0.5, 30.0
GIVE_UP_AFTER = 3  # deaths before a program was ready even once

Announce = Callable[[str], None]


def quiet(_line: str) -> None:
    """Announce nothing."""


class Child:
    """
    One program of the fleet, with its output in a log.

    It leads a process group of its own: Ctrl-C in the terminal reaches only us, and nothing that it started
    outlives it.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        ready: Callable[[Child], bool] = lambda _child: True,
    ) -> None:
        self.name = name
        self.command = tuple(command)
        self.log = log
        self.env = env
        self.deaths = 0
        self.quick_deaths = 0
        self.due = 0.0
        self._ready = ready
        self._began = 0.0
        self._log_start = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<Child {self.name} pid={self.pid} deaths={self.deaths}>"

    @property
    def pid(self) -> int | None:
        """Its process; None when it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """
        Start it.

        Raises:
            ConfigError: its log cannot be written.
        """
        with explained(self.log.parent):
            log = open_log(self.log)
            self._log_start = os.fstat(log).st_size
            try:
                self._process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=None if self.env is None else dict(self.env),
                    start_new_session=True,
                )
            finally:
                os.close(log)
        self._began = time.monotonic()

    def is_ready(self) -> bool:
        """Whether it runs and does its work."""
        return self.pid is not None and self._ready(self)

    def take_exit(self) -> int | None:
        """How it ended, told once; None while it runs, or when that was told before."""
        process = self._process
        if process is None or process.poll() is None:
            return None
        self._process = None
        self._sweep(process.pid)
        self.deaths += 1
        self.quick_deaths = self.quick_deaths + 1 if time.monotonic() - self._began < QUICK_DEATH_S else 0
        pause = BACKOFF_BASE_S * 2 ** (self.quick_deaths - 1) if self.quick_deaths else 0.0
        self.due = time.monotonic() + min(pause, BACKOFF_MAX_S)
        return int(process.returncode)

    def is_due(self) -> bool:
        """Whether it is down and its pause is over."""
        return self._process is None and time.monotonic() >= self.due

    def signal(self, number: signal.Signals) -> None:
        """Signal the program itself, not what it started."""
        if (pid := self.pid) is not None:
            processes.send([pid], number)

    def kill(self) -> None:
        """SIGKILL the program and all that it started."""
        process = self._process
        if process is not None:
            self._sweep(process.pid)
            process.wait()

    def last_words(self) -> str:
        """The end of what it wrote since it was last started."""
        return last_lines(self.log, since=self._log_start)

    @staticmethod
    def _sweep(group: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


class Supervisor:
    """
    Watches children and servers from a thread, and starts again what died.

    A server comes back on its old port, so that nobody need learn a new address.
    """

    def __init__(
        self, children: Sequence[Child], *, servers: Sequence[Server] = (), announce: Announce = quiet
    ) -> None:
        self.children = tuple(children)
        self.servers = tuple(servers)
        self.on_restart: Callable[[], None] = lambda: None
        self._announce = announce
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self._server_due = dict.fromkeys((server.name for server in servers), 0.0)
        self._thread = threading.Thread(target=self._watch, name="agentq-supervisor", daemon=True)

    def start(self) -> None:
        """Start the children and begin to watch."""
        for child in self.children:
            child.start()
        self._thread.start()

    def wait_ready(self, timeout_s: float, on_ready: Callable[[Child], None] = lambda _child: None) -> None:
        """
        Wait until every child is ready, and tell of each as it becomes so.

        Raises:
            ConfigError: one keeps dying, or the time is up; the message holds the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        waiting = list(self.children)
        while waiting:
            for child in tuple(waiting):
                if child.is_ready():
                    waiting.remove(child)
                    on_ready(child)
                elif child.deaths >= GIVE_UP_AFTER:
                    raise _not_ready(child, f"died {child.deaths} times while starting")
            if waiting and time.monotonic() > deadline:
                raise _not_ready(waiting[0], f"is not ready after {timeout_s:g} s")
            if waiting:
                time.sleep(LOOK_EVERY_S)

    def stop(self, grace_s: float) -> None:
        """Stop watching, ask all children to drain at once, and SIGKILL those still there after the grace."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        for child in self.children:
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while any(child.pid for child in self.children):
            if self._hurry.is_set() or time.monotonic() > deadline:
                slow = ", ".join(child.name for child in self.children if child.pid)
                self._announce(f"{slow}: not drained, killed; the steps go to the next worker")
                break
            time.sleep(0.05)
        for child in self.children:
            child.kill()

    def hurry(self) -> None:
        """Do not wait for the drain any longer."""
        self._hurry.set()

    def _watch(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            for server in self.servers:
                self._see_to_server(server)
            for child in self.children:
                self._see_to_child(child)

    def _see_to_child(self, child: Child) -> None:
        code = child.take_exit()
        if code is not None:
            pause = max(0.0, child.due - time.monotonic())
            soon = f"in {pause:.1f} s" if pause else "now"
            self._announce(f"{child.name} {_ended(code)}; starting it again {soon} (log: {child.log})")
        if child.is_due():
            try:
                child.start()
                self.on_restart()
            except (AgentqError, OSError) as error:
                child.due = time.monotonic() + BACKOFF_MAX_S
                self._announce(f"{child.name} cannot be started: {error}")

    def _see_to_server(self, server: Server) -> None:
        if server.is_running() or time.monotonic() < self._server_due[server.name]:
            return
        self._announce(f"{server.name} is gone; starting it again on port {server.port} (log: {server.log})")
        try:
            server.start(same_port=True)
            self.on_restart()
        except (AgentqError, OSError) as error:
            self._server_due[server.name] = time.monotonic() + 5.0
            self._announce(f"{server.name} cannot be started: {error}")


def _ended(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _not_ready(child: Child, what: str) -> ConfigError:
    words = "\n".join(f"    {line}" for line in child.last_words().splitlines()) or "    (it said nothing)"
    return ConfigError(f"{child.name} {what}; {child.log} ends:\n{words}")
