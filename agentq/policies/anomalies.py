"""
Anomalies: what is normal for an agent, and how far a run is from it.

Pure decisions over a baseline of a few kilobytes that is learned one run at a time: counts in buckets of 2 %,
halved when they grow old, from which median, spread and percentiles come. Runs that stand out are not learned
from, unless most of the latest do: then the agent has changed, and its baseline begins anew. How often each rule
is wrong: `python -m benchmarks.anomalies`, docs/anomalies.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentq.settings import Settings
from agentq.store.anomalies import Tally

MEASURES = ("steps", "tokens", "cost", "duration", "failures")
# Below these nothing is a runaway, however regular an agent is: steps, tokens, micros, milliseconds, failures.
FLOORS = {"steps": 8, "tokens": 1_000, "cost": 1_000, "duration": 5_000, "failures": 3}

_STEP = math.log(1.02)
_MEMORY = 1_000  # runs; older ones fade
_SPREAD_MIN = 0.1  # of the logarithm: an agent that always does the same has a spread all the same
_FADE = 0.05
_HOURS = 168
_RUNS_PER_HOUR = 10
_WINDOWS_STRANGE = 3
_KNOWN_MIN = 0.01  # of a call: a tool that was called once is known for some seven thousand runs


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When something counts as abnormal. 0 switches a rule off."""

    runs_min: int = 200
    runs_few: int = 20
    p99_steps: float = 1.5
    p99: float = 2.0
    mad_z: float = 3.5
    multiple: float = 10.0
    ewma_sigma: float = 3.5
    ewma_hours: int = 24
    tool_mix: float = 0.02
    window: int = 50


@dataclass(frozen=True, slots=True)
class Run:
    """What a session came to, or has come to so far."""

    session: str
    steps: int = 0
    tokens: int = 0
    cost: int = 0
    duration: int = 0
    failures: int = 0
    tools: Mapping[str, int] = field(default_factory=dict)
    classes: Mapping[str, int] = field(default_factory=dict)
    hour: int = 0
    done: bool = True


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not normal: of which session, by which rule, and what would have been."""

    session: str
    measure: str
    rule: str
    value: float
    low: float
    high: float
    runs: int
    why: str


class Sketch:
    """Numbers as counts in buckets: median, spread and percentiles within one per cent, in a few hundred bytes."""

    def __init__(self, facts: Mapping[str, Any] | None = None) -> None:
        facts = facts or {}
        self.counts: dict[int, float] = {int(name): float(n) for name, n in facts.get("counts", {}).items()}
        self.top = float(facts.get("top", 0.0))
        self.n = sum(self.counts.values())

    def as_json(self) -> dict[str, Any]:
        return {"counts": {str(name): n for name, n in sorted(self.counts.items())}, "top": self.top}

    def add(self, value: float) -> None:
        """Learn a number; the older half fades when there are many."""
        bucket = round(math.log1p(max(value, 0.0)) / _STEP)
        self.counts[bucket] = self.counts.get(bucket, 0.0) + 1.0
        self.top = max(self.top, value)
        self.n += 1.0
        if self.n >= 2 * _MEMORY:
            self.counts = {name: n / 2 for name, n in self.counts.items() if n / 2 >= 0.25}
            self.n = sum(self.counts.values())
            self.top = max(map(_value, self.counts))

    def quantile(self, share: float) -> float:
        return _value(_weighted(sorted(self.counts.items()), share)) if self.counts else 0.0

    def spread(self) -> tuple[float, float]:
        """Median and deviation of the logarithms, neither moved by a few runs that went wrong."""
        middle = _weighted(sorted(self.counts.items()), 0.5)
        away: dict[int, float] = {}
        for bucket, n in self.counts.items():
            away[abs(bucket - middle)] = away.get(abs(bucket - middle), 0.0) + n
        return middle * _STEP, max(1.4826 * _weighted(sorted(away.items()), 0.5) * _STEP, _SPREAD_MIN)


def _value(bucket: int) -> float:
    return math.expm1(bucket * _STEP)


def _weighted(items: list[tuple[int, float]], share: float) -> int:
    wanted, seen = share * sum(n for _, n in items), 0.0
    for value, n in items:
        seen += n
        if seen >= wanted:
            return value
    return items[-1][0]


class Baseline:
    """What is normal for one agent's version, as far as it has been seen."""

    def __init__(self, runs: int = 0, facts: Mapping[str, Any] | None = None) -> None:
        facts = facts or {}
        self.runs = runs
        self.measures = {name: Sketch(facts.get("measures", {}).get(name)) for name in MEASURES}
        self.tools: dict[str, float] = dict(facts.get("tools", {}))
        self.window: dict[str, Any] = dict(facts.get("window", {}))
        self.classes: dict[str, float] = dict(facts.get("classes", {}))
        self.hours: dict[str, Any] = dict(facts.get("hours", {}))
        self.odd = float(facts.get("odd", 0.0))
        # Of tools and classes: runs that they were counted in, and windows in a row whose mix stood out.
        self.seen = float(facts.get("seen", runs))
        self.strange = int(facts.get("strange", 0))

    def as_json(self) -> dict[str, Any]:
        return {
            "measures": {name: sketch.as_json() for name, sketch in self.measures.items()},
            "tools": self.tools,
            "window": self.window,
            "classes": self.classes,
            "hours": self.hours,
            "odd": self.odd,
            "seen": self.seen,
            "strange": self.strange,
        }


