"""Rates: the same buckets in Redis and in Postgres, shared by whoever calls."""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from psycopg.types.json import Jsonb

from agentq.broker.rates import RedisRates
from agentq.policies.rates import Admission, Gate, Said, read_headers
from agentq.settings import Settings
from agentq.store.pool import Store
from agentq.store.rates import FLEET, Bucket, StoredRates, Take
from tests.support.hands import at_once

WHO = {"operator": "test", "reason": "a test"}


class Waits:
    """A counter of which only the wait is asked."""

    def __init__(self, counter: Any) -> None:
        self.counter = counter
        self.close = counter.close

    def take(self, take: Take) -> float:
        return float(self.counter.take(take).wait_s)


@pytest.fixture(params=["redis", "postgres"])
def rates(request: pytest.FixtureRequest, settings: Settings, store: Store) -> Any:
    """Both places where buckets are kept."""
    return RedisRates(settings) if request.param == "redis" else StoredRates(store)


@pytest.fixture
def counter(rates: Any) -> Waits:
    """The same, for those who only ask how long to wait."""
    return Waits(rates)


@pytest.fixture
def fresh(settings: Settings, broker: redis.Redis) -> None:
    """A broker that has counted for more than a minute."""
    broker.set(f"{settings.key_prefix}rate:epoch", f"{time.time() - 100:.6f}")


@pytest.fixture
def provider() -> str:
    """A provider that no other test calls."""
    return f"p{uuid.uuid4().hex[:8]}"


def take(provider: str, *buckets: Bucket, caller: str = "a", weight: float = 1.0) -> Take:
    return Take(provider, caller, weight, (f"closed:{provider}",), buckets)


def bucket(name: str, *, burst: float = 5, each_s: float = 10.0, cost: float = 1, share: bool = False) -> Bucket:
    return Bucket(name, each_s, burst, cost, share)


@pytest.mark.usefixtures("fresh")
def test_a_burst_goes_through_and_the_rest_comes_back(counter: Any, provider: str) -> None:
    """
    As much as the burst at once; the refusal says when the next one may go.
    """
    calls = [counter.take(take(provider, bucket(provider))) for _ in range(7)]
    assert calls[:5] == [0.0] * 5
    assert all(9 < wait <= 10 for wait in calls[5:])


@pytest.mark.usefixtures("fresh")
def test_many_takers_get_exactly_the_burst(counter: Any, provider: str) -> None:
    takes = [take(provider, bucket(provider, burst=20), caller=f"c{n}") for n in range(40)]
    assert at_once(*[lambda one=one: counter.take(one) for one in takes]).count(0.0) == 20


def test_a_take_waits_for_another_that_has_not_committed(store: Store, provider: str) -> None:
    """
    In Postgres two calls never both find the last token.
    """
    one, stored = bucket(provider, burst=1), StoredRates(store)
    stored.close(provider, 0.0)  # the bucket is there, and empty
    waits: list[float] = []
    with store.connection() as connection, connection.transaction():
        facts = Jsonb([asdict(one)])
        connection.execute("select agentq.take_rate(%s, 'a', 1, '{}', %s)", (provider, facts))
        thread = threading.Thread(target=lambda: waits.append(stored.take(take(provider, one, caller="b")).wait_s))
        thread.start()
        thread.join(0.3)
        assert not waits
    thread.join(10)
    assert waits[0] > 0


@pytest.mark.usefixtures("fresh")
def test_all_buckets_give_or_none(counter: Any, provider: str) -> None:
    """
    A refusal by one limit takes nothing from the others.
    """
    wide, narrow = bucket(f"{provider}:wide", burst=3), bucket(f"{provider}:narrow", burst=1)
    assert [counter.take(take(provider, wide, narrow)) > 0 for _ in range(3)] == [False, True, True]
    assert [counter.take(take(provider, wide)) > 0 for _ in range(3)] == [False, False, True]


@pytest.mark.usefixtures("fresh")
def test_what_is_larger_than_a_burst_goes_alone(counter: Any, provider: str) -> None:
    """
    One large prompt is not refused for ever: it waits for an empty bucket, and what follows waits for it.
    """
    large = bucket(provider, burst=5, cost=50)
    assert counter.take(take(provider, large)) == 0
    assert 490 < counter.take(take(provider, large)) <= 500


@pytest.mark.usefixtures("fresh")
def test_time_gives_back(counter: Any, provider: str) -> None:
    one = take(provider, bucket(provider, burst=1, each_s=0.15))
    assert counter.take(one) == 0
    wait = counter.take(one)
    assert 0 < wait <= 0.15
    time.sleep(wait)
    assert counter.take(one) == 0


@pytest.mark.usefixtures("fresh")
def test_a_flood_leaves_the_other_tenants_their_share(counter: Any, provider: str) -> None:
    """
    I8: whoever calls alone has all of it; half of the burst stays with those who have not had their share.
    """
    both = bucket(f"{provider}:all", burst=20), bucket(f"{provider}:of:a", burst=20, share=True)
    assert counter.take(take(provider, *both, caller="b")) == 0.0  # b is seen, so there are two
    flood = [counter.take(take(provider, *both)) for _ in range(30)].count(0.0)
    calm = both[0], bucket(f"{provider}:of:b", burst=20, share=True)
    others = [counter.take(take(provider, *calm, caller="b")) for _ in range(30)].count(0.0)
    assert flood == 10
    assert others == 9


