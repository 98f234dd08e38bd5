"""The support desk that `benchmarks.desk` runs: a model agent whose tools change things at an outside service."""

from __future__ import annotations

import os
import random
from typing import Any

from pydantic import BaseModel, Field
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from agentq import Limits, ModelAgent, idempotency_key, tool
from agentq.agents.tools import ToolContext
from agentq.chaos.tools import Order, Unreadable, say

MODEL_URL = "BENCH_DESK_MODEL_URL"

# Refunds up to this need nobody's leave.
FREE_CENTS = 5_000

# A service that fails one call in five is tried until it is sure to have answered.
RETRIES = 8


class Ticket(BaseModel):
    """What a customer wants."""

    number: int
    wish: str
    cents: int = 0

    @property
    def order(self) -> str:
        return f"D-{self.number:04d}"


class Answer(BaseModel):
    """What the desk did about a ticket."""

    outcome: str = Field(description="refunded, not refunded, redirected or told")
    cents: int = Field(0, description="what was paid back")


def _ask(place: str, ctx: ToolContext, value: str, *, kind: str) -> str:
    """One call to the service, which takes its time, so that a worker can die meanwhile."""
    order = Order(session=ctx.session_id, place=place, value=value, pause_s=random.uniform(0.01, 0.15))
    answer = say("call", order, kind=kind, key=idempotency_key()).get("answer")
    if not isinstance(answer, str):
        raise Unreadable("the service sent an answer without an answer")
    return answer


def _happened(*_: Any, **__: Any) -> dict[str, str] | None:
    """What the service says of the call under this key; it performs a repeat as another change."""
    answer = say("ask", Order(session="", place="", value=""), kind="checked", key=idempotency_key()).get("answer")
    return {"receipt": answer} if isinstance(answer, str) else None


@tool(idempotent=True, retries=RETRIES)
def find_order(ctx: ToolContext, order: str) -> dict[str, str]:
    """Look up an order."""
    return {"order": order, "found": _ask("find_order", ctx, order, kind="idempotent")}


@tool(idempotent=True, retries=RETRIES)
def find_customer(ctx: ToolContext, order: str) -> dict[str, str]:
    """Look up who placed an order."""
    return {"order": order, "found": _ask("find_customer", ctx, order, kind="idempotent")}


@tool(
    check=_happened,
    key=lambda order, cents: f"refund:{order}",
    irreversible=True,
    to="finance",
    auto=lambda order, cents: cents <= FREE_CENTS,
    question=lambda order, cents: f"Pay {cents / 100:.2f} back for {order}?",
    retries=RETRIES,
)
def issue_refund(ctx: ToolContext, order: str, cents: int) -> dict[str, str]:
    """Pay money back. It cannot be taken back."""
    return {"receipt": _ask("issue_refund", ctx, f"{order} {cents}", kind="checked")}


@tool(check=_happened, retries=RETRIES)
def change_address(ctx: ToolContext, order: str, address: str) -> dict[str, str]:
    """Send an order elsewhere."""
    return {"receipt": _ask("change_address", ctx, f"{order} {address}", kind="checked")}


@tool(check=_happened, retries=RETRIES)
def send_answer(ctx: ToolContext, order: str, text: str) -> dict[str, str]:
    """Answer the customer by mail."""
    return {"receipt": _ask("send_answer", ctx, f"{order} {text}", kind="checked")}


def model() -> OpenAIChatModel:
    """The model behind the server on loopback: real requests over HTTP, and nobody's key."""
    return OpenAIChatModel("gpt-5-mini", provider=OpenAIProvider(base_url=os.environ[MODEL_URL], api_key="none"))


desk = ModelAgent(
    "bench-desk",
    model=model,
    instructions="You run a support desk. Look things up, do what the ticket asks for, then answer the customer.",
    tools=[find_order, find_customer, issue_refund, change_address, send_answer],
    input=Ticket,
    prompt=lambda ticket: f"Ticket {ticket.number} about {ticket.order}: {ticket.wish} {ticket.cents}",
    output=Answer,
    limits=Limits(model_calls=60, tool_calls=40, wall="30m"),
    retries=RETRIES,
)
