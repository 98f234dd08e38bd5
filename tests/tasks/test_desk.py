"""The desk from mail to answer: real Postgres, real servers outside, and what happens when they fail."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from agentq.agents.registry import Registry, default_registry
from agentq.client import Client, Session
from agentq.demo import checks
from agentq.demo.checks import Ended, Expected, Refund
from agentq.errors import Permanent, SessionFailed
from agentq.testing import LocalFleet
from tasks.hello import hello
from tasks.support_desk import desk, model, orders, rules, tools
from tasks.support_desk.cases import Mail
from tasks.support_desk.places import PREFIX, Places, places
from tasks.support_desk.produce import TICKETS, mails, ticket
from tasks.support_desk.services import mail_sink, payments
from tasks.support_desk.services.outside import Temper

pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH")  # loopback only

REFUND_MAIL = (TICKETS / "alpenglow" / "01-refund-poles.eml").read_bytes()


@dataclass
class Outside:
    """The world outside, with its records."""

    orders: Path
    payments: payments.Record
    provider: payments.Provider
    sink: mail_sink.Sink

    def mood(self, monkeypatch: pytest.MonkeyPatch, *moods: str) -> None:
        """What becomes of the next requests, in turn; afterwards all goes well."""
        turn = iter(moods)
        monkeypatch.setattr(Temper, "mood", lambda _self: next(turn, "well"))


@pytest.fixture
def registry() -> Registry:
    """The fleet's own agents."""
    assert {desk.pin, hello.pin} <= set(default_registry.pins())
    return default_registry


@pytest.fixture
def outside(tmp_path: Path, tenant: str, other_tenant: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outside]:
    """Order database, payment provider and mail server; this test's tenants stand for two of the shops."""
    path = tmp_path / "orders.sqlite"
    orders.seed(path, payment_prefix=f"pay_{tenant}_")
    with closing(sqlite3.connect(path)) as connection, connection:
        for shop, name in (("alpenglow", tenant), ("lumen", other_tenant)):
            connection.execute("update orders set tenant = ? where tenant = ?", (name, shop))
    record = payments.Record(tmp_path / "payments.sqlite")
    record.note_payments(
        [
            {"payment": order.payment, "paid_cents": order.total_cents, "currency": order.currency}
            for _, order in orders.every(path)
        ]
    )
    temper = Temper(slow_s=1.0)
    provider = payments.Provider(record, temper, "p-token")
    threading.Thread(target=provider.serve_forever, args=(0.01,), daemon=True).start()
    sink = mail_sink.Sink(mail_sink.Record(tmp_path / "mail.sqlite"), temper, "m-token")
    sink.start()
    found = Places(path, provider.url, f"127.0.0.1:{sink.smtp_port}", sink.url, "p-token", "m-token")
    for name, value in found.as_environment().items():
        monkeypatch.setenv(name, value)
    places.cache_clear()
    model.endpoint.cache_clear()
    yield Outside(path, record, provider, sink)
    places.cache_clear()
    model.endpoint.cache_clear()
    provider.shutdown()
    provider.server_close()
    sink.stop()


@pytest.fixture
def here(client: Client, outside: Outside, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalFleet]:
    """A fleet in this process; what is started waits for it instead of going to the broker."""
    monkeypatch.setattr(client, "_admit", lambda _tenant: None)
    with LocalFleet(client) as fleet:
        yield fleet


def submit(client: Client, tenant: str, raw: bytes, source: str = "test.eml") -> Session:
    return client.start("support-desk", tenant=tenant, input=ticket(source, raw), key=source)


def test_two_mailboxes_from_mail_to_answer(here, client, outside, tenant, other_tenant):
    """The demo's own checks, against the records, for every ticket of two shops."""
    shops = {"alpenglow": tenant, "lumen": other_tenant}
    before = {order.number: order.address for _, order in orders.every(outside.orders)}
    truth = json.loads((TICKETS / "expected.json").read_text("utf-8"))
    expected = [Expected.from_json(name, truth[name]) for name in truth if name.split("/")[0] in shops]
    ended = []
    for shop, name in shops.items():
        for source, raw in mails(shop):
            view = here.drain(submit(client, name, raw, source))
            result = view.result if view.state == "done" else None
            failure = (view.failure or {}).get("message", "")
            ended.append(Ended(source, shop, view.id, view.state, result, failure))

    whose = {order.payment: order.number for _, order in orders.every(outside.orders)}
    made = [
        Refund(whose[row["payment"]][:2], whose[row["payment"]], row["amount_cents"], row["payment"])
        for row in outside.payments.refunds()
    ]
    wanted = {(e.refund[0][:2], *e.refund) for e in expected if e.refund}
    after = {order.number: order.address for _, order in orders.every(outside.orders)}
    for check in (
        checks.sessions(expected, ended, repeated=0),
        checks.answers(expected, ended, outside.sink.record.messages()),
        checks.refunds(wanted, made, outside.payments.requests()),
        checks.addresses(expected, before, after),
        checks.judgement(expected, ended),
    ):
        assert check.ok, check


