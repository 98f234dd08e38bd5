"""
`python -m benchmarks` (or `make bench`): ratios against bare Celery and against the raw statements.

Contenders take turns within each round, so a machine whose speed drifts shifts all of them; the
ratios are taken round by round and their median is what counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import encryption, waiting
from benchmarks.fleet import servers
from benchmarks.hops import Bench, Latency, Rate


def main() -> None:
    """Measure, print, and leave the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sessions", type=int, default=300)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--only", choices=["hops", "waiting", "tracing", "encryption"], default=None)
    parser.add_argument("--json", type=Path, default=Path("artifacts/bench.json"))
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="agentq-bench-") as folder, servers(Path(folder) / "data") as env:
        bench = Bench(
            env,
            Path(folder) / "workers.log",
            sessions=arguments.sessions,
            steps=arguments.steps,
            processes=arguments.processes,
            threads=arguments.threads,
        )
        figures: dict[str, object] = {"machine": _machine()}
        console.print(_machine())
        if arguments.only in (None, "hops"):
            figures["hops"] = _hops(bench, arguments.rounds, console)
        if arguments.only in (None, "tracing"):
            figures["tracing"] = _tracing(bench, arguments.rounds, console)
        if arguments.only in (None, "encryption"):
            figures["encryption"] = _encryption(bench, arguments.rounds, console)
        if arguments.only in (None, "waiting"):
            figures["waiting"] = _waiting(bench, console)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(figures, indent=2), "utf-8")
    console.print(f"figures: {arguments.json}")


def _hops(bench: Bench, rounds: int, console: Console) -> dict[str, object]:
    """Each contender once a round, in turn; with and without the task events that Flower shows."""
    raw: list[Rate] = []
    found: dict[tuple[str, bool], list[tuple[Rate, Latency]]] = {}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("chained empty steps", total=rounds * 5)
        for _ in range(rounds):
            raw.append(bench.raw())
            progress.advance(task)
            for events in (False, True):
                for name, measure in (("bare", bench.bare), ("agentq", bench.agentq)):
                    found.setdefault((name, events), []).append(measure(events=events))
                    progress.advance(task)
    _print_hops(bench, raw, found, console)
    ratios = {
        "to_bare": _ratio(found["agentq", False], found["bare", False]),
        "to_bare_with_events": _ratio(found["agentq", True], found["bare", True]),
        "to_raw": statistics.median(
            ours[0].steps_per_s / rate.steps_per_s for ours, rate in zip(found["agentq", False], raw, strict=True)
        ),
    }
    console.print(
        f"steps/s of agentq, every step durable: [bold]{ratios['to_bare']:.2f}[/] of bare Celery "
        f"([bold]{ratios['to_bare_with_events']:.2f}[/] where both send task events), "
        f"{ratios['to_raw']:.2f} of the statements without Celery (medians of {rounds} interleaved rounds)"
    )
    rows = {
        f"{name}{'_with_events' if events else ''}": [{**asdict(rate), **asdict(latency)} for rate, latency in measured]
        for (name, events), measured in found.items()
    }
    return {"raw": [asdict(rate) for rate in raw], **rows, "ratios": ratios}


def _tracing(bench: Bench, rounds: int, console: Console) -> dict[str, object]:
    """The same empty steps with and without a row for each attempt; who goes first changes from round to round."""
    found: dict[bool, list[tuple[Rate, Latency]]] = {True: [], False: []}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("with and without traces", total=rounds * 2)
        for number in range(rounds):
            for traced in (True, False) if number % 2 else (False, True):
                found[traced].append(bench.agentq(events=False, traced=traced))
                progress.advance(task)
    ratio = _ratio(found[True], found[False])
    console.print(
        f"steps/s with a trace row for each attempt: [bold]{ratio:.2f}[/] of those without "
        f"(median of {rounds} interleaved rounds)"
    )
    names = {True: "traced", False: "untraced"}
    rows = {names[traced]: [{**asdict(rate), **asdict(hop)} for rate, hop in ran] for traced, ran in found.items()}
    return {**rows, "ratio": ratio}


def _encryption(bench: Bench, rounds: int, console: Console) -> dict[str, object]:
    found = encryption.measure(bench.settings, rounds=max(rounds, 5), steps=300)
    console.print(
        f"a step with 2 kB of state, encrypted: [bold]{found.sealed_us - found.plain_us:+.0f} µs[/] on "
        f"{found.plain_us:,.0f} µs of claim and settlement ({found.ratio:.2f}); the ciphers alone "
        f"{found.ciphers_us:.0f} µs (medians of {max(rounds, 5)} interleaved rounds)"
    )
    return {**asdict(found), "ratio": found.ratio}


def _ratio(ours: list[tuple[Rate, Latency]], theirs: list[tuple[Rate, Latency]]) -> float:
    pairs = zip(ours, theirs, strict=True)
    return statistics.median(our[0].steps_per_s / their[0].steps_per_s for our, their in pairs)


def _print_hops(
    bench: Bench, raw: list[Rate], found: dict[tuple[str, bool], list[tuple[Rate, Latency]]], console: Console
) -> None:
    title = f"{bench.sessions} sessions x {bench.steps} empty steps, 2 kB of state, medians of {len(raw)} rounds"
    table = Table(title=title)
    for name in ("", "steps/s", "hop p50 ms", "hop p99 ms", "commits/step", "WAL bytes/step", "memory MB"):
        table.add_column(name, justify="left" if not name else "right")
    _row(table, "claim + settle, no Celery", raw, [])
    names = {"bare": "bare Celery, apply_async chain", "agentq": "agentq"}
    for (name, events), measured in found.items():
        label = names[name] + (", task events on" if events else "")
        _row(table, label, [rate for rate, _ in measured], [latency for _, latency in measured])
    console.print(table)


def _row(table: Table, name: str, rates: list[Rate], latencies: list[Latency]) -> None:
    def middle(values: list[float], digits: int = 0) -> str:
        return f"{statistics.median(values):,.{digits}f}" if values and any(values) else "-"

    table.add_row(
        name,
        middle([rate.steps_per_s for rate in rates]),
        middle([latency.p50_ms for latency in latencies], 1),
        middle([latency.p99_ms for latency in latencies], 1),
        middle([rate.commits_per_step for rate in rates], 1),
        middle([rate.wal_bytes_per_step for rate in rates]),
        middle([rate.memory_mb for rate in rates]),
    )


def _waiting(bench: Bench, console: Console) -> dict[str, object]:
    found = waiting.measure(bench)
    console.print(
        f"500 sessions x 5 steps, each waiting 1 s on HTTP, two processes: {found.seconds:.1f} s, "
        f"[bold]{found.of_ideal:.2f}[/] of the ideal {found.ideal_s:g} s, {found.memory_mb:.0f} MB"
    )
    return {**asdict(found), "of_ideal": found.of_ideal}


def _machine() -> str:
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, {system}, load {os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    main()
