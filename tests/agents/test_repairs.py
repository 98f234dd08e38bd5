"""Wrong answers: fed back a bounded number of times, then the fallback, then a dead letter."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from agentq import Agent, AsyncContext, ConfigError, Context, Done, Next, Semantic, Transient, effect
from agentq.agents.registry import Registry
from agentq.client import Client, Session
from agentq.errors import NotNow
from agentq.testing import LocalFleet

Local = Callable[..., LocalFleet]


class Draft(BaseModel):
    """What is worked on."""

    text: str = "draft"


class Words(BaseModel):
    """What the model ought to answer."""

    count: int


def start(client: Client, tenant: str) -> Session:
    return client.start("writer", tenant=tenant, input={})


def test_the_error_is_fed_back(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    The next attempt is told the number of its repair and what was wrong; it counts as no attempt.
    """
    told: list[Any] = []
    agent = Agent("writer", state=Draft, registry=registry)

    @agent.step(repairs=2, retries=0)
    def write(state: Draft, ctx: Context) -> Done:
        told.append(ctx.repair)
        answer = ["{}", '{"count": "many"}', '{"count": 3}'][len(told) - 1]
        return Done(Words.model_validate_json(answer).count)

    session = start(client, tenant)
    assert local().drain(session).result == 3
    assert told[0] is None
    assert [(repair.number, repair.of) for repair in told[1:]] == [(1, 2), (2, 2)]
    assert "Field required" in told[1].feedback
    assert "valid integer" in told[2].feedback
    assert session.steps()[0].attempt == 1


