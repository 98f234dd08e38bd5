"""The Sessions tab: every session, newest first, by what it is searched for."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

from tornado.web import authenticated

from agentq.errors import InvalidInput
from agentq.flower.pages.tab import Route, Tab, mark_of
from agentq.seeing.tracing import redactor_of
from agentq.store.sessions import Place

PAGE_ROWS = 50


class Sessions(Tab):
    """Every session, newest first, by tenant, agent, state, key, text or the beginning of its id, back from a day."""

    tab = "aq-sessions"

    @authenticated
    async def get(self) -> None:
        chosen = {
            "tenant": self.chosen("tenant", "tenant"),
            "agent": self.chosen("agent", "agent"),
            "state": self.chosen("state"),
            "key": self.chosen("key"),
            "text": self.chosen("text"),
            "id": self.chosen("id"),
            "until": self.chosen("until"),
        }
        chosen = {name: value for name, value in chosen.items() if value}
        filters = {("prefix" if name == "id" else name): value for name, value in chosen.items() if name != "until"}
        before = self.place() or _end_of(chosen.get("until"))
        # Inputs are not redacted: whoever may only look must not find out by searching what pages hide.
        within = self.may_operate
        redact = redactor_of(self.client.settings).value
        page = await self.ask(
            lambda: self.client.sessions.page(**filters, within_input=within, before=before, limit=PAGE_ROWS)
        )
        self.show(
            "aq_sessions.html",
            rows=[replace(row, failure=redact("failure", row.failure)) for row in page.rows],
            filters=chosen,
            older=urlencode(chosen | {"before": mark_of(page.more)}) if page.more is not None else None,
            looked_until=page.more[0] if page.more is not None and not page.full else None,
            first=before is None,
        )


def _end_of(day: str | None) -> Place | None:
    """The end of a day, as a place in the list."""
    if day is None:
        return None
    try:
        start = datetime.fromisoformat(day)
        return start.replace(tzinfo=start.tzinfo or UTC) + timedelta(days=1), uuid.UUID(int=0)
    except (ValueError, OverflowError):
        raise InvalidInput(f"{day!r} is no day: write 2026-11-24") from None


ROUTES = (Route("aq-sessions", r"/sessions", Sessions, "Sessions"),)
