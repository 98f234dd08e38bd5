"""Budgets as rows: reserve before a call, settle after it, and add everything up again."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast

from psycopg.types.json import Jsonb

from agentq.store.operators import record
from agentq.store.pool import ALL_TENANTS, Store, run
from agentq.store.queries import load
from agentq.verdicts import Charge, Granted

SQL = load("budgets")

Scope = Literal["agent", "provider", "session", "tenant"]
Period = Literal["session", "day", "month"]
OnRefusal = Literal["wait", "park", "end"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A call as it is reserved: what it may use at most, and what that costs; no price: null."""

    reservation_id: str
    provider: str
    model: str
    input_tokens: int
    max_tokens: int
    micros: int | None
    price_version: str | None
    declared_micros: int | None = None
    declared_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Reserved:
    """The answer to a reservation; everything after `status` is said of a refusal alone."""

    status: Literal["ok", "refused", "superseded", "closed", "unpriced"]
    why: Literal["spent", "held", "never"] | None
    scope: Scope | None
    subject: str | None
    period: Period | None
    on_refusal: OnRefusal | None
    limit_micros: int | None
    limit_tokens: int | None
    spent_micros: int | None
    reserved_micros: int | None
    spent_tokens: int | None
    reserved_tokens: int | None
    wait_s: float | None


@dataclass(frozen=True, slots=True)
class BudgetRow:
    """A limit that an operator set."""

    tenant: str
    scope: str
    subject: str
    period: str
    cost_micros: int | None
    tokens: int | None
    on_refusal: str
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class WindowRow:
    """What a scope has used in a window, and the limit that governs it."""

    tenant: str
    scope: str
    subject: str
    period: str
    starts_at: datetime
    limit_micros: int | None
    limit_tokens: int | None
    on_refusal: str | None
    spent_micros: int
    reserved_micros: int
    spent_tokens: int
    reserved_tokens: int
    calls: int


@dataclass(frozen=True, slots=True)
class Tight:
    """A tenant's budget of which much is used."""

    tenant: str
    period: str
    limit_micros: int
    spent_micros: int
    reserved_micros: int


@dataclass(frozen=True, slots=True)
class ReservationRow:
    """One call: what was reserved for it, and what it came to."""

    reservation_id: str
    session_id: uuid.UUID
    step_id: uuid.UUID
    fence: int
    agent: str
    provider: str
    model: str
    state: str
    price_version: str | None
    input_tokens: int
    max_tokens: int
    reserved_micros: int | None
    used_input: int | None
    used_cached: int | None
    used_output: int | None
    charged_micros: int | None
    at: datetime
    settled_at: datetime | None
    settled_by: str | None
    note: str | None


@dataclass(frozen=True, slots=True)
class AlertRow:
    """A budget passed half, four fifths or all of its limit."""

    tenant: str
    scope: str
    subject: str
    period: str
    starts_at: datetime
    threshold: int
    at: datetime
    session_id: uuid.UUID | None
    detail: str | None


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A sum that is not that of its reservations."""

    tenant: str
    scope: str
    subject: str
    period: str
    starts_at: datetime
    what: str
    recorded: int
    added_up: int


@dataclass(frozen=True, slots=True)
class PriceRow:
    """An operator's price: micros of a dollar for a million tokens."""

    model: str
    input_micros: int
    output_micros: int
    cached_micros: int
    revision: int
    changed_at: datetime


