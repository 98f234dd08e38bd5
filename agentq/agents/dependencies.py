"""
Dependencies as a process meets them: may this call go out, and what did it come to.

While a breaker is closed, asking costs no round trip: each process adds up what it sees and tells
Postgres once a second, and its picture of the breakers comes back with the answer. A failure is told
at once, together with all others of that moment, so that the attempt which opened a breaker is known
to have done so.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from agentq.errors import DeadlineExceeded, FenceLost, HeldBack, Stopped, StoreUnavailable
from agentq.policies.dependencies import Bearing, Rules, bearing, hold
from agentq.settings import Settings
from agentq.step import valid_name
from agentq.store.dependencies import FLEET, Answer, Breaker, Breakers, Report, Scope
from agentq.store.pool import Store
from agentq.verdicts import Failure

log = logging.getLogger("agentq.dependencies")

_IDLE_S = 10.0
_MARK = "__agentq_dependency__"


@dataclass(slots=True)
class Permit:
    """Leave to call once. It must be given back with what the call came to; `report` does so once."""

    name: str
    tenant: str
    since: float = field(default_factory=time.monotonic)
    probes: list[tuple[Scope, uuid.UUID]] = field(default_factory=list)
    reported: bool = False


class Dependencies:
    """The breakers as this process knows them. Safe to share between threads; not across a fork."""

    def __init__(
        self,
        store: Store,
        rules: Rules,
        *,
        report_s: float,
        classify: Callable[[BaseException], Failure],
        draw: Callable[[], float] = random.random,
        worker: Callable[[], uuid.UUID | None] = lambda: None,
    ) -> None:
        self.breakers = Breakers(store, rules.as_json(), worker)
        # Told of each breaker (tenant or `FLEET`, and name) that opens, as this process sees it.
        self.opened: Callable[[Scope], object] = lambda _: None
        self._rules = rules
        self._report_s = report_s
        self._classify = classify
        self._draw = draw
        self._lock = threading.Lock()
        self._noted: dict[Scope, Report] = {}
        self._notes = 0
        self._told = 0
        self._telling = threading.Lock()
        self._view: dict[Scope, tuple[Breaker, float]] = {}  # with the moment until which it says wait
        self._seen_at = float("-inf")
        self._used_at = float("-inf")
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()

    # ── for those who call ───────────────────────────────────────────────────

    @contextmanager
    def calling(self, name: str, tenant: str) -> Iterator[Permit]:
        """
        One call to a dependency: admitted before, reported after, whatever it came to.

        An exception that leaves the block is classified; it stays what it is, and the engine learns from
        it which dependency failed.

        Raises:
            HeldBack: its breaker is open. Nothing was called.
        """
        permit = self.admit(name, tenant)
        try:
            yield permit
        except BaseException as error:
            self.report(name, False, self._classify(error), permit=permit, error=error)
            raise
        self.report(name, True, permit=permit)

    def admit(self, name: str, tenant: str = FLEET) -> Permit:
        """
        Leave to call a dependency; no round trip while its breakers are closed.

        Raises:
            HeldBack: a breaker is open, or those who probe it are enough.
        """
        self._used_at = time.monotonic()
        self._keep_current()
        permit = Permit(name, tenant)
        for scope in self._scopes(name, tenant):
            found = self._view.get(scope)
            if found is None or found[0].state in ("closed", "forced_shut"):
                continue
            try:
                self._pass(permit, scope, *found)
            except HeldBack:
                self._give_back(permit)
                raise
        return permit

    def report(
        self,
        name: str,
        ok: bool,
        failure: Failure | None = None,
        *,
        permit: Permit | None = None,
        error: BaseException | None = None,
    ) -> None:
        """
        Tell what a call came to, once for each permit. A failure is told to Postgres before this returns.

        Hand back the permit: without it, one of the few probes is lost until its time is over. With
        `error`, the exception remembers the dependency, for `blamed` to find.
        """
        permit = permit or Permit(name, FLEET)
        with self._lock:
            if permit.reported:
                return
            permit.reported = True
        says = "answered" if ok else _says(failure, error)
        if error is not None and blamed(error, permit.since) is not None:
            says = "nothing"  # another call within this one failed, and told so itself
        if error is not None and says in ("down", "denied"):
            _mark(error, name)
        fleet, own = (FLEET, name), (permit.tenant, name)
        if says != "nothing":
            self._note(fleet, permit, failure if says == "down" else None)
        if says == "denied" and own != fleet:
            self._note(own, permit, failure)
        if says == "answered" and own != fleet and own in self._view:
            self._note(own, permit)
        self._give_back(permit)
        if self._report_s == 0 or says in ("down", "denied"):
            self._tell()

    def give_back_later(self, permit: Permit) -> None:
        """A call that was stopped from outside says nothing; from a place that must not wait for Postgres."""
        if permit.probes:
            threading.Thread(
                target=self.report, args=(permit.name, False), kwargs={"permit": permit}, daemon=True
            ).start()

    def held(self, name: str, tenant: str, failure: Failure) -> float | None:
        """Whether a failure of now is the dependency's and not the step's, by its breaker: how long to stay away."""
        says = bearing(failure)
        scope = (FLEET, name) if says == "down" else (tenant, name) if says == "denied" else None
        found = self._view.get(scope) if scope else None
        if found is None or found[0].state in ("closed", "forced_shut"):
            return None
        wait_s = max(found[1] - time.monotonic(), failure.retry_after_s or 0.0)
        return hold(wait_s, self._rules, self._draw).delay_s

    def close(self) -> None:
        """Tell what is left and stop."""
        self._ending.set()
        thread = self._thread
        if thread is not None:
            thread.join(timeout=5.0)
        with self._lock:
            left = bool(self._noted)
        if left:
            self._look()

    # ── the breakers that are not closed ─────────────────────────────────────

    @staticmethod
    def _scopes(name: str, tenant: str) -> tuple[Scope, ...]:
        return ((FLEET, name), (tenant, name)) if tenant != FLEET else ((FLEET, name),)

    def _pass(self, permit: Permit, scope: Scope, breaker: Breaker, until: float) -> None:
        """Be one of those who try, or be held back."""
        wait_s = until - time.monotonic()
        if breaker.state == "half_open" or (breaker.state == "open" and wait_s <= 0):
            try:
                claim = self.breakers.claim_probe(scope)
            except StoreUnavailable:
                return  # whether to call is the least problem then; the step's settlement waits for Postgres
            if claim.granted:
                if claim.probe is not None:
                    permit.probes.append((scope, claim.probe))
                return
            wait_s = claim.wait_s or 0.0
            # Until the next look: the others need not ask as well.
            self._view[scope] = (Breaker(scope, "open", wait_s, False), time.monotonic() + wait_s)
        self._refuse(scope, breaker, wait_s)

    def _refuse(self, scope: Scope, breaker: Breaker, wait_s: float) -> None:
        tenant, name = scope
        self._add(Report(scope, refused=1))
        whose = "" if tenant == FLEET else f" for tenant {tenant}"
        raise HeldBack(
            f"dependency {name} is {breaker.state.replace('_', ' ')}{whose} (agentq dependency show {name})",
            hold(wait_s, self._rules, self._draw).delay_s,
            name,
        )

    def _note(self, scope: Scope, permit: Permit, failure: Failure | None = None) -> None:
        """Count a call for a breaker: as the probe's answer when it was one."""
        retry_after_s = failure.retry_after_s if failure else None
        facts = {"kind": failure.kind, "type": failure.type, "status": failure.status} if failure else None
        for held in permit.probes:
            if held[0] == scope:
                permit.probes.remove(held)
                self._answer(held[0], held[1], "bad" if failure else "good", retry_after_s, facts)
                return
        self._add(Report(scope, int(failure is None), int(failure is not None), 0, retry_after_s, facts))

    def _give_back(self, permit: Permit) -> None:
        for scope, probe in permit.probes:
            self._answer(scope, probe, "nothing", None, None)
        permit.probes.clear()

    def _answer(
        self,
        scope: Scope,
        probe: uuid.UUID,
        answer: Answer,
        retry_after_s: float | None,
        facts: dict[str, Any] | None,
    ) -> None:
        try:
            state = self.breakers.end_probe(scope, probe, answer, retry_after_s=retry_after_s, failure=facts)
        except StoreUnavailable as error:
            log.debug("a probe of %s gives way when its time is over: %s", scope[1], error)
            return
        if answer != "nothing":
            log.info("dependency %s was tried and is %s", scope[1], state.replace("_", " "))
            self._look()

    # ── telling and being told ───────────────────────────────────────────────

    def _add(self, report: Report) -> None:
        with self._lock:
            known = self._noted.get(report.scope)
            self._noted[report.scope] = report if known is None else known + report
            self._notes += 1

    def _tell(self) -> None:
        """Tell what was noted; who comes while another tells waits, and mostly finds its own told as well."""
        with self._lock:
            mine = self._notes
        with self._telling:
            if self._told < mine:
                self._exchange()

    def _look(self, age_s: float = 0.0) -> None:
        """Have a picture that is no older."""
        asked_at = time.monotonic()
        with self._telling:
            if self._seen_at < asked_at - age_s:
                self._exchange()

    def _exchange(self) -> None:
        with self._lock:
            noted, self._noted, upto = self._noted, {}, self._notes
        try:
            breakers = self.breakers.report(noted.values())
        except StoreUnavailable as error:
            log.debug("what was seen of dependencies is told later: %s", error)
            with self._lock:
                for scope, report in noted.items():
                    later = self._noted.get(scope)
                    self._noted[scope] = report if later is None else report + later
        else:
            now = time.monotonic()
            before = {scope for scope, (breaker, _) in self._view.items() if breaker.state in ("open", "half_open")}
            for breaker in breakers:
                if breaker.state == "open" and breaker.scope not in before:
                    self.opened(breaker.scope)
            self._view = {
                breaker.scope: (breaker, now + (self._rules.pause_max_s if breaker.wait_s is None else breaker.wait_s))
                for breaker in breakers
            }
        # Also when Postgres is away: those who wait for their turn must not ask it one after another.
        self._told, self._seen_at = upto, time.monotonic()

    def _keep_current(self) -> None:
        """The picture is a second old while calls go on; when it is much older, it is looked at before the call."""
        if self._report_s == 0:
            self._look()
        elif self._used_at - self._seen_at > max(3 * self._report_s, 3.0):
            self._look(self._report_s)
        if self._report_s > 0 and self._thread is None:
            with self._lock:
                if self._thread is None and not self._ending.is_set():
                    self._thread = threading.Thread(target=self._run, name="agentq-dependencies", daemon=True)
                    self._thread.start()

    def _run(self) -> None:
        while not self._ending.wait(self._report_s * (0.75 + random.random() / 2)):
            with self._lock:
                pending = bool(self._noted)
            if pending or time.monotonic() - self._used_at < _IDLE_S:
                try:
                    self._look()
                except Exception:
                    log.exception("what was seen of dependencies could not be told")


