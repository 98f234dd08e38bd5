"""The arena: real servers, real worker processes, an outside service, and the questions asked afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from agentq import Client
from agentq.client import Session
from agentq.embedded.stack import Stack
from agentq.settings import Settings, load
from agentq.store import migrate
from tests.support.leaving import leave

# The thorough profile: longer outages, more kills, and every variation. Without it this folder takes three minutes.
LONG = bool(os.environ.get("AGENTQ_TEST_LONG"))
thorough = pytest.mark.skipif(not LONG, reason="set AGENTQ_TEST_LONG=1")

ROOT = Path(__file__).resolve().parents[2]
TENANT = "acme"

# Recovery at a tenth of its default pace, in the same proportions.
QUICK = {
    "AGENTQ_HEARTBEAT_S": "0.3",
    "AGENTQ_LEASE_S": "1.5",
    "AGENTQ_DEAD_LOOK_S": "0.3",
    "AGENTQ_RELAY_INTERVAL_S": "0.15",
    "AGENTQ_QUEUED_STALE_S": "0.5",
    "AGENTQ_BACKOFF_BASE_S": "0.05",
    "CRASH_TICK_S": "0.3",
}


def wait_until(question: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """The first answer that is true."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if answer := question():
            return answer
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {timeout_s} s")


