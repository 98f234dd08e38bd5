"""Prices: what a call costs, by the operator's price first, then by the list that comes with `genai-prices`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from agentq.errors import InvalidInput
from agentq.store.budgets import PriceRow

_MILLION = 1_000_000
_FRESH_S = 3.0

# What model libraries call a provider, where the price list has another name.
_PROVIDERS = {
    "openai-chat": "openai",
    "openai-responses": "openai",
    "google-gla": "google",
    "google-vertex": "google",
    "google-cloud": "google",
    "bedrock": "aws",
    "grok": "x-ai",
    "xai": "x-ai",
    "mistralai": "mistral",
}

# Models that run in the test's or the demo's own process.
_FREE = frozenset({"test", "function"})


@dataclass(frozen=True, slots=True)
class Quote:
    """What a call costs, and which price said so; no cost: nobody knows."""

    micros: int | None
    version: str | None


UNKNOWN = Quote(None, None)


def split(model: str, provider: str | None = None) -> tuple[str, str]:
    """
    A model's provider and name.

    Raises:
        InvalidInput: neither the name nor `provider` says whose model it is.
    """
    before, separator, name = model.partition(":")
    if provider is not None:
        return _PROVIDERS.get(provider, provider), name if separator and before == provider else model
    if not separator or not before or not name:
        raise InvalidInput(f"name the model as provider:model, not {model!r}, or give provider=")
    return _PROVIDERS.get(before, before), name


class Prices:
    """Quotes calls. The operator's prices are read again after a few seconds, so a change needs no restart."""

    def __init__(self, operators: Callable[[], Iterable[PriceRow]]) -> None:
        self._operators = operators
        self._known: dict[str, PriceRow] = {}
        self._until = 0.0
        self._lock = threading.Lock()

    def quote(
        self, provider: str, model: str, *, input_tokens: int, output_tokens: int, cached_tokens: int = 0
    ) -> Quote:
        """What so many tokens cost; rounded up to a micro, so that small calls are not free."""
        row = self._overrides().get(f"{provider}:{model}")
        if row is not None:
            fresh = max(input_tokens - cached_tokens, 0)
            millionths = (
                fresh * row.input_micros + cached_tokens * row.cached_micros + output_tokens * row.output_micros
            )
            return Quote(-(-millionths // _MILLION), f"operator/{row.revision}")
        if provider in _FREE:
            return Quote(0, "free")
        return _listed(provider, model, input_tokens, output_tokens, cached_tokens)

    def _overrides(self) -> dict[str, PriceRow]:
        with self._lock:
            if time.monotonic() >= self._until:
                self._known = {row.model: row for row in self._operators()}
                self._until = time.monotonic() + _FRESH_S
            return self._known


def _listed(provider: str, model: str, input_tokens: int, output_tokens: int, cached_tokens: int) -> Quote:
    """By the price list, offline; its list is never fetched anew behind the operator's back."""
    try:
        from genai_prices import Usage, calc_price
    except ImportError:
        return UNKNOWN
    usage = Usage(input_tokens=input_tokens, output_tokens=output_tokens, cache_read_tokens=cached_tokens)
    try:
        found = calc_price(usage, model_ref=model, provider_id=provider)
    except (LookupError, ValueError):
        return UNKNOWN
    micros = -int(-(found.total_price * _MILLION) // 1)
    return Quote(micros, f"genai-prices/{_list_version()}")


def _list_version() -> str:
    try:
        return version("genai-prices")
    except PackageNotFoundError:
        return "unknown"
