"""A model agent in a few lines: a model, a tool, limits. Its model is offline; name a real one to use one."""

from __future__ import annotations

import os
import re

from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from agentq import Limits, ModelAgent, tool

_SHIPPED = {"AB-1001": "shipped", "AB-1002": "being packed"}


@tool(idempotent=True)  # it only reads: after a crash it may be called again
def find_order(number: str) -> str:
    """Find out where an order is.

    Args:
        number: the order's number, like AB-1001
    """
    return _SHIPPED.get(number, "unknown")


def _offline(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:  # noqa: ARG001
    """Stands in for a model: looks up each number that the customer names, then says what it found."""
    parts = [part for message in messages for part in message.parts]
    found = [part for part in parts if isinstance(part, ToolReturnPart)]
    asked = " ".join(str(part.content) for part in parts if isinstance(part, UserPromptPart))
    numbers = re.findall(r"[A-Z]{2}-\d{4}", asked)
    if numbers and not found:
        return ModelResponse([ToolCallPart("find_order", {"number": number}) for number in numbers])
    if not numbers:
        return ModelResponse([TextPart("Which order do you mean?")])
    told = [f"{number} is {part.content}" for number, part in zip(numbers, found, strict=False)]
    return ModelResponse([TextPart("; ".join(told))])


parcels = ModelAgent(
    "parcels",
    model=os.environ.get("AGENTQ_PARCELS_MODEL") or FunctionModel(_offline, model_name="offline"),
    instructions="Answer questions about orders. Never guess: look them up.",
    tools=[find_order],
    limits=Limits(model_calls=10, tool_calls=20, wall="2m"),
)
