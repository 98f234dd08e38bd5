"""Listening: what a provider's answers say of its limits, heard where the model's own HTTP client receives them."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextvars import ContextVar, Token
from typing import Any, Protocol

# Where libraries keep the client within a model: a provider, an SDK's client, its HTTP client, a model that is wrapped.
_WITHIN = ("wrapped", "models", "provider", "_provider", "client", "_client", "http_client", "_http_client")
_DEEP = 5


class Hearer(Protocol):
    """A call that is out."""

    def hear(self, headers: Mapping[str, Any]) -> None:
        """The headers of an answer that came while it was out."""


_out: ContextVar[Hearer | None] = ContextVar("agentq_call", default=None)
_hooked: weakref.WeakSet[Any] = weakref.WeakSet()
_hooking = threading.Lock()


def call_out(call: Hearer) -> Token[Hearer | None]:
    """From here on, answers that come in this context are this call's."""
    return _out.set(call)


def call_back(token: Token[Hearer | None]) -> None:
    """The call is over."""
    # A callback may end it in another context than began it; there is nothing to restore there.
    with contextlib.suppress(ValueError):
        _out.reset(token)


def listen(model: object) -> None:
    """
    Hear the headers of whatever answers this model gets, also those that its library does not hand on.

    Through the response hooks of `httpx` and its kin. A model that speaks another way says nothing of its limits.
    """
    for client in _clients(model, _DEEP, set()):
        with _hooking:
            if client not in _hooked:
                hook = _hear_async if hasattr(client, "aclose") else _hear
                client.event_hooks = {**client.event_hooks, "response": [*client.event_hooks.get("response", ()), hook]}
                _hooked.add(client)


def _hear(response: Any) -> None:
    if (call := _out.get()) is not None:
        call.hear(response.headers)


async def _hear_async(response: Any) -> None:
    _hear(response)


def _clients(thing: object, deep: int, seen: set[int]) -> Iterator[Any]:
    """The HTTP clients within a model."""
    if thing is None or id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(getattr(thing, "event_hooks", None), dict):
        yield thing
        return
    if isinstance(thing, list | tuple):
        for part in thing:
            yield from _clients(part, deep, seen)
    elif deep:
        for name in _WITHIN:
            with contextlib.suppress(Exception):  # a property may need what is not there
                yield from _clients(getattr(thing, name, None), deep - 1, seen)
