"""What was used, summed up by hour and day: the same figures before and after, whatever happens in between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from agentq.store.budgets import Budgets, Wanted
from agentq.store.operators import Operators
from agentq.store.pool import Store
from agentq.store.recovery import By, Recovery
from agentq.store.traces import GRACE_S, Traces
from agentq.testing import Clock
from agentq.verdicts import Charge, Extras, Granted, Settlement, TraceEvent, Usage
from tests.support.databases import Databases
from tests.support.hands import BROKEN, Hands, at_once, step
from tests.support.until import until

BY = ("agent", "tenant", "day", "model", "tool")
HOUR, DAY = 3600, 86_400
WINDOWS = (3 * HOUR, 30 * HOUR, 7 * DAY, 40 * DAY)
WHO = {"operator": "test", "reason": "a test"}


@dataclass
class Archive:
    """A database, tenants in it, and moments in the past at which they work."""

    store: Store
    past: Store
    owner: psycopg.Connection[Any]
    clock: Clock
    hands: dict[str, Hands] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.traces, self.budgets, self.ledger = Traces(self.store), Budgets(self.store), Budgets(self.past)

    def at(self, ago_s: float) -> None:
        """From now on, what `hand` does happens so long ago."""
        self.clock._set(-ago_s)

    def hand(self, tenant: str = "a") -> Hands:
        """A hand that works in the past."""
        if tenant not in self.hands:
            self.owner.execute("insert into agentq.tenant (name, concurrency) values (%s, 1000)", (tenant,))
            self.hands[tenant] = Hands(self.past, tenant)
        return self.hands[tenant]

    def roll(self, *, wait: bool = True, grace_s: float = GRACE_S) -> list[str]:
        """Sum up all that can be; with `wait`, also what a transaction of somebody else's, a vacuum's say, holds up."""
        done: list[str] = []

        def nothing_left() -> bool:
            while (one := self.traces.roll(grace_s=grace_s)) is not None:
                done.append(one)
            return not wait or not self.owner.execute("select closing_until from agentq.spend_mark").fetchall()[0][0]

        until(nothing_left, 60, "the hours to be closed")
        return done

    def rolled_until(self) -> Any:
        return self.owner.execute("select rolled_until from agentq.spend_mark").fetchall()[0][0]

    def told(self, *windows: int) -> list[Any]:
        """All that reports say, of each tenant and agent and of all."""
        filters: list[dict[str, Any]] = [{}, *({"tenant": name} for name in self.hands), {"agent": "robot"}]
        return [
            (self.traces.spends(BY, seconds=s, **which), self.traces.spend("session", seconds=s, **which))
            for s in windows or WINDOWS
            for which in filters
        ]

    def sums(self, seconds: float = 40 * DAY) -> set[tuple[int, int, int]]:
        """What reports say was used in all, by each thing but tools."""
        told = [*self.traces.spends(BY[:-1], seconds=seconds).values(), self.traces.spend("session", seconds=seconds)]
        return {
            (
                sum(row.tokens_in for row in rows),
                sum(row.tokens_out for row in rows),
                sum(row.cost_micros for row in rows),
            )
            for rows in told
        }

    def dear(self, seconds: float) -> set[str]:
        """The sessions that used something within so many seconds, as their traces say."""
        query = (
            "select distinct session_id::text from agentq.trace where kind = 'attempt' and cost_micros > 0"
            " and ended_at >= now() - make_interval(secs => %s)"
        )
        return {row[0] for row in self.owner.execute(query, (seconds,)).fetchall()}

    def charged(self) -> set[tuple[int, int, int]]:
        """What the budgets' ledger says."""
        columns = ("used_input", "used_output", "charged_micros")
        query = f"select {', '.join(f'sum({name})::bigint' for name in columns)} from agentq.reservation"
        return {tuple(self.owner.execute(query).fetchall()[0])}