class Budgets:
    """The tables of money."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def reserve(self, claim: Granted, wanted: Wanted) -> Reserved:
        """Reserve a call in all of its scopes, or learn which one refuses; asked again, the same answer."""
        [row] = self.store.query(
            SQL["reserve"],
            {
                "tenant": claim.ref.tenant,
                "session": claim.ref.session_id,
                "step": claim.ref.step_id,
                "fence": claim.fence,
                "token": claim.token,
                "id": wanted.reservation_id,
                "provider": wanted.provider,
                "model": wanted.model,
                "input": wanted.input_tokens,
                "max": wanted.max_tokens,
                "micros": wanted.micros,
                "price_version": wanted.price_version,
                "declared_micros": wanted.declared_micros,
                "declared_tokens": wanted.declared_tokens,
            },
        )
        return Reserved(*row)

    def settle(self, claim: Granted, charges: tuple[Charge, ...]) -> None:
        """Settle calls ahead of their step, before it makes another one; the step's settlement repeats them."""
        stated = Jsonb([charge.as_json() for charge in charges])
        ref = claim.ref
        self.store.query(
            SQL["settle_charges"],
            {
                "tenant": ref.tenant,
                "session": ref.session_id,
                "step": ref.step_id,
                "fence": claim.fence,
                "charges": stated,
                "by": "step",
            },
        )

    def settle_leaked(self, limit: int) -> int:
        """Charge, as estimated, the reservations whose attempt is gone; how many."""
        settled = 0
        for tenant, session, step, fence, charges in self.store.query(SQL["leaked"], {"max": limit}):
            parameters = {"tenant": tenant, "session": session, "step": step, "fence": fence, "by": "relay"}
            # One attempt to a transaction: its windows are locked in order only within one.
            settled += int(self.store.query(SQL["settle_charges"], parameters | {"charges": Jsonb(charges)})[0][0])
        return settled

    def check(self, tenant: str | None = None) -> list[Mismatch]:
        """Sums that do not reconcile with their reservations, of one tenant or of all."""
        return [Mismatch(*row) for row in self.store.query(SQL["check"], {"tenant": tenant or ALL_TENANTS})]

    def windows(self, tenant: str | None = None, session: uuid.UUID | None = None) -> list[WindowRow]:
        """The windows that are open now; with a session, its own."""
        parameters = {"tenant": tenant, "session": str(session) if session is not None else None}
        return [WindowRow(*row) for row in self.store.query_as(tenant or ALL_TENANTS, SQL["windows"], parameters)]

    def windows_of(self, tenants: Sequence[str]) -> list[WindowRow]:
        """The windows that are open now of these tenants' own budgets."""
        rows = self.store.query_as(ALL_TENANTS, SQL["windows_of"], {"tenants": list(tenants)})
        return [WindowRow(*row) for row in rows]

    def tightest(self, top: int) -> list[Tight]:
        """The tenants' own budgets of which most is used."""
        return [Tight(*row) for row in self.store.query_as(ALL_TENANTS, SQL["tightest"], {"top": top})]

    def ledger(self, tenant: str, session: uuid.UUID, *, children: bool = True) -> list[ReservationRow]:
        """Every call of a session (and of its children), in order."""
        parameters = {"tenant": tenant, "session": session, "children": children}
        return [ReservationRow(*row) for row in self.store.query_as(tenant, SQL["ledger"], parameters)]

    def budgets(self, tenant: str | None = None) -> list[BudgetRow]:
        """The limits that operators set."""
        rows = self.store.query_as(tenant or ALL_TENANTS, SQL["budgets"], {"tenant": tenant})
        return [BudgetRow(*row) for row in rows]

    def alerts(self, tenant: str | None = None, limit: int = 50) -> list[AlertRow]:
        """Thresholds that were passed, newest first."""
        rows = self.store.query_as(tenant or ALL_TENANTS, SQL["alerts"], {"tenant": tenant, "limit": limit})
        return [AlertRow(*row) for row in rows]

    def set_budget(
        self,
        tenant: str,
        scope: str,
        subject: str,
        period: str,
        *,
        micros: int | None,
        tokens: int | None,
        on_refusal: str,
        operator: str,
        reason: str,
    ) -> None:
        """Set one limit; with neither cost nor tokens it is taken away. In force for the next reservation."""
        key = {"tenant": tenant, "scope": scope, "subject": subject, "period": period}
        limit = {"micros": micros, "tokens": tokens, "on_refusal": on_refusal}
        with self.store.transaction(tenant) as connection:
            gone = micros is None and tokens is None
            run(connection, SQL["remove_budget" if gone else "set_budget"], key | limit)
            run(connection, SQL["reopen_budget"], {"tenant": tenant})
            run(connection, SQL["review_alerts"], key)
            record(
                connection,
                operator=operator,
                tenant=tenant,
                action="budget set",
                target=f"{scope} {subject} {period}".replace("  ", " "),
                reason=reason,
                detail=key | limit,
            )

    def prices(self) -> list[PriceRow]:
        """The operator's prices."""
        return [PriceRow(*row) for row in self.store.query(SQL["prices"], {})]

    def set_price(self, model: str, rates: tuple[int, int, int] | None, *, operator: str, reason: str) -> bool:
        """Set a model's price (input, output, cached input), or take it away; False when there was none to take."""
        with self.store.transaction(ALL_TENANTS) as connection:
            if rates is None:
                if not run(connection, SQL["remove_price"], {"model": model}):
                    return False
            else:
                values = {"input": rates[0], "output": rates[1], "cached": rates[2]}
                run(connection, SQL["set_price"], {"model": model} | values)
            detail = {"micros_per_million": list(rates) if rates else None}
            record(
                connection,
                operator=operator,
                tenant=None,
                action="budget price",
                target=model,
                reason=reason,
                detail=cast(dict[str, Any], detail),
            )
        return True
