"""Effects as users write them: called once, remembered, reconciled, never blindly repeated."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx
import psycopg
import pytest
from pydantic import BaseModel

from agentq import (
    Agent,
    AsyncContext,
    Context,
    Done,
    KeyConflict,
    Next,
    Permanent,
    Transient,
    UnknownEffect,
    effect,
    idempotency_key,
)
from agentq.agents.registry import Registry
from agentq.client import Client, Selection, Session
from agentq.errors import AgentqError
from agentq.settings import Settings
from agentq.testing import LocalFleet

Local = Callable[..., LocalFleet]


class Empty(BaseModel):
    """No state to speak of."""


class Order(BaseModel):
    """A state, and a result."""

    number: str = "A1"
    cents: int = 100
    at: datetime | None = None


class Outside:
    """Another system, which keeps its own record of what it was asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.checks = 0
        self.errors: list[Exception] = []
        self.check_errors: list[Exception] = []

    def pay(self) -> str:
        """Acts, and then perhaps the answer is lost."""
        self.calls.append(idempotency_key())
        if self.errors:
            raise self.errors.pop(0)
        return f"receipt {len(self.calls)}"

    def ask(self) -> str | None:
        self.checks += 1
        if self.check_errors:
            raise self.check_errors.pop(0)
        return f"receipt {len(self.calls)}" if self.calls else None


@pytest.fixture
def outside() -> Outside:
    return Outside()


def paying(registry: Registry, function: Callable[..., Any], *, is_async: bool, retries: int = 3) -> Agent[Empty]:
    """An agent of one step that makes one call."""
    agent = Agent("payer", state=Empty, registry=registry)

    if is_async:

        @agent.step(retries=retries)
        async def pay(state: Empty, ctx: AsyncContext) -> Done:
            return Done(await ctx.call(function))
    else:

        @agent.step(retries=retries)
        def pay(state: Empty, ctx: Context) -> Done:
            return Done(ctx.call(function))

    return agent


def start(client: Client, tenant: str, agent: str = "payer", **more: Any) -> Session:
    return client.start(agent, tenant=tenant, input={}, **more)


both = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


@both
def test_a_recorded_result_is_recalled_in_the_next_attempt(
    registry: Registry, client: Client, tenant: str, local: Local, outside: Outside, is_async: bool
) -> None:
    """
    The step fails after its call; the second attempt reads the stored result instead of calling again.
    """
    agent = Agent("payer", state=Empty, registry=registry)
    attempts: list[Any] = []
    if is_async:

        @agent.step(retries=1)
        async def work(state: Empty, ctx: AsyncContext) -> Done:
            attempts.append(await ctx.call(outside.pay))
            if ctx.attempt == 1:
                raise Transient("after the call")
            return Done(attempts[-1])
    else:

        @agent.step(retries=1)
        def work(state: Empty, ctx: Context) -> Done:
            attempts.append(ctx.call(outside.pay))
            if ctx.attempt == 1:
                raise Transient("after the call")
            return Done(attempts[-1])

    assert local().drain(start(client, tenant)).result == "receipt 1"
    assert attempts == ["receipt 1", "receipt 1"]
    assert len(outside.calls) == 1


@both
def test_a_call_that_surely_failed_is_repeated_under_the_same_key(
    registry: Registry, client: Client, tenant: str, local: Local, outside: Outside, is_async: bool
) -> None:
    """
    I5: the other side sees the same key in every attempt, so that it can tell a repeat from a second request.
    """
    outside.errors = [ValueError("not accepted"), ConnectionRefusedError("nobody there")]
    paying(registry, outside.pay, is_async=is_async)
    assert local().drain(start(client, tenant)).result == "receipt 3"
    assert len(outside.calls) == 3
    assert len(set(outside.calls)) == 1