@pytest.fixture
def archive(databases: Databases) -> Iterator[Archive]:
    """A database of its own: how far sums have come is the whole fleet's."""
    with databases.one() as database:
        store, past = (Store(database.url, size=8, name=name) for name in ("spend", "spend, past"))
        with psycopg.connect(database.admin_url, autocommit=True) as owner:
            owner.execute("select set_config('agentq.tenant', '*', false)")
            found = Archive(store, past, owner, Clock(past))
            yield found
            for hands in found.hands.values():
                hands.close()
        store.close()
        past.close()


def wanted(claim: Granted, ordinal: int = 1, model: str = "big") -> Wanted:
    name = f"{claim.ref.session_id}:{claim.ref.step_id}:{claim.fence}:{ordinal}"
    return Wanted(name, "openai", model, 50, 40, 900, "test")


def used(
    claim: Granted, *, told: bool = True, model: str = "big", tokens: int = 20, repair: bool | None = None
) -> Extras:
    """A call that was paid for; with `told`, an event of it, which may be marked as a repair."""
    usage = Usage(tokens, tokens // 2, tokens * 10)
    charge = Charge(wanted(claim).reservation_id, "charged", usage.cost_micros, usage.tokens_in, 3, usage.tokens_out)
    detail = {"model": model, "cached_tokens": 3} | ({} if repair is None else {"repair": repair})
    events = (TraceEvent("model", model, 0.0, 0.5, usage, detail=detail),) if told else ()
    tools = (
        TraceEvent("tool", "look", 0.1, 0.25),
        TraceEvent("tool", "look", 0.1, 0.25, detail={"outcome": "recalled"}),
        TraceEvent("tool", "run", 0.1, 0.5, detail={"sandbox": True}),
    )
    return Extras(usage=usage, charges=(charge,), trace=(*events, *tools))


def spend(
    archive: Archive, tenant: str = "a", closing: Any = "end", claim: Granted | None = None, **more: Any
) -> Granted:
    """A session that makes a call, and so ends its step."""
    hands = archive.hand(tenant)
    claim = claim or hands.begin()
    archive.ledger.reserve(claim, wanted(claim, model=more.get("model", "big")))
    failure = {"failure": BROKEN} if closing in ("retry", "repair") else {}
    hands.settle(claim, closing, extras=used(claim, **more), **failure)
    return claim


def month(archive: Archive) -> None:
    """Work at moments of the last weeks: two tenants, retries, repairs, calls that no event tells."""
    for number, hours in enumerate((180, 150, 51, 49, 29, 26, 5, 2, 1.5, 0.1)):
        archive.at(hours * HOUR)
        claim = spend(archive, closing="retry", tokens=20 + 2 * number)
        archive.hand().admit()
        archive.at(hours * HOUR - 300)
        spend(archive, claim=archive.hand().claim(claim.ref), model="small", repair=bool(number % 2))
        spend(archive, "b", told=False, tokens=40 + 2 * number)
        claim = spend(archive, "b", closing="repair", told=bool(number % 3), tokens=60 + 2 * number)
        archive.hand("b").admit()
        spend(archive, "b", closing="retry", claim=archive.hand("b").claim(claim.ref), model="small", repair=True)
    archive.at(0)


def lose(archive: Archive) -> Granted:
    """A session whose worker dies with two calls: one settled before the second, which nobody knows the end of."""
    hands = archive.hand()
    claim = hands.begin()
    for ordinal in (1, 2):
        archive.ledger.reserve(claim, wanted(claim, ordinal))
    archive.ledger.settle(claim, (Charge(wanted(claim, 1).reservation_id, "charged", 70, 7, 0, 3),))
    archive.owner.execute(
        "update agentq.worker set state = 'dead', stopped_at = now() where worker_id = %s", (hands.worker,)
    )
    hands.ledger.take_back(10)
    hands.worker = hands.register()
    return claim


# ── figures ──────────────────────────────────────────────────────────────────


def test_figures_are_the_same_before_and_after_they_are_summed_up(archive: Archive) -> None:
    """
    Of every window, thing, tenant and agent, to the micro and the token; and those of the budgets' ledger.
    """
    month(archive)
    before = archive.told()
    assert archive.sums() == archive.charged()
    assert before[0][0]["model"]
    assert {row.of for row in before[0][1]} == archive.dear(3 * HOUR)

    done = archive.roll()

    assert {"closing", "hour", "day", "sessions"} == set(done)
    assert archive.told() == before
    assert archive.sums() == archive.charged()
    # From the sums alone: the hours and days are there, and no trace is read of sessions that have ended by then.
    archive.owner.execute(
        "delete from agentq.trace t where not exists (select from agentq.trace o, agentq.spend_mark m"
        " where o.session_id = t.session_id and o.ended_at >= m.rolled_until)"
    )
    assert archive.told(7 * DAY, 40 * DAY) == before[2 * 4 :]
    assert archive.roll() == []


def test_at_any_point_of_a_backfill_the_figures_are_the_same(archive: Archive) -> None:
    """
    After an upgrade, months are summed up hour by hour; reports are exact at each of them.
    """
    month(archive)
    before = archive.told(7 * DAY, 40 * DAY)
    while archive.traces.roll() is not None:
        assert archive.told(7 * DAY, 40 * DAY) == before
    archive.roll()
    assert archive.told(7 * DAY, 40 * DAY) == before


def test_a_session_counts_where_it_first_spent(archive: Archive) -> None:
    """
    One that goes on for three days is one session, of the day on which it began to; so days add up.
    """
    archive.at(70 * HOUR)
    claim = spend(archive, closing="retry")
    for hours in (46, 22):
        archive.at(hours * HOUR)
        archive.hand().admit()
        claim = spend(archive, closing="retry", claim=archive.hand().claim(claim.ref))
    for _ in range(2):
        days = archive.traces.spend("day", seconds=30 * DAY)
        assert sorted((row.of, row.sessions) for row in days)[0][1] == 1
        assert (sum(row.sessions for row in days), sum(row.count for row in days)) == (1, 3)
        assert [row.sessions for row in archive.traces.spend("model", seconds=30 * DAY)] == [1]
        assert [row.sessions for row in archive.traces.spend("agent", seconds=DAY)] == [0]
        archive.roll()


@pytest.mark.parametrize(
    ("closing", "told", "repair", "waste", "repairs"),
    [("next", True, True, 200, 1), ("next", True, False, 0, 0), ("repair", True, None, 200, 1),
     ("repair", False, None, 200, 1), ("retry", True, True, 200, 1), ("retry", True, None, 200, 0)],
)  # fmt: skip
def test_repairs_are_told_apart_within_the_waste(
    archive: Archive, closing: str, told: bool, repair: bool | None, waste: int, repairs: int
) -> None:
    """
    A call that is marked, and an attempt whose answer was to be repaired, also where no event tells its call: the
    same before and after they are summed up, by each thing, and session by session too.
    """
    archive.at(2 * HOUR)
    more = {"steps": (step("second"),)} if closing == "next" else {}
    claim = archive.hand().begin()
    archive.ledger.reserve(claim, wanted(claim))
    failure = {} if closing == "next" else {"failure": BROKEN}
    archive.hand().settle(claim, closing, extras=used(claim, told=told, repair=repair), **more, **failure)
    archive.at(0)
    expected = (200, waste, repairs, 200 * repairs)
    for _ in range(2):
        for by in (*BY[:-1], "session"):
            [row] = archive.traces.spend(by, seconds=30 * HOUR)
            assert (row.cost_micros, row.waste_micros, row.repairs, row.repair_micros) == expected, by
        archive.roll()


def test_repairs_are_told_apart_in_each_part_of_a_session(archive: Archive) -> None:
    """
    Of what the window holds of it, what is not summed up yet, and the others that one line tells: the same at any time.
    """
    long, short = [], []
    for hours, kept in ((4.5, long), (1.6, short)):
        archive.at(hours * HOUR)
        kept.append(spend(archive, closing="repair", tokens=200))
    archive.at(0.2 * HOUR)
    archive.hand().admit()
    for claim, tokens in ((long[0], 40), (short[0], 20)):
        spend(archive, claim=archive.hand().claim(claim.ref), tokens=tokens, repair=True)
    archive.at(0)

    def told(seconds: float, limit: int = 9) -> list[tuple[str, int, int, int]]:
        rows = archive.traces.spend("session", seconds=seconds, limit=limit)
        assert all(row.waste_micros == row.repair_micros for row in rows)
        return [(row.of, row.sessions, row.repairs, row.repair_micros) for row in rows]

    first, second = str(long[0].ref.session_id), str(short[0].ref.session_id)
    for grace_s in (40 * HOUR, HOUR, GRACE_S):
        archive.roll(grace_s=grace_s)
        assert told(2 * HOUR) == [(second, 1, 2, 2200), (first, 0, 1, 400)]
        assert told(40 * DAY) == [(first, 1, 2, 2400), (second, 1, 2, 2200)]
        assert told(40 * DAY, limit=1) == [(first, 1, 2, 2400), ("(other sessions)", 1, 2, 2200)]


def test_repairs_that_are_told_by_nobody_have_a_line(archive: Archive) -> None:
    """
    A step's answer was to be repaired, and it neither reserved nor traced its calls.
    """
    claim = archive.hand().begin()
    archive.hand().settle(claim, "repair", extras=Extras(usage=Usage(1, 1, 5)), failure=BROKEN)
    [row] = archive.traces.spend("model", seconds=DAY)
    assert (row.of, row.count, row.waste_micros, row.repairs, row.repair_micros) == ("(not told apart)", 0, 5, 1, 5)


def test_an_attempt_cannot_have_cost_less_than_its_repairs(archive: Archive) -> None:
    """
    Whatever its calls say of themselves.
    """
    usage = Usage(1, 1, 5)
    boast = TraceEvent("model", "big", 0.0, 0.5, Usage(9, 9, 900), detail={"repair": True})
    claim = archive.hand().begin()
    archive.hand().settle(claim, "end", extras=Extras(usage=usage, trace=(boast, boast)))
    [row] = archive.traces.spend("tenant", seconds=DAY)
    assert (row.cost_micros, row.waste_micros, row.repairs, row.repair_micros) == (5, 5, 2, 5)


def test_the_dearest_sessions_and_one_line_for_the_others(archive: Archive) -> None:
    """
    So many as are asked for, whatever the day on which they ended; with the last line all comes to the same sum.
    """
    for hours, tokens in ((200, 90), (100, 20), (60, 80), (30, 30), (2, 70), (0.2, 60), (0.01, 50)):
        archive.at(hours * HOUR)
        spend(archive, tokens=tokens)
        spend(archive, "b", tokens=tokens + 4)
    archive.at(0)
    for _ in range(2):
        rows = archive.traces.spend("session", seconds=40 * DAY, tenant="a", limit=4)
        assert [row.tokens_in for row in rows] == [90, 80, 70, 60, 100]
        assert [(row.of, row.count, row.sessions) for row in rows[4:]] == [("(other sessions)", 3, 3)]
        rows = archive.traces.spend("session", seconds=40 * DAY, limit=3)
        assert [row.tokens_in for row in rows] == [94, 90, 84, 560]
        rows = archive.traces.spend("session", seconds=7 * DAY, tenant="a", agent="robot")
        assert [row.tokens_in for row in rows] == [80, 70, 60, 50, 30, 20]
        assert archive.traces.spend("session", seconds=7 * DAY, agent="nobodys") == []
        archive.roll()


def test_a_session_that_began_before_the_window_is_told_with_its_part_of_it(archive: Archive) -> None:
    """
    Whether it went on for days or for hours, and whether it goes on now; before it is summed up, and after.
    """
    claims = []
    for hours in (70, 4.5, 4.5):
        archive.at(hours * HOUR)
        claims.append(spend(archive, closing="retry", tokens=200))
    for hours, going_on in ((1.5, claims[:2]), (0.01, claims[2:])):
        archive.at(hours * HOUR)
        archive.hand().admit()
        for claim in going_on:
            spend(archive, claim=archive.hand().claim(claim.ref), tokens=20)
    archive.at(0)
    for _ in range(2):
        rows = archive.traces.spend("session", seconds=2 * HOUR)
        assert sorted(row.of for row in rows) == sorted(str(claim.ref.session_id) for claim in claims)
        assert {(row.count, row.sessions, row.tokens_in, row.cost_micros) for row in rows} == {(1, 0, 20, 200)}
        whole = archive.traces.spend("session", seconds=40 * DAY)
        assert {(row.count, row.sessions, row.tokens_in) for row in whole} == {(2, 1, 220)}
        archive.roll()


def test_the_hour_that_runs_is_added_up_too(archive: Archive) -> None:
    """
    Some minutes of traces are left to be read, however much an hour holds; and hours come out whole in the end.
    """
    for minutes in (50, 35, 20, 10):
        archive.at(minutes * 60)
        spend(archive)
    archive.at(0)
    before = archive.told()
    for minutes in (40, 25, 15):
        archive.roll(grace_s=60 * minutes)
        assert archive.told() == before
    archive.roll()
    query = "select rolled_until > now() - interval '8 minutes', sessions_until = rolled_until from agentq.spend_mark"
    assert archive.owner.execute(query).fetchall() == [(True, True)]
    assert archive.told() == before


# ── closing an hour ──────────────────────────────────────────────────────────


def test_an_hour_is_not_summed_up_while_a_settlement_of_it_is_under_way(archive: Archive) -> None:
    """
    Its transaction has taken its time from the clock, and commits whenever it does: it is waited for.
    """
    archive.at(2 * HOUR)
    spend(archive)
    claim = archive.hand().begin()
    archive.ledger.reserve(claim, wanted(claim))
    with archive.past.transaction("a") as connection:
        archive.hand().ledger.settle(claim, _end(claim), on=connection)
        assert archive.roll(wait=False) == ["closing"]
        assert archive.rolled_until() is None
    assert "hour" in archive.roll()
    assert archive.sums() == archive.charged()


def _end(claim: Granted) -> Any:
    return Settlement("end", kind="full", state=b"{}", state_from=claim.ref.step_id, result=b"1", extras=used(claim))


def test_what_is_not_over_is_left_alone(archive: Archive) -> None:
    """
    Whatever a clock says that somebody has moved ahead.
    """
    spend(archive)
    archive.at(-5 * HOUR)
    spend(archive)
    Traces(archive.past).roll()
    Traces(archive.past).roll()
    archive.roll()
    query = "select rolled_until <= clock_timestamp() - interval '1 minute' from agentq.spend_mark"
    assert archive.owner.execute(query).fetchall() == [(True,)]
    assert archive.sums() == archive.charged()


def test_many_relays_sum_up_each_hour_once(archive: Archive) -> None:
    """
    Four at once: one turns, the others leave.
    """
    month(archive)
    before = archive.told()
    while any(at_once(*[archive.traces.roll] * 4)):
        pass
    archive.roll()
    assert archive.told() == before


def test_every_settlement_under_way_is_waited_for(archive: Archive) -> None:
    """
    Six of them in three hours, ended one by one, two relays at it all the while: none is missing or counted twice.
    """
    under_way: list[psycopg.Connection[Any]] = []
    with ExitStack() as stack:
        for number, hours in enumerate((4, 3, 2)):
            archive.at(hours * HOUR)
            for tenant in (f"a{number}", f"b{number}"):
                hands = archive.hand(tenant)
                claim = hands.begin()
                archive.ledger.reserve(claim, wanted(claim))
                connection = stack.enter_context(psycopg.connect(archive.past.url, **archive.past.connect_arguments))
                connection.autocommit = False
                hands.ledger.settle(claim, _end(claim), on=connection)
                under_way.append(connection)
        for connection in under_way:
            at_once(*[archive.traces.roll] * 2)
            assert archive.rolled_until() is None
            connection.commit()
    archive.roll()
    assert archive.sums(30 * HOUR) == archive.sums() == archive.charged()


# ── what changes afterwards ──────────────────────────────────────────────────


@pytest.mark.parametrize("ago_s", [2 * HOUR, 100 * HOUR])
def test_a_call_that_is_charged_late_is_in_the_sums(archive: Archive, ago_s: float) -> None:
    """
    I6: charged as estimated by the relay, corrected by the worker that was not dead: in an hour, and in a day, that
    were summed up before.
    """
    archive.at(ago_s)
    claim = lose(archive)
    archive.at(0)
    archive.roll()
    assert archive.rolled_until() is not None
    assert [row.cost_micros for row in archive.traces.spend("tenant", seconds=7 * DAY)] == [70]

    assert archive.budgets.settle_leaked(10) == 1
    windows = (30 * HOUR, 40 * DAY) if ago_s < DAY else (40 * DAY,)
    assert all(archive.sums(seconds) == archive.charged() for seconds in windows)
    assert {row[2] for row in archive.charged()} == {970}
    archive.hand().ledger.charge_late(claim, (Charge(wanted(claim, 2).reservation_id, "charged", 110, 11, 0, 5),))
    assert all(archive.sums(seconds) == archive.charged() for seconds in windows)
    assert {row[2] for row in archive.charged()} == {180}
    [model] = archive.traces.spend("model", seconds=7 * DAY)
    assert (model.of, model.count, model.cost_micros, model.waste_micros, model.sessions) == ("big", 2, 180, 180, 1)
    [session] = archive.traces.spend("session", seconds=7 * DAY)  # and nothing of it is another's
    assert (session.of, session.count, session.cost_micros) == (str(claim.ref.session_id), 1, 180)
    assert archive.roll() == []


def test_a_late_charge_and_the_roller_wait_for_each_other(archive: Archive) -> None:
    """
    Either comes first: the roller has not committed when the charge comes, or the charge when the roller turns.
    """
    archive.at(2 * HOUR)
    first, second = lose(archive), lose(archive)
    archive.at(0)
    assert archive.traces.roll() == "closing"
    until(
        lambda: archive.owner.execute(
            "select not exists (select from pg_locks where locktype = 'virtualxid' and virtualxid = any (waits_for))"
            " from agentq.spend_mark"
        ).fetchall()[0][0],
        30,
        "nobody holds it up",
    )
    late = [Charge(wanted(claim, 2).reservation_id, "charged", 110, 11, 0, 5) for claim in (first, second)]

    with archive.store.transaction("*") as roller:
        assert roller.execute("select agentq.roll_spend(60)").fetchall() == [("hour",)]
        charging = threading.Thread(target=archive.hand().ledger.charge_late, args=(first, (late[0],)))
        charging.start()
        until(lambda: _waiting(archive), 10, "the charge waits for the roller")
    charging.join()
    assert archive.sums() == archive.charged()

    with archive.store.transaction("a") as charger:
        charger.execute(
            "select agentq.settle_charges('a', %s, %s, %s, %s, 'late')",
            (second.ref.session_id, second.ref.step_id, second.fence, Jsonb([late[1].as_json()])),
        )
        archive.roll(wait=False)
    archive.roll()
    assert archive.sums() == archive.charged()


def _waiting(archive: Archive) -> bool:
    return bool(archive.owner.execute("select from pg_locks where not granted").fetchall())


def test_two_late_charges_of_one_session(archive: Archive) -> None:
    """
    They take turns: neither puts back what the other took out.
    """
    archive.at(2 * HOUR)
    claims = [lose(archive) for _ in range(3)]
    archive.at(0)
    archive.roll()
    calls: list[Callable[[], Any]] = []
    for claim in claims:
        charge = Charge(wanted(claim, 2).reservation_id, "charged", 110, 11, 0, 5)
        calls += [lambda claim=claim, charge=charge: archive.hand().ledger.charge_late(claim, (charge,))] * 3
    assert not [error for error in at_once(*calls) if error is not None]
    assert archive.sums() == archive.charged()


@pytest.mark.parametrize("ago_s", [2 * HOUR, 100 * HOUR])
def test_a_repair_that_is_charged_late_is_in_the_sums(archive: Archive, ago_s: float) -> None:
    """
    What its second call came to was not told with the answer that was wrong: in an hour, and in a day, that were
    summed up before.
    """
    archive.at(ago_s)
    claim = archive.hand().begin()
    for ordinal in (1, 2):
        archive.ledger.reserve(claim, wanted(claim, ordinal))
    archive.hand().settle(claim, "repair", extras=used(claim), failure=BROKEN)
    archive.at(0)
    archive.roll()
    assert [row.repair_micros for row in archive.traces.spend("tenant", seconds=7 * DAY)] == [200]
    assert archive.budgets.settle_leaked(10) == 1
    for seconds in (30 * HOUR, 40 * DAY) if ago_s < DAY else (40 * DAY,):
        for by in ("tenant", "session"):
            [row] = archive.traces.spend(by, seconds=seconds)
            assert (row.cost_micros, row.waste_micros, row.repairs, row.repair_micros) == (1100, 1100, 1, 1100), by


def test_an_attempt_that_was_killed_is_in_the_sums(archive: Archive) -> None:
    """
    I6: killed between two calls, in an hour that was summed up before the second one's charge came.
    """
    archive.at(2 * HOUR)
    hands = archive.hand()
    claim = hands.begin()
    for ordinal in (1, 2):
        archive.ledger.reserve(claim, wanted(claim, ordinal))
    archive.ledger.settle(claim, (Charge(wanted(claim, 1).reservation_id, "charged", 70, 7, 0, 3),))
    assert Recovery(archive.past).kill("a", claim.ref.session_id, By("test", "a test"))[2] == 1
    archive.at(0)
    assert [row.cost_micros for row in archive.traces.spend("tenant", seconds=7 * DAY)] == [70]
    archive.roll()
    hands.ledger.charge_late(claim, (Charge(wanted(claim, 2).reservation_id, "charged", 110, 11, 0, 5),))
    assert archive.sums() == archive.charged()
    [model] = archive.traces.spend("model", seconds=7 * DAY)
    assert (model.of, model.count, model.cost_micros, model.waste_micros) == ("big", 2, 180, 180)


# ── what goes ────────────────────────────────────────────────────────────────


def test_what_a_removed_session_cost_is_kept(archive: Archive) -> None:
    """
    An erased tenant's cost stays in the figures, like its charges: of hours that are summed up, and of those that are
    not yet.
    """
    month(archive)
    before = [told[0] for told in archive.told(7 * DAY, 40 * DAY)]
    sessions = archive.dear(40 * DAY)
    assert [archive.traces.roll() for _ in range(3)]  # the oldest hours, as a rule
    operators = Operators(archive.store)
    operators.change_tenant("a", state="paused", **WHO)
    assert operators.erase_tenant("a", **WHO)["removed"] > 9
    for _ in range(2):
        assert [told[0] for told in archive.told(7 * DAY, 40 * DAY)] == before
        # Whose it was is forgotten, and the sum is the same.
        left = {row.of for row in archive.traces.spend("session", seconds=40 * DAY)}
        assert left == archive.dear(40 * DAY) | {"(other sessions)"} < sessions | {"(other sessions)"}
        archive.roll()
    stored = "select session_id::text from agentq.spend_session"
    assert {row[0] for row in archive.owner.execute(stored).fetchall()} <= archive.dear(40 * DAY)
    assert archive.sums() >= archive.charged()


def test_figures_outlive_their_traces(archive: Archive) -> None:
    """
    A week of traces is dropped, and not before it is summed up.
    """
    archive.owner.execute("""
        create table agentq.trace_20200106 (like agentq.trace including all);
        select agentq.guard_partition('trace_20200106');
        alter table agentq.trace attach partition agentq.trace_20200106 for values from ('2020-01-06') to ('2020-01-13')
    """)
    reach = "update agentq.spend_mark set closed_until = %(to)s, rolled_until = %(to)s, days_until = %(to)s"
    for to, sessions in (("2020-01-07", "2020-01-07"), ("2020-02-07", None), ("2020-02-07", "2020-01-07")):
        archive.owner.execute(f"{reach}, sessions_until = %(sessions)s", {"to": to, "sessions": sessions})
        assert archive.traces.forget(30) == []
    archive.owner.execute(f"{reach}, sessions_until = %(to)s", {"to": "2020-02-07"})
    assert archive.traces.forget(30) == ["trace_20200106"]
