"""What people see and run, on either broker: the doctor, queues, Flower's broker tab, `agentq up`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from agentq.broker.publisher import Publisher
from agentq.broker.queues import SUBMIT_DEAD, tenant_of, tenant_queue
from agentq.cli import main
from agentq.cli.exits import UNAVAILABLE
from agentq.client import Client
from agentq.errors import ConfigError
from agentq.settings import Settings, load
from tests.conftest import Servers, new_tenant
from tests.contract.test_seam import wake
from tests.flower.test_tabs import Window, start_flower
from tests.support.brokers import Broker, RabbitBroker
from tests.support.fleet import Fleet
from tests.support.until import until


@pytest.fixture
def variables(settings_there: Settings, servers: Servers, tmp_path: Path) -> dict[str, str]:
    """The settings as a deployment gives them."""
    found = Fleet(settings_there, tmp_path).environment(AGENTQ_ADMIN_DATABASE_URL=servers.admin_url)
    return {name: value for name, value in found.items() if name.startswith("AGENTQ_") and value}


@pytest.fixture
def agentq(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """`agentq ARGUMENTS` in this process."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, arguments, prog_name="agentq")

    return run


def findings(agentq: Any) -> tuple[dict[str, dict[str, Any]], int]:
    result = agentq("doctor", "--json")
    return {one["check"]: one for one in json.loads(result.stdout)["findings"]}, result.exit_code


def test_the_doctor_knows_the_broker(agentq: Any, broker: Broker) -> None:
    """
    Its product and version, and what each of them is to be asked.
    """
    found, code = findings(agentq)
    assert code == 0
    assert found["broker"]["found"].startswith("RabbitMQ 3." if isinstance(broker, RabbitBroker) else "Valkey")
    assert ("broker queues" in found) == isinstance(broker, RabbitBroker)
    assert ("broker memory" in found) != isinstance(broker, RabbitBroker)


def test_the_doctor_finds_a_queue_that_somebody_else_declared(
    agentq: Any, broker: Broker, publisher: Publisher
) -> None:
    """
    A Celery client without `task_create_missing_queue_type` was first: workers could not read submissions.
    """
    if not isinstance(broker, RabbitBroker):
        pytest.skip("Valkey knows no kinds of queues")
    broker.delete("agentq.submit")
    broker.declare("agentq.submit")
    found, code = findings(agentq)
    assert code == 1
    assert "rabbitmqctl delete_queue agentq.submit" in found["queue agentq.submit"]["todo"]
    broker.delete("agentq.submit")
    publisher.declare("agentq.submit")
    assert "queue agentq.submit" not in findings(agentq)[0]


@pytest.mark.parametrize("words", ["user or password", "no such vhost"])
def test_the_doctor_says_what_is_wrong_with_the_address(
    agentq: Any, broker: Broker, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    """
    And never the password.
    """
    if not isinstance(broker, RabbitBroker):
        pytest.skip("Valkey has neither users here nor vhosts")
    head, _, host = broker.url.partition("@")
    url = f"{head}wrong@{host}" if "password" in words else f"{head}@{host.rstrip('/')}/nope"
    monkeypatch.setenv("AGENTQ_BROKER_URL", url)
    found, code = findings(agentq)
    assert code == UNAVAILABLE
    assert words in found["broker"]["found"]
    assert head.rpartition(":")[2] not in agentq("doctor").output


def test_queues_are_listed_beside_the_broker(agentq: Any, publisher: Publisher, admin: psycopg.Connection[Any]) -> None:
    """
    Also those that are not there yet.
    """
    tenant = new_tenant(admin)
    assert json.loads(agentq("queue", "ls", "--tenant", tenant, "--json").stdout)["tenants"][0]["in_broker"] == 0
    publisher.send([wake(tenant)] * 3)
    publisher.flush()
    facts = json.loads(agentq("queue", "ls", "--tenant", tenant, "--json").stdout)
    assert facts["tenants"][0]["in_broker"] == 3
    assert facts["broker_error"] is None
    assert SUBMIT_DEAD in json.loads(agentq("queue", "ls", "--json").stdout)["queues"]


def test_a_broker_of_another_kind_is_refused() -> None:
    """
    Kombu knows twenty; these two carry agentq.
    """
    for url in ("sqs://", "kafka://x", "http://localhost:15672", "localhost:5672"):
        with pytest.raises(ConfigError, match="broker_url"):
            load({}, broker_url=url)
    assert load({}, broker_url="amqps://a:b@c/d").broker_url


def test_flower_shows_what_waits(
    settings_there: Settings, publisher: Publisher, admin: psycopg.Connection[Any], tmp_path: Path
) -> None:
    """
    On RabbitMQ without its management interface, over AMQP.
    """
    queue = tenant_queue(new_tenant(admin))
    row = re.compile(rf"<td>{re.escape(queue)}</td>\s*<td[^>]*>\s*(?:<[^>]*>\s*)?(\d+)")
    with Fleet(settings_there, tmp_path) as fleet:
        worker = fleet.worker(concurrency=1)
        until(lambda: f"Started consuming from {queue}" in worker.log, 20)
        process, address = start_flower(settings_there, tmp_path, FLOWER_BASIC_AUTH="jane:pass-word-1")
        try:
            window = Window(address)
            until(lambda: row.search(window.page("/broker")), 30, "Flower knows the queue from its worker")
            worker.signal(signal.SIGSTOP)  # it takes a few ahead, and no more
            publisher.send([wake(tenant_of(queue) or "")] * 20)
            publisher.flush()

            def waiting() -> int:
                found = row.search(window.page("/broker"))
                return int(found[1]) if found else 0

            assert 10 < until(lambda: (n := waiting()) > 10 and n, 20, "what waits") <= 20
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture
def up(variables: dict[str, str], tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`agentq up` on servers that are there."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AGENTQ_")}
    more = {"AGENTQ_DATA_DIR": str(tmp_path / "up"), "AGENTQ_FLOWER_PORT": "0", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "agentq", "up", "--no-flower"], env=clean | variables | more,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    yield process
    if process.poll() is None:
        process.kill()
        process.wait(20)


def test_up_uses_the_broker_that_is_named(
    up: subprocess.Popen[str], producer: Client, broker: Broker, admin: psycopg.Connection[Any]
) -> None:
    """
    It starts none of its own, runs a session, and ends cleanly.
    """
    assert up.stdout is not None
    said = ""
    for line in up.stdout:
        said += line
        if "Ctrl-C" in line:
            break
    assert "your own" in said, said
    assert broker.url.partition("@")[0].rpartition(":")[2] not in said
    assert producer.start("count", tenant=new_tenant(admin), input={}).wait(timeout=40).result == 3
    up.send_signal(signal.SIGINT)
    up.stdout.read()
    assert up.wait(60) == 0