@both
@pytest.mark.parametrize("error", [TimeoutError("slow"), ConnectionResetError("gone"), BrokenPipeError()])
def test_an_answer_that_was_lost_is_never_blindly_repeated(
    registry: Registry, client: Client, tenant: str, local: Local, outside: Outside, is_async: bool, error: Exception
) -> None:
    """
    I5: after a timeout the call may have happened. Nothing was declared, so the step stops for a person.
    """
    outside.errors = [error]
    paying(registry, outside.pay, is_async=is_async)
    session = start(client, tenant)
    with pytest.raises(UnknownEffect, match="not repeated"):
        local().drain(session)
    assert len(outside.calls) == 1
    assert session.view().failure is not None
    assert session.view().failure["kind"] == "unknown"  # type: ignore[index]
    assert session.steps()[0].attempt == 1, "nobody has to run it again to find out"


@both
def test_an_idempotent_call_is_repeated_after_a_lost_answer(
    registry: Registry, client: Client, tenant: str, local: Local, outside: Outside, is_async: bool
) -> None:
    """
    `idempotent=True` promises that a repeat under the same key does no harm, so it is repeated.
    """
    outside.errors = [TimeoutError("slow")]

    @effect(idempotent=True)
    def pay() -> str:
        return outside.pay()

    paying(registry, pay, is_async=is_async)
    assert local().drain(start(client, tenant)).result == "receipt 2"
    assert len(set(outside.calls)) == 1


@both
def test_the_check_is_asked_before_a_repeat(
    registry: Registry, client: Client, tenant: str, local: Local, outside: Outside, is_async: bool
) -> None:
    """
    `check=` tells that it happened: its answer becomes the result, and the call is not made again.
    """
    outside.errors = [TimeoutError("slow")]

    @effect(check=outside.ask)
    def pay() -> str:
        return outside.pay()

    paying(registry, pay, is_async=is_async)
    assert local().drain(start(client, tenant)).result == "receipt 1"
    assert (len(outside.calls), outside.checks) == (1, 1)


@both
def test_a_check_that_finds_nothing_lets_the_call_go_out(
    registry: Registry, client: Client, tenant: str, local: Local, outside: Outside, is_async: bool
) -> None:
    """
    The request was lost on its way: the check says so with None, and the call goes out under the same key.
    """
    outside.errors = [TimeoutError("lost on the way")]

    def nothing() -> None:
        outside.checks += 1

    @effect(check=nothing)
    def pay() -> str:
        return outside.pay()

    paying(registry, pay, is_async=is_async)
    assert local().drain(start(client, tenant)).result == "receipt 2"
    assert (len(set(outside.calls)), outside.checks) == (1, 1)


@both
@pytest.mark.parametrize("error", [httpx.DecodingError("none"), ConnectionRefusedError("down"), TimeoutError("slow")])
def test_a_check_that_fails_says_nothing(
    registry: Registry, client: Client, tenant: str, local: Local, outside: Outside, is_async: bool, error: Exception
) -> None:
    """
    I5: when the question itself fails, the outcome stays open: it is asked again, and nothing is repeated unasked.
    """
    outside.errors = [TimeoutError("slow")]
    outside.check_errors = [error]

    @effect(check=outside.ask)
    def pay() -> str:
        return outside.pay()

    paying(registry, pay, is_async=is_async)
    assert local().drain(start(client, tenant)).result == "receipt 1"
    assert (len(outside.calls), outside.checks) == (1, 2)


