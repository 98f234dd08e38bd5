"""The payment provider and the mail server keep their promises, and their own records."""

from __future__ import annotations

import json
import smtplib
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from pathlib import Path

import httpx
import pytest

from tasks.support_desk.services import mail_sink, payments
from tasks.support_desk.services.outside import Temper

pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH")  # loopback only

DESK = Path(__file__).parents[2] / "tasks" / "support_desk"
BODY = {"payment": "pay_1", "amount_cents": 500, "currency": "EUR"}


class Provider:
    """A running provider, and how to ask it."""

    def __init__(self, path: Path, temper: Temper) -> None:
        self.record = payments.Record(path)
        self.record.note_payments([{"payment": "pay_1", "paid_cents": 2000, "currency": "EUR"}])
        self.server = payments.Provider(self.record, temper, "secret")
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def ask(self, key: str = "k1", token: str = "secret", timeout: float = 10, **change) -> httpx.Response:
        headers = {"Idempotency-Key": key, "Authorization": f"Bearer {token}"}
        return httpx.post(f"{self.server.url}/refunds", json=BODY | change, headers=headers, timeout=timeout)

    def made(self) -> list[int]:
        return [refund["amount_cents"] for refund in self.record.refunds()]


@pytest.fixture
def provider(tmp_path):
    started = []

    def start(temper: Temper | None = None) -> Provider:
        started.append(Provider(tmp_path / "payments.sqlite", temper or Temper()))
        return started[-1]

    yield start
    for each in started:
        each.server.shutdown()
        each.server.server_close()


def test_the_same_key_and_body_get_the_stored_answer(provider):
    shop = provider()
    first, again = shop.ask(), shop.ask()

    assert first.status_code == again.status_code == 201
    assert first.json() == again.json()
    assert shop.made() == [500]
    assert [request["status"] for request in shop.record.requests()] == [201, 201]


def test_the_same_key_with_another_body_is_refused(provider):
    shop = provider()
    shop.ask()
    assert shop.ask(amount_cents=600).status_code == 422
    assert shop.made() == [500]


def test_another_key_is_another_refund(provider):
    """The provider protects nobody who forgets the key: the desk must send the same one."""
    shop = provider()
    assert shop.ask("k1").json()["id"] != shop.ask("k2").json()["id"]
    assert shop.made() == [500, 500]


def test_no_more_comes_back_than_was_paid(provider):
    shop = provider()
    assert shop.ask("k1", amount_cents=1999).status_code == 201
    assert shop.ask("k2", amount_cents=2).status_code == 422
    assert shop.ask("k3", payment="pay_0").status_code == 404
    assert shop.ask("k4", currency="USD").status_code == 422
    assert shop.ask("k5", amount_cents=-5).status_code == 400
    assert shop.ask("k6", token="wrong").status_code == 401
    assert shop.made() == [1999]


def test_fifty_at_once_with_one_key_are_one_refund(provider):
    shop = provider(Temper(latency_s=(0.05, 0.05)))
    with ThreadPoolExecutor(16) as pool:
        statuses = {answer.status_code for answer in pool.map(lambda _: shop.ask(), range(50))}

    assert statuses <= {201, 409}
    assert shop.made() == [500]
    assert len(shop.record.requests()) == 50


def test_a_lost_answer_is_not_a_lost_refund(provider, monkeypatch):
    shop = provider(Temper(fail=1.0))
    monkeypatch.setattr("random.random", lambda: 0.6)
    assert shop.ask().status_code == 502
    assert shop.made() == [500]

    assert shop.ask().status_code == 201  # the stored answer, under the same key
    assert shop.made() == [500]


def test_a_refusal_did_nothing(provider, monkeypatch):
    shop = provider(Temper(fail=1.0))
    monkeypatch.setattr("random.random", lambda: 0.1)
    assert shop.ask().status_code == 503
    assert shop.made() == []


