"""Rates as rows: the limits that operators set or providers told, and buckets where Redis has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from psycopg.types.json import Jsonb

from agentq.store.operators import record
from agentq.store.pool import ALL_TENANTS, Store, run
from agentq.store.queries import load

SQL = load("rates")

FLEET = "*"


@dataclass(frozen=True, slots=True)
class RateRow:
    """The limits of one tenant, or of the whole fleet, at one provider."""

    tenant: str
    provider: str
    requests_per_min: int | None
    tokens_per_min: int | None
    learned_requests: int | None
    learned_tokens: int | None


@dataclass(frozen=True, slots=True)
class Bucket:
    """
    What a call takes from one limit: `cost` units, of which one comes back every `each_s` seconds.

    A `share` is the caller's part of the bucket before it.
    """

    bucket: str
    each_s: float
    burst: float
    cost: float
    share: bool = False


@dataclass(frozen=True, slots=True)
class Take:
    """A call on its way to a provider, and all the limits that it must keep."""

    provider: str
    caller: str
    weight: float
    closed: tuple[str, ...]
    buckets: tuple[Bucket, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """What a call holds of a bucket: so many seconds, which come back by themselves until `left_s` from then."""

    bucket: str
    took_s: float
    left_s: float


@dataclass(frozen=True, slots=True)
class Taken:
    """Whether a call may go: 0, or the seconds after which to ask again; and what it then holds."""

    wait_s: float
    parts: tuple[Part, ...] = ()


def taken_of(take: Take, said: Sequence[float]) -> Taken:
    """The answer of a counter: the wait, then two numbers for each bucket."""
    wait_s, *numbers = said
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    return Taken(wait_s, tuple(Part(b.bucket, *pair) for b, pair in zip(take.buckets, pairs, strict=False)))


class StoredRates:
    """Limits and buckets in Postgres."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def limits(self) -> list[RateRow]:
        """Every limit."""
        return [RateRow(*row) for row in self.store.query_as(ALL_TENANTS, SQL["limits"], {})]

    def weights(self) -> dict[str, float]:
        """The shares of tenants beside the others, where they are not 1."""
        return dict(self.store.query(SQL["weights"], {}))

    def take(self, take: Take) -> Taken:
        """Take from every bucket, or from none."""
        parameters = {
            "provider": take.provider,
            "caller": take.caller,
            "weight": take.weight,
            "closed": list(take.closed),
            "buckets": Jsonb([asdict(bucket) for bucket in take.buckets]),
        }
        return taken_of(take, self.store.query(SQL["take"], parameters)[0][0])

    def give_back(self, parts: dict[str, float]) -> None:
        """Seconds of each bucket that were taken and not used."""
        self.store.query(SQL["give_back"], {"buckets": list(parts), "seconds": list(parts.values())})

    def close(self, bucket: str, seconds: float) -> None:
        """Let nobody call before that."""
        self.store.query(SQL["close"], {"bucket": bucket, "seconds": seconds})

    def learn(self, provider: str, requests: int | None, tokens: int | None) -> None:
        """Keep the limits that a provider told."""
        parameters = {"provider": provider, "requests": requests, "tokens": tokens}
        self.store.query_as(ALL_TENANTS, SQL["learn"], parameters)

    def forget(self) -> None:
        """Remove buckets that have been empty for an hour."""
        self.store.query(SQL["forget"], {})

    def set(
        self, tenant: str, provider: str, *, requests: int | None, tokens: int | None, operator: str, reason: str
    ) -> None:
        """Set a tenant's (or with `*` the fleet's) limits; both None: as if there were none."""
        limit = {"tenant": tenant, "provider": provider, "requests": requests, "tokens": tokens}
        with self.store.transaction(ALL_TENANTS) as connection:
            run(connection, SQL["set"], limit)
            record(
                connection,
                operator=operator,
                tenant=None if tenant == FLEET else tenant,
                action="rate set",
                target=f"{tenant} {provider}",
                reason=reason,
                detail={"requests_per_min": requests, "tokens_per_min": tokens},
            )


def buckets_of(prefix: str, per_min: float, cost: float, *, share: bool) -> Sequence[Bucket]:
    """One limit as the buckets that keep it: the whole, and the caller's part of it when it is shared."""
    each_s = 60.0 / per_min
    # Ten seconds' worth at once: enough for a burst of parallel calls, not enough to trip a provider.
    burst = max(per_min / 6.0, 1.0)
    whole = Bucket(prefix, each_s, burst, cost)
    return (whole, Bucket(f"{prefix}:of", each_s, burst, cost, share=True)) if share else (whole,)
