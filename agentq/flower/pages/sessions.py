"""The Sessions tab: every session, newest first, by what it is searched for."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from urllib.parse import urlencode

from tornado.web import authenticated

from agentq.errors import InvalidInput
from agentq.flower.pages.tab import Route, Tab
from agentq.store.sessions import SessionListing

PAGE_ROWS = 50


class Sessions(Tab):
    """Every session, newest first, by tenant, agent, state, key or the beginning of its id."""

    tab = "aq-sessions"

    @authenticated
    async def get(self) -> None:
        filters = {
            "tenant": self.chosen("tenant", "tenant"),
            "agent": self.chosen("agent", "agent"),
            "state": self.chosen("state"),
            "key": self.chosen("key"),
            "prefix": self.chosen("id"),
        }
        before = _place(self.chosen("before"))
        rows = await self.ask(lambda: self.client.sessions.page(**filters, before=before, limit=PAGE_ROWS + 1))
        more = rows[PAGE_ROWS - 1] if len(rows) > PAGE_ROWS else None
        chosen = {("id" if name == "prefix" else name): value for name, value in filters.items() if value}
        self.show(
            "aq_sessions.html",
            rows=rows[:PAGE_ROWS],
            filters=chosen,
            older=urlencode(chosen | {"before": _mark(more)}) if more is not None else None,
            first=before is None,
        )


def _mark(row: SessionListing) -> str:
    return f"{row.created_at.isoformat()}~{row.session_id}"


def _place(mark: str | None) -> tuple[datetime, uuid.UUID] | None:
    """Where a page begins."""
    if mark is None:
        return None
    at, _, session_id = mark.partition("~")
    try:
        moment = datetime.fromisoformat(at)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC), uuid.UUID(session_id)
    except ValueError:
        raise InvalidInput("this page's address is damaged: begin at the first page") from None


ROUTES = (Route("aq-sessions", r"/sessions", Sessions, "Sessions"),)
