"""The demo's checks can fail: each kind of tampering with a record is seen."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

import pytest

from agentq.demo import checks
from agentq.demo.checks import Ended, Expected, Interference, Refund
from tasks.support_desk.services import mail_sink, payments

EXPECTED = [
    Expected("shop/1.eml", "refunded", refund=("A-1", 500)),
    Expected("shop/2.eml", "refunded", refund=("A-1", 500)),  # the same customer again
    Expected("shop/3.eml", "address_changed", address=("A-2", "new street")),
    Expected("shop/4.eml", "spam"),
    Expected("shop/5.txt", "fails"),
]
WANTED = {("shop", "A-1", 500)}


def ended(ticket: str, state: str = "done", failure: str = "", **result) -> Ended:
    return Ended(ticket, "shop", f"s-{ticket}", state, result or None, failure)


ENDED = [
    ended("shop/1.eml", ended="refunded", answer="<1>", refund="re_1", order="A-1", amount_cents=500),
    ended("shop/2.eml", ended="refunded", answer="<2>", refund="re_1", order="A-1", amount_cents=500),
    ended("shop/3.eml", ended="address_changed", answer="<3>"),
    ended("shop/4.eml", ended="spam"),
    ended("shop/5.txt", state="failed", failure="nobody to answer"),
]
MESSAGES = [{"ticket": f"shop/{n}.eml", "message_id": f"<{n}>"} for n in (1, 2, 3)]
MADE = [Refund("shop", "A-1", 500, "pay_1")]
REQUESTS = [{"payment": "pay_1", "key": "refund:pay_1"}] * 3


def test_a_good_run_passes():
    for check in (
        checks.sessions(EXPECTED, ENDED, repeated=0),
        checks.answers(EXPECTED, ENDED, MESSAGES),
        checks.refunds(WANTED, MADE, REQUESTS),
        checks.addresses(EXPECTED, {"A-1": "x", "A-2": "old"}, {"A-1": "x", "A-2": "new street"}),
        checks.judgement(EXPECTED, ENDED),
        checks.interference(Interference(in_hand=4, ran_again=4, unsent=3, found_again=3)),
    ):
        assert check.ok, check
        assert check.wrong == ()
    assert checks.granted(ENDED) == WANTED


@pytest.mark.parametrize(
    ("sessions", "repeated", "said"),
    [
        (ENDED[1:], 0, "shop/1.eml: 0 sessions"),
        ([*ENDED, ENDED[0]], 0, "shop/1.eml: 2 sessions"),
        ([*ENDED, ended("shop/9.eml")], 0, "nobody sent it"),
        ([replace(ENDED[0], state="running"), *ENDED[1:]], 0, "shop/1.eml: running"),
        (ENDED, 1, "1 sessions anew"),
    ],
)
def test_sessions_lost_doubled_or_stuck_are_seen(sessions, repeated, said):
    check = checks.sessions(EXPECTED, sessions, repeated)
    assert not check.ok
    assert said in " ".join(check.wrong)


@pytest.mark.parametrize(
    ("sessions", "messages", "said"),
    [
        (ENDED, MESSAGES[1:], "shop/1.eml: 0 answers"),
        (ENDED, [*MESSAGES, MESSAGES[0]], "shop/1.eml: 2 answers"),
        (ENDED, [*MESSAGES, {"ticket": "shop/4.eml", "message_id": "<4>"}], "ended as spam, yet 1"),
        (ENDED, [*MESSAGES, {"ticket": "other", "message_id": "<9>"}], "unknown ticket"),
        (ENDED, [{"ticket": "shop/1.eml", "message_id": "<x>"}, *MESSAGES[1:]], "another message"),
        ([*ENDED[:2], ended("shop/3.eml", state="failed", failure="dead"), *ENDED[3:]], MESSAGES[:2], "not answered"),
    ],
)
def test_answers_lost_doubled_or_unwanted_are_seen(sessions, messages, said):
    check = checks.answers(EXPECTED, sessions, messages)
    assert not check.ok
    assert said in " ".join(check.wrong)


@pytest.mark.parametrize(
    ("made", "requests", "said"),
    [
        ([], REQUESTS, "not made"),
        ([*MADE, *MADE], REQUESTS, "made 2 times"),
        ([replace(MADE[0], amount_cents=400)], REQUESTS, "nobody should have got it"),
        ([*MADE, Refund("shop", "A-7", 1, "pay_7")], REQUESTS, "nobody should have got it"),
        ([replace(MADE[0], tenant="other")], REQUESTS, "not made"),
        (MADE, [*REQUESTS, {"payment": "pay_1", "key": "another"}], "asked under 2 keys"),
    ],
)
def test_refunds_lost_doubled_or_wrong_are_seen(made, requests, said):
    check = checks.refunds(WANTED, made, requests)
    assert not check.ok
    assert said in " ".join(check.wrong)


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ({"A-1": "x", "A-2": "old"}, "A-2: goes to 'old'"),
        ({"A-1": "x", "A-2": "elsewhere"}, "A-2: goes to 'elsewhere'"),
        ({"A-1": "y", "A-2": "new street"}, "A-1: changed, and nobody asked"),
    ],
)
def test_wrong_addresses_are_seen(after, said):
    check = checks.addresses(EXPECTED, {"A-1": "x", "A-2": "old"}, after)
    assert not check.ok
    assert said in " ".join(check.wrong)


def test_another_decision_is_seen():
    check = checks.judgement(EXPECTED, [replace(ENDED[0], result={"ended": "too_late"}), *ENDED[1:]])
    assert not check.ok
    assert check.figures == "4 of 5"


@pytest.mark.parametrize("missed", [{"in_hand": 0}, {"ran_again": 3}, {"unsent": 0}, {"found_again": 2}])
def test_a_run_in_which_the_faults_hit_nothing_shows_nothing(missed):
    facts = {"in_hand": 4, "ran_again": 4, "unsent": 3, "found_again": 3} | missed
    assert not checks.interference(Interference(**facts)).ok


def test_many_wrongs_are_cut_short():
    check = checks.sessions([Expected(f"shop/{n}.eml", "thanks") for n in range(30)], [], repeated=0)
    assert len(check.wrong) == checks.SHOWN + 1
    assert check.wrong[-1] == "and 25 more"


# ── tampering with the real records ──────────────────────────────────────────


def test_a_refund_slipped_into_the_providers_record_is_seen(tmp_path):
    record = payments.Record(tmp_path / "payments.sqlite")
    record.note_payments([{"payment": "pay_1", "paid_cents": 2000, "currency": "EUR"}])
    body = {"payment": "pay_1", "amount_cents": 500, "currency": "EUR"}
    record.note_request("refund:pay_1", body)
    record.begin("refund:pay_1", "hash")
    record.refund("refund:pay_1", body)

    def check():
        made = [Refund("shop", "A-1", row["amount_cents"], row["payment"]) for row in record.refunds()]
        return checks.refunds(WANTED, made, record.requests())

    assert check().ok
    with sqlite3.connect(record.path) as tampering:
        tampering.execute("insert into refund select 're_2', at, key, payment, amount_cents, currency from refund")
    assert not check().ok


def test_an_answer_taken_from_the_mail_servers_record_is_seen(tmp_path):
    record = mail_sink.Record(tmp_path / "mail.sqlite")
    for message in MESSAGES:
        raw = f"Message-ID: {message['message_id']}\nX-Ticket: {message['ticket']}\n\nhello\n".encode()
        record.accept("help@shop.example", ["a@b.example"], raw)

    assert checks.answers(EXPECTED, ENDED, record.messages()).ok
    with sqlite3.connect(record.path) as tampering:
        tampering.execute("delete from message where ticket = 'shop/2.eml'")
    assert not checks.answers(EXPECTED, ENDED, record.messages()).ok
