"""
One real Postgres and one real broker for the whole run; each test has a tenant of its own.

With AGENTQ_DATABASE_URL and AGENTQ_BROKER_URL set, the run uses those servers instead. It then refuses to
start where somebody's sessions are, and takes its tenants and all of their rows away at the end.
"""

from __future__ import annotations

import itertools
import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from agentq.agents.registry import Registry
from agentq.client import Client
from agentq.embedded import Stack
from agentq.settings import Settings
from agentq.store import migrate
from agentq.store.ledger import Ledger
from agentq.store.pool import Store
from agentq.store.providers import new_key, provider_of
from agentq.store.schema import TENANT_TABLES
from agentq.testing import LocalFleet
from tests.support.databases import Databases
from tests.support.fleet import Fleet
from tests.support.hands import Hands
from tests.support.leaving import leave

RUN = secrets.token_hex(3)
TENANTS = f"test-{RUN}-"
_count = itertools.count()

# A run that was started in the background ignores Ctrl-C, and so would every program that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A run must not pick up the settings of whoever started it, apart from the servers.
_OWN = {name: os.environ.get(name, "") for name in ("AGENTQ_DATABASE_URL", "AGENTQ_BROKER_URL")}
_OWN_ADMIN = os.environ.get("AGENTQ_ADMIN_DATABASE_URL") or _OWN["AGENTQ_DATABASE_URL"]
for _name in [*Settings.model_fields, "config", "operator"]:
    os.environ.pop(f"AGENTQ_{_name.upper()}", None)


@dataclass(frozen=True)
class Servers:
    """Where the run's servers are."""

    database_url: str
    admin_url: str
    broker_url: str
    own: bool


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """The servers of this run, migrated."""
    if any(_OWN.values()):
        if not all(_OWN.values()):
            pytest.exit("set both AGENTQ_DATABASE_URL and AGENTQ_BROKER_URL for the tests, or neither", 2)
        found = Servers(_OWN["AGENTQ_DATABASE_URL"], _OWN_ADMIN, _OWN["AGENTQ_BROKER_URL"], own=True)
        _refuse_strangers(found.admin_url)
    else:
        stack: Stack = request.getfixturevalue("stack")
        found = Servers(stack.postgres.url, stack.postgres.admin_url, stack.valkey.url, own=False)
    role = psycopg.conninfo.conninfo_to_dict(found.database_url).get("user")
    migrate.upgrade(found.admin_url, fleet_role=role if found.admin_url != found.database_url else None)
    yield found
    if found.own:
        _clean(found)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The embedded servers, migrated once. Tests that break them start a stack of their own."""
    if any(_OWN.values()):
        pytest.skip("this test needs the embedded servers")
    stack = Stack(tmp_path_factory.mktemp("stack") / "data")
    with stack:
        migrate.upgrade(stack.postgres.admin_url, fleet_role="agentq_fleet")
        yield stack
    leave(stack)


@pytest.fixture(scope="session")
def databases(stack: Stack) -> Databases:
    """For tests that need a database of their own on the embedded servers."""
    return Databases(stack)


@pytest.fixture(scope="session")
def settings(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings with short intervals and a key prefix of this run."""
    return Settings(
        database_url=servers.database_url,
        broker_url=servers.broker_url,
        agents=("tests.support.agents",),
        data_dir=tmp_path_factory.mktemp("data"),
        key_prefix=f"agentq-{TENANTS}",
        heartbeat_s=0.4,
        lease_s=2.0,
        dead_look_s=0.5,
        relay_interval_s=0.1,
        queued_stale_s=0.5,
        own_queues_max=100_000,  # a test that wants a shard says so
        worker_threads=8,
        database_pool=8,
        drain_s=5.0,
        settle_patience_s=20.0,
        step_timeout_s=30.0,
        backoff_base_s=0.02,
        backoff_max_s=1.0,
        # Tests fail on purpose, and their models share a provider's name: a breaker is for those about breakers.
        dependency_volume_min=10_000,
        # With AGENTQ_TEST_ENCRYPTED=1 the whole suite runs on encrypted payloads.
        encryption_keys=new_key() if os.environ.get("AGENTQ_TEST_ENCRYPTED") else "",
    )


@pytest.fixture(scope="session")
def store(settings: Settings) -> Iterator[Store]:
    """The fleet's store, on the real clock."""
    store = Store(settings.database_url, size=24, name="agentq tests", keys=provider_of(settings))
    yield store
    store.close()


