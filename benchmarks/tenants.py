"""
`python -m benchmarks.tenants`: what one tenant's flood does to another, and whether weights are kept.

Tenant A has thousands of steps queued, tenant B starts a ten-step session each second. B's completion times beside A
are compared with those just before, alone: on bare Celery with one queue, on bare Celery with a queue for each
tenant, and on agentq, in turns within each case. The control is B alone on agentq beside processes that burn as
much processor time as A cost: what any scheduler would have to bear on this machine. Bounded: a session that is not
done `--patience` seconds after the last start counts as taking that long, and the figure is marked.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psycopg
import redis
from rich.console import Console
from rich.table import Table

from agentq.agents.registry import load_agents
from agentq.client import Client
from agentq.worker import headroom
from benchmarks.fleet import (
    SERVER_PIDS,
    agentq_workers,
    celery_workers,
    cpu_s,
    environment,
    machine,
    servers,
    settings_of,
    wait_for_workers,
)

STEPS, STEP_S = 10, 0.05
# How the flood's steps end and how long each takes. Of poison, only a few: each kills a whole worker process.
CASES = {
    "fast": ("well", STEP_S),
    "slow": ("well", 5.0),
    "failing": ("failing", STEP_S),
    "retrying": ("retrying", STEP_S),
    "poison": ("poison", STEP_S),
}
POISONOUS = 2


@dataclass
class Window:
    """B's sessions within one stretch of time."""

    took_s: list[float] = field(default_factory=list)
    unfinished: int = 0
    flood_steps_per_s: float = 0.0
    cpu: float = 0.0


def _ends(case: str, number: int) -> str:
    """How a step of the flood ends: of poison there is little, some hundred steps apart."""
    if case != "poison":
        return case
    return "poison" if number % 400 == 0 and number // 400 < POISONOUS else "well"


class Contender(Protocol):
    """One system with both tenants."""

    name: str

    def pids(self) -> list[int]: ...

    def start_session(self) -> None: ...

    def finished(self) -> list[float]: ...

    def begin(self) -> None: ...

    def flood(self, ends: str, seconds: float) -> None: ...

    def flood_done(self) -> int: ...

    def clear(self) -> None: ...


class Bare:
    """Bare Celery: B's chain is sent on with `apply_async`, nothing survives."""

    def __init__(self, env: dict[str, str], pids: list[int], arguments: argparse.Namespace, queues: tuple[str, str]):
        self.name = "bare, one queue" if queues[0] == queues[1] else "bare, a queue each"
        self._pids, self._arguments, self._queues = pids, arguments, queues
        self._broker = redis.Redis.from_url(env["AGENTQ_BROKER_URL"])
        self._key = env.get("AGENTQ_KEY_PREFIX", "agentq:") + queues[0]
        self._run = ""
        self._queued = 0

    def pids(self) -> list[int]:
        return list(self._pids)

    def begin(self) -> None:
        self._run = f"run-{uuid.uuid4().hex}"

    def start_session(self) -> None:
        from benchmarks.neighbours import bare_work

        bare_work.apply_async((STEPS, STEP_S, self._run, self._queues[1], time.time()), queue=self._queues[1])

    def finished(self) -> list[float]:
        return [float(value) for value in self._broker.lrange(self._run, 0, -1)]

    def flood(self, ends: str, seconds: float) -> None:
        from benchmarks.neighbours import app, bare_work

        # Together: one by one they would be worked off while they are sent.
        with app.producer_pool.acquire() as producer, producer.batch(max_size=500):
            for number in range(self._arguments.flood):
                bare_work.apply_async(
                    (1, seconds, "", self._queues[0], 0.0, _ends(ends, number)),
                    queue=self._queues[0], producer=producer, retry=False,
                )  # fmt: skip
        self._queued = self._arguments.flood

    def flood_done(self) -> int:
        return max(self._queued - int(self._broker.llen(self._key)), 0)

    def clear(self) -> None:
        for _ in range(2):  # what runs may send more
            self._broker.delete(self._key)
            time.sleep(0.5)
        self._queued = 0


