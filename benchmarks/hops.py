"""Hops: chained empty steps, how many in a second and how long one takes at light load."""

from __future__ import annotations

import itertools
import os
import statistics
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import psycopg
import redis

from agentq.agents.registry import load_agents
from agentq.client import Client
from benchmarks.fleet import (
    agentq_workers,
    celery_workers,
    environment,
    memory_mb,
    raw_workers,
    settings_of,
    wait_for_workers,
)
from benchmarks.raw import QUEUE

TENANTS = 3


@dataclass(frozen=True)
class Rate:
    """Steps in a second, and what they cost."""

    steps_per_s: float
    memory_mb: float
    commits_per_step: float = 0.0
    wal_bytes_per_step: float = 0.0


@dataclass(frozen=True)
class Latency:
    """Milliseconds from the start of one step to the start of the next, one session at a time."""

    p50_ms: float
    p99_ms: float


class Bench:
    """One set of servers; each method is one round of one contender."""

    def __init__(
        self, env: dict[str, str], log: Path, *, sessions: int, steps: int, processes: int, threads: int
    ) -> None:
        self.env = environment(env)
        os.environ.update(self.env)  # the bare application is imported here too, to send the first tasks
        self.log = log
        self.sessions, self.steps = sessions, steps
        self.processes, self.threads = processes, threads
        self.settings = settings_of(self.env)
        self.pad = uuid.uuid4().hex * (2000 // 32)
        self.redis = redis.Redis.from_url(self.settings.broker_url)

    def client(self) -> Client:
        """A producer with the measured agents."""
        return Client(self.settings, load_agents(("benchmarks.agents",)))

    def agentq(self, *, events: bool, traced: bool = True) -> tuple[Rate, Latency]:
        """agentq as shipped, or without the events that Flower needs, or without traces."""
        env = self.env | {"AGENTQ_TASK_EVENTS": str(events).lower(), "AGENTQ_TRACE": str(traced).lower()}
        with (
            self.client() as client,
            agentq_workers(env, processes=self.processes, threads=self.threads, log=self.log) as pids,
        ):
            for number in range(TENANTS):
                client.tenants.add(f"bench-{number}", concurrency=100_000)
            wait_for_workers(client, self.processes)
            time.sleep(1.5)  # the consumers follow the tenant table within a second
            self._warm_up(client)
            before = self._database_counters()
            seconds = self._agentq_round(client)
            after = self._database_counters()
            total = self.sessions * self.steps
            rate = Rate(
                total / seconds,
                memory_mb(pids),
                (after[0] - before[0]) / total,
                (after[1] - before[1]) / total,
            )
            return rate, self._agentq_latency(client)

    def bare(self, *, events: bool) -> tuple[Rate, Latency]:
        """Bare Celery on the same pool, with or without the events that Flower needs."""
        from benchmarks.bare import app, hop, ping

        app.conf.broker_url = self.settings.broker_url
        with celery_workers(
            "benchmarks.bare",
            self.env | {"BENCH_EVENTS": str(int(events))},
            processes=self.processes,
            threads=self.threads,
            log=self.log,
        ) as pids:
            self.redis.delete("bare.ready")
            for _ in range(self.processes * 20):
                ping.apply_async(queue="bare")
            while self.redis.llen("bare.ready") < self.processes * 20:
                time.sleep(0.05)
            time.sleep(2.0)
            run = uuid.uuid4().hex
            began = time.time()
            for _ in range(self.sessions):
                hop.apply_async((self.steps, self.pad, run), queue="bare")
            while self.redis.llen(run) < self.sessions:
                time.sleep(0.01)
            seconds = max(float(at) for at in self.redis.lrange(run, 0, -1)) - began
            rate = Rate(self.sessions * self.steps / seconds, memory_mb(pids))
            return rate, self._bare_latency(hop)

    def raw(self) -> Rate:
        """The statements and a list, without Celery."""
        self.redis.delete(QUEUE)
        with (
            self.client() as client,
            raw_workers(self.env, processes=self.processes * 2, threads=2, log=self.log) as pids,
        ):
            client.tenants.add("bench-raw", concurrency=100_000)
            wait_for_workers(client, self.processes * 2)
            news = [
                client._door.check("bench-chain", tenant="bench-raw", input={"left": self.steps, "pad": self.pad})
                for _ in range(self.sessions)
            ]
            client.sessions.start(news, create_with=None)
            wakes = client.ledger.admit("bench-raw", self.sessions)
            before = self._database_counters()
            began = time.time()
            for wake in wakes:
                self.redis.lpush(QUEUE, f"bench-raw {wake.session_id} {wake.step_id} {self.steps}")
            ids = [new.session_id for new in news]
            while any(state == "running" for state in client.sessions.states("bench-raw", ids).values()):
                time.sleep(0.02)
            seconds = time.time() - began
            after = self._database_counters()
            total = self.sessions * self.steps
            return Rate(
                total / seconds, memory_mb(pids), (after[0] - before[0]) / total, (after[1] - before[1]) / total
            )

    def _warm_up(self, client: Client) -> None:
        """Prepared statements, connections and imports are not what is measured."""
        started = [
            client.start("bench-chain", tenant=f"bench-{n % TENANTS}", input={"left": 5, "pad": self.pad})
            for n in range(60)
        ]
        client.wait_all(started, timeout=60)

    def _agentq_round(self, client: Client) -> float:
        began = time.time()
        started = []
        for number in range(TENANTS):
            share = range(number, self.sessions, TENANTS)
            items = [({"left": self.steps, "pad": self.pad}, None) for _ in share]
            started += client.start_many("bench-chain", tenant=f"bench-{number}", items=items)
        client.wait_all(started, timeout=600)
        ended = max(session.view().ended_at for session in started if session.view().ended_at)  # type: ignore[type-var]
        return float(ended.timestamp()) - began  # type: ignore[union-attr]

    def _agentq_latency(self, client: Client, steps: int = 200) -> Latency:
        """Between the starts of consecutive steps of one session, as the ledger recorded them."""
        session = client.start("bench-chain", tenant="bench-0", input={"left": steps, "pad": self.pad})
        session.wait(timeout=120)
        starts = [step.started_at.timestamp() for step in session.steps() if step.started_at]
        return _latency(starts)

    def _bare_latency(self, hop: object, rounds: int = 10, steps: int = 20) -> Latency:
        """The same for bare Celery, from chain totals, since a task has no place to record its start."""
        gaps: list[float] = []
        for _ in range(rounds):
            run = uuid.uuid4().hex
            began = time.time()
            hop.apply_async((steps, self.pad, run), queue="bare")  # type: ignore[attr-defined]
            popped = self.redis.blpop([run], timeout=30)
            gaps.append((float(popped[1]) - began) * 1000 / steps)  # type: ignore[index]
        return Latency(statistics.median(gaps), max(gaps))

    def _database_counters(self) -> tuple[int, int]:
        with psycopg.connect(self.settings.database_url, autocommit=True) as connection:
            row = connection.execute(
                "select (select xact_commit from pg_stat_database where datname = current_database()), "
                "pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint"
            ).fetchone()
        assert row is not None
        return int(row[0]), int(row[1])


def _latency(starts: list[float]) -> Latency:
    gaps = sorted((later - earlier) * 1000 for earlier, later in itertools.pairwise(starts))
    return Latency(statistics.median(gaps), gaps[int(len(gaps) * 0.99) - 1])
