"""Processes for a measurement: started, found ready, measured, and stopped."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from agentq.client import Client
from agentq.embedded import Stack
from agentq.settings import Settings, load
from agentq.store.migrate import upgrade

ROOT = Path(__file__).resolve().parent.parent
# Of the embedded servers, to tell what they cost; empty beside servers that are somebody else's.
SERVER_PIDS: list[int] = []


@contextmanager
def servers(data_dir: Path) -> Iterator[dict[str, str]]:
    """The embedded servers and the environment that names them; or the servers that the environment names."""
    if os.environ.get("AGENTQ_DATABASE_URL"):
        yield dict(os.environ)
        return
    with Stack(data_dir) as stack:
        upgrade(stack.addresses["admin_database_url"], fleet_role="agentq_fleet")
        SERVER_PIDS[:] = [server.pid for server in stack.servers if server.pid]
        yield dict(os.environ) | stack.environment


def environment(base: dict[str, str], **more: str) -> dict[str, str]:
    """The environment of a measured process."""
    path = os.pathsep.join(filter(None, [str(ROOT), base.get("PYTHONPATH", "")]))
    return base | {"PYTHONPATH": path, "AGENTQ_AGENTS": "benchmarks.agents", "AGENTQ_LOG_LEVEL": "WARNING"} | more


@contextmanager
def celery_workers(
    app: str, env: dict[str, str], *, processes: int, threads: int, log: Path, keep: bool = False
) -> Iterator[list[int]]:
    """Worker processes of a plain Celery application on the threads pool."""
    arguments = ["-P", "threads", "-c", str(threads), "--without-gossip", "--without-mingle", "--loglevel", "WARNING"]
    commands = [
        [sys.executable, "-m", "celery", "-A", app, "worker", *arguments, "-n", f"{app}-{number}@%h"]
        for number in range(processes)
    ]
    with _processes(commands, env, log, keep=keep) as pids:
        yield pids


@contextmanager
def agentq_workers(
    env: dict[str, str], *, processes: int, threads: int, log: Path, quarantine: int = 0, keep: bool = False
) -> Iterator[list[int]]:
    """Worker processes as an agentq fleet runs them; the ids of those of the default group come first."""
    command = [sys.executable, "-m", "agentq", "worker", "--loglevel", "WARNING"]
    commands = [[*command, "-c", str(threads)]] * processes
    commands += [[*command, "--group", "quarantine", "-c", "1"]] * quarantine
    with _processes(commands, env, log, keep=keep) as pids:
        yield pids


@contextmanager
def raw_workers(env: dict[str, str], *, processes: int, threads: int, log: Path) -> Iterator[list[int]]:
    """Processes that work the statements without Celery."""
    with _processes([[sys.executable, "-m", "benchmarks.raw", str(threads)]] * processes, env, log) as pids:
        yield pids


@contextmanager
def _processes(commands: list[list[str]], env: dict[str, str], log: Path, *, keep: bool = False) -> Iterator[list[int]]:
    """Processes until the block ends; with `keep`, one that dies is started again, as a supervisor would."""
    with log.open("ab") as output:

        def start(command: list[str]) -> subprocess.Popen[bytes]:
            return subprocess.Popen(command, env=env, cwd=ROOT, stdout=output, stderr=output)

        started = [start(command) for command in commands]
        pids = [process.pid for process in started]
        ending = threading.Event()

        def look() -> None:
            while not ending.wait(0.1):
                for number, process in enumerate(started):
                    if process.poll() is not None:
                        started[number] = start(commands[number])
                        pids[number] = started[number].pid

        keeper = threading.Thread(target=look, daemon=True)
        if keep:
            keeper.start()
        try:
            yield pids
        finally:
            ending.set()
            if keep:
                keeper.join()
            for process in started:
                process.terminate()
            for process in started:
                try:
                    process.wait(timeout=15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def wait_for_workers(client: Client, count: int, timeout_s: float = 60.0) -> None:
    """Return once that many processes have registered; their queues follow within a second."""
    deadline = time.monotonic() + timeout_s
    from agentq.store.workers import Workers

    workers = Workers(client.ledger.store)
    while len(workers.present()) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{count} workers were not ready after {timeout_s} s")
        time.sleep(0.1)


def cpu_s(pids: list[int]) -> float:
    """Seconds of processor time that these processes and their children have used."""
    total = 0.0
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    times = process.cpu_times()
                    total += float(times.user + times.system)
    return total


def memory_mb(pids: list[int]) -> float:
    """Memory of these processes, pages that they share counted once."""
    total = 0
    for pid in pids:
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            info = process.memory_full_info()
            total += getattr(info, "pss", 0) or info.rss
    return total / 2**20


def settings_of(env: dict[str, str]) -> Settings:
    """Settings as the measured processes see them."""
    return load(env)


def machine() -> str:
    """What it runs on, and how busy that is with other things."""
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, {system}, load {os.getloadavg()[0]:.1f}"
