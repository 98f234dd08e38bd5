"""
The broker: killed with and without its data, emptied, full; its messages dropped, doubled, reordered.

A full disk is staged without root: the folder is made read-only and a snapshot fails, after which the server
refuses every write with the very error of a full disk. A full memory is a limit of one byte.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from agentq.broker.queues import tenant_queue
from agentq.chaos.plan import TENANTS
from agentq.chaos.strike import Evidence, Missed, Strike

MEMORY = "512mb"
REFUSED_TIMEOUT_S = 8.0
QUIET_TIMEOUT_S = 10.0
# A message is held no longer than this before it is put back in another order.
HOLD_S = 0.5
HOLD_MAX = 6
EMPTIED_MAX = 4
CATCH_S = 3.0
# The workers are as quick as we are: how much longer we wait for a first message.
FIRST_CATCH_S = 10.0


def killed(strike: Strike) -> Evidence:
    """SIGKILL; it comes back with what its log on disk holds."""
    return _away(strike, keep=True)


def lost(strike: Strike) -> Evidence:
    """SIGKILL, and its disk is gone with it: it comes back empty."""
    return _away(strike, keep=False)


def _away(strike: Strike, *, keep: bool) -> Evidence:
    calls = strike.everybody()
    valkey = strike.arena.stack.valkey
    before = valkey.pid
    strike.begins(calls)
    try:
        valkey.kill()
        strike.wait(strike.blow.lasts_s)
        if not keep:
            for path in sorted(valkey.folder.rglob("appendonly*"), reverse=True):
                if path.is_file():
                    path.unlink()
    finally:
        valkey.start(same_port=True)
        strike.heals()
    if valkey.pid == before:
        raise Missed("the server survived")
    return {"pid before": before, "pid after": valkey.pid, "calls in flight": len(calls)}


def emptied(strike: Strike) -> Evidence:
    """
    Every key of the fleet's is deleted at once, with messages among them.

    Workers empty their queues in a millisecond, so a few messages are held back first and put in with the deletion.
    """
    held: list[tuple[str, bytes]] = []
    with _connected(strike) as broker:
        for key, message in _caught(strike, broker):
            if message is not None:
                held.append((key, message))
            if len(held) >= EMPTIED_MAX:
                break
        keys = _keys(strike, broker)
        with broker.pipeline(transaction=True) as pipe:
            for key, message in held:
                pipe.lpush(key, message)
            if strike.outside:
                pipe.delete(*keys, *(key for key, _ in held))  # it may serve others too
            else:
                pipe.flushall()
            pipe.execute()
        strike.heals()
    if not held:
        raise Missed("the broker held no message")
    return {"messages": len(held), "other keys": len(keys), "calls in flight": len(strike.sessions)}


def dropped(strike: Strike) -> Evidence:
    """The first message that we catch is thrown away, and more than half of the others."""
    return _meddle(strike, lambda message, first: [] if first or strike.draw.random() < 0.6 else [message])


def doubled(strike: Strike) -> Evidence:
    """The messages that we catch come back two or three times."""
    return _meddle(strike, lambda message, _first: [message] * strike.draw.randint(2, 3))


def reordered(strike: Strike) -> Evidence:
    """The messages that we catch come back late and in another order."""
    held: list[tuple[str, bytes]] = []
    touched, since = 0, time.monotonic()
    with _connected(strike) as broker:
        for key, message in _caught(strike, broker):
            if message is not None:
                held.append((key, message))
                touched += 1
            if len(held) >= HOLD_MAX or (held and time.monotonic() - since > HOLD_S):
                _put_back(strike, broker, held)
                since = time.monotonic()
        _put_back(strike, broker, held)
    return _touched(strike, touched)


def disk_full(strike: Strike) -> Evidence:
    """Every write is refused as it is when a snapshot finds no room."""
    valkey = strike.arena.stack.valkey
    folder = valkey.folder
    mode = folder.stat().st_mode & 0o777
    try:
        with _connected(strike) as broker:
            strike.until(lambda: _writes_nothing(broker), QUIET_TIMEOUT_S, "the broker writes to its disk all the time")
            folder.chmod(0o500)
            broker.config_set("save", "3600 1000000000")
            broker.bgsave()
            return _refused(strike, broker, "MISCONF")
    finally:
        folder.chmod(mode)
        with _connected(strike) as broker:
            broker.config_set("save", "")
            with contextlib.suppress(redis.RedisError):
                broker.bgsave()
        strike.heals()


def _writes_nothing(broker: redis.Redis) -> bool:
    """Whether neither a snapshot nor a rewrite of the log is under way: another cannot begin meanwhile."""
    found: Any = broker.info("persistence")
    return not found["rdb_bgsave_in_progress"] and not found["aof_rewrite_in_progress"]


def memory_full(strike: Strike) -> Evidence:
    """Every write is refused as it is when the memory limit is reached."""
    try:
        with _connected(strike) as broker:
            broker.config_set("maxmemory", "1")
            return _refused(strike, broker, "OOM")
    finally:
        with _connected(strike) as broker:
            broker.config_set("maxmemory", MEMORY)
        strike.heals()


def _refused(strike: Strike, broker: redis.Redis, error: str) -> Evidence:
    """Wait the fault out; how many writes of the fleet were refused."""

    def count() -> int:
        found: Any = broker.info("errorstats")
        return int(found.get(f"errorstat_{error}", {}).get("count", 0))

    calls = strike.everybody()
    strike.begins(calls)
    before = count()
    deadline = time.monotonic() + strike.blow.lasts_s
    strike.until(lambda: count() > before, REFUSED_TIMEOUT_S, f"no write was refused with {error}")
    strike.wait(max(0.0, deadline - time.monotonic()))
    return {"writes refused": count() - before, "error": error, "calls in flight": len(calls)}


def _meddle(strike: Strike, change: Callable[[bytes, bool], list[bytes]]) -> Evidence:
    touched = 0
    with _connected(strike) as broker:
        for key, message in _caught(strike, broker):
            if message is None:
                continue
            back = change(message, not touched)
            touched += back != [message]
            if back:
                broker.lpush(key, *back)
    return _touched(strike, touched)


def _touched(strike: Strike, count: int) -> Evidence:
    strike.heals()
    if not count:
        raise Missed("no message was caught")
    return {"messages": count, "calls in flight": len(strike.sessions)}


def _caught(strike: Strike, broker: redis.Redis) -> Iterator[tuple[str, bytes | None]]:
    """
    Messages taken from the tenants' queues, side by side with the workers; None: there was none for a moment.

    Each message is caught once: what comes by again passes.
    """
    keys = [strike.prefix + tenant_queue(tenant) for tenant in TENANTS]
    known: set[int] = set()
    strike.begins(strike.everybody())
    deadline = time.monotonic() + (strike.blow.lasts_s or CATCH_S)
    while time.monotonic() < deadline or (not known and time.monotonic() < deadline + FIRST_CATCH_S):
        found: Any = broker.brpop(keys, timeout=0.1)
        strike.wait(0)
        if found is None:
            yield "", None
            continue
        key, message = found[0].decode(), found[1]
        if hash(message) in known:
            broker.lpush(key, message)
            strike.wait(0.02)  # or we would catch our own message for ever, and nobody else got it
            continue
        known.add(hash(message))
        yield key, message


def _put_back(strike: Strike, broker: redis.Redis, held: list[tuple[str, bytes]]) -> None:
    strike.draw.shuffle(held)
    for key, message in held:
        broker.lpush(key, message)
    held.clear()


def _keys(strike: Strike, broker: redis.Redis) -> list[Any]:
    return list(broker.scan_iter(match=f"{strike.prefix}*", count=1000))


@contextmanager
def _connected(strike: Strike) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(
        strike.broker_url, socket_timeout=10, socket_connect_timeout=5, retry=Retry(NoBackoff(), 0)
    ) as broker:
        yield broker
