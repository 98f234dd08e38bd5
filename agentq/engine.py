"""
The engine: one delivery, from claim to verdict.

Read `Engine.carry` first; the rest of the file is what it calls. A message only says which step to
look at. Whether there is anything to do, and what became of it, stands in the ledger.

Crash points, and who recovers:

    before the claim commits      nothing happened; the relay finds the message missing
    while the step runs           the relay takes the step back from the dead worker
    an effect claimed, not done   the next attempt finds it pending and does what was declared
    before the settlement commits as while it runs; recorded effects are recalled, not repeated
    settled, not published        the relay finds the message missing
    published, not acknowledged   the repeat is dropped at the claim
    the answer to a write is lost `uncertain` holds the claim's token until it is disowned
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Literal, Protocol, assert_never

from agentq.errors import (
    DeadlineExceeded,
    FenceLost,
    MemoryConflict,
    SchemaMismatch,
    SessionCancelled,
    StoreUnavailable,
)
from agentq.payload import choose
from agentq.step import StepRef
from agentq.store.ledger import Ledger
from agentq.store.pool import Connection, Store, persist
from agentq.verdicts import (
    Awaiting,
    Broke,
    Carried,
    Deferred,
    Dropped,
    Extras,
    Failure,
    Finished,
    GaveUp,
    Granted,
    Interrupted,
    NotGranted,
    Outcome,
    Parked,
    Postponed,
    Proceeded,
    Repairing,
    Settled,
    Settlement,
    Superseded,
    Verdict,
    Wake,
)

log = logging.getLogger("agentq.engine")

# Postgres cannot take it now: it is away, or a deploy has not brought its schema to this release yet. Either
# passes, so nothing is given up for it.
_AWAY = (StoreUnavailable, SchemaMismatch)

# Refused claims of steps that are not with the broker any more: their slots are free.
_GAVE_UP_SLOT = frozenset({"unserved", "paused", "ended"})

StopReason = Literal["cancelled", "fenced", "draining", "timeout"]


def probe(point: str) -> None:
    """Called at each crash point with its name; does nothing unless a test puts something here."""


class Attempt:
    """
    One attempt while it runs: what may stop it, and the transaction it may have opened.

    `stop` may be called from any thread; the step notices at its next check.
    """

    def __init__(self, claim: Granted) -> None:
        self.claim = claim
        self.began = time.monotonic()
        limit_s = claim.timeout_s if claim.remaining_s is None else min(claim.timeout_s, claim.remaining_s)
        self.deadline = self.began + max(limit_s, 0.0)
        self.stopped: StopReason | None = None
        self.answered = False  # the step has returned, and only its settlement is left
        # What the attempt has used and noted so far; the context sets it once there is one.
        self.extras: Callable[[], Extras] = Extras
        self.awaits: Awaiting | None = None  # a call of it needs a person's leave first
        # What a failure comes to; a step that needs a dependency tells it of the failure first.
        self.broken: Callable[[Failure], Outcome] = Broke
        self.connection: Connection | None = None
        self._transaction = ExitStack()
        self._transaction_lock = threading.RLock()
        self._over = False
        self._listeners: list[Callable[[], object]] = []
        self._lock = threading.Lock()

    def stop(self, reason: StopReason) -> None:
        """Ask the step to end; the first reason counts."""
        with self._lock:
            if self.stopped is not None:
                return
            self.stopped = reason
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def on_stop(self, listener: Callable[[], object]) -> None:
        """Call `listener` when the attempt is stopped, or now if it was."""
        with self._lock:
            if self.stopped is None:
                self._listeners.append(listener)
                return
        listener()

    def check(self) -> None:
        """
        Return while the attempt may go on.

        Raises:
            SessionCancelled, DeadlineExceeded, FenceLost: it may not.
        """
        match self.stopped:
            case "cancelled":
                raise SessionCancelled(f"session {self.claim.ref.session_id} has ended")
            case "fenced" | "draining":
                raise self._lost()
            case _:
                if self.stopped == "timeout" or time.monotonic() > self.deadline:
                    raise DeadlineExceeded(
                        f"step {self.claim.name!r} ran longer than its {self.deadline - self.began:g} s"
                    )

    def open_transaction(self, store: Store) -> Connection:
        """
        The connection whose writes commit with this attempt's settlement, or not at all.

        Raises:
            FenceLost: the attempt is over; only a coroutine that outlived it can ask then.
        """
        with self._transaction_lock:
            if self._over:
                raise self._lost()
            if self.connection is None:
                self.connection = self._transaction.enter_context(store.transaction(self.claim.ref.tenant))
            return self.connection

    @contextmanager
    def keep_open(self, connection: Connection) -> Iterator[None]:
        """
        Keep the transaction as it is within the block.

        Raises:
            FenceLost: it is over, and its connection may serve another tenant by now.
        """
        with self._transaction_lock:
            if self.connection is not connection:
                raise self._lost()
            yield

    def commit(self) -> None:
        """Commit what `open_transaction` began."""
        with self._transaction_lock:
            self.connection = None
            self._transaction.close()

    def rollback(self) -> None:
        """Undo what `open_transaction` began."""
        with self._transaction_lock:
            if self.connection is None:
                return
            self.connection = None
            stack, self._transaction = self._transaction, ExitStack()
            with suppress(_Rollback, StoreUnavailable):
                stack.__exit__(_Rollback, _Rollback(), None)

    def end(self) -> None:
        """Undo what was not committed; nothing is opened any more."""
        with self._transaction_lock:
            self._over = True
            self.rollback()

    def _lost(self) -> FenceLost:
        return FenceLost(str(self.claim.ref.session_id), str(self.claim.ref.step_id), self.claim.fence)

    def cut_transaction(self) -> None:
        """From another thread: end a transaction whose step does not, so that its row locks go."""
        connection = self.connection
        if connection is not None:
            connection.close()


class _Rollback(Exception):
    """Leaves a transaction block so that it rolls back."""


@dataclass(frozen=True, slots=True)
class Uncertain:
    """A claim whose fate Postgres did not tell: it is disowned once Postgres answers."""

    ref: StepRef
    token: int


class InFlight:
    """What this process is working on, and whether it still takes more."""

    def __init__(self) -> None:
        self.draining = False
        self.delivered: float | None = None  # when a message last came, on the monotonic clock
        self.consumer_restarts = 0  # by the watchdog
        self.consumer_restarted: float | None = None  # when it last did, on the monotonic clock
        self._attempts: dict[uuid.UUID, Attempt] = {}
        self._stranded: set[Attempt] = set()
        self._held: dict[str, tuple[int, float]] = {}
        self._uncertain: list[Uncertain] = []
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)

    @contextmanager
    def running(self, claim: Granted) -> Iterator[Attempt]:
        """Count an attempt as running within the block."""
        attempt = Attempt(claim)
        with self._lock:
            self._attempts[claim.ref.step_id] = attempt
        try:
            yield attempt
        finally:
            attempt.end()
            with self._idle:
                self._stranded.discard(attempt)
                self._leave(attempt)

    def held(self) -> dict[str, tuple[int, float]]:
        """How many attempts ended since the last call, and for how many seconds they had held slots, by tenant."""
        with self._lock:
            held, self._held = self._held, {}
            return held

    @property
    def stranded(self) -> int:
        """How many threads still work on attempts that were abandoned: slots that this process has lost."""
        with self._lock:
            return len(self._stranded)

    def attempts(self) -> list[Attempt]:
        with self._lock:
            return list(self._attempts.values())

    def holds(self, ref: StepRef, token: int) -> bool:
        """Whether this very claim is being worked on here."""
        with self._lock:
            attempt = self._attempts.get(ref.step_id)
            return attempt is not None and attempt.claim.token == token

    def forget(self, attempt: Attempt) -> None:
        """Stop counting an attempt that was settled over its head; its thread is stranded until it returns."""
        with self._idle:
            if self._leave(attempt):
                self._stranded.add(attempt)

    def _leave(self, attempt: Attempt) -> bool:
        """With the lock held: the attempt no longer counts as running; whether it did."""
        self._idle.notify_all()
        ref = attempt.claim.ref
        if self._attempts.get(ref.step_id) is not attempt:
            return False
        del self._attempts[ref.step_id]
        steps, seconds = self._held.get(ref.tenant, (0, 0.0))
        self._held[ref.tenant] = (steps + 1, seconds + time.monotonic() - attempt.began)
        return True

    def fence_all(self) -> None:
        """This process was taken for dead: nothing it runs will be written."""
        for attempt in self.attempts():
            attempt.stop("fenced")

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until nothing runs; False when time ran out."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._attempts, timeout_s)

    def doubt(self, ref: StepRef, token: int) -> None:
        with self._lock:
            self._uncertain.append(Uncertain(ref, token))

    def doubts(self) -> list[Uncertain]:
        """Take the uncertain claims, to disown them."""
        with self._lock:
            doubts, self._uncertain = self._uncertain, []
            return doubts


Act = Callable[[Attempt], Outcome]


@dataclass(frozen=True, slots=True)
class Retry:
    """Try the step again after a pause."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Bury:
    """No further attempt."""


