"""What an erased tenant leaves in the broker: nothing, at once or as soon as the broker is back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from agentq.broker.publisher import Publisher
from agentq.broker.queues import dead_queue, tenant_queue
from agentq.cli import main
from agentq.client import Client
from agentq.relay.letterbox import Letterbox
from agentq.relay.relay import Relay
from agentq.settings import Settings
from agentq.store.approvals import Approvals
from agentq.store.dead_letters import DeadLetterStore
from agentq.store.ledger import Ledger
from agentq.store.pool import Store
from agentq.store.redrives import Redrives
from agentq.store.workers import Workers
from agentq.verdicts import Failure
from tests.conftest import new_tenant
from tests.contract.test_seam import wake
from tests.support.brokers import Broker
from tests.support.fleet import Fleet
from tests.support.hands import Hands
from tests.support.until import until

SECRET = "oolong-4711"
WHY = "they left"


@pytest.fixture
def tenant(admin: psycopg.Connection[Any], producer: Client) -> str:
    """A tenant with a queue of its own."""
    name = new_tenant(admin)
    producer.tenants.set(name, queue="own", reason="test")
    admin.execute("update agentq.tenant set placed_at = placed_at - interval '1 minute' where name = %s", (name,))
    return name


@pytest.fixture
def hands(store: Store, tenant: str) -> Iterator[Hands]:
    hands = Hands(store, tenant)
    yield hands
    hands.close()


@pytest.fixture
def announce(store: Store, publisher: Publisher, tenant: str, admin: psycopg.Connection[Any]) -> Callable[[], None]:
    """A round of the letterbox, for this tenant's letters alone."""
    admin.execute("update agentq.dead_letter set announced = true where not announced and tenant <> %s", (tenant,))
    return Letterbox(DeadLetterStore(store), Redrives(store), publisher).announce


@pytest.fixture
def relay(ledger: Ledger, store: Store, publisher: Publisher) -> Relay:
    return Relay(
        ledger=ledger,
        workers=Workers(store),
        approvals=Approvals(store),
        publisher=publisher,
        follow_tenants=lambda _: None,
        interval_s=0.1,
        batch=10,
        lease_s=1.0,
        look_s=0.0,
        stale_s=10.0,
    )


def bury(hands: Hands) -> None:
    """A dead letter whose failure quotes what the session was given."""
    hands.settle(hands.begin(), "dead", failure=Failure("permanent", "ValueError", f"no tea {SECRET} for Ada Lovelace"))


def waiting(admin: psycopg.Connection[Any], tenant: str) -> list[str]:
    """The queues that are noted to be removed."""
    row = admin.execute("select former_queues from agentq.tenant where name = %s", (tenant,)).fetchone()
    assert row is not None
    return sorted(row[0])


def test_a_notice_of_a_dead_letter_quotes_nothing(
    hands: Hands, announce: Callable[[], None], broker: Broker, tenant: str
) -> None:
    """
    The law: what the broker gets are ids. What failed where is told, and not what its message says.
    """
    bury(hands)
    announce()
    [message] = broker.take(dead_queue(tenant))
    told = json.loads(message["body"])
    assert told["about"] == "ValueError in robot.first"
    everything = json.dumps(told) + json.dumps(message["headers"])
    assert not {word for word in (SECRET, "tea", "Lovelace", "lovelace") if word in everything}
    [letter] = hands.rows("select cause_text from agentq.dead_letter")
    assert "lovelace" in letter["cause_text"], "the row has it, for people"


