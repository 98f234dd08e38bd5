"""A history in which nothing went wrong, for tests to doctor."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from agentq.chaos import plan
from agentq.chaos.judge import End, History
from agentq.chaos.plan import Wanted
from agentq.chaos.producer import Accepted
from agentq.chaos.record import Request
from agentq.chaos.strike import Hit

BEGAN = 1_000_000.0


def clean(seed: int = 1, count: int = 12) -> History:
    """Each session asked for each change once, in order, and came to its result; one fault hit, one poison died."""
    wanted = [*plan.sessions(seed, count=count, over_s=10.0, run="t-"), *plan.poison([(1.0, False)], run="t-")]
    requests: list[Request] = []
    for each in wanted:
        at = BEGAN + each.at_s
        if each.poison:
            for n in range(3):
                requests.append(_request(len(requests), each.key, "among others", "ran", "", "", at + n))
            continue
        for n, operation in enumerate(each.operations):
            key = f"{each.key}:{operation.place}"
            number = len(requests)
            requests.append(
                _request(number, each.key, operation.place, "call", operation.kind, operation.value, at + n, key)
            )
    return History(
        wanted=wanted,
        accepted=[Accepted(each.key, each.tenant, _id(each), BEGAN, True, 1) for each in wanted],
        requests=requests,
        ends=[_end(each) for each in wanted],
        hits=[Hit(0, "worker killed", "worker killed", BEGAN + 4, BEGAN + 4, BEGAN + 4, (wanted[0].key,), {"pid": 7})],
        lease_s=3.0,
    )


def with_ends(history: History, key: str, **change: Any) -> History:
    """The session of that key ended otherwise."""
    return replace(history, ends=[replace(end, **change) if end.key == key else end for end in history.ends])


def with_request(history: History, number: int, **change: Any) -> History:
    """One request was otherwise."""
    return replace(
        history,
        requests=[replace(each, **change) if each.number == number else each for each in history.requests],
    )


def without(history: History, key: str, *, requests_too: bool = False) -> History:
    """The session of that key is gone."""
    return replace(
        history,
        ends=[end for end in history.ends if end.key != key],
        requests=[r for r in history.requests if not (requests_too and r.session == key)],
    )


def first_of(history: History, kind: str) -> Request:
    """The first change of that kind."""
    return next(request for request in history.requests if request.kind == kind)


def _request(
    number: int, session: str, place: str, what: str, kind: str, value: str, at: float, key: str = ""
) -> Request:
    return Request(number, what, session, place, kind, key, value, 4000, at, at + 0.5, what == "call", "answered")


def _end(each: Wanted) -> End:
    if each.poison:
        return End(each.key, each.tenant, _id(each), "failed", failure_kind="worker_lost", failure="it killed workers")
    return End(each.key, each.tenant, _id(each), "done", result=each.result)


def _id(each: Wanted) -> str:
    return hashlib.sha256(each.key.encode()).hexdigest()[:32]
