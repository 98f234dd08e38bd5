"""The rules for anomalies: each at its bound, and none where too little is known."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from agentq.policies.anomalies import (
    FLOORS,
    MEASURES,
    Baseline,
    BaselineRules,
    Finding,
    Run,
    Sketch,
    Thresholds,
    Unjudged,
    divergence,
    judge,
    learn,
    run_of,
)
from agentq.store.anomalies import Tally

OFF = Thresholds(p99_steps=0, p99=0, mad_z=0, multiple=0, ewma_sigma=0, tool_mix=0)
P99 = replace(OFF, p99_steps=1.5, p99=2.0)
MAD = replace(OFF, mad_z=3.5)
MULTIPLE = replace(OFF, multiple=10.0)
MIX = replace(OFF, tool_mix=0.02)
HOURLY = replace(OFF, ewma_sigma=3.5)
ROOM = 1.011  # a bucket is two per cent wide, so a stored number is at most one per cent off


def spread(runs: int = 200, **most: int) -> Baseline:
    """A baseline of runs from nothing to `most` of each measure, evenly."""
    baseline = Baseline(runs=runs)
    for name, top in most.items():
        for number in range(1, runs + 1):
            baseline.measures[name].add(top * number / runs)
    return baseline


def regular(runs: int, **usual: int) -> Baseline:
    """A baseline of runs that are all alike."""
    baseline = Baseline()
    for _ in range(runs):
        assert learn(Run("s", **usual), baseline, OFF, odd=False) == []
    return baseline


def rules(run: Run, baseline: Baseline, limits: Thresholds) -> list[str]:
    return [one.rule for one in judge(run, baseline, limits)]


def one(run: Run, baseline: Baseline, limits: Thresholds) -> Finding | None:
    found = judge(run, baseline, limits)
    assert len(found) <= 1
    return found[0] if found else None


# ── the rules of one run ─────────────────────────────────────────────────────


@pytest.mark.parametrize(("measure", "times", "top"), [
    ("steps", 1.5, 100), ("tokens", 2.0, 10_000), ("cost", 2.0, 50_000), ("duration", 2.0, 60_000),
    ("failures", 2.0, 50),
])  # fmt: skip
def test_a_multiple_of_the_99th_percentile(measure: str, times: float, top: int) -> None:
    """
    Steps past half as much again, the others past twice as much, and nothing up to there.
    """
    baseline = spread(**{measure: top})
    high = baseline.measures[measure].quantile(0.99)
    assert high == pytest.approx(0.99 * top, rel=0.011)
    bound = times * high
    assert one(Run("s", **{measure: math.floor(bound)}), baseline, P99) is None
    found = one(Run("s", **{measure: math.floor(bound) + 1}), baseline, P99)
    assert found is not None
    assert (found.measure, found.rule, found.value) == (measure, "p99", math.floor(bound) + 1)
    assert (found.high, found.runs) == (high, 200)


def test_deviations_of_the_logarithm() -> None:
    """
    Past 3.5 of them, counted from the median; both come from the middle half, which no outlier moves.
    """
    baseline = spread(tokens=10_000)
    baseline.measures["tokens"].add(10_000_000)
    middle, deviation = baseline.measures["tokens"].spread()
    bound = math.expm1(middle + 3.5 * deviation)
    # Evenly spread runs deviate so much that this is far beyond all of them.
    assert bound > baseline.measures["tokens"].quantile(0.99)
    assert rules(Run("s", tokens=math.floor(bound)), baseline, MAD) == []
    assert rules(Run("s", tokens=math.floor(bound) + 1), baseline, MAD) == ["log_mad"]


@pytest.mark.parametrize("runs", [200, 1_000])
def test_a_regular_agent_may_vary_by_half(runs: int) -> None:
    """
    The spread of runs that are all alike is a tenth all the same; 3.5 of those are 1.42 times the median.
    """
    baseline = regular(runs, steps=100, tokens=10_000)
    assert baseline.measures["steps"].spread()[1] == 0.1
    assert rules(Run("s", steps=140), baseline, MAD) == []
    assert rules(Run("s", steps=149), baseline, MAD) == [], "3.98 deviations, and not yet 1.5 medians"
    assert rules(Run("s", steps=153), baseline, MAD) == ["log_mad"]


def test_deviations_say_nothing_where_most_runs_have_none() -> None:
    baseline = Baseline(runs=200)
    for number in range(200):
        baseline.measures["failures"].add(float(number % 10 == 0))
    assert rules(Run("s", failures=3), baseline, MAD) == []
    assert rules(Run("s", failures=3), baseline, P99) == ["p99"]


def test_ten_times_the_median_and_beyond_all_others() -> None:
    """
    The one rule for a young baseline; where one run was long before, half as much again as that one.
    """
    baseline = regular(20, steps=4)
    bound = 10 * baseline.measures["steps"].quantile(0.5)
    assert rules(Run("s", steps=math.floor(bound)), baseline, MULTIPLE) == []
    assert rules(Run("s", steps=math.floor(bound) + 1), baseline, MULTIPLE) == ["multiple"]
    baseline.measures["steps"].add(100)
    assert rules(Run("s", steps=150), baseline, MULTIPLE) == []
    assert rules(Run("s", steps=151), baseline, MULTIPLE) == ["multiple"]


@pytest.mark.parametrize("measure", MEASURES)
def test_what_is_little_is_no_runaway(measure: str) -> None:
    """
    However regular an agent is: below the floor nothing is said, at the floor it is.
    """
    baseline = regular(200)
    assert judge(Run("s", **{measure: FLOORS[measure] - 1}), baseline, Thresholds()) == []
    [found] = judge(Run("s", **{measure: FLOORS[measure]}), baseline, Thresholds())
    assert (found.measure, found.rule) == (measure, "p99")


def test_a_measure_is_told_once_by_the_first_rule_that_holds() -> None:
    found = judge(
        Run("s", steps=1_000, tokens=10**7, cost=10**7), regular(200, steps=4, tokens=900, cost=900), Thresholds()
    )
    assert [(one.measure, one.rule) for one in found] == [("steps", "p99"), ("tokens", "p99"), ("cost", "p99")]


def test_each_rule_can_be_switched_off() -> None:
    wild = Run("s", steps=10**4, tokens=10**9, cost=10**9, duration=10**9, failures=10**4)
    assert judge(wild, regular(300, steps=4, tokens=900, cost=900, duration=900, failures=1), OFF) == []


# ── how much must be known ───────────────────────────────────────────────────

WILD = {"steps": 10**4, "tokens": 10**9, "cost": 10**9, "duration": 10**9, "failures": 10**4}


@pytest.mark.parametrize("limits", [P99, MAD], ids=["p99", "log_mad"])
def test_percentiles_and_deviations_need_two_hundred_runs(limits: Thresholds) -> None:
    usual = {"steps": 4, "tokens": 900, "cost": 900, "duration": 900, "failures": 1}
    assert judge(Run("s", **WILD), regular(199, **usual), limits) == []
    assert len(judge(Run("s", **WILD), regular(200, **usual), limits)) == 5


def test_the_multiple_needs_twenty_runs() -> None:
    assert judge(Run("s", **WILD), regular(19, steps=4), Thresholds()) == []
    assert set(rules(Run("s", **WILD), regular(20, steps=4), Thresholds())) == {"multiple"}


def test_a_tool_that_was_never_called() -> None:
    """
    Named from two hundred runs on; one that was called once, by whichever run, is known from its window on.
    """
    usual = {"look": 3}
    young, known = regular(199, steps=4, tools=usual), regular(200, steps=4, tools=usual)
    strange = Run("s", steps=4, tools={"look": 1, "shout": 2})
    assert judge(strange, young, OFF) == []
    [found] = judge(strange, known, OFF)
    assert (found.measure, found.rule, found.value) == ("tool:shout", "new_tool", 2)
    assert "look" in found.why
    learn(strange, known, OFF, odd=True)
    for _ in range(49):
        assert judge(strange, known, OFF), "its window is still open"
        learn(Run("s", steps=4, tools=usual), known, OFF, odd=False)
    assert judge(strange, known, OFF) == []


def test_of_many_new_tools_five_are_named() -> None:
    known = regular(200, steps=4, tools={"look": 1})
    assert len(judge(Run("s", tools={f"new-{n}": 1 for n in range(30)}), known, OFF)) == 5


def test_an_agent_without_tools_has_no_new_ones() -> None:
    """
    A baseline that has never seen a call says nothing of the first one.
    """
    assert judge(Run("s", steps=4, tools={"look": 1}), regular(200, steps=4), OFF) == []


# ── learning ─────────────────────────────────────────────────────────────────


def test_what_stands_out_is_not_learned_from() -> None:
    baseline = regular(200, steps=4)
    before = json.dumps(baseline.as_json()["measures"])
    learn(Run("s", steps=400), baseline, Thresholds(), odd=True)
    assert (baseline.runs, json.dumps(baseline.as_json()["measures"])) == (200, before)


def test_a_run_that_failed_or_was_repeated_is_not_learned_from() -> None:
    baseline = regular(200, steps=4)
    learn(Run("s", steps=2, done=False), baseline, Thresholds(), odd=False)
    assert baseline.runs == 200


def test_when_most_runs_stand_out_the_baseline_begins_anew() -> None:
    """
    Alone or now and then they never do; in a row they do after fourteen, and the next one is learned from.
    """
    baseline = regular(200, steps=4)
    for number in range(200):
        learn(Run("s", steps=4), baseline, OFF, odd=number % 3 == 0)
    assert baseline.runs > 300
    baseline = regular(200, steps=4)
    for _ in range(13):
        learn(Run("s", steps=40), baseline, OFF, odd=True)
    assert baseline.runs == 200
    learn(Run("s", steps=40), baseline, OFF, odd=True)
    assert (baseline.runs, baseline.odd) == (1, 0)
    assert baseline.measures["steps"].quantile(0.5) == pytest.approx(40, rel=0.011)


def test_a_baseline_survives_being_stored() -> None:
    """
    What is judged after a round through JSON is what is judged without.
    """
    draw = random.Random(5)
    baseline = Baseline()
    for number in range(260):
        classes = {"transient": 1} if number % 9 == 0 else {}
        run = Run("s", draw.randint(2, 9), draw.randint(100, 9_000), draw.randint(1, 9_000), draw.randint(1, 10**5),
                  0, {"look": draw.randint(1, 4)}, classes, number // 20)  # fmt: skip
        learn(run, baseline, Thresholds(), odd=False)
    again = Baseline(baseline.runs, json.loads(json.dumps(baseline.as_json())))
    assert again.as_json() == baseline.as_json()
    wild = Run("s", 90, 10**6, 10**6, 10**7, 9, {"look": 1, "shout": 1})
    assert judge(wild, again, Thresholds()) == judge(wild, baseline, Thresholds()) != []


# ── sketches ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(8))
def test_a_sketch_is_within_one_per_cent(seed: int) -> None:
    """
    Median and percentiles of any numbers, in a few hundred buckets at the most.
    """
    draw = random.Random(seed)
    values = [draw.lognormvariate(draw.uniform(1, 9), draw.uniform(0.05, 1.5)) for _ in range(draw.randint(1, 1_900))]
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    ranked = sorted(values)
    for share in (0.01, 0.5, 0.9, 0.99):
        exact = ranked[max(math.ceil(share * len(ranked)) - 1, 0)]
        # Buckets are of 1 + value, so that zero has one.
        assert (1 + sketch.quantile(share)) / (1 + exact) == pytest.approx(1, rel=0.0101)
    assert sketch.top == ranked[-1]
    assert len(sketch.counts) < 800


def test_old_runs_fade_and_the_sketch_stays_small() -> None:
    """
    After two thousand of one size and as many of another the second is normal, and the first no more the most.
    """
    sketch = Sketch()
    for value in [1_000.0] * 1_999 + [10.0] * 8_000:
        sketch.add(value)
    assert sketch.quantile(0.5) == pytest.approx(10, rel=0.011)
    assert sketch.quantile(0.9) == pytest.approx(10, rel=0.011)
    assert 1_000 <= sketch.n < 2_000
    for _ in range(30_000):
        sketch.add(10.0)
    assert sketch.quantile(1.0) == pytest.approx(10, rel=0.011)
    assert sketch.top == pytest.approx(10, rel=0.011)


def test_an_empty_sketch_says_nothing() -> None:
    assert Sketch().quantile(0.99) == 0


# ── the mix of tools ─────────────────────────────────────────────────────────


def windowed(tools: dict[str, int], calls: dict[str, int], limits: Thresholds, runs: int = 200) -> list[Finding]:
    """What the window says whose runs call together `calls`, after a baseline of `tools`."""
    baseline = Baseline(runs=runs, facts={"tools": tools})
    found = []
    for number in range(limits.window):
        found += learn(Run("s", steps=4, tools=calls if number == 0 else {}), baseline, limits, odd=False)
    return found


def mixed(distance: float) -> dict[str, int]:
    """A share of `shout` beside `look` that is so far from half and half, from below; of a million calls."""
    low, high = 500_000, 1_000_000
    while high - low > 1:
        middle = (low + high) // 2
        near = divergence({"look": 1, "shout": 1}, {"look": middle, "shout": 1_000_000 - middle}) <= distance
        low, high = (middle, high) if near else (low, middle)
    return {"look": low, "shout": 1_000_000 - low}


@pytest.mark.parametrize(("window", "bound"), [(20, 0.085), (50, 0.034), (85, 0.02), (100, 0.02), (500, 0.02)])
def test_the_bound_of_the_mix_grows_where_windows_are_small(window: int, bound: float) -> None:
    """
    1.7 / n, and 0.02 from 85 runs on: a small window differs by chance.
    """
    limits, half = replace(MIX, window=window), {"look": 500, "shout": 500}
    inside = mixed(bound)
    outside = {"look": inside["look"] + 10, "shout": inside["shout"] - 10}
    assert windowed(half, inside, limits) == []
    [found] = windowed(half, outside, limits)
    assert (found.measure, found.rule) == ("tool_mix", "jensen_shannon")
    assert found.high == pytest.approx(bound)
    assert found.value == pytest.approx(bound, abs=1e-4)


def test_the_mix_needs_two_hundred_runs_and_can_be_switched_off() -> None:
    other = {"shout": 50}
    assert windowed({"look": 500}, other, MIX, runs=199 - MIX.window) == []
    assert windowed({"look": 500}, other, OFF) == []
    [found] = windowed({"look": 500}, other, MIX)
    assert found.value == 1
    assert "100%" in found.why


def test_a_run_that_stood_out_weighs_little_in_the_mix() -> None:
    """
    Its tools become known; a thousand calls of one loop do not make them the mix.
    """
    baseline = Baseline(runs=200, facts={"tools": {"look": 500}})
    found = learn(Run("s", tools={"shout": 10_000}), baseline, MIX, odd=True)
    for _ in range(49):
        found += learn(Run("s", tools={"look": 4}), baseline, MIX, odd=False)
    assert found == []
    assert baseline.tools == {"look": 500 + 49 * 4, "shout": 1}


@pytest.mark.parametrize("runs", [200, 100_000])
def test_a_change_that_stays_becomes_normal(runs: int) -> None:
    """
    After three windows in a row, however old the baseline is; and what its tools were called stays known.
    """
    baseline = Baseline(runs=runs, facts={"tools": {"look": 3.0 * runs}})
    told = []
    for _ in range(8):
        window = [learn(Run("s", tools={"shout": 10}), baseline, MIX, odd=False) for _ in range(50)]
        told.append(any(window))
    assert told == [True] * 3 + [False] * 5
    assert judge(Run("s", tools={"look": 1}), baseline, MIX) == []


def test_two_odd_windows_are_no_change() -> None:
    baseline = Baseline(runs=1_000, facts={"tools": {"look": 30_000}})
    for number in range(400):
        shouting = number // 50 % 4 < 2
        learn(Run("s", tools={"shout" if shouting else "look": 3}), baseline, MIX, odd=False)
    assert baseline.tools == {"look": 30_600, "shout": 600}


def test_old_tools_and_failures_fade() -> None:
    """
    A year of runs weighs as much as the last two thousand: what began then is told, and a rare tool is not forgotten.
    """
    baseline = Baseline(runs=200, facts={"tools": {"look": 600, "rare": 1}})
    for _ in range(6_000):
        learn(Run("s", tools={"look": 3}, classes={"transient": 1}), baseline, OFF, odd=False)
    assert 1_000 <= baseline.seen < 2_000
    assert baseline.tools["look"] == pytest.approx(3 * baseline.seen, rel=0.01)
    assert baseline.classes["transient"] == pytest.approx(baseline.seen, rel=0.01)
    assert judge(Run("s", tools={"rare": 1}), baseline, OFF) == []
    for _ in range(4_000):
        learn(Run("s", tools={"look": 3}), baseline, OFF, odd=False)
    assert "rare" not in baseline.tools


@pytest.mark.parametrize("seed", range(20))
def test_the_divergence_is_a_distance(seed: int) -> None:
    """
    The same both ways, 0 for the same shares whatever their sum, 1 for nothing in common, and never beyond.
    """
    draw = random.Random(seed)
    names = [f"tool-{n}" for n in range(draw.randint(1, 12))]
    one = {name: draw.randint(1, 90) for name in names}
    other = {name: draw.randint(0, 90) for name in draw.sample(names, draw.randint(1, len(names)))} | {"more": 1}
    assert divergence(one, other) == pytest.approx(divergence(other, one))
    assert 0 <= divergence(one, other) <= 1
    assert divergence(one, {name: 7 * n for name, n in one.items()}) == pytest.approx(0, abs=1e-12)
    assert divergence(one, {"elsewhere": 3}) == pytest.approx(1)


# ── classes of failure ───────────────────────────────────────────────────────


def failing(usual: float, k: int, runs: int = 200) -> list[Finding]:
    """A window in which `k` of fifty runs failed somewhere, where `usual` of all did before."""
    baseline = Baseline(runs=runs, facts={"classes": {"transient": usual * runs}})
    found = []
    for number in range(50):
        found += learn(Run("s", classes={"transient": 9} if number < k else {}), baseline, OFF, odd=False)
    return found


def test_a_class_of_failure_in_more_runs_than_chance() -> None:
    """
    Four deviations and two more; a run counts once, however often it failed. What never failed may fail twice.
    """
    assert failing(0.0, 2) == []
    [found] = failing(0.0, 3)
    assert (found.measure, found.rule, found.value) == ("class:transient", "share", 3)
    usual = 0.1
    bound = 50 * usual + 4 * math.sqrt(50 * usual * (1 - usual)) + 2
    assert failing(0.1, math.floor(bound)) == []
    assert len(failing(0.1, math.floor(bound) + 1)) == 1
    assert failing(0.0, 50, runs=100) == [], "too few runs"


# ── cost by hour ─────────────────────────────────────────────────────────────


def hour(baseline: Baseline, number: int, cost: float, runs: int = 10, limits: Thresholds = HOURLY) -> list[Finding]:
    """One hour's runs at that cost, each by a name of its own; what was told of the hour before."""
    found = []
    for n in range(runs):
        found += learn(Run(f"{number}-{n}", cost=round(cost) + n, hour=number), baseline, limits, odd=False)
    return found


