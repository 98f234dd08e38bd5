"""Anomalies as operators work with them: looked at, muted, and what is to be done about the next ones."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Literal

from agentq.client.tenants import operator_name
from agentq.errors import InvalidInput, NoSuchAnomaly
from agentq.step import valid_name
from agentq.store.anomalies import Anomalies, AnomalyRow, BaselineRow, OrderRow, Place
from agentq.store.pool import ALL_TENANTS, Store

Action = Literal["flag", "park", "mute"]


class ClientAnomalies:
    """What was not as usual."""

    def __init__(self, store: Store) -> None:
        self._anomalies = Anomalies(store)

    def ls(
        self,
        *,
        state: str | None = "open",
        tenant: str | None = None,
        agent: str | None = None,
        session: uuid.UUID | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        before: Place | None = None,
        limit: int = 50,
    ) -> list[AnomalyRow]:
        """
        The newest first; the open ones, unless another state or None is given.

        Found since a moment and before another, or before a place in the list: when, and which.
        """
        if before is None and until is not None:
            before = (until, uuid.UUID(int=0))
        return self._anomalies.ls(
            state=state, tenant=tenant, agent=agent, session=session, since=since, before=before, limit=limit
        )

    def get(self, text: str, *, tenant: str | None = None) -> AnomalyRow:
        """
        The anomaly whose id begins so.

        Raises:
            NoSuchAnomaly: there is none.
            InvalidInput: there are several, or it is no beginning of an id.
        """
        digits = text.replace("-", "").lower()
        if not digits or len(digits) > 32 or any(digit not in "0123456789abcdef" for digit in digits):
            raise InvalidInput(f"{text!r} is not the beginning of an anomaly's id: use hexadecimal digits")
        between = uuid.UUID(digits.ljust(32, "0")), uuid.UUID(digits.ljust(32, "f"))
        found = self._anomalies.ls(tenant=tenant, between=between, limit=2)
        if not found:
            raise NoSuchAnomaly(text)
        if len(found) > 1:
            raise InvalidInput(f"several anomalies begin with {text}: give more digits, or --tenant")
        return found[0]

    def mute(self, text: str, *, reason: str, tenant: str | None = None, dry_run: bool = False) -> bool:
        """Say that it needs nobody any more; False when that was said before."""
        return self._set(text, "muted", reason, tenant, dry_run)

    def unmute(self, text: str, *, reason: str, tenant: str | None = None, dry_run: bool = False) -> bool:
        """Take that back; False when it is open."""
        return self._set(text, "open", reason, tenant, dry_run)

    def order(
        self,
        action: Action | None,
        *,
        reason: str,
        tenant: str | None = None,
        agent: str | None = None,
        measure: str | None = None,
        for_s: float | None = None,
        dry_run: bool = False,
    ) -> bool:
        """
        What is done about the next ones: flag them, park the session while it runs, or keep them muted.

        Of several orders the most specific one counts: the tenant's before the fleet's, then the agent's, then
        the measure's. None takes an order back; False when there was none.

        Raises:
            InvalidInput: no reason, or a name that is none.
        """
        if not reason.strip():
            raise InvalidInput("an order needs a reason")
        whose = valid_name("tenant", tenant) if tenant else ALL_TENANTS
        of = valid_name("agent", agent) if agent else ""
        if dry_run:
            known = {(order.tenant, order.agent, order.measure) for order in self.orders()}
            return action is not None or (whose, of, measure or "") in known
        return self._anomalies.order(
            whose, of, measure or "", action, for_s=for_s, operator=operator_name(), reason=reason
        )

    def orders(self) -> list[OrderRow]:
        """The orders in force."""
        return self._anomalies.orders()

    def baselines(self, *, tenant: str | None = None, agent: str | None = None) -> list[BaselineRow]:
        """What is normal, by tenant, agent and version."""
        return self._anomalies.baselines(tenant, agent)

    def _set(self, text: str, state: str, reason: str, tenant: str | None, dry_run: bool) -> bool:
        if not reason.strip():
            raise InvalidInput("say why: --reason")
        row = self.get(text, tenant=tenant)
        if dry_run:
            return row.state != state
        return self._anomalies.set_state(row, state, operator=operator_name(), reason=reason)


__all__ = ["Action", "ClientAnomalies"]
