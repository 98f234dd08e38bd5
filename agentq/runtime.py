"""The runtime: everything built once per process, from settings."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from kombu import Connection

from agentq import sandbox
from agentq.agents.act import Act
from agentq.agents.asking import Asking
from agentq.agents.dependencies import Dependencies, rules_of
from agentq.agents.embedding import load_embedder
from agentq.agents.means import Means
from agentq.agents.memory import Remembering
from agentq.agents.permissions import Permissions
from agentq.agents.registry import Registry, load_agents
from agentq.agents.spending import Budgeting
from agentq.broker.connection import connect
from agentq.broker.publisher import Publisher
from agentq.broker.rates import redis_rates
from agentq.engine import Engine, InFlight
from agentq.errors import StoreUnavailable
from agentq.heart import Heart
from agentq.poison import PoisonKeeper
from agentq.policies.anomalies import BaselineRules, Unjudged, thresholds_of
from agentq.policies.failures import ambiguous, classify, retry_with_backoff
from agentq.policies.fairness import divide
from agentq.policies.redaction import safe_failures
from agentq.relay.anomalies import Anomaly, AnomalyWatch
from agentq.relay.letterbox import Letterbox
from agentq.relay.notices import Notices
from agentq.relay.relay import Relay
from agentq.seeing.metrics import MetricsServer, ProcessMetrics, fleet_registry
from agentq.seeing.otel import Exporter
from agentq.seeing.sentry import Reporting, Reports
from agentq.seeing.tracing import redactor_of, tracing_of
from agentq.settings import Settings, load
from agentq.step import StepRef
from agentq.store.anomalies import Anomalies
from agentq.store.approvals import Approvals
from agentq.store.dead_letters import POISON_BODY_MAX_BYTES, DeadLetterStore
from agentq.store.effects import Effects
from agentq.store.fairness import Fairness
from agentq.store.ledger import Ledger
from agentq.store.memory import Memories
from agentq.store.operators import Operators
from agentq.store.placement import Placement
from agentq.store.pool import Store
from agentq.store.providers import provider_of
from agentq.store.redrives import Redrives
from agentq.store.traces import WEEKS_AHEAD, Traces
from agentq.store.workers import Workers
from agentq.submissions import Submissions
from agentq.verdicts import Dropped, Verdict
from agentq.watchdog import Consumer, Watchdog

log = logging.getLogger("agentq.runtime")

# Steps are never so slow that a last SIGKILL by the init system would be kinder than this.
_EXIT_SLACK_S = 5.0
# As in sysexits.h: a temporary failure.
EXIT_STALLED = 75


def release() -> str:
    """The installed version of agentq."""
    try:
        return version("agentq")
    except PackageNotFoundError:
        return "0+unknown"


class Runtime:
    """One process's parts, wired together. Threads start with `begin`, not before."""

    def __init__(self, settings: Settings, registry: Registry, connect: Callable[[], Connection]) -> None:
        self.settings = settings
        self.registry = registry
        sandbox.configure(settings.sandbox, settings.sandbox_image)
        self.store = Store(
            settings.database_url, size=settings.database_pool, name=f"agentq {os.getpid()}", keys=provider_of(settings)
        )
        self.ledger = Ledger(self.store, traced=settings.trace)
        self.workers = Workers(self.store)
        self.approvals = Approvals(self.store)
        self.fairness = Fairness(self.store, divide)
        self.placement = Placement(self.store, own_max=settings.own_queues_max, shards=settings.queue_shards)
        self.publisher = Publisher(connect, self.placement.queues_of)
        self.in_flight = InFlight()
        self.dependencies = Dependencies(
            self.store,
            rules_of(settings),
            report_s=settings.dependency_report_s,
            classify=classify,
            worker=lambda: self.heart.worker_id if self.heart is not None else None,
        )
        self.metrics = ProcessMetrics()
        self.metrics_server: MetricsServer | None = None
        self.exporter: Exporter | None = None
        self.reports = Reports(settings, release()) if settings.sentry_dsn else None
        if self.reports is not None:
            self.dependencies.opened = self.reports.opened
        self.submissions = Submissions(settings, registry, self.store, self.publisher, self.in_flight)
        self.poison = PoisonKeeper(DeadLetterStore(self.store), POISON_BODY_MAX_BYTES)
        self.on_tenants: Callable[[list[str]], Any] | None = None
        self.heart: Heart | None = None
        self.engine: Engine | None = None
        self.relay: Relay | None = None
        self.watchdog: Watchdog | None = None
        self.notices: Notices | None = None
        # Of a prefork parent: the pids of its children, which run the steps.
        self.children: Callable[[], list[int]] | None = None
        self.killed_children = False

    def carry(self, ref: StepRef) -> Verdict:
        """Carry one delivery; see `agentq.engine`."""
        assert self.engine is not None, "deliveries arrive only in processes that `begin(steps=True)` has prepared"
        try:
            verdict = self.engine.carry(ref)
        except Exception as error:
            if self.reports is not None:
                self.reports.fault(error, ref.tenant)
            raise
        if isinstance(verdict, Dropped) and verdict.reason == "worker_dead" and self.heart is not None:
            self.heart.lost()
        return verdict

    def begin(self, *, group: str, steps: bool, relay: bool, slots: int = 0) -> None:
        """
        Register this process and start its heart, and its relay when it has a consumer.

        Raises:
            ConfigError: payloads are encrypted here, and this process could not read them.
        """
        settings = self.settings
        self.store.vault.require_provider()
        serves = self.registry.serves()
        self.heart = Heart(
            self.store,
            in_flight=self.in_flight,
            group=group,
            role="steps" if steps else "relay",
            release=release(),
            serves=serves,
            slots=slots,
            heartbeat_s=settings.heartbeat_s,
            lease_s=settings.lease_s,
            also=self._tell_held if steps and not relay and settings.fair_shares else lambda: None,
        )
        if steps:
            self.engine = self._engine(self.heart, serves, quarantine=group == "quarantine")
        self.heart.start(self.engine)
        if relay:
            self.relay = self._relay(group)
            self.relay.start()
            if settings.notify_channels:
                self.notices = Notices(self.approvals, settings)
                self.notices.start()
            self._serve_metrics()
            if settings.otlp_endpoint:
                self.exporter = Exporter(self.store, settings, redactor_of(settings).value)
                self.exporter.start()

    def _serve_metrics(self) -> None:
        """Prometheus's door, where the settings name a port."""
        settings = self.settings
        if not settings.metrics_port:
            return
        self.metrics.in_flight.set_function(lambda: len(self.in_flight.attempts()))
        self.metrics.consumer_restarts.set_function(lambda: self.in_flight.consumer_restarts)
        if self.relay is not None:
            self.metrics.relay_age.set_function(self.relay.round_age_s)
        self.metrics_server = MetricsServer(
            self.metrics.registry,
            fleet_registry(self.store, tenants_max=settings.metrics_tenants),
            address=settings.metrics_address,
            port=settings.metrics_port,
        )
        self.metrics_server.start()

    def watch(self, consumer: Consumer) -> None:
        """Watch that deliveries come; see `agentq.watchdog`."""
        if self.watchdog is not None or not self.settings.watchdog_s:
            return
        self.watchdog = Watchdog(
            ledger=self.ledger,
            publisher=self.publisher,
            in_flight=self.in_flight,
            consumer=consumer,
            serves=self.registry.pins(),
            stall_s=self.settings.watchdog_s,
            give_up=give_up,
        )
        self.watchdog.start()

    def drain(self) -> None:
        """Take nothing more, wait out the grace, hand back what still runs."""
        self.in_flight.draining = True
        if self.heart is not None:
            self.heart.drain()
        if self.children is not None:
            self._drain_children(self.children())
        elif not self.in_flight.wait_idle(self.settings.drain_s):
            attempts = self.in_flight.attempts()
            log.warning("the grace of %g s is over: %s steps are handed back", self.settings.drain_s, len(attempts))
            for attempt in attempts:
                if self.engine is not None:
                    self.engine.hand_back(attempt)
        self.publisher.flush()

    def _drain_children(self, pids: list[int]) -> None:
        """
        The same for prefork children, from outside: Celery would wait for them for ever.

        Their steps are disowned first, so that killing them counts as nobody's crash.
        """
        workers = self.workers.of_pids(socket.gethostname(), pids)
        deadline = time.monotonic() + self.settings.drain_s
        while held := [claim for worker in workers for claim in self.workers.claimed(worker)]:
            if time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            log.warning("the grace of %g s is over: %s steps are handed back", self.settings.drain_s, len(held))
            for ref, token in held:
                wake = self.ledger.disown(ref, token)
                self.publisher.send([wake] if wake is not None else [])
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.killed_children = True
            return

    def end(self) -> None:
        """Stop the threads and say goodbye to Postgres."""
        self.in_flight.draining = True
        if self.metrics_server is not None:
            self.metrics_server.stop()
        if self.exporter is not None:
            self.exporter.stop()
        if self.reports is not None:
            self.reports.close()
        if self.watchdog is not None:
            self.watchdog.stop()
        if self.relay is not None:
            self.relay.stop()
        if self.notices is not None:
            self.notices.stop()
        if self.heart is not None:
            self.heart.stop()
        self.dependencies.close()
        self.poison.close()
        self.publisher.close()
        self.store.close()

    def _engine(self, heart: Heart, serves: list[str], *, quarantine: bool) -> Engine:
        settings = self.settings
        redactor = redactor_of(settings)
        means = Means(
            store=self.store,
            ledger=self.ledger,
            effects=Effects(self.store),
            asking=Asking(
                self.approvals, settings.approval_group, settings.approval_within_s, settings.notify_channels
            ),
            classify=safe_failures(classify, redactor),
            ambiguous=ambiguous,
            payload_max_bytes=settings.payload_max_bytes,
            permissions=Permissions(Operators(self.store).restricted),
            budgeting=Budgeting(
                self.store,
                unpriced=settings.unpriced,
                patience_s=settings.settle_patience_s,
                counter=redis_rates(settings),
            ),
            dependencies=self.dependencies,
            remembering=Remembering(
                Memories(self.store),
                settings.memory_max_bytes,
                settings.memory_language,
                load_embedder(settings.memory_embedder),
            ),
            patience_s=settings.settle_patience_s,
            tracing=tracing_of(settings, redactor),
        )
        return Engine(
            ledger=self.ledger,
            act=Act(self.registry, means, retries=settings.step_retries, timeout_s=settings.step_timeout_s),
            judge=retry_with_backoff(settings.backoff_base_s, settings.backoff_max_s),
            send=self.publisher.send,
            in_flight=self.in_flight,
            worker_id=lambda: heart.worker_id,
            serves=serves,
            quarantine=quarantine,
            settle_patience_s=settings.settle_patience_s,
            admit_max=settings.relay_batch,
            refusals_max=settings.step_refusals_max,
            watch=Reporting(self.metrics, self.reports) if self.reports is not None else self.metrics,
        )

    def _relay(self, group: str) -> Relay:
        settings = self.settings
        return Relay(
            fair_shares=self._share_slots if settings.fair_shares else lambda _: None,
            ledger=self.ledger,
            workers=self.workers,
            approvals=self.approvals,
            publisher=self.publisher,
            follow_tenants=self._follow_tenants,
            placement=self.placement,
            group=group,
            interval_s=settings.relay_interval_s,
            batch=settings.relay_batch,
            lease_s=settings.lease_s,
            look_s=settings.dead_look_s,
            stale_s=settings.queued_stale_s,
            memory_keep_days=settings.memory_keep_days,
            housekeeping=self._keep_house,
            lost=self.reports.lost if self.reports is not None else None,
            anomalies=self._anomalies().round,
            spend=Traces(self.store).roll,
            turns=self.reports.relay_turns if self.reports is not None else lambda: None,
            dead_letters=Letterbox(DeadLetterStore(self.store), Redrives(self.store), self.publisher).round,
        )

    def _anomalies(self) -> AnomalyWatch:
        settings = self.settings
        tell: list[Callable[[Anomaly], None]] = [self.metrics.anomaly]
        if self.reports is not None:
            tell.append(self.reports.anomaly)
        rules = BaselineRules(thresholds_of(settings)) if settings.anomalies else Unjudged()
        return AnomalyWatch(Anomalies(self.store), rules, channels=settings.notify_channels, tell=tell)

    def _share_slots(self, backlogged: bool) -> None:
        """Tell what steps held here, and divide anew; what was held while there was enough for all does not count."""
        held = self.in_flight.held()
        if backlogged:
            self.fairness.tell(held)
            self.fairness.share()

    def _tell_held(self) -> None:
        """A process without a relay tells it with its heartbeat."""
        self.fairness.tell(self.in_flight.held())

    def _keep_house(self) -> None:
        """What is due every few minutes."""
        traces = Traces(self.store)
        traces.prepare(WEEKS_AHEAD)
        traces.forget(self.settings.trace_keep_days)
        Anomalies(self.store).sweep()

    def _follow_tenants(self, queues: list[str]) -> None:
        if self.on_tenants is not None:
            self.on_tenants(queues)


