"""The Tenants tab: backlog, work and money of each, and its switches."""

from __future__ import annotations

from urllib.parse import urlencode

from tornado.web import authenticated

from agentq.client.tenants import TenantPage
from agentq.errors import InvalidInput
from agentq.flower.pages.tab import Action, Route, Tab
from agentq.seeing.story import seconds_text
from agentq.store.dependencies import Breakers
from agentq.store.ledger import DepthPlace

PAGE_ROWS = 50
_STATES = ("active", "paused", "draining")


class Tenants(Tab):
    """Tenants' backlog and work, and what they spent against their budgets: whoever waits longest comes first."""

    tab = "aq-tenants"

    @authenticated
    async def get(self) -> None:
        match, state, before = self.chosen("name"), self.chosen("state"), _place(self.chosen("after"))
        if state is not None and state not in _STATES:
            raise InvalidInput(f"a tenant is active, paused or draining, not {state!r}")

        def question() -> tuple[TenantPage, dict[str, list[tuple[str, str]]]]:
            found = self.client.tenants.page(match=match, state=state, after=before, limit=PAGE_ROWS)
            return found, Breakers(self.store, {}).out_of_order([row.tenant for row in found.rows])

        page, breakers = await self.ask(question)
        filters = {name: value for name, value in (("name", match), ("state", state)) if value}
        self.show(
            "aq_tenants.html",
            rows=page.rows,
            windows=page.windows,
            breakers=breakers,
            filters=filters,
            states=_STATES,
            more=urlencode(filters | {"after": _mark(page.more)}) if page.more is not None else None,
            first=before is None,
            span=seconds_text,
        )


def _mark(place: DepthPlace) -> str:
    return f"name~{place.name}" if place.name is not None else f"work~{place.offset}"


def _place(mark: str | None) -> DepthPlace | None:
    """Where a page begins."""
    if mark is None:
        return None
    kind, _, value = mark.partition("~")
    if kind == "name" and value:
        return DepthPlace(name=value)
    if kind == "work" and value.isascii() and value.isdigit() and len(value) < 10:
        return DepthPlace(int(value))
    raise InvalidInput("this page's address is damaged: begin at the first page")


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