# ── one run ──────────────────────────────────────────────────────────────────


def judge(run: Run, baseline: Baseline, limits: Thresholds) -> list[Finding]:
    """
    What stands out in a run, ended or not: what it has used so far only grows.

    At most one finding for each measure, by the first rule that holds.
    """
    found = [one for name in MEASURES if (one := _too_much(run, name, baseline, limits)) is not None]
    if baseline.runs >= limits.runs_min and baseline.tools:
        for tool in sorted(set(run.tools) - set(baseline.tools))[:5]:
            known = ", ".join(sorted(baseline.tools)[:8])
            why = f"tool {tool} was never called in {baseline.runs:,} runs, which use {known}"
            found.append(
                Finding(run.session, f"tool:{tool}", "new_tool", run.tools[tool], 0.0, 0.0, baseline.runs, why)
            )
    return found


def _too_much(run: Run, name: str, baseline: Baseline, limits: Thresholds) -> Finding | None:
    value, sketch = float(getattr(run, name)), baseline.measures[name]
    if value < FLOORS[name] or baseline.runs < limits.runs_few:
        return None
    low, middle, high = (sketch.quantile(share) for share in (0.01, 0.5, 0.99))

    def found(rule: str, text: str) -> Finding:
        shown = f"{name} {_shown(name, value)}, where {_shown(name, low)} to {_shown(name, high)} is normal: {text}"
        return Finding(run.session, name, rule, value, low, high, baseline.runs, shown)

    if baseline.runs >= limits.runs_min:
        times = limits.p99_steps if name == "steps" else limits.p99
        if times and value > times * max(high, 1.0):
            return found("p99", f"{value / max(high, 1.0):.1f} times what 99 of 100 runs stay under")
        log_middle, spread = sketch.spread()
        z = (math.log1p(value) - log_middle) / spread
        # Where most runs have none of it, the spread says nothing.
        if limits.mad_z and middle > 0 and z > limits.mad_z and value > max(high, 1.5 * middle):
            return found("log_mad", f"{z:.1f} deviations from the median")
    if limits.multiple and value > max(limits.multiple * max(middle, 1.0), 1.5 * sketch.top):
        return found("multiple", f"{value / max(middle, 1.0):.0f} times the median of {baseline.runs} runs")
    return None


def _shown(name: str, value: float) -> str:
    match name:
        case "cost":
            return f"${value / 1_000_000:.4f}"
        case "duration":
            return f"{value / 1000:.1f} s"
        case _:
            return f"{value:,.0f}"


# ── many runs ────────────────────────────────────────────────────────────────


def learn(run: Run, baseline: Baseline, limits: Thresholds, *, odd: bool) -> list[Finding]:
    """
    Add an ended run to the baseline (changed in place); what stands out in the latest runs together.

    `odd`: the run itself stood out, so it is not learned from.
    """
    baseline.odd += _FADE * (float(odd) - baseline.odd)
    if odd and baseline.odd > 0.5:
        # Most of the latest runs stand out: it is the agent that has changed.
        vars(baseline).update(vars(Baseline()))
        odd = False
    found = [*_hour(run, baseline, limits), *_window(run, baseline, limits, odd)]
    if not odd and run.done:
        baseline.runs += 1
        for name, sketch in baseline.measures.items():
            sketch.add(getattr(run, name))
    return found


