"""Poison: a step that kills its worker by itself, and one whose quarantined child is killed from outside."""

from __future__ import annotations

import signal

from agentq.chaos.plan import Wanted
from agentq.chaos.record import Request
from agentq.chaos.strike import Evidence, Missed, Strike, is_gone
from agentq.embedded import processes

FIRST_TIMEOUT_S = 30.0
ALONE_TIMEOUT_S = 90.0


def swallowed(strike: Strike) -> Evidence:
    """The producers submit a step that kills its worker; we watch the first of its victims."""
    mine = _session(strike, hog=False)
    strike.begins()
    first = strike.until(lambda: _runs(strike, mine), FIRST_TIMEOUT_S, "nobody ran the poison")[0]
    strike.until(lambda: is_gone(first.pid), 5.0, f"process {first.pid} survived the poison")
    strike.wait(0.3)  # until the service has noticed who went away
    hit = {
        request.session
        for request in strike.service.read()
        if request.pid == first.pid and request.fate == "cut" and (request.until or 0.0) >= first.at
    }
    strike.sessions |= hit
    strike.began = strike.clock_from = strike.healed = first.at
    return {"pid": first.pid, "neighbours' calls cut": len(hit)}


def child_killed(strike: Strike) -> Evidence:
    """SIGKILL to the prefork child in quarantine that runs a step under which two workers died."""
    mine = _session(strike, hog=True)
    strike.begins()
    [run] = strike.until(
        lambda: [run for run in _runs(strike, mine) if run.place == "alone"][:1], ALONE_TIMEOUT_S, "it never ran alone"
    )
    family = strike.arena.family(strike.arena.quarantine)
    if run.pid not in family or run.pid == strike.arena.quarantine.pid:
        raise Missed(f"process {run.pid} is no child of the quarantine worker")
    processes.send([run.pid], signal.SIGKILL)
    strike.until(lambda: is_gone(run.pid), 5.0, f"child {run.pid} lives")
    return {"pid": run.pid, "parent": strike.arena.quarantine.pid, "runs before": len(_runs(strike, mine)) - 1}


def _session(strike: Strike, *, hog: bool) -> Wanted:
    """The poison that the producers submit for this blow: they follow the same order."""
    return next(wanted for wanted in strike.poisons if wanted.input["hog"] == hog and wanted.at_s == strike.blow.at_s)


def _runs(strike: Strike, wanted: Wanted) -> list[Request]:
    return [request for request in strike.service.read() if request.what == "ran" and request.session == wanted.key]
