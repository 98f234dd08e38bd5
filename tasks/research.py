"""
Research with parallel fetches: the files of one folder are read side by side, each in a step of its own.

A file that cannot be read fails alone, and the answer says so. Its model is offline; name a real one to use one.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, Field
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from agentq import Limits, ModelAgent, Permanent, ToolContext, tool

ROOT = Path(os.environ.get("AGENTQ_RESEARCH_FOLDER", "runbooks"))


class Topic(BaseModel):
    """What to look for."""

    word: str = Field(min_length=2, max_length=100)
    files: int = Field(8, ge=1, le=20, description="how many files are read at most")


@tool(idempotent=True)
def list_files(limit: int) -> list[str]:
    """The names of the files there are."""
    return sorted(path.name for path in ROOT.glob("*.md"))[:limit]


@tool(idempotent=True, retries=3)
def fetch(ctx: ToolContext, name: str) -> list[str]:
    """The lines of a file that are about the topic.

    Args:
        name: as `list_files` gives it
    """
    path = (ROOT / name).resolve()
    if path.parent != ROOT.resolve():  # a model does not choose folders
        raise Permanent(f"there is no file {name!r}")
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise Permanent(f"there is no file {name!r}") from None
    return [line.strip() for line in lines if ctx.input.word.lower() in line.lower()][:20]


def _offline(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:  # noqa: ARG001
    """Stands in for a model: lists the files, reads all of them at once, and reports."""
    parts = [part for message in messages for part in message.parts]
    found = [part for part in parts if isinstance(part, ToolReturnPart)]
    if not found:
        asked = next(str(part.content) for part in parts if isinstance(part, UserPromptPart))
        return ModelResponse([ToolCallPart("list_files", {"limit": int(asked.split()[-1])})])
    if len(found) == 1 and found[0].content:
        return ModelResponse([ToolCallPart("fetch", {"name": name}) for name in found[0].content])
    asked_for = [
        part.args_as_dict()["name"]
        for part in parts
        if isinstance(part, ToolCallPart)
        if part.args_as_dict().get("name")
    ]
    report = [
        f"{name}: {len(part.content)} lines" if part.outcome == "success" else f"{name}: could not be read"
        for name, part in zip(asked_for, found[1:], strict=False)
    ]
    return ModelResponse([TextPart("; ".join(report) or "There are no files.")])


research = ModelAgent(
    "research",
    model=os.environ.get("AGENTQ_RESEARCH_MODEL") or FunctionModel(_offline, model_name="offline"),
    instructions="Find out what the files say about the topic. Read them side by side. Name what you could not read.",
    tools=[list_files, fetch],
    input=Topic,
    prompt=lambda topic: f"Topic: {topic.word}. Files to read at most: {topic.files}",
    limits=Limits(model_calls=10, tool_calls=40),
)
