"""
`python -m benchmarks` (or `make bench`): ratios against bare Celery and against the raw statements.

All contenders are up, each with servers of its own, and take short turns: each round is a second or two of each,
in an order that turns around from round to round. So a machine whose speed drifts, or that others use too, shifts
all of them; ratios are taken round by round and their median is what counts. What a step cost in processor time
is less sensitive to such others than steps/s are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import encryption, hops, waiting
from benchmarks.fleet import machine, servers, settings_of
from benchmarks.hops import Contender, Round, Size

Make = Callable[[Path, Size], AbstractContextManager[Contender]]

HOPS: dict[str, Make] = {
    "claim + settle, no Celery": hops.raw,
    "bare Celery": lambda folder, size: hops.bare(folder, size, events=False),
    "agentq": lambda folder, size: hops.agentq(folder, size, events=False),
    "bare Celery, task events on": lambda folder, size: hops.bare(folder, size, events=True),
    "agentq, task events on (as shipped)": lambda folder, size: hops.agentq(folder, size, events=True),
}
TRACING: dict[str, Make] = {
    "without traces": lambda folder, size: hops.agentq(folder, size, events=False, traced=False),
    "with traces": lambda folder, size: hops.agentq(folder, size, events=False, traced=True),
}


def main() -> None:
    """Measure, print, and leave the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--only", choices=["hops", "waiting", "tracing", "encryption"], default=None)
    parser.add_argument("--json", type=Path, default=Path("artifacts/bench.json"))
    arguments = parser.parse_args()
    console = Console(width=120)
    size = Size(arguments.sessions, arguments.steps, arguments.processes, arguments.threads)
    figures: dict[str, object] = {"machine": machine()}
    console.print(machine())
    if arguments.only in (None, "hops"):
        figures["hops"] = _hops(size, arguments.rounds, console)
    if arguments.only in (None, "tracing"):
        figures["tracing"] = _tracing(size, arguments.rounds, console)
    if arguments.only in (None, "encryption"):
        figures["encryption"] = _encryption(arguments.rounds, console)
    if arguments.only in (None, "waiting"):
        figures["waiting"] = _waiting(console)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(figures, indent=2), "utf-8")
    console.print(f"figures: {arguments.json}")


Found = dict[str, list[Round]]


def _measure(makes: dict[str, Make], size: Size, rounds: int, console: Console) -> tuple[Found, dict[str, float]]:
    """Each contender once a round, in turns; and the memory of each."""
    found: Found = {name: [] for name in makes}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agentq-bench-")))
        contenders = {}
        for number, (name, make) in enumerate(makes.items()):
            (folder / str(number)).mkdir()
            contenders[name] = stack.enter_context(make(folder / str(number), size))
        progress = stack.enter_context(Progress(console=console, transient=True))
        task = progress.add_task("chained empty steps", total=rounds * len(contenders))
        for number in range(rounds):
            for name in list(contenders)[:: -1 if number % 2 else 1]:
                found[name].append(contenders[name].round())
                progress.advance(task)
        memory = {name: contender.memory_mb() for name, contender in contenders.items()}
    return found, memory


def _hops(size: Size, rounds: int, console: Console) -> dict[str, object]:
    """With and without the task events that Flower shows."""
    found, memory = _measure(HOPS, size, rounds, console)
    _print(size, found, memory, console)
    raw, bare, ours, bare_told, ours_told = found.values()
    ratios = {
        "to_bare": _ratio(ours, bare),
        "to_bare_with_events": _ratio(ours_told, bare_told),
        "to_raw": _ratio(ours, raw),
        "cpu_to_bare": _cost(ours, bare),
        "cpu_to_bare_with_events": _cost(ours_told, bare_told),
    }
    console.print(
        f"steps/s of agentq, every step durable: [bold]{ratios['to_bare']:.2f}[/] of bare Celery "
        f"([bold]{ratios['to_bare_with_events']:.2f}[/] where both send task events), "
        f"{ratios['to_raw']:.2f} of the statements without Celery (medians of {rounds} interleaved rounds)"
    )
    return {**_rows(found, memory), "ratios": ratios}


