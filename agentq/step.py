"""A step's name and address: the few ids that travel through the broker."""

from __future__ import annotations

import hashlib
import os
import re
import time
import uuid
from dataclasses import dataclass
from typing import Any

from agentq.errors import InvalidInput, InvalidName

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")


def valid_name(kind: str, name: object) -> str:
    """
    The name itself, when it is one.

    Raises:
        InvalidName: it is not text, or has characters outside `[a-z0-9_-]`.
    """
    if not isinstance(name, str) or not NAME.match(name):
        raise InvalidName(kind, name)
    return name


def new_id() -> uuid.UUID:
    """
    A time-ordered id (UUID version 7, RFC 9562), so that new rows land together in their index.

    The time in it is for locality alone; nothing reads it back.
    """
    milliseconds = time.time_ns() // 1_000_000
    bits = int.from_bytes(os.urandom(10), "big")
    value = (milliseconds & (2**48 - 1)) << 80 | 7 << 76 | (bits >> 68 & 0xFFF) << 64 | 2 << 62 | bits & (2**62 - 1)
    return uuid.UUID(int=value)


def span_id(*parts: object) -> int:
    """An id of 64 bits for OpenTelemetry, the same for the same parts, never zero."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") or 1


@dataclass(frozen=True, slots=True)
class StepRef:
    """
    Which step a message wakes. `epoch` counts its publications, for people reading logs; nothing decides by it.
    """

    tenant: str
    session_id: uuid.UUID
    step_id: uuid.UUID
    epoch: int = 0

    @classmethod
    def from_message(cls, ids: dict[str, Any]) -> StepRef:
        """
        Read the ids of a delivery.

        Raises:
            InvalidInput: an id is missing or malformed.
        """
        try:
            return cls(
                tenant=valid_name("tenant", ids["tenant"]),
                session_id=uuid.UUID(ids["session"]),
                step_id=uuid.UUID(ids["step"]),
                epoch=int(ids.get("epoch", 0)),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidInput(f"a step message needs tenant, session and step ids ({error!r})") from None

    def as_message(self) -> dict[str, Any]:
        """The ids as they travel: short, and nothing but ids."""
        return {
            "tenant": self.tenant,
            "session": str(self.session_id),
            "step": str(self.step_id),
            "epoch": self.epoch,
        }
