"""The Tenants tab: backlog, work and money of each, and its switches."""

from __future__ import annotations

from typing import Any

from tornado.web import authenticated

from agentq.errors import InvalidInput
from agentq.flower.pages.tab import Action, Route, Tab
from agentq.seeing.story import seconds_text


class Tenants(Tab):
    """Each tenant's backlog and work, and what it spent against its budgets."""

    tab = "aq-tenants"

    @authenticated
    async def get(self) -> None:
        def question() -> dict[str, Any]:
            windows: dict[str, list[Any]] = {}
            for window in self.client.budgets.windows():
                if window.scope == "tenant" and (window.limit_micros or window.limit_tokens):
                    windows.setdefault(window.tenant, []).append(window)
            return {"rows": self.client.ledger.queue_depths(), "windows": windows}

        self.show("aq_tenants.html", span=seconds_text, **await self.ask(question))


class TenantAction(Action):
    """Change a tenant's state or concurrency."""

    tab = "aq-tenants"

    def act(self, *, reason: str, user: str, **place: str) -> tuple[str, str]:
        name = self.chosen("tenant", "tenant") or ""
        concurrency = self.chosen("concurrency")
        if concurrency is not None and not concurrency.isdecimal():
            raise InvalidInput("concurrency is a whole number")
        self.client.tenants.set(
            name,
            state=self.chosen("state"),
            concurrency=int(concurrency) if concurrency else None,
            reason=reason,
        )
        return f"tenant {name} is changed", str(self.reverse_url("aq-tenants"))


ROUTES = (
    Route("aq-tenants", r"/tenants", Tenants, "Tenants"),
    Route("aq-tenants-act", r"/tenants/set", TenantAction),
)
