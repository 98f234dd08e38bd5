"""Budgets and prices as producers and operators see and set them."""

from __future__ import annotations

import uuid
from decimal import Decimal

from agentq.client.tenants import operator_name
from agentq.errors import InvalidInput, UnknownSession, UnknownTenant
from agentq.policies.prices import split
from agentq.step import valid_name
from agentq.store.budgets import AlertRow, BudgetRow, Budgets, Mismatch, PriceRow, ReservationRow, WindowRow
from agentq.store.operators import Operators

Money = Decimal | float | int | str

_MOST_MICROS = 10**15


class ClientBudgets:
    """What may be spent, what is, and on what; in force for the next call on every worker."""

    def __init__(self, budgets: Budgets, operators: Operators) -> None:
        self._budgets = budgets
        self._operators = operators

    def set(
        self,
        tenant: str,
        *,
        scope: str = "tenant",
        subject: str = "",
        period: str = "day",
        cost_usd: Money | None = None,
        tokens: int | None = None,
        on_refusal: str | None = None,
        reason: str,
    ) -> None:
        """
        Set one limit of a tenant; with neither cost nor tokens it is taken away.

        `scope` is tenant, agent, provider or session; `subject` the agent, the provider, or for sessions an
        agent's name or a session's id (empty: every session). `period` is day or month, for sessions always
        session; windows open at midnight UTC. `on_refusal`: `wait` until the window opens, `park` for a
        person, or `end`; by default `wait`, for sessions `park`.

        Raises:
            UnknownTenant, InvalidInput: there is none, or the limit makes no sense.
        """
        valid_name("tenant", tenant)
        period = "session" if scope == "session" else period
        chosen = on_refusal or ("park" if scope == "session" else "wait")
        check_limit(scope, subject, period, chosen)
        if tokens is not None and tokens < 0:
            raise InvalidInput("tokens cannot be negative")
        if not self._operators.is_tenant(tenant):
            raise UnknownTenant(tenant)
        self._budgets.set_budget(
            tenant,
            scope,
            subject,
            period,
            micros=None if cost_usd is None else to_micros(cost_usd),
            tokens=tokens,
            on_refusal=chosen,
            operator=operator_name(),
            reason=reason,
        )

    def ls(self, tenant: str | None = None) -> list[BudgetRow]:
        """The limits that were set."""
        return self._budgets.budgets(tenant)

    def windows(self, tenant: str | None = None, session: str | None = None) -> list[WindowRow]:
        """What has been spent and is held in the windows that are open now; with a session, its own."""
        return self._budgets.windows(tenant, None if session is None else _uuid(tenant or "", session))

    def ledger(self, tenant: str, session: str, *, children: bool = True) -> list[ReservationRow]:
        """Every reserved call of a session, and of its children, and what it was charged."""
        return self._budgets.ledger(valid_name("tenant", tenant), _uuid(tenant, session), children=children)

    def alerts(self, tenant: str | None = None, *, limit: int = 50) -> list[AlertRow]:
        """Budgets that passed half, four fifths or all of their limit."""
        return self._budgets.alerts(tenant, limit)

    def check(self, tenant: str | None = None) -> list[Mismatch]:
        """Add every call up again; what does not reconcile, which should be nothing."""
        return self._budgets.check(tenant)

    def prices(self) -> list[PriceRow]:
        """The operator's prices, which go before the list's."""
        return self._budgets.prices()

    def set_price(
        self, model: str, *, input_usd: Money, output_usd: Money, cached_usd: Money | None = None, reason: str
    ) -> None:
        """Set what a model (`provider:name`) costs for a million tokens; workers follow within seconds."""
        name = ":".join(split(model))
        rates = [to_micros(sum_) for sum_ in (input_usd, output_usd, input_usd if cached_usd is None else cached_usd)]
        self._budgets.set_price(name, (rates[0], rates[1], rates[2]), operator=operator_name(), reason=reason)

    def remove_price(self, model: str, *, reason: str) -> bool:
        """Take the operator's price away, so that the list's counts again; False when there was none."""
        return self._budgets.set_price(":".join(split(model)), None, operator=operator_name(), reason=reason)


def check_limit(scope: str, subject: str, period: str, on_refusal: str) -> None:
    """
    Refuse a limit that could never govern anything.

    Raises:
        InvalidInput: and says which part of it.
    """
    if scope not in ("tenant", "agent", "provider", "session"):
        raise InvalidInput(f"a budget is of a tenant, agent, provider or session, not of {scope!r}")
    if scope == "tenant" and subject:
        raise InvalidInput("a tenant's budget has no subject")
    if scope in ("agent", "provider") and not subject:
        raise InvalidInput(f"say which {scope} the budget is of")
    if scope != "session" and period not in ("day", "month"):
        raise InvalidInput(f"the period of a budget is day or month, not {period!r}")
    if on_refusal not in ("wait", "park", "end"):
        raise InvalidInput(f"a refused call may wait, park or end, not {on_refusal!r}")
    if scope == "session" and on_refusal == "wait":
        raise InvalidInput("a session's budget never opens again: choose park or end")


def to_micros(usd: Money) -> int:
    """
    A sum in dollars as micros.

    Raises:
        InvalidInput: it is no sum of money, or larger than anybody has.
    """
    try:
        micros = Decimal(str(usd)) * 1_000_000
        if micros.is_finite() and 0 <= micros <= _MOST_MICROS:
            return int(-(-micros // 1))
    except ArithmeticError:
        pass
    raise InvalidInput(f"{usd!r} is not a sum of money in dollars")


def _uuid(tenant: str, session: str) -> uuid.UUID:
    try:
        return uuid.UUID(session)
    except (ValueError, AttributeError, TypeError):
        raise UnknownSession(tenant, str(session)) from None
