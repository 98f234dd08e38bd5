"""Metrics: what is counted, that labels stay bounded, and that the files in `config/` suit the real tools."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from agentq import Agent, Context, Done
from agentq.agents.registry import Registry
from agentq.cli import main
from agentq.client import Client
from agentq.errors import ConfigError
from agentq.relay.anomalies import Anomaly
from agentq.seeing.metrics import (
    _AGENTS_MAX,
    REST,
    FleetCollector,
    MetricsServer,
    ProcessMetrics,
    fleet_registry,
)
from agentq.settings import Settings
from agentq.store.budgets import Budgets
from agentq.store.dependencies import FLEET, Breakers, Report
from agentq.store.effects import Effects
from agentq.store.ledger import Ledger
from agentq.store.pool import Store
from agentq.testing import LocalFleet
from agentq.verdicts import Deferred, Dropped, Extras, Granted, Settlement, Superseded, Usage
from tests.conftest import new_tenant
from tests.flower.test_tabs import start_flower
from tests.support.bad_run import Ticket, define
from tests.support.breakers import RULES
from tests.support.fleet import ROOT, Fleet
from tests.support.hands import BROKEN, Hands, step
from tests.support.until import until

Local = Callable[..., LocalFleet]
CONFIG = ROOT / "config"


def values(registry: CollectorRegistry) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every sample by name and label values."""
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in registry.collect()
        for sample in family.samples
    }


