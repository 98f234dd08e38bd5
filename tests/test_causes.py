"""Causes: the same trouble under one fingerprint, different troubles under different ones."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from agentq.causes import cause_of, normal
from agentq.policies.failures import classify
from agentq.verdicts import Failure

# Each entry is one cause, as several sessions would report it.
SAME: list[tuple[str, list[str]]] = [
    (entry["type"], entry["messages"])
    for entry in json.loads(Path(__file__).with_name("causes.json").read_text("utf-8"))
]


def fingerprint(type_: str, message: str) -> str:
    return cause_of(kind="transient", type=type_, message=message, place="pay.py charge").fingerprint


@pytest.mark.parametrize(("type_", "messages"), SAME, ids=[f"{n}-{type_}" for n, (type_, _) in enumerate(SAME)])
def test_the_same_cause_has_one_fingerprint(type_: str, messages: list[str]) -> None:
    """
    Whatever ids, amounts, times, paths, addresses and customers its message names.
    """
    assert len({fingerprint(type_, message) for message in messages}) == 1, [normal(m, type=type_) for m in messages]


def test_different_causes_have_different_fingerprints() -> None:
    """
    No two of the corpus fall together.
    """
    for (one, ones), (other, others) in itertools.combinations(SAME, 2):
        assert fingerprint(one, ones[0]) != fingerprint(other, others[0]), (ones[0], others[0])


def test_kind_type_and_place_count() -> None:
    """
    The line number in the place does not: an edit above would begin a new cause.
    """
    facts = {"kind": "transient", "type": "X", "message": "m", "place": "pay.py:12 charge"}
    base = cause_of(**facts).fingerprint
    assert cause_of(**facts | {"place": "pay.py:99 charge"}).fingerprint == base
    for change in ({"kind": "permanent"}, {"type": "Y"}, {"message": "n"}, {"place": "pay.py:12 refund"}):
        assert cause_of(**facts | change).fingerprint != base


def test_no_data_of_anybody_is_in_the_text() -> None:
    """
    It is shown in lists and sent to the broker.
    """
    message = "card 4242 4242 4242 4242 of a@example.com in '/home/a' at https://x.example/?token=abc was \"Alice\""
    text = cause_of(kind="permanent", type="X", message=message, place="p").text
    assert text == "X in p: card <id> of <email> in <text> at <url> was <text>"


def test_a_hostile_message_costs_nothing() -> None:
    """
    No rule takes more than linear time, or close to it, however long and odd the message is.
    """
    import time

    for piece in ("'", '"', "a" * 50, "1,", "{", "<n> ", "a.a", "/a", "\\", "0x", "-1 and ", "@a", "=", "ab12-"):
        message = piece * (20_000 // len(piece))
        began = time.perf_counter()
        normal(message)
        assert time.perf_counter() - began < 0.5, piece


def test_the_place_is_the_users_own_code() -> None:
    """
    Not the library in which it broke, nor agentq; so the same broken call is one cause, and two calls are two.
    """

    def fetch_order() -> None:
        json.loads("{")

    def fetch_user() -> None:
        json.loads("{")

    found = []
    for call in (fetch_order, fetch_user):
        try:
            call()
        except ValueError as error:
            found.append(classify(error))
    assert [failure.place for failure in found] == ["test_causes.py fetch_order", "test_causes.py fetch_user"]
    assert found[0].where.startswith("decoder.py:")
    assert found[0].cause("a", "b").fingerprint != found[1].cause("a", "b").fingerprint


def test_without_a_frame_the_step_is_the_place() -> None:
    timeout = Failure("timeout", "DeadlineExceeded", "no answer within 30 s")
    assert timeout.cause("refunds", "pay").fingerprint != timeout.cause("refunds", "look_up").fingerprint
