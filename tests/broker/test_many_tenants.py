"""Ten thousand tenants and real workers: all are served, wherever they are placed and whenever they move."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from agentq.agents.registry import load_agents
from agentq.client import Client
from agentq.embedded import Stack
from agentq.settings import Settings
from agentq.store.migrate import upgrade
from agentq.store.placement import Placement
from tests.support.fleet import Fleet, Worker
from tests.support.until import until

TENANTS, OWN, SHARDS, GROUP = 10_000, 40, 8, "premium"
REGISTERED = """
insert into agentq.tenant (name, concurrency) select 'm' || lpad(n::text, 5, '0'), 64 from generate_series(0, %s - 1) n
"""


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Servers with so many tenants, and settings with few queues of single ones."""
    folder: Path = tmp_path_factory.mktemp("crowded")
    with Stack(folder / "data") as stack:
        upgrade(stack.addresses["admin_database_url"], fleet_role="agentq_fleet")
        with psycopg.connect(stack.postgres.url, autocommit=True) as connection:
            connection.execute(REGISTERED, (TENANTS,))
        yield Settings(
            database_url=stack.postgres.url,
            broker_url=stack.valkey.url,
            agents=("tests.support.agents",),
            data_dir=folder / "fleet",
            own_queues_max=OWN,
            queue_shards=SHARDS,
            heartbeat_s=0.4,
            lease_s=2.0,
            dead_look_s=0.5,
            relay_interval_s=0.1,
            queued_stale_s=0.5,
            worker_threads=8,
            database_pool=8,
            drain_s=5.0,
        )


def consumed(worker: Worker) -> set[str]:
    """The queues that a worker listens to, by its own log."""
    found: set[str] = set()
    for line in worker.log.splitlines():
        word, name = line.rpartition(" ")[0], line.rpartition(" ")[2]
        if word.endswith("Started consuming from"):
            found.add(name)
        elif word.endswith("Canceling queue"):
            found.discard(name)
    return found


def test_everybody_is_served_wherever_they_are_placed_and_go(crowded: Settings, tmp_path: Path) -> None:
    """
    Own queues for the first, shards for all others; moves between own, shard and group while steps run; workers that
    start later, or lost their broker meanwhile, follow all of it.
    """
    with Fleet(crowded, tmp_path) as fleet, Client(crowded, load_agents(["tests.support.agents"])) as producer:
        places = Placement(producer.ledger.store, own_max=OWN, shards=SHARDS)
        first = fleet.worker()
        until(lambda: len(consumed(first)) >= OWN + SHARDS, 60, "it listens to all queues")
        assert consumed(first) == set(places.followed("default"))
        assert len(consumed(first)) == OWN + SHARDS, "so many queues, however many tenants"

        some = [f"m{n:05}" for n in range(0, TENANTS, TENANTS // 40)]
        assert {name: done(producer, name) for name in some} == dict.fromkeys(some, 3)

        # To places of each kind, while the fleet runs.
        own, group, shard = "m09999", "m09998", "m00000"
        begun = {name: producer.start("count", tenant=name, input={"until": 40}) for name in (own, group, shard)}
        producer.tenants.set(own, queue="own", reason="it grew")
        producer.tenants.set(shard, queue="shard", reason="it shrank")
        producer.tenants.set(group, group=GROUP, reason="it pays")
        others = fleet.worker(AGENTQ_WORKER_GROUP=GROUP)
        assert {name: session.wait(timeout=60).result for name, session in begun.items()} == dict.fromkeys(begun, 40)
        assert consumed(others) == set(places.followed(GROUP)) == {f"agentq.t.{group}"}
        until(lambda: f"agentq.t.{own}" in consumed(first), 10, "the new queue is listened to")
        until(lambda: f"agentq.t.{shard}" not in consumed(first), 30, "the queue that was left no longer is")

        # One that starts now finds what has changed since the first began.
        later = fleet.worker()
        until(lambda: consumed(later) == set(places.followed("default")), 30, "it follows all")

        # And so does one whose broker was away: its connections are ended, and a tenant moves meanwhile.
        with redis.Redis.from_url(crowded.broker_url) as broker:
            broker.client_kill_filter(_type="normal", skipme=True)
        producer.tenants.set("m05000", queue="own", reason="it grew")
        until(lambda: all("agentq.t.m05000" in consumed(worker) for worker in (first, later)), 30, "both follow")
        first.stop()
        assert {name: done(producer, name) for name in ("m05000", own, shard, *some[:5])}


def done(producer: Client, tenant: str) -> Any:
    """What a short session of a tenant comes to."""
    return producer.start("count", tenant=tenant, input={}).wait(timeout=30).result
