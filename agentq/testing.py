"""
The test kit: an agent's steps carried in this process, on a real Postgres, with a clock that can be moved.

    with LocalFleet(client) as fleet:
        session = client.start("refunds", tenant="acme", input={"order": "A1"})
        assert fleet.drain(session).result == "refunded"

No broker and no Celery: each step runs in the thread that calls `drain`, one after another, so a
debugger stops where one expects. Claims, settlements, effects and retries are the real ones.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from agentq.agents.act import Act
from agentq.agents.asking import Asking
from agentq.agents.dependencies import Dependencies, rules_of
from agentq.agents.embedding import load_embedder
from agentq.agents.means import Means
from agentq.agents.memory import Remembering
from agentq.agents.permissions import Permissions
from agentq.agents.returns import Duration, seconds
from agentq.agents.spending import Budgeting
from agentq.client import ENDED, Client, Session, SessionView
from agentq.engine import Engine, InFlight, Judge
from agentq.errors import AgentqError
from agentq.heart import Heart
from agentq.policies.failures import ambiguous, classify, retry_with_backoff
from agentq.policies.redaction import safe_failures
from agentq.seeing.tracing import redactor_of, tracing_of
from agentq.step import StepRef
from agentq.store.approvals import Approvals
from agentq.store.budgets import Budgets
from agentq.store.effects import Effects
from agentq.store.ledger import Ledger
from agentq.store.memory import Memories
from agentq.store.operators import Operators
from agentq.store.pool import Store
from agentq.store.providers import provider_of
from agentq.store.queries import load
from agentq.verdicts import Carried, Failure, Verdict, Wake

SQL = load("testing")

_OPTION = " -c agentq.clock_offset="
# A local fleet carries whatever it is asked to, at once: nothing waits because its slots are taken.
_SLOTS = 10_000


class Clock:
    """
    The database's clock as some stores see it, moved without waiting.

    Only connections of these stores are moved, and only those opened afterwards; `advance` renews them.
    A transaction that is open keeps its time.
    """

    def __init__(self, *stores: Store) -> None:
        self._stores = stores
        self._plain = [store.connect_arguments.get("options", "") for store in stores]
        self.offset_s = 0.0

    def advance(self, duration: Duration) -> None:
        """Move the clock ahead, by seconds, a timedelta, or text like `"3d"`."""
        self._set(self.offset_s + seconds(duration))

    def reset(self) -> None:
        """Back to the real time."""
        self._set(0.0)

    def _set(self, offset_s: float) -> None:
        self.offset_s = offset_s
        for store, plain in zip(self._stores, self._plain, strict=True):
            store.connect_arguments["options"] = f"{plain}{_OPTION}{offset_s:f}s" if offset_s else plain
            store.renew()


class Stuck(AgentqError):
    """The session has not ended and nothing that this fleet may run is left."""


class LocalFleet:
    """
    A fleet of one, in this process.

    Retries come at once, without their backoff; only `Retry-After` and `Sleep` wait, and those move the
    clock instead of the test. A step's timeout and a cancellation work as on a real worker.

    The clock is moved for this fleet and its client alone.
    """

    def __init__(self, client: Client, *, judge: Judge | None = None, group: str = "*") -> None:
        settings = client.settings
        self.client = client
        self.store = Store(settings.database_url, size=6, name="agentq local fleet", keys=provider_of(settings))
        self.ledger = Ledger(self.store, traced=settings.trace)
        self.approvals = Approvals(self.store)
        self.clock = Clock(self.store, client._store)
        self.in_flight = InFlight()
        self.sent: deque[Wake] = deque()
        self._errors: dict[int, BaseException] = {}
        self._dead: list[tuple[StepRef, BaseException | None]] = []
        serves = client.registry.serves()
        self.heart = Heart(
            self.store,
            in_flight=self.in_flight,
            group=group,  # by itself it serves every tenant, wherever it is placed
            slots=_SLOTS,
            role="steps",
            release="test",
            serves=serves,
            heartbeat_s=settings.heartbeat_s,
            lease_s=settings.lease_s,
        )
        redactor = redactor_of(settings)
        # Told and asked at each call: a test sees at once what it did, also when it moves the clock.
        self.dependencies = Dependencies(
            self.store, rules_of(settings), report_s=0.0, classify=classify, draw=lambda: 0.0
        )
        means = Means(
            store=self.store,
            ledger=self.ledger,
            effects=Effects(self.store),
            asking=Asking(
                self.approvals, settings.approval_group, settings.approval_within_s, settings.notify_channels
            ),
            classify=safe_failures(self._classify, redactor),
            ambiguous=ambiguous,
            payload_max_bytes=settings.payload_max_bytes,
            tracing=tracing_of(settings, redactor),
            permissions=Permissions(Operators(self.store).restricted),
            budgeting=Budgeting(self.store, unpriced=settings.unpriced),
            dependencies=self.dependencies,
            remembering=Remembering(
                Memories(self.store),
                settings.memory_max_bytes,
                settings.memory_language,
                load_embedder(settings.memory_embedder),
            ),
        )
        self.engine = Engine(
            ledger=self.ledger,
            act=Act(client.registry, means, retries=settings.step_retries, timeout_s=settings.step_timeout_s),
            # No jitter and no waiting: a test wants the same run each time.
            judge=judge or retry_with_backoff(settings.backoff_base_s, settings.backoff_max_s, draw=lambda: 0.0),
            send=self._send,
            in_flight=self.in_flight,
            worker_id=lambda: self.heart.worker_id,
            serves=serves,
            quarantine=False,
            settle_patience_s=settings.settle_patience_s,
            admit_max=settings.relay_batch,
            refusals_max=settings.step_refusals_max,
        )
        self.heart.start(self.engine)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Put the clock back and let the connections go."""
        self.clock.reset()
        self.heart.stop()
        self.store.close()

    def drain(self, session: Session, *, steps_max: int = 2000) -> SessionView:
        """
        Run the session, and its children, to their end; the session as it then stands.

        What else is due for the same tenant runs too. A session that ended by `Fail`, by a deadline or
        by a cancellation is returned like any other.

        Raises:
            Exception: the very exception with which a step died, its attempts used up.
            Stuck: nothing is left to run, and the session has not ended.
        """
        self._dead.clear()
        for _ in range(steps_max):
            if self.client.sessions.state(session.tenant, uuid.UUID(session.id)) in ENDED:
                break
            if self.carry_next(session.tenant) is None and not self._wait(session.tenant):
                raise Stuck(self._why_stuck(session))
        else:
            raise Stuck(f"session {session.id} has not ended after {steps_max} steps")
        for ref, error in self._dead:
            if error is not None:
                error.add_note(f"step {ref.step_id} of session {ref.session_id} died of this")
                raise error
        return session.view()

    def _why_stuck(self, session: Session) -> str:
        asked = self.approvals.listing(tenant=session.tenant, state="open", session_id=uuid.UUID(session.id))
        if asked:
            waits = ", ".join(f"{approval.approval_id} ({approval.question})" for approval in asked)
            return f"session {session.id} waits for people: {waits}; answer with client.approvals.grant or deny"
        return f"session {session.id} has not ended, and nothing of tenant {session.tenant!r} is due"

    def carry_next(self, tenant: str) -> Verdict | None:
        """Carry one due step of the tenant to its verdict; None when none is due."""
        if not self.sent:
            self._send(self.ledger.admit(tenant, 100))
        if not self.sent and self.ledger.offer_served():
            self._send(self.ledger.admit(tenant, 100))  # what waited for a fleet that serves its version
        if not self.sent:
            # What somebody else admitted, as `Client.start` does: its message went to the broker.
            self._send(self.ledger.republish(tenant, quarantine=False, age_s=0.0, limit=100))
        if not self.sent:
            return None
        wake = self.sent.popleft()
        return self.carry(StepRef(wake.tenant, wake.session_id, wake.step_id, wake.epoch))

    def carry(self, ref: StepRef) -> Verdict:
        """Carry one delivery, as a worker would; also one that is repeated or forged."""
        verdict = self.engine.carry(ref)
        error = self._errors.pop(threading.get_ident(), None)
        if verdict == Carried("dead"):
            self._dead.append((ref, error))
        return verdict

    def _send(self, wakes: Iterable[Wake]) -> None:
        self.sent.extend(wakes)

    def _classify(self, error: BaseException) -> Failure:
        self._errors[threading.get_ident()] = error
        return classify(error)

    def _wait(self, tenant: str) -> bool:
        """Go to where something happens next: a deadline passes, or a timer is due."""
        if self.ledger.expire_sessions(100) or self.approvals.expire(100):
            return True
        Budgets(self.store).settle_leaked(100)
        [(due_s,)] = self.store.query_as(tenant, SQL["next_due"], {"tenant": tenant})
        if due_s is None:
            return False
        if 0 < due_s < 0.05:
            time.sleep(due_s)  # nearer than a new connection
        elif due_s > 0:
            self.clock.advance(due_s + 0.001)
        return True


__all__ = ["Clock", "LocalFleet", "Stuck"]
