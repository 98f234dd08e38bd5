"""Real Celery workers as subprocesses."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from agentq.settings import PREFIX, Settings
from tests.support.until import until

ROOT = Path(__file__).resolve().parents[2]
_TOLD = 6000


class Worker:
    """One `celery worker` and the processes it forked."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.pid = process.pid
        self._log = log
        self.name = log.stem
        self.dismissed = False

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self._log.read_text("utf-8", "replace")

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL it and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(10)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def stop(self, timeout_s: float = 20.0) -> int:
        """SIGTERM it and wait; its exit code."""
        if self.alive:
            self.process.terminate()
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the worker did not stop:\n{self.log[-4000:]}") from None


class Fleet:
    """Workers of one set of settings; all gone when the block ends."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self._folder = folder
        self.workers: list[Worker] = []
        self._token = secrets.token_hex(3)  # RabbitMQ refuses two workers of one name

    def environment(self, **more: str) -> dict[str, str]:
        """The settings as variables, as a deployment would give them."""
        known = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        for name, value in self.settings.model_dump().items():
            known[PREFIX + name.upper()] = ",".join(value) if isinstance(value, tuple) else str(value)
        known["PYTHONPATH"] = os.pathsep.join([str(ROOT), known.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        return known | {"PYTHONUNBUFFERED": "1"} | more

    def worker(
        self, *, concurrency: int = 8, agents: str | None = None, group: str = "default", wait: bool = True, **more: str
    ) -> Worker:
        """Start a worker and wait until its row in `agentq.worker` says that it takes steps."""
        number = len(self.workers)
        command = [sys.executable, "-m", "celery", "-A", "agentq.celery_app:app", "worker", "--loglevel", "INFO"]
        command += ["-c", str(concurrency), "-n", f"w{number}-{self._token}@test"]
        if group == "quarantine":
            command += ["-Q", "agentq.quarantine", "-P", "prefork"]
        path = self._folder / f"worker-{number}.log"
        with path.open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment(**({"AGENTQ_AGENTS": agents} if agents else {}), **more),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        worker = Worker(process, path)
        self.workers.append(worker)
        if wait:
            until(lambda: not worker.alive or self._is_ready(worker), 30, "a worker that takes steps")
            assert worker.alive, worker.log
        return worker

    def replace(self) -> None:
        """Kill all workers and start one anew."""
        for worker in self.workers:
            worker.kill()
            worker.dismissed = True
        self.worker()

    def _is_ready(self, worker: Worker) -> bool:
        with psycopg.connect(self.settings.database_url, autocommit=True) as connection:
            query = "select 1 from agentq.worker where state = 'live' and pid = %s"
            registered = connection.execute(query, (worker.pid,)).fetchone()
        return registered is not None and " ready." in worker.log

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            worker.kill()
            # Shown by pytest under a test that failed, and only there.
            print(f"── the end of {worker.name}'s log ──\n{worker.log[-_TOLD:]}")
        self._bury()

    def _bury(self) -> None:
        """No relay is left to find them dead, and their threads would count as slots in every test that follows."""
        query = (
            "update agentq.worker set state = 'dead', stopped_at = agentq.now()"
            " where pid = any (%s) and state in ('live', 'draining')"
        )
        with (
            contextlib.suppress(psycopg.OperationalError),  # a test may have stopped its Postgres
            psycopg.connect(self.settings.database_url, autocommit=True, connect_timeout=5) as connection,
        ):
            connection.execute(query, ([worker.pid for worker in self.workers],))

    def __iter__(self) -> Iterator[Worker]:
        return iter(self.workers)
