"""The tabs' handlers: each asks a question off the event loop and fills one template; writes go through the client."""

from __future__ import annotations

import csv
import io
import logging
import time
import uuid
from base64 import b64decode
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlencode

import prometheus_client
from flower.views import BaseHandler
from prometheus_client import CollectorRegistry
from tornado.web import HTTPError, RequestHandler, authenticated

from agentq.client import Client
from agentq.client.approvals import Who
from agentq.client.tenants import acting_as
from agentq.errors import AgentqError, InvalidInput, StoreUnavailable
from agentq.payload import decode
from agentq.seeing import page as parts
from agentq.seeing.metrics import FleetCollector
from agentq.seeing.story import dollars, seconds_text, tell
from agentq.seeing.timeline import STYLE, timeline
from agentq.seeing.tracing import redactor_of
from agentq.step import valid_name
from agentq.store.dead_letters import Selection
from agentq.store.pool import Store
from agentq.store.redrives import Terms
from agentq.store.sessions import SessionListing
from agentq.store.traces import Traces
from agentq.store.workers import Workers

log = logging.getLogger("agentq.flower")

T = TypeVar("T")
PAGE_ROWS = 50
_SAID = "aq_said"


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
        options = self.application.options
        if options.auth and isinstance(self.current_user, str):
            return self.current_user
        if options.basic_auth:
            with suppress(ValueError):
                scheme, _, credentials = self.request.headers.get("Authorization", "").partition(" ")
                if scheme == "Basic":
                    return b64decode(credentials).decode().partition(":")[0]
        return None

    @property
    def may_operate(self) -> bool:
        """Whether this user may change things: logged in, allowed to, and Flower not read-only."""
        operators = self.client.settings.flower_operators
        return (
            not self.application.options.read_only
            and self.user is not None
            and (not operators or self.user in operators)
        )

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
        self.render(
            template,
            active_tab=self.tab,
            said=said.decode("utf-8", "replace") if said else "",
            may_operate=self.may_operate,
            user=self.user,
            dollars=dollars,
            ago=_ago,
            when=_when,
            link=self.link,
            style=STYLE + parts.PARTS_STYLE,
            **facts,
        )

    def link(self, row: Any) -> str:
        """Where a session's page is."""
        return str(self.reverse_url("aq-session", row.tenant, str(row.session_id)))

    def chosen(self, name: str, kind: str | None = None) -> str | None:
        """A filter of the address; None where it is empty."""
        value = (self.get_argument(name, "", escape=False) or "").strip()[:300]
        if value and kind is not None:
            valid_name(kind, value)
        return value or None

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
        reason = self.chosen("reason")
        if not reason:
            raise InvalidInput("say why: the reason is kept with your name")

        def act() -> tuple[str, str]:
            with acting_as(user):
                return self.act(reason=reason, user=user, **place)

        said, where = await self.ask(act)
        self.set_secure_cookie(_SAID, said[:1000], expires_days=None)
        self.redirect(where, status=303)

    def act(self, *, reason: str, user: str, **place: str) -> tuple[str, str]:
        """Do it; what to say of it, and the page to go on with."""
        raise NotImplementedError


# ── sessions ─────────────────────────────────────────────────────────────────


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


class OneSession(Tab):
    """One session: its timeline, attempts, states, decisions and cost, and what may be done about it."""

    tab = "aq-sessions"

    @authenticated
    async def get(self, tenant: str, session_id: str) -> None:
        known = _uuid(session_id)
        redact = redactor_of(self.client.settings).value

        def question() -> dict[str, Any]:
            story = tell(self.client.sessions, Traces(self.store), tenant, known, redact)
            return {
                "story": story,
                "steps": self.client.sessions.steps(tenant, known),
                "facts": parts.facts(story),
                "picture": timeline(story),
                "cost": parts.cost_table(story.cost),
                "decisions": parts.decisions(story.acts),
                "family": parts.family(story, lambda one: self._family_link(tenant, one)),
                "attempts": parts.attempts(story),
            }

        self.show("aq_session.html", actions=self._actions, **await self.ask(question))

    def _family_link(self, tenant: str, session_id: uuid.UUID) -> str:
        address = self.reverse_url("aq-session", tenant, str(session_id))
        return f'<a href="{address}">{session_id}</a>'

    def _actions(self, state: str) -> list[str]:
        """What may be done with a session in this state."""
        known = _recovery(self.client) is not None
        match state:
            case "running":
                return ["pause", "cancel"] if known else ["cancel"]
            case "paused":
                return ["resume", "cancel"] if known else ["cancel"]
            case _:
                return ["replay", "fork"] if known else []


def _recovery(client: Client) -> Any:
    """What pauses, resumes, replays and forks sessions."""
    return getattr(client, "recovery", None)


