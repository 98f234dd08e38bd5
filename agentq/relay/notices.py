"""
Notices: people are told that they are asked, by a signed webhook and by mail.

What is told stands in the outbox `agentq.notice`, written with the approval itself. A notice is sent at
least once: a sender that dies in the middle leaves it to the next, under the same id, by which the receiver
tells a repeat. It carries the question and where to answer it; arguments, states and secrets it never does.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import random
import smtplib
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from email.message import EmailMessage
from typing import Any
from urllib.parse import unquote, urlsplit

from agentq.errors import ConfigError, StoreUnavailable
from agentq.payload import decode
from agentq.settings import Settings
from agentq.store.approvals import Approvals, DueNotice

log = logging.getLogger("agentq.relay.notices")

ID_HEADER, SIGNATURE_HEADER = "Agentq-Notice", "Agentq-Signature"
TIMEOUT_S = 10.0
_LEASE_S = 60.0  # more than one sending takes, so that a slow receiver is not told twice
_BATCH = 20
_ATTEMPTS_MAX = 12  # over about four hours
_PAUSE_FIRST_S, _PAUSE_MAX_S = 5.0, 3600.0
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Undelivered(Exception):
    """The receiver did not take it; the message is safe to keep."""


Send = Callable[[DueNotice], None]


class Notices:
    """Empties the outbox, in a thread of its own: a slow receiver must not hold up the relay."""

    def __init__(self, approvals: Approvals, settings: Settings, *, channels: dict[str, Send] | None = None) -> None:
        self._approvals = approvals
        self._channels = channels if channels is not None else channels_of(settings)
        self._interval_s = max(settings.relay_interval_s, 0.1)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agentq-notices", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(timeout=TIMEOUT_S + 1)

    def round(self) -> int:
        """Send what is due; how many were taken in hand."""
        due = self._approvals.take_notices(_BATCH, lease_s=_LEASE_S)
        for notice in due:
            self._deliver(notice)
        return len(due)

    def _deliver(self, notice: DueNotice) -> None:
        send = self._channels.get(notice.channel)
        try:
            if send is None:
                raise Undelivered(f"the channel {notice.channel} is not set up here")
            send(notice)
        except Undelivered as error:
            self._put_off(notice, str(error))
            return
        self._approvals.settle_notice(notice, "sent")

    def _put_off(self, notice: DueNotice, why: str) -> None:
        if notice.attempt >= _ATTEMPTS_MAX:
            log.error("notice %s of approval %s is given up: %s", notice.notice_id, notice.approval_id, why)
            self._approvals.settle_notice(notice, "failed", failure=why)
            return
        pause_s = min(_PAUSE_MAX_S, _PAUSE_FIRST_S * 2 ** (notice.attempt - 1)) * (0.5 + random.random() / 2)
        log.warning("notice %s is sent again in %.0f s: %s", notice.notice_id, pause_s, why)
        self._approvals.settle_notice(notice, "due", delay_s=pause_s, failure=why)

    def _run(self) -> None:
        while not self._ending.is_set():
            taken = 0
            try:
                taken = self.round()
            except StoreUnavailable as error:
                log.warning("the notices wait for Postgres: %s", error)
            except Exception:
                log.exception("a round of notices failed; the next one begins anew")
            if taken < _BATCH:
                self._ending.wait(self._interval_s * (0.75 + random.random() / 2))


def channels_of(settings: Settings) -> dict[str, Send]:
    """
    The channels that the settings name.

    Raises:
        ConfigError: the webhook is set and httpx is not installed.
    """
    channels: dict[str, Send] = {}
    if settings.notify_webhook_url:
        channels["webhook"] = Webhook(settings)
    if settings.notify_smtp_url:
        channels["email"] = Mail(settings)
    return channels


def facts_of(notice: DueNotice, settings: Settings) -> dict[str, Any]:
    """What a notice may say."""
    if notice.kind == "anomaly":
        return {
            "id": str(notice.notice_id),
            "kind": notice.kind,
            "anomaly": str(notice.approval_id),
            "tenant": notice.tenant,
            "agent": notice.agent,
            "session": str(notice.session_id),
            "measure": notice.name,
            "why": notice.question,
            "found_at": _iso(notice.asked_at),
        }
    facts: dict[str, Any] = {
        "id": str(notice.notice_id),
        "kind": notice.kind,
        "approval": str(notice.approval_id),
        "tenant": notice.tenant,
        "agent": notice.agent,
        "session": str(notice.session_id),
        "what": notice.name,
        "question": notice.question,
        "asks": list(notice.groups),
        "state": notice.state,
        "asked_at": _iso(notice.asked_at),
        "deadline_at": _iso(notice.deadline_at),
        "decided_by": notice.decided_by,
        "link": _link(notice, settings),
    }
    if settings.notify_details and notice.details is not None:
        facts["details"] = decode(notice.details)
    return facts


# ── the webhook ──────────────────────────────────────────────────────────────


class Webhook:
    """A signed POST. Any 2xx is an acknowledgement; redirects are not followed."""

    def __init__(self, settings: Settings) -> None:
        try:
            import httpx
        except ImportError:
            raise ConfigError("notify_webhook_url needs httpx: pip install 'agentq[notify]'") from None
        self._httpx = httpx
        self._settings = settings

    def __call__(self, notice: DueNotice) -> None:
        body = json.dumps(facts_of(notice, self._settings), ensure_ascii=False).encode()
        headers = {
            "Content-Type": "application/json",
            ID_HEADER: str(notice.notice_id),
            SIGNATURE_HEADER: sign(self._settings.notify_webhook_secret, body, time.time()),
        }
        try:
            response = self._httpx.post(
                self._settings.notify_webhook_url, content=body, headers=headers, timeout=TIMEOUT_S
            )
        except (self._httpx.HTTPError, self._httpx.InvalidURL) as error:
            # Its text may quote the URL, and the URL may hold a token.
            raise Undelivered(f"webhook: {type(error).__name__}") from None
        if not response.is_success:
            raise Undelivered(f"webhook: HTTP {response.status_code}")


def sign(secret: str, body: bytes, at: float) -> str:
    """The signature header: when, and the HMAC-SHA256 of that moment and the body."""
    moment = str(int(at))
    digest = hmac.new(secret.encode(), moment.encode() + b"." + body, hashlib.sha256).hexdigest()
    return f"t={moment},v1={digest}"


def verify(secret: str, header: str, body: bytes, *, tolerance_s: float = 300.0, at: float | None = None) -> bool:
    """For receivers written in Python: whether the body was signed with this secret, and not long ago."""
    parts = dict(part.partition("=")[::2] for part in header.split(","))
    with suppress(KeyError, ValueError):
        fresh = abs((time.time() if at is None else at) - int(parts["t"])) <= tolerance_s
        return fresh and hmac.compare_digest(sign(secret, body, int(parts["t"])), f"t={parts['t']},v1={parts['v1']}")
    return False


# ── mail ─────────────────────────────────────────────────────────────────────


class Mail:
    """A mail to the approvers of the group, else to `notify_email_to`. A password goes out under TLS alone."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        try:
            self._url = urlsplit(settings.notify_smtp_url)
            self._host, self._port = self._url.hostname or "", self._url.port
        except ValueError:
            raise ConfigError("notify_smtp_url is no URL: smtp://user:password@host:587 or smtps://…") from None
        if self._url.scheme not in ("smtp", "smtps") or not self._host:
            raise ConfigError("notify_smtp_url is smtp://user:password@host:587 or smtps://…")

    def __call__(self, notice: DueNotice) -> None:
        receivers = self._receivers(notice)
        if not receivers:
            raise Undelivered("mail: no approver of the group has an address, and notify_email_to is empty")
        message = mail_of(notice, self._settings, receivers)
        try:
            with self._connect() as server:
                self._log_in(server)
                refused = server.send_message(message)
        except (OSError, smtplib.SMTPException) as error:
            code = getattr(error, "smtp_code", "")
            raise Undelivered(f"mail: {type(error).__name__} {code}".strip()) from None
        if refused:
            log.warning("%s of %s receivers were refused by the mail server", len(refused), len(receivers))

    def _receivers(self, notice: DueNotice) -> list[str]:
        known = [
            approver.email
            for approver in self._settings.approvers.values()
            if approver.email
            and set(approver.groups) & set(notice.groups)
            and (not approver.tenants or notice.tenant in approver.tenants)
        ]
        return known or list(self._settings.notify_email_to)

    def _connect(self) -> smtplib.SMTP:
        if self._url.scheme == "smtps":
            context = ssl.create_default_context()
            return smtplib.SMTP_SSL(self._host, self._port or 465, timeout=TIMEOUT_S, context=context)
        return smtplib.SMTP(self._host, self._port or 587, timeout=TIMEOUT_S)

    def _log_in(self, server: smtplib.SMTP) -> None:
        if self._url.scheme == "smtp":
            server.ehlo()
            if server.has_extn("starttls"):
                server.starttls(context=ssl.create_default_context())
            elif self._url.username and self._host not in _LOOPBACK:
                raise Undelivered("mail: the server offers no STARTTLS, and the password is not sent without it")
        if self._url.username:
            server.login(unquote(self._url.username), unquote(self._url.password or ""))


