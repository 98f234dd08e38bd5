"""Programs that run in the foreground: `agentq worker`, `agentq flower`."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from agentq.embedded import ports
from agentq.settings import Settings
from tests.cli.conftest import Cli, Program, environment
from tests.conftest import Servers
from tests.support.fleet import ROOT
from tests.support.until import until


def roles(settings: Settings, pid: int) -> list[tuple[str, str]]:
    """Group and role of the process as Postgres knows it."""
    with psycopg.connect(settings.database_url) as connection:
        rows = connection.execute(
            "select worker_group, role from agentq.worker where pid = %s and state = 'live'", (pid,)
        ).fetchall()
    return [(str(group), str(role)) for group, role in rows]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_works_and_drains(
    program: Callable[..., Program], cli: Cli, tenant: str, settings: Settings, number: int
) -> None:
    """
    It serves every tenant, two on one host bear different names, and a signal ends it with 0.
    """
    workers = [program("worker", "-c", "2") for _ in range(2)]
    until(lambda: all(worker.says(" ready.") for worker in workers), 30, "two workers")
    assert cli.ok("start", "count", "--tenant", tenant, "--wait", "--timeout", "30") == "3\n"
    assert roles(settings, workers[0].pid) == [("default", "steps")]
    assert [worker.end(number) for worker in workers] == [0, 0]
    assert len({f"default-{worker.pid}@" for worker in workers}) == 2
    assert roles(settings, workers[0].pid) == []
    assert settings.broker_url.split("@")[0].rsplit(":", 1)[-1] not in workers[0].output


def test_quarantine_is_prefork(program: Callable[..., Program], settings: Settings) -> None:
    """
    Its parent runs no step: a step that kills its process leaves the group alive.
    """
    worker = program("worker", "--group", "quarantine")
    until(lambda: worker.says(" ready."), 30, "the quarantine group")
    assert "(prefork)" in worker.output
    assert "agentq.quarantine" in worker.output
    assert roles(settings, worker.pid) == [("quarantine", "relay")]
    assert worker.end() == 0


def test_plain_celery_works_too(
    monkeypatch: pytest.MonkeyPatch, tenant: str, settings: Settings, servers: Servers, cli: Cli, tmp_path: Path
) -> None:
    """
    `celery -A ... worker` is a worker like any other.
    """
    known = os.environ | environment(settings, servers, tmp_path) | {"PYTHONPATH": str(ROOT)}
    log = tmp_path / "celery.log"
    with log.open("wb") as file:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-c", "2"],
            cwd=ROOT,
            env=known | {"AGENTQ_AGENTS": "tasks"},
            stdout=file,
            stderr=file,
        )
    try:
        monkeypatch.setenv("AGENTQ_AGENTS", "tasks")
        done = cli("start", "hello", "--tenant", tenant, "--input", '{"name": "Ada"}', "--wait", "--timeout", "40")
        assert done.stdout == "Hello, Ada!\n", log.read_text()
    finally:
        worker.terminate()
        assert worker.wait(20) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("worker", "--group", "Other Group"), "Other Group"),
        (("worker", "-c", "0"), "0"),
        (("worker", "-c", "many"), "many"),
        (("worker", "--loglevel", "LOUD"), "LOUD"),
        (("flower", "--port", "70000"), "70000"),
        (("flower", "--address", "0.0.0.0"), "AGENTQ_FLOWER_BASIC_AUTH"),
        (("up", "--workers", "0"), "0"),
    ],
)
def test_what_is_refused(cli: Cli, arguments: tuple[str, ...], says: str) -> None:
    assert says in cli.refused(2, *arguments)


def test_nothing_runs_without_agents(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A worker without agents would only refuse submissions; `up` says so before it starts servers.
    """
    monkeypatch.delenv("AGENTQ_AGENTS")
    assert "AGENTQ_AGENTS" in cli.refused(2, "worker")
    assert "agentq init" in cli.refused(2, "up")


def test_the_demo_needs_a_checkout(bare: Cli) -> None:
    """
    Its agents and tickets are in no wheel.
    """
    result = bare("demo", "--no-stay")
    assert result.exit_code == 2
    assert "checkout" in result.stderr


def status(url: str, login: str = "") -> int:
    """What Flower answers; 0 when it does not."""
    request = urllib.request.Request(url)
    if login:
        request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_flower_asks_for_the_login(
    program: Callable[..., Program], settings: Settings, servers: Servers, tmp_path: Path
) -> None:
    """
    Pages only with the login, which is no argument that `ps` would show.
    """
    port = ports.pick(0)
    login = "operator:a-long-secret"
    known = environment(settings, servers, tmp_path) | {"AGENTQ_FLOWER_BASIC_AUTH": login}
    flower = program("flower", "--port", str(port), variables=known)
    url = f"http://127.0.0.1:{port}"
    until(lambda: flower.says("Visit me") and status(f"{url}/healthcheck") == 200, 30, "Flower")
    assert status(f"{url}/workers") == 401
    assert [status(f"{url}/{page}", login) for page in ("workers", "tasks", "broker")] == [200, 200, 200]
    arguments = Path(f"/proc/{flower.pid}/cmdline")
    if arguments.exists():
        assert b"a-long-secret" not in arguments.read_bytes()
    assert "a-long-secret" not in flower.output
    assert flower.end() == 0
