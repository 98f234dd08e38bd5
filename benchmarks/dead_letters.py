"""
How fast dead letters are listed, grouped and planned: `python -m benchmarks.dead_letters [--letters 100000]`.

Fills a fresh embedded Postgres by COPY, with sessions, checkpoints and effects behind each letter, and
times each call of the store that the command line makes. Memory is what the calling process grew by at
its peak; planning must not load the letters.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import resource
import statistics
import tempfile
import time
import tracemalloc
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from agentq.causes import cause_of
from agentq.embedded import Stack
from agentq.store import migrate
from agentq.store.dead_letters import DeadLetterStore, Selection
from agentq.store.pool import Store
from agentq.store.redrives import Redrives, Terms

KINDS = ("transient", "permanent", "timeout", "semantic", "worker_lost")
TARGET_S = 1.0


@dataclass(frozen=True)
class Timing:
    """One call, several times over."""

    what: str
    median_s: float
    worst_s: float
    memory_mb: float
    found: int


def fill(connection: psycopg.Connection[Any], letters: int, tenants: int = 200, causes: int = 400) -> list[str]:
    """So many letters, unevenly spread over tenants and causes; the fingerprints, the commonest first."""
    draw = random.Random(7)
    now = datetime.now(UTC)
    names = [f"bench-{n}" for n in range(tenants)]
    known = []
    for n in range(causes):
        kind = KINDS[n % len(KINDS)]
        found = cause_of(
            kind=kind, type=f"Error{n}", message=f"cause {'abcdefgh'[n % 8]} is to blame", place=f"f{n}.py g"
        )
        known.append(
            (kind, found, {"kind": kind, "type": f"Error{n}", "message": "it broke " * 20, "where": "f.py:1 g"})
        )
    weights = [1 / (n + 1) for n in range(causes)]
    connection.execute("select set_config('agentq.tenant', '*', false)")
    with connection.cursor() as cursor:
        cursor.executemany(
            "insert into agentq.tenant (name, concurrency) values (%s, 10) on conflict do nothing",
            [(n,) for n in names],
        )
    rows = []
    for _ in range(letters):
        kind, cause, facts = draw.choices(known, weights)[0]
        died = now - timedelta(seconds=draw.random() * 30 * 86400)
        tenant = names[int(draw.random() ** 2 * tenants)]
        rows.append((tenant, uuid.uuid4(), uuid.uuid4(), uuid.uuid4(), kind, cause, json.dumps(facts), died))
    with connection.transaction(), connection.cursor() as cursor:
        with cursor.copy(
            "copy agentq.session (tenant, session_id, agent, agent_version, state, input, input_hash, failure,"
            " created_at, ended_at) from stdin"
        ) as copy:
            for number, (tenant, _, session, _, _, _, failure, died) in enumerate(rows):
                agent = f"agent{number % 20}"
                copy.write_row((tenant, session, agent, 1, "failed", b"{}", b"h", failure, died, died))
        with cursor.copy(
            "copy agentq.effect (tenant, effect_key, session_id, step_id, fence, name, args_hash, state, failure,"
            " settled_at) from stdin"
        ) as copy:
            for number, (tenant, letter, session, step, *_) in enumerate(rows):
                if number % 50 == 0:
                    copy.write_row((tenant, str(letter), session, step, 1, "pay", b"h", "unknown", "{}", now))
        with cursor.copy(
            "copy agentq.dead_letter (tenant, letter_id, session_id, step_id, generation, agent, agent_version, step,"
            " seq, class, cause, cause_text, failure, attempts, attempt, crashes, cost_micros, effects_pending,"
            " effects_unknown, died_at, changed_at) from stdin"
        ) as copy:
            for number, (tenant, letter, session, step, kind, cause, failure, died) in enumerate(rows):
                copy.write_row(
                    (
                        tenant, letter, session, step, number % 4, f"agent{number % 20}", 1, f"step{number % 7}", 1,
                        kind, cause.fingerprint, cause.text, failure, f"[{failure}, {failure}]", 3, 0, 4000, 0,
                        int(number % 50 == 0), died, died,
                    )
                )  # fmt: skip
    connection.execute("analyze")
    return [cause.fingerprint for _, cause, _ in known]


def measure(what: str, call: Callable[[], Any], rounds: int) -> Timing:
    """Median and worst time of the call, and the memory that it needs at its peak."""
    tracemalloc.start()
    found = call()
    memory = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    del found
    gc.collect()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        found = call()
        times.append(time.perf_counter() - began)
    count = found if isinstance(found, int) else len(found) if isinstance(found, list) else getattr(found, "letters", 0)
    return Timing(what, statistics.median(times), max(times), memory, count)


def looks(store: Store, causes: list[str], rounds: int) -> list[Timing]:
    """Everything that people wait for."""
    letters = DeadLetterStore(store)
    everything, tenant = Selection(), Selection(tenant="bench-0")
    week = Selection(since=datetime.now(UTC) - timedelta(days=7), before=datetime.now(UTC) - timedelta(days=1))
    calls: dict[str, Callable[[], Any]] = {
        "ls": lambda: letters.ls(everything, 50),
        "ls, counted": lambda: letters.count(everything),
        "ls --by cause": lambda: letters.groups("cause", everything),
        "ls --by agent": lambda: letters.groups("agent", everything),
        "ls --by tenant": lambda: letters.groups("tenant", everything),
        "ls --by step": lambda: letters.groups("step", everything),
        "ls --by class": lambda: letters.groups("class", everything),
        "ls --cause (common)": lambda: letters.ls(Selection(cause=causes[0][:6]), 50),
        "ls --cause (rare)": lambda: letters.ls(Selection(cause=causes[-1]), 50),
        "ls --tenant": lambda: letters.ls(tenant, 50),
        "ls --tenant --by cause": lambda: letters.groups("cause", tenant),
        "ls --agent --class": lambda: letters.ls(Selection(agent="agent3@1", kind="timeout"), 50),
        "ls --step --generation": lambda: letters.ls(Selection(step="step5", generation=2), 50),
        "ls --since --age": lambda: letters.ls(week, 50),
        "ls, nothing matches": lambda: letters.ls(Selection(agent="nobody"), 50),
        "redrive --dry-run, all": lambda: letters.plan(Selection(agent=None, since=datetime(2001, 1, 1, tzinfo=UTC)),
                                                       max_generation=3),
        "redrive --dry-run --cause": lambda: letters.plan(Selection(cause=causes[0]), max_generation=3),
    }  # fmt: skip
    return [measure(what, call, rounds) for what, call in calls.items()]


def redriving(store: Store) -> list[Timing]:
    """The job row of a redrive of all of them with its first ten letters; and a batch of a job that has come far."""
    redrives = Redrives(store)
    selection = Selection(since=datetime(2001, 1, 1, tzinfo=UTC))

    def begin() -> int:
        job, _ = redrives.begin(selection, Terms(), operator="bench", reason="bench", key=str(uuid.uuid4()))
        redrives.candidates(job, 10)
        redrives.move_on(job, "stopped", "measured")
        return job.matched

    job, _ = redrives.begin(selection, Terms(max_generation=1), operator="bench", reason="bench", key="batches")
    planned = measure("redrive, planned", begin, 3)
    # These sessions have no steps to go on from: what is measured is how the next ones are found and looked at.
    batches = measure("redrive, the next 200", lambda: redrives.next(job.job_id, 200, canary=False), 20)
    return [planned, batches]


def run(letters: int, rounds: int = 3) -> list[Timing]:
    """Fill a fresh server and time everything on it."""
    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder) / "data") as stack:
        migrate.upgrade(stack.postgres.admin_url, fleet_role="agentq_fleet")
        # As the superuser: COPY refuses tables whose row security binds the one who asks.
        with stack.postgres._connect("agentq") as connection:
            began = time.perf_counter()
            causes = fill(connection, letters)
            print(f"{letters:,} letters of {len(causes)} causes filled in {time.perf_counter() - began:.1f} s")
        store = Store(stack.postgres.url, size=4, name="agentq bench")
        try:
            return [*looks(store, causes, rounds), *redriving(store)]
        finally:
            store.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="Times dead letters' lists, groups and plans.")
    parser.add_argument("--letters", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    timings = run(chosen.letters, chosen.rounds)
    if chosen.json:
        print(json.dumps([asdict(timing) for timing in timings], indent=2))
    else:
        for timing in timings:
            print(
                f"{timing.what:28} {timing.median_s * 1000:8.1f} ms  worst {timing.worst_s * 1000:8.1f} ms"
                f"  {timing.memory_mb:6.2f} MB  {timing.found:,}"
            )
        print(f"peak of the whole process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    slow = [timing.what for timing in timings if timing.median_s > TARGET_S]
    if slow:
        print(f"slower than {TARGET_S:g} s: {', '.join(slow)}")
    return 1 if slow else 0


if __name__ == "__main__":
    raise SystemExit(main())
