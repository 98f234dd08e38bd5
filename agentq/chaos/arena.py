"""The arena: embedded servers, a fleet of workers behind proxies, and the effects service."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

from agentq.agents.registry import load_agents
from agentq.chaos import mines
from agentq.chaos.plan import POISON_TENANT, TENANTS
from agentq.chaos.proxy import Link, Proxy
from agentq.chaos.record import Open, ServiceProcess
from agentq.chaos.schedule import Profile
from agentq.chaos.tools import SERVICE
from agentq.client import Client
from agentq.embedded import processes
from agentq.embedded.files import read_json, write_private
from agentq.embedded.postgres import FLEET
from agentq.embedded.stack import Stack
from agentq.embedded.supervisor import Child, Supervisor, quiet
from agentq.errors import ConfigError, StoreUnavailable
from agentq.settings import Settings, load
from agentq.store import migrate
from agentq.store.pool import Store
from agentq.store.workers import Workers

AGENTS = "agentq.chaos.agents"
READY_TIMEOUT_S = 90.0
CHILDREN = "children.json"
CONCURRENCY = 64


class Arena:
    """All that a run needs, started together and taken away together. Nothing of it outlives `stop`."""

    def __init__(
        self,
        profile: Profile,
        folder: Path,
        *,
        environment: Mapping[str, str],
        announce: Callable[[str], None] = quiet,
    ) -> None:
        self.profile = profile
        self.folder = folder
        self.stack = Stack(folder / "data")
        self.orders = folder / "orders"
        self.proxy: Proxy | None = None
        self.service: ServiceProcess | None = None
        self.supervisor = Supervisor(())
        self._added = environment
        self._announce = announce
        self._client: Client | None = None

    def start(self) -> Self:
        """
        Start everything and wait until it works.

        Raises:
            ConfigError: something cannot start; what was started is stopped again.
        """
        # Outside the clean-up: what runs in a folder that another process holds is not ours to stop.
        self._end_orphans()
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def _start(self) -> None:
        self.orders.mkdir(parents=True)
        self.stack.start()
        migrate.upgrade(self.stack.postgres.admin_url, fleet_role=FLEET)
        self.service = ServiceProcess(self.folder)
        self.proxy = Proxy()
        names = [f"worker-{n + 1}" for n in range(self.profile.workers)]
        self.supervisor = Supervisor([self._child(name) for name in [*names, "quarantine"]], announce=self._announce)
        self._client = Client(self.settings, load_agents((AGENTS,)))
        for tenant in (*TENANTS, POISON_TENANT):
            self._client.tenants.add(tenant, concurrency=CONCURRENCY)
        self.supervisor.on_restart = self._note
        self.supervisor.start()
        self._note()
        self.supervisor.wait_ready(READY_TIMEOUT_S)

    def stop(self) -> None:
        """Kill the workers, stop the servers, end the service and the proxy."""
        self.supervisor.stop(grace_s=0.0)
        if self._client is not None:
            self._client.close()
        if self.proxy is not None:
            self.proxy.stop()
        if self.service is not None:
            self.service.stop()
        self.stack.stop()

    def remove(self) -> None:
        """Delete what the run left in its folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _note(self) -> None:
        """Who works here, for whoever comes after a SIGKILL of ours."""
        pids = [child.pid for child in self.supervisor.children if child.pid is not None]
        write_private(self.folder / CHILDREN, json.dumps({str(pid): processes.born(pid) for pid in pids}))

    def _end_orphans(self) -> None:
        """
        Take away what a run that was itself killed has left in the folder.

        Raises:
            ConfigError: such a run is still going on.
        """
        self.stack.hold()
        for pid, born in read_json(self.folder / CHILDREN).items():
            if processes.is_ours(int(pid), float(born), "agentq"):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(int(pid), signal.SIGKILL)  # each led a group of its own
        self.stack.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ── who is who ───────────────────────────────────────────────────────────

    @property
    def settings(self) -> Settings:
        """As a producer beside the fleet has them: straight to the servers."""
        return load(
            {},
            database_url=self.stack.postgres.url,
            broker_url=self.stack.valkey.url,
            agents=(AGENTS,),
            data_dir=self.folder / "data",
        )

    @property
    def client(self) -> Client:
        assert self._client is not None, "the arena has not been started"
        return self._client

    @property
    def workers(self) -> list[Child]:
        """The workers of the default group, in order."""
        return [child for child in self.supervisor.children if child.name != "quarantine"]

    @property
    def quarantine(self) -> Child:
        return next(child for child in self.supervisor.children if child.name == "quarantine")

    def link(self, worker: Child, server: str) -> Link:
        """The way from that worker to that server."""
        assert self.proxy is not None
        return self.proxy.links[f"{worker.name} {server}"]

    def open_calls(self) -> list[Open]:
        """What the service is working on now."""
        assert self.service is not None
        return self.service.open()

    def family(self, child: Child) -> set[int]:
        """A program's process and those that it started."""
        return {child.pid, *processes.descendants(child.pid)} if child.pid is not None else set()

    def kill(self, child: Child) -> int | None:
        """SIGKILL the program itself; its process, None when it did not run."""
        pid = child.pid
        child.signal(signal.SIGKILL)
        return pid

    # ── starting ─────────────────────────────────────────────────────────────

    def _child(self, name: str) -> Child:
        group = ["--group", "quarantine"] if name == "quarantine" else ["-c", str(self.profile.threads)]
        return Child(
            name,
            [sys.executable, "-m", "agentq", "worker", *group],
            log=self.folder / "logs" / f"{name}.log",
            env=self._environment(name),
            ready=self._is_live,
        )

    def _environment(self, name: str) -> dict[str, str]:
        """A worker's: it knows the servers by its own links only."""
        assert self.proxy is not None
        assert self.service is not None
        service = self.service
        postgres = self.proxy.link(f"{name} postgres", lambda: self.stack.postgres.port)
        broker = self.proxy.link(f"{name} broker", lambda: self.stack.valkey.port)
        outside = self.proxy.link(f"{name} service", lambda: service.port)
        known = {name: value for name, value in os.environ.items() if not name.startswith("AGENTQ_")}
        return {
            **known,
            "AGENTQ_DATABASE_URL": through(self.stack.postgres.url, postgres.port),
            "AGENTQ_BROKER_URL": through(self.stack.valkey.url, broker.port),
            "AGENTQ_DATA_DIR": str(self.folder / "data"),
            "AGENTQ_AGENTS": AGENTS,
            "AGENTQ_DATABASE_POOL": "8",
            "AGENTQ_TASK_EVENTS": "false",
            SERVICE: f"127.0.0.1:{outside.port}",
            mines.ORDERS: str(self.orders),
            "PYTHONUNBUFFERED": "1",
            **self.profile.pace.settings,
            **self._added,
        }

    def _is_live(self, child: Child) -> bool:
        pids = self.family(child)
        try:
            return any(row.pid in pids for row in Workers(self.client.sessions.store).present())
        except StoreUnavailable:
            return False

    def outlive_the_start_of_postgres(self) -> None:
        """Nobody is taken for dead by a missing lock while Postgres has been up for less than a lease: wait for it."""
        deadline = time.monotonic() + self.profile.pace.lease_s + 5
        store = Store(self.settings.database_url, size=1, name="agentq chaos")
        try:
            while time.monotonic() < deadline and uptime_s(store) < self.profile.pace.lease_s:
                time.sleep(0.2)
        finally:
            store.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def uptime_s(store: Store) -> float:
    """How long Postgres has been up."""
    from agentq.chaos.queries import SQL

    return float(store.query(SQL["uptime"], {})[0][0])


def through(url: str, port: int) -> str:
    """The same URL at another port of loopback."""
    parts = urlsplit(url)
    login, _, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{port}"))


def where(url: str) -> str:
    """
    Host and port of a URL, for people: no password.

    Raises:
        ConfigError: it is no URL.
    """
    try:
        parts = urlsplit(url)
        return f"{parts.hostname or 'local socket'}{f':{parts.port}' if parts.port else ''}"
    except ValueError:
        raise ConfigError("an address given is no URL") from None
