"""The rules and the policy decide every ticket of the demo as a person did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from tasks.support_desk import model, orders, policy, rules
from tasks.support_desk.cases import Decision, Mail, Order, Outcome, Understood
from tasks.support_desk.mailbox import read_mail

TICKETS = Path(rules.__file__).with_name("tickets")
EXPECTED = json.loads((TICKETS / "expected.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    path = tmp_path_factory.mktemp("shop") / "orders.sqlite"
    orders.seed(path, payment_prefix="pay_test_")
    return path


def judge(shop: Path, tenant: str, raw: bytes) -> tuple[Mail, Understood, Decision]:
    mail = read_mail(raw)
    asked = rules.understand(mail)
    order = orders.find(shop, tenant, asked.orders[0]) if asked.orders else None
    return mail, asked, policy.decide(mail, asked, order, tuple(orders.of_customer(shop, tenant, mail.sender)))


def test_every_ticket_is_in_the_ground_truth():
    files = {str(path.relative_to(TICKETS)) for path in TICKETS.glob("*/*")}

    assert files == set(EXPECTED)
    assert 55 <= len(files) <= 70


@pytest.mark.parametrize("ticket", EXPECTED)
def test_a_ticket_is_decided_as_a_person_did(shop, ticket):
    expected = EXPECTED[ticket]
    mail, asked, decision = judge(shop, ticket.split("/")[0], (TICKETS / ticket).read_bytes())

    match expected["ends"]:
        case "fails":
            assert not mail.sender
        case "automatic":
            assert mail.automatic
        case "unreadable":
            assert mail.sender
            assert not mail.body
        case "spam":
            assert asked.intent == "spam"
        case ends:
            assert decision.outcome == ends
    if "refund" in expected:
        assert [decision.order, decision.amount_cents] == expected["refund"]
        assert decision.payment
    elif expected["ends"] != "automatic":  # never comes as far as a decision
        assert not decision.payment
    if "address" in expected:
        assert [decision.order, decision.address] == expected["address"]


def test_no_refund_without_the_customers_own_address(shop):
    """The refund of every ticket, asked for by a stranger, is refused."""
    for ticket, expected in EXPECTED.items():
        if "refund" not in expected:
            continue
        tenant = ticket.split("/")[0]
        mail, asked, _ = judge(shop, tenant, (TICKETS / ticket).read_bytes())
        order = orders.find(shop, tenant, expected["refund"][0])
        stranger = mail.model_copy(update={"sender": "stranger@else.example"})
        assert policy.decide(stranger, asked, order).outcome == "not_yours"


def test_another_tenants_order_is_unknown(shop):
    assert orders.find(shop, "alpenglow", "AG-1001")
    assert orders.find(shop, "lumen", "AG-1001") is None
    assert orders.of_customer(shop, "lumen", "marta@kowalska.example") == []


def an_order(**facts) -> Order:
    return Order.model_validate(
        {
            "number": "AG-1",
            "email": "a@b.example",
            "customer": "A",
            "item": "rope",
            "total_cents": 8000,
            "currency": "EUR",
            "status": "delivered",
            "delivered_days": 3,
            "address": "somewhere",
            "payment": "pay_1",
        }
        | facts
    )


@pytest.mark.parametrize(
    ("asked", "order", "outcome"),
    [
        ({}, {}, "refunded"),
        ({"amount_cents": 8000, "amounts_named": 1}, {}, "refunded"),
        ({"amount_cents": 8001, "amounts_named": 1}, {}, "needs_person"),
        ({"amount_cents": 0, "amounts_named": 1}, {}, "needs_person"),
        ({"amounts_named": 2}, {}, "needs_person"),
        ({"orders": ("AG-1", "AG-2")}, {}, "needs_person"),
        ({}, {"total_cents": 30_001}, "needs_person"),
        ({}, {"delivered_days": 60}, "refunded"),
        ({}, {"delivered_days": 61}, "too_late"),
        ({}, {"status": "shipped", "delivered_days": None}, "not_arrived"),
        ({}, {"status": "cancelled", "delivered_days": None}, "already_cancelled"),
        ({}, {"status": "packing", "delivered_days": None}, "refunded"),
    ],
)
def test_refund_policy(asked, order, outcome):
    understood = Understood.model_validate({"intent": "refund", "orders": ("AG-1",)} | asked)

    decision = policy.decide(Mail(sender="a@b.example"), understood, an_order(**order))

    assert decision.outcome == outcome
    assert bool(decision.payment) == (outcome == "refunded")


@pytest.mark.parametrize(
    ("text", "cents"),
    [
        ("please refund €12.50", [1250]),
        ("12,50 EUR bitte", [1250]),
        ("1.299,00 € oder £1,299.00", [129900]),
        ("$5 and 7 dollars", [500, 700]),
        ("order AG-1001 of 2024, 3 items", []),
    ],
)
def test_amounts(text, cents):
    assert rules._amounts(text) == cents


def test_every_outcome_can_be_worded_in_every_language():
    mail = Mail(sender="a@b.example", name="A {name}", subject="{order}", body="x")
    for language in ("en", "de", "es", "fr", "it", "pl", "ja", "ar", "xx"):
        for outcome in get_args(Outcome):
            decision = Decision(outcome=outcome, order="AG-1", amount_cents=1250, currency="EUR")
            text = rules.word(mail, Understood(intent="unclear", language=language), decision)
            assert "A {name}" in text
            assert "{item}" not in text
            if outcome == "refunded":
                assert "12.50 EUR" in text


def test_every_outcome_has_a_meaning_for_the_model():
    assert set(model.MEANING) == set(get_args(Outcome))