def test_the_mean_cost_of_an_hour_drifts_past_its_bound() -> None:
    """
    3.5 deviations of the smoothed logarithm, of which one hour alone moves a fifth; the dearest run is named.
    """
    jump = 3.5 * 0.02 * math.sqrt(0.2 / 1.8) / 0.2  # in one hour, from a spread of nothing
    for factor, told in ((math.exp(jump) * 0.999, False), (math.exp(jump) * 1.001, True)):
        baseline = Baseline()
        for number in range(30):
            assert hour(baseline, number, 1_000_000) == []
        hour(baseline, 30, 1_000_000 * factor)
        found = hour(baseline, 31, 1_000_000)
        assert bool(found) == told
        if found:
            assert (found[0].measure, found[0].rule, found[0].session) == ("cost_by_hour", "ewma", "30-9")
            assert found[0].value > found[0].high


def test_a_slow_drift_is_found_in_few_hours() -> None:
    """
    A tenth more is within what one hour may differ, and not within what several may.
    """
    baseline = Baseline()
    draw = random.Random(3)
    for number in range(60):
        assert hour(baseline, number, draw.gauss(1_000_000, 50_000)) == []
    told = [number for number in range(60, 72) if hour(baseline, number, draw.gauss(1_150_000, 50_000))]
    assert told
    assert 60 < told[0] < 70


