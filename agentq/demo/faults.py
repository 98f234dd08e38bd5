"""The two faults: a worker killed while it has steps in hand, and a broker emptied while it has messages."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

import redis

from agentq.broker.connection import connect, is_redis, redis_options
from agentq.broker.publisher import Publisher
from agentq.demo.observe import Observer, Steps
from agentq.settings import Settings


@dataclass
class Blow:
    """What was done to the fleet, the steps that it hit, and how long they took to come back."""

    what: str
    hit: Steps
    at: float
    begun: int = 0
    begun_s: float | None = None
    ended_s: float | None = None

    @property
    def over(self) -> bool:
        """Whether each of the steps has run to its end."""
        return self.ended_s is not None

    def look(self, observer: Observer) -> bool:
        """Note how far the steps have come; whether the last of them has just begun again."""
        if self.over:
            return False
        self.begun, ended = observer.since(self.hit)
        now, had_begun = time.monotonic() - self.at, self.begun_s is not None
        if self.begun == len(self.hit) and not had_begun:
            self.begun_s = now
        if ended == len(self.hit):
            self.ended_s = now
        return self.begun_s is not None and not had_begun


def kill_busiest(observer: Observer, ours: set[int], at_least: int) -> Blow | None:
    """SIGKILL the one of our worker processes with the most steps in hand; None: none has enough of them."""
    in_hand = {pid: steps for pid, steps in observer.in_hand().items() if pid in ours}
    pid = max(in_hand, key=lambda each: len(in_hand[each]), default=None)
    if pid is None or len(in_hand[pid]) < at_least:
        return None
    at = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    return Blow(f"SIGKILL to worker process {pid}, with {len(in_hand[pid])} steps in hand", in_hand[pid], at)


def empty_broker(
    observer: Observer, settings: Settings, queues: list[str], *, embedded: bool, at_least: int
) -> Blow | None:
    """
    Lose every message that the broker holds; None: it holds too few.

    The embedded Valkey gets a FLUSHALL. A broker of one's own may serve others too: there only agentq's keys
    or queues are emptied.
    """
    waiting = observer.waiting()
    messages = _depth(settings, queues)
    if messages < at_least or not len(waiting):
        return None
    at = time.monotonic()
    how = _empty(settings, queues, embedded=embedded)
    return Blow(f"{how}: the broker forgets {messages} messages", waiting, at)


def _depth(settings: Settings, queues: list[str]) -> int:
    """How many messages the broker itself says it has."""
    if is_redis(settings.broker_url):
        with redis.Redis.from_url(settings.broker_url, **redis_options(settings)) as broker:
            return sum(int(broker.llen(f"{settings.key_prefix}{queue}")) for queue in queues)
    publisher = Publisher(lambda: connect(settings))
    try:
        return sum(map(publisher.depth, queues))
    finally:
        publisher.close()


def _empty(settings: Settings, queues: list[str], *, embedded: bool) -> str:
    if not is_redis(settings.broker_url):
        publisher = Publisher(lambda: connect(settings))
        try:
            for queue in queues:
                publisher.purge(queue)
        finally:
            publisher.close()
        return f"{len(queues)} queues purged"
    with redis.Redis.from_url(settings.broker_url, **redis_options(settings)) as broker:
        if embedded:
            broker.flushall()
            return "FLUSHALL"
        keys = list(broker.scan_iter(match=f"{settings.key_prefix}*", count=1000))
        if keys:
            broker.delete(*keys)
        return f"{len(keys)} keys below {settings.key_prefix!r} deleted"
