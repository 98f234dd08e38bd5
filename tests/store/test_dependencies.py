"""Breakers in the store: when one opens, who tries, and when it closes."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg.types.json import Jsonb

from agentq.settings import Settings
from agentq.store.dependencies import FLEET, SQL, Breakers, ProbeClaim, Report, Scope
from agentq.store.pool import Store, run
from agentq.testing import Clock
from tests.conftest import RUN
from tests.support.breakers import RULES
from tests.support.hands import Hands, at_once
from tests.support.until import until

_numbers = itertools.count()


@pytest.fixture
def scope() -> Scope:
    """A dependency that no other test uses, for the whole fleet."""
    return (FLEET, f"dep-{RUN}-{next(_numbers)}")


@pytest.fixture
def breakers(store: Store) -> Breakers:
    return Breakers(store, RULES)


@pytest.fixture
def moved(settings: Settings) -> Iterator[Store]:
    """A store whose clock is moved."""
    store = Store(settings.database_url, size=4, name="agentq moved")
    yield store
    store.close()


def state(breakers: Breakers, scope: Scope) -> str:
    return {b.scope: b.state for b in breakers.report([])}.get(scope, "closed")


def opened(breakers: Breakers, scope: Scope) -> None:
    breakers.report([Report(scope, bad=4)])
    assert state(breakers, scope) == "open"


def test_too_few_calls_open_nothing(breakers: Breakers, scope: Scope) -> None:
    """
    Three failures of three say little; the fourth call is the volume from which on the rate counts.
    """
    breakers.report([Report(scope, bad=3)])
    assert state(breakers, scope) == "closed"
    breakers.report([Report(scope, bad=1)])
    assert state(breakers, scope) == "open"


def test_the_rate_decides_not_the_number(breakers: Breakers, scope: Scope) -> None:
    """
    Many failures among more successes are no outage.
    """
    breakers.report([Report(scope, ok=100, bad=99)])
    assert state(breakers, scope) == "closed"
    breakers.report([Report(scope, bad=1)])
    assert state(breakers, scope) == "open"


def test_successes_alone_open_nothing(breakers: Breakers, scope: Scope) -> None:
    """
    A breaker opens on a failure, never on the success that completes the volume.
    """
    breakers.report([Report(scope, bad=3)])
    breakers.report([Report(scope, ok=1)])
    assert state(breakers, scope) == "closed"


def test_processes_add_up(breakers: Breakers, scope: Scope) -> None:
    """
    The fleet's breaker counts what many processes saw at the same moment, each of them too little.
    """
    at_once(*[lambda: breakers.report([Report(scope, bad=1)])] * 8)
    assert state(breakers, scope) == "open"
    [row] = breakers.ls(scope[1])
    assert (row.bad_total, row.openings) == (8, 1)


def test_old_failures_are_forgotten(moved: Store, scope: Scope) -> None:
    """
    The window slides: what is older than it no longer counts.
    """
    breakers, clock = Breakers(moved, RULES), Clock(moved)
    breakers.report([Report(scope, bad=3)])
    clock.advance(RULES["window_s"] + 3.1)
    breakers.report([Report(scope, bad=3)])
    assert state(breakers, scope) == "closed"
    breakers.report([Report(scope, bad=1)])
    assert state(breakers, scope) == "open"


def test_an_open_breaker_lets_nobody_try_before_its_pause_is_over(moved: Store, scope: Scope) -> None:
    """
    The pause is told to who asks; afterwards exactly K of many try, across the fleet.
    """
    breakers, clock = Breakers(moved, RULES), Clock(moved)
    opened(breakers, scope)
    refused = breakers.claim_probe(scope)
    assert not refused.granted
    assert refused.wait_s == pytest.approx(RULES["pause_s"], abs=1)
    clock.advance(RULES["pause_s"] + 0.1)
    claims = at_once(*[lambda: breakers.claim_probe(scope)] * 8)
    assert sum(claim.granted for claim in claims) == RULES["probes"]
    assert state(breakers, scope) == "half_open"


def test_the_pause_grows_up_to_its_cap(moved: Store, scope: Scope) -> None:
    """
    Each probe that fails doubles the pause, and the cap holds.
    """
    breakers, clock = Breakers(moved, RULES), Clock(moved)
    opened(breakers, scope)
    pauses = []
    for _ in range(4):
        [row] = breakers.ls(scope[1])
        pauses.append(row.pause_s)
        clock.advance(row.pause_s + 0.1)
        probe = breakers.claim_probe(scope).probe
        assert probe is not None
        assert breakers.end_probe(scope, probe, "bad") == "open"
    assert pauses == [5.0, 10.0, 20.0, 20.0]


def test_retry_after_is_the_floor_of_the_pause(breakers: Breakers, scope: Scope) -> None:
    """
    A dependency that says when to come back is not asked before.
    """
    breakers.report([Report(scope, bad=4, retry_after_s=500.0)])
    assert breakers.claim_probe(scope).wait_s == pytest.approx(500, abs=2)


def half_open(moved: Store, scope: Scope) -> tuple[Breakers, Clock]:
    breakers, clock = Breakers(moved, RULES), Clock(moved)
    opened(breakers, scope)
    clock.advance(RULES["pause_s"] + 0.1)
    return breakers, clock


def test_it_closes_after_enough_good_probes(moved: Store, scope: Scope) -> None:
    """
    One swallow makes no summer: M probes must go well, and then the window begins anew.
    """
    breakers, _ = half_open(moved, scope)
    for answer in ("half_open", "closed"):
        probe = breakers.claim_probe(scope).probe
        assert probe is not None
        assert breakers.end_probe(scope, probe, "good") == answer
    assert breakers.claim_probe(scope) == type(breakers.claim_probe(scope))(True, None, None)
    breakers.report([Report(scope, bad=3)])
    assert state(breakers, scope) == "closed"
    assert [change.state for change in breakers.changes(scope[1])] == ["closed", "open"]


def test_a_probe_that_comes_to_nothing_gives_its_place_back(moved: Store, scope: Scope) -> None:
    """
    A call that was never made says nothing, and the next one may try at once.
    """
    breakers, _ = half_open(moved, scope)
    claims = [breakers.claim_probe(scope) for _ in range(3)]
    assert [claim.granted for claim in claims] == [True, True, False]
    assert claims[0].probe is not None
    assert breakers.end_probe(scope, claims[0].probe, "nothing") == "half_open"
    assert breakers.claim_probe(scope).granted


def test_probers_never_share_a_place(moved: Store, scope: Scope, admin: psycopg.Connection[object]) -> None:
    """
    Who asks while another is being granted the last place waits for that, and is refused.
    """
    half_open(moved, scope)
    breakers = Breakers(moved, {**RULES, "probes": 1})
    first = breakers.claim_probe(scope).probe  # now it is half open, so asking alone changes no row
    assert first is not None
    breakers.end_probe(scope, first, "nothing")
    answers: list[ProbeClaim] = []
    second = threading.Thread(target=lambda: answers.append(breakers.claim_probe(scope)))
    blocked = "select 1 from pg_locks where not granted"
    with moved.transaction(FLEET) as connection:
        parameters = {
            "tenant": scope[0],
            "name": scope[1],
            "probe": uuid.uuid4(),
            "worker": None,
            "rules": Jsonb(breakers._rules),
        }
        assert run(connection, SQL["claim_probe"], parameters)[0][0]
        second.start()
        until(lambda: not second.is_alive() or admin.execute(blocked).fetchone(), 10, "the second asks")
    second.join(10)
    assert not answers[0].granted


def test_a_prober_that_died_does_not_wedge_it(moved: Store, scope: Scope) -> None:
    """
    Its place is free again when its time is over, although nobody gave it back.
    """
    breakers, clock = half_open(moved, scope)
    while breakers.claim_probe(scope).granted:
        pass
    clock.advance(RULES["probe_s"] + 1)
    assert breakers.claim_probe(scope).granted


def test_the_places_of_a_dead_worker_are_free_at_once(
    moved: Store, scope: Scope, hands: Hands, admin: psycopg.Connection[object]
) -> None:
    """
    A worker killed while it tried holds nobody up: as soon as it counts as dead, others may try.
    """
    half_open(moved, scope)
    worker = hands.register()
    breakers = Breakers(moved, RULES, lambda: worker)
    while breakers.claim_probe(scope).granted:
        pass
    admin.execute("update agentq.worker set state = 'dead', stopped_at = agentq.now() where worker_id = %s", (worker,))
    assert breakers.claim_probe(scope).granted


def test_calls_from_before_the_opening_change_nothing(moved: Store, scope: Scope) -> None:
    """
    While it is not closed only probes decide: late answers of ordinary calls are counted, no more.
    """
    breakers, _ = half_open(moved, scope)
    assert breakers.claim_probe(scope).granted
    breakers.report([Report(scope, ok=50, bad=50)])
    assert state(breakers, scope) == "half_open"


@pytest.mark.parametrize("forced", ["forced_open", "forced_shut"])
def test_an_operators_word_holds_until_its_time_is_over(moved: Store, scope: Scope, forced: str) -> None:
    """
    Forced shut, no failure opens it; forced open, nobody tries. Afterwards: closed, or tried first.
    """
    breakers, clock = Breakers(moved, RULES), Clock(moved)
    assert breakers.force(scope, forced, for_s=600, operator="me", reason="drill") == ("closed", forced)  # type: ignore[arg-type]
    breakers.report([Report(scope, bad=100)])
    assert state(breakers, scope) == forced
    assert breakers.claim_probe(scope).granted == (forced == "forced_shut")
    clock.advance(601)
    assert state(breakers, scope) == ("closed" if forced == "forced_shut" else "half_open")


def test_giving_it_back_ends_an_operators_word(breakers: Breakers, scope: Scope) -> None:
    """
    `auto` twice is the same as once, and a breaker that nobody forced is left as it is.
    """
    breakers.force(scope, "forced_open", for_s=None, operator="me", reason="maintenance")
    assert breakers.force(scope, "auto", for_s=None, operator="me", reason="over") == ("forced_open", "half_open")
    assert breakers.force(scope, "auto", for_s=None, operator="me", reason="over") == ("half_open", "half_open")
    [row] = breakers.ls(scope[1])
    assert row.forced_until is None


def test_forcing_is_audited(breakers: Breakers, scope: Scope, admin: psycopg.Connection[object]) -> None:
    """
    I11: who, when and why, in the transaction of the change itself.
    """
    breakers.force(scope, "forced_open", for_s=60, operator="kim", reason="provider says so")
    rows = admin.execute(
        "select operator, action, reason, detail from agentq.operator_action where target = %s", (scope[1],)
    ).fetchall()
    assert rows == [
        (
            "kim",
            "dependency open",
            "provider says so",
            {"before": "closed", "after": "forced_open", "for_s": 60},
        )
    ]


def test_a_tenants_own_breaker_is_its_own(breakers: Breakers, scope: Scope, tenant: str) -> None:
    """
    I8: what one tenant's key does opens that tenant's breaker, and not the fleet's.
    """
    own = (tenant, scope[1])
    breakers.report([Report(own, bad=1)])
    assert {b.scope: (b.state, b.watched) for b in breakers.report([])}[own] == ("closed", True)
    breakers.report([Report(own, bad=3)])
    assert (state(breakers, own), state(breakers, scope)) == ("open", "closed")


def test_two_breakers_told_in_any_order_do_not_deadlock(breakers: Breakers, scope: Scope, tenant: str) -> None:
    """
    Several breakers are locked in one order, whatever order a process tells them in.
    """
    reports = [Report((who, f"{scope[1]}{n}"), ok=1, bad=1) for who in (FLEET, tenant) for n in range(10)]
    calls: list[Callable[[], object]] = [
        lambda: breakers.report(reports),
        lambda: breakers.report(reversed(reports)),
    ] * 6
    answers = at_once(*calls)
    assert not [answer for answer in answers if isinstance(answer, Exception)]