@dataclass
class Worker:
    """One `celery worker` process and its log."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL it and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@dataclass
class History:
    """What the outside service was told."""

    runs: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    calls: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)

    @property
    def repeated_runs(self) -> int:
        return sum(len(runs) - 1 for runs in self.runs.values())

    @property
    def repeated_calls(self) -> int:
        return sum(self.calls.values()) - len(self.calls)


class Arena:
    """Everything a crash test works with."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.stack = stack
        self.folder = folder
        self.orders = folder / "orders"
        self.orders.mkdir(parents=True)
        self.journal = folder / "journal"
        self.journal.touch()
        self.workers: list[Worker] = []
        self._started = 0
        self._service = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.service", str(self.journal)], cwd=ROOT, stdout=subprocess.PIPE
        )
        assert self._service.stdout is not None
        self.port = int(self._service.stdout.readline())
        self.client = Client(self.settings)
        self.client.tenants.add(TENANT, concurrency=64)

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        self.client.close()
        self._service.kill()
        self._service.wait()

    def clear(self) -> None:
        """An empty ledger, an empty broker, an empty record; workers go on."""
        with self.admin() as connection:
            connection.execute("truncate agentq.session, agentq.checkpoint, agentq.trace, agentq.decision cascade")
        self.stack.valkey.wipe()
        self.journal.write_text("")
        for order in self.orders.iterdir():
            order.unlink()
        self.set_concurrency(64)

    def set_concurrency(self, concurrency: int) -> None:
        """The tenant's cap."""
        with self.admin() as connection:
            connection.execute("update agentq.tenant set concurrency = %s, shedding = false", (concurrency,))

    # ── processes ────────────────────────────────────────────────────────────

    @property
    def settings(self) -> Settings:
        return load(
            {},
            database_url=self.stack.postgres.url,
            admin_database_url=self.stack.postgres.admin_url,
            broker_url=self.stack.valkey.url,
            agents=("tests.crash.agents",),
        )

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AGENTQ_")}
        return {
            **kept,
            **self.stack.environment,
            "AGENTQ_AGENTS": "tests.crash.agents",
            "AGENTQ_DATABASE_POOL": "8",
            "CRASH_ORDERS": str(self.orders),
            "CRASH_SERVICE": str(self.port),
            "PYTHONUNBUFFERED": "1",
            **more,
        }

    def start(self, *, pace: dict[str, str] = QUICK, threads: int = 8, quarantine: bool = False, **more: str) -> Worker:
        """Start a worker; it need not be ready yet."""
        self._started += 1
        name = f"{'quarantine' if quarantine else 'worker'}-{self._started}"
        log = self.folder / f"{name}.log"
        command = [sys.executable, "-m", "celery", "-A", "tests.crash.app", "worker", "-n", f"{name}@arena"]
        command += ["-l", "INFO", *(["-P", "prefork", "-c", "1"] if quarantine else ["-c", str(threads)])]
        if quarantine:
            more = {"CRASH_QUARANTINE": "1", **more}
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment(**{**pace, **more}),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        worker = Worker(name, process, log)
        self.workers.append(worker)
        return worker

    def ready(self, *workers: Worker, timeout_s: float = 40.0) -> None:
        """Wait until these workers consume."""
        for worker in workers:
            sign = b"Started consuming from agentq.t." if worker.name.startswith("worker") else b" ready."

            def begun(worker: Worker = worker, sign: bytes = sign) -> bool:
                return sign in worker.log.read_bytes() or not worker.alive

            wait_until(begun, timeout_s, f"{worker.name} is ready")
            assert worker.alive, worker.log.read_text()[-3000:]

    def crew(self, count: int, **how: Any) -> list[Worker]:
        """So many living default workers, the dead replaced, as a supervisor would."""
        alive = [w for w in self.workers if w.alive and w.name.startswith("worker")]
        fresh = [self.start(**how) for _ in range(count - len(alive))]
        self.ready(*fresh)
        return alive + fresh

    def outlive_the_start_of_postgres(self) -> None:
        """Nobody is taken for dead while Postgres itself has been up for less than a lease."""
        with self.admin() as connection:
            wait_until(
                lambda: connection.execute(
                    "select clock_timestamp() - pg_postmaster_start_time() > make_interval(secs => %s)",
                    (self.settings.lease_s,),
                ).fetchone()[0],
                self.settings.lease_s + 5,
                "Postgres has been up for a lease",
            )

    def dismiss(self) -> None:
        """Kill all workers and wait until Postgres has forgotten them."""
        for worker in self.workers:
            worker.kill()
        self.workers.clear()
        with self.admin() as connection:
            connection.execute("delete from agentq.worker")

    def order(self, point: str, count: int = 1, *, then: str = "") -> None:
        """
        The next process that passes this point for the count-th time dies there.

        With `then`, its death leaves the order for another: its neighbours notice it too soon for one from here.
        """
        if then:
            (self.orders / "next").write_text(f"{then}:1")
        (self.orders / "order.new").write_text(f"{point}:{count}")
        (self.orders / "order.new").rename(self.orders / "order")

    def await_deaths(self, count: int, point: str, timeout_s: float = 30.0) -> None:
        """Wait until so many processes have died of orders."""
        try:
            wait_until(lambda: len(self.deaths()) >= count, timeout_s, f"death {count} at {point}")
        except AssertionError as error:
            left = [path.name for path in self.orders.iterdir()]
            raise AssertionError(f"{error}, orders {left}\n{self.describe()}") from None

    def deaths(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(self.orders.glob("died-*"))]

    # ── sessions ─────────────────────────────────────────────────────────────

    def walks(self, kind: str, count: int, **state: Any) -> list[Session]:
        items = [({"kind": kind, **state}, str(uuid.uuid4())) for _ in range(count)]
        return self.client.start_many("walk", tenant=TENANT, items=items)

    def deeds(self, what: str, count: int = 1, **state: Any) -> list[Session]:
        items = [({"what": what, **state}, str(uuid.uuid4())) for _ in range(count)]
        return self.client.start_many("deed", tenant=TENANT, items=items)

    def fans(self, count: int, **state: Any) -> list[Session]:
        items = [(state, str(uuid.uuid4())) for _ in range(count)]
        return self.client.start_many("crash-fan", tenant=TENANT, items=items)

    def wait(self, sessions: list[Session], timeout_s: float = 60.0) -> Counter[str]:
        """The states in which they ended; a stuck one shows where its steps stand."""
        try:
            return Counter(self.client.wait_all(sessions, timeout=timeout_s).values())
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.describe()}") from None

    def describe(self) -> str:
        """What is unfinished, and who lives."""
        with self.admin() as connection:
            steps = connection.execute(
                "select state, count(*), max(fence), max(crashes), bool_or(quarantine), max(dispatches), "
                "min(now() - queued_at), min(now() - started_at), min(session_id::text) from agentq.ledger_entry "
                "where state not in ('done', 'dead', 'cancelled') group by state"
            ).fetchall()
            workers = connection.execute("select pid, role, state, now() - seen_at from agentq.worker").fetchall()
        lines = [f"  {row}" for row in [*steps, *workers]]
        for worker in self.workers:
            tail = worker.log.read_text("utf-8", "replace").splitlines()[-12:]
            lines += [f"── {worker.name} alive={worker.alive}", *tail]
        return "\n".join(lines)

    def admin(self) -> Any:
        connection = psycopg.connect(self.stack.postgres.admin_url, autocommit=True)
        connection.execute("set agentq.tenant = '*'")
        return connection

    def history(self) -> History:
        found = History()
        for line in self.journal.read_text().splitlines():
            fact = json.loads(line)
            if fact["kind"] == "ran":
                found.runs[fact["session"], fact["step"]].append(fact)
            elif fact["kind"] == "call":
                found.calls[fact["key"]] += 1
            else:
                found.checks[fact["key"]] += 1
        return found

    def assert_nothing_recorded_ran_again(self) -> History:
        """No run of a step began after its checkpoint, and none under a higher fence than the one that settled."""
        history = self.history()
        with self.admin() as connection:
            settled = connection.execute(
                "select l.session_id::text, l.step_id::text, l.fence, extract(epoch from c.saved_at)::float8 "
                "from agentq.ledger_entry l join agentq.checkpoint c using (tenant, session_id, step_id)"
            ).fetchall()
        for session, step, fence, saved_at in settled:
            for run in history.runs[session, step]:
                assert run["fence"] <= fence, f"step {step} was settled by attempt {fence} and ran again as {run}"
                assert run["at"] <= saved_at, f"step {step} was recorded at {saved_at} and ran again: {run}"
        return history

    def assert_done(self, sessions: list[Session]) -> None:
        """Every walk is done, with the right result."""
        for session in sessions:
            view = session.view()
            assert view.state == "done", f"{session}: {view.state} {view.failure}"
            trail = view.result
            assert trail == [f"done {session.id}:{n}" for n in range(len(trail))], f"{session}: {trail}"
            assert len(trail) == view.steps


@contextlib.contextmanager
def arena_in(folder: Path) -> Iterator[Arena]:
    """An arena with servers of its own; nothing is left of it."""
    stack = Stack(folder / "data")
    with stack:
        migrate.upgrade(stack.postgres.admin_url, fleet_role="agentq_fleet")
        arena = Arena(stack, folder / "arena")
        try:
            yield arena
        finally:
            arena.close()
    leave(stack)
