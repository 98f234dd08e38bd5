"""Notices: signed, retried, told at least once under one id, and telling no more than they may."""

from __future__ import annotations

import http.server
import json
import smtplib
import socket
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from aiosmtpd.controller import Controller

from agentq.errors import ConfigError
from agentq.relay.notices import ID_HEADER, SIGNATURE_HEADER, Mail, Notices, Undelivered, verify
from agentq.settings import Settings
from agentq.store.approvals import Approvals, DueNotice
from agentq.store.pool import Store
from agentq.testing import Clock
from tests.support.hands import Hands, new_ask, step

SECRET = "s3cret"


class Receiver:
    """A webhook that keeps what it was told, and answers as it is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.heard.append((dict(self.headers), body))
                self.send_response(receiver.answers.pop(0) if receiver.answers else 204)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?token=t0ken"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


@pytest.fixture
def clocked(store: Store) -> Iterator[tuple[Store, Clock]]:
    clocked = Store(store.url, size=3, name="agentq tests clock")
    yield clocked, Clock(clocked)
    clocked.close()


def told(hands: Hands, *channels: str, **more: Any) -> uuid.UUID:
    """A question whose channels are to be told."""
    claim = hands.begin()
    waiting = step("then", approval=uuid.uuid4())
    question = new_ask(waiting, channels=channels, args=b'{"password":"hunter2"}', details=b'"the story"', **more)
    hands.settle(claim, "next", steps=(waiting,), asks=(question,))
    return question.approval_id


def with_webhook(settings: Settings, receiver: Receiver, **more: Any) -> Settings:
    given = {"notify_webhook_url": receiver.url, "notify_webhook_secret": SECRET} | more
    return settings.model_copy(update=given)


def drained(notices: Notices) -> None:
    while notices.round():
        pass


def test_a_question_is_told_signed_and_without_its_arguments(
    hands: Hands, settings: Settings, receiver: Receiver
) -> None:
    """
    The question and where to answer it: no arguments, no details, no state. The signature covers all of it.
    """
    approval = told(hands, "webhook")
    linked = with_webhook(settings, receiver, notify_link="https://ops.example/{tenant}/{id}")
    drained(Notices(Approvals(hands.store), linked))
    [(headers, body)] = mine(receiver, hands)
    facts = json.loads(body)
    assert (facts["approval"], facts["kind"], facts["question"]) == (str(approval), "asked", "May it?")
    assert facts["link"] == f"https://ops.example/{hands.tenant}/{approval}"
    assert b"hunter2" not in body
    assert b"the story" not in body
    assert verify(SECRET, headers[SIGNATURE_HEADER], body)
    assert not verify("another", headers[SIGNATURE_HEADER], body)
    assert not verify(SECRET, headers[SIGNATURE_HEADER], body + b" ")
    assert not verify(SECRET, headers[SIGNATURE_HEADER], body, at=0.0), "a replay of an old notice"
    assert not verify(SECRET, "nonsense", body)
    assert headers[ID_HEADER] == facts["id"]


def mine(receiver: Receiver, hands: Hands) -> list[tuple[dict[str, str], bytes]]:
    return [(headers, body) for headers, body in receiver.heard if json.loads(body)["tenant"] == hands.tenant]


def test_details_are_told_where_that_is_allowed(hands: Hands, settings: Settings, receiver: Receiver) -> None:
    told(hands, "webhook")
    drained(Notices(Approvals(hands.store), with_webhook(settings, receiver, notify_details=True)))
    assert json.loads(mine(receiver, hands)[0][1])["details"] == "the story"


def test_a_receiver_that_refuses_is_told_again_under_the_same_id(
    hands: Hands, settings: Settings, receiver: Receiver, clocked: tuple[Store, Clock]
) -> None:
    """
    500, then a redirect (not followed), then taken: three POSTs, one id, and then silence.
    """
    store, clock = clocked
    approval = told(hands, "webhook")
    notices = Notices(Approvals(store), with_webhook(settings, receiver))
    receiver.answers = [500, 302]
    for _ in range(5):
        drained(notices)
        clock.advance("5m")
    ids = [headers[ID_HEADER] for headers, _ in mine(receiver, hands)]
    assert (len(ids), len(set(ids))) == (3, 1)
    [row] = Approvals(store).notices(hands.tenant, approval)
    assert (row.state, row.attempts) == ("sent", 3)


def test_a_failure_shows_no_address(hands: Hands, settings: Settings, receiver: Receiver) -> None:
    """
    The URL may hold a token, so what is kept of an error is its kind.
    """
    approval = told(hands, "webhook")
    receiver.server.shutdown()
    receiver.server.server_close()
    drained(Notices(Approvals(hands.store), with_webhook(settings, receiver)))
    [row] = Approvals(hands.store).notices(hands.tenant, approval)
    assert (row.state, row.failure) == ("due", "webhook: ConnectError")


def test_a_sender_that_dies_leaves_it_to_the_next(
    hands: Hands, settings: Settings, receiver: Receiver, clocked: tuple[Store, Clock]
) -> None:
    """
    Sent and not written down: the next sender repeats it under the same id. Nothing is lost.
    """
    store, clock = clocked
    told(hands, "webhook")
    approvals = Approvals(store)
    real = approvals.settle_notice
    approvals.settle_notice = lambda *_, **__: (_ for _ in ()).throw(SystemExit)  # type: ignore[method-assign]
    with pytest.raises(SystemExit):
        drained(Notices(approvals, with_webhook(settings, receiver)))
    approvals.settle_notice = real  # type: ignore[method-assign]
    drained(Notices(approvals, with_webhook(settings, receiver)))
    assert len(mine(receiver, hands)) == 1, "it is leased: not at once"
    clock.advance(61)
    drained(Notices(approvals, with_webhook(settings, receiver)))
    ids = [headers[ID_HEADER] for headers, _ in mine(receiver, hands)]
    assert (len(ids), len(set(ids))) == (2, 1)


def test_a_notice_that_nobody_takes_is_given_up_and_said(
    hands: Hands, settings: Settings, clocked: tuple[Store, Clock]
) -> None:
    store, clock = clocked
    approval = told(hands, "webhook")

    def refuse(notice: DueNotice) -> None:
        raise Undelivered("no")

    notices = Notices(Approvals(store), settings, channels={"webhook": refuse})
    for _ in range(15):
        drained(notices)
        clock.advance("61m")
    [row] = Approvals(store).notices(hands.tenant, approval)
    assert (row.state, row.attempts, row.failure) == ("failed", 12, "no")


class Inbox:
    """A mail server's other side."""

    def __init__(self) -> None:
        self.mails: list[tuple[list[str], bytes]] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.mails.append((envelope.rcpt_tos, envelope.content))
        return "250 taken"


