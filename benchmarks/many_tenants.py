"""
`python -m benchmarks.many_tenants`: what ten thousand registered tenants cost that ten do not.

The same fleet of two worker processes, the same sessions: first with ten tenants, then with ten thousand, of which a
thousand have work. Each figure is printed for both, and as a ratio: what is about 1 does not grow with the number of
tenants; what has to do with those that are active may grow with them.

Idle: nothing is due. Backlog: every active tenant has steps due, more than there are slots, and no worker takes any,
so that each chore of the relay and each question of a person is measured at its worst.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
import redis
from click.testing import CliRunner
from rich.console import Console
from rich.table import Table

from agentq.agents.registry import load_agents
from agentq.broker.connection import connect
from agentq.cli.doctor import questions as doctor_questions
from agentq.cli.root import main as cli
from agentq.client import Client
from agentq.flower.pages.tenants import PAGE_ROWS
from agentq.runtime import Runtime
from agentq.seeing.metrics import FleetCollector
from agentq.store.workers import Registration
from benchmarks.fleet import (
    SERVER_PIDS,
    agentq_workers,
    cpu_s,
    environment,
    machine,
    memory_mb,
    servers,
    settings_of,
    wait_for_workers,
)

AGENT, STEPS = "bench-chain", 3
_TURN_S = 0.25
REGISTER = """
insert into agentq.tenant (name, concurrency)
select 'bench-' || lpad(n::text, 5, '0'), 64 from generate_series(0, %s - 1) n on conflict do nothing
"""
# Each active tenant has a budget, and has spent some of it.
BUDGET = """
insert into agentq.budget (tenant, scope, subject, period, cost_micros, on_refusal)
select t, 'tenant', '', 'day', 10000000, 'wait' from unnest(%s::text[]) t on conflict do nothing
"""
SPENT = """
insert into agentq.budget_window (tenant, scope, subject, period, starts_at, spent_micros)
select t, 'tenant', '', p, date_trunc(p, agentq.now(), 'UTC'), 1000000
  from unnest(%s::text[]) t, unnest(array['day', 'month']) p on conflict do nothing
"""


@dataclass
class Figures:
    """What was measured of one number of tenants, in the order of the table."""

    tenants: int
    active: int
    values: dict[str, float] = field(default_factory=dict)


def main() -> None:
    """Measure, print, and leave the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_tenants", description=__doc__)
    parser.add_argument("--tenants", type=int, default=10_000, help="registered, the second time")
    parser.add_argument("--active", type=int, default=1_000, help="of these, how many have work")
    parser.add_argument("--few", type=int, default=10, help="registered and active, the first time")
    parser.add_argument("--sessions", type=int, default=3_000, help=f"of {STEPS} steps, over all active tenants")
    parser.add_argument("--starts", type=int, default=200, help="sessions started one by one, for the latency")
    parser.add_argument("--idle", type=float, default=15.0, help="seconds with nothing to do")
    parser.add_argument("--rounds", type=int, default=15, help="times that each chore and question is measured")
    parser.add_argument("--threads", type=int, default=8, help="slots of each of two worker processes")
    parser.add_argument("--json", type=Path, default=Path("artifacts/many_tenants.json"))
    arguments = parser.parse_args()
    if not arguments.few <= arguments.active <= arguments.tenants:
        parser.error("want few <= active <= tenants")
    console = Console(width=120)
    console.print(machine())
    few, many = run(arguments)
    _print(few, many, console)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    figures = {"machine": machine(), "few": vars(few), "many": vars(many)}
    arguments.json.write_text(json.dumps(figures, indent=2), "utf-8")
    console.print(f"figures: {arguments.json}")


def run(arguments: argparse.Namespace) -> tuple[Figures, Figures]:
    """The few, then the many, on the same servers."""
    before = dict(os.environ)
    try:
        with tempfile.TemporaryDirectory(prefix="agentq-bench-") as folder, servers(Path(folder) / "data") as base:
            env = environment(base)
            os.environ.update(env)
            log = Path(folder) / "workers.log"
            few = _measure(env, log, arguments, arguments.few, arguments.few)
            many = _measure(env, log, arguments, arguments.tenants, arguments.active)
    finally:
        os.environ.clear()
        os.environ.update(before)
    return few, many


