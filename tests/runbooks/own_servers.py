"""Servers that an incident may kill: a scene is moved onto them, and they go with it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import psycopg

from agentq.client import Client
from agentq.embedded import Stack
from agentq.store import migrate
from tests.runbooks.conftest import Scene
from tests.support import agents
from tests.support.fleet import Fleet

AGENTS = agents.__name__


def move(scene: Scene) -> Stack:
    """Servers of the scene's own, with its tenant and the agents that real workers know."""
    stack = Stack(scene.folder / "own")
    scene._stack.callback(stack.remove)
    stack.start()
    migrate.upgrade(stack.postgres.admin_url, fleet_role="agentq_fleet")
    scene.settings = scene.settings.model_copy(
        update={"database_url": stack.postgres.url, "broker_url": stack.valkey.url, "agents": (AGENTS,)}
    )
    scene.admin_url = stack.postgres.admin_url
    scene.fleet = Fleet(scene.settings, scene.folder)
    scene.admin = scene._stack.enter_context(psycopg.connect(scene.admin_url, autocommit=True))
    scene.client = scene._stack.enter_context(Client(scene.settings))
    scene.add_tenant(scene.tenant)
    return stack


def on_command(scene: Scene, name: str, deed: Callable[[], object]) -> str:
    """A shell command that has `deed` done here, once, and waits for it."""
    wanted, done = scene.folder / f"{name}.wanted", scene.folder / f"{name}.done"

    def wait() -> None:
        while not scene._ending.wait(0.05):
            if wanted.exists():
                deed()
                done.touch()
                return

    threading.Thread(target=wait, daemon=True).start()
    return f"touch {_quoted(wanted)}; while ! test -e {_quoted(done)}; do sleep 0.1; done"


def _quoted(path: Path) -> str:
    return f"'{path}'"