_lock = threading.Lock()
_runtimes: dict[int, Runtime] = {}


def runtime() -> Runtime:
    """
    This process's runtime, built on first use.

    After a fork the child builds its own. The parent's stays referenced, so that the child never
    closes connections that it merely inherited.
    """
    found = _runtimes.get(os.getpid())
    if found is not None:
        return found
    with _lock:
        if os.getpid() not in _runtimes:
            _runtimes[os.getpid()] = _build()
        return _runtimes[os.getpid()]


def begin(*, group: str, steps: bool, relay: bool, slots: int = 0) -> None:
    """Prepare this process for deliveries."""
    runtime().begin(group=group, steps=steps, relay=relay, slots=slots)


def watch(consumer: Consumer) -> None:
    """Watch that deliveries come to this process's consumer; once for each process."""
    runtime().watch(consumer)


def give_up() -> None:
    """Drain, and end with an error that makes a supervisor start another process."""
    found = runtime()
    try:
        found.drain()
        found.end()
    except StoreUnavailable as error:
        log.warning("gave up without Postgres, which takes the steps back later: %s", error)
    os._exit(EXIT_STALLED)


def end() -> None:
    """Undo `begin`; the process is about to exit."""
    found = _runtimes.get(os.getpid())
    if found is not None:
        found.end()


def drain(pid: int) -> None:
    """Drain, then leave: threads that ignore their stop would keep Celery waiting for ever."""
    found = _runtimes.get(pid)
    if found is None:
        return
    try:
        found.drain()
    except StoreUnavailable as error:
        log.warning("drained without Postgres, which takes the steps back later: %s", error)
    if found.killed_children:
        time.sleep(_EXIT_SLACK_S)  # Celery mostly notices by itself that its children are gone
    elif found.in_flight.wait_idle(_EXIT_SLACK_S):
        return
    log.warning("steps that do not stop are left behind; they have lost their fence")
    try:
        found.end()
    except StoreUnavailable as error:
        log.debug("left without saying goodbye: %s", error)
    os._exit(0)


def _build() -> Runtime:
    settings = load().require_servers()
    return Runtime(settings, load_agents(settings.agents), lambda: connect(settings))


__all__ = ["Runtime", "begin", "drain", "end", "give_up", "release", "runtime", "watch"]
