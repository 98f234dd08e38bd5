"""Brokers over TLS: worker, producer, doctor and rates; whoever is not who the URL says is refused, and it is said."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg
import pytest
from click.testing import CliRunner

from agentq.agents.registry import load_agents
from agentq.broker.connection import connect, tls
from agentq.broker.publisher import Publisher
from agentq.broker.queues import SUBMIT
from agentq.broker.rates import redis_rates
from agentq.cli import main
from agentq.cli.exits import UNAVAILABLE
from agentq.client import Client
from agentq.errors import BrokerUnavailable, ConfigError
from agentq.settings import Settings, load
from agentq.store.rates import Bucket, Take
from tests.conftest import Servers, new_tenant
from tests.support import rabbit
from tests.support.fleet import Fleet
from tests.support.rabbit import Rabbit
from tests.support.tls import Authority, Door
from tests.support.until import until

PASSWORD = "pass/word@1"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours"), "ours")


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that signed nothing here."""
    return Authority(tmp_path_factory.mktemp("theirs"), "theirs")


@pytest.fixture(scope="module")
def files(ours: Authority) -> dict[str, str]:
    """The settings that name files."""
    certificate, key = ours.issue("fleet")
    named = {"ca": ours.file, "cert": certificate, "key": key}
    return {f"broker_{name}_file": str(path) for name, path in named.items()}


@pytest.fixture(scope="module")
def over_amqps(
    settings: Settings, ours: Authority, files: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    """RabbitMQ with a user and a vhost of the fleet's. Its certificate is for `localhost`; it asks for ours, too."""
    if rabbit.program() is None:
        pytest.skip(f"NOT TESTED ON RABBITMQ: rabbitmq-server is not installed; {rabbit.INSTALL}")
    node = Rabbit(tmp_path_factory.mktemp("rabbit") / "node", tls=(ours.file, *ours.issue("broker", "localhost")))
    try:
        node.start()
        node.control("add_vhost", "fleet")
        node.control("add_user", "fleet", PASSWORD)
        node.control("set_permissions", "-p", "fleet", "fleet", ".*", ".*", ".*")
        url = f"amqps://fleet:{quote(PASSWORD, safe='')}@localhost:{node.tls_port}/fleet"
        yield settings.model_copy(update={"broker_url": url, **files})
    finally:
        node.close()


@pytest.fixture(scope="module")
def over_rediss(settings: Settings, servers: Servers, ours: Authority, files: dict[str, str]) -> Iterator[Settings]:
    """Valkey behind a door that speaks TLS: the server of our wheel was built without."""
    if servers.own:
        pytest.skip("this test needs the embedded servers")
    parts = urlsplit(settings.broker_url)
    assert parts.port is not None
    with Door(*ours.issue("door", "localhost"), parts.port) as door:
        url = f"rediss://:{parts.password}@localhost:{door.port}/0"
        yield settings.model_copy(update={"broker_url": url, "broker_ca_file": files["broker_ca_file"]})


@pytest.fixture(params=["amqps", "rediss"])
def secured(request: pytest.FixtureRequest) -> Settings:
    found: Settings = request.getfixturevalue(f"over_{request.param}")
    return found


@pytest.fixture
def doctor(servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Settings], Any]:
    """What the doctor says of the broker, and its exit code."""

    def ask(settings: Settings) -> tuple[dict[str, Any], int]:
        known = Fleet(settings, tmp_path).environment(AGENTQ_ADMIN_DATABASE_URL=servers.admin_url)
        for name, value in known.items():
            if name.startswith("AGENTQ_"):
                monkeypatch.setenv(name, value)
        result = CliRunner().invoke(main, ["doctor", "--json"], prog_name="agentq")
        assert PASSWORD not in result.output
        [found] = [one for one in json.loads(result.stdout)["findings"] if one["check"] == "broker"]
        return found, result.exit_code

    return ask