def _window(run: Run, baseline: Baseline, limits: Thresholds, odd: bool) -> list[Finding]:
    """The mix of tools, and the share of runs with each class of failure, fifty runs at a time."""
    window = baseline.window
    tools: dict[str, float] = window.setdefault("tools", {})
    classes: dict[str, float] = window.setdefault("classes", {})
    for name, n in run.tools.items():
        # Of a run that stood out its tools become known, and their number weighs nothing.
        tools[name] = tools.get(name, 0) + (1 if odd else n)
    for name in run.classes:
        classes[name] = classes.get(name, 0) + 1
    window["runs"] = window.get("runs", 0) + 1
    if window["runs"] < max(limits.window, 1):
        return []
    found: list[Finding] = []
    n, known = window["runs"], baseline.runs >= limits.runs_min
    bound = max(limits.tool_mix, 1.7 / n)
    distance = divergence(tools, baseline.tools) if tools and baseline.tools else 0.0
    strange = bool(limits.tool_mix and known and distance > bound)
    if strange:
        most = max(
            set(tools) | set(baseline.tools), key=lambda name: abs(_share(tools, name) - _share(baseline.tools, name))
        )
        why = (
            f"the mix of tools of the last {n} runs is {distance:.3f} from normal: {most} is "
            f"{_share(tools, most):.0%} of the calls, and was {_share(baseline.tools, most):.0%}"
        )
        found.append(Finding(run.session, "tool_mix", "jensen_shannon", distance, 0.0, bound, baseline.runs, why))
    for name, k in sorted(classes.items()):
        usual = baseline.classes.get(name, 0.0) / max(baseline.seen, 1)
        most_normal = n * usual + 4 * math.sqrt(n * usual * (1 - min(usual, 1.0))) + 2
        if known and k > most_normal:
            why = f"{k:.0f} of the last {n} runs failed somewhere with {name}; up to {most_normal:.1f} is normal"
            found.append(Finding(run.session, f"class:{name}", "share", k, 0.0, most_normal, baseline.runs, why))
    _learn_window(baseline, tools, classes, n, strange=strange)
    return found


def _learn_window(
    baseline: Baseline, tools: Mapping[str, float], classes: Mapping[str, float], n: int, *, strange: bool
) -> None:
    """The window is learned, too: one odd window in twenty moves little, and a change that stays becomes normal."""
    baseline.strange = baseline.strange + 1 if strange else 0
    if baseline.strange >= _WINDOWS_STRANGE:
        # It is the agent that has changed. What its tools are called stays known.
        baseline.tools = {name: min(count, 1.0) for name, count in baseline.tools.items()}
        baseline.strange = 0
    for into, counts in ((baseline.tools, tools), (baseline.classes, classes)):
        for name, k in counts.items():
            into[name] = into.get(name, 0.0) + k
    baseline.window = {}
    baseline.seen += n
    if baseline.seen >= 2 * _MEMORY:
        baseline.seen /= 2
        for into in (baseline.tools, baseline.classes):
            for name in list(into):
                into[name] /= 2
                if into[name] < _KNOWN_MIN:
                    del into[name]