def test_what_a_process_does_is_counted(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    By the engine, on its way; attempts by closing, failures by class, usage by agent.
    """
    define(registry)
    fleet = local()
    fleet.engine.watch = metrics = ProcessMetrics()
    session = client.start("desk", tenant=tenant, input={})
    with pytest.raises(Exception, match="takes no coupon"):
        fleet.drain(session)
    found = values(metrics.registry)
    assert found["agentq_attempts_total", ("desk", "next")] == 4
    assert found["agentq_attempts_total", ("desk", "retry")] == 1
    assert found["agentq_attempts_total", ("desk", "dead")] == 1
    assert found["agentq_failures_total", ("desk", "transient")] == 1
    assert found["agentq_step_seconds_count", ("desk",)] == 6
    assert found["agentq_hop_seconds_count", ()] == 7
    assert found["agentq_cost_usd_total", ("desk",)] == pytest.approx(0.13)
    assert found["agentq_tokens_total", ("desk", "in")] == 1300


def test_verdicts_without_an_attempt_are_counted() -> None:
    metrics = ProcessMetrics()
    for verdict in (Dropped("settled"), Dropped("settled"), Deferred("draining"), Superseded(3)):
        metrics.ended(verdict)
    found = values(metrics.registry)
    assert found["agentq_deliveries_dropped_total", ("settled",)] == 2
    assert found["agentq_deliveries_deferred_total", ("draining",)] == 1
    assert found["agentq_writes_fenced_total", ()] == 1


def test_agents_without_end_do_not_make_labels_without_end(hands: Hands) -> None:
    """
    Whoever makes agents by program must not fill Prometheus.
    """
    metrics = ProcessMetrics()
    claim = hands.begin()
    for number in range(_AGENTS_MAX + 50):
        of = Granted(**{name: getattr(claim, name) for name in Granted.__slots__} | {"agent": f"a{number}"})
        metrics.carried(of, Settlement("next"), 0.1)
    found = values(metrics.registry)
    assert found["agentq_step_seconds_count", (REST,)] == 50
    assert sum(name == "agentq_step_seconds_count" for name, _ in found) == _AGENTS_MAX + 1


def test_tenants_are_the_busiest_few_and_the_rest(
    store: Store, hands: Hands, other_tenant: str, admin: psycopg.Connection[Any]
) -> None:
    """
    All that waits is counted once; of the rest only those that have work are looked at.
    """
    rival = Hands(store, other_tenant)
    for _ in range(3):
        hands.start()
    rival.start()
    [(waiting,)] = admin.execute(
        "select count(*) from agentq.ledger_entry where state in ('ready', 'queued')"
    ).fetchall()
    all_of_them, none = Ledger(store).busiest(100_000)
    assert none is None
    busy = [row for row in all_of_them if row.steps]
    assert {row.tenant: row.ready for row in busy}[hands.tenant] == 3
    assert [row.steps for row in busy] == sorted((row.steps for row in busy), reverse=True)

    shown, rest = Ledger(store).busiest(1)
    assert [row.tenant for row in shown] == [busy[0].tenant]
    assert rest is not None
    assert rest.steps == sum(row.steps for row in busy[1:])
    assert rest.oldest_due_s >= max(row.oldest_due_s for row in busy[1:])
    found = values(fleet_registry(store, tenants_max=1))
    assert found["agentq_due_steps", ()] == waiting
    assert sum(name == "agentq_running" for name, _ in found) == 2
    rival.close()


def test_the_tightest_budgets_are_shown(
    store: Store, tenant: str, other_tenant: str, admin: psycopg.Connection[Any]
) -> None:
    """
    By the share of them that is used; one that is not set in money, or whose window is not open, is none of them.
    """
    for name, spent in ((tenant, 900), (other_tenant, 950)):
        admin.execute(
            "insert into agentq.budget (tenant, scope, subject, period, cost_micros, on_refusal)"
            " select %s, 'tenant', '', p, 1000, 'wait' from unnest(array['day', 'month']) p",
            (name,),
        )
        admin.execute(
            "insert into agentq.budget_window (tenant, scope, subject, period, starts_at, spent_micros)"
            " values (%s, 'tenant', '', 'day', date_trunc('day', now(), 'UTC'), %s),"
            " (%s, 'tenant', '', 'month', date_trunc('month', now(), 'UTC') - interval '1 month', 9999)",
            (name, spent, name),
        )
    ranked = [(row.tenant, row.period) for row in Budgets(store).tightest(1000)]
    mine = [row for row in ranked if row[0] in (tenant, other_tenant)]
    assert mine == [(other_tenant, "day"), (tenant, "day")]
    assert len(Budgets(store).tightest(1)) == 1


def test_the_ledger_is_told_as_it_is(store: Store, hands: Hands, admin: psycopg.Connection[Any]) -> None:
    """
    Depth, age and what runs by tenant, workers, dead letters by cause, paused sessions, unknown effects.
    """
    running = hands.begin()
    hands.settle(hands.begin(), "dead")
    waiting = hands.start()
    admin.execute(
        "update agentq.ledger_entry set due_at = due_at - interval '1 hour' where step_id = %s", (waiting.step_id,)
    )
    Breakers(store, RULES).report([Report((FLEET, "metrics-test"), bad=4)])
    found = values(fleet_registry(store, tenants_max=10_000))
    assert found["agentq_running", (hands.tenant,)] == 1
    assert found["agentq_queue_depth", (hands.tenant, "ready")] == 1
    assert found["agentq_oldest_due_seconds", (hands.tenant,)] == pytest.approx(3600, abs=60)
    assert found["agentq_workers", ("default", "live")] >= 1
    assert found["agentq_dead_letters", (BROKEN.kind,)] >= 1
    assert any(name == "agentq_dead_letters_by_cause" for name, _ in found)
    assert found["agentq_breaker_state", ("metrics-test",)] == 2
    assert found["agentq_dependency_calls", ("metrics-test", "failed")] == 4
    assert found["agentq_scrape_errors", ()] == 0
    hands.follow(running, step("second"))


def test_budgets_are_told(store: Store, client: Client, tenant: str, admin: psycopg.Connection[Any]) -> None:
    """
    Of the tightest budgets what is spent, held and left.
    """
    admin.execute(
        "insert into agentq.budget (tenant, scope, subject, period, cost_micros, on_refusal) "
        "values (%s, 'tenant', '', 'day', 2000000, 'wait')",
        (tenant,),
    )
    admin.execute(
        "insert into agentq.budget_window (tenant, scope, subject, period, starts_at, spent_micros, reserved_micros) "
        "values (%s, 'tenant', '', 'day', date_trunc('day', now(), 'UTC'), 1500000, 250000)",
        (tenant,),
    )
    found = values(fleet_registry(store, tenants_max=10_000))
    assert found["agentq_budget_spent_usd", (tenant, "day")] == 1.5
    assert found["agentq_budget_held_usd", (tenant, "day")] == 0.25
    assert found["agentq_budget_left_usd", (tenant, "day")] == 0.25


def test_a_question_that_fails_costs_only_its_own_answer(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    collector = FleetCollector(store)
    monkeypatch.setattr(collector, "_ledger", None)
    names = {metric.name: metric for metric in collector.collect()}
    assert "agentq_queue_depth" not in names
    assert "agentq_workers" in names
    assert names["agentq_scrape_errors"].samples[0].value == 1


def test_the_ledger_is_not_asked_at_each_scrape(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    collector = FleetCollector(store, fresh_s=3600)
    first = list(collector.collect())
    monkeypatch.setattr(collector, "_ask", lambda: pytest.fail("asked again"))
    assert list(collector.collect()) == first


@pytest.fixture
def server(store: Store) -> Iterator[MetricsServer]:
    served = MetricsServer(
        ProcessMetrics().registry, fleet_registry(store, tenants_max=5), address="127.0.0.1", port=19808
    )
    served.start()
    yield served
    served.stop()


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return str(answer.read().decode())


def test_a_worker_serves_its_own_and_the_fleets(server: MetricsServer) -> None:
    assert "agentq_hop_seconds_bucket" in get(server.port, "/metrics")
    assert "agentq_due_steps" in get(server.port, "/fleet")
    assert list(text_string_to_metric_families(get(server.port, "/fleet")))
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(server.port, "/other")


def test_the_next_worker_of_a_host_takes_the_next_port(server: MetricsServer, store: Store) -> None:
    other = MetricsServer(CollectorRegistry(), CollectorRegistry(), address="127.0.0.1", port=server.port)
    try:
        assert other.port > server.port
    finally:
        other.stop()
    with pytest.raises(ConfigError, match="metrics_port"):
        MetricsServer(CollectorRegistry(), CollectorRegistry(), address="203.0.113.1", port=server.port)


def test_a_real_worker_serves_metrics(fleet: Fleet, client: Client, admin: psycopg.Connection[Any]) -> None:
    """
    From the settings to the scrape.
    """
    worker = fleet.worker(AGENTQ_METRICS_PORT="19908")
    tenant = new_tenant(admin)
    from agentq.agents.registry import load_agents

    with Client(fleet.settings, load_agents(("tests.support.agents",))) as producer:
        producer.start("count", tenant=tenant, input={}).wait(timeout=20)
    found = re.search(r"metrics on http://127\.0\.0\.1:(\d+)/metrics", worker.log)
    assert found is not None
    # At least: it also takes up what other tests have left.
    counted = re.compile(r'agentq_attempts_total\{agent="count",closing="end"\} [1-9]')
    until(lambda: counted.search(get(int(found[1]), "/metrics")) is not None, 5, "counted")
    assert "agentq_relay_round_age_seconds" in get(int(found[1]), "/metrics")
    assert "agentq_consumer_restarts 0.0" in get(int(found[1]), "/metrics")


# ── the files in config/ ─────────────────────────────────────────────────────


def asked_for() -> set[str]:
    """The metrics that the rules and the dashboard ask for."""
    board = json.loads((CONFIG / "grafana-dashboard.json").read_text("utf-8"))
    rules = (CONFIG / "alerts.yml").read_text("utf-8")
    exprs = rules + " ".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
    return set(re.findall(r"\bagentq_[a-z_]+", exprs))


def test_rules_and_dashboard_ask_for_metrics_that_a_scrape_has(
    store: Store, hands: Hands, client: Client, admin: psycopg.Connection[Any]
) -> None:
    """
    A rule on a metric that was renamed never fires, and nobody notices. Scraped while there is something of each kind.
    """
    tenant = hands.tenant
    metrics = ProcessMetrics()
    claim = hands.begin()
    metrics.claimed(claim)
    metrics.carried(claim, Settlement("retry", failure=BROKEN, extras=Extras(usage=Usage(10, 5, 300))), 0.1)
    for verdict in (Dropped("settled"), Deferred("draining"), Superseded(3)):
        metrics.ended(verdict)
    metrics.anomaly(
        Anomaly(tenant, "robot", 1, claim.ref.session_id, "steps", "p99", 9.0, 1.0, 3.0, running=True, parked=False)
    )
    hands.settle(hands.begin(), "dead")
    hands.settle(hands.begin(), "park", hold={"kind": "breaker", "by": "agentq", "reason": "test"})
    hands.start()
    Effects(store).claim(claim, "e:1", name="pay", args_hash=b"h", durable=False)
    Effects(store).settle(claim, "e:1", "unknown", failure=BROKEN)
    Breakers(store, RULES).report([Report((FLEET, "metrics-test"), bad=4)])
    client.budgets.set(tenant, period="day", cost_usd="2", reason="test")
    admin.execute(
        "insert into agentq.budget_window (tenant, scope, subject, period, starts_at, spent_micros, reserved_micros) "
        "values (%s, 'tenant', '', 'day', date_trunc('day', now(), 'UTC'), 1500000, 250000)",
        (tenant,),
    )
    text = "".join(
        generate_latest(one).decode() for one in (metrics.registry, fleet_registry(store, tenants_max=10_000))
    )
    scraped = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    assert asked_for() - scraped == set()
    assert 'agentq_retries_total{agent="robot",class="transient"} 1.0' in text


def test_recorded_series_and_panels_are_whole() -> None:
    rules = (CONFIG / "alerts.yml").read_text("utf-8")
    board = json.loads((CONFIG / "grafana-dashboard.json").read_text("utf-8"))
    asked = rules + " ".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
    assert set(re.findall(r"\bagentq:[a-z0-9_:]+", asked)) <= set(re.findall(r"record: (\S+)", rules))
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_each_alert_says_what_to_do_with_commands_that_exist() -> None:
    """
    At two in the morning nobody wants to find out that `todo` is out of date.
    """
    found = re.findall(r"(?m)^ +todo: (.+)$", (CONFIG / "alerts.yml").read_text("utf-8"))
    assert len(found) == (CONFIG / "alerts.yml").read_text("utf-8").count("- alert: ")
    for todo in found:
        for words in re.findall(r"agentq ([a-z ]+[a-z])", todo):
            command: Any = main
            for word in words.split():
                if isinstance(command, click.Group):
                    command = command.get_command(click.Context(command), word)
                assert command is not None, f"agentq {words}"


def test_reservations_are_told(
    store: Store, registry: Registry, client: Client, tenant: str, local: Local, admin: psycopg.Connection[Any]
) -> None:
    """
    How many calls hold money now, and for how long: what the relay should have freed is seen.
    """
    agent = Agent("holder", state=Ticket, registry=registry)
    client.budgets.set_price("robot:one", input_usd="2", output_usd="8", reason="test")
    seen: list[dict[tuple[str, tuple[str, ...]], float]] = []

    @agent.step(start=True)
    def ask(state: Ticket, ctx: Context) -> Done:
        with ctx.spend(model="robot:one", input_tokens=1000, max_tokens=500) as call:
            admin.execute("update agentq.reservation set at = at - interval '2 h' where tenant = %s", (tenant,))
            seen.append(values(fleet_registry(store, tenants_max=5)))
            call.used(input_tokens=1, output_tokens=1)
        return Done("ok")

    before = values(fleet_registry(store, tenants_max=5))["agentq_reservations_held", ()]
    local().drain(client.start("holder", tenant=tenant, input={}))
    assert seen[0]["agentq_reservations_held", ()] == before + 1
    assert seen[0]["agentq_reservation_age_seconds", ()] >= 7200


def prometheus_tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install prometheus")
    return found


def test_promtool_accepts_rules_and_scrape_configuration() -> None:
    """
    The real tool reads them without a complaint.
    """
    checked = subprocess.run(
        [prometheus_tool("promtool"), "check", "config", str(CONFIG / "prometheus.yml")],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr
    rules = len(re.findall(r"(?m)^      - (?:alert|record): ", (CONFIG / "alerts.yml").read_text("utf-8")))
    assert f"{rules} rules found" in checked.stdout


def test_each_rule_fires_when_it_should_and_not_otherwise() -> None:
    """
    `promtool test rules`: every alert of the file has a case in which it fires, and a fleet at peace is silent.
    """
    cases = Path(__file__).with_name("alerts_test.yml")
    tested = subprocess.run(
        [prometheus_tool("promtool"), "test", "rules", str(cases)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert tested.returncode == 0, tested.stdout + tested.stderr
    alerts = re.findall(r"- alert: (\w+)", (CONFIG / "alerts.yml").read_text("utf-8"))
    fired = re.findall(r"alertname: (\w+)\n +exp_alerts:\n", cases.read_text("utf-8"))
    assert set(alerts) == set(fired)


def test_a_real_prometheus_scrapes_a_worker_and_flower(fleet: Fleet, settings: Settings, tmp_path: Path) -> None:
    """
    Processes as a deployment has them, by the scrape configuration that is shipped; Flower asks for its login.
    """
    worker = fleet.worker(AGENTQ_METRICS_PORT="19958")
    found = re.search(r"metrics on http://127\.0\.0\.1:(\d+)/metrics", worker.log)
    assert found is not None
    flower, address = start_flower(settings, tmp_path, FLOWER_BASIC_AUTH="jane:secret1")
    text = (CONFIG / "prometheus.yml").read_text("utf-8").replace("15s", "1s")
    text = text.replace('"127.0.0.1:5555"', f'"{address.removeprefix("http://")}"')
    text = text.replace('"127.0.0.1:9808", "127.0.0.1:9809"', f'"127.0.0.1:{found[1]}"')
    for line in ("basic_auth:", "  username: operator", "  password_file: /run/secrets/flower"):
        text = text.replace(f"# {line}", line)
    text = text.replace("operator", "jane").replace("/run/secrets/flower", str(tmp_path / "login"))
    (tmp_path / "login").write_text("secret1", "utf-8")
    (tmp_path / "prometheus.yml").write_text(text, "utf-8")
    shutil.copy(CONFIG / "alerts.yml", tmp_path)
    port = 19000 + uuid.uuid4().int % 700
    process = subprocess.Popen(
        [prometheus_tool("prometheus"), f"--config.file={tmp_path / 'prometheus.yml'}",
         f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL, stderr=(tmp_path / "log").open("wb"),
    )  # fmt: skip
    try:

        def jobs(metric: str) -> set[str]:
            try:
                answer = json.loads(get(port, f"/api/v1/query?query={metric}"))["data"]["result"]
            except (OSError, ValueError, KeyError):
                return set()
            return {row["metric"].get("job", "") for row in answer}

        until(lambda: jobs("agentq_due_steps") == {"agentq-fleet"}, 40, "the ledger's figures, from Flower")
        until(lambda: jobs("agentq_relay_round_age_seconds") == {"agentq-workers"}, 20, "the worker's own")
        until(lambda: jobs("agentq:due_work_seconds") != set(), 20, "the signal to scale by")
        assert jobs("agentq_reservations_held") == {"agentq-fleet"}
    finally:
        for one in (process, flower):
            one.terminate()
            one.wait(15)


def test_promtool_accepts_what_is_served(store: Store) -> None:
    """
    Names, units and help as Prometheus wants them.
    """
    for registry in (ProcessMetrics().registry, fleet_registry(store, tenants_max=5)):
        checked = subprocess.run(
            [prometheus_tool("promtool"), "check", "metrics"],
            input=generate_latest(registry), capture_output=True, timeout=30, check=False,
        )  # fmt: skip
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_real_prometheus_scrapes_and_evaluates(server: MetricsServer, tmp_path: Path) -> None:
    """
    Debian's prometheus, our rules, a live worker's port: targets up, rules without errors.
    """
    program = prometheus_tool("prometheus")
    text = (CONFIG / "prometheus.yml").read_text("utf-8")
    text = text.replace("15s", "1s").replace('"127.0.0.1:5555"', f'"127.0.0.1:{server.port}"')
    text = text.replace("metrics_path: /metrics", "metrics_path: /fleet", 1)
    text = text.replace('"127.0.0.1:9808", "127.0.0.1:9809"', f'"127.0.0.1:{server.port}"')
    (tmp_path / "prometheus.yml").write_text(text, "utf-8")
    shutil.copy(CONFIG / "alerts.yml", tmp_path)
    port = 19000 + uuid.uuid4().int % 700
    process = subprocess.Popen(
        [program, f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}",
         f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL, stderr=(tmp_path / "log").open("wb"),
    )  # fmt: skip
    try:

        def ask(path: str) -> Any:
            try:
                return json.loads(get(port, path))["data"]
            except (OSError, ValueError):
                return None

        def rules() -> dict[str, str]:
            """Each rule, and what became of it: `unknown` until it has been evaluated."""
            found = [rule for group in (ask("/api/v1/rules") or {"groups": []})["groups"] for rule in group["rules"]]
            return {rule["name"]: rule.get("lastError") or rule["health"] for rule in found}

        def targets() -> set[str]:
            return {one["health"] for one in (ask("/api/v1/targets") or {"activeTargets": []})["activeTargets"]}

        assert until(lambda: (ask("/api/v1/query?query=agentq_due_steps") or {}).get("result"), 30, "it scraped")
        until(lambda: "unknown" not in (rules().values() or {"unknown"}), 30, "it evaluated each rule")
        until(lambda: "unknown" not in (targets() or {"unknown"}), 15, "it knows each target")
        ours = re.findall(r"^ *- (?:alert|record): (\S+)$", (CONFIG / "alerts.yml").read_text("utf-8"), re.MULTILINE)
        assert rules() == dict.fromkeys(ours, "ok")
        assert targets() == {"up"}
    finally:
        process.terminate()
        process.wait(10)


def test_the_keda_example_asks_for_the_recorded_signal() -> None:
    """
    What people copy: a query that the rules record, and a threshold that is the text that KEDA wants.
    """
    yaml = pytest.importorskip("yaml")
    [example] = re.findall(r"```yaml\n(.*?)```", (CONFIG / "README.md").read_text("utf-8"), re.DOTALL)
    [trigger] = yaml.safe_load(example)["spec"]["triggers"]
    assert f"record: {trigger['metadata']['query']}\n" in (CONFIG / "alerts.yml").read_text("utf-8")
    assert isinstance(trigger["metadata"]["threshold"], str)
