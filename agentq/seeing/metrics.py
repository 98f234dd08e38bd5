"""
Metrics for Prometheus: what this process does, and what the ledger says of the whole fleet.

Labels are bounded: agents, closings and classes are closed sets, tenants are the busiest few and the
rest. No step, session or message is ever a label.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agentq.errors import ConfigError
from agentq.relay.anomalies import Anomaly
from agentq.store.anomalies import Anomalies
from agentq.store.budgets import Budgets
from agentq.store.ledger import Ledger
from agentq.store.metrics import Figures
from agentq.store.pool import Row, Store
from agentq.verdicts import Carried, Deferred, Dropped, Granted, Settlement, Superseded, Verdict

log = logging.getLogger("agentq.seeing.metrics")

REST = "(rest)"
_BREAKER = {"closed": 0, "forced_shut": 0, "half_open": 1, "open": 2, "forced_open": 2}
_AGENTS_MAX = 100
_PORTS_TRIED = 64
_HOPS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_STEPS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class ProcessMetrics:
    """What this worker process has done since it started."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._agents: set[str] = set()
        self.hops = Histogram(
            "agentq_hop_seconds", "From a step's admission to its claim.", buckets=_HOPS, registry=self.registry
        )
        self.steps = Histogram(
            "agentq_step_seconds",
            "How long an attempt ran, its settlement included.",
            ["agent"],
            buckets=_STEPS,
            registry=self.registry,
        )
        self.attempts = Counter(
            "agentq_attempts", "Attempts by how they were settled.", ["agent", "closing"], registry=self.registry
        )
        self.failures = Counter(
            "agentq_failures", "Failed attempts by class.", ["agent", "class"], registry=self.registry
        )
        self.retries = Counter(
            "agentq_retries", "Attempts that are tried again, by class.", ["agent", "class"], registry=self.registry
        )
        self.dropped = Counter(
            "agentq_deliveries_dropped",
            "Deliveries with nothing to do: duplicates and such.",
            ["reason"],
            registry=self.registry,
        )
        self.deferred = Counter(
            "agentq_deliveries_deferred", "Deliveries left to the relay.", ["reason"], registry=self.registry
        )
        self.fenced = Counter(
            "agentq_writes_fenced", "Ends of superseded attempts that were thrown away.", registry=self.registry
        )
        self.tokens = Counter(
            "agentq_tokens", "Tokens that attempts used.", ["agent", "direction"], registry=self.registry
        )
        self.cost = Counter("agentq_cost_usd", "What attempts cost, in US dollars.", ["agent"], registry=self.registry)
        self.anomalies = Counter(
            "agentq_anomalies_found",
            "Sessions that were not as usual, found by this process.",
            ["agent", "measure"],
            registry=self.registry,
        )
        self.in_flight = Gauge("agentq_in_flight", "Attempts that run in this process.", registry=self.registry)
        self.consumer_restarts = Gauge(
            "agentq_consumer_restarts", "Times the watchdog restarted this consumer.", registry=self.registry
        )
        self.relay_age = Gauge(
            "agentq_relay_round_age_seconds", "Since the relay's last round ended.", registry=self.registry
        )

    def claimed(self, claim: Granted) -> None:
        """A step was claimed."""
        self.hops.observe(max(claim.queued_s, 0.0))

    def carried(self, claim: Granted, settlement: Settlement, seconds: float) -> None:
        """An attempt was settled so."""
        agent = self._agent(claim.agent)
        self.steps.labels(agent).observe(seconds)
        self.attempts.labels(agent, settlement.closing).inc()
        if settlement.failure is not None:
            self.failures.labels(agent, settlement.failure.kind).inc()
            if settlement.closing in ("retry", "repair"):
                self.retries.labels(agent, settlement.failure.kind).inc()
        usage = settlement.extras.usage
        if usage.tokens_in or usage.tokens_out:
            self.tokens.labels(agent, "in").inc(usage.tokens_in)
            self.tokens.labels(agent, "out").inc(usage.tokens_out)
        if usage.cost_micros:
            self.cost.labels(agent).inc(usage.cost_micros / 1_000_000)

    def anomaly(self, anomaly: Anomaly) -> None:
        """An anomaly was found. What follows a colon is a name of somebody's own, and no label."""
        self.anomalies.labels(self._agent(anomaly.agent), anomaly.measure.partition(":")[0]).inc()

    def ended(self, verdict: Verdict) -> None:
        """A delivery came to its verdict."""
        match verdict:
            case Dropped(reason):
                self.dropped.labels(reason).inc()
            case Deferred(reason):
                self.deferred.labels(reason).inc()
            case Superseded():
                self.fenced.inc()
            case Carried():
                pass

    def _agent(self, name: str) -> str:
        if name in self._agents:
            return name
        if len(self._agents) >= _AGENTS_MAX:
            return REST
        self._agents.add(name)
        return name


