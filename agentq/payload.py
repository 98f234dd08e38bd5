"""
Payloads: JSON as bytes, and states as a snapshot with the changes since.

A state of a few hundred bytes is stored whole with each checkpoint. A larger one is stored as what
changed, until the changes outweigh the snapshot or are too many to read quickly; then a new snapshot is
due. So the bytes written over a session stay within twice the bytes it really changed, and one part in
`DELTAS_MAX` of the state for each step, however long it runs.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_core import from_json, to_json

from agentq.errors import PayloadTooLarge

# Below this size the bookkeeping of a delta costs more than it saves.
WHOLE_BELOW_BYTES = 2048
# Each is one more row to read at every claim.
DELTAS_MAX = 256


def encode(value: Any) -> bytes:
    """
    The value as JSON bytes.

    Raises:
        TypeError: it has no JSON form; the message names the type, never the value.
    """
    try:
        return value.model_dump_json().encode() if isinstance(value, BaseModel) else to_json(value)
    except ValueError as error:  # pydantic's PydanticSerializationError
        raise TypeError(f"{type(value).__name__} cannot be stored as JSON: {error}") from None


def decode(data: bytes) -> Any:
    """The value of JSON bytes."""
    return from_json(data)


def bounded(what: str, data: bytes, max_bytes: int) -> bytes:
    """
    The data itself, when it is small enough to store.

    Raises:
        PayloadTooLarge: it is not.
    """
    if len(data) > max_bytes:
        raise PayloadTooLarge(what, len(data), max_bytes)
    return data


def storable(text: str) -> str:
    """The text without what a text column refuses: zero characters and halves of surrogate pairs."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def readable(data: bytes) -> Any:
    """A stored payload for people to look at: decoded, or, where it is no JSON, as the text that it is."""
    try:
        return decode(data)
    except ValueError:
        return data.decode("utf-8", "replace")


def fingerprint(*parts: bytes) -> bytes:
    """A digest that tells whether two requests mean the same."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def canonical(value: Any) -> bytes:
    """JSON bytes that depend neither on the order in which a mapping was filled nor on that of a set."""
    return to_json(_ordered(from_json(encode(_sets_sorted(value)))))


def _sets_sorted(value: Any) -> Any:
    """Sets as sorted lists: in JSON they have the order of this process's hashes, which the next one does not have."""
    match value:
        case BaseModel():
            return _sets_sorted(value.model_dump())
        case set() | frozenset():
            return sorted(map(_sets_sorted, value), key=to_json)
        case dict():
            return {name: _sets_sorted(item) for name, item in value.items()}
        case list() | tuple():
            return [_sets_sorted(item) for item in value]
        case _:
            return value


def _ordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _ordered(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_ordered(item) for item in value]
    return value


def fold(states: tuple[bytes, ...]) -> bytes:
    """A snapshot with its changes applied, oldest first."""
    if len(states) == 1:
        return states[0]
    state = from_json(states[0])
    for change in states[1:]:
        _apply(state, from_json(change))
    return to_json(state)


def choose(before: tuple[bytes, ...] | None, after: bytes) -> tuple[Literal["full", "delta", "same"], bytes | None]:
    """How to store the state `after`, given how the one before is stored."""
    if before is None:
        return "full", after
    if len(before) == 1 and before[0] == after:
        return "same", None
    if len(after) < WHOLE_BELOW_BYTES:
        return "full", after
    old, new = from_json(fold(before)), from_json(after)
    if _same(old, new):
        return "same", None
    change = to_json(_difference(old, new)) if isinstance(old, dict) and isinstance(new, dict) else after
    if len(before) <= DELTAS_MAX and sum(map(len, before[1:])) + len(change) < len(before[0]):
        return "delta", change
    return "full", after


def _difference(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Field by field: dropped, set anew, or (lists and texts that only grew) the tail."""
    change: dict[str, Any] = {}
    if gone := [name for name in old if name not in new]:
        change["drop"] = gone
    for name, value in new.items():
        if name in old and _same(old[name], value):
            continue
        before = old.get(name)
        if type(before) is type(value) and isinstance(value, list | str) and before and _begins(value, before):
            change.setdefault("grow", {})[name] = value[len(before) :]
        else:
            change.setdefault("set", {})[name] = value
    return change


def _same(one: Any, other: Any) -> bool:
    """Alike as JSON. Not `==`, for which 1, 1.0 and true are the same, and so are two orders of keys."""
    return to_json(one) == to_json(other)


def _begins(value: Any, before: Any) -> bool:
    return value.startswith(before) if isinstance(value, str) else _same(value[: len(before)], before)


def _apply(state: dict[str, Any], change: dict[str, Any]) -> None:
    for name in change.get("drop", ()):
        state.pop(name, None)
    state.update(change.get("set", {}))
    for name, tail in change.get("grow", {}).items():
        state[name] = state[name] + tail
