"""Budgets: reserved in every scope or in none, settled once, and their sums always those of their calls."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, timedelta
from typing import Any

import psycopg
import pytest

from agentq.errors import FenceLost
from agentq.step import StepRef
from agentq.store.budgets import Budgets, Wanted
from agentq.store.pool import Store
from agentq.testing import Clock
from agentq.verdicts import Charge, Extras, Granted
from tests.support.hands import BROKEN, Hands, at_once, step

PRICE = 10  # micros of a call, as wanted() asks for it


@pytest.fixture
def budgets(hands: Hands) -> Iterator[Budgets]:
    """The tables of money; at the end, every sum is that of its reservations."""
    budgets = Budgets(hands.store)
    yield budgets
    assert budgets.check(hands.tenant) == []


def wanted(claim: Granted, ordinal: int = 1, *, micros: int | None = PRICE, **more: Any) -> Wanted:
    ref = claim.ref
    name = f"{ref.session_id}:{ref.step_id}:{claim.fence}:{ordinal}"
    facts: dict[str, Any] = {"provider": "openai", "model": "m", "input_tokens": 3, "max_tokens": 4}
    return Wanted(name, **facts | {"micros": micros, "price_version": "test"} | more)


def limit(budgets: Budgets, hands: Hands, scope: str, subject: str = "", period: str = "day", **more: Any) -> None:
    facts: dict[str, Any] = {"micros": None, "tokens": None, "on_refusal": "end" if scope == "session" else "wait"}
    budgets.set_budget(hands.tenant, scope, subject, period, **facts | more, operator="test", reason="a test")


def window(budgets: Budgets, hands: Hands, scope: str = "tenant", period: str = "day") -> tuple[int, int]:
    """What a scope has spent and holds, in micros."""
    [row] = [row for row in budgets.windows(hands.tenant) if (row.scope, row.period) == (scope, period)]
    return row.spent_micros, row.reserved_micros


def charged(claim: Granted, ordinal: int = 1, micros: int | None = 7, state: Any = "charged") -> Extras:
    return Extras(charges=(Charge(wanted(claim, ordinal).reservation_id, state, micros, 2, 0, 1),))


def only(budgets: Budgets, claim: Granted) -> Any:
    [row] = budgets.ledger(claim.ref.tenant, claim.ref.session_id)
    return row


# ── reserving ────────────────────────────────────────────────────────────────

SCOPES = [
    ("tenant", "", "day"), ("tenant", "", "month"), ("agent", "robot", "day"), ("agent", "robot", "month"),
    ("provider", "openai", "day"), ("provider", "openai", "month"), ("session", "", "session"),
]  # fmt: skip


@pytest.mark.parametrize(("scope", "subject", "period"), SCOPES)
@pytest.mark.parametrize("what", ["micros", "tokens"])
def test_each_scope_refuses_what_would_pass_it(
    hands: Hands, budgets: Budgets, scope: str, subject: str, period: str, what: str
) -> None:
    """
    I6: whichever budget is the narrow one, the call beyond it is not made, and nothing of it is reserved anywhere.
    """
    limit(budgets, hands, scope, subject, period, **{what: 2 * PRICE - 1 if what == "micros" else 13})
    claim = hands.begin()
    assert budgets.reserve(claim, wanted(claim, 1)).status == "ok"
    answer = budgets.reserve(claim, wanted(claim, 2))

    assert (answer.status, answer.scope, answer.period) == ("refused", scope, period)
    assert answer.why == "held"
    assert window(budgets, hands) == (0, PRICE)
    assert len(budgets.ledger(hands.tenant, claim.ref.session_id)) == 1


def test_sixty_four_callers_get_exactly_what_is_affordable(hands: Hands, budgets: Budgets) -> None:
    """
    I6: the reservations of many sessions race for a budget of twenty calls, and twenty are made.
    """
    limit(budgets, hands, "tenant", micros=20 * PRICE + PRICE - 1)
    claims = [hands.begin() for _ in range(64)]

    answers = at_once(*[lambda claim=claim: budgets.reserve(claim, wanted(claim)) for claim in claims])

    assert [answer.status for answer in answers].count("ok") == 20
    assert {answer.status for answer in answers} == {"ok", "refused"}
    assert window(budgets, hands) == (0, 20 * PRICE)


def test_the_same_question_has_the_same_answer(hands: Hands, budgets: Budgets) -> None:
    """
    I6: a reservation whose answer was lost is asked for again, and counts once.
    """
    claim = hands.begin()
    assert [budgets.reserve(claim, wanted(claim)).status for _ in range(3)] == ["ok"] * 3
    assert window(budgets, hands) == (0, PRICE)


def test_only_the_holder_of_the_fence_reserves(hands: Hands, budgets: Budgets) -> None:
    """
    I3: a superseded attempt makes no new calls.
    """
    claim = hands.begin()
    [wake] = hands.settle(claim, "retry", delay_s=0.0).wakes
    assert budgets.reserve(claim, wanted(claim)).status == "superseded"
    again = hands.claim(hands.ref(wake))
    assert budgets.reserve(claim, wanted(claim)).status == "superseded"
    assert budgets.reserve(again, wanted(again)).status == "ok"


def test_a_refusal_says_why_and_until_when(hands: Hands, budgets: Budgets) -> None:
    """
    Held by running calls, spent until midnight, or never affordable: three things to do about it.
    """
    limit(budgets, hands, "tenant", micros=15)
    claim = hands.begin()
    assert budgets.reserve(claim, wanted(claim, 1, micros=16)).why == "never"
    budgets.reserve(claim, wanted(claim, 1))
    assert budgets.reserve(claim, wanted(claim, 2)).why == "held"
    hands.settle(claim, "end", extras=charged(claim, micros=9))
    other = hands.begin()
    answer = budgets.reserve(other, wanted(other))
    assert (answer.why, answer.on_refusal, answer.limit_micros, answer.spent_micros) == ("spent", "wait", 15, 9)
    assert answer.wait_s is not None
    assert 0 < answer.wait_s <= 86400


def test_the_strictest_refusal_is_told(hands: Hands, budgets: Budgets) -> None:
    """
    A session that is over its own budget does not wait for midnight first.
    """
    limit(budgets, hands, "tenant", micros=0)
    limit(budgets, hands, "session", period="session", micros=0, on_refusal="park")
    claim = hands.begin()
    answer = budgets.reserve(claim, wanted(claim))
    assert (answer.scope, answer.on_refusal) == ("session", "park")


def test_a_call_without_a_price_needs_a_limit_in_tokens(hands: Hands, budgets: Budgets) -> None:
    """
    I6: what nobody can price is not free: under a budget of money alone it is not made.
    """
    claim = hands.begin()
    assert budgets.reserve(claim, wanted(claim, 1, micros=None)).status == "ok"
    limit(budgets, hands, "tenant", micros=1000)
    assert budgets.reserve(claim, wanted(claim, 2, micros=None)).status == "unpriced"
    limit(budgets, hands, "tenant", micros=1000, tokens=20)
    assert budgets.reserve(claim, wanted(claim, 3, micros=None)).status == "ok"
    assert budgets.reserve(claim, wanted(claim, 4, micros=None)).status == "refused"


@pytest.mark.parametrize(
    ("everyone", "agent", "own", "declared", "affordable"),
    [(5, None, None, None, 5), (5, 3, None, None, 3), (5, None, None, 2, 2), (5, 3, 6, 2, 6), (None, None, None, 4, 4)],
)
def test_the_most_particular_session_budget_counts(
    hands: Hands, budgets: Budgets, everyone: Any, agent: Any, own: Any, declared: Any, affordable: int
) -> None:
    """
    All sessions', the agent's, what its code declares (the lower one counts), or this very session's (which overrides).
    """
    claim = hands.begin()
    for subject, calls in (("", everyone), ("robot", agent), (str(claim.ref.session_id), own)):
        if calls is not None:
            limit(budgets, hands, "session", subject, "session", micros=calls * PRICE)
    ask = {"declared_micros": declared * PRICE if declared else None}
    answers = [budgets.reserve(claim, wanted(claim, n, **ask)).status for n in range(10)]
    assert answers.count("ok") == affordable


def test_a_child_draws_on_its_parents_budget(hands: Hands, budgets: Budgets) -> None:
    """
    I6: a session cannot spend beyond its budget by letting children do it.
    """
    claim = hands.begin()
    limit(budgets, hands, "session", str(claim.ref.session_id), "session", micros=2 * PRICE)
    assert budgets.reserve(claim, wanted(claim)).status == "ok"
    join = step("join", fan=2)
    children = [hands.child(join, n) for n in range(2)]
    hands.settle(claim, "next", steps=(join,), children=tuple(children), extras=charged(claim, micros=PRICE))
    hands.admit()
    first, second = (hands.claim(StepRef(hands.tenant, child.session_id, child.step_id)) for child in children)

    assert budgets.reserve(first, wanted(first)).status == "ok"
    assert budgets.reserve(second, wanted(second)).why == "held"
    hands.settle(first, "end", extras=charged(first, micros=4))

    assert budgets.reserve(second, wanted(second, 2)).why == "spent"
    assert len(budgets.ledger(hands.tenant, claim.ref.session_id)) == 2


def test_windows_open_at_midnight_utc(hands: Hands, budgets: Budgets) -> None:
    """
    The day and the month are those of the database's clock in UTC; yesterday's spending is not today's.
    """
    limit(budgets, hands, "tenant", micros=PRICE)
    claim = hands.begin()
    assert budgets.reserve(claim, wanted(claim, 1)).status == "ok"
    answer = budgets.reserve(claim, wanted(claim, 2))
    assert answer.wait_s is not None
    later = Store(hands.store.url, size=2, name="tomorrow")
    tomorrow = Budgets(later)
    try:
        Clock(later).advance(timedelta(seconds=answer.wait_s + 1))
        assert tomorrow.reserve(claim, wanted(claim, 3)).status == "ok"
        starts = {(row.scope, row.period): row.starts_at.astimezone(UTC) for row in tomorrow.windows(hands.tenant)}
        assert starts["tenant", "day"].timetuple()[3:6] == (0, 0, 0)
    finally:
        later.close()


# ── settling ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("closing", "more"), [
    ("next", {}), ("end", {}), ("fail", {}), ("retry", {"failure": BROKEN}), ("postpone", {}), ("dead", {}),
    ("release", {}), ("cancelled", {}),
])  # fmt: skip
def test_however_an_attempt_ends_its_calls_are_settled(
    hands: Hands, budgets: Budgets, closing: str, more: dict[str, Any]
) -> None:
    """
    I2, I6: the charge commits with the step's end, whatever end that is.
    """
    claim = hands.begin()
    budgets.reserve(claim, wanted(claim))
    hands.settle(claim, closing, extras=charged(claim), **more)
    assert window(budgets, hands) == (7, 0)
    row = only(budgets, claim)
    assert (row.state, row.charged_micros, row.settled_by) == ("charged", 7, "settlement")


@pytest.mark.parametrize(("state", "spent"), [("charged", 7), ("uncertain", PRICE), ("released", 0)])
def test_a_call_is_charged_as_used_or_as_estimated_or_not_at_all(
    hands: Hands, budgets: Budgets, state: str, spent: int
) -> None:
    """
    I6: what is not known is charged as it was reserved; what was never sent is given back.
    """
    claim = hands.begin()
    budgets.reserve(claim, wanted(claim))
    hands.settle(claim, "end", extras=charged(claim, state=state))
    assert window(budgets, hands) == (spent, 0)


def test_a_charge_counts_once(hands: Hands, budgets: Budgets) -> None:
    """
    I6: the same charge told again, or told by somebody else, changes nothing.
    """
    claim = hands.begin()
    budgets.reserve(claim, wanted(claim))
    hands.settle(claim, "end", extras=charged(claim))
    hands.ledger.charge_late(claim, charged(claim, micros=9).charges)
    with pytest.raises(FenceLost):
        hands.settle(claim, "end", extras=charged(claim, micros=9))
    assert window(budgets, hands) == (7, 0)


def test_a_call_whose_worker_died_is_charged_as_estimated(hands: Hands, budgets: Budgets) -> None:
    """
    I6: a reservation does not outlive its attempt, and one that still runs is left alone.
    """
    lost, alive = hands.begin(), hands.begin()
    budgets.reserve(lost, wanted(lost))
    budgets.reserve(alive, wanted(alive))
    assert hands.ledger.disown(lost.ref, lost.token) is not None

    budgets.settle_leaked(100)

    row = only(budgets, lost)
    assert (row.state, row.charged_micros, row.settled_by) == ("uncertain", PRICE, "relay")
    assert only(budgets, alive).state == "held"
    assert window(budgets, hands) == (PRICE, PRICE)


@pytest.mark.parametrize(("state", "spent"), [("charged", 7), ("released", 0), ("uncertain", PRICE)])
def test_a_late_attempts_own_word_corrects_the_relays_guess(
    hands: Hands, budgets: Budgets, state: str, spent: int
) -> None:
    """
    I3, I6: of a superseded attempt nothing is written but the money it spent.
    """
    claim = hands.begin()
    budgets.reserve(claim, wanted(claim))
    hands.ledger.disown(claim.ref, claim.token)
    budgets.settle_leaked(100)
    with pytest.raises(FenceLost):
        hands.settle(claim, "end", extras=charged(claim, state=state))
    assert window(budgets, hands) == (spent, 0)
    assert only(budgets, claim).settled_by == "late"
    assert hands.session(claim.ref)["state"] == "running"


def test_calls_of_several_providers_are_settled_together(hands: Hands, budgets: Budgets) -> None:
    """
    Two sessions settle calls of two providers in opposite orders, again and again, and never wait for each other.
    """

    claims = [hands.begin() for _ in range(6 * 15)]

    def go(names: tuple[str, str], mine: list[Granted]) -> None:
        for claim in mine:
            for n, name in enumerate(names):
                budgets.reserve(claim, wanted(claim, n, provider=name))
            hands.settle(claim, "end", extras=Extras(
                charges=tuple(charged(claim, n).charges[0] for n in range(2))))  # fmt: skip

    for result in at_once(
        *[lambda n=n: go(("a", "z")[:: 1 - n % 2 * 2], claims[n * 15 : n * 15 + 15]) for n in range(6)]
    ):
        assert result is None
    assert window(budgets, hands) == (6 * 15 * 2 * 7, 0)


def test_thresholds_are_told_once(hands: Hands, budgets: Budgets) -> None:
    """
    Half, four fifths, all: each once in a window, to the session that passed it and in the list of alerts.
    """
    limit(budgets, hands, "tenant", micros=100)
    seen = []
    for micros in (49, 1, 10, 20, 1, 19, 1):
        claim = hands.begin()
        budgets.reserve(claim, wanted(claim, micros=0))
        hands.settle(claim, "end", extras=charged(claim, micros=micros))
        found = hands.rows("select body from agentq.session_event where session_id = %s", claim.ref.session_id)
        seen.append(len(found))
    assert seen == [0, 1, 0, 1, 0, 1, 0]
    assert [alert.threshold for alert in budgets.alerts(hands.tenant)] == [100, 80, 50]


def test_thresholds_follow_a_changed_limit(hands: Hands, budgets: Budgets) -> None:
    """
    A lowered limit tells at once what is passed; after a raised one, its own thresholds are told when they come.
    """

    def spend(micros: int) -> list[int]:
        claim = hands.begin()
        budgets.reserve(claim, wanted(claim, micros=0))
        hands.settle(claim, "end", extras=charged(claim, micros=micros))
        return told()

    def told() -> list[int]:
        return sorted(alert.threshold for alert in budgets.alerts(hands.tenant))

    limit(budgets, hands, "tenant", micros=100)
    assert spend(60) == [50]
    limit(budgets, hands, "tenant", micros=70)
    assert told() == [50, 80]
    limit(budgets, hands, "tenant", micros=1000)
    assert told() == []
    assert spend(440) == [50]
    limit(budgets, hands, "tenant", micros=1000, tokens=1)
    assert told() == [50, 80, 100]


def test_a_refusal_for_good_is_an_alert(hands: Hands, budgets: Budgets) -> None:
    """
    A budget whose last call does not fit may never reach its hundredth percent.
    """
    limit(budgets, hands, "tenant", micros=15)
    claim = hands.begin()
    budgets.reserve(claim, wanted(claim, 1))
    hands.settle(claim, "end", extras=charged(claim, micros=PRICE))
    other = hands.begin()
    for n in range(3):
        assert budgets.reserve(other, wanted(other, n)).why == "spent"
    assert sorted(alert.threshold for alert in budgets.alerts(hands.tenant)) == [50, 100]


# ── adding up ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "damage",
    [
        "update agentq.budget_window set spent_micros = spent_micros + 1 where tenant = %s and scope = 'tenant'",
        "delete from agentq.budget_window where tenant = %s and scope = 'agent'",
        "update agentq.reservation set charged_micros = charged_micros + 1 where tenant = %s",
        "delete from agentq.reservation where tenant = %s",
    ],
)
def test_what_does_not_add_up_is_found(hands: Hands, admin: psycopg.Connection[Any], damage: str) -> None:
    """
    I6: `budget check` notices a sum, a window or a call that was altered behind its back.
    """
    budgets = Budgets(hands.store)
    claim = hands.begin()
    budgets.reserve(claim, wanted(claim))
    hands.settle(claim, "end", extras=charged(claim))
    assert budgets.check(hands.tenant) == []
    admin.execute(damage, (hands.tenant,))
    found = budgets.check(hands.tenant)
    assert found
    assert {row.tenant for row in found} == {hands.tenant}
