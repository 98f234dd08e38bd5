"""Keys and tokens as operators handle them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from agentq.agents.returns import Duration, seconds
from agentq.client.tenants import operator_name
from agentq.errors import InvalidInput, UnknownTenant
from agentq.step import valid_name
from agentq.store.keyring import Keyring, KeyRow
from agentq.store.operators import Operators
from agentq.store.resealing import Resealed
from agentq.store.tokens import TokenRow, Tokens


class ClientKeys:
    """Data keys of tenants: listed, rotated, rewrapped."""

    def __init__(self, keyring: Keyring, operators: Operators) -> None:
        self._keyring = keyring
        self._operators = operators

    def ls(self, tenant: str | None = None) -> list[KeyRow]:
        """The keys of one tenant, or of all."""
        return self._keyring.ls(tenant)

    def rotate(self, tenant: str, *, reason: str) -> int:
        """
        Give a tenant a new data key for what it writes from now on; its number. As `Keyring.rotate`.

        Raises:
            UnknownTenant: there is none.
        """
        known_tenants(self._operators, (tenant,))
        return self._keyring.rotate(tenant, operator=operator_name(), reason=_said(reason))

    def reseal(self, tenant: str, *, reason: str, dry_run: bool = False) -> Resealed:
        """
        Seal under the tenant's present key what is in plain or under an older one; what was. As `Keyring.reseal`.

        Raises:
            UnknownTenant: there is none.
        """
        known_tenants(self._operators, (tenant,))
        return self._keyring.reseal(tenant, operator=operator_name(), reason=_said(reason), dry_run=dry_run)

    def to_rewrap(self, tenant: str | None = None) -> int:
        """How many data keys `rewrap` would touch."""
        return self._keyring.to_rewrap(tenant)

    def rewrap(self, tenant: str | None = None, *, reason: str) -> int:
        """Wrap data keys by the provider's present key; how many. As `Keyring.rewrap`."""
        return self._keyring.rewrap(tenant, operator=operator_name(), reason=_said(reason))


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token at the only moment when it is to be seen."""

    id: str
    token: str

    def __repr__(self) -> str:
        return f"<token {self.id}>"


class ClientTokens:
    """Tokens for producers that have only the broker."""

    def __init__(self, tokens: Tokens, operators: Operators) -> None:
        self._tokens = tokens
        self._operators = operators

    def create(
        self,
        name: str,
        *,
        tenants: Sequence[str],
        agents: Sequence[str] | None = None,
        expires: Duration | None = "365d",
        reason: str,
    ) -> NewToken:
        """
        A token for these tenants, and of their agents for these (None: every one). It cannot be shown again.

        Raises:
            UnknownTenant, InvalidInput: a tenant is not there, or a name is none.
        """
        if not name.strip() or len(name) > 200:
            raise InvalidInput("a token needs a name of at most 200 characters: who uses it")
        if not tenants:
            raise InvalidInput("a token needs a tenant")
        known_tenants(self._operators, tenants)
        chosen = sorted({valid_name("agent", agent) for agent in agents}) if agents else None
        token_id, token = self._tokens.create(
            name.strip(),
            tenants=sorted(set(tenants)),
            agents=chosen,
            expires_s=seconds(expires) if expires is not None else None,
            operator=operator_name(),
            reason=_said(reason),
        )
        return NewToken(str(token_id), token)

    def ls(self, tenant: str | None = None) -> list[TokenRow]:
        """Every token, the newest first, without itself."""
        return self._tokens.ls(tenant)

    def find(self, prefix: str) -> uuid.UUID:
        """The token whose id begins so."""
        return self._tokens.find(prefix)

    def revoke(self, token_id: str, *, reason: str) -> bool:
        """Let nobody in with it any more, from the next submission on; False when it was revoked already."""
        return self._tokens.revoke(self.find(token_id), operator=operator_name(), reason=_said(reason))


def known_tenants(operators: Operators, names: Sequence[str]) -> None:
    """
    Return when each of them is there.

    Raises:
        UnknownTenant, InvalidInput: one is not, or is no name.
    """
    known = operators.known([valid_name("tenant", name) for name in names])
    for name in names:
        if name not in known:
            raise UnknownTenant(name)


def _said(reason: str) -> str:
    if not reason.strip():
        raise InvalidInput("a reason must say something")
    return reason
