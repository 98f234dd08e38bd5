"""An agent of the OpenAI Agents SDK for real workers: an offline model, and a tool whose worker may die under it."""

from __future__ import annotations

from typing import Any

import agents as sdk
from agents.testing import assistant_message, function_call

from agentq.adapters.openai_agents import durable
from tests.support.model_agents import CALLS, book


class Model(sdk.Model):
    """Books side by side, then one more, then says what came back."""

    model = "clerk"

    async def get_response(self, system: Any, input: Any, *more: Any, **named: Any) -> sdk.ModelResponse:
        items = [] if isinstance(input, str) else input
        returned = [item["output"] for item in items if item.get("type") == "function_call_output"]
        wanted = range(CALLS - 1) if not returned else range(len(returned), CALLS)
        calls = [function_call("book", {"order": "A", "n": n}, call_id=f"call-{n}") for n in wanted]
        return sdk.ModelResponse(calls or [assistant_message(" ".join(returned))], sdk.Usage(), None)

    def stream_response(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


clerk = durable(sdk.Agent("clerk", model=Model(), tools=[sdk.function_tool(book)]), name="clerk", provider="function")
