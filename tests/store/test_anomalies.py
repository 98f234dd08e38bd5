"""What sessions have used, in Postgres: counted with each attempt, and nobody waits for another's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from agentq.store.anomalies import Anomalies, Tally
from agentq.store.pool import Connection
from agentq.verdicts import Extras, Granted, Settlement, TraceEvent, Usage
from tests.support.hands import BROKEN, Hands, step
from tests.support.until import until

ENDED = Settlement("end", kind="full", state=b"{}", result=b"null")


def tallies(hands: Hands) -> list[dict[str, Any]]:
    return hands.rows("select * from agentq.session_tally")


@contextmanager
def impatient(hands: Hands) -> Iterator[Connection]:
    """A transaction that waits for no lock."""
    with hands.store.transaction(hands.tenant) as connection:
        connection.execute("set local lock_timeout = '200ms'")
        yield connection


def called(*tools: str) -> tuple[TraceEvent, ...]:
    return tuple(TraceEvent("tool", name, 0.0, 0.0) for name in tools)


def test_each_attempt_is_counted_with_what_it_used(hands: Hands) -> None:
    """
    Ends of every kind, in one row; what was given back or waits is no attempt.
    """
    claim = hands.begin()
    hands.settle(claim, "retry", failure=BROKEN, extras=Extras(usage=Usage(100, 20, 345), trace=called("look")))
    for closing in ("release", "postpone"):
        hands.admit()
        hands.settle(hands.claim(claim.ref), closing)
    hands.admit()
    following = step("second")
    used = Extras(usage=Usage(7, 0, 5), trace=(*called("look", "look", "shout"), TraceEvent("model", "gpt", 0.0, 0.0)))
    hands.settle(hands.claim(claim.ref), "next", steps=(following,), extras=used)
    [row] = tallies(hands)
    assert (row["steps"], row["failures"], row["tokens"], row["cost_micros"]) == (2, 1, 127, 350)
    assert (row["tools"], row["classes"]) == ({"look": 3, "shout": 1}, {"transient": 1})
    assert (row["agent"], row["agent_version"], row["due"]) == ("robot", 1, False)
    hands.settle(hands.claim(hands.ref(following, claim.ref.session_id)), "end")
    [row] = tallies(hands)
    assert (row["steps"], row["due"]) == (3, True)


def test_a_session_is_looked_at_every_eighth_attempt(hands: Hands) -> None:
    claim = hands.begin()
    due = []
    for _ in range(17):
        following = step("again")
        hands.follow(claim, following)
        claim = hands.claim(hands.ref(following, claim.ref.session_id))
        due.append(any(one.session_id == claim.ref.session_id for one in Anomalies(hands.store).running(10_000)))
    assert [number for number, looked in enumerate(due, 1) if looked] == [8, 16]


def test_sessions_of_one_agent_do_not_wait_for_each_other(hands: Hands) -> None:
    """
    However many end at once, each has a row of its own: none waits for another's commit.
    """
    claims = [hands.begin() for _ in range(3)]
    with impatient(hands) as one, impatient(hands) as two, impatient(hands) as three:
        for connection, claim in zip((one, two, three), claims, strict=True):
            hands.ledger.settle(claim, ENDED, on=connection)
    assert [row["due"] for row in tallies(hands)] == [True] * 3


def test_nobody_waits_for_a_relay_that_learns(hands: Hands) -> None:
    """
    It holds the agent's baseline and the rows of sessions that ended, and no session that runs.
    """
    anomalies = Anomalies(hands.store)
    hands.settle(hands.begin(), "end")
    running = hands.begin()
    with anomalies.ended(10_000) as (learning, ended):
        assert any(tally.tenant == hands.tenant for tally in ended)
        anomalies.hold(learning, [(hands.tenant, "robot", 1)])
        with impatient(hands) as connection:
            hands.ledger.settle(running, ENDED, on=connection)


def test_an_ended_session_is_handed_to_one_relay(hands: Hands) -> None:
    """
    The second does not wait for it, and does not find it.
    """
    anomalies = Anomalies(hands.store)
    hands.settle(hands.begin(), "end")

    def mine(tallies: list[Tally]) -> int:
        return sum(tally.tenant == hands.tenant for tally in tallies)

    with anomalies.ended(10_000) as (_, first), anomalies.ended(10_000) as (_, second):
        assert (mine(first), mine(second)) == (1, 0)
    assert tallies(hands) == []


@pytest.mark.parametrize("known", [True, False], ids=["the row is there", "both make it"])
def test_branches_of_one_session_are_all_counted(hands: Hands, known: bool) -> None:
    """
    Two that end at once: the second waits for the first one's commit, and adds to what that wrote.
    """
    root = hands.begin()
    _, arms = hands.spawn(root, 2)
    first, second = (hands.claim(arm) for arm in arms)
    if not known:
        hands.rows("delete from agentq.session_tally returning 1")
    done = threading.Event()

    def settle(claim: Granted, **more: Any) -> None:
        hands.ledger.settle(claim, Settlement("next", kind="full", state=b"{}", steps=(follow(claim),)), **more)

    def follow(claim: Granted) -> Any:
        return step("on", join_step=claim.join_step, branch=claim.branch)

    def other() -> None:
        settle(second)
        done.set()

    with hands.store.transaction(hands.tenant) as connection:
        settle(first, on=connection)
        thread = threading.Thread(target=other, daemon=True)
        thread.start()
        until(lambda: blocked(hands), what="the second branch waits")
    thread.join(30)
    assert done.is_set()
    [row] = tallies(hands)
    assert row["steps"] == (3 if known else 2)


def blocked(hands: Hands) -> bool:
    query = "select pid from pg_stat_activity where wait_event_type = 'Lock' and query like '%agentq.settle(%'"
    return bool(hands.rows(query))
