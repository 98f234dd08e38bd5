"""
A long conversation with memory: a tea room that tells of its teas, and knows its guests when they come again.

Of a long visit the model is shown the latest part only: old results go first, then old messages, in a step of its own
(`Compaction`). What is to stay beyond that, and beyond the visit, goes into the guest's memory. Its model is offline;
name a real one to use one.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

from pydantic import BaseModel, Field
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from agentq import (
    Compaction,
    Limits,
    ModelAgent,
    ToolContext,
    drop_old_tool_results,
    memory_tools,
    sliding_window,
    tool,
)

_BOOK = tomllib.loads((Path(__file__).parent / "tea_room.toml").read_text("utf-8"))
TEAS: dict[str, str] = {name: " ".join(text.split()) for name, text in _BOOK["teas"].items()}
VISITS: list[dict[str, object]] = _BOOK["visits"]
_GONE = "(The guest has left.)"


class Visit(BaseModel):
    """Who comes, and what they will say, one line after another."""

    customer: str = Field(pattern=r"^[a-z0-9-]{1,60}$")
    lines: list[str] = Field(min_length=1)


@tool(idempotent=True)
def say(ctx: ToolContext, number: int, text: str) -> str:  # noqa: ARG001
    """Say something to the guest, and hear what they answer.

    Args:
        number: how many times you have spoken in this visit, this time included
        text: what you say
    """
    lines = ctx.input.lines
    return f"{number}. {lines[number]}" if 0 <= number < len(lines) else f"{number}. {_GONE}"


@tool(idempotent=True)
def look_up(tea: str) -> str:
    """Look a tea up in the book of the house.

    Args:
        tea: its name, in small letters
    """
    return TEAS.get(tea, f"No such tea; there are {', '.join(TEAS)}.")


def _offline(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:  # noqa: ARG001
    """Stands in for a model: looks up teas, notes what lasts, and knows nothing but what it is shown."""
    returns = [part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
    if not returns:
        return _call("recall", question="usual, preferences, doctor")
    heard = [str(part.content) for part in returns if part.tool_name == "say"]
    number = int(heard[-1].partition(".")[0]) if heard else 0
    last = returns[-1]
    match last.tool_name:
        case "say":
            return _hear(heard[-1])
        case "recall":
            return _call("say", number=number + 1, text=_known(last))
        case "look_up":
            return _call("say", number=number + 1, text=str(last.content).partition(". Brew")[0])
        case _:
            return _call("say", number=number + 1, text="I shall keep that in mind.")


def _hear(answer: str) -> ModelResponse:
    """What a guest's line leads to."""
    number, _, line = answer.partition(". ")
    if _GONE in line:
        return ModelResponse([TextPart(f"served, {number} times spoken")])
    if fact := re.search(r"[Mm]y (doctor|usual)[^.!?,]*(forbids|is)[^.!?]*", line):
        return _call("remember", topic=fact.group(1), fact=f"The guest said: {fact.group(0)}.")
    if question := re.search(r"[Mm]y (doctor|usual)", line):
        return _call("recall", question=question.group(1))
    for name in TEAS:
        if name in line:
            return _call("look_up", tea=name)
    return _call("say", number=int(number) + 1, text="With pleasure.")


def _known(recalled: ToolReturnPart) -> str:
    """What was remembered, as it is said to the guest."""
    content = recalled.content if isinstance(recalled.content, dict) else {}
    facts = [fact["fact"] for fact in content.get("facts", ())]
    return f"I remember: {' '.join(facts)}" if facts else "I do not know yet."


def _call(name: str, **arguments: object) -> ModelResponse:
    return ModelResponse([ToolCallPart(name, arguments)])


tea_room = ModelAgent(
    "tea-room",
    model=os.environ.get("AGENTQ_TEA_ROOM_MODEL") or FunctionModel(_offline, model_name="offline"),
    input=Visit,
    prompt=lambda visit: f"A guest comes in and says: 0. {visit.lines[0]}",
    instructions=(
        "You run a tea room. Begin by recalling what you know of the guest, then speak with them until they leave. "
        "Look teas up before you tell of them, and remember what lasts: their usual, what they must not have."
    ),
    tools=[say, look_up, *memory_tools(lambda ctx: ("guests", ctx.input.customer), ttl="730d")],
    compaction=Compaction(above_tokens=600, by=(drop_old_tool_results(4), sliding_window(12))),
    limits=Limits(model_calls=200, tool_calls=200, wall="10m"),
)
