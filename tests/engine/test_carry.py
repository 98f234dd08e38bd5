"""The engine: one delivery from claim to verdict, and every way in which it can end."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from agentq import (
    Agent,
    AsyncContext,
    Context,
    DeadlineExceeded,
    Done,
    Fail,
    Next,
    Permanent,
    SessionCancelled,
    Transient,
)
from agentq import engine as engine_module
from agentq.agents.registry import Registry
from agentq.client import Client
from agentq.engine import Retry
from agentq.errors import FenceLost, NotNow, StoreUnavailable
from agentq.policies.failures import retry_with_backoff
from agentq.step import StepRef, new_id
from agentq.store.ledger import Ledger
from agentq.testing import LocalFleet
from agentq.verdicts import Carried, Deferred, Dropped, Failure, Granted, Settled, Settlement, Superseded
from tests.support.until import until

Local = Callable[..., LocalFleet]


class Count(BaseModel):
    """A number, and room for more."""

    n: int = 0
    text: str = ""


class Other(BaseModel):
    """The state of no agent here."""


def first_ref(session: Any) -> StepRef:
    return StepRef(session.tenant, uuid.UUID(session.id), session.steps()[0].step_id)


# ── attempts ─────────────────────────────────────────────────────────────────


def test_a_failing_step_is_retried_until_its_attempts_are_used_up(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    Then the entry is dead, the session failed, and both say why.
    """
    agent = Agent("robot", state=Count, registry=registry)
    attempts: list[int] = []

    @agent.step(retries=2)
    def work(state: Count, ctx: Context) -> Done:
        attempts.append(ctx.attempt)
        raise ConnectionError(f"no luck {ctx.attempt}")

    session = client.start("robot", tenant=tenant, input={})
    with pytest.raises(ConnectionError, match="no luck 3"):
        local().drain(session)

    assert attempts == [1, 2, 3]
    [step] = session.steps()
    assert (step.state, step.attempt, step.failure["message"]) == ("dead", 3, "no luck 3")
    view = session.view()
    assert view.state == "failed"
    assert view.failure is not None
    assert (view.failure["kind"], view.failure["type"], view.failure["attempt"]) == ("transient", "ConnectionError", 3)
    assert "work" in view.failure["where"]


