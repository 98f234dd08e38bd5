"""Traces in Postgres: a row for each attempt, in the transaction that ends it, kept by the week."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg
import pytest

from agentq.errors import FenceLost
from agentq.step import StepRef
from agentq.store.approvals import Approvals
from agentq.store.ledger import Ledger
from agentq.store.pool import Store
from agentq.store.traces import WEEKS_AHEAD, Traces
from agentq.verdicts import Decision, Extras, Failure, TraceEvent, Usage
from tests.support.hands import BROKEN, Hands, at_once, new_ask, step

USED = Usage(100, 20, 345)


def rows(hands: Hands, session: uuid.UUID) -> list[dict[str, Any]]:
    return hands.rows("select * from agentq.trace where session_id = %s order by ended_at, fence, ordinal", session)


def test_every_attempt_leaves_a_row_that_says_how_it_ended(hands: Hands) -> None:
    """
    I11: names, times, class of failure, worker, attempt and what it led to; a retry is a row of its own.
    """
    claim = hands.begin()
    hands.settle(claim, "retry", failure=BROKEN, extras=Extras(usage=USED))
    hands.admit()
    again = hands.claim(claim.ref)
    hands.follow(again, step("second"))
    first, second = rows(hands, claim.ref.session_id)

    assert (first["kind"], first["name"], first["agent"], first["agent_version"]) == ("attempt", "first", "robot", 1)
    assert (first["closing"], first["attempt"], first["fence"], first["worker"]) == ("retry", 1, 1, hands.worker)
    assert first["failure"]["kind"] == "transient"
    assert (first["tokens_in"], first["tokens_out"], first["cost_micros"]) == (100, 20, 345)
    assert first["queued_at"] <= first["started_at"] <= first["ended_at"]
    assert (second["closing"], second["attempt"], second["fence"], second["leads_to"]) == ("next", 2, 2, "second")
    assert second["cost_micros"] == 0


@pytest.mark.parametrize("closing", ["end", "fail", "dead", "postpone", "release", "park", "cancelled"])
def test_however_it_is_closed(hands: Hands, closing: Any) -> None:
    claim = hands.begin()
    if closing == "cancelled":
        hands.sessions.cancel(hands.tenant, claim.ref.session_id, BROKEN)
    hands.settle(claim, closing)
    [row] = rows(hands, claim.ref.session_id)
    assert (row["closing"], row["attempt"]) == (closing, 1)


def test_joins_name_all_that_follows(hands: Hands) -> None:
    claim = hands.begin()
    join = step("join", fan=3)
    arms = [step(name, join_step=join.step_id, branch=n) for n, name in enumerate(["look", "look", "ask"])]
    hands.follow(claim, join, *arms)
    assert rows(hands, claim.ref.session_id)[0]["leads_to"] == "join, look ×2, ask"


def test_a_superseded_attempt_writes_no_trace(hands: Hands) -> None:
    """
    I3: its row would say that it ended what another attempt owns.
    """
    stale = hands.begin()
    hands.settle(stale, "retry", failure=BROKEN)
    with pytest.raises(FenceLost):
        hands.settle(stale, "end")
    assert [row["closing"] for row in rows(hands, stale.ref.session_id)] == ["retry"]


def test_an_attempt_that_is_lost_with_its_worker_leaves_a_row(hands: Hands, admin: psycopg.Connection[Any]) -> None:
    """
    I11: whoever takes the step back writes it.
    """
    claim = hands.begin()
    worker = hands.worker
    admin.execute("update agentq.worker set state = 'dead', stopped_at = now() where worker_id = %s", (worker,))
    taken = hands.ledger.take_back(100)
    assert claim.ref.step_id in [one.step_id for one in taken]
    [row] = rows(hands, claim.ref.session_id)
    assert (row["closing"], row["worker"], row["fence"], row["agent"]) == ("lost", worker, claim.fence, "robot")
    assert row["failure"]["kind"] == "worker_lost"


def test_events_and_decisions_are_written_with_the_attempt(hands: Hands) -> None:
    """
    I2: in its transaction, in their order, at their times.
    """
    claim = hands.begin()
    model = TraceEvent(
        "model", "gpt", 0.5, 1.0, USED, detail={"model": "gpt", "cached_tokens": 7}, input=b'"hi"', output=b'"ho"'
    )
    tool = TraceEvent("tool", "pay", 1.5, 0.25, failure=Failure("permanent", "E", "no"))
    chosen = Decision(1.4, b'["pay","ask"]', "pay", "it is due", 0.75, {"steps_max": 30}, "jane")
    hands.settle(claim, "end", extras=Extras(usage=USED, trace=(model, tool), decisions=(chosen,)))

    attempt, first, second = sorted(rows(hands, claim.ref.session_id), key=lambda row: row["ordinal"])
    assert (first["kind"], first["name"], bytes(first["input"]), bytes(first["output"])) == (
        "model",
        "gpt",
        b'"hi"',
        b'"ho"',
    )
    assert first["detail"] == {"model": "gpt", "cached_tokens": 7}
    assert (first["started_at"] - attempt["started_at"]).total_seconds() == pytest.approx(0.5)
    assert (first["ended_at"] - first["started_at"]).total_seconds() == pytest.approx(1.0)
    assert (second["kind"], second["failure"]["message"], second["closing"]) == ("tool", "no", None)
    [made] = hands.rows("select * from agentq.decision")
    assert (made["step"], made["picked"], made["why"], made["confidence"]) == ("first", "pay", "it is due", 0.75)
    assert (made["limits"], made["approver"], bytes(made["options"])) == ({"steps_max": 30}, "jane", b'["pay","ask"]')


def test_what_no_database_takes_does_not_stop_the_settlement(hands: Hands) -> None:
    """
    A trace is never the reason why a step's end cannot be stored.
    """
    odd = "a\0b\ud800c"
    event = TraceEvent("tool", odd, -1.0, -2.0, detail={odd: [odd, float("nan")]}, input=b'"\\u0000"')
    chosen = Decision(0.0, b"[]", odd, odd, None, {odd: odd}, odd)
    claim = hands.begin()
    hands.settle(claim, "end", extras=Extras(trace=(event,), decisions=(chosen,)))
    assert len(rows(hands, claim.ref.session_id)) == 2


def test_a_tenant_may_keep_no_content(hands: Hands, admin: psycopg.Connection[Any]) -> None:
    """
    Set while the fleet runs; the rows and their usage stay.
    """
    admin.execute("update agentq.tenant set trace_content = 'off' where name = %s", (hands.tenant,))
    claim = hands.begin()
    event = TraceEvent("model", "gpt", 0, 1, USED, input=b'"hi"', output=b'"ho"')
    made = Decision(0.0, b'["a","b"]', "a", "the words of a model")
    hands.settle(claim, "end", extras=Extras(trace=(event,), decisions=(made,)))
    [chosen] = hands.rows("select picked, why from agentq.decision where session_id = %s", claim.ref.session_id)
    assert (chosen["picked"], chosen["why"]) == ("a", None)
    [row] = [row for row in rows(hands, claim.ref.session_id) if row["ordinal"]]
    assert (row["kind"], row["input"], row["output"], row["tokens_in"]) == ("model", None, None, 100)


def test_traces_can_be_turned_off(store: Store, hands: Hands) -> None:
    hands.ledger = Ledger(store, traced=False)
    claim = hands.begin()
    hands.settle(claim, "end")
    assert rows(hands, claim.ref.session_id) == []


def test_children_are_in_the_trace_of_their_root(hands: Hands) -> None:
    """
    One trace id for all that a session leads to, down to the grandchildren.
    """
    claim = hands.begin()
    join = step("join", fan=1)
    child = hands.child(join, 0)
    hands.follow(claim, join, children=[child])
    hands.admit()
    inner = hands.claim(StepRef(hands.tenant, child.session_id, child.step_id))
    inner_join = step("join", fan=1)
    grandchild = hands.child(inner_join, 0)
    hands.follow(inner, inner_join, children=[grandchild])
    found = hands.rows("select session_id, trace_id from agentq.session")
    ids = {row["session_id"]: row["trace_id"] for row in found}
    root = claim.ref.session_id
    assert ids == {root: None, child.session_id: root, grandchild.session_id: root}


# ── weeks ────────────────────────────────────────────────────────────────────


def partitions(admin: psycopg.Connection[Any]) -> set[str]:
    query = "select relname from pg_class where relname ~ '^(trace|decision)_\\d{8}$' and relkind = 'r'"
    return {row[0] for row in admin.execute(query).fetchall()}


def test_the_weeks_ahead_are_made_once_by_the_fleets_own_role(store: Store, admin: psycopg.Connection[Any]) -> None:
    """
    By the upgrade, then by any relay; several at once make nothing twice.
    """
    assert len(partitions(admin)) >= 2 * (WEEKS_AHEAD + 1)
    assert Traces(store).prepare(WEEKS_AHEAD) == []
    made = at_once(*[lambda: Traces(store).prepare(WEEKS_AHEAD + 1)] * 4)
    assert sorted(name.rpartition("_")[0] for names in made for name in names) == ["decision", "trace"]


def test_rows_of_a_week_that_was_not_made_are_moved_into_it(
    hands: Hands, store: Store, admin: psycopg.Connection[Any]
) -> None:
    """
    A fleet whose relay slept through the weeks lost nothing.
    """
    claim = hands.begin()
    hands.settle(claim, "end")
    [this_week] = [
        row[0]
        for row in admin.execute(
            "select distinct tableoid::regclass::text from agentq.trace where session_id = %s", (claim.ref.session_id,)
        )
    ]
    admin.execute(f"alter table agentq.trace detach partition {this_week}")
    admin.execute(f"alter table {this_week} rename to trace_moved")
    admin.execute("insert into agentq.trace select * from agentq.trace_moved")
    admin.execute("drop table agentq.trace_moved")
    assert [row["closing"] for row in rows(hands, claim.ref.session_id)] == ["end"]
    assert Traces(store).prepare(0) == [this_week.removeprefix("agentq.")]
    assert admin.execute("select count(*) from agentq.trace_rest").fetchone() == (0,)
    assert [row["closing"] for row in rows(hands, claim.ref.session_id)] == ["end"]


def test_old_weeks_are_dropped_and_young_ones_are_not(store: Store, admin: psycopg.Connection[Any]) -> None:
    """
    Dropped, not deleted row by row; the week in which the limit falls stays whole.
    """
    for monday, sunday in (("2020-01-06", "2020-01-13"), ("2020-01-13", "2020-01-20")):
        name = f"trace_{monday.replace('-', '')}"
        week = f"for values from ('{monday} 00:00Z') to ('{sunday} 00:00Z')"
        admin.execute(f"create table agentq.{name} partition of agentq.trace {week}")
    before = partitions(admin)
    assert Traces(store).forget(30) == ["trace_20200106", "trace_20200113"]
    assert before - partitions(admin) == {"trace_20200106", "trace_20200113"}
    with pytest.raises(psycopg.errors.RaiseException, match="one day"):
        Traces(store).forget(0)


def test_a_partition_named_directly_is_guarded_too(hands: Hands, admin: psycopg.Connection[Any]) -> None:
    """
    I8: row security on the parent does not bind who goes round it.
    """
    for name in [*partitions(admin), "trace_rest", "decision_rest"]:
        forced = admin.execute(
            "select relrowsecurity and relforcerowsecurity, (select count(*) from pg_policy where polrelid = c.oid) "
            "from pg_class c where oid = %s::regclass",
            (f"agentq.{name}",),
        ).fetchone()
        assert forced == (True, 1), name


def test_a_wait_is_a_row_that_says_until_when(hands: Hands) -> None:
    """
    Until the next attempt, until a timer, until it is not put off any more: written when the wait begins.
    """
    claim = hands.begin()
    hands.settle(claim, "retry", failure=BROKEN, delay_s=20.0)
    [attempt, wait] = rows(hands, claim.ref.session_id)
    assert (wait["kind"], wait["name"], wait["detail"]) == ("wait", "first", {"outcome": "before the next attempt"})
    assert wait["started_at"] == attempt["ended_at"]
    assert (wait["ended_at"] - wait["started_at"]).total_seconds() == 20
    assert (wait["fence"], wait["attempt"], wait["closing"], wait["cost_micros"]) == (1, 1, None, 0)

    timed = hands.begin()
    hands.follow(timed, step("later", delay_s=3600.0))
    [_, wait] = rows(hands, timed.ref.session_id)
    assert (wait["kind"], wait["name"], wait["detail"]["outcome"]) == ("wait", "later", "timer")
    assert (wait["ended_at"] - wait["started_at"]).total_seconds() == 3600

    put_off = hands.begin()
    hands.settle(put_off, "postpone", delay_s=5.0)
    assert [row["kind"] for row in rows(hands, put_off.ref.session_id)] == ["attempt", "wait"]
    plain = hands.begin()
    hands.settle(plain, "retry", failure=BROKEN)
    assert [row["kind"] for row in rows(hands, plain.ref.session_id)] == ["attempt"]


@pytest.mark.parametrize("said", ["granted", "denied"])
def test_an_approval_is_a_row_of_the_attempt_that_it_let_go_on(hands: Hands, said: Any) -> None:
    """
    From the question to the answer, once, however often that step is tried.
    """
    claim = hands.begin()
    waiting = step("then", approval=uuid.uuid4())
    hands.settle(claim, "next", steps=(waiting,), asks=(new_ask(waiting),))
    assert waiting.approval is not None
    Approvals(hands.store).decide(
        hands.tenant, waiting.approval, said, by="ada", via="token", groups=None, reason="a good customer"
    )
    hands.admit()
    then = hands.claim(hands.ref(waiting, claim.ref.session_id))
    hands.settle(then, "retry", failure=BROKEN)
    hands.admit()
    hands.settle(hands.claim(then.ref), "end")
    [row] = [row for row in rows(hands, claim.ref.session_id) if row["kind"] == "approval"]
    assert (row["step_id"], row["fence"], row["name"]) == (then.ref.step_id, then.fence, "then")
    assert (row["detail"]["outcome"], row["detail"]["by"]) == (said, "ada")
    assert row["detail"]["approval"] == str(waiting.approval)
    first = rows(hands, claim.ref.session_id)[0]
    assert first["ended_at"] == row["started_at"] <= row["ended_at"] <= then_began(hands, then.ref)


def then_began(hands: Hands, ref: StepRef) -> Any:
    return min(row["started_at"] for row in rows(hands, ref.session_id) if row["step_id"] == ref.step_id
               and row["kind"] == "attempt")  # fmt: skip


def test_the_end_of_a_session_that_is_too_long_is_shown(hands: Hands) -> None:
    """
    Its beginning and its end, each once, and what the attempts between them came to: the sums are all attempts'.
    """
    claim = hands.begin()
    session, ref = claim.ref.session_id, claim.ref
    for number in range(9):
        following = step(f"s{number}")
        hands.settle(hands.claim(ref) if number else claim, "next", steps=(following,), extras=Extras(usage=USED))
        hands.admit()
        ref = hands.ref(following, session)
    hands.settle(hands.claim(ref), "dead", extras=Extras(usage=USED))
    traces, since = Traces(hands.store), hands.session(ref)["created_at"]
    whole, nothing = traces.told(hands.tenant, session, since)
    assert (len(whole), nothing.attempts) == (10, 0)
    shown, beyond = traces.told(hands.tenant, session, since, limit=6)
    assert [row.name for row in shown] == ["first", "s0", "s1", "s6", "s7", "s8"]
    assert (beyond.attempts, beyond.cost_micros, beyond.tokens_in) == (4, 4 * 345, 400)
    assert (beyond.waste_micros, beyond.repairs, beyond.repair_micros) == (0, 0, 0)
    again, few = traces.told(hands.tenant, session, since, limit=10)
    assert (len(again), few.attempts, few.cost_micros) == (10, 0, 0)


def test_the_waste_of_what_is_not_shown_is_summed_up(hands: Hands) -> None:
    """
    Retries, repairs within an attempt, and an attempt whose answer was repaired, all in the middle.
    """
    claim = hands.begin()
    mended = Extras(usage=USED, trace=(TraceEvent("model", "big", 0.0, 0.1, Usage(1, 1, 45), detail={"repair": True}),))
    ends: list[tuple[Any, Extras]] = [("retry", Extras(usage=USED)), ("repair", Extras(usage=USED)), ("next", mended)]
    plain = [("next", Extras(usage=USED))] * 3
    for closing, extras in [*plain, *ends, *plain]:
        following = step("s")
        more: dict[str, Any] = {"steps": (following,)} if closing == "next" else {"failure": BROKEN}
        hands.settle(claim, closing, extras=extras, **more)
        hands.admit()
        claim = hands.claim(hands.ref(following, claim.ref.session_id) if closing == "next" else claim.ref)
    since = hands.session(claim.ref)["created_at"]
    shown, beyond = Traces(hands.store).told(hands.tenant, claim.ref.session_id, since, limit=6)
    assert {row.closing for row in shown} == {"next"}
    assert (beyond.attempts, beyond.cost_micros, beyond.waste_micros) == (3, 3 * 345, 345 + 345 + 45)
    assert (beyond.repairs, beyond.repair_micros) == (2, 345 + 45)
