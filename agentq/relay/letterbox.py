"""
The letterbox: what the relay does for dead letters, in small turns.

Each tenant's dead letter queue is a notice board: one message for each open letter, at most a
thousand, so that Flower and any consumer see them. The rows decide. A message may be consumed, lost or
late, and nothing depends on it; one whose letter was dealt with is taken down within a look. A broker
that was wiped has lost the mark that is kept in it, and every open letter is announced anew.

Standing orders begin and drive redrives here too, so that no process has to run for them.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections import defaultdict
from collections.abc import Callable

from agentq.broker.publisher import Publisher
from agentq.broker.queues import DEAD_MARK, dead_queue
from agentq.errors import BrokerUnavailable, InvalidInput
from agentq.relay.redrives import Driver
from agentq.store.dead_letters import DeadLetterStore, Notice, Selection
from agentq.store.redrives import Policy, Redrives

log = logging.getLogger("agentq.relay.letterbox")

MESSAGES_MAX = 1000
_BATCH = 200
_UNKNOWN = 200
_LOOK_S = 10.0
_POLICY_S = 10.0
_STEP_S = 1.0


class Letterbox:
    """One process's share of it; any number may run."""

    def __init__(
        self,
        letters: DeadLetterStore,
        redrives: Redrives,
        publisher: Publisher,
        *,
        messages_max: int = MESSAGES_MAX,
        look_s: float = _LOOK_S,
        policy_s: float = _POLICY_S,
        unknown: int = _UNKNOWN,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._letters = letters
        self._redrives = redrives
        self._publisher = publisher
        self._most = messages_max
        self._look_s = look_s
        self._policy_s = policy_s
        self._unknown = unknown
        self._clock = clock
        self._name = f"relay {socket.gethostname()} {os.getpid()}"
        self._next_look = self._next_policies = float("-inf")
        self._boards: set[str] = set()  # whose queues may hold messages
        self._looked_until: str | None = ""  # by name, what an earlier process may have left; None: all were looked at
        self._declared: set[str] = set()
        self._next_step: dict[uuid.UUID, float] = {}

    def round(self) -> None:
        """
        Announce what is new; now and then, look after the boards and the standing orders.

        Raises:
            StoreUnavailable, BrokerUnavailable: a later round does the rest.
        """
        now = self._clock()
        if now >= self._next_policies:
            self._next_policies = now + self._policy_s
            self.begin_policies()
        self.drive_policies()
        if now >= self._next_look:
            self._next_look = now + self._look_s
            self.tidy()
        self.announce()

    # ── the boards ───────────────────────────────────────────────────────────

    def announce(self) -> None:
        """Put up a message for each letter that has none, as far as there is room."""
        while notices := self._letters.announce(_BATCH):
            by_tenant: dict[str, list[Notice]] = defaultdict(list)
            for notice in notices:
                by_tenant[notice.tenant].append(notice)
            for number, (tenant, some) in enumerate(by_tenant.items()):
                try:
                    self._put_up(tenant, some)
                except BrokerUnavailable:
                    rest = [notice for of_tenant in list(by_tenant.values())[number:] for notice in of_tenant]
                    self._letters.unannounce([notice.letter_id for notice in rest])
                    raise
            if len(notices) < _BATCH:
                return

    def tidy(self) -> None:
        """Compare each board with the letters that are open, and put it right."""
        with self._letters.turn() as mine:
            if not mine:
                return
            if not self._publisher.depth(DEAD_MARK):
                # Marked before anything is announced anew: two relays must not take turns in wiping.
                self._publisher.publish(DEAD_MARK, [({"about": "this broker was not wiped since"}, {})])
                self._letters.announce_again()
            open_letters = self._letters.open_per_tenant(self._most + 1)
            boards = self._boards | self._next_unknown()
            self._boards = set(open_letters)
            for tenant in sorted(boards | set(open_letters)):
                depth = self._publisher.depth(dead_queue(tenant))
                if depth > min(open_letters.get(tenant, 0), self._most):
                    # Messages of letters that were dealt with: which ones they are, no queue can be asked.
                    self._publisher.purge(dead_queue(tenant))
                    self._letters.announce_again(tenant)
                if depth:
                    self._boards.add(tenant)

    def _next_unknown(self) -> set[str]:
        """Some more tenants of whose boards this process knows nothing yet: each of them costs the broker a command."""
        if self._looked_until is None:
            return set()
        names = self._letters.tenants(self._looked_until, self._unknown)
        self._looked_until = names[-1] if len(names) == self._unknown else None
        return set(names)

    def _put_up(self, tenant: str, notices: list[Notice]) -> None:
        queue = dead_queue(tenant)
        room = max(self._most - self._publisher.depth(queue), 0)
        if room and queue not in self._declared:
            self._publisher.declare(queue)
            self._declared.add(queue)
        messages = [
            (notice.as_message(), {"class": notice.kind, "cause": notice.cause, "agent": notice.agent})
            for notice in notices[:room]
        ]
        if messages:
            self._publisher.publish(queue, messages)
        self._boards.add(tenant)

    # ── standing orders ──────────────────────────────────────────────────────

    def begin_policies(self) -> None:
        """Begin a redrive for each policy whose trouble is over."""
        for policy in self._redrives.policies_due():
            job, new = self._redrives.begin(
                selection_of(policy),
                policy.terms(),
                operator=f"policy {policy.name}",
                reason=policy.reason,
                policy=policy.name,
            )
            if new:
                log.warning("policy %s brings %s dead letters back (redrive %s)", policy.name, job.matched, job.job_id)

    def drive_policies(self) -> None:
        """One small step of each redrive that a policy has begun."""
        now = self._clock()
        for job_id in self._redrives.policy_jobs():
            if now < self._next_step.get(job_id, now):
                continue
            job = self._redrives.get(job_id)
            try:
                progress = Driver(self._redrives, job, name=self._name, batch_s=_STEP_S).step()
            except InvalidInput as error:
                log.error("redrive %s of policy %s is stopped: %s", job_id, job.policy, error)
                self._redrives.move_on(job, "stopped", str(error))
                continue
            if progress.job.ended:
                self._next_step.pop(job_id, None)
                log.warning("redrive %s of policy %s: %s", job_id, job.policy, progress.job.note or progress.job.state)
            elif progress.driving:
                self._next_step[job_id] = now + progress.pause_s


def selection_of(policy: Policy) -> Selection:
    """The open letters that a policy names."""
    facts = policy.selection
    version = facts.get("version")
    return Selection(
        tenant=facts.get("tenant"),
        cause=facts.get("cause"),
        agent=f"{facts['agent']}@{version}" if version else facts.get("agent"),
        step=facts.get("step"),
        kind=facts.get("class"),
        dependency=facts.get("dependency"),
    )
