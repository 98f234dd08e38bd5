"""The heart: one thread per process that keeps its lease, and tells its steps when to stop."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable

from agentq.engine import Engine, InFlight
from agentq.errors import StoreUnavailable
from agentq.neighbours import place
from agentq.store.pool import Store
from agentq.store.workers import Registration, Role, Workers

log = logging.getLogger("agentq.heart")

# A step gets this long after its deadline to notice it by itself.
_GRACE_S = 1.0
_TICK_S = 0.5
_QUIET_S = 5.0
_ROLL_CALL_S = 10.0


class Heart:
    """
    Renews the lease of this process and stops attempts that must not go on.

    When Postgres took the process for dead, everything it runs is fenced off and it registers anew.
    """

    def __init__(
        self,
        store: Store,
        *,
        in_flight: InFlight,
        group: str,
        role: Role,
        release: str,
        serves: list[str],
        slots: int = 0,
        heartbeat_s: float,
        lease_s: float,
        also: Callable[[], object] = lambda: None,
    ) -> None:
        self._also = also
        self._store = store
        self._workers = Workers(store)
        self._in_flight = in_flight
        self._about: tuple[str, Role, str, list[str]] = (group, role, release, serves)
        self._slots = slots
        self._heartbeat_s = heartbeat_s
        self._lease_s = lease_s
        self._registration = self._register()
        self._engine: Engine | None = None
        self._next_roll_call = 0.0
        self._complained_at = float("-inf")
        self._ending = threading.Event()
        self._wanted = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agentq-heart", daemon=True)

    @property
    def worker_id(self) -> uuid.UUID:
        """This process, as claims name it."""
        return self._registration.worker_id

    def start(self, engine: Engine | None) -> None:
        """Register, waiting for Postgres if need be, and begin to beat."""
        self._engine = engine
        while not self._ending.is_set():
            try:
                self._registration.beat(self._lease_s)
                break
            except StoreUnavailable as error:
                log.warning("waiting for Postgres before taking work: %s", error)
                self._ending.wait(1.0)
        self._thread.start()

    def lost(self) -> None:
        """A claim said that this process counts as dead: beat now rather than at the next tick."""
        self._wanted.set()

    def drain(self) -> None:
        """Announce that this process takes no further step."""
        try:
            self._registration.drain()
        except StoreUnavailable as error:
            log.debug("draining without telling Postgres: %s", error)

    def stop(self) -> None:
        """Say goodbye and let the lock go."""
        self._ending.set()
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)
        try:
            self._registration.stop()
        except StoreUnavailable:
            self._registration.disconnect()

    def _register(self) -> Registration:
        group, role, release, serves = self._about
        return Registration(
            self._store,
            group=group,
            role=role,
            host=socket.gethostname(),
            pid=os.getpid(),
            release=release,
            serves=serves,
            slots=self._slots,
            place=place(),
        )

    def _run(self) -> None:
        next_beat = 0.0
        while not self._ending.is_set():
            try:
                self._stop_overdue()
                if not self._registration.holds_lock():
                    # Before the relay looks twice: its two looks are closer together than two heartbeats.
                    self._wanted.set()
                if self._wanted.is_set() or time.monotonic() >= next_beat:
                    self._wanted.clear()
                    next_beat = time.monotonic() + self._heartbeat_s
                    self._beat()
            except StoreUnavailable as error:
                self._complain(error)
            except Exception:
                log.exception("the heart skipped a beat")
            self._wanted.wait(_TICK_S)

    def _complain(self, error: StoreUnavailable) -> None:
        """One warning per outage and interval, not one per try."""
        if time.monotonic() - self._complained_at > _QUIET_S:
            self._complained_at = time.monotonic()
            log.warning("heartbeat missed: %s", error)

    def _beat(self) -> None:
        delivered = self._in_flight.delivered
        idle_s = time.monotonic() - delivered if delivered is not None else None
        restarts, restarted = self._in_flight.consumer_restarts, self._in_flight.consumer_restarted
        restarted_s = time.monotonic() - restarted if restarted is not None else None
        if self._registration.beat(self._lease_s, idle_s=idle_s, restarts=restarts, restarted_s=restarted_s) is None:
            log.error("this process was taken for dead: its running steps are fenced off, it registers anew")
            self._in_flight.fence_all()
            self._registration.disconnect()
            self._registration = self._register()
            self._registration.beat(self._lease_s)
        self._disown_doubts()
        self._disown_strangers()
        self._stop_ended()
        self._also()

    def _disown_doubts(self) -> None:
        if self._engine is None:
            return
        doubts = self._in_flight.doubts()
        while doubts:
            try:
                wake = self._engine.ledger.disown(doubts[-1].ref, doubts[-1].token)
            except StoreUnavailable:
                # All of them, or the others would stay claimed by a process that has forgotten them.
                for doubt in doubts:
                    self._in_flight.doubt(doubt.ref, doubt.token)
                raise
            doubts.pop()
            if wake is not None:
                self._engine.send([wake])

    def _disown_strangers(self) -> None:
        """
        Give back what the ledger says is ours and nobody here works on.

        A claim may be committed after its caller gave up on it, when Postgres was slow rather than away.
        """
        if self._engine is None or time.monotonic() < self._next_roll_call:
            return
        self._next_roll_call = time.monotonic() + _ROLL_CALL_S
        for ref, token in self._workers.claimed(self.worker_id, age_s=_ROLL_CALL_S):
            if not self._in_flight.holds(ref, token) and (wake := self._engine.ledger.disown(ref, token)):
                log.warning("step %s was claimed here and forgotten; it is given back", ref.step_id)
                self._engine.send([wake])

    def _stop_ended(self) -> None:
        attempts = self._in_flight.attempts()
        if not attempts:
            return
        stop = self._workers.to_stop([(attempt.claim.ref, attempt.claim.token) for attempt in attempts])
        for attempt in attempts:
            reason = stop.get(attempt.claim.ref.step_id)
            if reason is not None and not attempt.answered:  # else its settlement may be what was seen
                attempt.stop(reason)

    def _stop_overdue(self) -> None:
        now = time.monotonic()
        for attempt in self._in_flight.attempts():
            if now <= attempt.deadline or attempt.answered:
                continue  # an answer that waits for Postgres is not late
            attempt.stop("timeout")
            if now > attempt.deadline + _GRACE_S and self._engine is not None:
                log.error(
                    "step %s (%s) of session %s ignored its deadline and is abandoned",
                    attempt.claim.ref.step_id,
                    attempt.claim.name,
                    attempt.claim.ref.session_id,
                )
                self._engine.abandon(attempt)
