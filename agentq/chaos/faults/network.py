"""The network between one worker and one server, through the proxy: slow, cut, silent, parted."""

from __future__ import annotations

import time

from agentq.chaos.proxy import Link
from agentq.chaos.strike import Evidence, Missed, Strike
from agentq.embedded.supervisor import Child

CUT_EVERY_S = 0.7


def slow(strike: Strike) -> Evidence:
    """Each piece of data takes up to a quarter of a second longer."""
    _, link = _way(strike)
    before, latency_s = link.counts.delayed, strike.draw.uniform(0.05, 0.17)
    try:
        link.slow(latency_s)
        strike.wait(strike.blow.lasts_s)
    finally:
        link.slow(0.0)
        strike.heals()
    return _trace(strike, pieces_delayed=link.counts.delayed - before, latency_ms=round(latency_s * 1000))


def reset(strike: Strike) -> Evidence:
    """All connections are reset, again and again."""
    _, link = _way(strike)
    before, deadline = link.counts.cut, time.monotonic() + strike.blow.lasts_s
    while time.monotonic() < deadline:
        link.cut()
        strike.wait(CUT_EVERY_S * strike.draw.uniform(0.5, 1.5))
    strike.heals()
    return _trace(strike, connections_cut=link.counts.cut - before)


def stalled(strike: Strike) -> Evidence:
    """
    Connections stay open and nothing comes through; then what was held arrives late.

    What was held on the way to the service is lost instead: a late call there is one that no library can take back.
    """
    _, link = _way(strike)
    before = link.counts.held
    try:
        link.stall()
        strike.wait(strike.blow.lasts_s)
    finally:
        link.flow(late=strike.blow.server != "service")
        strike.heals()
    return _trace(strike, bytes_held=link.counts.held - before)


def parted(strike: Strike) -> Evidence:
    """New connections are refused, old ones silent, then reset."""
    _, link = _way(strike)
    before = link.counts.cut, link.counts.held
    try:
        link.part()
        strike.wait(strike.blow.lasts_s)
    finally:
        link.join()
        strike.heals()
    cut, held = link.counts.cut - before[0], link.counts.held - before[1]
    return _trace(strike, connections_parted_or_bytes_held=cut + held)


def parted_past_the_lease(strike: Strike) -> Evidence:
    """Parted from Postgres until its lease is over: a worker that lives, works, and may write nothing any more."""
    worker, link = _way(strike, repeatable=True)
    pid = worker.pid
    try:
        link.part()
        strike.wait(strike.blow.lasts_s)
    finally:
        link.join()
        strike.lasted()
    if pid is None:
        raise Missed("the worker was gone before")
    strike.until(lambda: strike.taken_over(pid), 10.0, "nobody took its steps over")
    return {"pid": pid, "calls in flight": len(strike.sessions), "sessions taken over": strike.taken_over(pid)}


def _way(strike: Strike, *, repeatable: bool = False) -> tuple[Child, Link]:
    worker, calls = strike.victim(repeatable=repeatable)
    strike.begins(calls)
    return worker, strike.arena.link(worker, strike.blow.server)


def _trace(strike: Strike, **counts: int) -> Evidence:
    if not next(iter(counts.values())):
        raise Missed("nothing came through that link meanwhile")
    return {"calls in flight": len(strike.sessions)} | {name.replace("_", " "): count for name, count in counts.items()}
