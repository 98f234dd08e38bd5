"""
The guard: Flower's own pages and API under agentq's roles.

Stock Flower knows who is logged in, not what they may do: whoever may look could stop workers, revoke tasks and
send new ones. Here its API asks the role first, its pages hide the buttons, and what it changed has a row.
"""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import unquote

from flower.api import BaseApiHandler
from flower.urls import handlers
from flower.views import BaseHandler
from flower.views.tasks import TasksView, TaskView
from flower.views.workers import WorkersView, WorkerView
from tornado.routing import URLSpec
from tornado.web import HTTPError, RequestHandler

from agentq.flower.pages.tab import may_operate, user_of

log = logging.getLogger("agentq.flower")

# Whoever may look sees these, without their buttons.
_PAGES = (WorkersView, WorkerView, TasksView, TaskView)
_OF_BROWSERS = ("Cookie", "Origin", "Sec-Fetch-Site")
_READS = ("GET", "HEAD", "OPTIONS")


class Guarded(BaseHandler):  # type: ignore[misc]
    """What of Flower's own changes something, for those alone who may."""

    def prepare(self) -> Any:
        if self.request.method not in _READS and _may_only_look(self):
            raise HTTPError(403, "this login may look, and change nothing")
        return super().prepare()

    def check_xsrf_cookie(self) -> None:
        """
        From a browser every post carries the token, as Flower's own script sends it, whichever login there is.

        A script that logs in by itself has no cookies to be misused, and needs none.
        """
        super().check_xsrf_cookie()
        if any(name in self.request.headers for name in _OF_BROWSERS):
            RequestHandler.check_xsrf_cookie(self)

    def render(self, *templates: Any, **facts: Any) -> Any:
        if "read_only" in facts and _may_only_look(self):
            facts["read_only"] = True
        return super().render(*templates, **facts)

    def on_finish(self) -> None:
        super().on_finish()
        if self.request.method not in _READS and self.get_status() < 400:
            what, target = _said(self.request.path)
            user = user_of(self) or "nobody logged in"
            self.application.io_loop.run_in_executor(None, _record, self.application.agentq, user, what, target)


def guarded(prefix: str) -> list[Any]:
    """Flower's own handlers that change or offer to, guarded; to stand ahead of Flower's."""
    found = []
    for one in handlers:
        pattern, handler = (one.regex.pattern, one.handler_class) if isinstance(one, URLSpec) else one[:2]
        if handler in _PAGES or _changes(handler):
            found.append((f"{prefix}{pattern}", type(handler.__name__, (Guarded, handler), {})))
    return found


def _changes(handler: Any) -> bool:
    """Whether it is of the API and answers to more than questions."""
    return (
        isinstance(handler, type)
        and issubclass(handler, BaseApiHandler)
        and any(
            getattr(handler, verb) is not getattr(RequestHandler, verb) for verb in ("post", "put", "patch", "delete")
        )
    )


def _may_only_look(page: BaseHandler) -> bool:
    """Without a login it is Flower's own settings that decide: its API is shut unless they open it."""
    return user_of(page) is not None and not may_operate(page)


def _said(path: str) -> tuple[str, str]:
    """`/api/worker/pool/grow/celery@a` as `flower worker pool grow`, `celery@a`: names, no arguments."""
    words = unquote(path.partition("/api/")[2]).split("/")
    return f"flower {' '.join(words[:-1])}", words[-1]


def _record(client: Any, user: str, what: str, target: str) -> None:
    try:
        client.operators.record_action(
            operator=user,
            tenant=None,
            action=what,
            target=target,
            reason="a button of Flower's own, which asks for none",
        )
    except Exception:
        log.exception("%s %s by %s could not be recorded", what, target, user)


__all__ = ["Guarded", "guarded"]