def test_a_late_answer_leaves_the_refund_made(provider):
    shop = provider(Temper(slow=1.0, slow_s=1.0))
    with pytest.raises(httpx.ReadTimeout):
        shop.ask(timeout=0.3)
    assert shop.made() == [500]


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"payment": 1}'])
def test_nonsense_is_refused(provider, content):
    shop = provider()
    headers = {"Idempotency-Key": "k", "Authorization": "Bearer secret"}
    assert httpx.post(f"{shop.server.url}/refunds", content=content, headers=headers).status_code == 400


# ── the mail server ──────────────────────────────────────────────────────────


@pytest.fixture
def sink(tmp_path):
    started = []

    def start(temper: Temper | None = None) -> mail_sink.Sink:
        sink = mail_sink.Sink(mail_sink.Record(tmp_path / "mail.sqlite"), temper or Temper(), "secret")
        sink.start()
        started.append(sink)
        return sink

    yield start
    for each in started:
        each.stop()


def send(sink: mail_sink.Sink, message_id: str = "<1@desk.example>", password: str = "secret") -> None:
    message = EmailMessage()
    message["From"], message["To"] = "help@desk.example", "ana@lucia.example"
    message["Subject"], message["Message-ID"], message["X-Ticket"] = "Re: Größe", message_id, "shop/1.eml"
    message.set_content("Grüße\n")
    with smtplib.SMTP("127.0.0.1", sink.smtp_port, timeout=10) as server:
        server.login("desk", password)
        server.send_message(message)


def asked(sink: mail_sink.Sink, message_id: str, token: str = "secret") -> int:
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.get(f"{sink.url}/messages/{message_id.replace('<', '%3C')}", headers=headers).status_code


def test_a_message_is_recorded_and_can_be_asked_for(sink):
    server = sink()
    assert asked(server, "<1@desk.example>") == 404
    send(server)

    [message] = server.record.messages()
    assert message["recipient"] == "ana@lucia.example"
    assert (message["subject"], message["ticket"]) == ("Re: Größe", "shop/1.eml")
    assert server.record.text("shop/1.eml").strip() == "Grüße"
    assert asked(server, "<1@desk.example>") == 200
    assert asked(server, "<1@desk.example>", token="wrong") == 401


def test_a_message_sent_twice_is_two_messages(sink):
    """SMTP knows no idempotency; that is why the desk's tool asks before it repeats."""
    server = sink()
    send(server)
    send(server)
    assert len(server.record.messages()) == 2


def test_without_the_password_nothing_is_taken(sink):
    server = sink()
    with pytest.raises(smtplib.SMTPAuthenticationError):
        send(server, password="guessed")
    assert server.record.messages() == []


def test_a_greylisted_message_was_not_taken(sink, monkeypatch):
    server = sink(Temper(fail=1.0))
    monkeypatch.setattr("random.random", lambda: 0.1)
    with pytest.raises(smtplib.SMTPDataError, match="451"):
        send(server)
    assert server.record.messages() == []
    assert server.record.refusals() == 1


def test_a_lost_answer_means_the_message_is_out(sink, monkeypatch):
    server = sink(Temper(fail=1.0))
    monkeypatch.setattr("random.random", lambda: 0.6)
    with pytest.raises(smtplib.SMTPDataError, match="421"):
        send(server)
    assert asked(server, "<1@desk.example>") == 200


# ── as processes ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["payments", "mail_sink"])
def test_a_server_knows_nothing_of_agentq_and_ends_with_its_starter(tmp_path, name):
    command = [sys.executable, "-X", "importtime", "-m", f"services.{name}", "--with-starter"]
    command += ["--record", str(tmp_path / "r.sqlite"), "--address-file", str(tmp_path / "a.json")]
    server = subprocess.Popen(
        command,
        cwd=DESK,
        env={"PAYMENTS_TOKEN": "x", "MAIL_TOKEN": "x"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert server.stdout
    assert server.stdout.readline().startswith(b"listening:")
    url = json.loads((tmp_path / "a.json").read_text())["url"]
    assert httpx.get(f"{url}/health").json() == {"ok": True}

    _, imported = server.communicate(timeout=10)  # closes its standard input
    assert server.returncode == 0
    assert b"agentq" not in imported
    assert b"celery" not in imported
