"""
How long pages take in a large archive: `python -m benchmarks.pages [--sessions 1000000 --traces 10000000]`.

Fills a fresh embedded Postgres with a month of sessions, lets the relay's roller sum up what was spent, starts a
worker with some traffic and Flower as `agentq flower` starts it, and asks each of agentq's pages over HTTP, one
request at a time, with changing parameters. What `agentq cost ls` asks is measured at the store, without the start
of a Python interpreter. Ends with 1 where the p95 of a page is above 300 ms. A million sessions with their traces take
some ten gigabytes in the folder for temporary files (`--folder` names another one), which are removed at the end.
`--keep` names a folder that stays: the next run fills only what has been missed since, and measures again.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import itertools
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psycopg
from rich.console import Console
from rich.table import Table

from agentq.client import Client
from agentq.embedded import Stack
from agentq.store.migrate import upgrade
from agentq.store.pool import Store
from agentq.store.traces import Traces
from benchmarks.archive import fill, go_on
from benchmarks.fleet import agentq_workers, environment, machine, settings_of, wait_for_workers

TARGET_MS = 300
_LOGIN = "jane:pages"
Question = Callable[[], str]


def main() -> int:
    """Fill, ask, print, and leave the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages", description=__doc__)
    parser.add_argument("--sessions", type=int, default=1_000_000)
    parser.add_argument("--traces", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=40, help="requests of each page")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=Path("artifacts/pages.json"))
    parser.add_argument(
        "--keep", type=Path, default=None, help="fill and keep this folder; use it as it is if it is there"
    )
    chosen = parser.parse_args()
    console = Console(width=120)
    console.print(machine())
    with tempfile.TemporaryDirectory(dir=chosen.folder) as temporary:
        folder = chosen.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        with Stack(folder / "data") as stack:
            upgrade(stack.addresses["admin_database_url"], fleet_role="agentq_fleet")
            filled = _filled(stack.postgres._url("postgres"), folder / "filled", chosen.sessions, chosen.traces)
            console.print("{sessions:,} sessions, {traces:,} traces, written in {filled_s:.0f} s".format(**filled))
            figures: dict[str, Any] = {"machine": machine()}
            figures |= {name: filled[name] for name in ("sessions", "traces", "filled_s")}
            figures["rolled"] = _roll(stack.postgres.url, console)
            added = filled.get("added", 0) + go_on(stack.postgres._url("postgres"), filled)
            console.print(f"{added:,} sessions more, until now")
            figures["pages"] = _measure(stack, folder, chosen.rounds, console)
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.write_text(json.dumps(figures, indent=2), "utf-8")
    console.print(f"figures: {chosen.json}")
    slow = [row["page"] for row in figures["pages"] if row["p95_ms"] > TARGET_MS]
    if slow:
        console.print(f"p95 above {TARGET_MS} ms: {', '.join(slow)}")
    return 1 if slow else 0


def _filled(url: str, note: Path, sessions: int, traces: int) -> dict[str, Any]:
    """Fill, or take what an earlier run has kept and bring it up to now; what `go_on` has to know."""
    if note.exists():
        filled: dict[str, Any] = json.loads(note.read_text("utf-8"))
        return filled | {"added": go_on(url, filled)}
    filled = fill(url, sessions=sessions, traces=traces)
    note.write_text(json.dumps(filled), "utf-8")
    return filled


def _roll(url: str, console: Console) -> dict[str, float]:
    """Sum up all hours that are closed, as the relay does one by one."""
    store = Store(url, size=2, name="agentq bench")
    turns: list[float] = []
    try:
        traces, began = Traces(store), time.perf_counter()
        done: str | None = ""
        while done is not None or not turns:
            at = time.perf_counter()
            done = traces.roll()
            turns.append((time.perf_counter() - at) * 1000)
    finally:
        store.close()
    found = {
        "s": time.perf_counter() - began,
        "turns": len(turns),
        "p50_ms": statistics.median(turns),
        "max_ms": max(turns),
    }
    console.print(
        "summed up in {s:.0f} s: {turns} turns, p50 {p50_ms:.0f} ms, the longest {max_ms:.0f} ms".format(**found)
    )
    return found


