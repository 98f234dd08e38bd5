"""Sessions: one per key, whoever asks and however often."""

from __future__ import annotations

import subprocess
import sys
import uuid

import psycopg
import pytest

from agentq.errors import InvalidInput, KeyConflict, UnknownSession, UnknownTenant
from agentq.payload import fingerprint
from agentq.store.pool import Store
from agentq.store.sessions import Sessions
from agentq.verdicts import Failure
from tests.support.fleet import ROOT
from tests.support.hands import Hands, at_once

RACERS = 50


def test_fifty_starts_with_one_key_make_one_session(hands: Hands) -> None:
    """
    I1: fifty threads ask at the same instant, and all get the same session, of which one is new.
    """
    news = [hands.new_session(key="ticket-1") for _ in range(RACERS)]

    answers = at_once(*[lambda new=new: hands.sessions.start([new], create_with=None)[0] for new in news])

    assert len({session_id for session_id, _ in answers}) == 1
    assert sum(created for _, created in answers) == 1
    [count] = hands.rows("select (select count(*) from agentq.session) s, (select count(*) from agentq.ledger_entry) e")
    assert count == {"s": 1, "e": 1}


_RACER = """
import sys
from agentq.store.pool import Store
from agentq.store.sessions import Sessions
from tests.support.hands import Hands, at_once
store = Store(sys.stdin.readline().strip(), size=8)
hands = Hands(store, sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
news = [hands.new_session(key="ticket-1") for _ in range(8)]
for answer in at_once(*[lambda new=new: hands.sessions.start([new], create_with=None)[0] for new in news]):
    print(*answer)
hands.close()
store.close()
"""


def test_processes_that_use_one_key_share_one_session(hands: Hands) -> None:
    """
    I1 holds between processes, not only between threads of one.
    """
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, hands.tenant],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write(hands.store.url + "\n")
        racer.stdin.flush()
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    answers = [line.split() for racer in racers for line in racer.communicate(timeout=30)[0].splitlines()]

    assert len({session_id for session_id, _ in answers}) == 1
    assert sorted(created for _, created in answers) == ["False"] * 15 + ["True"]


def test_a_key_used_with_another_input_is_refused(hands: Hands) -> None:
    """
    The same key must mean the same request; nothing is stored when it does not.
    """
    hands.start(key="k", input=b'{"n":1}')
    before = hands.everything()

    with pytest.raises(KeyConflict, match="'k' was used before with other arguments"):
        hands.start(key="k", input=b'{"n":2}')

    assert hands.everything() == before


def test_one_refused_start_refuses_the_whole_batch(hands: Hands) -> None:
    """
    A batch is one transaction: when one of its keys conflicts, none of it exists.
    """
    hands.start(key="b", input=b'{"n":1}')
    batch = [hands.new_session(key="a"), hands.new_session(key="b", input=b'{"n":2}'), hands.new_session(key="c")]

    with pytest.raises(KeyConflict):
        hands.sessions.start(batch, create_with=None)

    assert [row["key"] for row in hands.rows("select key from agentq.session")] == ["b"]


def test_a_key_repeated_within_a_batch_finds_the_first(hands: Hands) -> None:
    """
    Two items of one batch with one key are one session.
    """
    twice = [hands.new_session(key="a"), hands.new_session(key="a")]

    (first, new), (second, also_new) = hands.sessions.start(twice, create_with=None)

    assert (first, new, also_new) == (second, True, False)


def test_keys_belong_to_their_tenant(hands: Hands, other_tenant: str, store: Store) -> None:
    """
    Two tenants may use the same key for different requests.
    """
    mine = hands.start(key="k", input=b'{"n":1}')
    theirs = Hands(store, other_tenant)
    try:
        assert theirs.start(key="k", input=b'{"n":2}').session_id != mine.session_id
    finally:
        theirs.close()


def test_sessions_without_a_key_are_always_new(hands: Hands) -> None:
    """
    No key, no deduplication.
    """
    assert hands.start().session_id != hands.start().session_id


def test_a_start_for_an_unknown_tenant_is_refused_or_makes_it(hands: Hands, admin: psycopg.Connection) -> None:
    """
    Who decides is the setting: by default a mistyped tenant is an error, not a new customer.
    """
    name = f"{hands.tenant}-new"
    new = hands.new_session(tenant=name)

    with pytest.raises(UnknownTenant, match="agentq tenant add"):
        hands.sessions.start([new], create_with=None)
    assert hands.sessions.start([new], create_with=5) == [(new.session_id, True)]

    assert admin.execute("select concurrency from agentq.tenant where name = %s", (name,)).fetchone() == (5,)


