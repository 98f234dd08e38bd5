"""The mailbox reads whatever arrives, and never raises."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tasks.support_desk.mailbox import BODY_MAX, SUBJECT_MAX, read_mail

TICKETS = Path(__file__).parents[2] / "tasks" / "support_desk" / "tickets"


def ticket(name: str) -> bytes:
    return (TICKETS / name).read_bytes()


def test_a_plain_mail_is_read():
    mail = read_mail(ticket("alpenglow/01-refund-poles.eml"))

    assert (mail.sender, mail.name) == ("marta@kowalska.example", "Marta Kowalska")
    assert mail.subject == "Refund for my trekking poles"
    assert mail.body.startswith("Hello,")
    assert mail.problems == ()


def test_other_charsets_are_decoded():
    latin = read_mail(ticket("alpenglow/16-changement-adresse-latin1.eml"))
    assert latin.name == "François Dubois"
    assert "3 allée des Érables" in latin.body

    japanese = read_mail(ticket("lumen/01-henkin-iso2022jp.eml"))
    assert (japanese.name, japanese.subject) == ("田中由紀", "返金のお願い")
    assert "LU-3001" in japanese.body


def test_of_html_only_what_people_see_is_read():
    mail = read_mail(ticket("alpenglow/17-maps-html-only.eml"))

    assert "AG-1014" in mail.body
    assert "AG-1013" not in mail.body  # display: none
    assert "AG-1002" not in mail.body  # a comment
    assert "color" not in mail.body
    assert mail.problems == ("HTML only",)


def test_parts_and_transfer_encodings_are_undone():
    assert "don’t work" in read_mail(ticket("lumen/06-bulbs-multipart.eml")).body
    assert "LU-3010" in read_mail(ticket("lumen/12-led-strip-attachment.eml")).body


def test_bytes_that_are_not_what_the_header_says_are_shown_as_well_as_can_be():
    mail = read_mail(ticket("kettle-co/11-broken-bytes.eml"))

    assert "isn’t what the picture shows" in mail.body
    assert mail.subject == "whisk set – KC-2010"
    assert mail.problems == ("body is not utf-8",)


def test_noise_is_called_noise():
    mail = read_mail(ticket("lumen/19-binary-junk.eml"))

    assert mail.sender == "scanner@office.example"
    assert mail.body == ""
    assert "body is not text" in mail.problems


def test_a_huge_subject_is_cut():
    assert len(ticket("kettle-co/15-huge-subject.eml")) > 10_000
    assert len(read_mail(ticket("kettle-co/15-huge-subject.eml")).subject) == SUBJECT_MAX


def test_a_huge_body_is_cut():
    mail = read_mail(b"From: a@b.example\n\n" + b"word " * BODY_MAX)

    assert len(mail.body) == BODY_MAX
    assert mail.problems == ("body cut at 20,000 characters",)


def test_an_encoded_name_cannot_smuggle_a_line_or_another_address():
    mail = read_mail(ticket("lumen/17-five-thousand.eml"))

    assert mail.sender == "d.miller@mail.example"
    assert "\n" not in mail.name
    assert "\r" not in mail.name


@pytest.mark.parametrize("name", ["alpenglow/18-no-headers.txt", "lumen/20-no-return-address.eml"])
def test_without_a_return_address_there_is_no_sender(name):
    mail = read_mail(ticket(name))

    assert mail.sender == ""
    assert "no usable return address" in mail.problems


@pytest.mark.parametrize(
    ("headers", "sender"),
    [
        (b"From: broken\nReply-To: <a@b.example>", "a@b.example"),
        (b"Return-Path: <a@b.example>", "a@b.example"),
        (b"From: MAILER-DAEMON@b.example", ""),
        (b"From: no-reply@b.example", ""),
        (b"From: a@localhost", ""),
        (b'From: "x" <a@b.example>, <c@d.example>', "a@b.example"),
    ],
)
def test_who_can_be_answered(headers, sender):
    assert read_mail(headers + b"\n\nhello").sender == sender


def test_what_a_machine_wrote_is_marked():
    assert read_mail(ticket("kettle-co/19-out-of-office.eml")).automatic
    assert not read_mail(ticket("alpenglow/01-refund-poles.eml")).automatic


def test_no_bytes_make_it_raise():
    """
    Random bytes, and every ticket with random damage: a mail is read, or found unreadable.
    """
    dice = random.Random(4)
    tickets = [path.read_bytes() for path in sorted(TICKETS.glob("*/*")) if path.suffix in (".eml", ".txt")]
    for _ in range(150):
        read_mail(dice.randbytes(dice.randrange(600)))
        damaged = bytearray(dice.choice(tickets))
        for _ in range(dice.randrange(1, 40)):
            at = dice.randrange(len(damaged))
            damaged[at : at + dice.randrange(4)] = dice.randbytes(dice.randrange(4))
        mail = read_mail(bytes(damaged))
        assert "\n" not in mail.sender + mail.name + mail.subject + mail.message_id