def _measure(stack: Stack, folder: Path, rounds: int, console: Console) -> list[dict[str, Any]]:
    env = environment(stack.environment, AGENTQ_FLOWER_BASIC_AUTH=_LOGIN, AGENTQ_FLOWER_PORT="0")
    before = machine()
    with (
        agentq_workers(env, processes=1, threads=4, log=folder / "workers.log"),
        Client(settings_of(env)) as client,
        _flower(env, folder) as address,
    ):
        wait_for_workers(client, 1)
        with psycopg.connect(stack.postgres._url("postgres", "agentq"), autocommit=True) as connection:
            asked = pages(connection)
        with _traffic(client):
            figures = [_ask(address, page, question, rounds) for page, question in asked.items()]
            figures += _cost_questions(client, max(rounds // 4, 5))
    # The load that the machine had beside it says how far p95 can be believed; the least is what the page takes alone.
    table = Table("page", "least ms", "p50 ms", "p95 ms", "max ms", title=f"{before}; after it: {machine()}")
    for row in figures:
        table.add_row(row["page"], *(f"{row[name]:,.0f}" for name in ("min_ms", "p50_ms", "p95_ms", "max_ms")))
    console.print(table)
    return figures


@contextmanager
def _traffic(client: Client) -> Iterator[None]:
    """A few short sessions a second while the block runs."""
    ending = threading.Event()
    client.tenants.add("bench-traffic", reason="a benchmark")

    def start() -> None:
        while not ending.wait(0.3):
            client.start("bench-chain", tenant="bench-traffic", input={"left": 5})

    thread = threading.Thread(target=start, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


@contextmanager
def _flower(env: dict[str, str], folder: Path) -> Iterator[tuple[str, int]]:
    log = folder / "flower.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "agentq", "flower"], env=env, cwd=folder, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"Visit me at http://([\d.]+):(\d+)", log.read_text("utf-8", "replace"))):
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"Flower does not listen: {log.read_text('utf-8', 'replace')[-2000:]}")
            time.sleep(0.1)
        yield found[1], int(found[2])
    finally:
        process.terminate()
        process.wait(20)


def pages(connection: psycopg.Connection[Any]) -> dict[str, Question]:
    """Each page, and what gives the next address of it."""
    draw = random.Random(11)

    def rows(query: str) -> list[Any]:
        connection.execute("select set_config('agentq.tenant', '*', false)")
        return connection.execute(query).fetchall()  # type: ignore[arg-type]

    known = rows("select tenant, session_id, key, agent, created_at from agentq.session tablesample system (0.05)")
    known = known or rows("select tenant, session_id, key, agent, created_at from agentq.session limit 500")
    causes = [row[0] for row in rows("select cause from agentq.dead_letter group by 1 order by count(*) desc limit 50")]
    odd = rows("select tenant, anomaly_id from agentq.anomaly limit 200")
    tenants = [f"bench-{n:02}" for n in (0, 0, 1, 5, 20, 60, 99)]
    agents = [f"agent-{n}" for n in (0, 1, 5, 9)]
    turn = itertools.count()

    def to(path: str, **choices: Callable[[], Any]) -> Question:
        return lambda: f"{path}?{urlencode({name: choose() for name, choose in choices.items()})}"

    tenant, agent = lambda: draw.choice(tenants), lambda: draw.choice(agents)
    session = lambda: draw.choice(known)  # noqa: E731
    word = lambda: draw.choice(["customer 7 is angry", "order 4711", "nothing like it", "carrier", "ticket-77"])  # noqa: E731
    state = lambda: draw.choice(["failed", "running", "paused", "cancelled", "done"])  # noqa: E731
    back = lambda: "{4:}~{1}".format(*session()).replace(" ", "T")  # noqa: E731
    since = lambda: ("24h", "7d", "30d")[next(turn) % 3]  # noqa: E731
    return {
        "sessions": to("/sessions"),
        "sessions, tenant": to("/sessions", tenant=tenant),
        "sessions, agent": to("/sessions", agent=agent),
        "sessions, state": to("/sessions", state=state),
        "sessions, tenant and state": to("/sessions", tenant=tenant, state=state),
        "sessions, tenant, agent and state": to("/sessions", tenant=tenant, agent=agent, state=state),
        "sessions, key": to("/sessions", key=lambda: session()[2]),
        "sessions, beginning of an id": to("/sessions", id=lambda: str(session()[1])[:18]),
        "sessions, one character of an id": to("/sessions", id=lambda: draw.choice("0123456789abcdef")),
        "sessions, text": to("/sessions", text=word),
        "sessions, text of a tenant": to("/sessions", text=word, tenant=tenant),
        "sessions, text in a state": to("/sessions", text=word, state=state),
        "sessions, until a day": to("/sessions", until=lambda: session()[4].date().isoformat()),
        "sessions, any page": to("/sessions", before=back),
        "one session": lambda: "/session/{}/{}".format(*session()[:2]),
        "dead letters": to("/dead-letters"),
        "dead letters, tenant": to("/dead-letters", tenant=tenant),
        "dead letters, cause": to("/dead-letters", cause=lambda: draw.choice(causes)),
        "dead letters, cause and tenant": to("/dead-letters", cause=lambda: draw.choice(causes), tenant=tenant),
        "approvals": to("/approvals"),
        "approvals, tenant": to("/approvals", tenant=tenant),
        "tenants": to("/tenants"),
        "cost": to("/cost", since=since),
        "cost, tenant": to("/cost", since=since, tenant=tenant),
        "cost as CSV": to("/cost", since=since, csv=lambda: "1"),
        "anomalies": to("/anomalies"),
        "anomalies, all": to("/anomalies", state=lambda: "all"),
        "anomalies, tenant": to("/anomalies", state=lambda: "all", tenant=tenant),
        "anomalies, agent": to("/anomalies", state=lambda: "all", agent=agent),
        "one anomaly": lambda: "/anomaly/{}/{}".format(*draw.choice(odd)),
        "health": to("/health"),
        "metrics": to("/metrics"),
    }


def _ask(address: tuple[str, int], page: str, question: Question, rounds: int) -> dict[str, Any]:
    """A page's times over HTTP, answers read to their end. The fleet's metrics are kept for 5 s, so fewer are asked."""
    login = "Basic " + base64.b64encode(_LOGIN.encode()).decode()
    took, size = [], 0
    for _ in range(8 if page == "metrics" else rounds):
        if page == "metrics":
            time.sleep(5.5)
        connection = http.client.HTTPConnection(*address, timeout=60)
        path, began = question(), time.perf_counter()
        connection.request("GET", path, headers={"Authorization": login})
        answer = connection.getresponse()
        size = len(answer.read())
        took.append((time.perf_counter() - began) * 1000)
        connection.close()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status}")
    return _figures(page, took) | {"bytes": size}


def _cost_questions(client: Client, rounds: int) -> list[dict[str, Any]]:
    """What `agentq cost ls` asks, of all tenants and of a large one."""
    traces, found = Traces(client.sessions.store), []
    hour, longer = (("--since 1h", 1),), (("", 24), ("", 7 * 24), ("", 30 * 24))
    for by, whose, windows in itertools.product(
        ("agent", "tenant", "day", "model", "tool", "session"), (None, "bench-00", "bench-60"), (longer, hour)
    ):
        took = []
        for _, (_, hours) in itertools.product(range(rounds), windows):
            began = time.perf_counter()
            traces.spend(by, seconds=hours * 3600, tenant=whose)
            took.append((time.perf_counter() - began) * 1000)
        asked = ("cost ls --by", by, f"--tenant {whose}" if whose else "", windows[0][0])
        found.append(_figures(" ".join(filter(None, asked)), took))
    return found


def _figures(page: str, took: list[float]) -> dict[str, Any]:
    ordered = sorted(took)
    return {
        "page": page,
        "requests": len(ordered),
        "min_ms": ordered[0],
        "p50_ms": statistics.median(ordered),
        "p95_ms": ordered[min(int(len(ordered) * 0.95), len(ordered) - 1)],
        "max_ms": ordered[-1],
    }


if __name__ == "__main__":
    raise SystemExit(main())