def test_a_ticket_may_be_plain_text(here, client, outside, tenant):
    text = "From: Marta <marta@kowalska.example>\nSubject: poles\n\nWhere is AG-1001?"
    view = here.drain(client.start("support-desk", tenant=tenant, input={"ticket": text}))

    assert view.result["ended"] == "delivered"
    assert "JD0146000019" in outside.sink.record.text(view.id)


def test_the_raw_mail_is_not_carried_along(here, client, tenant, admin):
    """The state after `read` holds what was read, not the bytes that it was read from."""
    session = submit(client, tenant, REFUND_MAIL)
    here.drain(session)

    states = admin.execute("select state from agentq.checkpoint where session_id = %s", (session.id,)).fetchall()
    raw = ticket("x", REFUND_MAIL)["ticket"].encode()[:60]
    assert len(states) > 4
    assert all(raw not in (state or b"") for (state,) in states)


def test_two_tickets_about_one_order_are_one_refund(here, client, outside, tenant):
    results = []
    for name in ("09-gamaschen.eml", "10-gaiters-again.eml"):
        raw = (TICKETS / "alpenglow" / name).read_bytes()
        results.append(here.drain(submit(client, tenant, raw, name)).result)

    assert results[0]["refund"] == results[1]["refund"]
    assert len(outside.payments.refunds()) == len(outside.payments.requests()) == 1
    assert len(outside.sink.record.messages()) == 2


def test_another_amount_for_a_refunded_payment_goes_to_a_person(here, client, outside, tenant):
    here.drain(submit(client, tenant, REFUND_MAIL, "first"))
    part = REFUND_MAIL.replace(b"Best regards", b"Only 10.00 EUR of it.\n")
    view = here.drain(submit(client, tenant, part, "second"))

    assert view.result["ended"] == "needs_person"
    assert len(outside.payments.refunds()) == 1


@pytest.mark.parametrize("mood", ["refuses", "forgets"])
def test_a_provider_that_fails_is_asked_again_under_the_same_key(here, client, outside, tenant, monkeypatch, mood):
    outside.mood(monkeypatch, mood)
    view = here.drain(submit(client, tenant, REFUND_MAIL))

    assert view.result["ended"] == "refunded"
    assert len(outside.payments.refunds()) == 1
    asked = outside.payments.requests()
    assert len(asked) == 2
    assert len({request["key"] for request in asked}) == 1


def test_a_provider_that_answers_too_late_refunds_once(here, client, outside, tenant, monkeypatch):
    monkeypatch.setattr(tools, "PAYMENTS_TIMEOUT_S", 0.3)
    outside.mood(monkeypatch, "dawdles")
    view = here.drain(submit(client, tenant, REFUND_MAIL))

    assert view.result["ended"] == "refunded"
    assert len(outside.payments.refunds()) == 1


@pytest.mark.parametrize("mood", ["forgets", "dawdles"])
def test_a_message_whose_confirmation_was_lost_is_not_sent_twice(here, client, outside, tenant, monkeypatch, mood):
    monkeypatch.setattr(tools, "MAIL_TIMEOUT_S", 0.3)
    outside.mood(monkeypatch, "well", mood)  # the refund, then the mail
    view = here.drain(submit(client, tenant, REFUND_MAIL))

    [message] = outside.sink.record.messages()
    assert view.result["answer"] == message["message_id"]


def test_a_message_that_was_turned_away_is_sent_again(here, client, outside, tenant, monkeypatch):
    outside.mood(monkeypatch, "well", "refuses", "refuses")
    here.drain(submit(client, tenant, REFUND_MAIL))

    assert outside.sink.record.refusals() == 2
    assert len(outside.sink.record.messages()) == 1