def test_the_hook_words_the_feedback(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    `on_semantic` is told the error and the state as the step found it; what it says is fed back.
    """
    told: list[str | None] = []
    agent = Agent("writer", state=Draft, registry=registry)

    def hint(error: BaseException, state: Draft) -> str:
        return f"{state.text}: {error}, say it shorter"

    @agent.step(repairs=1, on_semantic=hint)
    def write(state: Draft, ctx: Context) -> Done:
        told.append(ctx.repair.feedback if ctx.repair else None)
        state.text = "changed by the attempt that failed"
        if ctx.repair is None:
            raise Semantic("too long")
        return Done("ok")

    assert local().drain(start(client, tenant)).result == "ok"
    assert told == [None, "draft: too long, say it shorter"]


@pytest.mark.parametrize("repairs", [0, 2])
def test_repairs_end(registry: Registry, client: Client, tenant: str, local: Local, repairs: int) -> None:
    """
    I7: when they are used up the step is dead, however many retries it had: those are for what may pass.
    """
    calls: list[int] = []
    agent = Agent("writer", state=Draft, registry=registry)

    @agent.step(repairs=repairs, retries=5)
    def write(state: Draft, ctx: Context) -> Done:
        calls.append(1)
        raise Semantic("nonsense")

    session = start(client, tenant)
    with pytest.raises(Semantic):
        local().drain(session)
    assert len(calls) == repairs + 1
    failure = session.view().failure
    assert failure is not None
    assert failure["kind"] == "semantic"


def test_the_hook_may_give_up(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    None from `on_semantic` says that no repair will help.
    """
    calls: list[int] = []
    agent = Agent("writer", state=Draft, registry=registry)

    @agent.step(repairs=5, on_semantic=lambda error, state: None)
    def write(state: Draft) -> Done:
        calls.append(1)
        raise Semantic("hopeless")

    with pytest.raises(Semantic):
        local().drain(start(client, tenant))
    assert len(calls) == 1


def test_a_hook_that_raises_does_no_harm(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    The error itself is fed back then.
    """
    agent = Agent("writer", state=Draft, registry=registry)

    def broken(error: BaseException, state: Draft) -> str:
        raise KeyError("a bug in the hook")

    @agent.step(repairs=1, on_semantic=broken)
    def write(state: Draft, ctx: Context) -> Done:
        if ctx.repair is None:
            raise Semantic("wrong")
        return Done(ctx.repair.feedback)

    assert local().drain(start(client, tenant)).result == "wrong"


def test_the_fallback_goes_on(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    When repairs are used up, the fallback takes the state as the step found it, and the error.
    """
    agent = Agent("writer", state=Draft, registry=registry)

    @agent.step
    def simple(state: Draft, error: str) -> Done:
        return Done([state.text, error])

    @agent.step(start=True, repairs=1, fallback=simple)
    def write(state: Draft) -> Done:
        state.text = "spoilt"
        raise Semantic("nonsense")

    session = start(client, tenant)
    assert local().drain(session).result == ["draft", "nonsense"]
    assert session.view().state == "done"


def test_feedback_outlives_an_outage(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    A repair that meets a passing failure is tried again, and is still told what it is to repair.
    """
    told: list[Any] = []
    agent = Agent("writer", state=Draft, registry=registry)

    @agent.step(repairs=1, retries=1)
    def write(state: Draft, ctx: Context) -> Done:
        told.append(ctx.repair)
        if len(told) == 1:
            raise Semantic("wrong")
        if len(told) == 2:
            raise Transient("away")
        return Done(ctx.repair.error if ctx.repair else None)

    session = start(client, tenant)
    assert local().drain(session).result == "wrong"
    assert session.steps()[0].attempt == 2, "the one that met the failure counts, the repair does not"


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_question_is_asked_anew_and_a_payment_is_not(
    registry: Registry, client: Client, tenant: str, local: Local, is_async: bool
) -> None:
    """
    I5: a repair repeats what is declared a question, under a key of its own; every other effect is recalled.
    """
    paid: list[int] = []
    asked: list[int] = []

    def pay() -> int:
        paid.append(1)
        return len(paid)

    @effect(idempotent=True, repairable=True)
    def ask(hint: str) -> int:
        asked.append(1)
        return len(asked)

    agent = Agent("writer", state=Draft, registry=registry)

    def told(ctx: Context | AsyncContext) -> str:
        return ctx.repair.feedback if ctx.repair else ""

    if is_async:

        @agent.step(repairs=2)
        async def write(state: Draft, ctx: AsyncContext) -> Done:
            receipt = await ctx.call(pay)
            if (answer := await ctx.call(ask, told(ctx))) < 3:
                raise Semantic(f"{answer} is too little")
            return Done([receipt, answer])
    else:

        @agent.step(repairs=2)
        def write(state: Draft, ctx: Context) -> Done:
            receipt = ctx.call(pay)
            if (answer := ctx.call(ask, told(ctx))) < 3:
                raise Semantic(f"{answer} is too little")
            return Done([receipt, answer])

    assert local().drain(start(client, tenant)).result == [1, 3]
    assert len(paid) == 1


def test_the_four_counters_are_apart(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    Attempts, repairs and refusals are counted each for itself; crashes are the relay's (tests/store/test_workers).
    """
    runs: list[int] = []
    agent = Agent("writer", state=Draft, registry=registry)

    @agent.step(repairs=1, retries=1)
    def write(state: Draft, ctx: Context) -> Next | Done:
        runs.append(1)
        match len(runs):
            case 1:
                raise NotNow("later", delay_s=0.0)
            case 2:
                raise Semantic("wrong")
            case 3:
                raise Transient("away")
        return Done()

    fleet = local()
    session = start(client, tenant)
    fleet.drain(session)
    [step] = session.steps()
    assert (step.attempt, step.repairs, step.refusals, step.crashes) == (2, 1, 1, 0)


def finish(state: Draft) -> Done:
    return Done()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"repairs": -1}, "0 to"),
        ({"repairs": True}, "0 to"),
        ({"fallback": "x"}, "repairs="),
        ({"needs": "No!"}, "a-z"),
    ],
)
def test_what_is_declared_wrongly_is_refused(registry: Registry, options: dict[str, Any], says: str) -> None:
    """
    At import, not at three in the morning.
    """
    agent = Agent("writer", state=Draft, registry=registry)
    with pytest.raises((ConfigError, ValueError), match=says):
        agent.step(**options)(finish)


def test_a_repairable_effect_has_no_key_of_its_own() -> None:
    """
    A key that is declared means one result for ever; it cannot be asked anew.
    """
    with pytest.raises(ConfigError, match="one result"):
        effect(repairable=True, key=lambda: "k")(inspect.signature)


def test_a_validation_error_is_a_wrong_answer() -> None:
    """
    What does not fit its model is fed back like any other wrong answer.
    """
    from agentq.policies.kinds import kind_of

    with pytest.raises(ValidationError) as caught:
        Words.model_validate({})
    assert kind_of(caught.value) == "semantic"
