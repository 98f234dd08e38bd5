"""The two faults: a worker killed while it has steps in hand, and a broker emptied while it has messages."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

import redis
from kombu import Connection

from agentq.demo.observe import InHand, Observer
from agentq.settings import Settings


@dataclass
class Killed:
    """A worker killed by SIGKILL, and how long its steps took to come back."""

    pid: int
    had: InHand
    at: float
    begun_s: float | None = None
    ended_s: float | None = None
    ran_again: int = 0

    @property
    def over(self) -> bool:
        """Whether each of its steps has run again to its end."""
        return self.ended_s is not None

    def look(self, observer: Observer) -> None:
        """Note how far its steps have come."""
        if self.over:
            return
        begun, ended = observer.since(self.had.steps, self.had.fences)
        self.ran_again = begun
        now = time.monotonic() - self.at
        if self.begun_s is None and begun == len(self.had.steps):
            self.begun_s = now
        if ended == len(self.had.steps):
            self.ended_s = now


def kill_busiest(observer: Observer, ours: set[int], at_least: int) -> Killed | None:
    """SIGKILL the one of our worker processes with the most steps in hand; None: none has enough of them."""
    in_hand = {pid: found for pid, found in observer.in_hand().items() if pid in ours}
    if not in_hand:
        return None
    pid = max(in_hand, key=lambda each: len(in_hand[each].steps))
    if len(in_hand[pid].steps) < at_least:
        return None
    at = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    return Killed(pid, in_hand[pid], at)


def empty_broker(settings: Settings, queues: list[str], *, embedded: bool) -> str:
    """
    Lose every message that the broker holds; what was done, for people.

    The embedded Valkey gets a FLUSHALL. A broker of one's own may serve others too: there only agentq's keys
    or queues are emptied.
    """
    if not settings.broker_url.startswith(("redis", "unix", "valkey")):
        with Connection(settings.broker_url) as connection:
            channel = connection.channel()
            lost = sum(channel.queue_purge(queue) for queue in queues)
        return f"purged {len(queues)} queues, {lost} messages"
    with redis.Redis.from_url(settings.broker_url) as broker:
        if embedded:
            broker.flushall()
            return "FLUSHALL"
        keys = list(broker.scan_iter(match=f"{settings.key_prefix}*", count=1000))
        if keys:
            broker.delete(*keys)
        return f"deleted {len(keys)} keys below {settings.key_prefix!r}"