def _tracing(size: Size, rounds: int, console: Console) -> dict[str, object]:
    """
    The same empty steps as shipped and with `trace = false`, which leaves out each attempt's row and its session's
    tally for anomalies.
    """
    found, memory = _measure(TRACING, size, rounds, console)
    untraced, traced = found.values()
    each = [one.steps_per_s / other.steps_per_s for one, other in zip(traced, untraced, strict=True)]
    low, _, high = statistics.quantiles(each, n=4) if len(each) > 1 else each * 3
    ratio, cost = _ratio(traced, untraced), _cost(traced, untraced)
    written = [statistics.median(one.wal_bytes_per_step for one in ran) for ran in (untraced, traced)]
    _print(size, found, memory, console)
    console.print(
        f"steps/s with a trace row for each attempt: [bold]{ratio:.2f}[/] of those without (half of the rounds from "
        f"{low:.2f} to {high:.2f}), processor time of workers {cost:.2f}, WAL {written[1] - written[0]:+,.0f} bytes "
        f"on {written[0]:,.0f} a step (medians of {rounds} interleaved rounds)"
    )
    spread = {"ratio_quartiles": [low, high], "wal_bytes_per_step": written}
    return {**_rows(found, memory), "ratio": ratio, "cpu_ratio": cost, **spread}


def _encryption(rounds: int, console: Console) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="agentq-bench-") as folder, servers(Path(folder) / "data") as base:
        found = encryption.measure(settings_of(base), rounds=max(rounds, 5), steps=300)
    console.print(
        f"a step with 2 kB of state, encrypted: [bold]{found.sealed_us - found.plain_us:+.0f} µs[/] on "
        f"{found.plain_us:,.0f} µs of claim and settlement ({found.ratio:.2f}); the ciphers alone "
        f"{found.ciphers_us:.0f} µs (medians of {max(rounds, 5)} interleaved rounds)"
    )
    return {**asdict(found), "ratio": found.ratio}


def _rows(found: Found, memory: dict[str, float]) -> dict[str, object]:
    return {name: {"memory_mb": memory[name], "rounds": [asdict(one) for one in ran]} for name, ran in found.items()}


def _ratio(ours: list[Round], theirs: list[Round]) -> float:
    pairs = zip(ours, theirs, strict=True)
    return statistics.median(our.steps_per_s / their.steps_per_s for our, their in pairs)


def _cost(ours: list[Round], theirs: list[Round]) -> float:
    pairs = zip(ours, theirs, strict=True)
    return statistics.median(our.cpu_ms_per_step / their.cpu_ms_per_step for our, their in pairs)


def _print(size: Size, found: Found, memory: dict[str, float], console: Console) -> None:
    rounds = len(next(iter(found.values())))
    table = Table(
        title=f"{size.sessions} sessions x {size.steps} empty steps, 2 kB of state, medians of {rounds} rounds"
    )
    for name in ("", "steps/s", "worker ms/step", "hop p50 ms", "hop p99 ms", "commits", "WAL bytes", "memory MB"):
        table.add_column(name, justify="left" if not name else "right")
    for name, ran in found.items():
        hops_ms = sorted(hop for one in ran for hop in one.hops_ms)
        table.add_row(
            name,
            _middle([one.steps_per_s for one in ran]),
            _middle([one.cpu_ms_per_step for one in ran], 2),
            _middle(hops_ms, 1),
            f"{hops_ms[int(len(hops_ms) * 0.99)]:.1f}" if hops_ms else "-",
            _middle([one.commits_per_step for one in ran], 1),
            _middle([one.wal_bytes_per_step for one in ran]),
            f"{memory[name]:,.0f}",
        )
    console.print(table)


def _middle(values: list[float], digits: int = 0) -> str:
    return f"{statistics.median(values):,.{digits}f}" if any(values) else "-"


def _waiting(console: Console) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="agentq-bench-") as folder, servers(Path(folder) / "data") as base:
        found = waiting.measure(base, Path(folder) / "workers.log")
    console.print(
        f"500 sessions x 5 steps, each waiting 1 s on HTTP, two processes: {found.seconds:.1f} s, "
        f"[bold]{found.of_ideal:.2f}[/] of the ideal {found.ideal_s:g} s, {found.memory_mb:.0f} MB"
    )
    return {**asdict(found), "of_ideal": found.of_ideal}


if __name__ == "__main__":
    main()
