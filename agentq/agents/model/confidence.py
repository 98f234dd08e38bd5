"""Confidence: each call states how sure the model is of it; below the agent's threshold a person decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic_ai.messages import ModelResponse, ToolCallPart
from pydantic_ai.tools import ToolDefinition

FIELD = "confidence"

_SCHEMA = {
    "type": "number",
    "minimum": 0,
    "maximum": 1,
    "description": "how sure you are that this is right, from 0 (a guess) to 1 (certain)",
}


def asked(definition: ToolDefinition) -> ToolDefinition:
    """The tool with confidence among its arguments; one that has such an argument already states it there."""
    schema = definition.parameters_json_schema
    if not _is_added(schema):
        return definition
    properties = {**schema.get("properties", {}), FIELD: _SCHEMA}
    more = {"properties": properties, "required": [*schema.get("required", ()), FIELD]}
    return replace(definition, parameters_json_schema={**schema, **more})


def split(response: ModelResponse, schemas: Mapping[str, dict[str, Any]]) -> tuple[ModelResponse, dict[str, float]]:
    """
    The response as it would be without confidence, and how sure it is of each call.

    A call that does not say it, or says something else than a number from 0 to 1, is a guess: 0.
    """
    parts, stated = [], {}
    for part in response.parts:
        if not isinstance(part, ToolCallPart) or part.tool_name not in schemas:
            parts.append(part)
            continue
        bare, stated[part.tool_call_id] = _of_call(part, _is_added(schemas[part.tool_name]))
        parts.append(bare)
    return replace(response, parts=parts), stated


def without(arguments: dict[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a stored call as the tool takes them."""
    return {name: value for name, value in arguments.items() if name != FIELD} if _is_added(schema) else arguments


def _of_call(part: ToolCallPart, added: bool) -> tuple[ToolCallPart, float]:
    try:
        arguments = dict(part.args_as_dict(raise_if_invalid=True))
    except (ValueError, AssertionError):
        return part, 0.0  # not JSON: what is wrong with it is told elsewhere
    said = arguments.pop(FIELD, None) if added else arguments.get(FIELD)
    if not isinstance(said, int | float) or isinstance(said, bool) or not 0 <= said <= 1:
        said = 0.0
    return replace(part, args=arguments), float(said)


def _is_added(schema: Mapping[str, Any]) -> bool:
    return FIELD not in schema.get("properties", {})