class SessionAction(Action):
    """Pause, resume, cancel, replay or fork one session, as the command line does."""

    tab = "aq-sessions"

    def act(self, *, reason: str, user: str, **place: str) -> tuple[str, str]:
        tenant, session_id, action = place["tenant"], place["session_id"], place["action"]
        here = str(self.reverse_url("aq-session", tenant, session_id))
        known = _uuid(session_id)
        recovery = _recovery(self.client)
        if action == "cancel":
            state = self.client.cancel(tenant, str(known), reason=reason)
            return f"the session is {state}", here
        if recovery is None:
            raise InvalidInput(f"this release cannot {action} a session")
        step = self.chosen("step")
        match action:
            case "pause":
                return f"the session is {recovery.pause(tenant, known, reason=reason)}", here
            case "resume":
                return f"the session is {recovery.resume(tenant, known, reason=reason)}", here
            case "replay":
                done = recovery.replay(tenant, known, reason=reason, from_step=step)
                return f"the session goes on, generation {done.generation}", here
            case _:
                if step is None:
                    raise InvalidInput("a fork begins at a step: name one")
                fork = recovery.fork(tenant, known, reason=reason, from_step=step)
                return f"forked from {session_id}", str(self.reverse_url("aq-session", tenant, str(fork)))


# ── dead letters ─────────────────────────────────────────────────────────────


class DeadLetters(Tab):
    """Dead letters by cause, and the letters of one; what a redrive would do before it does."""

    tab = "aq-letters"

    @authenticated
    async def get(self) -> None:
        cause, tenant = self.chosen("cause"), self.chosen("tenant", "tenant")
        selection = Selection(tenant=tenant, cause=cause)
        letters = self.client.dead_letters

        def question() -> dict[str, Any]:
            narrow = cause is not None
            return {
                "groups": letters.groups("cause", selection, limit=100),
                "letters": letters.ls(selection, limit=100) if narrow else [],
                "plan": letters.plan(selection) if narrow else None,
            }

        self.show("aq_letters.html", cause=cause, tenant=tenant, **await self.ask(question))


class LetterAction(Action):
    """Redrive or discard the letters of one cause."""

    tab = "aq-letters"

    def act(self, *, reason: str, user: str, **place: str) -> tuple[str, str]:
        selection = Selection(tenant=self.chosen("tenant", "tenant"), cause=self.chosen("cause"))
        here = str(self.reverse_url("aq-letters"))
        letters = self.client.dead_letters
        if place["action"] == "discard":
            return f"{letters.discard(selection, reason=reason)} letters are discarded", here
        terms = Terms(canary=int(self.chosen("canary") or 0), rate_per_s=float(self.chosen("rate") or 10))
        progress = letters.redrive(selection, reason=reason, terms=terms)
        first = next(progress, None)

        def drive() -> None:
            with acting_as(user), suppress(Exception):
                for _ in progress:
                    pass

        # It goes on by itself; whoever drives next takes it over when this process ends.
        self.application.executor.submit(drive)
        job = f", job {str(first.job.job_id)[:8]}" if first is not None else ""
        return f"the redrive is under way{job}: agentq redrive ls", here


# ── approvals ────────────────────────────────────────────────────────────────


class Approvals(Tab):
    """What waits for people, by its deadline."""

    tab = "aq-approvals"

    @authenticated
    async def get(self) -> None:
        tenant = self.chosen("tenant", "tenant")
        redact = redactor_of(self.client.settings).value

        def question() -> list[Any]:
            listed = self.client.approvals.ls(tenant=tenant, limit=100)
            views = [self.client.approvals.get(str(one.approval_id), tenant=one.tenant) for one in listed]
            return [(view, redact("input", dict(view.args))) for view in views]

        self.show("aq_approvals.html", tenant=tenant, waiting=await self.ask(question), pre=parts.pre)


class ApprovalAction(Action):
    """Grant or deny, as the person who is logged in; edited arguments as `path=value` lines."""

    tab = "aq-approvals"

    def act(self, *, reason: str, user: str, **place: str) -> tuple[str, str]:
        approvals = self.client.approvals
        approval, tenant = self.chosen("approval") or "", self.chosen("tenant", "tenant")
        here = str(self.reverse_url("aq-approvals"))
        who = self._who(user)
        if place["action"] == "deny":
            view = approvals.deny(approval, reason=reason, tenant=tenant, who=who)
        else:
            edits = _edits(self.get_argument("edits", "", escape=False) or "")
            view = approvals.grant(approval, reason=reason, edits=edits, tenant=tenant, who=who)
        return f"{view.name}: {view.state}", here

    def _who(self, user: str) -> Who:
        """The login is the proof; groups and tenants are those of the settings."""
        approvers = self.client.settings.approvers
        if not approvers:
            return Who(user, "login")
        known = approvers.get(user)
        if known is None:
            raise InvalidInput(f"{user} is no approver: the settings (approvers) know nobody of that name")
        return Who(user, "login", known.groups, known.tenants)