class FleetCollector(Collector):
    """
    What the ledger says, asked at most once in `fresh_s`; a question that fails is left out of the answer.

    `agentq_scrape_errors` says how many were.
    """

    def __init__(self, store: Store, *, tenants_max: int = 20, fresh_s: float = 5.0) -> None:
        self._ledger = Ledger(store)
        self._figures = Figures(store)
        self._windows = Budgets(store)
        self._odd = Anomalies(store)
        self._tenants_max = tenants_max
        self._fresh_s = fresh_s
        self._lock = threading.Lock()
        self._asked_at = float("-inf")
        self._known: list[Metric] = []

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            if time.monotonic() - self._asked_at > self._fresh_s:
                self._known = self._ask()
                self._asked_at = time.monotonic()
            return list(self._known)

    def _ask(self) -> list[Metric]:
        found: list[Metric] = []
        errors = 0
        for question in (
            self._tenants, self._groups, self._workers, self._sessions, self._letters, self._people, self._effects,
            self._dependencies, self._budgets, self._reservations, self._anomalies,
        ):  # fmt: skip
            try:
                found += question()
            except Exception as error:
                errors += 1
                log.warning("metrics: %s could not be asked: %s", question.__name__.strip("_"), type(error).__name__)
        return [*found, _gauge("agentq_scrape_errors", "Questions to the ledger that failed.", [((), errors)])]

    def _tenants(self) -> list[Metric]:
        shown, rest = self._ledger.busiest(self._tenants_max)
        rows = [(row.tenant, row) for row in shown] + ([(REST, rest)] if rest is not None else [])
        return [
            _gauge(
                "agentq_queue_depth",
                "Steps that wait to run: admitted to the broker or not.",
                [((name, state), getattr(row, state)) for name, row in rows for state in ("ready", "queued")],
                "tenant", "state",
            ),
            _gauge("agentq_running", "Steps that run.", [((name,), row.running) for name, row in rows], "tenant"),
            _gauge(
                "agentq_concurrency",
                "Steps that may run; of the rest, of those that have work.",
                [((name,), row.concurrency) for name, row in rows],
                "tenant",
            ),
            _gauge(
                "agentq_oldest_due_seconds",
                "How long the step has waited that is due for longest.",
                [((name,), row.oldest_due_s) for name, row in rows],
                "tenant",
            ),
            _gauge(
                "agentq_due_steps",
                "Steps that wait, of all tenants.",
                [((), sum(row.ready + row.queued for _, row in rows))],
            ),
        ]  # fmt: skip

    def _groups(self) -> list[Metric]:
        rows = [((row[0],), row[1]) for row in self._figures.ask("deserted")]
        return [_gauge("agentq_tenants_unserved", "Tenants of groups that no live worker serves.", rows, "group")]

    def _workers(self) -> list[Metric]:
        rows = self._figures.ask("workers")
        return [
            _gauge("agentq_workers", "Worker processes.", [((r[0], r[1]), r[2]) for r in rows], "group", "state"),
            _gauge(
                "agentq_lease_left_seconds",
                "Until the first lease of a live worker runs out.",
                [((row[0],), row[4]) for row in rows if row[1] == "live"],
                "group",
            ),
        ]

    def _sessions(self) -> list[Metric]:
        rows = [((row[0],), row[1]) for row in self._figures.ask("paused")]
        return [_gauge("agentq_sessions_paused", "Sessions that are paused, by who or what paused them.", rows, "by")]

    def _letters(self) -> list[Metric]:
        by_cause: list[Row] = self._figures.ask("dead_letters")
        by_class: list[Row] = self._figures.ask("open_dead_letters")
        return [
            _gauge("agentq_dead_letters", "Open dead letters.", [((row[0],), row[1]) for row in by_class], "class"),
            _gauge(
                "agentq_dead_letters_by_cause",
                "Open dead letters of the causes that have most.",
                [((row[0], row[1]), row[2]) for row in by_cause],
                "cause",
                "class",
            ),
            _gauge(
                "agentq_dead_letter_age_seconds",
                "How long the oldest open dead letter has lain.",
                [((row[0],), row[2]) for row in by_class],
                "class",
            ),
        ]

    def _anomalies(self) -> list[Metric]:
        counts: dict[str, int] = {}
        for measure, n in self._odd.open().items():
            kind = measure.partition(":")[0]
            counts[kind] = counts.get(kind, 0) + n
        rows = [((kind,), n) for kind, n in sorted(counts.items())]
        return [_gauge("agentq_anomalies", "Anomalies that nobody has muted.", rows, "measure")]

    def _people(self) -> list[Metric]:
        [(count, oldest)] = self._figures.ask("approvals")
        return [
            _gauge("agentq_approvals_open", "Approvals that wait for a person.", [((), count)]),
            _gauge("agentq_approval_age_seconds", "How long the oldest of them has waited.", [((), oldest)]),
        ]

    def _budgets(self) -> list[Metric]:
        shown = self._windows.tightest(self._tenants_max)
        where = [(window.tenant, window.period) for window in shown]

        def dollars(micros: Iterable[int]) -> list[tuple[tuple[str, ...], float]]:
            return [(labels, amount / 1_000_000) for labels, amount in zip(where, micros, strict=True)]

        left = [max(w.limit_micros - w.spent_micros - w.reserved_micros, 0) for w in shown]
        labels = ("tenant", "period")
        return [
            _gauge("agentq_budget_spent_usd", "Spent in the window.", dollars(w.spent_micros for w in shown), *labels),
            _gauge("agentq_budget_held_usd", "Reserved now.", dollars(w.reserved_micros for w in shown), *labels),
            _gauge("agentq_budget_left_usd", "Left of the tightest budgets.", dollars(left), *labels),
        ]

    def _reservations(self) -> list[Metric]:
        [(count, oldest)] = self._figures.ask("reservations")
        return [
            _gauge("agentq_reservations_held", "Calls for which money is held now.", [((), count)]),
            _gauge("agentq_reservation_age_seconds", "For how long, of the oldest.", [((), oldest)]),
        ]

    def _effects(self) -> list[Metric]:
        rows = [((row[0],), row[1]) for row in self._figures.ask("effects")]
        return [_gauge("agentq_effects", "Effects of which nobody knows whether they happened.", rows, "state")]

    def _dependencies(self) -> list[Metric]:
        rows = self._figures.ask("dependencies")
        counts = [((r[0], what), r[2 + n]) for r in rows for n, what in enumerate(("answered", "failed", "held_back"))]
        return [
            _gauge(
                "agentq_breaker_state",
                "0: calls go out, 1: a few try, 2: steps are held back.",
                [((row[0],), _BREAKER[row[1]]) for row in rows],
                "dependency",
            ),
            _gauge("agentq_breaker_openings", "Times it opened.", [((row[0],), row[5]) for row in rows], "dependency"),
            _gauge("agentq_dependency_calls", "Calls by what became of them.", counts, "dependency", "outcome"),
            _gauge(
                "agentq_breaker_tenants_held",
                "Tenants whose own access is held back.",
                [((row[0],), row[6]) for row in rows],
                "dependency",
            ),
        ]