class Agentq:
    """agentq as shipped: a tenant each, with the default caps and weights."""

    name = "agentq"

    def __init__(self, client: Client, url: str, pids: list[int], arguments: argparse.Namespace):
        self._client, self._pids, self._arguments = client, pids, arguments
        self._connection = psycopg.connect(url, autocommit=True)
        self._connection.execute("select set_config('agentq.tenant', '*', false)")
        self._sessions: list[tuple[Any, float]] = []
        self._flood = ""
        client.tenants.add("bench-b")

    def pids(self) -> list[int]:
        return list(self._pids)

    def begin(self) -> None:
        self._sessions = []

    def start_session(self) -> None:
        began = time.time()
        session = self._client.start("bench-neighbour", tenant="bench-b", input={"left": STEPS, "seconds": STEP_S})
        self._sessions.append((session, began))

    def finished(self) -> list[float]:
        rows = self._connection.execute(
            "select session_id, extract(epoch from ended_at)::float8 from agentq.session"
            " where tenant = 'bench-b' and session_id = any(%s) and ended_at is not null",
            ([session.id for session, _ in self._sessions],),
        ).fetchall()
        ended = {str(row[0]): row[1] for row in rows}
        return [ended[session.id] - began for session, began in self._sessions if session.id in ended]

    def flood(self, ends: str, seconds: float) -> None:
        self._flood = f"bench-a-{uuid.uuid4().hex[:8]}"
        self._client.tenants.add(self._flood)
        time.sleep(1.5)  # as any tenant, it was there before its flood
        items: list[tuple[Any, str | None]] = [
            ({"seconds": seconds, "ends": _ends(ends, number)}, None) for number in range(self._arguments.flood)
        ]
        self._client.start_many("bench-neighbour", tenant=self._flood, items=items)

    def flood_done(self) -> int:
        query = "select count(*) from agentq.trace where tenant = %s and kind = 'attempt'"
        return int(self._connection.execute(query, (self._flood,)).fetchone()[0])  # type: ignore[index]

    def clear(self) -> None:
        self._client.tenants.set(self._flood, state="paused", reason="the case is over")
        query = "select count(*) from agentq.ledger_entry where tenant = %s and state in ('queued', 'running')"
        deadline = time.monotonic() + 20
        while self._connection.execute(query, (self._flood,)).fetchone() != (0,) and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(1.0)