def test_what_a_failed_attempt_used_reaches_its_settlement(
    registry: Registry, client: Client, tenant: str, local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Money is gone though the attempt failed, or was put off; what it wanted to say to the history is not said.
    """
    agent = Agent("spends", state=Count, registry=registry)
    endings = iter([Transient("try again"), NotNow("the other side is busy", delay_s=0.0)])

    @agent.step(start=True)
    def spend(state: Count, ctx: Context) -> Done:
        ctx.usage(input_tokens=7, cost_usd="0.01")
        ctx.messages.append({"said": ctx.attempt})
        if (error := next(endings, None)) is not None:
            raise error
        return Done("spent")

    written: list[tuple[str, int, int]] = []
    settle = Ledger.settle

    def watched(self: Ledger, claim: Granted, settlement: Settlement, **more: Any) -> Settled:
        extras = settlement.extras
        written.append((settlement.closing, extras.usage.cost_micros, len(extras.messages)))
        return settle(self, claim, settlement, **more)

    monkeypatch.setattr(Ledger, "settle", watched)
    session = client.start("spends", tenant=tenant, input={})
    assert local().drain(session).result == "spent"
    assert written == [("retry", 10_000, 0), ("postpone", 10_000, 0), ("end", 10_000, 1)]


def test_retries_wait_longer_and_longer_with_jitter() -> None:
    """
    Full jitter below a doubling ceiling; Retry-After is a floor on top of it, never a ceiling.
    """
    claim = _granted(attempts_max=100)
    ceiling = retry_with_backoff(1.0, 60.0, draw=lambda: 1.0)
    waits = [ceiling(_granted(attempt=n, attempts_max=5000), Failure("transient", "E", "")) for n in (1, 2, 3, 7, 4000)]
    assert waits == [Retry(1.0), Retry(2.0), Retry(4.0), Retry(60.0), Retry(60.0)]
    floor = retry_with_backoff(1.0, 60.0, draw=lambda: 0.0)
    assert floor(claim, Failure("transient", "E", "", retry_after_s=90.0)) == Retry(90.0)
    assert floor(claim, Failure("transient", "E", "")) == Retry(0.0)


def _granted(attempt: int = 1, attempts_max: int = 3) -> Granted:
    ref = StepRef("t", new_id(), new_id())
    return Granted(
        ref, 1, attempt, attempt, attempts_max, 0, 0, "s", "a", 1, 1.0,
        None, None, None, b"{}", None, None, 0, 0, None, 0.0, new_id(), 0, False,
    )  # fmt: skip


def test_a_retry_waits_in_the_ledger_and_not_in_the_worker(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    A step that must wait an hour holds no thread; it is due when the database's clock says so.
    """
    agent = Agent("robot", state=Count, registry=registry)

    @agent.step(retries=1)
    def work(state: Count, ctx: Context) -> Done:
        if ctx.attempt == 1:
            raise Transient("come back in an hour", retry_after_s=3600)
        return Done("back")

    session = client.start("robot", tenant=tenant, input={})
    fleet = local()
    assert fleet.carry_next(tenant) == Carried("retry")
    assert fleet.carry_next(tenant) is None
    fleet.clock.advance("59m")
    assert fleet.carry_next(tenant) is None
    fleet.clock.advance("2m")
    assert fleet.carry_next(tenant) == Carried("end")
    assert session.view().result == "back"


@pytest.mark.parametrize("error", [Permanent("no"), TypeError("bug"), AttributeError("bug"), NotImplementedError()])
def test_what_no_retry_can_help_is_not_retried(
    registry: Registry, client: Client, tenant: str, local: Local, error: Exception
) -> None:
    """
    A bug fails the same way each time.
    """
    agent = Agent("robot", state=Count, registry=registry)
    attempts: list[int] = []

    @agent.step(retries=5)
    def work(state: Count) -> Done:
        attempts.append(1)
        raise error

    with pytest.raises(type(error)):
        local().drain(client.start("robot", tenant=tenant, input={}))
    assert attempts == [1]


class Unshowable(Exception):
    """An exception with a bug of its own."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a zero \0 and half a pair \ud800"),
        Unshowable(),
        Transient("x", retry_after_s=float("inf")),
        Transient("x", retry_after_s=float("nan")),
        Transient("x", retry_after_s=1e300),
        Transient("x", retry_after_s="soon"),  # type: ignore[arg-type]
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        SessionCancelled("raised by the step itself"),
        DeadlineExceeded("raised by the step itself"),
        FenceLost("a", "b", 1),
    ],
    ids=lambda error: type(error).__name__ + str(error.args)[:20].encode("ascii", "replace").decode(),
)
def test_whatever_a_step_raises_its_entry_ends(
    registry: Registry, client: Client, tenant: str, local: Local, error: BaseException
) -> None:
    """
    I7: no exception, however odd, leaves a step running for ever under a worker that lives.
    """
    agent = Agent("robot", state=Count, registry=registry)

    @agent.step(retries=0)
    def work(state: Count) -> Done:
        raise error

    session = client.start("robot", tenant=tenant, input={})
    fleet = local()
    assert fleet.carry_next(tenant) == Carried("dead")
    assert session.view().state == "failed"


@pytest.mark.parametrize(
    "returned",
    [
        None, 3, "next", Next, (Done(1),), Next("no-such-step"), Next("work", args={"unknown": 1}), Done(object()),
        Next("work", state=Other()), Fail("zero \0 half \ud800"), Done("half \ud800"),
        Next("work", args={"x": object()}),
    ],
    ids=ascii,
)  # fmt: skip
def test_whatever_a_step_returns_its_session_ends(
    registry: Registry, client: Client, tenant: str, local: Local, returned: Any
) -> None:
    """
    I7: an answer that is none, or that cannot be stored, is a failure with words, not a step that never ends.
    """
    agent = Agent("robot", state=Count, registry=registry)

    @agent.step(retries=0)
    def work(state: Count) -> Any:
        return returned

    session = client.start("robot", tenant=tenant, input={})
    fleet = local()
    for _ in range(3):
        if fleet.carry_next(tenant) is None:
            break
    view = session.view()
    assert view.state == "failed"
    assert view.failure is not None
    assert view.failure["message"]


def test_fail_ends_the_session_on_purpose(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    `Fail` is a decision: no retry, the state kept, the reason told.
    """
    agent = Agent("robot", state=Count, registry=registry)

    @agent.step(retries=5)
    def work(state: Count) -> Fail:
        return Fail("not our customer")

    session = client.start("robot", tenant=tenant, input={})
    view = local().drain(session)
    assert view.state == "failed"
    assert view.failure == {"kind": "gave_up", "type": "Fail", "message": "not our customer", "attempt": 1}
    assert [step.state for step in session.steps()] == ["done"]


# ── deliveries ───────────────────────────────────────────────────────────────


def chain(registry: Registry, done: list[int] | None = None) -> Agent[Count]:
    """Two steps."""
    agent = Agent("chain", state=Count, registry=registry)

    @agent.step(start=True)
    def one(state: Count) -> Next:
        if done is not None:
            done.append(state.n)
        state.n += 1
        return Next(two, state)

    @agent.step
    def two(state: Count) -> Done:
        return Done(state.n)

    return agent


def test_a_repeated_delivery_is_dropped(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    Whatever the broker repeats, a finished step does not run again.
    """
    done: list[int] = []
    chain(registry, done)
    session = client.start("chain", tenant=tenant, input={})
    fleet = local()
    fleet.drain(session)
    assert fleet.carry(first_ref(session)) == Dropped("settled")
    assert done == [0]


def test_a_forged_delivery_is_dropped(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    A message about nothing does nothing.
    """
    chain(registry)
    assert local().carry(StepRef(tenant, new_id(), new_id())) == Dropped("missing")


def test_a_draining_worker_takes_nothing(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    What reaches it anyway goes back, unclaimed.
    """
    chain(registry)
    session = client.start("chain", tenant=tenant, input={})
    fleet = local()
    fleet.in_flight.draining = True
    assert fleet.carry(first_ref(session)) == Deferred("draining")
    assert session.steps()[0].state == "queued"
    fleet.in_flight.draining = False
    assert fleet.drain(session).result == 1


def test_a_claim_whose_answer_was_lost_is_disowned(
    registry: Registry, client: Client, tenant: str, local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The claim was committed, the worker never heard of it: at the next heartbeat it gives the step back.
    """
    chain(registry)
    session = client.start("chain", tenant=tenant, input={})
    fleet = local()
    claim = fleet.ledger.claim

    def lost(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(fleet.ledger, "claim", claim)
        claim(*args, **kwargs)
        raise StoreUnavailable("the answer was lost")

    monkeypatch.setattr(fleet.ledger, "claim", lost)
    assert fleet.carry(first_ref(session)) == Deferred("store_unavailable")
    assert session.steps()[0].state == "running"
    fleet.heart._beat()
    assert (session.steps()[0].state, session.steps()[0].attempt) == ("queued", 0)
    assert fleet.drain(session).result == 1


def test_a_settlement_whose_answer_was_lost_counts_once(
    registry: Registry, client: Client, tenant: str, local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Repeated, it meets its own fence: the delivery ends as superseded, and what was settled stands.
    """
    done: list[int] = []
    chain(registry, done)
    session = client.start("chain", tenant=tenant, input={})
    fleet = local()
    settle = fleet.ledger.settle

    def lost(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(fleet.ledger, "settle", settle)
        settle(*args, **kwargs)
        raise StoreUnavailable("the answer was lost")

    monkeypatch.setattr(fleet.ledger, "settle", lost)
    assert fleet.carry(first_ref(session)) == Superseded(1)
    assert fleet.drain(session).result == 1
    assert done == [0]


def test_a_postgres_that_is_away_is_waited_for(
    registry: Registry, client: Client, tenant: str, local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A finished step keeps trying to settle; nothing runs twice because Postgres blinked.
    """
    done: list[int] = []
    chain(registry, done)
    session = client.start("chain", tenant=tenant, input={})
    fleet = local()
    settle, failures = fleet.ledger.settle, iter(range(3))

    def away(*args: Any, **kwargs: Any) -> Any:
        if next(failures, None) is not None:
            raise StoreUnavailable("away")
        return settle(*args, **kwargs)

    monkeypatch.setattr(fleet.ledger, "settle", away)
    assert fleet.drain(session).result == 1
    assert done == [0]


@pytest.mark.parametrize("missing", ["claim", "settle"])
def test_another_releases_schema_is_waited_for(
    registry: Registry,
    client: Client,
    tenant: str,
    local: Local,
    monkeypatch: pytest.MonkeyPatch,
    admin: psycopg.Connection[Any],
    missing: str,
) -> None:
    """
    Code that came before its `db upgrade` gives nothing up for it: what was done is kept, and stored afterwards.
    """
    done: list[int] = []
    chain(registry, done)
    session = client.start("chain", tenant=tenant, input={})
    fleet = local()
    call, calls = getattr(fleet.ledger, missing), iter(["missing"])

    def deployed_in_between(*args: Any, **kwargs: Any) -> Any:
        if next(calls, None) is None:
            return call(*args, **kwargs)
        admin.execute(f"alter function agentq.{missing} rename to {missing}_of_later".encode())
        try:
            return call(*args, **kwargs)
        finally:
            admin.execute(f"alter function agentq.{missing}_of_later rename to {missing}".encode())

    monkeypatch.setattr(fleet.ledger, missing, deployed_in_between)
    if missing == "claim":
        assert fleet.carry(first_ref(session)) == Deferred("store_unavailable")
    assert fleet.drain(session).result == 1
    assert done == [0]
    assert [step.state for step in session.steps()] == ["done", "done"]


def test_patience_ends_and_the_step_is_given_back(
    registry: Registry, client: Client, tenant: str, local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A worker that could not settle for too long disowns the step, so that it runs again somewhere.
    """
    done: list[int] = []
    chain(registry, done)
    session = client.start("chain", tenant=tenant, input={})
    fleet = local()
    fleet.engine.settle_patience_s = 0.0
    settle = fleet.ledger.settle

    def away(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(fleet.ledger, "settle", settle)
        raise StoreUnavailable("away")

    monkeypatch.setattr(fleet.ledger, "settle", away)
    assert fleet.carry(first_ref(session)) == Deferred("store_unavailable")
    fleet.heart._beat()
    assert fleet.drain(session).result == 1
    assert done == [0, 0]


# ── time ─────────────────────────────────────────────────────────────────────


def test_a_sync_step_that_ignores_its_deadline_is_abandoned(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    Its entry goes on without it, and what it returns in the end is superseded and thrown away.
    """
    agent = Agent("robot", state=Count, registry=registry)
    wake = threading.Event()
    attempts: list[int] = []

    @agent.step(timeout="200ms", retries=1)
    def work(state: Count, ctx: Context) -> Done:
        attempts.append(ctx.attempt)
        if ctx.attempt == 1:
            wake.wait(20)
        return Done(ctx.attempt)

    session = client.start("robot", tenant=tenant, input={})
    fleet = local()
    verdicts: list[Any] = []
    thread = threading.Thread(target=lambda: verdicts.append(fleet.carry_next(tenant)))
    thread.start()
    until(lambda: (step := session.steps()[0]).state != "running" and step.attempt == 1, 10, "it is abandoned")
    assert session.steps()[0].failure["kind"] == "timeout"
    assert fleet.drain(session).result == 2
    before = session.view()

    wake.set()
    thread.join(10)

    assert verdicts == [Superseded(1)]
    assert session.view() == before
    assert attempts == [1, 2]


def test_an_async_step_is_cancelled_at_its_deadline(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    Its coroutine is cancelled, gets to clean up, and the attempt counts as a timeout.
    """
    import asyncio

    agent = Agent("robot", state=Count, registry=registry)
    cleaned = threading.Event()

    @agent.step(timeout="200ms", retries=0)
    async def work(state: Count, ctx: AsyncContext) -> Done:
        try:
            await asyncio.sleep(30)
        finally:
            cleaned.set()
        return Done()

    session = client.start("robot", tenant=tenant, input={})
    began = time.monotonic()
    fleet = local()
    assert fleet.carry_next(tenant) == Carried("dead")
    assert time.monotonic() - began < 5
    assert cleaned.wait(5)
    assert session.view().failure is not None
    assert session.view().failure["kind"] == "timeout"  # type: ignore[index]


def test_a_late_answer_still_counts_while_the_fence_holds(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    A step that returned a moment after its deadline is not run again for that.
    """
    agent = Agent("robot", state=Count, registry=registry)

    @agent.step(timeout="50ms", retries=0)
    def work(state: Count, ctx: Context) -> Done:
        until(lambda: time.monotonic() > ctx.deadline + 0.1)
        return Done("late")

    assert local().drain(client.start("robot", tenant=tenant, input={})).result == "late"


def test_an_answer_that_waits_for_postgres_is_not_late(
    registry: Registry, client: Client, tenant: str, local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A step that has answered is not abandoned while its settlement waits: its time was kept.
    """
    agent = Agent("robot", state=Count, registry=registry)

    @agent.step(timeout="50ms", retries=0)
    def work(state: Count) -> Done:
        return Done("in time")

    session = client.start("robot", tenant=tenant, input={})
    fleet = local()
    settle, deadline = fleet.ledger.settle, time.monotonic() + 2.5

    def away(*args: Any, **kwargs: Any) -> Any:
        if threading.current_thread().name != "agentq-heart" and time.monotonic() < deadline:
            raise StoreUnavailable("away")
        return settle(*args, **kwargs)

    monkeypatch.setattr(fleet.ledger, "settle", away)
    assert fleet.drain(session).result == "in time"


def test_check_raises_at_the_deadline(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    A step that asks learns in time.
    """
    agent = Agent("robot", state=Count, registry=registry)

    @agent.step(timeout="100ms", retries=0)
    def work(state: Count, ctx: Context) -> Done:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            ctx.check()
            time.sleep(0.01)
        return Done()

    session = client.start("robot", tenant=tenant, input={})
    assert local().carry_next(tenant) == Carried("dead")
    assert "longer than its 0.1 s" in str(session.view().failure)


def test_a_session_ends_at_its_deadline(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    I7: a session that sleeps past its deadline ends failed, and its timer never fires.
    """
    from agentq import Sleep

    agent = Agent("robot", state=Count, registry=registry)

    @agent.step(start=True)
    def work(state: Count) -> Sleep:
        return Sleep("2h", then=after)

    @agent.step
    def after(state: Count) -> Done:
        return Done("too late")

    session = client.start("robot", tenant=tenant, input={}, deadline="1h")
    view = local().drain(session)
    assert (view.state, (view.failure or {})["kind"]) == ("failed", "deadline")
    assert [step.state for step in session.steps()] == ["done", "cancelled"]


def test_the_sessions_deadline_bounds_its_steps(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    A step has no longer than its session has.
    """
    agent = Agent("robot", state=Count, registry=registry)
    left: list[float] = []

    @agent.step(timeout="1h")
    def work(state: Count, ctx: Context) -> Done:
        left.append(ctx.deadline - time.monotonic())
        return Done()

    local().drain(client.start("robot", tenant=tenant, input={}, deadline="60s"))
    assert 0 < left[0] <= 60


# ── cancelling ───────────────────────────────────────────────────────────────


def lingering(registry: Registry, began: threading.Event, is_async: bool) -> None:
    agent = Agent("robot", state=Count, registry=registry)
    if is_async:
        import asyncio

        @agent.step(retries=3)
        async def work(state: Count, ctx: AsyncContext) -> Done:
            began.set()
            await asyncio.sleep(30)
            return Done("never")
    else:

        @agent.step(retries=3)
        def work(state: Count, ctx: Context) -> Done:
            began.set()
            end = time.monotonic() + 30
            while time.monotonic() < end:
                ctx.check()
                time.sleep(0.01)
            return Done("never")


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_running_step_is_told_that_its_session_was_cancelled(
    registry: Registry, client: Client, tenant: str, local: Local, is_async: bool
) -> None:
    """
    At the worker's next heartbeat the step is stopped; its entry is cancelled, not retried.
    """
    began = threading.Event()
    lingering(registry, began, is_async)
    session = client.start("robot", tenant=tenant, input={})
    fleet = local()
    verdicts: list[Any] = []
    thread = threading.Thread(target=lambda: verdicts.append(fleet.carry_next(tenant)))
    thread.start()
    assert began.wait(10)

    assert session.cancel("enough") == "cancelled"
    thread.join(10)

    assert verdicts == [Carried("cancelled")]
    assert session.steps()[0].state == "cancelled"
    assert (session.view().failure or {})["message"] == "enough"


def test_a_step_that_swallows_its_cancellation_is_cancelled_anyway(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    What it returns instead is thrown away.
    """
    agent = Agent("robot", state=Count, registry=registry)
    began = threading.Event()

    @agent.step
    def work(state: Count, ctx: Context) -> Done:
        began.set()
        while True:
            try:
                ctx.check()
            except SessionCancelled:
                return Done("I know better")
            time.sleep(0.01)

    session = client.start("robot", tenant=tenant, input={})
    fleet = local()
    thread = threading.Thread(target=lambda: fleet.carry_next(tenant))
    thread.start()
    assert began.wait(10)
    session.cancel()
    thread.join(10)
    assert session.view().state == "cancelled"
    assert session.steps()[0].state == "cancelled"


def test_cancelling_while_queued(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    The step never runs, and its message is dropped.
    """
    done: list[int] = []
    chain(registry, done)
    session = client.start("chain", tenant=tenant, input={})
    assert session.cancel() == "cancelled"
    assert local().carry(first_ref(session)) == Dropped("settled")
    assert done == []


# ── the heart ────────────────────────────────────────────────────────────────


def test_a_process_taken_for_dead_fences_its_steps_and_registers_anew(
    registry: Registry, client: Client, tenant: str, local: Local, admin: psycopg.Connection[Any]
) -> None:
    """
    I3: what it was running is superseded, whatever comes of it; what it claims afterwards counts.
    """
    agent = Agent("robot", state=Count, registry=registry)
    began, wake, told = threading.Event(), threading.Event(), threading.Event()

    @agent.step
    def work(state: Count, ctx: Context) -> Done:
        if not began.is_set():
            began.set()
            wake.wait(20)
            with pytest.raises(FenceLost):
                ctx.check()
            told.set()
            return Done("zombie")
        return Done("fresh")

    session = client.start("robot", tenant=tenant, input={})
    fleet = local()
    verdicts: list[Any] = []
    thread = threading.Thread(target=lambda: verdicts.append(fleet.carry_next(tenant)))
    thread.start()
    assert began.wait(10)
    before = fleet.heart.worker_id

    admin.execute("update agentq.worker set state='dead', stopped_at=agentq.now() where worker_id=%s", (before,))
    until(lambda: fleet.heart.worker_id != before, 10, "it registers anew")
    fleet._send([step.wake for step in fleet.ledger.take_back(100) if step.wake and step.tenant == tenant])
    assert fleet.drain(session).result == "fresh"
    wake.set()
    thread.join(10)

    assert told.is_set(), "a step that asks learns that its process was taken for dead"
    assert verdicts == [Superseded(1)]
    assert session.view().result == "fresh"
    assert session.steps()[0].crashes == 1


def test_steps_that_do_not_end_in_time_are_handed_back(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    A draining worker gives what it could not finish to the others; that costs no attempt.
    """
    agent = Agent("robot", state=Count, registry=registry)
    began, wake = threading.Event(), threading.Event()

    @agent.step(retries=0)
    def work(state: Count, ctx: Context) -> Done:
        if not began.is_set():
            began.set()
            wake.wait(20)
            return Done("too late")
        return Done(ctx.attempt)

    session = client.start("robot", tenant=tenant, input={})
    fleet = local()
    verdicts: list[Any] = []
    thread = threading.Thread(target=lambda: verdicts.append(fleet.carry_next(tenant)))
    thread.start()
    assert began.wait(10)
    [attempt] = fleet.in_flight.attempts()
    fleet.engine.hand_back(attempt)
    assert fleet.drain(session).result == 1
    wake.set()
    thread.join(10)
    assert verdicts == [Superseded(1)]
    assert session.view().result == 1


def test_the_engine_does_nothing_at_its_crash_points() -> None:
    """
    Crash points are for tests; in production they are empty.
    """
    assert engine_module.probe("received") is None  # type: ignore[func-returns-value]