def divergence(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Jensen-Shannon, in bits: 0 for the same mix, 1 for nothing in common."""
    total = 0.0
    for name in set(one) | set(other):
        p, q = _share(one, name), _share(other, name)
        middle = (p + q) / 2
        total += sum(share * math.log2(share / middle) / 2 for share in (p, q) if share > 0)
    return total


def _share(counts: Mapping[str, float], name: str) -> float:
    return counts.get(name, 0.0) / max(sum(counts.values()), 1e-9)


def _hour(run: Run, baseline: Baseline, limits: Thresholds) -> list[Finding]:
    """The mean cost of an hour, smoothed over hours: finds what each run alone does not show."""
    hours, found = baseline.hours, list[Finding]()
    if run.cost <= 0:
        return found
    if hours.get("hour", run.hour) != run.hour:
        if hours["runs"] >= _RUNS_PER_HOUR:
            found = _close_hour(baseline, limits)
        for name in ("runs", "sum", "dearest", "most"):
            hours.pop(name, None)
    hours["hour"] = run.hour
    hours["runs"] = hours.get("runs", 0) + 1
    hours["sum"] = hours.get("sum", 0.0) + math.log(run.cost)
    if run.cost > hours.get("most", 0):
        hours["most"], hours["dearest"] = run.cost, run.session
    return found


def _close_hour(baseline: Baseline, limits: Thresholds) -> list[Finding]:
    hours = baseline.hours
    mean = hours["sum"] / hours["runs"]
    past: list[float] = hours.setdefault("past", [])
    found: list[Finding] = []
    if limits.ewma_sigma and len(past) >= max(limits.ewma_hours, 2):
        ranked = sorted(past)
        middle = ranked[len(ranked) // 2]
        spread = max(1.4826 * sorted(abs(one - middle) for one in past)[len(past) // 2], 0.02)
        smooth = hours["smooth"] = 0.2 * mean + 0.8 * hours.get("smooth", middle)
        bound = limits.ewma_sigma * spread * math.sqrt(0.2 / 1.8)
        if smooth - middle > bound:
            value, low, high = math.exp(smooth), math.exp(middle - bound), math.exp(middle + bound)
            why = (
                f"a session costs {_shown('cost', value)} by the hour, smoothed, where "
                f"{_shown('cost', low)} to {_shown('cost', high)} is normal; the dearest of the hour is named"
            )
            found.append(Finding(hours["dearest"], "cost_by_hour", "ewma", value, low, high, baseline.runs, why))
            hours["smooth"] = middle
    past.append(mean)
    del past[:-_HOURS]
    return found


# ── as the relay asks ────────────────────────────────────────────────────────


class BaselineRules:
    """These rules over stored tallies and baselines; see `agentq.relay.anomalies.Rules`."""

    def __init__(self, limits: Thresholds) -> None:
        self._limits = limits

    def judge(self, tally: Tally, known: tuple[int, dict[str, Any]]) -> list[Finding]:
        """What stands out in a session that runs."""
        return judge(run_of(tally), Baseline(*known), self._limits)

    def learn(
        self, tallies: Sequence[Tally], known: tuple[int, dict[str, Any]]
    ) -> tuple[int, dict[str, Any], list[tuple[Tally, Finding]]]:
        """The baseline after these sessions, each judged before it is learned from."""
        baseline, found = Baseline(*known), list[tuple[Tally, Finding]]()
        for tally in sorted(tallies, key=lambda one: (one.ended_at is None, one.ended_at)):
            run = run_of(tally)
            odd = judge(run, baseline, self._limits)
            found += [(tally, one) for one in (*odd, *learn(run, baseline, self._limits, odd=bool(odd)))]
        return baseline.runs, baseline.as_json(), found


class Unjudged:
    """No rules: what sessions used is forgotten when they end."""

    def judge(self, tally: Tally, known: tuple[int, dict[str, Any]]) -> list[Finding]:  # noqa: ARG002
        return []

    def learn(
        self,
        tallies: Sequence[Tally],  # noqa: ARG002
        known: tuple[int, dict[str, Any]],
    ) -> tuple[int, dict[str, Any], list[tuple[Tally, Finding]]]:
        return (*known, [])


def run_of(tally: Tally) -> Run:
    """A session's tally as the rules read it. Only a first run that went well teaches what is normal."""
    return Run(
        session=str(tally.session_id),
        steps=tally.steps,
        tokens=tally.tokens,
        cost=tally.cost_micros,
        duration=tally.busy_ms,
        failures=tally.failures,
        tools=tally.tools or {},
        classes=tally.classes or {},
        hour=int(tally.ended_at.timestamp() // 3600) if tally.ended_at else 0,
        done=tally.state == "done" and tally.first_run,
    )


def thresholds_of(settings: Settings) -> Thresholds:
    """As the settings have them."""
    return Thresholds(
        runs_min=settings.anomaly_runs_min,
        runs_few=settings.anomaly_runs_few,
        p99_steps=settings.anomaly_tail_steps,
        p99=settings.anomaly_tail,
        mad_z=settings.anomaly_mad_z,
        multiple=settings.anomaly_multiple,
        ewma_sigma=settings.anomaly_ewma_sigma,
        ewma_hours=settings.anomaly_ewma_hours,
        tool_mix=settings.anomaly_tool_mix,
        window=settings.anomaly_window,
    )


__all__ = [
    "FLOORS",
    "MEASURES",
    "Baseline",
    "BaselineRules",
    "Finding",
    "Run",
    "Sketch",
    "Thresholds",
    "Unjudged",
    "divergence",
    "judge",
    "learn",
    "run_of",
    "thresholds_of",
]