def test_cost_by_hour_needs_a_day_of_hours_with_ten_runs_each() -> None:
    """
    Hours with fewer runs are left out, and a day of hours must be known.
    """
    few = Baseline()
    for number in range(60):
        assert hour(few, number, 1_000_000, runs=9) == []
    assert few.hours.get("past", []) == []
    young = Baseline()
    for number in range(23):
        hour(young, number, 1_000_000)
    hour(young, 23, 9_000_000)
    assert hour(young, 24, 1_000_000) == []
    known = Baseline()
    for number in range(24):
        hour(known, number, 1_000_000)
    hour(known, 24, 9_000_000)
    assert len(hour(known, 25, 1_000_000)) == 1


def test_runs_that_cost_nothing_have_no_hours() -> None:
    baseline = Baseline()
    for number in range(40):
        hour(baseline, number, -100)
    assert baseline.hours == {}


def test_a_week_of_hours_is_kept() -> None:
    baseline = Baseline()
    for number in range(400):
        hour(baseline, number, 1_000_000)
    assert len(baseline.hours["past"]) == 168


# ── as the relay asks ────────────────────────────────────────────────────────

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def tally(session: UUID | None = None, **more: Any) -> Tally:
    facts: dict[str, Any] = {
        "tenant": "acme", "session_id": session or uuid4(), "agent": "desk", "agent_version": 1, "steps": 4,
        "failures": 0, "tokens": 900, "cost_micros": 900, "busy_ms": 900, "tools": {"look": 2}, "classes": None,
        "state": "done", "ended_at": NOON,
    }  # fmt: skip
    return Tally(**facts | more)


