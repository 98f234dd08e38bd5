"""Scenes: each incident in a database of its own, on the run's servers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from agentq.agents.registry import Registry
from agentq.cli import main
from agentq.client import Client
from agentq.settings import Settings
from agentq.testing import LocalFleet
from tests.support.databases import Databases
from tests.support.fleet import ROOT, Fleet

_SHELL = set("|&;<>()`\\\"'*?[]#~\n{}$")
_LONG_RUNNING = {"up", "worker", "flower", "demo", "chaos"}


class Scene:
    """
    Where an incident happens: a database with tenant `acme`, a broker under a prefix of its own, agents of
    the incident's making, and something that carries their steps.
    """

    def __init__(self, settings: Settings, admin_url: str, folder: Path) -> None:
        self.settings = settings
        self.admin_url = admin_url
        self.folder = folder
        self.tenant = "acme"
        self.registry = Registry()
        self.fleet = Fleet(settings, folder)
        self._stack = ExitStack()
        self.admin = self._stack.enter_context(psycopg.connect(admin_url, autocommit=True))
        self.admin.execute("select set_config('agentq.tenant', '*', false)")
        self.client = self._stack.enter_context(Client(settings, self.registry))
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._workers: list[threading.Thread] = []
        self.add_tenant(self.tenant)

    def add_tenant(self, name: str, concurrency: int = 64) -> None:
        self.client.tenants.add(name, concurrency=concurrency)

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """What a query finds among the rows of all tenants."""
        return self.admin.execute(query.encode(), parameters or None).fetchall()

    def carry(self, *tenants: str) -> None:
        """Carry what is due in this thread, until nothing is. Agents must be defined by then."""
        with LocalFleet(self.client, group="default") as local:
            while any(local.carry_next(tenant) is not None for tenant in tenants or (self.tenant,)):
                pass

    def keep_carrying(self, *tenants: str, quarantine: bool = False) -> None:
        """Carry whatever comes due until the scene ends, as workers of the default or the quarantine group would."""

        def work() -> None:
            with LocalFleet(self.client, group="default") as local:
                local.engine.quarantine = quarantine
                while not self._ending.is_set():
                    if not any(local.carry_next(tenant) is not None for tenant in tenants or (self.tenant,)):
                        self._ending.wait(0.05)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        self._workers.append(thread)

    def environment(self) -> dict[str, str]:
        """The variables with which the runbook's commands run."""
        known = self.fleet.environment(
            AGENTQ_ADMIN_DATABASE_URL=self.admin_url, AGENTQ_OPERATOR="oncall", COLUMNS="250", NO_COLOR="1"
        )
        known["PATH"] = f"{self._bin()}{os.pathsep}{known.get('PATH', '')}"
        return known

    def run(self, command: str, timeout_s: float = 60.0) -> tuple[int, str]:
        """Exit code and output of a command; agentq's own run in this process unless a shell is needed."""
        words = command.split()
        if words[0] == "agentq" and not _SHELL & set(command) and words[1] not in _LONG_RUNNING:
            runner = CliRunner(env=self.environment())
            result = runner.invoke(main, words[1:], prog_name="agentq")
            assert "Traceback" not in result.output, result.output
            return result.exit_code, result.output
        ran = subprocess.run(
            ["bash", "-c", command],
            env=self.environment(),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return ran.returncode, ran.stdout

    def close(self) -> None:
        self._ending.set()
        for thread in self._workers:
            thread.join(10)
        for worker in self.fleet:
            worker.kill()
        self._stack.close()

    def _bin(self) -> Path:
        program = self.folder / "bin" / "agentq"
        if not program.exists():
            program.parent.mkdir(exist_ok=True)
            program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT}:$PYTHONPATH exec {sys.executable} -m agentq "$@"\n')
            program.chmod(0o755)
        return program.parent


@pytest.fixture
def scene(databases: Databases, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """A scene; its database is gone afterwards."""
    with databases.one() as database:
        own = settings.model_copy(
            update={
                "database_url": database.url,
                "key_prefix": f"{settings.key_prefix}{database.name}:",
                "agents": ("tests.runbooks.agents",),
            }
        )
        monkeypatch.chdir(tmp_path)
        made = Scene(own, database.admin_url, tmp_path)
        try:
            yield made
        finally:
            made.close()
