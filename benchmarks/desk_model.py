"""The model of `benchmarks.desk`: what it answers to a conversation, and how it fails now and then."""

from __future__ import annotations

import json
import random
import re
import threading
from collections import Counter
from typing import Any

from tests.support.openai_server import Reply, Request, error

_TICKET = re.compile(r"Ticket \d+ about (\S+): (\w+) (\d+)")
_ACTIONS = {"refund": "issue_refund", "move": "change_address"}


class Mind:
    """
    Answers as a model would that does its work, from what the conversation shows alone.

    Of the requests, the share `fails` is answered badly, in turn with every way to do so.
    """

    def __init__(self, seed: int, fails: float) -> None:
        self._draw = random.Random(seed)
        self._fails = fails
        self._lock = threading.Lock()
        self.asked: Counter[str] = Counter()

    def __call__(self, request: Request) -> Reply:
        with self._lock:
            bad = self._draw.random() < self._fails
            name, reply = self._draw.choice(_BAD) if bad else ("well", None)
            self.asked[name] += 1
        return reply or _think(request["messages"])


_BAD: list[tuple[str, Reply]] = [
    ("500", error(500, "server_error")),
    ("429", error(429, "rate_limit_exceeded", retry_after="1")),
    ("half a body", Reply(raw=b'{"choices": [{')),
    ("wrong tool", Reply(calls=[("refund_everything", {})])),
    ("wrong arguments", Reply(calls=[("find_order", '{"order": ')])),
    ("empty", Reply("")),
    ("prose", Reply("I think that I am done.")),
]


def _think(messages: list[dict[str, Any]]) -> Reply:
    order, wish, cents = _ticket(messages)
    returned = _returned(messages)
    action = _ACTIONS.get(wish)
    if "find_order" not in returned:
        return Reply(calls=[("find_order", {"order": order}), ("find_customer", {"order": order})])
    if action == "issue_refund" and action not in returned:
        return Reply("It is within our terms.", calls=[(action, {"order": order, "cents": int(cents)})])
    if action == "change_address" and action not in returned:
        return Reply(calls=[(action, {"order": order, "address": "12 Other Street"})])
    outcome = _outcome(action, returned)
    if "send_answer" not in returned:
        return Reply(calls=[("send_answer", {"order": order, "text": f"Your wish: {outcome}."})])
    return Reply(calls=[("final_result", {"outcome": outcome, "cents": int(cents) if outcome == "refunded" else 0})])


def _outcome(action: str | None, returned: dict[str, str]) -> str:
    """Only a receipt counts as done; whatever else came back, nothing was."""
    done = action is not None and "receipt" in returned[action]
    return (
        {"issue_refund": "refunded", "change_address": "redirected"}[str(action)]
        if done
        else ("told" if action is None else "not done")
    )


def _ticket(messages: list[dict[str, Any]]) -> tuple[str, str, str]:
    said = " ".join(str(message["content"]) for message in messages if message["role"] == "user")
    found = _TICKET.search(said)
    assert found is not None, said
    order, wish, cents = found.groups()
    return order, wish, cents


def _returned(messages: list[dict[str, Any]]) -> dict[str, str]:
    """What each tool gave; those whose arguments were not taken gave nothing."""
    good = {
        call["id"]: call["function"]["name"]
        for message in messages
        for call in message.get("tool_calls") or ()
        if _is_json(call["function"]["arguments"])
    }
    return {
        good[message["tool_call_id"]]: str(message["content"])
        for message in messages
        if message["role"] == "tool" and message["tool_call_id"] in good
    }


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
