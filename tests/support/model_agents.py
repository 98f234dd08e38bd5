"""A model agent for real workers: an offline model, and a tool whose worker may die under it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from agentq import ModelAgent, idempotency_key, tool
from agentq.adapters.pydantic_ai import durable

BOOK = Path(os.environ.get("MODEL_TEST_BOOK", "/nonexistent"))
CALLS = 3


def _booked(order: str, n: int) -> str | None:
    """Whether the other side has this booking; the line is the other side."""
    key = idempotency_key()
    return next((f"booked {key}" for line in (BOOK / "lines").read_text().splitlines() if line == key), None)


@tool(check=_booked)
def book(order: str, n: int) -> str:
    """Book something. It happens, and then the worker may be gone."""
    key = idempotency_key()
    with (BOOK / "lines").open("a") as lines:
        lines.write(f"{key}\n")
    try:
        (BOOK / "kill").unlink()
    except FileNotFoundError:
        return f"booked {key}"
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def _answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Book side by side, then one more, then say what came back."""
    returned = [part.content for m in messages for part in m.parts if isinstance(part, ToolReturnPart)]
    if not returned:
        return ModelResponse([ToolCallPart("book", {"order": "A", "n": n}) for n in range(CALLS - 1)])
    if len(returned) < CALLS:
        return ModelResponse([ToolCallPart("book", {"order": "A", "n": len(returned)})])
    return ModelResponse([TextPart(" ".join(returned))])


booker = ModelAgent("booker", model=FunctionModel(_answer, model_name="booker"), tools=[book])

# The same, as somebody has it who uses Pydantic AI.
existing = Agent(FunctionModel(_answer, model_name="booker"), tools=[book])
adapted = durable(existing, name="adapted")
