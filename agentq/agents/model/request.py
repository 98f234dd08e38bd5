"""One model request: through any provider of Pydantic AI, without retries of its own, always with max_tokens."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable
from typing import Any, Protocol

from pydantic_ai import direct
from pydantic_ai.messages import (
    FinalResultEvent,
    ModelRequest,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ToolCallPart,
)
from pydantic_ai.models import Model, ModelRequestParameters, infer_model
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage

from agentq.agents.model.history import History, last_response
from agentq.errors import ConfigError
from agentq.policies.budgets import estimate_tokens

ModelLike = Model | str | Callable[[], Model]

_OFFLINE = frozenset({"function", "test"})

_models: dict[tuple[int, str], Model] = {}

# Events of streamed text are stored this often, or at this many characters.
_FLUSH_S = 0.25
_FLUSH_CHARACTERS = 400


class Sink(Protocol):
    """Where streamed text goes."""

    async def __call__(self, text: str) -> None: ...


def resolve(model: ModelLike) -> Model:
    """
    The model itself; one that is named is made once per process, and used on its loop only.

    Raises:
        ConfigError: no such model, or its provider's package or key is missing.
    """
    if isinstance(model, Model):
        return model
    key = (os.getpid(), model if isinstance(model, str) else f"{model.__module__}.{model.__qualname__}:{id(model)}")
    found = _models.get(key)
    if found is None:
        try:
            found = infer_model(model) if isinstance(model, str) else model()
        except Exception as error:
            raise ConfigError(f"model {name_of(model)!r} cannot be used: {error}") from error
        _models[key] = found
    return found


def name_of(model: ModelLike) -> str:
    """A model's name for people and for prices, without making it."""
    if isinstance(model, str):
        return model
    return f"{model.system}:{model.model_name}" if isinstance(model, Model) else model.__qualname__


def estimate(history: History, instructions: str, parameters: ModelRequestParameters, *, counted: bool = True) -> int:
    """
    How many tokens the request will have.

    The provider's own count of the latest exchange, and a guess for what was added since. Not `counted`: the
    provider was asked with a longer history, so all of it is guessed.
    """
    latest = last_response(history) if counted else None
    if latest is not None and latest.usage.input_tokens:
        after = history[history.index(latest) + 1 :]
        return latest.usage.input_tokens + latest.usage.output_tokens + sum(map(_guess_message, after))
    schemas = [tool.parameters_json_schema for tool in (*parameters.function_tools, *parameters.output_tools)]
    described = "".join(tool.description or "" for tool in parameters.function_tools)
    return estimate_tokens(instructions + described) + estimate_tokens(schemas) + sum(map(_guess_message, history))


async def ask(
    model: Model, history: History, *, parameters: ModelRequestParameters, settings: ModelSettings, sink: Sink | None
) -> ModelResponse:
    """The model's answer; with a sink, its text goes there as it comes."""
    if sink is None:
        return await direct.model_request(model, history, model_settings=settings, model_request_parameters=parameters)
    batch = _Batch(sink)
    async with direct.model_request_stream(
        model, history, model_settings=settings, model_request_parameters=parameters
    ) as stream:
        async for event in stream:
            text = _text_of(event)
            if text:
                await batch.add(text)
    await batch.flush()
    return stream.get()


def tokens_by_kind(usage: RequestUsage) -> dict[str, int]:
    """The kinds that a provider tells apart within what went in and came out; those that it names."""
    kinds = {
        "cached_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "reasoning_tokens": usage.details.get("reasoning_tokens", 0),
        "audio_tokens": usage.input_audio_tokens + usage.output_audio_tokens,
    }
    return {kind: tokens for kind, tokens in kinds.items() if tokens}


def dependency(model: Model) -> str | None:
    """The name under which the fleet watches the model's provider; None for models that need none."""
    if model.system in _OFFLINE:
        return None
    return re.sub(r"[^a-z0-9_-]", "-", model.system.lower())


def estimate_messages(history: History) -> int:
    """How many tokens a history has, where nothing is known of tools and instructions."""
    return sum(map(_guess_message, history))


def _guess_message(message: Any) -> int:
    if isinstance(message, ModelRequest):
        return sum(estimate_tokens(str(getattr(part, "content", ""))) + 4 for part in message.parts)
    return sum(estimate_tokens(_text_in(part)) + 4 for part in message.parts)


def _text_in(part: Any) -> str:
    return part.args_as_json_str() if isinstance(part, ToolCallPart) else str(getattr(part, "content", ""))


def _text_of(event: Any) -> str:
    match event:
        case PartStartEvent(part=TextPart(content=text)):
            return text
        case PartDeltaEvent(delta=TextPartDelta(content_delta=text)):
            return text
        case FinalResultEvent():
            return ""
        case _:
            return ""


class _Batch:
    """Text on its way to the sink, a few times a second."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._held: list[str] = []
        self._since = time.monotonic()

    async def add(self, text: str) -> None:
        self._held.append(text)
        if time.monotonic() - self._since >= _FLUSH_S or sum(map(len, self._held)) >= _FLUSH_CHARACTERS:
            await self.flush()

    async def flush(self) -> None:
        text, self._held = "".join(self._held), []
        self._since = time.monotonic()
        if text:
            await asyncio.shield(asyncio.ensure_future(self._send(text)))

    async def _send(self, text: str) -> None:
        await self._sink(text)
