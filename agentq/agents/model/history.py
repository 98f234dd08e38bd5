"""The history: a session's messages between their stored form and what a model is sent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pydantic_ai
from pydantic import TypeAdapter, ValidationError
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    ToolCallPart,
    ToolReturnPart,
)

from agentq.errors import Permanent
from agentq.payload import decode

# The writer of records that say what is shown of the messages before them; see `agentq.agents.model.compaction`.
COMPACTION = "agentq/compaction-1"
WRITER = f"pydantic-ai/{pydantic_ai.__version__}"

History = list[ModelMessage]
View = Callable[[History], History]

# A stored row by its number, or what a compaction put in the place of some.
Source = int | dict[str, Any]

_ONE: TypeAdapter[ModelMessage] = TypeAdapter(ModelMessage)


def to_store(message: ModelMessage) -> dict[str, Any]:
    """A message as it is stored: what is not set is left out, at its two levels of structure."""
    facts: dict[str, Any] = _ONE.dump_python(message, mode="json")
    facts["parts"] = [_set(part) for part in facts["parts"]]
    if usage := facts.get("usage"):
        facts["usage"] = {name: value for name, value in usage.items() if value}
    return _set(facts)


@dataclasses.dataclass(frozen=True, slots=True)
class Shown:
    """A history as a model is shown it, what each message of it is made of, and how the provider counted it."""

    history: History
    sources: list[tuple[Source, ...]]
    counted: bool  # the latest answer was given to this history, and not to one that was longer
    summary: str | None = None

    def sources_of(self, messages: History) -> list[tuple[Source, ...]]:
        """What messages are made of: those of this history of their rows, others of themselves."""
        found: list[tuple[Source, ...]] = []
        begin = 0
        for message in messages:
            places = (n for n in range(begin, len(self.history)) if self.history[n] == message)
            place = next(places, None)
            if place is None:
                found.append(({"message": to_store(message)},))
            else:
                found.append(self.sources[place])
                begin = place + 1
        return found


def read(stored: Iterable[tuple[int, bytes, str]]) -> History:
    """
    The history as it is shown now, requests that follow one another merged into one, tool returns in the order of
    the calls.

    Raises:
        Permanent: a message cannot be read by this code. No retry and no repair would help.
    """
    return read_shown(stored).history


def read_whole(stored: Iterable[tuple[int, bytes, str]]) -> History:
    """As `read`, with everything that a compaction no longer shows."""
    return read_shown(row for row in stored if row[2] != COMPACTION).history


def read_shown(stored: Iterable[tuple[int, bytes, str]]) -> Shown:
    """As `read`, with what the history is made of."""
    rows = list(stored)
    messages = [row for row in rows if row[2] != COMPACTION]
    latest = next((row for row in reversed(rows) if row[2] == COMPACTION), None)
    items: list[tuple[Source, Any]]
    summary = None
    try:
        if latest is None:
            items = [(number, decode(body)) for number, body, _ in messages]
        else:
            # What is not shown is not decoded either: a turn costs what it shows.
            by_number = {number: body for number, body, _ in messages}
            shows = _unpacked(decode(latest[1])["compaction"]["shows"], sorted(by_number))
            items = [(s, decode(by_number[s]) if isinstance(s, int) else s["message"]) for s in shows]
            items += [(number, decode(body)) for number, body in by_number.items() if number > latest[0]]
            summary = next((str(s["summary"]) for s in shows if isinstance(s, dict) and "summary" in s), None)
        read = ModelMessagesTypeAdapter.validate_python([message for _, message in items])
    except (ValidationError, ValueError, KeyError, TypeError):
        raise Permanent(_unreadable(rows)) from None
    merged: History = []
    sources: list[tuple[Source, ...]] = []
    for (source, _), message in zip(items, read, strict=True):
        last = merged[-1] if merged else None
        if isinstance(message, ModelRequest) and isinstance(last, ModelRequest):
            merged[-1] = dataclasses.replace(last, parts=[*last.parts, *message.parts])
            sources[-1] = (*sources[-1], source)
        else:
            merged.append(message)
            sources.append((source,))
    answers = [number for (number, _), message in zip(items, read, strict=True) if isinstance(message, ModelResponse)]
    counted = latest is None or any(isinstance(number, int) and number > latest[0] for number in answers)
    return Shown([_in_order(merged, number) for number in range(len(merged))], sources, counted, summary)


def packed(sources: Iterable[tuple[Source, ...]]) -> list[Any]:
    """Sources as a record keeps them: rows that follow one another as their first and last."""
    shows: list[Any] = []
    for source in (source for of_message in sources for source in of_message):
        if isinstance(source, int) and shows and isinstance(shows[-1], list) and shows[-1][1] == source - 1:
            shows[-1][1] = source
        else:
            shows.append([source, source] if isinstance(source, int) else source)
    return shows


def _unpacked(shows: Sequence[Any], numbers: Sequence[int]) -> list[Source]:
    sources: list[Source] = []
    for show in shows:
        if isinstance(show, list):
            first, last = show
            sources += [number for number in numbers if first <= number <= last]
        else:
            sources.append(show)
    return sources


def tool_returns(history: History) -> dict[str, ToolReturnPart]:
    """What came back for the calls of the last response, by call."""
    if not history or not isinstance(history[-1], ModelRequest):
        return {}
    return {part.tool_call_id: part for part in history[-1].parts if isinstance(part, ToolReturnPart)}


def tool_calls(history: History) -> dict[str, ToolCallPart]:
    """The calls of the model's latest answer."""
    response = last_response(history)
    parts = response.parts if response else ()
    return {part.tool_call_id: part for part in parts if isinstance(part, ToolCallPart)}


