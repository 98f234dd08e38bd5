"""A Pydantic AI agent as somebody has it, and the line that makes it durable. Its model is offline."""

from __future__ import annotations

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from agentq.adapters.pydantic_ai import durable

_PRICES = {"tea": 450, "cake": 700}


def _offline(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:  # noqa: ARG001
    """Stands in for a model: asks for both prices at once, then orders, then says so."""
    returned = [part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
    if not returned:
        return ModelResponse([ToolCallPart("price_of", {"what": what}) for what in _PRICES])
    if len(returned) == len(_PRICES):
        cents = sum(int(part.content) for part in returned)
        return ModelResponse([ToolCallPart("order", {"what": "tea and cake", "cents": cents})])
    return ModelResponse([TextPart(str(returned[-1].content))])


waiter = Agent(FunctionModel(_offline, model_name="offline"), instructions="Take the order. Look prices up.")


@waiter.tool_plain
def price_of(what: str) -> int:
    """What something costs, in cents."""
    return _PRICES[what]


@waiter.tool_plain(requires_approval=True)
def order(what: str, cents: int) -> str:
    """Order it, for money."""
    return f"ordered {what} for {cents / 100:.2f}"


durable(waiter, name="waiter", to="floor")