Judge = Callable[[Granted, Failure], Retry | Bury]


class Watch(Protocol):
    """Who counts what an engine does."""

    def claimed(self, claim: Granted) -> None:
        """A step was claimed."""

    def carried(self, claim: Granted, settlement: Settlement, seconds: float) -> None:
        """An attempt was settled so."""

    def ended(self, verdict: Verdict) -> None:
        """A delivery came to its verdict."""


class Engine:
    """Carries deliveries. Shared by all threads of a process."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        act: Act,
        judge: Judge,
        send: Callable[[Iterable[Wake]], None],
        in_flight: InFlight,
        worker_id: Callable[[], uuid.UUID],
        serves: list[str],
        quarantine: bool,
        settle_patience_s: float,
        admit_max: int,
        refusals_max: int = 10_000,
        watch: Watch | None = None,
    ) -> None:
        self.ledger = ledger
        self.act = act
        self.judge = judge
        self.send = send
        self.in_flight = in_flight
        self.worker_id = worker_id
        self.serves = serves
        self.quarantine = quarantine
        self.settle_patience_s = settle_patience_s
        self.admit_max = admit_max
        self.refusals_max = refusals_max
        self.watch = watch

    def carry(self, ref: StepRef) -> Verdict:
        """
        Carry one delivery to one verdict; every verdict is acknowledged.

        A crash between claim and settlement repeats the attempt under a higher fence; what its
        effects had recorded is recalled instead of repeated.
        """
        verdict = self._carry(ref)
        if self.watch is not None:
            self.watch.ended(verdict)
        return verdict

    def _carry(self, ref: StepRef) -> Verdict:
        probe("received")
        claim = self._claim(ref)
        if not isinstance(claim, Granted):
            return claim
        if self.watch is not None:
            self.watch.claimed(claim)
        probe("claimed")
        with self.in_flight.running(claim) as attempt:
            outcome = self.act(attempt) if claim.unreadable is None else _unreadable(claim)  # returns, never raises
            attempt.answered = True
            probe("ran")
            verdict, settled = self._end(attempt, outcome)
        probe("settled")
        if settled is not None:
            self._dispatch(ref.tenant, settled)
        probe("dispatched")
        return verdict

    def abandon(self, attempt: Attempt) -> None:
        """
        Settle an attempt that outlived its deadline and does not listen.

        Its thread may go on, but it has lost the fence: whatever it returns is thrown away.
        """
        attempt.stop("timeout")
        failure = Failure("timeout", "DeadlineExceeded", f"no answer within {attempt.deadline - attempt.began:g} s")
        outcome = attempt.broken(failure)
        if isinstance(outcome, Broke | Postponed):
            outcome = replace(outcome, extras=attempt.extras().of_failed())
        settlement = self._conclude(attempt.claim, outcome)
        try:
            settled = self.ledger.settle(attempt.claim, settlement)
        except FenceLost:
            settled = None
        if settled is not None and self.watch is not None:
            self.watch.carried(attempt.claim, settlement, time.monotonic() - attempt.began)
        attempt.cut_transaction()
        self.in_flight.forget(attempt)
        if settled is not None:
            self._dispatch(attempt.claim.ref.tenant, settled)

    def hand_back(self, attempt: Attempt) -> None:
        """Return a running step to the fleet while this process drains; the attempt is not counted."""
        attempt.stop("draining")
        try:
            settled = self.ledger.settle(attempt.claim, Settlement("release", extras=attempt.extras().of_failed()))
        except (FenceLost, *_AWAY):
            return
        self.send(settled.wakes)

    def _claim(self, ref: StepRef) -> Granted | Dropped | Deferred:
        self.in_flight.delivered = time.monotonic()
        if self.in_flight.draining:
            # Hand it on at once; the relay would notice a moment later.
            self.send([Wake(ref.tenant, ref.session_id, ref.step_id, "", self.quarantine, ref.epoch)])
            return Deferred("draining")
        token = secrets.randbits(63)
        try:
            claim = self.ledger.claim(
                ref, token=token, worker=self.worker_id(), serves=self.serves, quarantine=self.quarantine
            )
        except _AWAY as error:
            # The claim may have been committed and only its answer lost.
            self.in_flight.doubt(ref, token)
            log.warning("step %s could not be claimed, the relay will bring it back: %s", ref.step_id, error)
            return Deferred("store_unavailable")
        if isinstance(claim, NotGranted):
            if claim.reason in _GAVE_UP_SLOT:
                self._refill(ref.tenant)
            return Dropped(claim.reason)
        return claim

    def _refill(self, tenant: str) -> None:
        try:
            self.send(self.ledger.refill(tenant))
        except _AWAY as error:
            log.warning("a slot of tenant %s could not be filled, the relay will do it: %s", tenant, error)

    def _end(self, attempt: Attempt, outcome: Outcome) -> tuple[Verdict, Settled | None]:
        claim = attempt.claim
        if isinstance(outcome, Interrupted) and outcome.reason != "cancelled":
            log.warning("attempt %s of step %s was superseded while it ran", claim.fence, claim.ref.step_id)
            self._charge_late(claim, attempt.extras())
            return Superseded(claim.fence), None
        settlement = self._conclude(claim, outcome)
        if isinstance(outcome, Interrupted):
            settlement = replace(settlement, extras=attempt.extras().of_failed())
        try:
            settlement, settled = self._settle(attempt, settlement)
        except FenceLost as lost:
            log.warning("%s; its result was thrown away", lost)
            return Superseded(claim.fence), None
        except _AWAY:
            self.in_flight.doubt(claim.ref, claim.token)
            return Deferred("store_unavailable"), None
        if self.watch is not None:
            self.watch.carried(claim, settlement, time.monotonic() - attempt.began)
        kind = settlement.failure.kind if settlement.failure is not None else ""
        return Carried(settlement.closing, f"{claim.agent}@{claim.agent_version}", kind), settled

    def _charge_late(self, claim: Granted, extras: Extras) -> None:
        """The money that a superseded attempt spent; when it cannot be told, the relay charges the estimate."""
        if extras.charges:
            with suppress(*_AWAY):
                self.ledger.charge_late(claim, extras.charges)

    def _settle(self, attempt: Attempt, settlement: Settlement) -> tuple[Settlement, Settled]:
        """Write the settlement, or the failure that it turned into."""
        if attempt.connection is not None and settlement.closing in ("next", "end", "fail"):
            try:
                settled = self.ledger.settle(attempt.claim, settlement, on=attempt.connection)
                attempt.commit()
                return settlement, settled
            except _AWAY as error:
                # The step's own writes cannot be repeated from here; if they did commit, the fence says so.
                failure = Failure("transient", "StoreUnavailable", str(error))
                settlement = self._conclude(attempt.claim, Broke(failure, settlement.extras.of_failed()))
            except FenceLost:
                raise
            except MemoryConflict as error:
                settlement = self._look_again(attempt.claim, settlement, error)
            except Exception as error:
                settlement = self._refused(attempt.claim, settlement, error)
        attempt.rollback()
        try:
            return settlement, self._persist(attempt, settlement)
        except (FenceLost, *_AWAY):
            raise
        except MemoryConflict as error:
            settlement = self._look_again(attempt.claim, settlement, error)
        except Exception as error:
            settlement = self._refused(attempt.claim, settlement, error)
        return settlement, self._persist(attempt, settlement)

    def _persist(self, attempt: Attempt, settlement: Settlement) -> Settled:
        return persist(
            lambda: self.ledger.settle(attempt.claim, settlement),
            patience_s=self.settle_patience_s,
            what=f"step {attempt.claim.ref.step_id}",
            give_up=lambda: attempt.stopped in ("fenced", "draining"),
        )

    def _look_again(self, claim: Granted, wanted: Settlement, error: MemoryConflict) -> Settlement:
        """The step acted on a memory that somebody has changed since: it runs again and reads what is there now."""
        failure = Failure("transient", "MemoryConflict", str(error))
        return self._conclude(claim, Broke(failure, wanted.extras.of_failed()))

    def _refused(self, claim: Granted, wanted: Settlement, error: Exception) -> Settlement:
        """Postgres refuses what the step wants stored, and always would: a claim left open would never end."""
        log.error("step %s ended with something that cannot be stored: %s", claim.ref.step_id, type(error).__name__)
        first_line = (str(error).splitlines() or [""])[0]  # the lines that follow quote the data
        failure = Failure("permanent", type(error).__name__, f"the step's end cannot be stored: {first_line}")
        return self._conclude(claim, Broke(failure, Extras(usage=wanted.extras.usage, charges=wanted.extras.charges)))

    def _conclude(self, claim: Granted, outcome: Outcome) -> Settlement:
        match outcome:
            case Proceeded(state, steps, children, extras, asks, version):
                kind, stored, parent, state_from = _checkpoint(claim, state, version)
                return Settlement(
                    "next", kind=kind, state=stored, parent=parent, state_from=state_from,
                    steps=steps, children=children, extras=extras, asks=asks, version=version or claim.state_version,
                )  # fmt: skip
            case Finished(result, state, extras, version):
                kind, stored, parent, _ = _checkpoint(claim, state, version)
                return Settlement(
                    "end", kind=kind, state=stored, parent=parent, result=result, extras=extras,
                    version=version or claim.state_version,
                )  # fmt: skip
            case GaveUp(failure, state, extras, version):
                kind, stored, parent, _ = _checkpoint(claim, state, version)
                return Settlement(
                    "fail", kind=kind, state=stored, parent=parent, failure=failure, extras=extras,
                    version=version or claim.state_version,
                )  # fmt: skip
            case Broke(failure, extras):
                match self.judge(claim, failure):
                    case Retry(delay_s):
                        return Settlement("retry", delay_s=delay_s, failure=failure, extras=extras)
                    case Bury():
                        return Settlement("dead", failure=failure, extras=extras)
            case Parked(hold, extras):
                return Settlement("park", hold=hold, extras=extras)
            case Awaiting(approval_id, ask, extras):
                return Settlement("await", awaits=approval_id, asks=(ask,) if ask else (), extras=extras)
            case Repairing(failure, extras):
                return Settlement("repair", failure=failure, extras=extras)
            case Postponed(_, extras) if claim.refusals >= self.refusals_max:
                # Nothing goes round for ever: what is put off so often waits for what never comes.
                why = Failure("permanent", "PutOffTooOften", f"put off {claim.refusals:,} times (step_refusals_max)")
                return Settlement("dead", failure=why, extras=extras)
            case Postponed(delay_s, extras, refund, why):
                return Settlement("postpone", delay_s=delay_s, extras=extras, refund=refund, failure=why)
            case Interrupted():
                return Settlement("cancelled")
        assert_never(outcome)

    def _dispatch(self, tenant: str, settled: Settled) -> None:
        self.send(settled.wakes)
        if not settled.more:
            return
        try:
            self.send(self.ledger.admit(tenant, self.admit_max))
        except _AWAY as error:
            log.debug("admission is left to the relay: %s", error)


def _unreadable(claim: Granted) -> Outcome:
    """A payload that no attempt will ever be able to read: its step is dead at once, and nothing was run."""
    return Broke(Failure("permanent", "PayloadUnreadable", claim.unreadable or "", final=True))


def _checkpoint(
    claim: Granted, state: bytes, version: int | None
) -> tuple[Literal["full", "delta", "same"], bytes | None, uuid.UUID | None, uuid.UUID | None]:
    """How the state is stored, what it is a change of, and where the next step finds it."""
    if version is not None and claim.state_version not in (None, version):
        # Another version's bytes mean something else, even where they are the same.
        return "full", state, None, claim.ref.step_id
    before = claim.states if claim.states is not None else None if claim.input is None else (claim.input,)
    kind, stored = choose(before, state)
    if kind == "same":
        return "same", None, None, claim.state_from
    if kind == "delta" and claim.state_from is not None:
        return "delta", stored, claim.state_from, claim.ref.step_id
    # A session's input is no checkpoint, so nothing can be stored as a change of it.
    return "full", state, None, claim.ref.step_id