def _measure(env: dict[str, str], log: Path, arguments: argparse.Namespace, tenants: int, active: int) -> Figures:
    found = Figures(tenants, active)
    # Spread over all names: who is active does not come first in any list.
    names = [f"bench-{n:05}" for n in random.Random(7).sample(range(tenants), active)]
    with ExitStack() as stack:
        client = stack.enter_context(Client(settings_of(env), load_agents(("benchmarks.agents",))))
        admin = stack.enter_context(psycopg.connect(env["AGENTQ_DATABASE_URL"], autocommit=True))
        admin.execute("select set_config('agentq.tenant', '*', false)")
        began = time.perf_counter()
        admin.execute(REGISTER, (tenants,))
        admin.execute(BUDGET, (names,))
        admin.execute(SPENT, (names,))
        relay = stack.enter_context(_relay(env))
        found.values["placing all of them, s"] = time.perf_counter() - began
        admin.execute("analyze")
        with _slots(client, 2 * arguments.threads):
            _start(client, names, arguments.sessions)
            admin.execute("analyze")  # as autovacuum does, a minute later
            _chores(relay, found, arguments.rounds, "backlog")
            _questions(env, client, found, arguments.rounds)
        with agentq_workers(env, processes=2, threads=arguments.threads, log=log) as pids:
            wait_for_workers(client, 2)
            _drain(admin, found, arguments.sessions * STEPS)
            _latency(client, admin, names, found, arguments.starts)
            time.sleep(2.0)
            _idle(env, pids, found, arguments.idle)
            found.values["memory of the workers, MB"] = memory_mb(pids)
            _chores(relay, found, arguments.rounds, "idle")
    return found


@contextmanager
def _relay(env: dict[str, str]) -> Iterator[Any]:
    """A relay that is turned by hand, which has done every chore once: tenants are placed, boards looked at."""
    settings = settings_of(env)
    runtime = Runtime(settings, load_agents(("benchmarks.agents",)), lambda: connect(settings))
    relay = runtime._relay("default")
    try:
        relay.round()
        yield relay
    finally:
        runtime.publisher.close()
        runtime.store.close()


@contextmanager
def _slots(client: Client, slots: int) -> Iterator[None]:
    """A worker that is registered and takes nothing, so that tenants have slots to share."""
    facts = {"host": socket.gethostname(), "pid": os.getpid(), "release": "0", "serves": [f"{AGENT}@1"]}
    made = Registration(client.ledger.store, group="default", role="steps", slots=slots, **facts)  # type: ignore[arg-type]
    made.beat(3600.0)
    try:
        yield
    finally:
        made.stop()


def _start(client: Client, names: list[str], sessions: int) -> None:
    """So many sessions over these tenants, as evenly as it goes."""
    for number, name in enumerate(names):
        count = sessions // len(names) + (number < sessions % len(names))
        client.start_many(AGENT, tenant=name, items=[({"left": STEPS}, None)] * count)


def _drain(admin: psycopg.Connection[Any], found: Figures, steps: int) -> None:
    """Steps a second, from the first claim to the last settlement."""
    query = "select count(*) from agentq.session where state in ('running', 'paused')"
    deadline = time.monotonic() + 300
    while admin.execute(query).fetchone() != (0,):
        if time.monotonic() > deadline:
            raise TimeoutError("the sessions did not end")
        time.sleep(0.2)
    bounds = "select extract(epoch from max(settled_at) - min(started_at))::float8 from agentq.ledger_entry where {}"
    mine = "settled_at > (select max(created_at) from agentq.session)"
    [took] = admin.execute(bounds.format(mine)).fetchone() or [0.0]  # type: ignore[arg-type]
    found.values["steps a second, all active"] = steps / took


