"""Edits of a stored state: by path or as a whole, checked against the agent's state model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from agentq.agents.agent import Agent
from agentq.errors import InvalidInput, InvalidState, Permanent
from agentq.payload import decode, encode

Change = Mapping[str, Any] | Callable[[Any], Any]
"""Values by path (`amount_cents`, `lines.0.price`), or a function from the state as plain data to another."""

_SHOWN_MAX = 200
_MISSING = object()


def edited(
    agent: Agent[Any], state: bytes, change: Change, *, version: int | None = None, pinned: int | None = None
) -> tuple[bytes, list[dict[str, Any]]]:
    """
    The changed state as it is stored, and what differs: path, before, after.

    `version` wrote the state, `pinned` is what its session runs under; both are the agent's own unless given.
    Where only a newer agent is at hand, the state is edited as it is, and must be one that it can take over.

    Raises:
        InvalidState: it does not fit the agent's state model, or names a field that this does not have.
        InvalidInput: nothing is changed.
    """
    version, pinned = version or agent.version, pinned or agent.version
    try:
        if agent.version == pinned:
            state, version = encode(agent.read(state, version)), pinned
        elif version != pinned:
            raise InvalidState(agent.name, f"it is of version {version}, its session of {pinned}: use that one's code")
        before = decode(state)
        wanted = _with(before, change, agent.name) if isinstance(change, Mapping) else change(decode(state))
        if not isinstance(wanted, Mapping):
            raise InvalidState(agent.name, f"a state is a mapping, not {type(wanted).__name__}")
        read = encode(agent.read(encode(wanted), version))
    except Permanent as error:
        raise InvalidState(agent.name, f"{error}{_how_to_write_text(change, str(error))}") from None
    after_bytes = read if version == agent.version else encode(wanted)
    after = decode(after_bytes)
    # A model that ignores what it does not know would drop a misspelt field without a word.
    lost = sorted(set(_paths(wanted)) - set(_paths(before)) - set(_paths(after)))
    if lost:
        raise InvalidState(agent.name, f"its model has no {', '.join(lost[:5])}")
    differences = _differences(before, after)
    if not differences:
        raise InvalidInput("the edit changes nothing")
    return after_bytes, differences


def _how_to_write_text(change: Change, error: str) -> str:
    """A hint where a number was read and a text is wanted, which on a command line look alike."""
    if not isinstance(change, Mapping) or "valid string" not in error:
        return ""
    path = next((path for path, value in change.items() if isinstance(value, bool | int | float)), None)
    return "" if path is None else f"; a text that looks like a number is written {path}='\"{change[path]}\"'"


def parse_assignments(texts: tuple[str, ...]) -> dict[str, Any]:
    """
    `path=value` pairs; a value is JSON where it reads as such, else text.

    Raises:
        InvalidInput: one has no path or no `=`.
    """
    found: dict[str, Any] = {}
    for text in texts:
        path, sign, value = text.partition("=")
        if not sign or not path.strip() or not all(path.strip().split(".")):
            raise InvalidInput(f"{text!r} is no edit: use path=value, such as amount_cents=1200 or lines.0.note=hello")
        try:
            found[path.strip()] = json.loads(value)
        except ValueError:
            found[path.strip()] = value
    return found


def _with(before: Any, changes: Mapping[str, Any], agent: str) -> Any:
    state = json.loads(json.dumps(before))
    for path, value in changes.items():
        *above, last = path.split(".")
        holder = state
        for part in above:
            holder = _below(holder, part, path, agent)
        if isinstance(holder, list):
            _below(holder, last, path, agent)
            holder[int(last)] = value
        elif isinstance(holder, dict):
            holder[last] = value
        else:
            raise InvalidState(agent, f"there is nothing to set at {path}")
    return state


def _below(holder: Any, part: str, path: str, agent: str) -> Any:
    try:
        return holder[int(part)] if isinstance(holder, list) else holder[part]
    except (LookupError, TypeError, ValueError):
        raise InvalidState(agent, f"there is nothing at {path}") from None


def _paths(value: Any, at: str = "") -> list[str]:
    if isinstance(value, Mapping):
        return [path for name, item in value.items() for path in _paths(item, f"{at}.{name}" if at else str(name))]
    return [at]


def _differences(before: Any, after: Any, at: str = "") -> list[dict[str, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        found = []
        for name in {**before, **after}:
            path = f"{at}.{name}" if at else str(name)
            found += _differences(before.get(name, _MISSING), after.get(name, _MISSING), path)
        return found
    if before is _MISSING or after is _MISSING or json.dumps(before) != json.dumps(after):
        return [{"path": at, "before": _shown(before), "after": _shown(after)}]
    return []


def _shown(value: Any) -> Any:
    if value is _MISSING:
        return None
    text = json.dumps(value, ensure_ascii=False)
    return value if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}… ({len(text):,} characters)"