@pytest.mark.usefixtures("fresh")
def test_alone_a_tenant_has_it_all(counter: Any, provider: str) -> None:
    both = bucket(f"{provider}:all", burst=20), bucket(f"{provider}:of:a", burst=20, share=True)
    assert [counter.take(take(provider, *both)) for _ in range(30)].count(0.0) == 20


def test_a_closed_provider_is_not_called(counter: Any, provider: str) -> None:
    """
    Retry-After, told by one call, holds for all.
    """
    counter.close(f"closed:{provider}", 30.0)
    assert 29 < counter.take(take(provider, bucket(provider))) <= 30


def test_a_wiped_broker_does_not_give_a_second_burst(settings: Settings, broker: redis.Redis, provider: str) -> None:
    """
    I4: what was used is forgotten with it, so for a minute nothing is assumed to be left.
    """
    counter = Waits(RedisRates(settings))
    for key in broker.scan_iter(f"{settings.key_prefix}rate:*"):
        broker.delete(key)
    waits = [counter.take(take(provider, bucket(provider))) for _ in range(3)]
    assert [wait > 0 for wait in waits] == [False, True, True]


@pytest.mark.usefixtures("fresh")
def test_what_was_not_used_comes_back(rates: Any, provider: str) -> None:
    """
    The rest of a reservation is there for the next call at once; no bucket is ever more than empty.
    """
    one = take(provider, bucket(f"{provider}:tokens", burst=100, each_s=1.0, cost=80))
    first = rates.take(one)
    [part] = first.parts
    assert (first.wait_s, part.took_s) == (0.0, 80.0)
    assert 79 < part.left_s <= 80
    assert rates.take(one).wait_s > 50
    rates.give_back({part.bucket: 70.0})
    assert rates.take(one).wait_s == 0
    rates.give_back({part.bucket: 1_000_000.0})
    assert rates.take(one).wait_s == 0
    assert rates.take(one).wait_s > 50
    rates.give_back({"nobodys": 1.0})


