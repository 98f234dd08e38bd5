"""The tools: three ways to change something at the effects service, as a careful team would write them."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from agentq.agents.effects import effect, idempotency_key
from agentq.errors import Transient

SERVICE = "AGENTQ_CHAOS_SERVICE"
CONNECT_TIMEOUT_S = 3.0
ANSWER_TIMEOUT_S = 4.0


class Order(BaseModel):
    """What the service is asked to change."""

    session: str
    place: str
    value: str
    pause_s: float = 0.0


class Unreadable(ConnectionError):
    """The call may have worked; its answer makes no sense."""


def say(what: str, order: Order, *, kind: str = "", key: str = "") -> dict[str, Any]:
    """
    One request to the service, and its answer.

    Raises:
        Transient: it was not sent, or was refused; nothing happened.
        ConnectionError, TimeoutError: it may have happened.
    """
    host, _, port = os.environ[SERVICE].rpartition(":")
    try:
        connection = socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S)
    except OSError as error:
        raise Transient(f"the service cannot be reached: {error}") from error
    request = {"what": what, "kind": kind, "key": key, "pid": os.getpid(), **order.model_dump()}
    with connection:
        connection.settimeout(ANSWER_TIMEOUT_S)
        connection.sendall(json.dumps(request).encode() + b"\n")
        line = connection.makefile("rb").readline()
    try:
        found = json.loads(line)
    except ValueError:
        raise Unreadable(f"the service sent {len(line)} bytes that are no answer") from None
    if "error" in found:
        raise Transient(f"the service refused: {found['error']}")
    return dict(found)


def _call(kind: str, order: Order) -> str:
    answer = say("call", order, kind=kind, key=idempotency_key()).get("answer")
    if not isinstance(answer, str):
        raise Unreadable("the service sent an answer without an answer")
    return answer


def _happened(order: Order) -> str | None:
    answer = say("ask", order, kind="checked", key=idempotency_key()).get("answer")
    return answer if isinstance(answer, str) else None


@effect(idempotent=True)
def idempotent(order: Order) -> str:
    """The service does it once for a key, however often it is asked."""
    return _call("idempotent", order)


@effect(check=_happened)
def checked(order: Order) -> str:
    """The service does it each time, and can be asked whether it did."""
    return _call("checked", order)


@effect
def plain(order: Order) -> str:
    """The service does it each time, and cannot be asked."""
    return _call("plain", order)


BY_KIND: dict[str, Callable[[Order], str]] = {"idempotent": idempotent, "checked": checked, "plain": plain}