def taught(runs: int = 220) -> tuple[int, dict[str, Any]]:
    learned, facts, found = BaselineRules(Thresholds()).learn([tally() for _ in range(runs)], (0, {}))
    assert found == []
    return learned, facts


def test_a_session_at_ten_times_its_steps_is_told_while_it_runs() -> None:
    """
    From what it has used so far, at the first look after it left what is normal; up to there, nothing.
    """
    rules, known, session = BaselineRules(Thresholds()), taught(), uuid4()
    told = []
    for steps in range(0, 41, 8):
        running = tally(session, steps=steps, state="running", ended_at=None, tokens=0, cost_micros=0, busy_ms=0)
        told += [(steps, one.measure, one.rule) for one in rules.judge(running, known)]
    assert told[0] == (8, "steps", "p99")
    assert {measure for _, measure, _ in told} == {"steps"}
    assert rules.judge(tally(steps=6, state="running", ended_at=None), known) == []


def test_judging_changes_nothing() -> None:
    known = taught()
    before = json.dumps(known)
    BaselineRules(Thresholds()).judge(tally(steps=400, tools={"shout": 1}, state="running", ended_at=None), known)
    assert json.dumps(known) == before


def test_a_batch_is_learned_in_the_order_in_which_it_ended() -> None:
    """
    Whatever order the rows come in: the hour of a run must not come before that of an earlier one.
    """
    batch = [tally(ended_at=NOON + timedelta(minutes=5 * n)) for n in range(240)]
    shuffled = random.Random(2).sample(batch, len(batch))
    straight = BaselineRules(Thresholds()).learn(batch, (0, {}))
    assert BaselineRules(Thresholds()).learn(shuffled, (0, {}))[:2] == straight[:2]
    assert len(straight[1]["hours"]["past"]) == 19


