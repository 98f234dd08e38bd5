"""Rates as operators see and set them."""

from __future__ import annotations

from agentq.client.tenants import operator_name
from agentq.errors import InvalidInput, UnknownTenant
from agentq.step import valid_name
from agentq.store.operators import Operators
from agentq.store.rates import FLEET, RateRow, StoredRates


class ClientRates:
    """How often providers may be called; workers follow within seconds."""

    def __init__(self, rates: StoredRates, operators: Operators) -> None:
        self._rates = rates
        self._operators = operators

    def ls(self) -> list[RateRow]:
        """Every limit, set by an operator or learned from a provider."""
        return self._rates.limits()

    def set(
        self,
        provider: str,
        *,
        tenant: str | None = None,
        requests_per_min: int | None = None,
        tokens_per_min: int | None = None,
        reason: str,
    ) -> None:
        """
        Limit one tenant's calls to a provider, or without a tenant the whole fleet's.

        The fleet's limit is divided among the tenants that call, by weight; with neither requests nor
        tokens there is none. A limit that the provider told itself counts where it is lower.

        Raises:
            UnknownTenant, InvalidInput: there is none, or a limit is not above 0.
        """
        valid_name("provider", provider)
        for limit in (requests_per_min, tokens_per_min):
            if limit is not None and not 0 < limit <= 2_000_000_000:
                raise InvalidInput("a rate is a whole number above 0")
        if tenant is not None:
            valid_name("tenant", tenant)
            if not self._operators.is_tenant(tenant):
                raise UnknownTenant(tenant)
        self._rates.set(
            tenant or FLEET,
            provider,
            requests=requests_per_min,
            tokens=tokens_per_min,
            operator=operator_name(),
            reason=reason,
        )
