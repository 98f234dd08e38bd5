"""Spending: what a step asks for, what a refusal makes of it, and what an error costs."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from pydantic import BaseModel

from agentq import Agent, AsyncContext, BudgetExceeded, Context, Done, Next, Transient, UnknownPrice
from agentq.agents.registry import Registry
from agentq.client import Client
from agentq.policies.budgets import anchored_tokens, estimate_tokens, fate_of
from agentq.policies.prices import Prices, split
from agentq.store.budgets import Budgets, PriceRow
from agentq.testing import LocalFleet
from agentq.verdicts import Carried


class Empty(BaseModel):
    """Nothing to know."""


@pytest.fixture
def budgets(client: Client) -> Budgets:
    budgets = Budgets(client._store)
    if not any(row.model == "acme:robot" for row in budgets.prices()):
        budgets.set_price("acme:robot", (1_000_000, 2_000_000, 100_000), operator="test", reason="a test")
    return budgets


def agent_of(registry: Registry, function: Any, **more: Any) -> Agent[Any]:
    """An agent with that one step."""
    agent = Agent("spender", state=Empty, registry=registry)
    agent.step(function, start=True, **more) if more else agent.step(start=True)(function)
    return agent


def limit(budgets: Budgets, tenant: str, micros: int, on_refusal: str = "wait", **more: Any) -> None:
    facts = {"scope": "tenant", "subject": "", "period": "day"} | more
    budgets.set_budget(
        tenant, **facts, micros=micros, tokens=None, on_refusal=on_refusal, operator="test", reason="a test"
    )


ROBOT: dict[str, Any] = {"model": "acme:robot", "input_tokens": 10, "max_tokens": 20}  # 10 + 40 micros


def test_a_call_is_reserved_made_and_charged(
    client: Client, registry: Registry, local: Any, tenant: str, budgets: Budgets
) -> None:
    """
    The estimate is held while the call runs; what it used is charged with the step, and counts as its usage.
    """
    held: list[int] = []

    def go(state: Empty, ctx: Context) -> Done:
        with ctx.spend(**ROBOT) as call:
            held.append(budgets.windows(tenant)[-1].reserved_micros)
            call.used(input_tokens=8, output_tokens=5, cached_input_tokens=4)
        return Done(call.max_tokens)

    agent_of(registry, go)
    session = client.start("spender", tenant=tenant, input={})
    view = local().drain(session)
    assert (view.result, held) == (20, [50])
    # 4 fresh at 1, 4 cached at 0.1, 5 out at 2: 14.4 micros, rounded up
    assert (view.cost_usd, view.input_tokens, view.output_tokens) == (0.000015, 8, 5)
    assert {(row.spent_micros, row.reserved_micros) for row in budgets.windows(tenant)} == {(15, 0)}
    assert budgets.check(tenant) == []


def test_async_steps_spend_too(client: Client, registry: Registry, local: Any, tenant: str, budgets: Budgets) -> None:
    """
    Calls side by side in one step have reservations of their own.
    """

    async def go(state: Empty, ctx: AsyncContext) -> Done:
        async def one() -> None:
            async with ctx.spend(**ROBOT) as call:
                await asyncio.sleep(0)
                call.used(input_tokens=1, output_tokens=1)

        await asyncio.gather(*(one() for _ in range(5)))
        return Done(None)

    agent_of(registry, go)
    local().drain(client.start("spender", tenant=tenant, input={}))
    [day, month] = [row for row in budgets.windows(tenant) if row.scope == "tenant"]
    assert (day.spent_micros, day.calls, day.reserved_micros) == (15, 5, 0)
    assert month.spent_micros == 15
    assert budgets.check(tenant) == []


def test_a_step_whose_end_is_refused_has_spent_all_the_same(
    client: Client, registry: Registry, local: Any, tenant: str, budgets: Budgets
) -> None:
    """
    What it wanted to store cannot be; what its call used is charged as it was told, not as an estimate.
    """

    def go(state: Empty, ctx: Context) -> Done:
        with ctx.spend(**ROBOT) as call:
            call.used(input_tokens=1, output_tokens=1)
        with ctx.transaction() as connection:
            connection.execute("set local statement_timeout = 0")
            connection.execute("savepoint broken")
            try:
                connection.execute("select 1 / 0")
            except Exception:
                return Done("its transaction is broken")
        return Done(None)

    agent_of(registry, go, retries=0)
    session = client.start("spender", tenant=tenant, input={})
    with contextlib.suppress(Exception):
        local().drain(session)
    assert session.view().state == "failed"
    [day] = [row for row in budgets.windows(tenant) if (row.scope, row.period) == ("tenant", "day")]
    assert (day.spent_micros, day.reserved_micros) == (3, 0)
    assert budgets.check(tenant) == []


class ReadTimeout(Exception):
    """As httpx names it."""


class ConnectError(Exception):
    """As httpx names it."""


class Answered(Exception):
    """An answer with an error status."""

    status_code = 503


@pytest.mark.parametrize(
    ("error", "charged"),
    [(ReadTimeout(), 50), (ConnectError(), 0), (Answered(), 0), (KeyError("their answer"), 50)],
)
def test_an_error_decides_what_is_charged(
    client: Client, registry: Registry, local: Any, tenant: str, budgets: Budgets, error: Exception, charged: int
) -> None:
    """
    Never sent or answered with an error: nothing. Anything else may have been billed: the estimate, marked so.
    """

    def go(state: Empty, ctx: Context) -> Done:
        if ctx.attempt == 1:
            try:
                with ctx.spend(**ROBOT):
                    raise error
            except Exception as caught:
                raise Transient("again") from caught
        return Done(None)

    agent_of(registry, go)
    session = client.start("spender", tenant=tenant, input={})
    local().drain(session)
    [row] = client.budgets.ledger(tenant, session.id)
    assert (row.charged_micros or 0, row.state) == (charged, "uncertain" if charged else "released")
    assert row.note == type(error).__name__
    assert fate_of(error) == row.state


def test_what_was_used_before_the_error_is_charged(
    client: Client, registry: Registry, local: Any, tenant: str, budgets: Budgets
) -> None:
    """
    The answer came, and what the step made of it failed: the call is paid all the same.
    """

    def go(state: Empty, ctx: Context) -> Done:
        with ctx.spend(**ROBOT) as call:
            call.used(input_tokens=3, output_tokens=0)
            if ctx.attempt == 1:
                raise Transient("no good")
        return Done(None)

    agent_of(registry, go)
    session = client.start("spender", tenant=tenant, input={})
    local().drain(session)
    assert [row.charged_micros for row in client.budgets.ledger(tenant, session.id)] == [3, 3]


def test_a_budget_that_opens_tomorrow_is_waited_for(
    client: Client, registry: Registry, local: Any, tenant: str, budgets: Budgets
) -> None:
    """
    The step comes back when the window opens, and no attempt is lost.
    """
    attempts: list[int] = []

    def go(state: Empty, ctx: Context) -> Next | Done:
        attempts.append(ctx.attempt)
        with ctx.spend(**ROBOT) as call:
            call.used(input_tokens=0, output_tokens=0, cost_usd="0.00005")
        return Next(go, state) if len(attempts) == 1 else Done("spent twice")

    limit(budgets, tenant, 50)
    agent = Agent("spender", state=Empty, registry=registry)
    go = agent.step(start=True)(go)  # type: ignore[assignment]
    fleet: LocalFleet = local()
    assert fleet.drain(client.start("spender", tenant=tenant, input={})).result == "spent twice"
    assert attempts == [1, 1, 1]
    assert fleet.clock.offset_s > 0


@pytest.mark.parametrize("scope", ["tenant", "session"])
def test_a_budget_that_ends_ends(
    client: Client, registry: Registry, local: Any, tenant: str, budgets: Budgets, scope: str
) -> None:
    """
    `end`: the call is not made, the step is dead at once, and the error names the budget.
    """
    made: list[int] = []

    def go(state: Empty, ctx: Context) -> Done:
        with ctx.spend(**ROBOT) as call:
            made.append(1)
            call.used(input_tokens=1, output_tokens=1)
        return Done(None)

    agent_of(registry, go)
    limit(budgets, tenant, 49, "end", scope=scope, period="session" if scope == "session" else "day")
    session = client.start("spender", tenant=tenant, input={})
    with pytest.raises(BudgetExceeded, match=f"the budget of {scope}"):
        local().drain(session)
    assert not made
    assert session.view().failure["type"] == "BudgetExceeded"  # type: ignore[index]


def test_a_budget_that_parks_pauses_the_session(
    client: Client, registry: Registry, local: Any, tenant: str, budgets: Budgets
) -> None:
    """
    `park`: the session is paused and says why; no attempt is lost, and no money.
    """

    def go(state: Empty, ctx: Context) -> Done:
        with ctx.spend(**ROBOT) as call:
            call.used(input_tokens=1, output_tokens=1)
        return Done(ctx.attempt)

    agent_of(registry, go)
    limit(budgets, tenant, 49, "park")
    session = client.start("spender", tenant=tenant, input={})
    assert local().carry_next(tenant) == Carried("park")
    assert session.view().state == "paused"
    assert session.steps()[0].attempt == 0
    assert budgets.windows(tenant)[-1].reserved_micros == 0


def test_a_raised_limit_wakes_who_waits_for_midnight(
    client: Client, registry: Registry, local: Any, tenant: str, budgets: Budgets
) -> None:
    """
    An operator who raises a budget does not wait until its window opens to see it work.
    """

    def go(state: Empty, ctx: Context) -> Done:
        with ctx.spend(**ROBOT) as call:
            call.used(input_tokens=1, output_tokens=1)
        return Done(ctx.attempt)

    agent_of(registry, go)
    limit(budgets, tenant, 60)
    fleet = local()
    for _ in range(5):
        client.start("spender", tenant=tenant, input={})
    while fleet.carry_next(tenant) == Carried("end"):
        pass
    limit(budgets, tenant, 1000)
    assert fleet.carry_next(tenant) == Carried("end")


def test_a_step_may_do_with_less(client: Client, registry: Registry, local: Any, tenant: str, budgets: Budgets) -> None:
    """
    The refusal is an error that a step can catch, to take a cheaper model.
    """

    def go(state: Empty, ctx: Context) -> Done:
        try:
            with ctx.spend(**ROBOT):
                raise AssertionError("too dear")
        except BudgetExceeded:
            with ctx.spend(model="acme:robot", input_tokens=1, max_tokens=1) as call:
                call.used(input_tokens=1, output_tokens=1)
            return Done("small")

    agent_of(registry, go)
    limit(budgets, tenant, 10, "end")
    assert local().drain(client.start("spender", tenant=tenant, input={})).result == "small"


def test_an_unknown_price_is_refused(client: Client, registry: Registry, local: Any, tenant: str) -> None:
    """
    I6: fail closed: what nobody can price is not called, and the error says how to price it.
    """

    def go(state: Empty, ctx: Context) -> Done:
        with ctx.spend(model="garage:home-made", input_tokens=1, max_tokens=1):
            raise AssertionError("called")

    agent_of(registry, go)
    with pytest.raises(UnknownPrice, match="agentq budget price garage:home-made"):
        local().drain(client.start("spender", tenant=tenant, input={}))


def test_a_session_limit_in_code_counts(
    client: Client, registry: Registry, local: Any, tenant: str, budgets: Budgets
) -> None:
    """
    What the agent's code allows its session is a budget like any other.
    """

    def go(state: Empty, ctx: Context) -> Done:
        for _ in range(3):
            with ctx.spend(**ROBOT, session_cost_usd="0.000100") as call:
                call.not_sent()
        with ctx.spend(**ROBOT, session_cost_usd="0.000049"):
            raise AssertionError("called")

    agent_of(registry, go)
    with pytest.raises(BudgetExceeded, match="the budget of session"):
        local().drain(client.start("spender", tenant=tenant, input={}))


# ── prices and estimates ─────────────────────────────────────────────────────


def test_the_operators_price_goes_first() -> None:
    """
    Before the list, with a version of its own; a model that nobody knows has no price, not zero.
    """
    rows: list[PriceRow] = []
    prices = Prices(lambda: rows)
    ask = {"input_tokens": 1_000_000, "output_tokens": 0}
    pytest.importorskip("genai_prices")
    listed = prices.quote("openai", "gpt-5", **ask)
    assert listed.micros is not None
    assert listed.micros > 0
    assert str(listed.version).startswith("genai-prices/")
    assert prices.quote("openai", "no-such-model", **ask).micros is None
    assert prices.quote("nobody", "gpt-5", **ask).micros is None
    rows.append(PriceRow("openai:gpt-5", 7, 8, 9, 3, None))  # type: ignore[arg-type]
    prices._until = 0.0
    assert (prices.quote("openai", "gpt-5", **ask).micros, prices.quote("openai", "gpt-5", **ask).version) == (
        7,
        "operator/3",
    )


@pytest.mark.parametrize(
    ("model", "provider", "found"),
    [
        ("openai:gpt-5", None, ("openai", "gpt-5")),
        ("google-gla:gemini-2.5-pro", None, ("google", "gemini-2.5-pro")),
        ("gpt-5", "openai", ("openai", "gpt-5")),
        ("openai:gpt-5", "openai", ("openai", "gpt-5")),
        ("openai/gpt-5:free", "openrouter", ("openrouter", "openai/gpt-5:free")),
    ],
)
def test_a_model_has_a_provider(model: str, provider: str | None, found: tuple[str, str]) -> None:
    """
    By its prefix, or named; aliases of model libraries are one provider.
    """
    assert split(model, provider) == found


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The quick brown fox jumps over the lazy dog and runs away from the angry bear.", 17),
        ('{"id":18392,"name":"order","items":[{"sku":"A-1","qty":2},{"sku":"B-9","qty":1}]}', 37),
        ("Съешь же ещё этих мягких французских булок, да выпей чаю.", 27),
        ("敏捷的棕色狐狸跳过了懒狗", 15),
        ("def add(a: int, b: int) -> int:\n    return a + b\n", 20),
    ],
)
def test_estimates_err_towards_more(text: str, tokens: int) -> None:
    """
    Between the true count (by cl100k, counted beforehand) and three times as many.
    """
    assert tokens <= estimate_tokens(text) <= 3 * tokens


def test_an_anchored_estimate_adds_only_what_is_new() -> None:
    """
    What the provider counted is taken at its word.
    """
    assert anchored_tokens((1000, 50), "and then?") == 1050 + estimate_tokens("and then?")
    assert anchored_tokens(None, "and then?") == estimate_tokens("and then?")


def test_a_step_is_not_refused_on_account_of_itself(
    client: Client, registry: Registry, local: Any, tenant: str, budgets: Budgets
) -> None:
    """
    I7: what a step's first call left over is there for its second, or the step would come back for ever.
    """

    def go(state: Empty, ctx: Context) -> Done:
        for _ in range(4):
            with ctx.spend(**ROBOT) as call:
                call.used(input_tokens=1, output_tokens=0)
        return Done(None)

    agent_of(registry, go)
    limit(budgets, tenant, 53)
    local().drain(client.start("spender", tenant=tenant, input={}), steps_max=5)
    assert budgets.windows(tenant)[-1].spent_micros == 4
    assert budgets.check(tenant) == []


def test_calls_side_by_side_share_what_is_left(
    client: Client, registry: Registry, local: Any, tenant: str, budgets: Budgets
) -> None:
    """
    A budget for two calls at once carries six of them, two by two.
    """
    at_once: list[int] = [0]

    async def go(state: Empty, ctx: AsyncContext) -> Done:
        async def one() -> None:
            async with ctx.spend(**ROBOT) as call:
                at_once[0] += 1
                assert at_once[0] <= 2
                await asyncio.sleep(0.01)
                at_once[0] -= 1
                call.used(input_tokens=1, output_tokens=0)

        await asyncio.gather(*(one() for _ in range(6)))
        return Done(None)

    agent_of(registry, go)
    limit(budgets, tenant, 106)
    local().drain(client.start("spender", tenant=tenant, input={}))
    assert budgets.windows(tenant)[-1].spent_micros == 6


def test_calls_within_each_other_do_not_wait_for_ever(
    client: Client, registry: Registry, local: Any, tenant: str, budgets: Budgets
) -> None:
    """
    I7: a call inside another one, whose rest it needs, is refused.
    """

    def go(state: Empty, ctx: Context) -> Done:
        with ctx.spend(**ROBOT), ctx.spend(**ROBOT):
            raise AssertionError("called")

    agent_of(registry, go)
    limit(budgets, tenant, 99)
    with pytest.raises(BudgetExceeded, match="this very step"):
        local().drain(client.start("spender", tenant=tenant, input={}))
