"""What a step notes of itself, and what is kept of it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from agentq import Agent, AsyncContext, Context, Done, Next, Transient, effect
from agentq.agents.registry import Registry
from agentq.agents.tracing import EVENTS_MAX, Recording, Tracing
from agentq.client import Client
from agentq.payload import decode
from agentq.policies.failures import classify
from agentq.policies.redaction import Redactor
from agentq.testing import LocalFleet
from tests.support.hands import Hands

Local = Callable[..., LocalFleet]


class Count(BaseModel):
    n: int = 0


@effect(idempotent=True)
def fetch(order: str) -> dict[str, Any]:
    """Looks an order up."""
    return {"order": order, "card": "4111111111111111"}


def rows(hands: Hands, session: str) -> list[dict[str, Any]]:
    query = "select * from agentq.trace where session_id = %s order by started_at, fence, ordinal"
    return hands.rows(query, uuid.UUID(session))


def test_calls_requests_and_choices_are_traced_and_redacted(
    registry: Registry, client: Client, tenant: str, local: Local, hands: Hands
) -> None:
    """
    Effects by themselves, the rest as the step says; in the store nothing that the rules find.
    """
    agent = Agent("robot", state=Count, registry=registry)

    @agent.step(start=True)
    def look(state: Count, ctx: Context) -> Next:
        order = ctx.call(fetch, "A1")
        with ctx.trace("model", "gpt-5", input=["mail jane@example.com"], provider="openai") as span:
            span.output = "pay it"
            span.used(input_tokens=100, output_tokens=20, cost_usd="0.0003", cached_tokens=64)
        ctx.usage(input_tokens=100, output_tokens=20, cost_usd="0.0003")
        ctx.decide(["pay", "ask jane@example.com"], "pay", f"{order['order']} is due", 0.9, limits={"steps_max": 9})
        return Next(pay, state)

    @agent.step
    def pay(state: Count, ctx: Context) -> Done:
        return Done("paid")

    session = client.start("robot", tenant=tenant, input={})
    local().drain(session)
    attempt, tool, model, last = rows(hands, session.id)
    assert [row["kind"] for row in (attempt, tool, model, last)] == ["attempt", "tool", "model", "attempt"]
    assert (attempt["leads_to"], attempt["tokens_in"], attempt["cost_micros"]) == ("pay", 100, 300)
    assert (tool["name"].rpartition(".")[2], decode(tool["input"])) == ("fetch", ["A1"])
    assert decode(tool["output"]) == {"order": "A1", "card": "[card]"}
    assert tool["detail"]["effect_key"].startswith("s:")
    assert (model["name"], decode(model["input"]), decode(model["output"])) == ("gpt-5", ["mail [email]"], "pay it")
    assert (model["tokens_in"], model["tokens_out"], model["cost_micros"]) == (100, 20, 300)
    assert model["detail"] == {"provider": "openai", "cached_tokens": 64}
    [made] = hands.rows("select * from agentq.decision")
    assert (decode(made["options"]), made["picked"], made["why"]) == (["pay", "ask [email]"], "pay", "A1 is due")
    assert made["limits"]["steps_max"] == 9
    assert made["limits"]["attempts_max"] > 0


def test_a_failed_attempt_keeps_what_it_did(
    registry: Registry, client: Client, tenant: str, local: Local, hands: Hands
) -> None:
    """
    That is what a person wants to see; a recalled call says that it was none.
    """
    agent = Agent("robot", state=Count, registry=registry)

    @agent.step(retries=1)
    async def work(state: Count, ctx: AsyncContext) -> Done:
        await ctx.call(fetch, "A1")
        with ctx.trace("model", "gpt-5"):
            if ctx.attempt == 1:
                raise Transient("busy")
        return Done("ok")

    session = client.start("robot", tenant=tenant, input={})
    local().drain(session)
    found = rows(hands, session.id)
    assert [(row["kind"], row["fence"], row["closing"]) for row in found] == [
        ("attempt", 1, "retry"), ("tool", 1, None), ("model", 1, None),
        ("attempt", 2, "end"), ("tool", 2, None), ("model", 2, None),
    ]  # fmt: skip
    assert found[2]["failure"]["message"] == "busy"
    assert "outcome" not in found[1]["detail"]
    assert found[4]["detail"]["outcome"] == "recalled"


def recording(**more: Any) -> Recording:
    return Recording(Tracing(**{"on": True, "redact": Redactor().value} | more), 0.0, classify)


def test_no_content_means_no_content() -> None:
    notes = recording(content=False)
    with notes.span("model", "gpt", input="hello") as span:
        span.output = "hi"
    [event] = notes.events()
    assert (event.input, event.output) == (None, None)


def test_what_is_off_costs_nothing_and_keeps_nothing() -> None:
    notes = recording(on=False)
    with notes.span("model", "gpt", input="hello"):
        notes.decide(["a"], "a")
    assert (notes.events(), notes.decisions()) == ((), ())


def test_without_a_redactor_nothing_is_kept() -> None:
    """
    Somebody who builds the parts by hand and forgets it leaks nothing.
    """
    assert not Tracing().on
    assert b"secret text" not in (Tracing(on=True).keep("input", "secret text") or b"")


def test_a_long_input_is_cut_and_says_so() -> None:
    notes = recording(content_max=300)
    with notes.span("model", "gpt", input=["x" * 200] * 10):
        pass
    kept = decode(notes.events()[0].input or b"")
    assert kept["bytes"] == 2031
    assert len(kept["cut"]) == 300


def test_what_has_no_json_form_does_not_stop_a_step() -> None:
    notes = recording()
    with notes.span("model", "gpt", input=object()):
        pass
    assert "cannot be shown" in decode(notes.events()[0].input or b"")


def test_an_endless_loop_of_notes_is_bounded() -> None:
    notes = recording()
    for _ in range(EVENTS_MAX + 7):
        with notes.span("model", "gpt"):
            pass
        notes.decide(["a"], "a")
    assert len(notes.events()) == EVENTS_MAX + 1
    assert notes.events()[-1].name == "7 more were not kept"
    assert len(notes.decisions()) == EVENTS_MAX


@pytest.mark.parametrize("kind", ["attempt", "No Kind", ""])
def test_kinds_are_names(kind: str) -> None:
    with pytest.raises(ValueError, match="kind"), recording().span(kind, "x"):
        pass


def test_confidence_is_a_share() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        recording().decide(["a"], "a", confidence=2)
