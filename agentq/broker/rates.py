"""Rates counted in the broker's Redis or Valkey: one script, atomic, on the server's own clock."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import redis

from agentq.broker.connection import is_redis, redis_options
from agentq.errors import BrokerUnavailable
from agentq.settings import Settings
from agentq.store.rates import Take, Taken, taken_of

_TIMEOUT_S = 1.0


class RedisRates:
    """Buckets under the fleet's key prefix. Safe to share between threads; not across a fork."""

    def __init__(self, settings: Settings) -> None:
        self._client = redis.Redis.from_url(
            settings.broker_url,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            **redis_options(settings),
        )
        self._prefix = f"{settings.key_prefix}rate:"
        lua = files("agentq.broker").joinpath
        self._back = self._client.register_script(lua("rates_back.lua").read_text("utf-8"))
        self._script = self._client.register_script(lua("rates.lua").read_text("utf-8"))

    def take(self, take: Take) -> Taken:
        """
        Take from every bucket, or from none.

        Raises:
            BrokerUnavailable: it does not answer.
        """
        keys = ["epoch", f"callers:{take.provider}", f"weights:{take.provider}", *take.closed]
        facts: list[Any] = [take.caller, take.weight, len(take.closed)]
        for bucket in take.buckets:
            keys.append(bucket.bucket)
            facts += [repr(bucket.each_s), repr(bucket.burst), repr(bucket.cost), int(bucket.share)]
        try:
            said = self._script(keys=[self._prefix + key for key in keys], args=facts)
        except redis.RedisError as error:
            raise BrokerUnavailable(f"rates cannot be counted: {type(error).__name__}") from error
        return taken_of(take, [float(number) for number in said])

    def give_back(self, parts: dict[str, float]) -> None:
        """
        Seconds of each bucket that were taken and not used.

        Raises:
            BrokerUnavailable: it does not answer.
        """
        try:
            self._back(keys=[self._prefix + bucket for bucket in parts], args=[repr(part) for part in parts.values()])
        except redis.RedisError as error:
            raise BrokerUnavailable(f"rates cannot be given back: {type(error).__name__}") from error

    def close(self, bucket: str, seconds: float) -> None:
        """
        Let nobody call before that.

        Raises:
            BrokerUnavailable: it does not answer.
        """
        try:
            now, micros = self._client.time()
            until = now + micros / 1e6 + seconds
            self._client.set(self._prefix + bucket, f"{until:.6f}", px=max(int(seconds * 1000), 1))
        except redis.RedisError as error:
            raise BrokerUnavailable(f"rates cannot be counted: {type(error).__name__}") from error


def redis_rates(settings: Settings) -> RedisRates | None:
    """The broker as a counter; None when it is no Redis."""
    return RedisRates(settings) if is_redis(settings.broker_url) else None
