"""Worker processes: killed, killed in the middle of a relay's round, stopped past their lease, told to drain."""

from __future__ import annotations

import os
import signal
import time

from agentq.chaos.strike import Evidence, Missed, Strike, is_gone, is_stopped
from agentq.embedded import processes

GONE_TIMEOUT_S = 5.0
TAKEN_TIMEOUT_S = 10.0
RELAY_TIMEOUT_S = 20.0
DRAIN_TIMEOUT_S = 40.0


def killed(strike: Strike) -> Evidence:
    """SIGKILL to a worker with calls in flight."""
    worker, calls = strike.victim()
    strike.begins(calls)
    pid = strike.arena.kill(worker)
    if pid is None:
        raise Missed("the worker was gone before")
    strike.until(lambda: is_gone(pid), GONE_TIMEOUT_S, f"process {pid} lives")
    return {"pid": pid, "calls in flight": len(calls)}


def relay_killed(strike: Strike) -> Evidence:
    """SIGKILL to whichever worker next commits something in its relay, before it has sent it."""
    order, died = strike.arena.orders / "relay", strike.arena.orders / "died"
    order.touch()
    strike.begins()
    seen = strike.calls()
    deadline = time.monotonic() + RELAY_TIMEOUT_S
    try:
        while not died.exists():
            if time.monotonic() > deadline:
                raise Missed("no relay had anything to do")
            seen = strike.calls() or seen
            strike.wait(0.02)
        pid, point = died.read_text().split()
        strike.begins(call for call in seen if call.pid == int(pid))
        strike.until(lambda: is_gone(int(pid)), GONE_TIMEOUT_S, f"process {pid} lives")
        return {"pid": int(pid), "point": point, "calls in flight": len(strike.sessions)}
    finally:
        for path in (order, died, order.with_name("taken")):
            path.unlink(missing_ok=True)


def frozen(strike: Strike) -> Evidence:
    """SIGSTOP for longer than the lease, then SIGCONT: a zombie with steps that others have taken over."""
    worker, calls = strike.victim(repeatable=True)
    pid = worker.pid
    if pid is None:
        raise Missed("the worker was gone before")
    strike.begins(calls)
    processes.send([pid], signal.SIGSTOP)
    try:
        strike.until(lambda: is_stopped(pid), GONE_TIMEOUT_S, f"process {pid} goes on")
        strike.wait(strike.blow.lasts_s)
        stood = is_stopped(pid)
        taken = strike.taken_over(pid)
    finally:
        processes.send([pid], signal.SIGCONT)
        strike.lasted()
    if not stood:
        raise Missed("something else woke or ended it")
    if not taken:
        strike.until(lambda: strike.taken_over(pid), TAKEN_TIMEOUT_S, "nobody took its steps over")
    return {"pid": pid, "calls in flight": len(calls), "sessions taken over": strike.taken_over(pid)}


def told_to_stop(strike: Strike) -> Evidence:
    """SIGTERM: it drains, goes, and another takes its place."""
    worker, calls = strike.victim()
    pid = worker.pid
    if pid is None:
        raise Missed("the worker was gone before")
    strike.begins(calls)
    os.kill(pid, signal.SIGTERM)
    strike.until(lambda: is_gone(pid), DRAIN_TIMEOUT_S, f"process {pid} does not stop")
    strike.lasted()
    drained_s = round(strike.healed - strike.began, 2)
    strike.until(lambda: worker.pid not in (None, pid), 10.0, "nobody took its place")
    return {"pid": pid, "calls in flight": len(calls), "drained in s": drained_s, "replaced by": worker.pid}
