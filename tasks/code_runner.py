"""
A code runner: what the model writes runs in the sandbox or not at all, and its errors go back to the model.

Its model is offline, and makes a mistake at first; name a real one to use one.
"""

from __future__ import annotations

import os

from pydantic import BaseModel, Field
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from agentq import Limits, ModelAgent
from agentq.agents.programs import run_python


class Numbers(BaseModel):
    """What to reckon with."""

    numbers: list[float] = Field(min_length=1, max_length=1000)


def _offline(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:  # noqa: ARG001
    """Stands in for a model: a program with a mistake, then one without, then what it printed."""
    parts = [part for message in messages for part in message.parts]
    found = [part for part in parts if isinstance(part, ToolReturnPart)]
    if found and found[-1].outcome == "success" and found[-1].content["code"] == 0:
        return ModelResponse([TextPart(found[-1].content["stdout"].strip())])
    if len(found) > 1:
        return ModelResponse([TextPart("I could not reckon it.")])
    given = next(str(part.content) for part in parts if isinstance(part, UserPromptPart)).partition(": ")[2]
    name = "statistic" if not found else "statistics"
    return ModelResponse([ToolCallPart("run_python", {"code": f"import {name}\nprint({name}.median({given}))"})])


code_runner = ModelAgent(
    "code-runner",
    model=os.environ.get("AGENTQ_CODE_RUNNER_MODEL") or FunctionModel(_offline, model_name="offline"),
    instructions="Reckon by a Python program. When it fails, read its error and mend it.",
    tools=[run_python],
    input=Numbers,
    prompt=lambda given: f"The median of: {given.numbers}",
    limits=Limits(model_calls=6, tool_calls=5),
)