def main() -> None:
    """Measure, print, and leave the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tenants", description=__doc__)
    parser.add_argument("--flood", type=int, default=5000, help="steps that tenant A has queued")
    parser.add_argument("--seconds", type=int, default=10, help="how long B starts a session each second")
    parser.add_argument("--patience", type=float, default=6.0, help="how long its last sessions are waited for")
    parser.add_argument("--threads", type=int, default=8, help="slots of each of two worker processes")
    parser.add_argument("--cases", default=",".join(CASES), help="some of: %(default)s; none: ''")
    parser.add_argument("--weights", type=int, default=100, help="tenants of random weights, for a minute; 0: none")
    parser.add_argument("--weight-threads", type=int, default=32, help="slots of each process while these run")
    parser.add_argument("--json", type=Path, default=Path("artifacts/tenants.json"))
    arguments = parser.parse_args()
    cases = [case for case in arguments.cases.split(",") if case]
    if unknown := set(cases) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    console = Console(width=120)
    console.print(machine())
    figures: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory(prefix="agentq-bench-") as folder, servers(Path(folder) / "data") as base:
        env = environment(base, AGENTQ_AGENTS="benchmarks.neighbours")
        os.environ.update(env)
        log = Path(folder) / "workers.log"
        if cases:
            figures["neighbours"] = _neighbours(env, log, arguments, cases, console)
        if arguments.weights:
            figures["weights"] = _weights(env, log, arguments)
            console.print(figures["weights"])
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(figures, indent=2), "utf-8")
    console.print(f"figures: {arguments.json}")


@contextmanager
def _contenders(env: dict[str, str], log: Path, arguments: argparse.Namespace) -> Iterator[list[Contender]]:
    """All fleets at once, so that they can take turns; those that have nothing to do cost next to nothing."""
    from benchmarks.bare import app

    with ExitStack() as stack:
        enter = stack.enter_context
        # As many threads as agentq's processes have.
        threads = arguments.threads + headroom(arguments.threads)
        bare = enter(celery_workers("benchmarks.neighbours", env, processes=2, threads=threads, log=log, keep=True))
        client = enter(Client(settings_of(env), load_agents(("benchmarks.neighbours",))))
        ours = enter(agentq_workers(env, processes=2, threads=arguments.threads, log=log, quarantine=1, keep=True))
        wait_for_workers(client, 4)
        contender = Agentq(client, env["AGENTQ_DATABASE_URL"], ours, arguments)
        time.sleep(2)
        # Named, or agentq's workers, which hear the same broadcasts, would lend bare Celery a hand.
        nodes = [node for node in app.control.inspect(timeout=3).ping() if node.startswith("benchmarks.neighbours")]
        for queue in ("bench.a", "bench.b"):
            told = app.control.add_consumer(queue, destination=nodes, reply=True, timeout=3)
            assert len(told) == 2, told
        yield [
            Bare(env, bare, arguments, ("bare", "bare")),
            Bare(env, bare, arguments, ("bench.a", "bench.b")),
            contender,
        ]


def _neighbours(
    env: dict[str, str], log: Path, arguments: argparse.Namespace, cases: list[str], console: Console
) -> dict[str, Any]:
    found: dict[tuple[str, str], tuple[Window, Window]] = {}
    with _contenders(env, log, arguments) as contenders:
        for contender in contenders:
            _window(contender, arguments, seconds=3)  # connections and prepared statements are not what is measured
        for case in cases:
            for contender in contenders:
                found[case, contender.name] = _beside(contender, case, arguments, console)
            alone, beside = found[case, "agentq"]
            found[case, "control"] = _control(contenders[-1], max(beside.cpu - alone.cpu, 0.0), arguments)
    table = Table(
        "A's steps", "contender", "B alone p99 s", "beside A p99 s", "ratio", "of medians", "A's steps/s", "cores"
    )
    rows: dict[str, Any] = {}
    for (case, name), (alone, beside) in found.items():
        ratios = _p99(beside) / _p99(alone), _median(beside) / _median(alone)
        more = ">" if beside.unfinished else ""
        table.add_row(
            case, name, f"{_p99(alone):.2f}", f"{more}{_p99(beside):.2f}", f"{more}{ratios[0]:.2f}",
            f"{more if 2 * beside.unfinished > len(beside.took_s) else ''}{ratios[1]:.2f}",
            f"{beside.flood_steps_per_s:.0f}", f"{beside.cpu:.2f}",
        )  # fmt: skip
        rows.setdefault(case, {})[name] = {
            "alone": asdict(alone), "beside": asdict(beside), "ratio_p99": ratios[0], "ratio_median": ratios[1],
        }  # fmt: skip
    console.print(table)
    return rows


def _beside(contender: Contender, case: str, arguments: argparse.Namespace, console: Console) -> tuple[Window, Window]:
    ends, seconds = CASES[case]
    alone = _window(contender, arguments)
    contender.flood(ends, seconds)
    time.sleep(1)
    beside = _window(contender, arguments, flooded=True)
    contender.clear()
    if seconds > 1:
        time.sleep(seconds)  # bare Celery's steps cannot be taken back
    console.print(f"{case}, {contender.name}: {_p99(alone):.2f} s, beside A {_p99(beside):.2f} s")
    return alone, beside


def _control(contender: Contender, cores: float, arguments: argparse.Namespace) -> tuple[Window, Window]:
    """B alone, and beside processes that use as much of the machine as A did."""
    alone = _window(contender, arguments)
    burners = [multiprocessing.Process(target=_burn, args=(cores / 2,), daemon=True) for _ in range(2)]
    for burner in burners:
        burner.start()
    beside = _window(contender, arguments)
    for burner in burners:
        burner.kill()
        burner.join()
    return alone, beside


def _burn(share: float) -> None:
    """Use this share of a core, in slices as short as those of a step."""
    while True:
        slice_s = random.uniform(0.001, 0.003)
        until = time.perf_counter() + slice_s * min(share, 1.0)
        while time.perf_counter() < until:
            pass
        time.sleep(slice_s * max(1.0 - share, 0.0))


def _window(
    contender: Contender, arguments: argparse.Namespace, *, seconds: int | None = None, flooded: bool = False
) -> Window:
    """B's sessions, one a second."""
    count = arguments.seconds if seconds is None else seconds
    contender.begin()
    pids = [*contender.pids(), *SERVER_PIDS]
    cpu, began, done = cpu_s(pids), time.monotonic(), contender.flood_done() if flooded else 0
    starts = []
    for number in range(count):
        contender.start_session()
        starts.append(time.time())
        time.sleep(max(began + number + 1 - time.monotonic(), 0))
    took = time.monotonic() - began
    window = Window(
        cpu=max(cpu_s(pids) - cpu, 0.0) / took,
        flood_steps_per_s=(contender.flood_done() - done) / took if flooded else 0.0,
    )
    deadline = time.monotonic() + arguments.patience
    while len(window.took_s) < count and time.monotonic() < deadline:
        time.sleep(0.1)
        window.took_s = contender.finished()
    window.unfinished = count - len(window.took_s)
    # In the order of their starts, those that are not done are taken to be the latest.
    window.took_s += [time.time() - at for at in starts[len(window.took_s) :]]
    return window


