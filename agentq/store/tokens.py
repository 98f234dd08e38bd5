"""Tokens: what lets a producer in that has only the broker, for which tenants, and until when."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from agentq.errors import InvalidInput, TokenRefused
from agentq.step import new_id
from agentq.store.operators import record
from agentq.store.pool import ALL_TENANTS, Connection, Store, run
from agentq.store.queries import load

SQL = load("tokens")

# Of a form of its own, so that it can be taken out of whatever it is found in.
_TOKEN = re.compile(r"agq_([0-9a-f]{32})_[A-Za-z0-9_-]{43}")
_ANYWHERE = re.compile(rb"agq_[0-9a-f]{32}_[A-Za-z0-9_-]+")
_GONE = b"[token]"


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token as people see it: everything but itself."""

    token_id: uuid.UUID
    name: str
    tenants: tuple[str, ...]
    agents: tuple[str, ...] | None
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    used_at: datetime | None
    revoked_at: datetime | None
    state: str


class Tokens:
    """Made, checked and revoked. Only digests are stored: a token is shown once."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def create(
        self,
        name: str,
        *,
        tenants: Sequence[str],
        agents: Sequence[str] | None,
        expires_s: float | None,
        operator: str,
        reason: str,
    ) -> tuple[uuid.UUID, str]:
        """A new token: its id, and itself, which nobody can be told again."""
        token_id = new_id()
        token = f"agq_{token_id.hex}_{secrets.token_urlsafe(32)}"
        facts = {"tenants": list(tenants), "agents": list(agents) if agents is not None else None}
        parameters = facts | {
            "token": token_id, "name": name, "digest": _digest(token), "by": operator, "expires_s": expires_s,
        }  # fmt: skip
        with self.store.transaction(ALL_TENANTS) as connection:
            run(connection, SQL["create"], parameters)
            _record(connection, "token create", token_id, (operator, reason), facts | {"name": name})
        return token_id, token

    def admit(self, token: str, *, tenant: str, agent: str) -> None:
        """
        Return when the token lets this in; note that it was used.

        Raises:
            TokenRefused: it is not known, expired or revoked, or for other tenants or agents.
        """
        match = _TOKEN.fullmatch(token)
        rows = self.store.query_as(ALL_TENANTS, SQL["get"], {"token": uuid.UUID(match[1])}) if match else []
        # The same work whether or not there is such a token.
        _, name, digest, tenants, agents, live = rows[0] if rows else (None, "", bytes(32), [], None, False)
        if not (hmac.compare_digest(_digest(token), bytes(digest)) and live):
            raise TokenRefused("its token is not known, has expired or was revoked")
        if tenant not in tenants:
            raise TokenRefused(f"its token {name!r} is not for tenant {tenant!r}")
        if agents is not None and agent not in agents:
            raise TokenRefused(f"its token {name!r} is not for agent {agent!r}")
        self.store.query_as(ALL_TENANTS, SQL["used"], {"token": rows[0][0]})

    def guards(self, tenant: str) -> bool:
        """Whether some token is for this tenant: whoever has none does not submit for it."""
        return bool(self.store.query_as(ALL_TENANTS, SQL["guarded"], {"tenant": tenant})[0][0])

    def ls(self, tenant: str | None = None) -> list[TokenRow]:
        """Every token, the newest first; revoked and expired ones too."""
        rows = self.store.query_as(ALL_TENANTS, SQL["ls"], {"tenant": tenant})
        return [
            TokenRow(row[0], row[1], tuple(row[2]), tuple(row[3]) if row[3] is not None else None, *row[4:])
            for row in rows
        ]

    def find(self, prefix: str) -> uuid.UUID:
        """
        The token whose id begins so.

        Raises:
            InvalidInput: none or several do.
        """
        digits = prefix.replace("-", "").lower()
        if not digits or len(digits) > 32 or any(digit not in "0123456789abcdef" for digit in digits):
            raise InvalidInput(f"{prefix[:8]!r} is not the beginning of a token's id: see `agentq token ls`")
        bounds = {"low": uuid.UUID(digits.ljust(32, "0")), "high": uuid.UUID(digits.ljust(32, "f"))}
        rows = self.store.query_as(ALL_TENANTS, SQL["find"], bounds)
        if len(rows) != 1:
            raise InvalidInput(f"{'no token begins' if not rows else 'several tokens begin'} with {prefix}")
        found: uuid.UUID = rows[0][0]
        return found

    def revoke(self, token_id: uuid.UUID, *, operator: str, reason: str) -> bool:
        """Let nobody in with it any more; False when it was revoked already."""
        with self.store.transaction(ALL_TENANTS) as connection:
            if not run(connection, SQL["revoke"], {"token": token_id}):
                return False
            _record(connection, "token revoke", token_id, (operator, reason))
            return True


def _record(
    connection: Connection, action: str, token_id: uuid.UUID, by: tuple[str, str], detail: dict[str, Any] | None = None
) -> None:
    operator, reason = by
    target = str(token_id)
    record(connection, operator=operator, tenant=None, action=action, target=target, reason=reason, detail=detail)


def without_tokens(body: bytes) -> bytes:
    """The bytes with every token in them taken out, whatever they are: they may be kept or shown."""
    return _ANYWHERE.sub(_GONE, body)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