@both
@pytest.mark.parametrize("declared", ["nothing", "idempotent", "check"])
def test_an_attempt_that_died_within_its_call(
    registry: Registry, client: Client, tenant: str, local: Local, outside: Outside, is_async: bool, declared: str
) -> None:
    """
    I5 after a crash between call and result: repeated, asked, or left to a person, as was declared.
    """

    def pay() -> str:
        answer = outside.pay()
        if len(outside.calls) == 1:
            # As a worker's death: the ledger gives the step back, this attempt has lost its fence.
            wake = fleet.ledger.disown(
                fleet.in_flight.attempts()[0].claim.ref, fleet.in_flight.attempts()[0].claim.token
            )
            assert wake is not None
            fleet.sent.append(wake)
        return answer

    options: dict[str, dict[str, Any]] = {
        "nothing": {},
        "idempotent": {"idempotent": True},
        "check": {"check": outside.ask},
    }
    paying(registry, effect(**options[declared])(pay) if options[declared] else pay, is_async=is_async)
    fleet = local()
    session = start(client, tenant)
    effects = fleet.engine.act._means.effects  # type: ignore[attr-defined]
    settle, late = effects.settle, iter([lambda *args, **kwargs: False])  # the dead write nothing

    def settle_once_dead(*args: Any, **kwargs: Any) -> bool:
        answer: bool = next(late, settle)(*args, **kwargs)
        return answer

    effects.settle = settle_once_dead
    if declared == "nothing":
        with pytest.raises(UnknownEffect):
            fleet.drain(session)
        assert len(outside.calls) == 1
    elif declared == "check":
        assert fleet.drain(session).result == "receipt 1"
        assert (len(outside.calls), outside.checks) == (1, 1)
    else:
        assert fleet.drain(session).result == "receipt 2"
        assert len(set(outside.calls)) == 1


@both
def test_a_key_of_the_domain_is_done_once_for_all_sessions(
    registry: Registry, client: Client, tenant: str, local: Local, outside: Outside, is_async: bool
) -> None:
    """
    I5: two sessions that refund the same order refund it once; the second recalls the first one's receipt.
    """

    @effect(key=lambda: "refund:A1")
    def pay() -> str:
        return outside.pay()

    paying(registry, pay, is_async=is_async)
    fleet = local()
    first, second = start(client, tenant), start(client, tenant)
    assert fleet.drain(first).result == fleet.drain(second).result == "receipt 1"
    assert outside.calls == ["d:refund:A1"]


def test_a_key_of_the_domain_with_other_arguments_is_refused(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    One key, one request: an amount that changed is an error for a person, never an old receipt.
    """
    paid: list[int] = []

    @effect(key=lambda cents: "refund:A1")
    def pay(cents: int) -> int:
        paid.append(cents)
        return cents

    agent = Agent("payer", state=Order, registry=registry)

    @agent.step
    def work(state: Order, ctx: Context) -> Done:
        return Done(ctx.call(pay, state.cents))

    fleet = local()
    fleet.drain(client.start("payer", tenant=tenant, input={"cents": 1}))
    with pytest.raises(KeyConflict):
        fleet.drain(client.start("payer", tenant=tenant, input={"cents": 2}))
    assert paid == [1]


def test_an_attempt_that_asks_for_something_else_is_refused(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    A second attempt that takes another way than the first must not be answered with the first one's results.
    """
    agent = Agent("fickle", state=Empty, registry=registry)

    @agent.step(retries=2)
    def work(state: Empty, ctx: Context) -> Done:
        ctx.call(len, "x" * ctx.attempt)
        raise Transient("again")

    with pytest.raises(KeyConflict):
        local().drain(start(client, tenant, "fickle"))


class Receipt(BaseModel):
    """A typed result."""

    number: str
    amount: Decimal
    at: datetime


AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def a_model() -> Receipt:
    return Receipt(number="1", amount=Decimal("9.90"), at=AT)


def a_time() -> datetime:
    return AT


def a_list() -> list[Decimal]:
    return [Decimal("0.1"), Decimal("2")]


def nothing() -> None:
    return None


def untyped(size=3):  # type: ignore[no-untyped-def]
    return {"items": list(range(size))}


def some_bytes() -> bytes:
    return b"abc"


@both
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (a_model, Receipt(number="1", amount=Decimal("9.90"), at=AT)),
        (a_time, AT),
        (a_list, [Decimal("0.1"), Decimal(2)]),
        (nothing, None),
        (untyped, {"items": [0, 1, 2]}),
        (some_bytes, b"abc"),
    ],
)
def test_results_come_back_as_the_annotation_says(
    registry: Registry,
    client: Client,
    tenant: str,
    local: Local,
    is_async: bool,
    function: Callable[..., Any],
    expected: Any,
) -> None:
    """
    A recalled result is no different from a fresh one: same type, same value, in both attempts.
    """
    seen: list[Any] = []
    agent = Agent("typed", state=Empty, registry=registry)
    if is_async:

        @agent.step(retries=1)
        async def work(state: Empty, ctx: AsyncContext) -> Done:
            seen.append(await ctx.call(function))
            if ctx.attempt == 1:
                raise Transient("again")
            return Done()
    else:

        @agent.step(retries=1)
        def work(state: Empty, ctx: Context) -> Done:
            seen.append(ctx.call(function))
            if ctx.attempt == 1:
                raise Transient("again")
            return Done()

    local().drain(start(client, tenant, "typed"))
    assert seen == [expected, expected]
    assert type(seen[0]) is type(seen[1]) is type(expected)


