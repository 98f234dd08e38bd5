"""
`python -m benchmarks.tenants`: what one tenant's flood does to another, and whether weights are kept.

A flood of tenant A's 50 ms steps stands before tenant B's ten-step sessions, one a second. The same on bare
Celery with one queue, on bare Celery with a queue for each tenant, and on agentq; each beside B alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psycopg
import redis
from rich.console import Console
from rich.table import Table

from agentq.agents.registry import load_agents
from agentq.client import Client
from benchmarks.fleet import agentq_workers, celery_workers, environment, servers, settings_of, wait_for_workers

STEPS, STEP_S = 10, 0.05


def main() -> None:
    """Measure, print, and leave the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tenants", description=__doc__)
    parser.add_argument("--flood", type=int, default=5000, help="steps that tenant A has queued")
    parser.add_argument("--seconds", type=int, default=20, help="how long B starts a session each second")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--weights", type=int, default=20, help="tenants of random weights, for a minute; 0: none")
    parser.add_argument("--json", type=Path, default=Path("artifacts/tenants.json"))
    arguments = parser.parse_args()
    console = Console()
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="agentq-bench-") as folder, servers(Path(folder) / "data") as base:
        env = environment(base, AGENTQ_AGENTS="benchmarks.neighbours")
        os.environ.update(env)
        log = Path(folder) / "workers.log"
        table = Table("contender", "B alone, p99 s", "beside A, p99 s", "ratio")
        for name, contend in (
            ("bare, one queue", _bare(False)),
            ("bare, a queue each", _bare(True)),
            ("agentq", _agentq),
        ):
            alone, beside = contend(env, log, arguments)
            ratio = _p99(beside) / _p99(alone)
            figures[name] = {"alone_p99_s": _p99(alone), "beside_p99_s": _p99(beside), "ratio": ratio}
            table.add_row(name, f"{_p99(alone):.2f}", f"{_p99(beside):.2f}", f"{ratio:.2f}")
        console.print(table)
        if arguments.weights:
            figures["weights"] = _weights(env, log, arguments)
            console.print(figures["weights"])
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(figures, indent=2), "utf-8")


Contend = Callable[[dict[str, str], Path, argparse.Namespace], tuple[list[float], list[float]]]


def _bare(own_queues: bool) -> Contend:
    def contend(env: dict[str, str], log: Path, arguments: argparse.Namespace) -> tuple[list[float], list[float]]:
        from benchmarks.bare import app
        from benchmarks.neighbours import bare_work

        queues = ("bench.a", "bench.b") if own_queues else ("bare", "bare")
        with (
            celery_workers(
                "benchmarks.neighbours", env, processes=arguments.processes, threads=arguments.threads, log=log
            ),
            redis.Redis.from_url(env["AGENTQ_BROKER_URL"]) as broker,
        ):
            time.sleep(4)
            for queue in set(queues):
                app.control.add_consumer(queue, reply=True, timeout=3)

            def sessions() -> list[float]:
                run = f"run-{uuid.uuid4().hex}"
                for _ in range(arguments.seconds):
                    bare_work.apply_async((STEPS, STEP_S, run, queues[1], time.time()), queue=queues[1])
                    time.sleep(1)
                deadline = time.time() + 300
                while broker.llen(run) < arguments.seconds and time.time() < deadline:
                    time.sleep(0.1)
                return [float(value) for value in broker.lrange(run, 0, -1)]

            alone = sessions()
            for _ in range(arguments.flood):
                bare_work.apply_async((1, STEP_S, "", queues[0], 0.0), queue=queues[0])
            beside = sessions()
            for queue in set(queues):
                broker.delete(env.get("AGENTQ_KEY_PREFIX", "agentq:") + queue)
        return alone, beside

    return contend


def _agentq(env: dict[str, str], log: Path, arguments: argparse.Namespace) -> tuple[list[float], list[float]]:
    with (
        Client(settings_of(env), load_agents(("benchmarks.neighbours",))) as client,
        agentq_workers(env, processes=arguments.processes, threads=arguments.threads, log=log),
    ):
        for name in ("bench-a", "bench-b"):
            client.tenants.add(name)
        wait_for_workers(client, arguments.processes)
        time.sleep(2)

        def sessions() -> list[float]:
            started, waiting = [], []
            for _ in range(arguments.seconds):
                began = time.time()
                session = client.start("bench-neighbour", tenant="bench-b", input={"left": STEPS, "seconds": STEP_S})
                thread = threading.Thread(target=lambda s=session, b=began: waiting.append(_took(s, b)))
                thread.start()
                started.append(thread)
                time.sleep(max(1 - (time.time() - began), 0))
            for thread in started:
                thread.join(300)
            return waiting

        alone = sessions()
        client.start_many("bench-neighbour", tenant="bench-a", items=[({"seconds": STEP_S}, None)] * arguments.flood)
        return alone, sessions()


def _took(session: object, began: float) -> float:
    view = session.wait(300)  # type: ignore[attr-defined]
    return float(view.ended_at.timestamp() - began)


def _weights(env: dict[str, str], log: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Tenants of random weights and step durations, each with more than it can do; shares of the time they held."""
    draw = random.Random(1)
    tenants = {f"bench-w{n}": (draw.uniform(1, 5), draw.uniform(0.1, 0.5)) for n in range(arguments.weights)}
    with Client(settings_of(env), load_agents(("benchmarks.neighbours",))) as client:
        for name, (weight, seconds) in tenants.items():
            client.tenants.add(name, weight=round(weight, 3))
            items = [({"seconds": seconds}, None)] * 700
            client.start_many("bench-neighbour", tenant=name, items=items)
        with agentq_workers(env, processes=arguments.processes, threads=arguments.threads, log=log):
            wait_for_workers(client, arguments.processes)
            time.sleep(10)
            with psycopg.connect(env["AGENTQ_DATABASE_URL"], autocommit=True) as connection:
                connection.execute("select set_config('agentq.tenant', '*', false)")
                began = connection.execute("select agentq.now()").fetchone()
                time.sleep(60)
                rows = connection.execute(
                    "select tenant, sum(extract(epoch from settled_at - started_at))::float8, count(*)"
                    " from agentq.ledger_entry where settled_at > %s and tenant like 'bench-w%%' group by tenant",
                    began,
                ).fetchall()
    held = {row[0]: row[1] for row in rows}
    whole, weights = sum(held.values()), sum(weight for weight, _ in tenants.values())
    off = [abs((held.get(name, 0.0) / whole) / (weight / weights) - 1) for name, (weight, _) in tenants.items()]
    slots = arguments.processes * arguments.threads
    return {
        "tenants": len(off),
        "median_off": statistics.median(off),
        "worst_off": max(off),
        "busy": whole / 60 / slots,
    }


def _p99(values: list[float]) -> float:
    return sorted(values)[min(int(len(values) * 0.99), len(values) - 1)]


if __name__ == "__main__":
    main()