def _latency(client: Client, admin: psycopg.Connection[Any], names: list[str], found: Figures, starts: int) -> None:
    """From a start to its first claim, by the database's clock; another tenant each time, as far as there are any."""
    draw = random.Random(11)
    order = draw.sample(names, min(starts, len(names)))
    sessions = []
    for number in range(starts):
        sessions.append(client.start(AGENT, tenant=order[number % len(order)], input={"left": 1}).id)
        time.sleep(0.02)
    time.sleep(2.0)
    rows = admin.execute(
        "select extract(epoch from e.started_at - s.created_at)::float8 from agentq.session s"
        " join agentq.ledger_entry e using (tenant, session_id) where s.session_id = any(%s) and e.seq = 0",
        (sessions,),
    ).fetchall()
    took = sorted(row[0] * 1000 for row in rows)
    found.values["enqueue to first claim, p50 ms"] = statistics.median(took)
    found.values["enqueue to first claim, p99 ms"] = took[min(int(len(took) * 0.99), len(took) - 1)]


def _idle(env: dict[str, str], workers: list[int], found: Figures, seconds: float) -> None:
    """Percent of a core that each kind of process uses with nothing to do, and what the broker is asked."""
    kinds = {"workers": workers} | _server_pids()
    broker = redis.Redis.from_url(env["AGENTQ_BROKER_URL"])
    cpu = {kind: cpu_s(pids) for kind, pids in kinds.items()}
    commands, began = int(broker.info("stats")["total_commands_processed"]), time.monotonic()  # type: ignore[index]
    time.sleep(seconds)
    took = time.monotonic() - began
    asked = int(broker.info("stats")["total_commands_processed"]) - commands - 1  # type: ignore[index]
    for kind, pids in kinds.items():
        found.values[f"idle {kind}, % of a core"] = 100 * (cpu_s(pids) - cpu[kind]) / took
    found.values["commands a second at Valkey, idle"] = asked / took


def _server_pids() -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for pid in SERVER_PIDS:
        found.setdefault("Postgres" if "postgres" in psutil.Process(pid).name() else "Valkey", []).append(pid)
    return found


def _chores(relay: Any, found: Figures, rounds: int, when: str) -> None:
    """Each chore of the relay, in rounds as they turn, though each time with all of them."""
    relay.round()
    took: dict[str, list[float]] = {chore.name: [] for chore in relay.chores}
    for _ in range(rounds):
        time.sleep(_TURN_S)  # or the shares would not be divided anew
        for chore in relay.chores:
            began = time.perf_counter()
            chore.run()
            took[chore.name].append((time.perf_counter() - began) * 1000)
    for name, times in took.items():
        found.values[f"relay, {when}: {name}, ms"] = statistics.median(times)
    found.values[f"relay, {when}: all of them, ms"] = statistics.median(map(sum, zip(*took.values(), strict=True)))


def _questions(env: dict[str, str], client: Client, found: Figures, rounds: int) -> None:
    """What people and Prometheus ask, while there is a backlog."""
    collector = FleetCollector(client.ledger.store)
    found.values["/metrics, questions to the ledger, ms"] = _median_ms(collector._ask, rounds)
    found.values["Flower's Tenants, ms"] = _median_ms(lambda: client.tenants.page(limit=PAGE_ROWS), rounds)
    for command in ("tenant ls", "queue ls"):
        found.values[f"agentq {command}, ms"] = _median_ms(lambda it=command: _command(it), rounds)  # type: ignore[misc]
    settings = settings_of(env)
    found.values["agentq doctor, its questions, ms"] = _median_ms(lambda: list(doctor_questions(settings)), rounds)


def _command(words: str) -> None:
    done = CliRunner().invoke(cli, [*words.split(), "--json"])
    if done.exit_code:
        raise RuntimeError(f"agentq {words}: {done.output}")


def _median_ms(call: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def _print(few: Figures, many: Figures, console: Console) -> None:
    table = Table("", f"{few.tenants:,} tenants", f"{many.tenants:,}, {many.active:,} active", "ratio")
    for name, value in few.values.items():
        other = many.values[name]
        table.add_row(name, f"{value:.2f}", f"{other:.2f}", f"{other / value:.2f}" if value > 0 else "")
    console.print(table)


if __name__ == "__main__":
    main()
