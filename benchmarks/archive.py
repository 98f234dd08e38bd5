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
from datetime import datetime, timedelta
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


def fill(url: str, *, sessions: int, traces: int, workers: int = 2) -> dict[str, Any]:
    """
    Fill a migrated, empty database, as its superuser; what `go_on` has to know, as JSON.

    `traces` are rows, an even number for each session: attempts, each with one call.
    """
    began = time.perf_counter()
    with _bulk(url) as connection:
        [(until,)] = connection.execute("select clock_timestamp() - interval '1 minute'")
        [(since,)] = connection.execute("select %s - make_interval(days => %s)", (until, DAYS))
        facts = {
            "tenants": TENANTS, "agents": AGENTS, "sessions": sessions, "steps": max(traces // sessions // 2, 2),
            "from": since, "until": until, "ended": sessions - 300,
        }  # fmt: skip
        connection.execute(SQL["weeks"])
        connection.execute(SQL["tenants"], facts)
    _add(url, facts, 0, sessions, workers)
    with _bulk(url) as connection:
        connection.execute(SQL["people"], facts)
        connection.execute("reset session_replication_role")
        connection.execute("vacuum (analyze)")
    return facts | {
        "from": since.isoformat(),
        "until": until.isoformat(),
        "traces": traces,
        "filled_s": time.perf_counter() - began,
    }


def go_on(url: str, filled: dict[str, Any]) -> int:
    """
    Add sessions at the same rate until now, as a fleet would have; how many.

    Where sums have been made already nothing can be added any more: from there on, or from the last session.
    """
    since, until = (datetime.fromisoformat(filled[name]) for name in ("from", "until"))
    with _bulk(url) as connection:
        [(now, rolled, last)] = connection.execute(SQL["reached"])
    each = (until - since) / filled["sessions"]
    low, high = (int((at - since) / each) + 1 for at in (max(rolled or last, last), now - timedelta(minutes=1)))
    _add(url, filled | {"from": since, "until": until, "ended": high}, low, high, 1)
    return max(high - low, 0)


def _add(url: str, facts: dict[str, Any], first: int, last: int, workers: int) -> None:
    def chunk(low: int) -> None:
        with _bulk(url) as connection:
            place = facts | {"low": low, "high": min(low + _CHUNK, last)}
            for statement in (SQL["sessions"], SQL["traces"], SQL["rest"]):
                connection.execute(statement, place)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(chunk, range(first, last, _CHUNK)))