@pytest.fixture
def inbox() -> Iterator[tuple[Inbox, str]]:
    inbox = Inbox()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    controller = Controller(inbox, hostname="127.0.0.1", port=port)
    controller.start()
    yield inbox, f"smtp://127.0.0.1:{port}"
    controller.stop()


def test_mail_goes_to_the_approvers_of_the_group(hands: Hands, settings: Settings, inbox: tuple[Inbox, str]) -> None:
    """
    To those who may decide it, or else to the common address; a line break in a question begins no header.
    """
    box, url = inbox
    given = {
        "notify_smtp_url": url,
        "notify_email_from": "agentq@acme.example",
        "notify_email_to": ("all@acme.example",),
        "approvers": {"ada": {"groups": ["finance"], "email": "ada@acme.example"}, "bob": {"groups": ["ops"]}},
    }
    mailing = Settings(**settings.model_dump() | given)
    told(hands, "email", groups=("finance",), question="Really?\r\nBcc: eve@evil.example")
    told(hands, "email", groups=("ops",))
    drained(Notices(Approvals(hands.store), mailing))
    assert sorted(to for receivers, _ in box.mails for to in receivers) == ["ada@acme.example", "all@acme.example"]
    for _, content in box.mails:
        head, _, body = content.partition(b"\r\n\r\n")
        assert b"\r\nBcc" not in head
        assert b"hunter2" not in body
        assert b"agentq approval show" in body


def test_a_password_goes_out_under_tls_alone(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    mail = Mail(
        Settings(
            **settings.model_dump() | {"notify_smtp_url": "smtp://u:p@mail.example", "notify_email_from": "a@b.example"}
        )
    )
    server = smtplib.SMTP()
    monkeypatch.setattr(server, "ehlo", lambda: None)
    monkeypatch.setattr(server, "has_extn", lambda name: False)
    with pytest.raises(Undelivered, match="STARTTLS"):
        mail._log_in(server)


@pytest.mark.parametrize("url", ["mailto:x", "smtp://", "smtp://host:port"])
def test_an_address_that_is_none_is_refused_at_start(settings: Settings, url: str) -> None:
    with pytest.raises(ConfigError, match="notify_smtp_url"):
        Mail(settings.model_copy(update={"notify_smtp_url": url}))