@pytest.fixture(scope="session")
def ledger(store: Store) -> Ledger:
    """The ledger on that store."""
    return Ledger(store)


@pytest.fixture(scope="session")
def admin(servers: Servers) -> Iterator[psycopg.Connection[Any]]:
    """A connection as the schema's owner, seeing all tenants, for looking and for breaking things."""
    with psycopg.connect(servers.admin_url, autocommit=True) as connection:
        connection.execute("select set_config('agentq.tenant', '*', false)")
        yield connection


def new_tenant(admin: psycopg.Connection[Any], concurrency: int = 1000) -> str:
    """A tenant of this run."""
    name = f"{TENANTS}{next(_count)}"
    admin.execute("insert into agentq.tenant (name, concurrency) values (%s, %s)", (name, concurrency))
    return name


@pytest.fixture
def tenant(admin: psycopg.Connection[Any]) -> str:
    """A tenant that no other test uses."""
    return new_tenant(admin)


@pytest.fixture
def other_tenant(admin: psycopg.Connection[Any]) -> str:
    """A second tenant."""
    return new_tenant(admin)


@pytest.fixture
def no_keys_left(admin: psycopg.Connection[Any]) -> Iterator[None]:
    """Data keys that a test makes go with it: workers of other tests have no provider, and would refuse to start."""
    before = [row[0] for row in admin.execute("select tenant from agentq.tenant_key").fetchall()]
    yield
    admin.execute("delete from agentq.tenant_key where tenant <> all (%s)", (before,))


@pytest.fixture
def registry() -> Registry:
    """An empty registry, for the agents of one test."""
    return Registry()


@pytest.fixture
def client(settings: Settings, registry: Registry) -> Iterator[Client]:
    """A client that knows the agents of this test."""
    with Client(settings, registry) as client:
        yield client


@pytest.fixture
def local(client: Client, registry: Registry) -> Iterator[Any]:
    """Makes a fleet in this process, once the test has defined its agents."""
    with ExitStack() as stack:
        yield lambda **more: stack.enter_context(LocalFleet(client, **more))


@pytest.fixture
def hands(store: Store, tenant: str) -> Iterator[Hands]:
    """A hand on the ledger, below agents and engine."""
    hands = Hands(store, tenant)
    yield hands
    hands.close()


@pytest.fixture
def fleet(settings: Settings, tmp_path: Path) -> Iterator[Fleet]:
    """Real Celery workers, each its own process; none when the test begins."""
    with Fleet(settings, tmp_path) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def shared_fleet(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A running worker for the whole module, for tests that leave it alive."""
    with Fleet(settings, tmp_path_factory.mktemp("fleet")) as fleet:
        fleet.worker(concurrency=8)
        yield fleet


@pytest.fixture(scope="session")
def broker(settings: Settings) -> Iterator[redis.Redis]:
    """The broker itself, for looking at what is in it."""
    with redis.Redis.from_url(settings.broker_url) as client:
        yield client


def _refuse_strangers(admin_url: str) -> None:
    with psycopg.connect(admin_url, autocommit=True) as connection:
        connection.execute("select set_config('agentq.tenant', '*', false)")
        if connection.execute("select to_regclass('agentq.session')").fetchone() == (None,):
            return
        strangers = connection.execute("select count(*) from agentq.session where tenant !~ '^test-'").fetchone()
        if strangers and strangers[0]:
            pytest.exit(f"this database holds {strangers[0]} sessions that are not from tests: name another one", 2)


def _clean(servers: Servers) -> None:
    """Remove what this run wrote, and nothing else."""
    with psycopg.connect(servers.admin_url, autocommit=True) as connection:
        connection.execute("select set_config('agentq.tenant', '*', false)")
        for table in reversed([TENANT_TABLES[0], TENANT_TABLES[1], *TENANT_TABLES[2:]]):
            connection.execute(f"delete from {table.fullname} where tenant like %s", (f"{TENANTS}%",))
        connection.execute("delete from agentq.tenant where name like %s", (f"{TENANTS}%",))
        connection.execute("delete from agentq.api_token where tenants[1] like %s", (f"{TENANTS}%",))
        connection.execute("delete from agentq.redrive_policy where name like %s", (f"{TENANTS}%",))
        connection.execute("delete from agentq.worker where state in ('dead', 'stopped') and release in ('0', 'test')")
    with redis.Redis.from_url(servers.broker_url) as client:
        for key in client.scan_iter(f"agentq-{TENANTS}*"):
            client.delete(key)
