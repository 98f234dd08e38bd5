"""An agent of the OpenAI Agents SDK as somebody has it, and the line that makes it durable. Its model is offline."""

from __future__ import annotations

import re
from typing import Any, NoReturn

import agents as sdk
from agents.testing import assistant_message, function_call

from agentq import tool
from agentq.adapters.openai_agents import durable

_SHIPPED = {"AB-1001": "shipped", "AB-1002": "being packed"}


class Offline(sdk.Model):
    """Stands in for a model: looks up each number that the customer names, then says what it found."""

    async def get_response(self, system: Any, input: Any, *_: Any, **__: Any) -> sdk.ModelResponse:  # noqa: ARG002
        """The next answer, by how far the conversation is."""
        items = [{"content": input}] if isinstance(input, str) else list(input)
        numbers = re.findall(r"[A-Z]{2}-\d{4}", str(items[0].get("content", "")))
        found = [item["output"] for item in items if item.get("type") == "function_call_output"]
        if numbers and not found:
            calls = [function_call("find_order", {"number": one}, call_id=f"find-{one}") for one in numbers]
            return sdk.ModelResponse(calls, sdk.Usage(), None)
        told = "; ".join(f"{number} is {state}" for number, state in zip(numbers, found, strict=False))
        return sdk.ModelResponse([assistant_message(told or "Which order do you mean?")], sdk.Usage(), None)

    def stream_response(self, *_: Any, **__: Any) -> NoReturn:
        """Not used."""
        raise NotImplementedError


@sdk.function_tool
@tool(idempotent=True)  # it only reads: after a crash it may be called again
def find_order(number: str) -> str:
    """Find out where an order is."""
    return _SHIPPED.get(number, "unknown")


clerk = sdk.Agent("clerk", model=Offline(), tools=[find_order], instructions="Never guess: look orders up.")

durable(clerk, name="clerk", provider="function")
