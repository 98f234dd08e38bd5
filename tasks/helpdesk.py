"""
A support desk on a model agent, with a person for what cannot be taken back.

It looks orders up, pays small sums back by itself, and waits for a person's leave above that: no worker is
held meanwhile (`agentq approval ls`). Its model is offline; name a real one to use one.
"""

from __future__ import annotations

import os
import re

from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from agentq import Limits, ModelAgent, tool

FREE_CENTS = 5_000
ORDERS = {"AB-1001": 1_250, "AB-1002": 24_900}


@tool(idempotent=True)  # it only reads
def price_of(order: str) -> int:
    """What was paid for an order, in cents.

    Args:
        order: the order's number, like AB-1001
    """
    return ORDERS.get(order, 0)


@tool(
    idempotent=True,  # the provider that it would call sees the same key again, and pays once
    key=lambda order, cents: f"refund:{order}",  # noqa: ARG005 - one refund for an order, whoever asks
    irreversible=True,
    auto=lambda order, cents: cents <= FREE_CENTS,  # noqa: ARG005
    question=lambda order, cents: f"Pay {cents / 100:.2f} back for {order}?",
)
def pay_back(order: str, cents: int) -> str:
    """Pay money back to the customer. It cannot be taken back.

    Args:
        order: the order's number
        cents: how much
    """
    return f"{cents / 100:.2f} paid back for {order}"


def _offline(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:  # noqa: ARG001
    """Stands in for a model: looks the order up, pays it back, and says what became of it."""
    parts = [part for message in messages for part in message.parts]
    found = [part for part in parts if isinstance(part, ToolReturnPart)]
    asked = " ".join(str(part.content) for part in parts if isinstance(part, UserPromptPart))
    numbers = re.findall(r"[A-Z]{2}-\d{4}", asked)
    if not numbers:
        return ModelResponse([TextPart("Which order do you mean?")])
    if not found:
        return ModelResponse([ToolCallPart("price_of", {"order": numbers[0]})])
    if len(found) == 1 and found[0].content:
        return ModelResponse([ToolCallPart("pay_back", {"order": numbers[0], "cents": found[0].content})])
    if found[-1].tool_name == "pay_back" and found[-1].outcome == "success":
        return ModelResponse([TextPart(f"Done: {found[-1].content}.")])
    return ModelResponse([TextPart(f"I could not pay {numbers[0]} back. A colleague will write to you.")])


helpdesk = ModelAgent(
    "helpdesk",
    model=os.environ.get("AGENTQ_HELPDESK_MODEL") or FunctionModel(_offline, model_name="offline"),
    instructions="You answer customers of a shop. Look orders up before you promise anything.",
    tools=[price_of, pay_back],
    limits=Limits(model_calls=10, tool_calls=10),
)
