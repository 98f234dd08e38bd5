"""
`python -m benchmarks.anomalies`: how often each rule is wrong, and what it misses, on simulated traffic.

Two populations of runs, short ones and long ones, with skewed sizes, as one agent has them. For each rule: false
alarms among 1,000 ordinary runs, for baselines of several ages, and the share of bad runs that it finds.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from agentq.policies.anomalies import Baseline, Run, Thresholds, judge, learn

OFF = Thresholds(p99_steps=0, p99=0, mad_z=0, multiple=0, ewma_sigma=0, tool_mix=0)
RULES = {
    "p99": replace(OFF, p99_steps=1.5, p99=2.0),
    "log_mad 3.5": replace(OFF, mad_z=3.5),
    "log_mad 5": replace(OFF, mad_z=5.0),
    "multiple": replace(OFF, multiple=10.0),
    "as shipped": Thresholds(),
}
TOOLS = {"look_up": 0.6, "search": 0.3, "answer": 0.1}


def ordinary(draw: random.Random, hour: int = 0, shift: float = 0.0) -> Run:
    """A run of one of the two populations; `shift` moves so much of its calls to the second tool."""
    long = draw.random() < 0.3
    steps = max(2, round(draw.lognormvariate(2.8 if long else 1.6, 0.35)))
    tokens = sum(int(draw.lognormvariate(6.8, 0.5)) for _ in range(steps))
    share = [TOOLS["look_up"] - shift, TOOLS["search"] + shift, TOOLS["answer"]]
    tools: dict[str, int] = {}
    for name in draw.choices(list(TOOLS), share, k=max(steps // 2, 1)):
        tools[name] = tools.get(name, 0) + 1
    failures = sum(draw.random() < 0.02 for _ in range(steps))
    return Run("00000000-0000-0000-0000-000000000000", steps, tokens, int(tokens * 2.5), steps * 900, failures, tools,
               {"transient": failures} if failures else {}, hour)  # fmt: skip


def looping(run: Run, draw: random.Random) -> Run:
    """The same run, in a loop for 15 to 60 steps more."""
    more = draw.randint(15, 60)
    each = run.tokens // run.steps
    tokens = run.tokens + more * each
    return replace(
        run, steps=run.steps + more, tokens=tokens, cost=int(tokens * 2.5), duration=run.duration + more * 900
    )


def tenfold(run: Run, _: random.Random) -> Run:
    """Ten times its steps."""
    tokens = run.tokens * 10
    return replace(run, steps=run.steps * 10, tokens=tokens, cost=int(tokens * 2.5), duration=run.duration * 10)


def blown_up(run: Run, _: random.Random) -> Run:
    """Five times the tokens in the same steps."""
    return replace(run, tokens=run.tokens * 5, cost=run.cost * 5)


def wrong_tool(run: Run, _: random.Random) -> Run:
    """A tool that the agent never used."""
    return replace(run, tools={**run.tools, "delete_all": 1})


BAD: dict[str, Callable[[Run, random.Random], Run]] = {
    "+15..60 steps": looping, "10 × steps": tenfold, "5 × tokens": blown_up, "wrong tool": wrong_tool,
}  # fmt: skip


def taught(draw: random.Random, runs: int, limits: Thresholds) -> Baseline:
    """A baseline that has seen so many ordinary runs."""
    baseline = Baseline()
    for _ in range(runs):
        learn(ordinary(draw), baseline, limits, odd=False)
    return baseline


def of_single_runs(sizes: tuple[int, ...], tries: int, seed: int) -> list[dict[str, object]]:
    """False alarms in 1,000 runs and detections, by rule and size of the baseline."""
    found = []
    for size in sizes:
        for name, limits in RULES.items():
            draw = random.Random(seed)
            # At whatever size: what a rule does, not when it begins.
            early = replace(limits, runs_min=min(size, limits.runs_min), runs_few=min(size, limits.runs_few))
            alarms, hits = 0, dict.fromkeys(BAD, 0)
            fleets = 10
            for _ in range(fleets):
                baseline = taught(draw, size, OFF)
                for _ in range(tries // fleets):
                    run = ordinary(draw)
                    alarms += bool(judge(run, baseline, early))
                    for kind, spoil in BAD.items():
                        hits[kind] += bool(judge(spoil(run, draw), baseline, early))
            found.append({"rule": name, "runs": size, "false_per_1000": 1000 * alarms / tries,
                          **{kind: hits[kind] / tries for kind in BAD}})  # fmt: skip
    return found


def of_windows(windows: int, seed: int) -> list[dict[str, object]]:
    """Jensen-Shannon on windows of 50, 100 and 200 runs: false alarms, and a shift of 15 points found."""
    found = []
    for size in (50, 100, 200):
        draw, limits = random.Random(seed), replace(OFF, tool_mix=0.02, window=size)
        wrong = hit = 0
        for _ in range(windows):
            for shift in (0.0, 0.15):
                baseline = taught(draw, 500 - 500 % size, limits)
                alarms = [
                    one for _ in range(size) for one in learn(ordinary(draw, shift=shift), baseline, limits, odd=False)
                ]
                wrong, hit = wrong + bool(alarms and not shift), hit + bool(alarms and shift)
        found.append({"window": size, "false": wrong / windows, "shift of 15 points": hit / windows})
    return found


def of_hours(hours: int, seed: int) -> dict[str, object]:
    """EWMA on the hourly mean of log cost, 40 runs an hour: hours to a false alarm, and to a change that is found."""
    limits = replace(OFF, ewma_sigma=3.5, ewma_hours=72)
    draw, false = random.Random(seed), 0
    baseline = Baseline()
    for hour in range(hours):
        for _ in range(40):
            false += len(learn(ordinary(draw, hour), baseline, limits, odd=False))
    late: dict[str, float] = {}
    for name, times in (("+50 %", 1.5), ("× 2", 2.0)):
        delays = []
        for _ in range(20):
            baseline, start = Baseline(), 96
            for hour in range(start + 48):
                for _ in range(40):
                    run = ordinary(draw, hour)
                    changed = replace(run, cost=int(run.cost * times)) if hour >= start else run
                    if learn(changed, baseline, limits, odd=False) and hour > start:
                        delays.append(hour - start)
                        break
                else:
                    continue
                break
        late[name] = sum(delays) / max(len(delays), 1)
        late[f"{name} found"] = len(delays) / 20
    return {"hours": hours, "false_alarms": false, **late}


def main() -> None:
    """Simulate, print, and leave the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.anomalies", description=__doc__)
    parser.add_argument("--tries", type=int, default=10_000, help="ordinary runs that each rule judges")
    parser.add_argument("--windows", type=int, default=100)
    parser.add_argument("--hours", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("artifacts/anomalies.json"))
    given = parser.parse_args()
    console = Console()
    single = of_single_runs((50, 200, 1000), given.tries, given.seed)
    table = Table("rule", "runs learned", "false in 1,000", *BAD)
    for row in single:
        table.add_row(str(row["rule"]), str(row["runs"]), f"{row['false_per_1000']:.1f}",
                      *(f"{row[kind]:.0%}" for kind in BAD))  # fmt: skip
    console.print(table)
    windows = of_windows(given.windows, given.seed)
    table = Table("tool mix, window", "false", "shift of 15 points")
    for row in windows:
        table.add_row(str(row["window"]), f"{row['false']:.1%}", f"{row['shift of 15 points']:.0%}")
    console.print(table)
    hours = of_hours(given.hours, given.seed)
    console.print("cost by hour:", hours)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps({"single": single, "windows": windows, "hours": hours}, indent=2), "utf-8")


if __name__ == "__main__":
    main()