def mail_of(notice: DueNotice, settings: Settings, receivers: list[str]) -> EmailMessage:
    """The mail. Its Message-ID is the notice's id, the same in every attempt."""
    facts = facts_of(notice, settings)
    question = " ".join(notice.question.split())  # a line break in a header would begin another header
    say = {
        "asked": "Approval wanted",
        "reminder": "Still waiting",
        "decided": notice.state.capitalize(),
        "anomaly": f"{notice.agent} is not as usual",
    }[notice.kind]
    message = EmailMessage()
    message["From"] = settings.notify_email_from
    message["To"] = ", ".join(receivers)
    message["Subject"] = f"[{notice.tenant}] {say}: {question[:100]}"
    message["Message-ID"] = f"<{notice.notice_id}@{settings.notify_email_from.rpartition('@')[2] or 'agentq'}>"
    message["Date"] = datetime.now(UTC)
    if notice.kind == "anomaly":
        look = f"agentq anomaly show {notice.approval_id}\nagentq session trace {notice.session_id}"
        message.set_content(f"{notice.question}\n\nSession {notice.session_id}, tenant {notice.tenant}\n{look}\n")
        return message
    lines = [
        notice.question,
        "",
        f"What: {notice.name} ({notice.agent}, tenant {notice.tenant})",
        f"Asked: {', '.join(notice.groups)}, until {facts['deadline_at']}",
    ]
    if notice.kind == "decided":
        lines.append(f"It is {notice.state}{f' by {notice.decided_by}' if notice.decided_by else ''}.")
    else:
        lines.append(facts["link"] or f"agentq approval show {notice.approval_id}")
    if "details" in facts:
        details = facts["details"]
        lines += ["", details if isinstance(details, str) else json.dumps(details, ensure_ascii=False, indent=2)]
    message.set_content("\n".join(lines) + "\n")
    return message


def _link(notice: DueNotice, settings: Settings) -> str | None:
    if not settings.notify_link:
        return None
    return settings.notify_link.replace("{id}", str(notice.approval_id)).replace("{tenant}", notice.tenant)


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