def _gauge(name: str, about: str, rows: Iterable[tuple[tuple[str, ...], float]], *labels: str) -> Metric:
    family = GaugeMetricFamily(name, about, labels=labels)
    for values, number in rows:
        family.add_metric(list(values), float(number))
    return family


class MetricsServer:
    """`/metrics` of this process and `/fleet` of the ledger, on a port of its own."""

    def __init__(self, process: CollectorRegistry, fleet: CollectorRegistry, *, address: str, port: int) -> None:
        self._paths = {"/metrics": process, "/fleet": fleet}
        self._server = self._bind(address, port)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="agentq-metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()
        log.info("metrics on http://%s:%s/metrics", *self._server.server_address[:2])

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(5.0)
        self._server.server_close()

    def _bind(self, address: str, port: int) -> WSGIServer:
        # Several workers share a host: each takes the next free port.
        for candidate in range(port, min(port + _PORTS_TRIED, 65536)):
            try:
                return make_server(address, candidate, self._answer, _Threaded, _Quiet)
            except OSError:
                continue
        raise ConfigError(f"metrics_port: no port from {port} to {port + _PORTS_TRIED - 1} is free on {address}")

    def _answer(self, environ: dict[str, str], start: Callable[..., object]) -> list[bytes]:
        registry = self._paths.get(environ.get("PATH_INFO", ""))
        if registry is None or environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            start("404 Not Found", [("Content-Type", "text/plain")])
            return [b"/metrics: this process; /fleet: the ledger\n"]
        body = generate_latest(registry)
        start("200 OK", [("Content-Type", CONTENT_TYPE_LATEST)])
        return [body]


class _Threaded(WSGIServer):
    """A scrape that hangs holds up no other."""

    allow_reuse_address = False

    def process_request(self, request: object, client_address: object) -> None:
        work = threading.Thread(target=self._handle, args=(request, client_address), daemon=True)
        work.start()

    def _handle(self, request: object, client_address: object) -> None:
        try:
            self.finish_request(request, client_address)  # type: ignore[arg-type]
        except Exception as error:
            log.debug("a scrape was cut off: %s", error)
        finally:
            self.shutdown_request(request)  # type: ignore[arg-type]


class _Quiet(WSGIRequestHandler):
    timeout = 10

    def log_message(self, format: str, *args: object) -> None:
        """A scrape every few seconds is no news."""


def fleet_registry(store: Store, *, tenants_max: int) -> CollectorRegistry:
    """A registry of the fleet's figures."""
    registry = CollectorRegistry()
    registry.register(FleetCollector(store, tenants_max=tenants_max))
    return registry


__all__ = ["REST", "FleetCollector", "MetricsServer", "ProcessMetrics", "fleet_registry"]