def _edits(text: str) -> dict[str, Any]:
    """Lines of `path=value`, values as JSON where they are, else as text."""
    edits: dict[str, Any] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        path, separator, value = line.partition("=")
        if not separator:
            raise InvalidInput("an edit is path=value, one a line")
        try:
            edits[path.strip()] = decode(value.strip().encode())
        except ValueError:
            edits[path.strip()] = value.strip()
    return edits


# ── tenants, cost, health ────────────────────────────────────────────────────


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


_WINDOWS = {"24h": 86_400, "7d": 7 * 86_400, "30d": 30 * 86_400}


class Cost(Tab):
    """What was used, by day, agent, tenant and model."""

    tab = "aq-cost"

    @authenticated
    async def get(self) -> None:
        tenant, window = self.chosen("tenant", "tenant"), self.chosen("since") or "7d"
        seconds = _WINDOWS.get(window)
        if seconds is None:
            raise InvalidInput(f"since is one of {', '.join(_WINDOWS)}")
        traces = Traces(self.store)

        def question() -> dict[str, Any]:
            return {by: traces.spend(by, seconds=seconds, tenant=tenant) for by in ("day", "agent", "tenant", "model")}

        found = await self.ask(question)
        if self.chosen("csv"):
            self._send_csv(found)
            return
        days = sorted(found.pop("day"), key=lambda row: row.of)
        self.show(
            "aq_cost.html", days=days, tables=found, tenant=tenant, window=window, windows=_WINDOWS, bars=_bars(days)
        )

    def _send_csv(self, found: dict[str, Any]) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["by", "of", "count", "sessions", "tokens_in", "tokens_out", "cost_micros", "waste_micros"])
        for by, rows in found.items():
            for row in rows:
                name = f"'{row.of}" if row.of[:1] in "=+-@" else row.of
                numbers = (row.count, row.sessions, row.tokens_in, row.tokens_out, row.cost_micros, row.waste_micros)
                writer.writerow([by, name, *numbers])
        self.set_header("Content-Type", "text/csv; charset=utf-8")
        self.set_header("Content-Disposition", 'attachment; filename="agentq-cost.csv"')
        self.finish(text.getvalue())


def _bars(days: list[Any]) -> str:
    """Cost by day as a picture; waste on top."""
    if not days:
        return ""
    top = max(row.cost_micros for row in days) or 1
    width = min(720 / len(days), 80)
    parts_ = ['<svg class="aq-tl" viewBox="0 0 740 190" role="img" aria-label="Cost by day">']
    for number, row in enumerate(days):
        x, height = 10 + number * width, 140 * row.cost_micros / top
        waste = 140 * row.waste_micros / top
        bar = max(min(width - 4, 60), 2)
        title = f"{row.of}: {dollars(row.cost_micros)}, waste {dollars(row.waste_micros)}"
        parts_.append(
            f'<g><title>{title}</title><rect class="model" x="{x:.1f}" y="{164 - height:.1f}" width="{bar:.1f}" '
            f'height="{height:.1f}"/><rect class="bad" x="{x:.1f}" y="{164 - height:.1f}" width="{bar:.1f}" '
            f'height="{waste:.1f}"/><text x="{x:.1f}" y="{159 - height:.1f}">{dollars(row.cost_micros)}</text>'
            f'<text class="dim" x="{x:.1f}" y="180">{row.of[5:]}</text></g>'
        )
    return "".join([*parts_, "</svg>"])


class Health(Tab):
    """The worker processes that live, the breakers of what they call, and how old the oldest work is."""

    tab = "aq-health"

    @authenticated
    async def get(self) -> None:
        def question() -> dict[str, Any]:
            from agentq.store.dependencies import Breakers

            return {
                "workers": Workers(self.store).present(),
                "breakers": Breakers(self.store, {}).ls(),
            }

        self.show("aq_health.html", span=seconds_text, **await self.ask(question))


class Metrics(Tab):
    """Flower's own metrics and the fleet's, for Prometheus; asked for off the loop, behind the login."""

    @authenticated
    async def get(self) -> None:
        application = self.application
        application.purge_offline_worker_metrics()
        if not hasattr(application, "agentq_metrics"):
            application.agentq_metrics = CollectorRegistry()
            tenants = self.client.settings.metrics_tenants
            application.agentq_metrics.register(FleetCollector(self.store, tenants_max=tenants))
        ours = application.agentq_metrics
        text = await self.ask(lambda: prometheus_client.generate_latest() + prometheus_client.generate_latest(ours))
        self.set_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.finish(text)


def _uuid(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise InvalidInput(f"{text!r} is no session id") from None


def _ago(moment: datetime | None) -> str:
    if moment is None:
        return ""
    return f"{seconds_text(max(time.time() - moment.timestamp(), 0))} ago"


def _when(moment: datetime | None) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S") if moment else ""
