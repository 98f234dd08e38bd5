"""Embedders: texts as vectors, by which memories are found by meaning."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from agentq.agents import loop
from agentq.errors import ConfigError, Permanent

if TYPE_CHECKING:
    from pydantic_ai.embeddings import EmbeddingModel

Kind = Literal["document", "query"]
Vectors = Sequence[Sequence[float]]

# Models take some 8,000 tokens; what is cut off is still found by its words.
TEXT_MAX = 16_000
DIMENSIONS_MAX = 2000


@dataclass(frozen=True, slots=True)
class Embedder:
    """
    Makes vectors of texts.

    `function` takes the texts and whether they are documents or a query, and returns a vector for each; it may
    be `async def`, and then runs on the process's loop. `name` is stored with each vector: vectors of two names
    are never compared, so change it whenever the vectors change. `model` (`provider:model`) is what budgets
    reserve and charge its calls as; without it they cost nothing.
    """

    name: str
    function: Callable[[Sequence[str], Kind], Vectors | Awaitable[Vectors]]
    model: str | None = None

    @classmethod
    def of(cls, model: str | EmbeddingModel, *, dimensions: int | None = None) -> Embedder:
        """
        An embedding model of Pydantic AI, or its name, such as `openai:text-embedding-3-small`.

        Raises:
            ConfigError: agentq[model] is not installed.
        """
        try:
            from pydantic_ai import Embedder as Known
        except ModuleNotFoundError as error:
            raise ConfigError("embedding models need Pydantic AI: install agentq[model]") from error
        known = Known(model, settings={"dimensions": dimensions} if dimensions else None)

        async def function(texts: Sequence[str], kind: Kind) -> Vectors:
            return (await known.embed(list(texts), input_type=kind)).embeddings

        name = model if isinstance(model, str) else f"{model.system}:{model.model_name}"
        return cls(f"{name}/{dimensions}" if dimensions else name, function, name)

    def embed(self, text: str, kind: Kind) -> tuple[float, ...]:
        """
        The text's vector. Waits in this thread, which must not be the loop's.

        Raises:
            Permanent: the function returned no vector.
        """
        made: Any = self.function([text[:TEXT_MAX]], kind)
        if inspect.isawaitable(made):
            made = loop.submit(_finish(made)).result()
        try:
            [vector] = made
            found = tuple(float(number) for number in vector)
        except (TypeError, ValueError):
            raise Permanent(f"embedder {self.name!r} did not return one vector for one text") from None
        if not 1 <= len(found) <= DIMENSIONS_MAX or not all(map(math.isfinite, found)) or not any(found):
            raise Permanent(f"embedder {self.name!r} returned no vector of 1 to {DIMENSIONS_MAX:,} numbers, not all 0")
        return found

    def mark(self, vector: Sequence[float]) -> str:
        """What is stored with a vector, so that only what compares is compared."""
        return f"{self.name}@{len(vector)}"


def load_embedder(name: str) -> Embedder | None:
    """
    The embedder that the settings name as module:name; None when they name none.

    Raises:
        ConfigError: it is not there, or is none.
    """
    if not name:
        return None
    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"memory_embedder must be module:name, and {name} is not: {type(error).__name__}") from None
    if not isinstance(found, Embedder):
        raise ConfigError(f"memory_embedder: {name} is no agentq.Embedder")
    return found


async def _finish(awaitable: Awaitable[Vectors]) -> Vectors:
    return await awaitable
