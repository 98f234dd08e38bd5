"""
The relay: sends what is committed and not yet sent, and takes back what a crash left behind.

One runs in every worker process that has a consumer. They need no leader: each round takes rows
that no other holds, and a round that is repeated finds nothing left to do.

Neither its rest between two rounds nor the chores of a round delay it when the kernel tells of a neighbour's end
(`agentq.neighbours`): the steps of that process are taken back at once.

A chore that fails does not keep the others from theirs: what wakes lost steps must go on though,
say, one dead letter cannot be announced. Nor does one that takes long: what only watches, tells and tidies up has a
thread of its own, because every tenth of a second counts for a step that waits.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agentq import engine
from agentq.broker.publisher import Publisher
from agentq.broker.queues import QUARANTINE, SUBMIT, dead_queue
from agentq.errors import BrokerUnavailable, StoreUnavailable
from agentq.neighbours import Neighbours
from agentq.store.approvals import Approvals
from agentq.store.budgets import Budgets
from agentq.store.dead_letters import DeadLetterStore
from agentq.store.ledger import Ledger, TakenBack
from agentq.store.memory import Memories
from agentq.store.operators import Operators
from agentq.store.placement import Placement
from agentq.store.rates import StoredRates
from agentq.store.turn import Turn
from agentq.store.workers import Workers

log = logging.getLogger("agentq.relay")

_SLOW_S = 1.0
_FORGET_S = 600.0
_RETENTION_S = 5.0
_TURNS_S = 60.0
# Tenants: so few that nobody who starts a session waits long for the lock of one.
_ADMIT_AT_ONCE = 16
_REMOVE_MAX = 50
# Longer than that, steps that are due would wait for it.
_REMOVE_S = 0.2


@dataclass(slots=True)
class Chore:
    """Something that a round does, at most every so often."""

    name: str
    run: Callable[[], object]
    every_s: float
    due: float = 0.0


class Relay:
    """Rounds of recovery and admission, until stopped."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        workers: Workers,
        approvals: Approvals,
        publisher: Publisher,
        follow_tenants: Callable[[list[str]], None],
        interval_s: float,
        batch: int,
        lease_s: float,
        look_s: float,
        stale_s: float,
        memory_keep_days: int = 30,
        housekeeping: Callable[[], None] = lambda: None,
        lost: Callable[[TakenBack], None] | None = None,
        dead_letters: Callable[[], None] = lambda: None,
        anomalies: Callable[[], object] = lambda: None,
        spend: Callable[[], object] = lambda: None,
        turns: Callable[[], object] = lambda: None,
        fair_shares: Callable[[bool], object] = lambda _: None,
        placement: Placement | None = None,
        group: str = "default",
    ) -> None:
        self._placement = placement or Placement(ledger.store)
        self._group = group
        self._fair_shares = fair_shares
        self._backlogged = True
        self._ledger = ledger
        self._budgets = Budgets(ledger.store)
        self._letters = DeadLetterStore(ledger.store)
        self._workers = workers
        self._neighbours = Neighbours(workers, lease_s=lease_s)
        self._approvals = approvals
        self._publisher = publisher
        self._follow_tenants = follow_tenants
        self._interval_s = interval_s
        self._batch = batch
        self._lease_s = lease_s
        self._look_s = look_s
        self._stale_s = stale_s
        self._memory_keep_days = memory_keep_days
        self._housekeeping = housekeeping
        self._lost = lost
        self._dead_letters = dead_letters
        self._turn_of_sessions, self._turn_of_memories = Turn(), Turn()
        self._ending = threading.Event()
        # What steps wait for.
        self._urgent = (
            Chore("shares of the tenants", self.share_slots, 0.0),
            Chore("admission", self.admit_due, 0.0),
            Chore("the tenants' queues", self.follow_tenants, _SLOW_S),
            Chore("neighbours", self._neighbours.refresh, _SLOW_S),
            Chore("lost workers", self.take_back_lost, _SLOW_S),
            Chore("steps that are served again", self.offer_served, _SLOW_S),
            Chore("missing messages", self.find_missing, _SLOW_S),
            Chore("overdue sessions", self.end_overdue, _SLOW_S),
            Chore("approvals", self.expire_approvals, _SLOW_S),
            Chore("leaked reservations", self.settle_leaked, _SLOW_S),
            # A wiped broker has forgotten it, and foreign producers' submissions would be dropped silently.
            Chore("the queue of submissions", lambda: publisher.declare(SUBMIT), _SLOW_S),
        )
        # What no step waits for.
        self._patient = (
            Chore("dead letters", self._dead_letters, _SLOW_S),
            Chore("anomalies", anomalies, _SLOW_S),
            Chore("what was spent, by the hour", spend, _SLOW_S),
            Chore("queues that tenants left", self.remove_left, _RETENTION_S),
            Chore("retention", self.remove_expired, _RETENTION_S),
            Chore("memories", self.expire_memories, _RETENTION_S),
            Chore("word that it turns", turns, _TURNS_S),
            Chore("housekeeping", self.keep_house, _FORGET_S, due=time.monotonic() + _FORGET_S),
        )
        self._ended = Chore("neighbours that ended", self.take_back_ended, 0.0)
        self._threads = [
            threading.Thread(target=turning, name=f"agentq-relay-{name}", daemon=True)
            for name, turning in (("urgent", self._turn_urgently), ("patient", self._turn_patiently))
        ]
        self.rounds = 0  # of what steps wait for
        self._urgent_turned = self._patient_turned = time.monotonic()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._ending.set()
        self._neighbours.wake()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=5.0)
        if self._threads[0].ident is None:
            self._neighbours.close()

    def round_age_s(self) -> float:
        """How long ago the latest round ended, well or not; of the two threads, the one that is further behind."""
        return time.monotonic() - min(self._urgent_turned, self._patient_turned)

    @property
    def chores(self) -> tuple[Chore, ...]:
        """All of them."""
        return (*self._urgent, *self._patient)

    def round(self) -> None:
        """Do every chore whose time has come."""
        self._do_all(self._urgent, between=self._hear_of_ends)
        self._do_all(self._patient)

    def _do_all(self, chores: Sequence[Chore], between: Callable[[], object] = lambda: None) -> None:
        for chore in chores:
            between()
            if time.monotonic() < chore.due:
                continue
            chore.due = time.monotonic() + chore.every_s
            if not self._do(chore):
                return  # the other chores need Postgres too

    def admit_due(self) -> None:
        """Admit the due steps of every tenant that has room: new work, retries, timers."""
        backlogged = self._ledger.backlogged()
        self._backlogged = bool(backlogged)
        due = sorted(tenant for tenant, due in backlogged.items() if due)
        for first in range(0, len(due), _ADMIT_AT_ONCE):
            wakes = self._ledger.admit_each(due[first : first + _ADMIT_AT_ONCE], self._batch)
            engine.probe("admitted")
            self._publisher.send(wakes)

    def share_slots(self) -> None:
        """Divide the fleet's slots among the tenants, where more is wanted than can run."""
        # As the latest admission found it: asking again would be a round trip for nothing.
        self._fair_shares(self._backlogged)

    def offer_served(self) -> None:
        """Let steps go on that waited for a worker of their agent's version."""
        if count := self._ledger.offer_served():
            log.info("%s steps that nobody served are admitted again", count)

    def take_back_lost(self) -> None:
        """Find dead processes and give their steps to the living."""
        for worker_id in self._workers.look_for_dead(lease_s=self._lease_s, look_s=self._look_s):
            log.error("worker process %s is dead", worker_id)
        self._take_back()

    def take_back_ended(self) -> None:
        """
        The same for neighbours whose end the kernel told, and for the messages that they took and did not claim.

        What was sent before their end and is in no queue may be in their hands. A living worker that has taken it and
        not claimed it yet gets a repeat, which is dropped at the claim.
        """
        dead = self._neighbours.look()
        for worker_id in dead:
            log.error("worker process %s is dead: its end was seen here", worker_id)
        if dead:
            self._take_back()
            self.find_missing(time.monotonic() - max(dead.values()))

    def _take_back(self) -> None:
        while taken := self._ledger.take_back(self._batch):
            engine.probe("took_back")
            for step in taken:
                log.warning("step %s of session %s lost its worker: %s", step.step_id, step.session_id, step.fate)
                if self._lost is not None:
                    self._lost(step)
            self._publisher.send(step.wake for step in taken if step.wake is not None)
            if len(taken) < self._batch:
                return

    def find_missing(self, age_s: float | None = None) -> None:
        """
        Publish again what the ledger believes is in a queue and the queue no longer holds.

        Only as many as are missing: a queue that is merely slow gets no duplicates. Those that a
        worker has taken and not yet claimed look missing too; a repeat of them is dropped at the claim.
        """
        age_s = self._stale_s if age_s is None else age_s
        for queue, tenants, expected, stale in self._ledger.broker_should_hold(age_s):
            if not stale:
                continue
            missing = min(stale, expected - self._publisher.depth(queue), self._batch)
            if missing <= 0:
                continue
            wakes = self._ledger.republish(*tenants, quarantine=queue == QUARANTINE, age_s=age_s, limit=missing)
            engine.probe("republished")
            if wakes:
                log.info("%s messages were missing from %s and are sent again", len(wakes), queue)
            self._publisher.send(wakes)

    def end_overdue(self) -> None:
        """End sessions past their deadline, and children whose parent has ended; pass turns that lie idle."""
        self._ledger.pass_turns(self._batch)
        for _, _, wake in self._ledger.expire_sessions(self._batch):
            if wake is not None:
                self._publisher.send([wake])

    def expire_approvals(self) -> None:
        """Let go on what waited for people in vain, and remind those who still have time."""
        for tenant, approval_id, state in self._approvals.expire(self._batch):
            log.info("approval %s of tenant %s is %s: nobody decided it in time", approval_id, tenant, state)
        self._approvals.remind(self._batch)

    def remove_expired(self) -> None:
        """Remove sessions that are older than their tenants keep them: small batches, as far as a moment goes."""
        until, operators = time.monotonic() + _REMOVE_S, Operators(self._ledger.store)
        removed: Counter[str] = Counter()
        while True:
            batch = operators.remove_expired(_REMOVE_MAX, self._turn_of_sessions)
            removed.update(batch)
            if sum(batch.values()) < _REMOVE_MAX or time.monotonic() > until:
                break
        for tenant, sessions in removed.items():
            log.info("%s sessions of tenant %s were older than it keeps them", sessions, tenant)

    def expire_memories(self) -> None:
        """Take the content of memories whose time is over, a small batch at once."""
        memories = Memories(self._ledger.store)
        if count := memories.expire(_REMOVE_MAX, self._memory_keep_days, self._turn_of_memories):
            log.info("%s memories were past their time", count)

    def settle_leaked(self) -> None:
        """Charge, as estimated, the calls that were reserved by attempts which are gone."""
        if settled := self._budgets.settle_leaked(self._batch):
            log.warning("%s reserved calls lost their attempt and are charged as estimated", settled)

    def follow_tenants(self) -> None:
        """Place new tenants, and consume the queues of those that this worker's group serves now."""
        self._placement.place_new()
        self._follow_tenants(self._placement.followed(self._group))

    def remove_left(self) -> None:
        """
        Remove the queues that tenants have left, by a move or by being erased; all that was in them are copies.

        A broker that is away is asked again in the next round.
        """
        for tenant, queue, in_use in self._placement.left_behind():
            if queue == dead_queue(tenant):
                # It is of before an erasure. Whoever was let in again since has its open letters announced anew.
                self._publisher.purge(queue)
                self._letters.announce_again(tenant)
            if not in_use:
                self._publisher.purge(queue)  # where somebody listens it stays, and is empty
                self._publisher.remove(queue)
            self._placement.forget(tenant, queue)

    def keep_house(self) -> None:
        """Forget what nobody asks for any more."""
        self._workers.forget()
        StoredRates(self._ledger.store).forget()
        self._housekeeping()

    def _do(self, chore: Chore) -> bool:
        """Do it now; False: Postgres is away."""
        try:
            chore.run()
        except StoreUnavailable as error:
            log.warning("the relay waits for Postgres: %s", error)
            return False
        except BrokerUnavailable as error:
            log.warning("the relay waits for the broker (%s): %s", chore.name, error)
        except Exception:
            log.exception("a chore of the relay failed (%s); the others go on", chore.name)
        return True

    def _hear_of_ends(self) -> None:
        # On a busy machine the chores of a round take long together.
        if self._neighbours.rest(0.0):
            self._do(self._ended)

    def _turn_urgently(self) -> None:
        try:
            while not self._ending.is_set():
                self._do_all(self._urgent, between=self._hear_of_ends)
                self.rounds += 1
                self._urgent_turned = time.monotonic()
                self._rest(self._pause_s())
        finally:
            self._neighbours.close()

    def _turn_patiently(self) -> None:
        while not self._ending.is_set():
            self._do_all(self._patient)
            self._patient_turned = time.monotonic()
            self._ending.wait(self._pause_s())

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._ending.is_set() and (left := until - time.monotonic()) > 0:
            if self._neighbours.rest(left):
                self._do(self._ended)

    def _pause_s(self) -> float:
        """With jitter, so that the relays of a fleet spread over the interval."""
        return self._interval_s * (0.75 + random.random() / 2)
