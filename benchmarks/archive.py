"""
A database that a fleet has filled for a month: sessions, their attempts and calls, and what waits for people.

Written by Postgres itself, with everything drawn from numbers: tenants of very different size, ten agents, thirty
days. One session in forty failed and left a dead letter; one in fifty made calls that its traces do not tell.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg

from agentq.store.queries import load

TENANTS = 100
AGENTS = 10
DAYS = 30
_CHUNK = 25_000
SQL = load("archive", "benchmarks")


@contextmanager
def _bulk(url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(url, autocommit=True, cursor_factory=psycopg.ClientCursor) as connection:
        connection.execute(SQL["ready"])
        connection.execute(SQL["draw"])
        yield connection


def fill(url: str, *, sessions: int, traces: int, workers: int = 2) -> float:
    """
    Fill a migrated, empty database, as its superuser; how many seconds it took.

    `traces` are rows, an even number for each session: attempts, each with one call.
    """
    began = time.perf_counter()
    with _bulk(url) as connection:
        [(until,)] = connection.execute("select clock_timestamp() - interval '1 minute'")
        [(since,)] = connection.execute("select %s - make_interval(days => %s)", (until, DAYS))
        facts = {
            "tenants": TENANTS, "agents": AGENTS, "sessions": sessions, "steps": max(traces // sessions // 2, 2),
            "from": since, "until": until,
        }  # fmt: skip
        connection.execute(SQL["weeks"])
        connection.execute(SQL["tenants"], facts)

    def chunk(low: int) -> None:
        with _bulk(url) as connection:
            place = facts | {"low": low, "high": min(low + _CHUNK, sessions)}
            for statement in (SQL["sessions"], SQL["traces"], SQL["rest"]):
                connection.execute(statement, place)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(chunk, range(0, sessions, _CHUNK)))
    with _bulk(url) as connection:
        connection.execute(SQL["people"], facts)
        connection.execute("reset session_replication_role")
        connection.execute("vacuum (analyze)")
    return time.perf_counter() - began
