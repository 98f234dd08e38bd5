"""What every page of ours shares: who asks, questions off the event loop, errors in words, writes recorded."""

from __future__ import annotations

import logging
import time
import uuid
from base64 import b64decode
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, ClassVar, TypeVar

from flower.views import BaseHandler
from tornado.web import HTTPError, RequestHandler, authenticated

from agentq.client import Client
from agentq.client.tenants import acting_as
from agentq.errors import AgentqError, InvalidInput, StoreUnavailable
from agentq.seeing import page as parts
from agentq.seeing.story import dollars, seconds_text
from agentq.seeing.timeline import STYLE
from agentq.step import valid_name
from agentq.store.pool import Store

log = logging.getLogger("agentq.flower")

T = TypeVar("T")
_SAID = "aq_said"
TABS_STYLE = files("agentq.flower").joinpath("tabs.css").read_text("utf-8")

# The colour of a state's word, wherever it stands.
TAGS = {
    "done": "ok", "resolved": "ok", "active": "ok", "live": "ok", "closed": "ok", "granted": "ok",
    "failed": "bad", "open": "bad", "stopped": "bad", "interrupted": "bad", "forced_open": "bad", "denied": "bad",
    "paused": "again", "canary": "again", "waiting": "again", "half_open": "again", "draining": "again",
    "redriven": "again", "running": "model", "redriving": "model",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Route:
    """
    Where a handler answers.

    With a title it is a tab, and stands in the navigation bar in the order of `pages.ROUTES`.
    """

    name: str
    pattern: str
    handler: type[RequestHandler]
    title: str | None = None


def user_of(page: BaseHandler) -> str | None:
    """The login's name; None where Flower asks for none. Whether the login is right, `authenticated` decides."""
    options = page.application.options
    if options.auth and isinstance(page.current_user, str):
        return page.current_user
    if options.basic_auth:
        with suppress(ValueError):
            scheme, _, credentials = page.request.headers.get("Authorization", "").partition(" ")
            if scheme == "Basic":
                return b64decode(credentials).decode().partition(":")[0]
    return None


def may_operate(page: BaseHandler) -> bool:
    """Whether this user may change things: logged in, allowed to, and Flower not read-only."""
    application, user = page.application, user_of(page)
    operators = application.agentq.settings.flower_operators
    return not application.options.read_only and user is not None and (not operators or user in operators)


class Tab(BaseHandler):  # type: ignore[misc]
    """What our pages share: who asks, questions off the loop, errors in words."""

    tab: ClassVar[str] = ""

    @property
    def client(self) -> Client:
        return self.application.agentq  # type: ignore[no-any-return]

    @property
    def store(self) -> Store:
        return self.client.sessions.store

    @property
    def user(self) -> str | None:
        """The login's name; None where Flower asks for none."""
        return user_of(self)

    @property
    def may_operate(self) -> bool:
        """Whether this user may change things: logged in, allowed to, and Flower not read-only."""
        return may_operate(self)

    def check_xsrf_cookie(self) -> None:
        """
        Every post carries our token, whichever login there is.

        Flower leaves that out under basic auth, whose credentials a browser sends by itself from any page.
        """
        super().check_xsrf_cookie()
        RequestHandler.check_xsrf_cookie(self)

    async def ask(self, question: Callable[[], T]) -> T:
        """Put a question to Postgres, on a thread of Flower's; the loop goes on meanwhile."""
        return await self.application.io_loop.run_in_executor(None, question)  # type: ignore[no-any-return]

    def show(self, template: str, **facts: Any) -> None:
        """Fill a template. It may load nothing from elsewhere, and no page may frame it."""
        self.set_header("Content-Security-Policy", "frame-ancestors 'none'; form-action 'self'; object-src 'none'")
        self.set_header("Cache-Control", "no-store")
        said = self.get_secure_cookie(_SAID)
        if said:
            self.clear_cookie(_SAID)
        shared: dict[str, Any] = {
            "active_tab": self.tab,
            "said": said.decode("utf-8", "replace") if said else "",
            "may_operate": self.may_operate,
            "user": self.user,
            "dollars": dollars,
            "ago": _ago,
            "when": _when,
            "span": seconds_text,
            "number": _number,
            "link": self.link,
            "letter_link": self.letter_link,
            "style": STYLE + parts.PARTS_STYLE + TABS_STYLE,
            "tags": TAGS,
        }
        self.render(template, **(shared | facts))

    def link(self, row: Any) -> str:
        """Where a session's page is."""
        return str(self.reverse_url("aq-session", row.tenant, str(row.session_id)))

    def letter_link(self, row: Any) -> str:
        """Where a dead letter's page is."""
        return str(self.reverse_url("aq-letter", row.tenant, str(row.letter_id)))

    def chosen(self, name: str, kind: str | None = None) -> str | None:
        """A filter of the address; None where it is empty."""
        value = (self.get_argument(name, "", escape=False) or "").strip()[:300]
        if value and kind is not None:
            valid_name(kind, value)
        return value or None

    def place(self) -> tuple[datetime, uuid.UUID] | None:
        """Where in a list the page begins; None: at its beginning."""
        mark = self.chosen("before")
        if mark is None:
            return None
        at, _, which = mark.partition("~")
        try:
            moment = datetime.fromisoformat(at)
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC), uuid.UUID(which)
        except ValueError:
            raise InvalidInput("this page's address is damaged: begin at the first page") from None

    def write_error(self, status_code: int, **more: Any) -> None:
        error = (more.get("exc_info") or (None, None))[1]
        if isinstance(error, StoreUnavailable):
            self.set_status(503)
            self._say("Postgres does not answer; steps go on where workers still reach it. Reload in a moment.")
        elif isinstance(error, AgentqError):
            self.set_status(400)
            self._say(str(error))
        else:
            super().write_error(status_code, **more)

    def _say(self, message: str) -> None:
        self.render("404.html", message=message)

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if isinstance(value, AgentqError):
            log.info("%s %s: %s", self.request.method, self.request.path, value)
        else:
            super().log_exception(typ, value, tb)


class Action(Tab):
    """A write: by post alone, by those who may, with a reason, recorded under their name."""

    back: ClassVar[str] = "aq-sessions"

    def get(self, **_: str) -> None:
        raise HTTPError(405)

    @authenticated
    async def post(self, **place: str) -> None:
        user = self.user
        if user is None or not self.may_operate:
            raise HTTPError(403, "this login may look, and change nothing")
        if await self.previews(**place):
            return
        reason = self.chosen("reason")
        if not reason:
            raise InvalidInput("say why: the reason is kept with your name")

        def act() -> tuple[str, str]:
            with acting_as(user):
                return self.act(reason=reason, user=user, **place)

        said, where = await self.ask(act)
        self.set_secure_cookie(_SAID, said[:1000], expires_days=None)
        self.redirect(where, status=303)

    async def previews(self, **place: str) -> bool:
        """Show what it would do, where that is asked for or due first; True: that was shown, and nothing is done."""
        return False

    def act(self, *, reason: str, user: str, **place: str) -> tuple[str, str]:
        """Do it; what to say of it, and the page to go on with."""
        raise NotImplementedError


def mark_of(place: tuple[datetime, uuid.UUID]) -> str:
    """A place in a list, for the address of the page that begins there."""
    return f"{place[0].isoformat()}~{place[1]}"


def _ago(moment: datetime | None) -> str:
    if moment is None:
        return ""
    return f"{seconds_text(max(time.time() - moment.timestamp(), 0))} ago"


def _number(count: int) -> str:
    return f"{count:,}"


def _when(moment: datetime | None) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S") if moment else ""
