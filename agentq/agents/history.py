"""A session's history: messages that are appended, never rewritten."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agentq.agents.means import Means
from agentq.engine import Attempt
from agentq.payload import bounded, decode, encode

_WRITER = "agentq/1"


class History:
    """
    The session's messages: appended, never rewritten.

    What is appended is stored with the step's settlement. Each step stores only what it adds.
    """

    def __init__(self, attempt: Attempt, means: Means) -> None:
        self._attempt = attempt
        self._means = means
        self._stored: list[Any] | None = None
        self._added: list[tuple[Any, str]] = []

    def append(self, message: Any, *, by: str = _WRITER) -> None:
        """Add a message (anything with a JSON form) to the end; `by` names the format and version of its writer."""
        data = bounded("a message", encode(message), self._means.payload_max_bytes)
        self._added.append((decode(data), by))

    def __iter__(self) -> Iterator[Any]:
        return iter([*self._load(), *(message for message, _ in self._added)])

    def __len__(self) -> int:
        return len(self._load()) + len(self._added)

    def added(self) -> tuple[tuple[bytes, str], ...]:
        """What this attempt adds, encoded, with the writer's name."""
        return tuple((encode(message), by) for message, by in self._added)

    def rows(self) -> list[tuple[int, bytes, str]]:
        """The stored messages as they were written: position, body, writer."""
        return self._means.ledger.messages(self._attempt.claim.ref)

    def _load(self) -> list[Any]:
        if self._stored is None:
            self._stored = [decode(body) for _, body, _ in self.rows()]
        return self._stored
