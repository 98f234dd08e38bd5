"""Hops: chained empty steps, how many in a second and how long one takes at light load."""

from __future__ import annotations

import itertools
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import redis
from celery import Celery

from agentq.agents.registry import load_agents
from agentq.client import Client
from benchmarks.fleet import (
    agentq_workers,
    celery_workers,
    cpu_s,
    environment,
    memory_mb,
    raw_workers,
    servers,
    settings_of,
    wait_for_workers,
)
from benchmarks.raw import QUEUE

TENANTS = 3
PAD = uuid.uuid4().hex * (2000 // 32)


@dataclass(frozen=True)
class Size:
    """What a round runs, and on how many threads of how many processes."""

    sessions: int
    steps: int
    processes: int
    threads: int

    @property
    def total(self) -> int:
        return self.sessions * self.steps


@dataclass(frozen=True)
class Round:
    """One round of one contender: how fast, and what a step cost."""

    steps_per_s: float
    cpu_ms_per_step: float
    commits_per_step: float = 0.0
    wal_bytes_per_step: float = 0.0
    # Between the starts of consecutive steps of one session, with nothing else to do.
    hops_ms: list[float] = field(default_factory=list)


class Contender:
    """A fleet that is there for the whole measurement, and takes a round when it is its turn."""

    def __init__(self, pids: list[int], size: Size) -> None:
        self.pids = pids
        self.size = size

    def round(self) -> Round:
        raise NotImplementedError

    def memory_mb(self) -> float:
        return memory_mb(self.pids)

    def _cpu_ms(self, before: float) -> float:
        """Of the workers alone: the servers also serve whoever waits for the end."""
        return (cpu_s(self.pids) - before) * 1000 / self.size.total


class Agentq(Contender):
    """agentq, as its environment says: with or without the events that Flower needs, with or without traces."""

    def __init__(self, client: Client, url: str, pids: list[int], size: Size) -> None:
        super().__init__(pids, size)
        self._client = client
        self._counters = _Counters(url)
        for number in range(TENANTS):
            client.tenants.add(f"bench-{number}", concurrency=100_000)
        wait_for_workers(client, size.processes)
        time.sleep(1.5)  # the consumers follow the tenant table within a second
        # Prepared statements, connections and imports are not what is measured.
        started = [
            client.start("bench-chain", tenant=f"bench-{n % TENANTS}", input={"left": 5, "pad": PAD}) for n in range(60)
        ]
        client.wait_all(started, timeout=60)

    def round(self) -> Round:
        size, client = self.size, self._client
        before, cpu, began = self._counters.read(), cpu_s(self.pids), time.time()
        started = []
        for number in range(TENANTS):
            share = range(number, size.sessions, TENANTS)
            items = [({"left": size.steps, "pad": PAD}, None) for _ in share]
            started += client.start_many("bench-chain", tenant=f"bench-{number}", items=items)
        client.wait_all(started, timeout=600)
        cost, after = self._cpu_ms(cpu), self._counters.read()
        ended = max(session.view().ended_at for session in started if session.view().ended_at)  # type: ignore[type-var]
        seconds = float(ended.timestamp()) - began  # type: ignore[union-attr]
        return Round(
            size.total / seconds,
            cost,
            (after[0] - before[0]) / size.total,
            (after[1] - before[1]) / size.total,
            self._hops_ms(),
        )

    def _hops_ms(self, steps: int = 60) -> list[float]:
        session = self._client.start("bench-chain", tenant="bench-0", input={"left": steps, "pad": PAD})
        session.wait(timeout=120)
        starts = [step.started_at.timestamp() for step in session.steps() if step.started_at]
        return [(later - earlier) * 1000 for earlier, later in itertools.pairwise(starts)]


class Bare(Contender):
    """Bare Celery on the same pool; a task sends the next with `apply_async`."""

    def __init__(self, broker_url: str, pids: list[int], size: Size) -> None:
        from benchmarks.bare import app

        super().__init__(pids, size)
        self._app = Celery("bench", broker=broker_url)
        self._app.conf.update(broker_transport_options=app.conf.broker_transport_options, task_default_queue="bare")
        self._redis = redis.Redis.from_url(broker_url)
        for _ in range(size.processes * 20):
            self._app.send_task("bare.ping", queue="bare")
        while self._redis.llen("bare.ready") < size.processes * 20:
            time.sleep(0.05)
        self.round()

    def round(self) -> Round:
        run = uuid.uuid4().hex
        cpu, began = cpu_s(self.pids), time.time()
        for _ in range(self.size.sessions):
            self._app.send_task("bare.hop", (self.size.steps, PAD, run), queue="bare")
        while self._redis.llen(run) < self.size.sessions:
            time.sleep(0.01)
        cost = self._cpu_ms(cpu)
        seconds = max(float(at) for at in self._redis.lrange(run, 0, -1)) - began
        return Round(self.size.total / seconds, cost, hops_ms=self._hops_ms())

    def _hops_ms(self, rounds: int = 5, steps: int = 20) -> list[float]:
        """From chain totals, since a task has no place to record its start."""
        gaps: list[float] = []
        for _ in range(rounds):
            run = uuid.uuid4().hex
            began = time.time()
            self._app.send_task("bare.hop", (steps, PAD, run), queue="bare")
            popped = self._redis.blpop([run], timeout=30)
            gaps.append((float(popped[1]) - began) * 1000 / steps)  # type: ignore[index]
        return gaps


class Raw(Contender):
    """The statements and a list, without Celery."""

    def __init__(self, client: Client, env: dict[str, str], pids: list[int], size: Size) -> None:
        super().__init__(pids, size)
        self._client = client
        self._redis = redis.Redis.from_url(env["AGENTQ_BROKER_URL"])
        self._counters = _Counters(env["AGENTQ_DATABASE_URL"])
        client.tenants.add("bench-raw", concurrency=100_000)
        wait_for_workers(client, size.processes * 2)
        self.round()

    def round(self) -> Round:
        size, client = self.size, self._client
        news = [
            client._door.check("bench-chain", tenant="bench-raw", input={"left": size.steps, "pad": PAD})
            for _ in range(size.sessions)
        ]
        client.sessions.start(news, create_with=None)
        wakes = client.ledger.admit("bench-raw", size.sessions)
        before, cpu, began = self._counters.read(), cpu_s(self.pids), time.time()
        for wake in wakes:
            self._redis.lpush(QUEUE, f"bench-raw {wake.session_id} {wake.step_id} {size.steps}")
        ids = [new.session_id for new in news]
        while any(state == "running" for state in client.sessions.states("bench-raw", ids).values()):
            time.sleep(0.02)
        seconds, cost, after = time.time() - began, self._cpu_ms(cpu), self._counters.read()
        commits, wal = after[0] - before[0], after[1] - before[1]
        return Round(size.total / seconds, cost, commits / size.total, wal / size.total)


class _Counters:
    """Commits and bytes of WAL of one server."""

    def __init__(self, url: str) -> None:
        self._url = url

    def read(self) -> tuple[int, int]:
        with psycopg.connect(self._url, autocommit=True) as connection:
            row = connection.execute(
                "select (select xact_commit from pg_stat_database where datname = current_database()), "
                "pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint"
            ).fetchone()
        assert row is not None
        return int(row[0]), int(row[1])


@contextmanager
def agentq(folder: Path, size: Size, *, events: bool, traced: bool = True) -> Iterator[Contender]:
    """A fleet of agentq's on servers of its own."""
    with servers(folder / "data") as base:
        more = {"AGENTQ_TASK_EVENTS": str(events).lower(), "AGENTQ_TRACE": str(traced).lower()}
        env = environment(base, **more)
        with _client(env) as client, agentq_workers(env, **_shape(folder, size)) as pids:
            yield Agentq(client, env["AGENTQ_DATABASE_URL"], pids, size)


@contextmanager
def bare(folder: Path, size: Size, *, events: bool) -> Iterator[Contender]:
    """Workers of bare Celery on servers of their own."""
    with servers(folder / "data") as base:
        env = environment(base, BENCH_EVENTS=str(int(events)))
        _import_bare(env)
        with celery_workers("benchmarks.bare", env, **_shape(folder, size)) as pids:
            yield Bare(env["AGENTQ_BROKER_URL"], pids, size)


@contextmanager
def raw(folder: Path, size: Size) -> Iterator[Contender]:
    """Plain processes on servers of their own; twice as many of a quarter of the threads do best."""
    with servers(folder / "data") as base:
        env = environment(base)
        workers = raw_workers(env, processes=size.processes * 2, threads=2, log=folder / "workers.log")
        with _client(env) as client, workers as pids:
            yield Raw(client, env, pids, size)


def _import_bare(env: dict[str, str]) -> None:
    """The application reads its settings where it is imported; no other contender must see these."""
    before = dict(os.environ)
    os.environ.update(env)
    try:
        import benchmarks.bare  # noqa: F401
    finally:
        os.environ.clear()
        os.environ.update(before)


def _client(env: dict[str, str]) -> Client:
    return Client(settings_of(env), load_agents(("benchmarks.agents",)))


def _shape(folder: Path, size: Size) -> Any:
    return {"processes": size.processes, "threads": size.threads, "log": folder / "workers.log"}