def _p99(window: Window) -> float:
    values = sorted(window.took_s)
    return values[min(int(len(values) * 0.99), len(values) - 1)]


def _median(window: Window) -> float:
    return statistics.median(window.took_s)


def _weights(env: dict[str, str], log: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Tenants of random weights and step durations, each with more than it can do; shares of the time they held."""
    draw = random.Random(1)
    tenants = {f"bench-w{n}": (round(draw.uniform(1, 5), 3), draw.uniform(0.1, 0.5)) for n in range(arguments.weights)}
    slots = 2 * arguments.weight_threads
    weights = sum(weight for weight, _ in tenants.values())
    with Client(settings_of(env), load_agents(("benchmarks.neighbours",))) as client:
        for name, (weight, seconds) in tenants.items():
            client.tenants.add(name, weight=weight)
            # Twice what it can do in the time, so that nobody runs dry.
            items = [({"seconds": seconds}, None)] * int(2 * 80 * slots * weight / weights / seconds + 10)
            client.start_many("bench-neighbour", tenant=name, items=items)
        with agentq_workers(env, processes=2, threads=arguments.weight_threads, log=log):
            wait_for_workers(client, 2)
            time.sleep(15)
            held, waits = _held(env["AGENTQ_DATABASE_URL"], 60.0)
    whole = sum(held.values())
    off = sorted(abs((held.get(name, 0.0) / whole) / (weight / weights) - 1) for name, (weight, _) in tenants.items())
    return {
        "tenants": len(off),
        "median_off": statistics.median(off),
        "within_5_percent": sum(value <= 0.05 for value in off) / len(off),
        "worst_off": max(off),
        "busy": whole / 60 / slots,
        "longest_wait_s": max(waits),
    }


def _held(url: str, seconds: float) -> tuple[dict[str, float], list[float]]:
    """For how long each tenant's steps held slots within a stretch of time, and between two starts of each."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("select set_config('agentq.tenant', '*', false)")
        [began] = connection.execute("select agentq.now()").fetchone() or [None]
        time.sleep(seconds)
        bounds = {"from": began, "s": seconds}
        rows = connection.execute(
            "select tenant, sum(extract(epoch from least(coalesce(settled_at, agentq.now()), b.till)"
            " - greatest(started_at, b.since)))::float8"
            " from agentq.ledger_entry, (select %(from)s::timestamptz as since,"
            " %(from)s::timestamptz + make_interval(secs => %(s)s) as till) b"
            " where started_at < b.till and coalesce(settled_at, agentq.now()) > b.since and tenant like 'bench-w%%'"
            " group by tenant",
            bounds,
        ).fetchall()
        gaps = connection.execute(
            "select max(extract(epoch from started_at - before))::float8 from (select tenant, started_at,"
            " lag(started_at) over (partition by tenant order by started_at) as before from agentq.ledger_entry"
            " where started_at > %(from)s and tenant like 'bench-w%%') starts group by tenant",
            bounds,
        ).fetchall()
    return dict(rows), [row[0] or seconds for row in gaps]


if __name__ == "__main__":
    main()