def test_an_erased_tenants_queues_go_with_it(
    hands: Hands,
    announce: Callable[[], None],
    producer: Client,
    publisher: Publisher,
    broker: Broker,
    relay: Relay,
    tenant: str,
    admin: psycopg.Connection[Any],
) -> None:
    """
    Its wake-ups and its board, and nobody else's; and what was just being announced, by the relay.
    """
    other = new_tenant(admin)
    bury(hands)
    announce()
    publisher.send([wake(tenant), wake(other)])
    publisher.flush()
    own, board = tenant_queue(tenant), dead_queue(tenant)
    assert (publisher.depth(own), publisher.depth(board)) == (1, 1)
    producer.tenants.set(tenant, state="paused", reason=WHY)

    found = producer.tenants.erase(tenant, reason=WHY)

    assert (found["queues_removed"], found["queues_left"]) == (2, 0)
    assert not broker.has(own)
    assert not broker.has(board)
    assert publisher.depth(tenant_queue(other)) == 1
    [action, *_] = producer.operators.actions(tenant=tenant)
    assert action.detail is not None
    assert action.detail["queues_removed"] == 2
    publisher.publish(board, [({"letter": "announced meanwhile"}, {})])
    relay.remove_left()
    assert not broker.has(board)
    assert waiting(admin, tenant) == []


def test_a_broker_that_is_away_does_not_stop_an_erasure(
    hands: Hands,
    announce: Callable[[], None],
    settings_there: Settings,
    producer: Client,
    publisher: Publisher,
    broker: Broker,
    relay: Relay,
    tenant: str,
    admin: psycopg.Connection[Any],
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    The rows are gone; that its queues are not is said, with what becomes of them; the relay removes them later.
    """
    bury(hands)
    announce()
    publisher.send([wake(tenant)])
    publisher.flush()
    producer.tenants.set(tenant, state="paused", reason=WHY)
    for name, value in Fleet(settings_there, tmp_path).environment().items():
        if name.startswith("AGENTQ_"):
            monkeypatch.setenv(name, value)

    broker.stop()
    try:
        result: Result = CliRunner().invoke(main, ["tenant", "erase", tenant, "--yes", "--reason", WHY])
        assert result.exit_code == 0, result.output
        assert "left: nothing" in result.output
        assert f"the queues of tenant {tenant} are still there" in result.output
        assert "A worker removes them" in result.output
        relay.round()  # a round that finds the broker away forgets nothing
        assert waiting(admin, tenant) == [tenant_queue(tenant), dead_queue(tenant)]
    finally:
        broker.start()

    until(lambda: relay.round() or not waiting(admin, tenant), 30, "the relay has removed them")
    assert not broker.has(tenant_queue(tenant))
    assert not broker.has(dead_queue(tenant))


def test_who_is_let_in_again_keeps_its_queues(
    hands: Hands,
    announce: Callable[[], None],
    producer: Client,
    publisher: Publisher,
    broker: Broker,
    relay: Relay,
    tenant: str,
    admin: psycopg.Connection[Any],
) -> None:
    """
    What the relay still meant to remove is in use by then, and its new dead letters are told.
    """
    producer.tenants.set(tenant, state="paused", reason=WHY)
    producer.tenants.erase(tenant, reason=WHY)
    producer.tenants.set(tenant, state="active", agents=[], reason="they are back")
    publisher.send([wake(tenant)])
    publisher.flush()
    bury(hands)
    announce()
    relay.remove_left()
    assert publisher.depth(tenant_queue(tenant)) == 1
    assert waiting(admin, tenant) == []
    announce()
    assert len(broker.take(dead_queue(tenant))) == 1


def test_a_tenant_that_shares_a_queue_leaves_it_to_the_others(
    producer: Client, publisher: Publisher, relay: Relay, tenant: str
) -> None:
    """
    Its wake-ups there are ids that open nothing; workers drop them.
    """
    producer.tenants.set(tenant, queue="shard", state="paused", reason=WHY)
    [shard] = [row.queue for row in producer.tenants.ls(match=tenant) if row.name == tenant]
    assert shard is not None
    publisher.publish(shard, [({}, {})])
    producer.tenants.erase(tenant, reason=WHY)
    relay.remove_left()
    assert publisher.depth(shard) == 1
    publisher.purge(shard)
