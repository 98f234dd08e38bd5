"""Postgres: killed and started again, away for a while, and its connections ended from inside."""

from __future__ import annotations

from contextlib import closing

from agentq.chaos.queries import SQL
from agentq.chaos.strike import Evidence, Missed, Strike
from agentq.store.pool import Store

OURS = "agentq chaos"
SHARE = 0.7


def killed(strike: Strike) -> Evidence:
    """SIGKILL to all of it, as a power cut; then it recovers from its log."""
    postgres = strike.arena.stack.postgres
    calls, before = strike.everybody(), postgres.pid
    strike.begins(calls)
    try:
        postgres.kill()
    finally:
        postgres.start(same_port=True)
        strike.heals()
    if postgres.pid == before:
        raise Missed("the server survived")
    return {
        "pid before": before,
        "pid after": postgres.pid,
        "calls in flight": len(calls),
        "away s": round(strike.healed - strike.began, 2),
    }


def away(strike: Strike) -> Evidence:
    """Stopped in order, and started again later."""
    postgres = strike.arena.stack.postgres
    calls, before = strike.everybody(), postgres.pid
    strike.begins(calls)
    try:
        postgres.stop()
        strike.wait(strike.blow.lasts_s)
    finally:
        postgres.start(same_port=True)
        strike.heals()
    if postgres.pid == before:
        raise Missed("the server did not stop")
    return {"calls in flight": len(calls), "away s": round(strike.healed - strike.began, 2)}


def backends_ended(strike: Strike) -> Evidence:
    """Most of the fleet's connections are ended by the server, as a failover or an impatient person does."""
    calls = strike.everybody()
    with closing(Store(strike.database_url, size=1, name=OURS)) as store:
        strike.begins(calls)
        [(ended,)] = store.query(SQL["end_backends"], {"ours": OURS, "seed": strike.blow.seed, "share": SHARE})
        strike.heals()
    if not ended:
        raise Missed("the fleet had no connection")
    return {"connections ended": ended, "calls in flight": len(calls)}
