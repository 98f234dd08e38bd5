"""The figures of `benchmarks/many_tenants.py`, in small: it runs, and measures what it says."""

from __future__ import annotations

from argparse import Namespace

from benchmarks import many_tenants


def test_the_benchmark_runs() -> None:
    """
    The same figures for few tenants and for many; how they compare is for a machine that does nothing else.
    """
    arguments = Namespace(tenants=300, active=20, few=5, sessions=40, starts=10, idle=1.0, rounds=2, threads=4)
    few, many = many_tenants.run(arguments)
    assert (few.tenants, many.tenants) == (5, 300)
    assert list(few.values) == list(many.values)
    for figures in (few, many):
        assert figures.values["steps a second, all active"] > 0
        assert figures.values["enqueue to first claim, p99 ms"] > 0
        assert figures.values["memory of the workers, MB"] > 50
        assert {name.partition(":")[0] for name in figures.values if name.startswith("relay")} == {
            "relay, idle", "relay, backlog",
        }  # fmt: skip
