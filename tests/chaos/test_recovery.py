"""Recovery is measured from the service's record, alone where nothing else fell."""

from __future__ import annotations

from dataclasses import replace

from agentq.chaos.record import Request
from agentq.chaos.recovery import Recovery, recoveries
from agentq.chaos.strike import Hit

HIT = Hit(0, "worker killed", "worker killed", 100.0, 100.0, 100.0, ("a", "b"))


def _asked(session: str, *times: float) -> list[Request]:
    return [Request(0, "call", session, "0", "idempotent", "k", "v", 1, at, at, True, "answered") for at in times]


def _one(hits: list[Hit], requests: list[Request]) -> Recovery:
    return next(each for each in recoveries(hits, requests, lease_s=15.0) if each.fault == "worker killed")


def test_the_time_to_the_next_request() -> None:
    """Of the sessions that were hit; one that asks nothing more had ended."""
    found = _one([HIT], [*_asked("a", 99.0, 101.5, 103.0), *_asked("b", 99.5), *_asked("c", 100.1)])
    assert (found.hit, found.moved, found.p50_s, found.p99_s) == (2, 1, 1.5, 1.5)
    assert (found.alone, found.alone_p99_s) == (1, 1.5)


def test_another_blow_meanwhile_is_not_alone() -> None:
    """Neither is one just before; Postgres is fresh for a lease, anything else for two seconds."""
    requests = _asked("a", 99.0, 104.0)
    for fault, began, alone in (
        ("tools fail", 103.0, 0),
        ("tools fail", 105.0, 1),
        ("tools fail", 97.0, 1),
        ("tools fail", 99.0, 0),
        ("postgres killed", 90.0, 0),
        ("postgres killed", 80.0, 1),
    ):
        other = replace(HIT, number=1, fault=fault, began=began, healed=began, sessions=())
        assert _one([HIT, other], requests).alone == alone, (fault, began)


def test_a_missed_blow_counts_for_nothing() -> None:
    """It hit nobody, and meddled with nobody."""
    missed = replace(HIT, number=1, fault="tools fail", began=101.0, missed="no call met the weather")
    assert _one([HIT, missed], _asked("a", 99.0, 104.0)).alone == 1
    found = recoveries([missed], _asked("a", 99.0, 104.0), lease_s=15.0)
    assert [(each.blows, each.moved) for each in found] == [(0, 0)]


def test_messages_hit_whoever_moved() -> None:
    """Nobody outside can tell whose message was lost."""
    hit = replace(HIT, fault="messages dropped", began=100.0, healed=104.0, clock_from=104.0, sessions=())
    [found] = recoveries([hit], [*_asked("a", 102.0, 106.0), *_asked("b", 90.0, 107.0)], lease_s=15.0)
    assert (found.hit, found.moved, found.p99_s) == (1, 1, 2.0)
