"""The figures of `benchmarks/dead_letters.py`, in small: it runs, and what it measures stays flat."""

from __future__ import annotations

from benchmarks import dead_letters


def test_the_benchmark_runs_and_nothing_is_slow() -> None:
    """
    A twentieth of the letters in far less than a second each, and no letter loaded to plan a redrive.
    """
    timings = {timing.what: timing for timing in dead_letters.run(5000, rounds=1)}
    assert timings["ls, counted"].found == timings["redrive, planned"].found == 5000
    assert timings["redrive --dry-run, all"].found == 5000
    assert timings["ls --by cause"].found == 50
    assert timings["ls --tenant"].found == 50
    slow = {what: timing.median_s for what, timing in timings.items() if timing.median_s > 1.0}
    assert not slow
    for what in ("redrive --dry-run, all", "redrive, planned", "ls --by cause"):
        assert timings[what].memory_mb < 2, what