@pytest.mark.usefixtures("fresh")
def test_a_call_gives_back_what_it_did_not_use(
    rates: Any, store: Store, provider: str, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Its tokens when it has answered, its request too when it never went out; what took long has come back by itself.
    """
    stored = StoredRates(store)
    stored.set(tenant, provider, requests=600, tokens=6000, **WHO)  # 1000 tokens at once, 100 a second
    stored.set(FLEET, provider, requests=None, tokens=60_000, **WHO)
    gate = Gate(stored, rates if rates is not stored else None)
    first = gate.admit(tenant, provider, 900)
    assert first.wait_s == 0
    assert gate.wait_s(tenant, provider, 900) > 1
    gate.give_back(first, used_tokens=100)
    second = gate.admit(tenant, provider, 850)
    assert second.wait_s == 0
    gate.give_back(second, None)
    third = gate.admit(tenant, provider, 850)
    assert third.wait_s == 0
    gate.give_back(third, used_tokens=2000)  # more than was held: nothing to give
    assert gate.wait_s(tenant, provider, 850) > 1
    late = Admission(third.wait_s, third.tokens, third.parts, third.counter, third.at - 3600)
    gate.give_back(late, used_tokens=0)
    assert gate.wait_s(tenant, provider, 850) > 1


def test_a_step_that_used_less_lets_the_next_one_go(
    client: Any, registry: Any, local: Callable[..., Any], tenant: str, store: Store
) -> None:
    """
    Reserved for its longest answer, a call answers shortly: the others do not wait for what it did not say.
    """
    from pydantic import BaseModel

    from agentq import Agent, Context, Done

    StoredRates(store).set(tenant, "test", requests=None, tokens=6000, **WHO)

    class Empty(BaseModel):
        pass

    agent = Agent("caller", state=Empty, registry=registry)

    @agent.step(start=True)
    def call(state: Empty, ctx: Context) -> Done:
        with ctx.spend(model="test:robot", input_tokens=1, max_tokens=900) as one:
            one.used(input_tokens=1, output_tokens=1)
        return Done(ctx.attempt)

    fleet = local()
    sessions = [client.start("caller", tenant=tenant, input={}) for _ in range(5)]
    assert [fleet.drain(session).state for session in sessions] == ["done"] * 5
    assert fleet.clock.offset_s == 0.0


# ── the gate ─────────────────────────────────────────────────────────────────


class Away:
    """A Redis that does not answer."""

    def __init__(self) -> None:
        self.asked = 0

    def take(self, take: Take) -> Any:
        from agentq.errors import BrokerUnavailable

        self.asked += 1
        raise BrokerUnavailable("away")

    close = take


def test_postgres_counts_while_redis_is_away(store: Store, provider: str, tenant: str) -> None:
    """
    Limits hold without the broker; it is asked again after a moment, not each time.
    """
    stored, away = StoredRates(store), Away()
    stored.set(tenant, provider, requests=12, tokens=None, **WHO)
    gate = Gate(stored, away)  # type: ignore[arg-type]
    waits = [gate.wait_s(tenant, provider, 10) for _ in range(4)]
    assert [wait > 0 for wait in waits] == [False, False, True, True]
    assert away.asked == 1


@pytest.mark.parametrize(
    ("limit", "calls"), [({"requests": 30, "tokens": None}, 5), ({"requests": None, "tokens": 600}, 4)]
)
def test_limits_of_a_tenant_are_its_own(
    store: Store, provider: str, tenant: str, other_tenant: str, limit: Any, calls: int
) -> None:
    """
    Requests and tokens a minute; ten seconds' worth at once.
    """
    stored = StoredRates(store)
    stored.set(tenant, provider, **limit, **WHO)
    gate = Gate(stored)
    assert [gate.wait_s(tenant, provider, 25) for _ in range(20)].count(0.0) == calls
    assert [gate.wait_s(other_tenant, provider, 25) for _ in range(20)].count(0.0) == 20
    assert [gate.wait_s(tenant, "elsewhere", 25) for _ in range(20)].count(0.0) == 20


def test_a_changed_limit_is_followed(store: Store, provider: str, tenant: str) -> None:
    stored = StoredRates(store)
    gate = Gate(stored)
    assert gate.wait_s(tenant, provider, 1) == 0
    stored.set(FLEET, provider, requests=6, tokens=None, **WHO)
    gate._until = 0.0
    assert gate.wait_s(tenant, provider, 1) == 0
    assert gate.wait_s(tenant, provider, 1) > 0
    stored.set(FLEET, provider, requests=None, tokens=None, **WHO)
    gate._until = 0.0
    assert gate.wait_s(tenant, provider, 1) == 0


def test_a_providers_word_holds_for_the_fleet(store: Store, provider: str, tenant: str) -> None:
    """
    Its limits are kept by gates that never saw the headers, and its pause by all.
    """
    stored = StoredRates(store)
    Gate(stored).learn(provider, {"X-RateLimit-Limit-Requests": "12"})
    other = Gate(stored)
    assert [other.wait_s(tenant, provider, 1) for _ in range(4)].count(0.0) == 2
    Gate(stored).learn(provider, {"Retry-After": "20"})
    assert 19 < other.wait_s(tenant, provider, 1) <= 20


NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, Said()),
        ({"Retry-After": "7"}, Said(closed_s=7.0)),
        ({"retry-after-ms": "1500", "retry-after": "9"}, Said(closed_s=1.5)),
        ({"Retry-After": "Thu, 01 Jan 2026 12:00:30 GMT"}, Said(closed_s=30.0)),
        ({"Retry-After": "99999999"}, Said(closed_s=3600.0)),
        ({"Retry-After": "soon"}, Said()),
        ({"Retry-After": "-5"}, Said()),
        (
            {"x-ratelimit-limit-requests": "500", "x-ratelimit-limit-tokens": "30000",
             "x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "120ms"},
            Said(500, 30000),
        ),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m30s"}, Said(closed_s=90.0)),
        (
            {"anthropic-ratelimit-requests-limit": "50", "anthropic-ratelimit-requests-remaining": "0",
             "anthropic-ratelimit-requests-reset": "2026-01-01T12:00:12Z"},
            Said(50, None, 12.0),
        ),
        ({"x-ratelimit-limit-requests": "0"}, Said()),
        ({"x-ratelimit-limit-requests": "lots"}, Said()),
    ],
)  # fmt: skip
def test_headers_are_read(headers: dict[str, str], said: Said) -> None:
    """
    As OpenAI, Anthropic and plain HTTP tell it; nonsense says nothing.
    """
    assert read_headers(headers, NOW) == said


def test_a_step_comes_back_when_the_rate_allows(
    client: Any, registry: Any, local: Callable[..., Any], tenant: str, store: Store
) -> None:
    """
    The refused call loses no attempt and no money.
    """
    from pydantic import BaseModel

    from agentq import Agent, Context, Done

    stored = StoredRates(store)
    stored.set(tenant, "test", requests=6, tokens=None, **WHO)
    counted = itertools.count()

    class Empty(BaseModel):
        pass

    agent = Agent("caller", state=Empty, registry=registry)

    @agent.step(start=True)
    def call(state: Empty, ctx: Context) -> Done:
        next(counted)
        with ctx.spend(model="test:robot", input_tokens=1, max_tokens=1) as one:
            one.used(input_tokens=1, output_tokens=1)
        return Done(ctx.attempt)

    fleet = local()
    sessions = [client.start("caller", tenant=tenant, input={}) for _ in range(3)]
    assert [fleet.drain(session).result for session in sessions] == [1, 1, 1]
    assert next(counted) > 3
    assert fleet.clock.offset_s > 15
    assert client.budgets.check(tenant) == []
