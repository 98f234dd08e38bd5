"""Embedders without a model: a number for each of a few senses."""

from __future__ import annotations

from collections.abc import Sequence

from agentq import Embedder

SENSES = (("tea", "oolong", "drink"), ("car", "vehicle", "drive"), ("rain", "weather", "storm"))


def senses(texts: Sequence[str], kind: str) -> list[list[float]]:
    """How often each sense is in a text, after a number that all texts have."""
    return [[0.1] + [float(sum(word in text.lower() for word in sense)) for sense in SENSES] for text in texts]


async def slowly(texts: Sequence[str], kind: str) -> list[list[float]]:
    """The same, as a provider's client would."""
    return senses(texts, kind)


free = Embedder("senses", senses)
priced = Embedder("senses", slowly, model="test:senses")
unpriced = Embedder("senses", senses, model="acme:nobody-knows-its-price")
no_embedder = senses
