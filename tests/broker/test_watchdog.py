"""The watchdog: a worker that lives but no longer receives heals itself, and nobody else is disturbed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from agentq.agents.registry import load_agents
from agentq.broker.queues import tenant_queue
from agentq.client import Client
from agentq.engine import InFlight
from agentq.errors import BrokerUnavailable
from agentq.runtime import EXIT_STALLED
from agentq.settings import Settings
from agentq.watchdog import Watchdog
from tests.support.fleet import Fleet, Worker
from tests.support.hands import PIN, Hands
from tests.support.mute import MuteProxy
from tests.support.until import until

# ── a worker that hears nothing ──────────────────────────────────────────────


@pytest.fixture
def proxy(settings: Settings) -> Iterator[MuteProxy]:
    port = urlsplit(settings.broker_url).port
    assert port is not None
    with MuteProxy(port) as proxy:
        yield proxy


@pytest.fixture
def behind(settings: Settings, proxy: MuteProxy, tmp_path: Path) -> Iterator[Fleet]:
    """Workers that reach the broker through the proxy only, and are quick to suspect it."""
    url = settings.broker_url.replace(f":{urlsplit(settings.broker_url).port}", f":{proxy.port}")
    with Fleet(settings.model_copy(update={"broker_url": url, "watchdog_s": 1.5}), tmp_path) as fleet:
        yield fleet


@pytest.fixture
def producer(settings: Settings) -> Iterator[Client]:
    with Client(settings, load_agents(["tests.support.agents"])) as client:
        yield client


def listening(behind: Fleet, tenant: str) -> Worker:
    worker = behind.worker(concurrency=4)
    until(lambda: f"Started consuming from {tenant_queue(tenant)}" in worker.log, 20, "it listens to the tenant")
    return worker


def test_a_worker_whose_consumer_went_silent_heals(
    behind: Fleet, proxy: MuteProxy, producer: Client, tenant: str, admin: psycopg.Connection[Any]
) -> None:
    """
    Its connection is open and dead. It notices by the ledger, connects anew, and the session ends.
    """
    worker = listening(behind, tenant)
    assert producer.start("count", tenant=tenant, input={}).wait(20).state == "done"
    proxy.mute()
    session = producer.start("count", tenant=tenant, input={})

    assert session.wait(30).state == "done"

    assert worker.alive
    assert "the consumer is restarted" in worker.log
    row = until(
        lambda: admin.execute(
            "select watchdog_restarts, delivered_at, restarted_at from agentq.worker"
            " where pid = %s and watchdog_restarts > 0",
            (worker.pid,),
        ).fetchone(),
        10,
        "its row says so",
    )
    assert row[0] == 1
    assert row[1] >= row[2], "a message came after it"


def test_a_worker_that_stays_silent_ends_with_an_error(
    behind: Fleet, proxy: MuteProxy, producer: Client, tenant: str
) -> None:
    """
    A new connection does not help: it drains and ends, so that its supervisor starts another.
    """
    worker = listening(behind, tenant)
    proxy.always_mute = True
    proxy.mute()
    producer.start("count", tenant=tenant, input={})
    assert worker.process.wait(40) == EXIT_STALLED
    assert "did not help" in worker.log


# ── no false alarms ──────────────────────────────────────────────────────────


class Quiet:
    """A consumer and a broker, as a test wants them."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.full = False
        self.room = 4
        self.restarts = 0
        self.gave_up = 0
        self.waiting = 1
        self.away = False
        self.now = 0.0

    def queues(self) -> list[str]:
        return [tenant_queue(self.tenant)]

    def is_full(self) -> bool:
        return self.full

    def slots(self) -> int:
        return self.room

    def restart(self) -> None:
        self.restarts += 1

    def depth(self, _: str) -> int:
        if self.away:
            raise BrokerUnavailable("away")
        return self.waiting


@pytest.fixture
def quiet(hands: Hands) -> Quiet:
    return Quiet(hands.tenant)


@pytest.fixture
def dog(hands: Hands, quiet: Quiet) -> Watchdog:
    def give_up() -> None:
        quiet.gave_up += 1

    return Watchdog(
        ledger=hands.ledger, publisher=quiet, in_flight=InFlight(), consumer=quiet, serves=[PIN], stall_s=10.0,
        give_up=give_up, clock=lambda: quiet.now,
    )  # fmt: skip


def look(dog: Watchdog, quiet: Quiet, seconds: int) -> None:
    """Look every other second."""
    for _ in range(0, seconds, 2):
        quiet.now += 2
        dog.look()


def test_due_work_that_does_not_come_is_a_stall(hands: Hands, dog: Watchdog, quiet: Quiet) -> None:
    """
    First the consumer, then the process; neither before its time.
    """
    hands.start()
    hands.admit()
    look(dog, quiet, 10)
    assert quiet.restarts == 0
    look(dog, quiet, 4)
    assert (quiet.restarts, quiet.gave_up) == (1, 0)
    look(dog, quiet, 12)
    assert (quiet.restarts, quiet.gave_up > 0) == (1, True)


@pytest.mark.parametrize(
    "calm", ["nothing is due", "the tenant is paused", "every slot is busy", "another version", "messages come",
             "others take them", "not in the broker"],
)  # fmt: skip
def test_whatever_else_keeps_it_quiet_is_no_stall(
    hands: Hands, dog: Watchdog, quiet: Quiet, admin: psycopg.Connection[Any], calm: str
) -> None:
    """
    A worker without work, without leave or without room is left alone.
    """
    ref = None if calm == "nothing is due" else hands.start()
    hands.admit()
    match calm:
        case "the tenant is paused":
            admin.execute("update agentq.tenant set state = 'paused' where name = %s", (hands.tenant,))
        case "every slot is busy":
            quiet.full = True
        case "another version":
            admin.execute("update agentq.session set agent_version = 9 where tenant = %s", (hands.tenant,))
        case "not in the broker":
            quiet.waiting = 0
    for _ in range(30):
        if calm == "messages come":
            dog._in_flight.delivered = quiet.now
        if calm == "others take them" and ref is not None:
            hands.settle(hands.claim(ref), "release")  # a claim, so another fence
        look(dog, quiet, 2)
    assert (quiet.restarts, quiet.gave_up) == (0, 0)


def test_a_broker_that_is_away_is_no_stall(hands: Hands, dog: Watchdog, quiet: Quiet) -> None:
    """
    Restarting would not bring it back.
    """
    hands.start()
    hands.admit()
    quiet.away = True
    look(dog, quiet, 10)
    with pytest.raises(BrokerUnavailable):
        look(dog, quiet, 4)
    assert quiet.restarts == 0


def test_a_process_whose_slots_are_lost_ends(hands: Hands, dog: Watchdog, quiet: Quiet) -> None:
    """
    Steps that were abandoned and never return keep their threads: at half of them the process gives up.

    One whose thread comes back in the end gives its slot back too.
    """
    quiet.full = True  # as the pool of such a process is
    with ExitStack() as threads:
        for stuck in range(2):
            ref = hands.start()
            hands.admit()
            attempt = threads.enter_context(dog._in_flight.running(hands.claim(ref)))
            assert quiet.gave_up == 0, f"with {stuck} of 4 lost"
            dog._in_flight.forget(attempt)
            dog.look()
        assert quiet.gave_up == 1
    assert dog._in_flight.stranded == 0
    dog.look()
    assert quiet.gave_up == 1
