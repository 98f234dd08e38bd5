"""
The fleet: servers, schema, workers and Flower, started in order, kept running, and drained in reverse.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import psycopg
from rich.console import Console
from rich.markup import escape

from agentq.embedded import ports, processes
from agentq.embedded.files import read_json
from agentq.embedded.postgres import FLEET
from agentq.embedded.stack import Stack
from agentq.embedded.supervisor import Child, Supervisor
from agentq.errors import ConfigError
from agentq.settings import ADDRESS_FILE, Settings

READY_TIMEOUT_S = 90.0  # a cold disk and two busy cores
KILL_SLACK_S = 10.0  # what a worker may take beyond its own drain before it is killed

PROGRAM = (sys.executable, "-m", "agentq")

_ADDRESSES = ("database_url", "admin_database_url", "broker_url")


class Fleet:
    """
    All that `agentq up` runs, as a context manager.

    Servers that the settings name are used as they are; the others are embedded. `start` returns when every
    program is ready. Programs that die are started again until `stop`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        workers: int = 1,
        quarantine: bool = True,
        flower: bool = True,
        console: Console | None = None,
    ) -> None:
        self.console = console or Console(stderr=True)
        self.stack, named = _stack_for(settings)
        self._named = named
        self._given = settings
        self.settings = settings
        self._names = [
            *(["worker"] if workers == 1 else [f"worker-{n + 1}" for n in range(workers)]),
            *(["quarantine"] if quarantine else []),
            *(["flower"] if flower else []),
        ]
        self.supervisor = Supervisor(())
        self._stopped = False

    @property
    def children(self) -> dict[str, Child]:
        """The programs by name: `worker` (or `worker-1` and so on), `quarantine`, `flower`."""
        return {child.name: child for child in self.supervisor.children}

    @property
    def flower_url(self) -> str:
        """Where Flower is."""
        return f"http://{self.settings.flower_address}:{self.settings.flower_port}"

    def start(self) -> Self:
        """
        Start everything and wait until it is ready.

        Raises:
            ConfigError: something cannot start; what was started is stopped again.
            StoreUnavailable: a database of one's own does not answer.
        """
        # Outside the clean-up: what runs on a folder that another process holds is not ours to stop.
        self.stack.hold()
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def _start(self) -> None:
        began = time.monotonic()
        self._end_orphans()
        self.stack.start()
        for server in self.stack.servers:
            self._line(f"{server.name} {server.version}", f"127.0.0.1:{server.port}", f"data {server.folder}")
        for name in ("database_url", "broker_url"):
            if name in self._named:
                self._line(name.removesuffix("_url"), where(self._named[name]), "your own")
        self.settings = self._settle_settings()
        self._migrate()
        self.supervisor = Supervisor(
            [self._child(name) for name in self._names], servers=self.stack.servers, announce=self.announce
        )
        self.supervisor.on_restart = self._note
        self.supervisor.start()
        self._note()
        self.supervisor.wait_ready(READY_TIMEOUT_S, self._tell_ready)
        self.announce(f"ready after {time.monotonic() - began:.1f} s")

    def stop(self) -> None:
        """Drain the programs, then stop the embedded servers. A second signal ends the draining."""
        if self._stopped:
            return
        self._stopped = True
        with _signals(self.supervisor.hurry):
            self.supervisor.stop(self.settings.drain_s + KILL_SLACK_S)
            self.stack.stop()

    def _settle_settings(self) -> Settings:
        given = self._given
        port = ports.pick(given.flower_port)
        if given.flower_port and port != given.flower_port and "flower" in self._names:
            self.announce(f"port {given.flower_port} is taken: Flower gets {port}")
        login = given.flower_basic_auth or f"agentq:{self.stack.remembered.password('flower_password')}"
        return given.model_copy(
            update={
                "database_url": "",
                "admin_database_url": "",
                "broker_url": "",
                **self._named,
                **self.stack.addresses,
                "flower_port": port,
                "flower_basic_auth": login,
            }
        )

    def _migrate(self) -> None:
        from agentq.store import migrate  # late: the servers must not wait for SQLAlchemy's import

        url, admin_url = self.settings.database_url, self.settings.migration_url
        role = FLEET if self.stack.postgres in self.stack.servers else _role(url)
        ran = migrate.upgrade(admin_url, fleet_role=role if role != _role(admin_url) else None)
        self._line("schema", f"{len(ran)} migrations ran" if ran else "up to date", "")

    def _child(self, name: str) -> Child:
        arguments = {"quarantine": ["worker", "--group", "quarantine"], "flower": ["flower"]}
        return Child(
            name,
            [*PROGRAM, *arguments.get(name, ["worker"])],
            log=self.stack.data_dir / "logs" / f"{name}.log",
            env=self.environment,
            ready=self._flower_answers if name == "flower" else self._worker_is_live,
        )

    @property
    def environment(self) -> dict[str, str]:
        """What the programs get to know: the addresses, but not the owner's password."""
        known = {name: value for name, value in os.environ.items() if name != "AGENTQ_ADMIN_DATABASE_URL"}
        settings = self.settings
        known |= {
            "AGENTQ_DATABASE_URL": settings.database_url,
            "AGENTQ_BROKER_URL": settings.broker_url,
            "AGENTQ_DATA_DIR": str(self.stack.data_dir),
            "AGENTQ_FLOWER_PORT": str(settings.flower_port),
            "AGENTQ_FLOWER_ADDRESS": settings.flower_address,
            "AGENTQ_FLOWER_BASIC_AUTH": settings.flower_basic_auth,
            "PYTHONUNBUFFERED": "1",  # a log that ends before the crash explains nothing
        }
        if settings.agents:
            known["AGENTQ_AGENTS"] = ",".join(settings.agents)
        return known

    def _worker_is_live(self, child: Child) -> bool:
        if child.pid is None:
            return False
        pids = [child.pid, *processes.descendants(child.pid)]
        query = resources.files("agentq.embedded").joinpath("sql", "worker_is_live.sql").read_bytes()
        try:
            with psycopg.connect(self.settings.database_url, connect_timeout=5) as connection:
                return connection.execute(query, {"pids": pids}).fetchone() is not None
        except psycopg.Error:
            return False

    def _flower_answers(self, _child: Child) -> bool:
        connection = http.client.HTTPConnection(self.settings.flower_address, self.settings.flower_port, timeout=2)
        try:
            connection.request("GET", "/healthcheck")
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        return True

    def _tell_ready(self, child: Child) -> None:
        if child.name != "flower":
            self._line(child.name, f"process {child.pid}", f"log {child.log}")
            return
        user, _, password = self.settings.flower_basic_auth.partition(":")
        # Shown only when we made it: whoever set one knows it.
        made_by_us = password == self.stack.remembered.password("flower_password")
        login = f"login {user} / {password} (kept in {self.stack.remembered.path})"
        self._line("flower", self.flower_url, login if made_by_us else "login from your settings")

    def _note(self) -> None:
        children = [
            {"name": child.name, "pid": child.pid, "born": processes.born(child.pid)}
            for child in self.supervisor.children
            if child.pid is not None
        ]
        self.stack.note(
            flower_port=self.settings.flower_port,
            flower_basic_auth=self.settings.flower_basic_auth,
            children=children,
        )

    def _end_orphans(self) -> None:
        """Stop the programs of a run that was killed: they would work beside ours, unseen."""
        noted = read_json(self.stack.address_file).get("children", [])
        orphans = [c for c in noted if processes.is_ours(c["pid"], c["born"], "agentq")]
        if not orphans:
            return
        self.announce(f"stopping what a killed run left: {', '.join(c['name'] for c in orphans)}")
        processes.send([c["pid"] for c in orphans], signal.SIGTERM)
        processes.wait_until(
            lambda: not any(processes.is_ours(c["pid"], c["born"], "agentq") for c in orphans),
            self._given.drain_s + KILL_SLACK_S,
        )
        for orphan in orphans:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(orphan["pid"], signal.SIGKILL)  # each led a group of its own

    def announce(self, line: str) -> None:
        """Say one line to whoever watches."""
        self.console.print(escape(line), highlight=False, soft_wrap=True)

    def _line(self, name: str, address: str, note: str) -> None:
        self.console.print(
            f"[bold]{escape(name):<17}[/]{escape(address):<26}[dim]{escape(note)}[/]",
            highlight=False,
            soft_wrap=True,
        )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def up(settings: Settings, *, workers: int = 1, flower: bool = True, console: Console | None = None) -> None:
    """
    Run the fleet in the foreground until SIGINT, SIGTERM or SIGHUP; then drain and stop all of it.

    Raises:
        ConfigError: something cannot start, or another process runs on this data folder.
        StoreUnavailable: a database of one's own does not answer.
    """
    stop = threading.Event()

    def interrupt() -> None:
        if not stop.is_set():
            stop.set()
            raise KeyboardInterrupt

    with _signals(interrupt):
        fleet = Fleet(settings, workers=workers, flower=flower, console=console)
        try:
            with fleet:
                fleet.announce("Ctrl-C drains and stops everything")
                stop.wait()
        except KeyboardInterrupt:
            fleet.announce("stopped; the data stay in " + str(fleet.stack.data_dir))


def where(url: str) -> str:
    """Host and port of a URL, for people: no password."""
    parts = urlsplit(url)
    host = parts.hostname or "local socket"
    return f"{host}:{parts.port}" if parts.port else host


def _role(url: str) -> str:
    return urlsplit(url).username or ""


def _stack_for(settings: Settings) -> tuple[Stack, dict[str, str]]:
    """
    A stack of the servers that nobody named, and the addresses of the others.

    Addresses that come from the address file of a killed run name our own servers, not somebody else's.
    """
    noted = read_json(Path(settings.data_dir) / ADDRESS_FILE)
    named = {name: value for name in _ADDRESSES if (value := getattr(settings, name)) and value != noted.get(name)}
    if "admin_database_url" in named and "database_url" not in named:
        raise ConfigError("AGENTQ_ADMIN_DATABASE_URL is set and AGENTQ_DATABASE_URL is not: set both, or neither")
    stack = Stack(settings.data_dir, postgres="database_url" not in named, valkey="broker_url" not in named)
    return stack, named


@contextlib.contextmanager
def _signals(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` on a signal that asks us to end; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(_number: int, _frame: FrameType | None) -> None:
        act()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before: dict[signal.Signals, Any] = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