def test_a_fleet_works_over_tls(
    secured: Settings, doctor: Callable[[Settings], Any], admin: psycopg.Connection[Any], tmp_path: Path
) -> None:
    """
    With user, password and vhost in the URL; a worker, a producer, and the doctor.
    """
    tenant = new_tenant(admin)
    with (
        Fleet(secured, tmp_path) as fleet,
        Client(secured, load_agents(["tests.support.agents"])) as producer,
    ):
        worker = fleet.worker(concurrency=4)
        assert producer.start("count", tenant=tenant, input={"until": 9}).wait(timeout=60).result == 9
        found, code = doctor(secured)
        assert (found["ok"], code) == (True, 0)
        assert PASSWORD not in worker.log


def refused(settings: Settings) -> str:
    """What a publisher was told."""
    publisher = Publisher(lambda: connect(settings))
    try:
        with pytest.raises(BrokerUnavailable) as raised:
            publisher.depth(SUBMIT)
    finally:
        publisher.close()
    return str(raised.value)


def test_a_broker_of_another_authority_is_refused(
    secured: Settings, strangers: Authority, doctor: Callable[[Settings], Any], tmp_path: Path
) -> None:
    """
    The error says what is the matter and which setting it is about; the worker's log, too.
    """
    wrong = secured.model_copy(update={"broker_ca_file": str(strangers.file)})
    found, code = doctor(wrong)
    assert code == UNAVAILABLE
    assert "certificate is not trusted" in found["found"]
    assert "broker_ca_file" in found["found"]
    assert "certificate is not trusted" in refused(wrong)
    with Fleet(wrong, tmp_path) as fleet:
        worker = fleet.worker(wait=False)
        until(lambda: "CERTIFICATE_VERIFY_FAILED" in worker.log, 30, "the worker says why it cannot connect")


def test_a_broker_of_another_name_is_refused(secured: Settings) -> None:
    """
    A certificate of the right authority is not enough: it must be the one of the host that the URL names.
    """
    assert "not trusted" in refused(
        secured.model_copy(update={"broker_url": secured.broker_url.replace("localhost", "127.0.0.1")})
    )


def test_an_authority_that_nobody_named_is_refused(secured: Settings) -> None:
    """
    Without `broker_ca_file` those of the system hold, and never none.
    """
    assert "not trusted" in refused(
        secured.model_copy(update={"broker_ca_file": "", "broker_cert_file": "", "broker_key_file": ""})
    )


def test_a_broker_may_ask_who_we_are(over_amqps: Settings) -> None:
    """
    RabbitMQ lets nobody in without a certificate here, and says so.
    """
    assert refused(over_amqps.model_copy(update={"broker_cert_file": "", "broker_key_file": ""}))


def test_rates_are_counted_over_tls(over_rediss: Settings, strangers: Authority) -> None:
    """
    The one part that speaks to Redis past kombu.
    """
    asked = Take("p", "a", 1.0, (), (Bucket("tls", 1.0, 5.0, 1.0, False),))
    counter = redis_rates(over_rediss)
    assert counter is not None
    assert counter.take(asked).wait_s == 0
    counter = redis_rates(over_rediss.model_copy(update={"broker_ca_file": str(strangers.file)}))
    assert counter is not None
    with pytest.raises(BrokerUnavailable):
        counter.take(asked)


@pytest.mark.parametrize("name", ["broker_ca_file", "broker_cert_file"])
@pytest.mark.parametrize("content", [None, b"no certificate"])
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    """
    At once, and not as a broker that is away.
    """
    path = tmp_path / "file.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=name):
        tls(load({}, broker_url="amqps://a:b@c/d", **{name: str(path)}))


def test_a_plain_address_has_no_options_of_tls() -> None:
    assert tls(load({}, broker_url="amqp://a:b@c/d")) is None
    assert load({}, broker_url="valkeys://c").broker_url == "rediss://c"