def test_a_mail_server_that_does_not_say_is_not_sent_to(here, client, outside, tenant, monkeypatch):
    """
    Whether the first message was taken is not known, and the one who could tell is away: ask on, send nothing.
    """
    outside.mood(monkeypatch, "well", "forgets")
    asked = []
    known = outside.sink.record.find

    def find(message_id: str) -> Any:
        asked.append(message_id)
        if len(asked) < 3:
            raise RuntimeError("out of order")
        return known(message_id)

    monkeypatch.setattr(outside.sink.record, "find", find)
    view = here.drain(submit(client, tenant, REFUND_MAIL))

    assert view.state == "done"
    assert len(asked) == 3
    assert len(outside.sink.record.messages()) == 1


def test_the_answer_is_a_decent_mail(here, client, outside, tenant):
    here.drain(submit(client, tenant, (TICKETS / "alpenglow" / "16-changement-adresse-latin1.eml").read_bytes()))

    with closing(sqlite3.connect(outside.sink.record.path)) as connection:
        [(raw,)] = connection.execute("select raw from message").fetchall()
    head = raw.split(b"\r\n\r\n")[0]
    assert b"In-Reply-To: <16@courriel.example>" in head
    assert b"Auto-Submitted: auto-replied" in head
    assert b"f.dubois@courriel.example" in head
    assert "3 allée des Érables" in outside.sink.record.text("test.eml")


def test_nobody_to_answer_is_a_failure_with_its_reason(here, client, tenant):
    view = here.drain(submit(client, tenant, b"hello?"))

    assert view.state == "failed"
    with pytest.raises(SessionFailed, match="nobody to answer: no usable return address"):
        _ = view.result


def test_without_its_servers_the_desk_says_what_to_do(here, client, tenant, monkeypatch):
    monkeypatch.delenv(f"{PREFIX}SMTP")
    places.cache_clear()

    with pytest.raises(Permanent, match=r"set DESK_SMTP, or start them with `agentq demo`"):
        here.drain(submit(client, tenant, REFUND_MAIL))


def test_no_password_is_shown():
    assert "sesame" not in repr(Places(Path(), "", "", "", payments_token="sesame", mail_token="sesame"))


# ── with a model ─────────────────────────────────────────────────────────────


class Completions(BaseHTTPRequestHandler):
    """An endpoint that speaks chat completions; what it answers is what the rules would."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = json.loads(asked["messages"][1]["content"])
        if asked["messages"][0]["content"] == model.READ:
            understood = rules.understand(Mail(subject=said["subject"], body=said["body"]))
            amounts = [understood.amount_cents / 100] if understood.amount_cents else []
            answer: dict[str, Any] = understood.model_dump(include={"intent", "language", "orders", "address"})
            answer["amounts"] = amounts
        else:
            answer = {"text": f"Dear customer: {said['decision']} {json.dumps(said['facts'])}. Your support desk"}
        choice = {"message": {"content": json.dumps(answer)}, "finish_reason": "stop"}
        data = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 400, "completion_tokens": 50}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def completions(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Completions)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("AGENTQ_DEMO_MODEL", "some-model")
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1/")
    monkeypatch.setenv("AGENTQ_DEMO_PRICES", "1.00/2.00")
    model.endpoint.cache_clear()
    yield "some-model"
    model.endpoint.cache_clear()
    server.shutdown()
    server.server_close()


def test_a_model_takes_the_same_steps_and_its_cost_is_known(here, client, outside, tenant, completions):
    view = here.drain(submit(client, tenant, REFUND_MAIL))

    assert view.result["ended"] == "refunded"
    assert view.result["by"] == completions
    assert "79.90 EUR" in outside.sink.record.text("test.eml")
    assert (view.input_tokens, view.output_tokens) == (800, 100)
    assert view.cost_usd == pytest.approx(0.001)


def test_a_model_is_not_asked_again_when_the_mail_must_be(here, client, outside, tenant, completions, monkeypatch):
    outside.mood(monkeypatch, "well", "refuses", "refuses", "refuses")
    view = here.drain(submit(client, tenant, REFUND_MAIL))

    assert (view.input_tokens, view.output_tokens) == (800, 100)
    assert len(outside.sink.record.messages()) == 1


# ── the first agent of one's own ─────────────────────────────────────────────


def test_hello(here, client, tenant):
    view = here.drain(client.start("hello", tenant=tenant, input={"name": "Ada"}))
    assert view.result == "Hello, Ada!"


def test_parcels(here, client, tenant):
    from tasks.parcels import parcels

    assert parcels.pin in default_registry.pins()
    view = here.drain(client.start("parcels", tenant=tenant, input={"prompt": "Where are AB-1001 and AB-1002?"}))
    assert view.result == "AB-1001 is shipped; AB-1002 is being packed"