def rules_of(settings: Settings) -> Rules:
    """The rules as the settings have them."""
    return Rules(
        window_s=settings.dependency_window_s,
        volume_min=settings.dependency_volume_min,
        failure_rate=settings.dependency_failure_rate,
        pause_s=settings.dependency_pause_s,
        pause_max_s=settings.dependency_pause_max_s,
        probes=settings.dependency_probes,
        probe_s=settings.dependency_probe_s,
        good=settings.dependency_good,
    )


def dependency_name(text: str) -> str:
    """A provider's own name as that of a dependency: `Azure OpenAI` is `azure-openai`."""
    return valid_name("dependency", re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")[:63])


def _says(failure: Failure | None, error: BaseException | None) -> Bearing:
    if failure is not None and isinstance(error, DeadlineExceeded):
        return "down"  # of all that stops a step, the one that a dependency can be the cause of
    if failure is None or isinstance(error, Stopped | FenceLost):
        return "nothing"  # stopped from outside
    return bearing(failure)


def _mark(error: BaseException, name: str) -> None:
    # With the moment: a library may raise one and the same exception twice.
    error.__dict__[_MARK] = (name, time.monotonic())


def blamed(error: BaseException, since: float) -> str | None:
    """The dependency whose failure an exception is, or was made from, when that was since a moment."""
    seen: BaseException | None = error
    for _ in range(20):
        if seen is None:
            return None
        name, at = getattr(seen, _MARK, (None, 0.0))
        if isinstance(name, str) and at >= since:
            return name
        seen = seen.__cause__ or seen.__context__
    return None