def stored_results(history: History) -> dict[str, str]:
    """The effect keys of results that were too long for the conversation, by call."""
    return {
        part.tool_call_id: str(part.metadata["effect"])
        for message in history
        if isinstance(message, ModelRequest)
        for part in message.parts
        if isinstance(part, ToolReturnPart) and isinstance(part.metadata, dict) and "effect" in part.metadata
    }


def last_response(history: History) -> ModelResponse | None:
    """The model's latest answer."""
    return next((message for message in reversed(history) if isinstance(message, ModelResponse)), None)


def drop_old_tool_results(keep: int = 10) -> View:
    """
    Shows the latest tool results whole, and of the older ones only that there were some.

    A view of an agent (`view=`), asked before each request, or a hook of its compaction.
    """

    def view(history: History) -> History:
        returns = [
            (number, index)
            for number, message in enumerate(history)
            if isinstance(message, ModelRequest)
            for index, part in enumerate(message.parts)
            if isinstance(part, ToolReturnPart)
        ]
        old = set(returns[:-keep] if keep else returns)
        return [
            dataclasses.replace(
                message,
                parts=[_dropped(part) if (number, index) in old else part for index, part in enumerate(message.parts)],
            )
            if isinstance(message, ModelRequest)
            else message
            for number, message in enumerate(history)
        ]

    view.__name__ = f"drop_old_tool_results({keep})"
    return view


def sliding_window(keep: int = 40) -> View:
    """Shows the first request and the latest messages; no call without its return. A view, or a hook."""

    def view(history: History) -> History:
        if len(history) <= keep + 1:
            return history
        tail = history[-keep:]
        while tail and not _may_begin(tail[0]):
            tail = tail[1:]
        return [history[0], *tail] if tail else list(history)

    view.__name__ = f"sliding_window({keep})"
    return view


def _may_begin(message: ModelMessage) -> bool:
    """After the first request a response follows; its calls and their returns are then both in the view."""
    return isinstance(message, ModelResponse)


def _dropped(part: Any) -> Any:
    return dataclasses.replace(part, content="[an older result, no longer shown]") if _long(part) else part


def _long(part: Any) -> bool:
    return isinstance(part, ToolReturnPart) and len(part.model_response_str()) > 80


def _in_order(messages: History, number: int) -> ModelMessage:
    """A request whose tool returns stand in the order of the calls, ahead of everything else."""
    message = messages[number]
    before = messages[number - 1] if number else None
    if not isinstance(message, ModelRequest) or not isinstance(before, ModelResponse):
        return message
    place = {part.tool_call_id: index for index, part in enumerate(before.parts) if isinstance(part, ToolCallPart)}
    returns = [part for part in message.parts if isinstance(part, ToolReturnPart)]
    rest = [part for part in message.parts if not isinstance(part, ToolReturnPart)]
    returns.sort(key=lambda part: place.get(part.tool_call_id, len(place)))
    return dataclasses.replace(message, parts=[*returns, *rest])


def _set(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None or name == "content"}


def _unreadable(rows: Sequence[tuple[int, bytes, str]]) -> str:
    for seq, body, writer in rows:
        if writer == COMPACTION:
            continue
        try:
            ModelMessagesTypeAdapter.validate_python([decode(body)])
        except (ValidationError, ValueError):
            return (
                f"message {seq} of the history was written by {writer}, and this process ({WRITER}) cannot read it: "
                "deploy code that reads it to every worker before one that writes it"
            )
    return f"the history cannot be read by {WRITER}"


__all__ = [
    "WRITER",
    "drop_old_tool_results",
    "last_response",
    "read",
    "sliding_window",
    "stored_results",
    "to_store",
    "tool_calls",
    "tool_returns",
]
