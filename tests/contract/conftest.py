"""
The broker seam on Valkey and on RabbitMQ: each test runs on both, on a server that it may break.

Without `rabbitmq-server` its half is skipped, and says what to install.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from agentq.agents.registry import load_agents
from agentq.broker.connection import connect
from agentq.broker.publisher import Publisher
from agentq.client import Client
from agentq.settings import Settings
from tests.conftest import new_tenant
from tests.support import rabbit
from tests.support.brokers import Broker, RabbitBroker, ValkeyBroker


@pytest.fixture(scope="session")
def rabbit_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitBroker]:
    if rabbit.program() is None:
        pytest.skip(f"NOT TESTED ON RABBITMQ: rabbitmq-server is not installed; {rabbit.INSTALL}")
    broker = RabbitBroker(tmp_path_factory.mktemp("rabbit") / "node")
    yield broker
    broker.close()


@pytest.fixture(scope="session")
def valkey_broker(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyBroker]:
    broker = ValkeyBroker(tmp_path_factory.mktemp("valkey") / "data", settings.key_prefix)
    yield broker
    broker.close()


@pytest.fixture(scope="module", params=["valkey", "rabbitmq"])
def broker(request: pytest.FixtureRequest) -> Broker:
    """The server; a test that stops it starts it again."""
    name = {"valkey": "valkey_broker", "rabbitmq": "rabbit_broker"}[request.param]
    found: Broker = request.getfixturevalue(name)
    return found


@pytest.fixture(scope="module")
def settings_there(settings: Settings, broker: Broker) -> Settings:
    """The run's settings with this broker."""
    return settings.model_copy(update={"broker_url": broker.url})


@pytest.fixture
def publisher(settings_there: Settings) -> Iterator[Publisher]:
    made = Publisher(lambda: connect(settings_there))
    yield made
    made.close()


@pytest.fixture
def producer(settings_there: Settings) -> Iterator[Client]:
    """A client that knows the agents that the workers have."""
    with Client(settings_there, load_agents(["tests.support.agents"])) as client:
        yield client


@pytest.fixture(scope="module")
def tenant(admin: psycopg.Connection[object]) -> str:
    """One tenant for a module and broker, whose queue is listened to already."""
    return new_tenant(admin)