def test_a_run_is_judged_before_it_is_learned_from() -> None:
    runs, _, found = BaselineRules(Thresholds()).learn([tally(), tally(steps=400, tools={"shout": 1})], taught())
    assert runs == 221
    assert {finding.measure for _, finding in found} == {"steps", "tool:shout"}


@pytest.mark.parametrize("more", [{"state": "failed"}, {"state": "cancelled"}, {"first_run": False}])
def test_only_a_first_run_that_went_well_teaches(more: dict[str, Any]) -> None:
    assert run_of(tally()).done
    assert not run_of(tally(**more)).done
    assert BaselineRules(Thresholds()).learn([tally(**more)], taught())[0] == 220


def test_a_baseline_is_of_one_tenant_agent_and_version() -> None:
    """
    What another tenant's, or another version of the agent came to is no measure.
    """
    mine = tally()
    assert mine.whose == ("acme", "desk", 1)
    others = [tally(tenant="other"), tally(agent="clerk"), tally(agent_version=2)]
    assert len({one.whose for one in (mine, *others)}) == 4
    assert BaselineRules(Thresholds()).judge(tally(steps=400, agent_version=2), (0, {})) == []


def test_without_rules_nothing_is_known() -> None:
    known = taught()
    assert Unjudged().judge(tally(steps=400), known) == []
    assert Unjudged().learn([tally()], known) == (*known, [])


