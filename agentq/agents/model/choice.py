"""Choices: each call may state why it is made, what else there was and how sure the model is, for the decision log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic_ai.messages import ModelResponse, ToolCallPart
from pydantic_ai.tools import ToolDefinition

FIELD = "choice"

# More than these says nothing to whoever reads the log, and a model must not be able to fill it.
_ALTERNATIVES_MAX = 8
_TEXT_MAX = 500

_REASON = {"type": "string", "description": "why this call, in one sentence"}
_ALTERNATIVES = {
    "type": "array",
    "description": "what else you considered",
    "items": {
        "type": "object",
        "properties": {
            "option": {"type": "string", "description": "another tool, other arguments, or another way"},
            "why_not": {"type": "string", "description": "why it is not taken, in one sentence"},
        },
        "required": ["option"],
    },
}
_CONFIDENCE = {"type": "number", "minimum": 0, "maximum": 1, "description": "how sure you are, from 0 to 1"}


@dataclass(frozen=True, slots=True)
class Stated:
    """What a model stated of a call, as far as it did."""

    tool: str
    reason: str | None = None
    alternatives: tuple[dict[str, str], ...] = ()
    confidence: float | None = None


def asked(definition: ToolDefinition, *, confidence: bool = True) -> ToolDefinition:
    """
    The tool with an optional `choice` among its arguments; one that has an argument of that name stays as it is.

    Without `confidence`, that is asked for elsewhere.
    """
    schema = definition.parameters_json_schema
    if not _is_added(schema):
        return definition
    parts = {"reason": _REASON, "alternatives": _ALTERNATIVES} | ({"confidence": _CONFIDENCE} if confidence else {})
    added = {
        "type": "object",
        "properties": parts,
        "description": "for the record: why you chose this; it changes nothing about what the tool does",
    }
    properties = {**schema.get("properties", {}), FIELD: added}
    return replace(definition, parameters_json_schema={**schema, "properties": properties})


def split(response: ModelResponse, schemas: Mapping[str, Mapping[str, Any]]) -> tuple[ModelResponse, dict[str, Stated]]:
    """
    The response as it would be if nothing had been asked, and what it states of each call.

    A statement in another form than was asked for is no fault of the call: what can be read of it is kept.
    """
    parts, stated = [], {}
    for part in response.parts:
        if not isinstance(part, ToolCallPart) or not _is_added(schemas.get(part.tool_name, {})):
            parts.append(part)
            continue
        bare, said = _of_call(part)
        parts.append(bare)
        if said is not None:
            stated[part.tool_call_id] = said
    return replace(response, parts=parts), stated


def without(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a stored call as the tool takes them."""
    return {name: value for name, value in arguments.items() if name != FIELD or not _is_added(schema)}


def reasons(stated: Sequence[Stated]) -> str | None:
    """Why the calls were made, in the model's words; with the tool's name where there are several."""
    said = [one for one in stated if one.reason]
    if len(said) == 1:
        return said[0].reason
    return "; ".join(f"{one.tool}: {one.reason}" for one in said) or None


def alternatives(stated: Sequence[Stated]) -> list[dict[str, str]]:
    """What else was considered, in the model's words; with what was called instead where there are several."""
    several = len(stated) > 1
    return [one | ({"instead": said.tool} if several else {}) for said in stated for one in said.alternatives]


def _is_added(schema: Mapping[str, Any]) -> bool:
    return FIELD not in schema.get("properties", {})


def _of_call(part: ToolCallPart) -> tuple[ToolCallPart, Stated | None]:
    try:
        arguments = dict(part.args_as_dict(raise_if_invalid=True))
    except (ValueError, AssertionError):
        return part, None  # not JSON: what is wrong with it is told elsewhere
    if FIELD not in arguments:
        return part, None
    said = arguments.pop(FIELD)
    bare = replace(part, args=arguments)
    if isinstance(said, str):
        return bare, Stated(part.tool_name, _text(said))
    if not isinstance(said, Mapping):
        return bare, None
    others = said.get("alternatives")
    listed = others if isinstance(others, list) else [] if others is None else [others]
    named = [one for one in map(_alternative, listed[:_ALTERNATIVES_MAX]) if one]
    return bare, Stated(part.tool_name, _text(said.get("reason")), tuple(named), _share(said.get("confidence")))


def _alternative(said: Any) -> dict[str, str]:
    if not isinstance(said, Mapping):
        said = {"option": said}
    option, why_not = _text(said.get("option")), _text(said.get("why_not"))
    return ({"alternative": option} | ({"why_not": why_not} if why_not else {})) if option else {}


def _text(said: Any) -> str | None:
    return said.strip()[:_TEXT_MAX] or None if isinstance(said, str) else None


def _share(said: Any) -> float | None:
    return float(said) if isinstance(said, int | float) and not isinstance(said, bool) and 0 <= said <= 1 else None