def test_a_result_without_a_json_form_is_not_called_again(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    The call happened and cannot be remembered: that is a bug of the function, and no reason to call twice.
    """
    calls: list[int] = []

    def odd() -> Any:
        calls.append(1)
        return threading.Lock()

    paying(registry, odd, is_async=False)
    with pytest.raises(TypeError, match="lock cannot be stored as JSON"):
        local().drain(start(client, tenant))
    assert calls == [1]


def test_calls_are_told_apart_by_their_order(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    The same function called twice in one step is two effects, each with a key of its own.
    """
    keys: list[str] = []

    def note() -> int:
        keys.append(idempotency_key())
        return len(keys)

    agent = Agent("twice", state=Empty, registry=registry)

    @agent.step
    def work(state: Empty, ctx: Context) -> Done:
        return Done([ctx.call(note), ctx.call(note)])

    assert local().drain(start(client, tenant, "twice")).result == [1, 2]
    assert len(set(keys)) == 2


def test_async_calls_side_by_side(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    `gather` runs calls of one step together; each has its key, sync functions do not hold up the loop.
    """
    together = threading.Barrier(3, timeout=10)

    def meet(n: int) -> int:
        together.wait()
        return n

    agent = Agent("gather", state=Empty, registry=registry)

    @agent.step(retries=0)
    async def work(state: Empty, ctx: AsyncContext) -> Done:
        return Done(await asyncio.gather(*[ctx.call(meet, n) for n in range(3)]))

    assert local().drain(start(client, tenant, "gather")).result == [0, 1, 2]


def test_one_key_twice_at_the_same_time_calls_once(
    registry: Registry, client: Client, tenant: str, local: Local, outside: Outside
) -> None:
    """
    A step that asks for the same domain key twice side by side gets one call and one receipt, twice.
    """

    @effect(key=lambda: "refund:A1")
    async def pay() -> str:
        outside.calls.append(idempotency_key())
        await asyncio.sleep(0.2)
        return f"receipt {len(outside.calls)}"

    agent = Agent("twice", state=Empty, registry=registry)

    @agent.step(retries=3)
    async def work(state: Empty, ctx: AsyncContext) -> Done:
        return Done(await asyncio.gather(ctx.call(pay), ctx.call(pay)))

    assert local().drain(start(client, tenant, "twice")).result == ["receipt 1", "receipt 1"]
    assert len(outside.calls) == 1


def test_the_key_exists_only_within_a_call() -> None:
    """
    Outside of `ctx.call` there is no effect and no key; asking is an error, not an empty string.
    """
    with pytest.raises(AgentqError, match=r"ctx\.call"):
        idempotency_key()


def test_too_long_a_key_is_refused(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    A key made of prose is most likely made by a model, which would word it anew.
    """
    paying(registry, effect(key=lambda: "x" * 600)(lambda: 1), is_async=False)
    with pytest.raises(Permanent, match="longer than 500"):
        local().drain(start(client, tenant))


def test_a_postgres_that_blinks_while_a_result_is_stored_does_not_lose_it(
    registry: Registry, client: Client, tenant: str, local: Local, outside: Outside, settings: Settings
) -> None:
    """
    The process lives and knows the result: it insists, instead of leaving the outcome unknown.
    """

    def pay() -> str:
        answer = outside.pay()
        with psycopg.connect(settings.database_url, autocommit=True) as connection:
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'agentq local fleet'"
            )
        return answer

    paying(registry, pay, is_async=False)
    assert local().drain(start(client, tenant)).result == "receipt 1"
    assert len(outside.calls) == 1


def test_effects_follow_a_chain(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    Each step has its own ordinals: the first call of the second step is not the first step's.
    """
    agent = Agent("chain", state=Order, registry=registry)

    @agent.step(start=True)
    def one(state: Order, ctx: Context) -> Next:
        state.number = ctx.call(str.upper, "first")
        return Next(two, state)

    @agent.step
    def two(state: Order, ctx: Context) -> Done:
        return Done([state.number, ctx.call(str.upper, "second")])

    assert local().drain(start(client, tenant, "chain")).result == ["FIRST", "SECOND"]


@both
@pytest.mark.parametrize("declared", ["ordinal", "key"])
@pytest.mark.parametrize("happened", [True, False])
def test_a_persons_word_lets_the_parked_step_go_on(
    registry: Registry,
    client: Client,
    tenant: str,
    local: Local,
    outside: Outside,
    is_async: bool,
    declared: str,
    happened: bool,
) -> None:
    """
    I5: an outcome that nobody knows parks the step; told that it happened, it recalls that result, and told
    that it did not, it calls again under the same key.
    """
    options: dict[str, Any] = {"key": lambda: "refund:A1"} if declared == "key" else {}

    @effect(**options)
    def pay() -> str:
        return outside.pay()

    outside.errors = [TimeoutError("slow")]
    paying(registry, pay, is_async=is_async)
    fleet = local()
    session = start(client, tenant)
    with pytest.raises(UnknownEffect) as caught:
        fleet.drain(session)
    key = caught.value.effect_key
    assert f"agentq effect resolve '{key}' --tenant {tenant}" in str(caught.value)
    assert [row.key for row in client.effects.ls(tenant=tenant)] == [key]
    client.effects.resolve(key, done=happened, result="receipt by hand", reason="looked", tenant=tenant)
    for _ in client.dead_letters.redrive(Selection(tenant=tenant), reason="resolved"):
        pass
    assert fleet.drain(session).result == ("receipt by hand" if happened else "receipt 2")
    assert len(outside.calls) == (1 if happened else 2)
    assert len(set(outside.calls)) == 1


@both
@pytest.mark.parametrize(
    "error",
    [
        httpx.HTTPStatusError("x", request=httpx.Request("POST", "http://a"), response=httpx.Response(502)),
        httpx.DecodingError("cut off"),
        json.JSONDecodeError("x", "<html>", 0),
    ],
    ids=["502", "decoding", "json"],
)
def test_an_answer_that_cannot_be_read_is_no_failure(
    registry: Registry, client: Client, tenant: str, local: Local, outside: Outside, is_async: bool, error: Exception
) -> None:
    """
    I5: a proxy's 502 or half an answer leaves open whether the other side acted: nothing is repeated unasked.
    """
    outside.errors = [error]
    paying(registry, outside.pay, is_async=is_async)
    with pytest.raises(UnknownEffect):
        local().drain(start(client, tenant))
    assert len(outside.calls) == 1


def test_a_conflict_names_both_effects(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    Two tools that share a key by mistake are both named, so that one finds them.
    """

    @effect(key=lambda: "A1")
    def pay() -> int:
        return 1

    @effect(key=lambda: "A1")
    def refund() -> int:
        return 1

    agent = Agent("payer", state=Empty, registry=registry)

    @agent.step
    def work(state: Empty, ctx: Context) -> Done:
        return Done(ctx.call(pay) + ctx.call(refund))

    with pytest.raises(KeyConflict, match=r"refund.*'d:A1' was used before by .*pay with other arguments"):
        local().drain(start(client, tenant))