# ── ordinary traffic ─────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(5))
def test_ordinary_runs_are_seldom_told(seed: int) -> None:
    """
    Skewed sizes as agents have them: of a thousand runs at most ten are told wrongly, by all rules as shipped.
    """
    draw = random.Random(seed)

    def drawn(number: int) -> Tally:
        steps = max(2, round(draw.lognormvariate(1.8, 0.4)))
        tokens = sum(int(draw.lognormvariate(6.8, 0.5)) for _ in range(steps))
        return tally(
            steps=steps,
            tokens=tokens,
            cost_micros=tokens * 3,
            busy_ms=steps * 900,
            tools={"look": steps // 2, "search": steps % 3},
            ended_at=NOON + timedelta(minutes=number),
        )

    shipped = BaselineRules(Thresholds())
    runs, facts, _ = shipped.learn([drawn(number) for number in range(400)], (0, {}))
    _, _, found = shipped.learn([drawn(400 + number) for number in range(1_000)], (runs, facts))
    assert len({told.session_id for told, _ in found}) <= 10


@pytest.mark.parametrize("seed", range(5))
def test_more_of_a_measure_is_never_less_odd(seed: int) -> None:
    """
    What a run has used only grows, so what was told of it once stays true.
    """
    draw = random.Random(seed)
    baseline = Baseline()
    for _ in range(draw.choice([25, 120, 300])):
        learn(Run("s", steps=draw.randint(1, 30), tokens=draw.randint(1, 9_000)), baseline, OFF, odd=False)
    for measure, most in (("steps", 600), ("tokens", 300_000)):
        told = [bool(judge(Run("s", **{measure: most * n // 200}), baseline, Thresholds())) for n in range(200)]
        assert told == sorted(told)
        assert told[-1]