def test_a_draining_tenant_takes_no_new_session(hands: Hands, admin: psycopg.Connection) -> None:
    """
    Draining refuses new work, but a repeated start still finds the session that it began before.
    """
    before = hands.start(key="old")
    admin.execute("update agentq.tenant set state = 'draining' where name = %s", (hands.tenant,))

    with pytest.raises(InvalidInput, match="draining"):
        hands.start(key="new")

    again = hands.sessions.start([hands.new_session(key="old")], create_with=None)
    assert again == [(before.session_id, False)]


def test_cancel_ends_the_session_and_all_that_waits(hands: Hands) -> None:
    """
    Nothing of a cancelled session runs later: its timers, its join and its queued steps are cancelled with it.
    """
    claim = hands.begin()
    join, arms = hands.spawn(claim, 2)
    running = hands.claim(arms[0])

    state, wakes = hands.sessions.cancel(hands.tenant, claim.ref.session_id, Failure("cancelled", "X", "enough"))

    assert (state, wakes) == ("cancelled", [])
    assert hands.session(claim.ref)["failure"]["message"] == "enough"
    assert [hands.entry(ref)["state"] for ref in (join, arms[0], arms[1])] == ["cancelled", "running", "cancelled"]

    settled = hands.settle(running, "end")
    assert settled.session_ended_before
    assert hands.entry(arms[0])["state"] == "cancelled"
    assert hands.rows("select 1 from agentq.checkpoint where step_id = %s", arms[0].step_id) == []


def test_cancel_after_the_end_changes_nothing(hands: Hands) -> None:
    """
    A session that has its result keeps it.
    """
    claim = hands.begin()
    hands.settle(claim, "end")
    before = hands.everything()

    state, _ = hands.sessions.cancel(hands.tenant, claim.ref.session_id, Failure("cancelled", "X", "late"))

    assert state == "done"
    assert hands.everything() == before


def test_what_does_not_exist_is_said_to_be_unknown(hands: Hands) -> None:
    """
    Asking for a session that is not there is an error, not an empty answer.
    """
    nobody = uuid.uuid4()
    with pytest.raises(UnknownSession):
        hands.sessions.get(hands.tenant, nobody)
    with pytest.raises(UnknownSession):
        hands.sessions.cancel(hands.tenant, nobody, Failure("cancelled", "X", ""))
    assert hands.sessions.state(hands.tenant, nobody) is None


def test_a_session_is_found_by_the_beginning_of_its_id(hands: Hands) -> None:
    """
    Operators type the first digits; what is no id at all is refused.
    """
    ref = hands.start()
    sessions: Sessions = hands.sessions

    assert sessions.find(str(ref.session_id)[:30], hands.tenant) == [(hands.tenant, ref.session_id)]
    assert sessions.find(ref.session_id.hex) == [(hands.tenant, ref.session_id)]
    with pytest.raises(InvalidInput):
        sessions.find("not-an-id")


def test_the_hash_of_an_input_is_of_both_parts() -> None:
    """
    A digest of several parts cannot be had by moving a boundary between them.
    """
    assert fingerprint(b"ab", b"c") != fingerprint(b"a", b"bc")


def test_a_text_is_found_in_inputs_only_by_who_may_see_them(hands: Hands) -> None:
    """
    I8: an input is not redacted, so somebody who may only look does not find out by searching.
    """
    hands.start(input=b'{"card": "4111 1111"}', key="order-7")
    for text, within, found in (("4111", True, 1), ("4111", False, 0), ("ORDER-7", False, 1)):
        page = hands.sessions.page(tenant=hands.tenant, text=text, within_input=within)
        assert len(page.rows) == found, (text, within)


@pytest.mark.parametrize("patience_s", [0.0, 60.0])
def test_what_no_index_serves_is_looked_for_bit_by_bit(
    hands: Hands, monkeypatch: pytest.MonkeyPatch, patience_s: float
) -> None:
    """
    A page ends after so many sessions, or sooner where that takes long, and says where; whoever goes on from there
    looks at each of the others once.
    """
    monkeypatch.setattr("agentq.store.sessions._LOOK", 10)
    monkeypatch.setattr("agentq.store.sessions._LOOK_S", patience_s)
    monkeypatch.setattr("agentq.store.sessions.LOOKED_AT_MAX", 30)
    started = [hands.start(input=b'{"it is": "odd"}' if n % 16 == 0 else b"{}").session_id for n in range(80)]
    found, ends, place = [], [], None
    while True:
        page = hands.sessions.page(tenant=hands.tenant, text="odd", before=place, limit=3)
        found += [row.session_id for row in page.rows]
        place = page.more
        if place is None:
            break
        assert page.full == (len(page.rows) == 3)
        ends.append(place[1])
    assert found == [started[n] for n in (64, 48, 32, 16, 0)]
    newest = started[::-1]
    looked_at = 10 if patience_s == 0.0 else 30
    assert ends == newest[looked_at - 1 :: looked_at][: len(ends)]
    assert len(ends) == (8 if patience_s == 0.0 else 2)
