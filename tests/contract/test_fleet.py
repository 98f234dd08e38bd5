"""Real workers on either broker: sessions end whatever is done to it, and nothing that was recorded runs again."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from celery import Celery

from agentq.broker.connection import transport_options
from agentq.broker.publisher import Publisher
from agentq.broker.queues import DELIVERIES_HEADER, SUBMIT, tenant_queue
from agentq.client import Client
from agentq.settings import Settings
from tests.conftest import new_tenant
from tests.support.brokers import Broker, RabbitBroker
from tests.support.fleet import Fleet
from tests.support.mute import MuteProxy
from tests.support.until import until


@pytest.fixture(scope="module")
def fleet_there(settings_there: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One worker for the module and broker."""
    with Fleet(settings_there, tmp_path_factory.mktemp("fleet")) as fleet:
        fleet.worker(concurrency=8)
        yield fleet


@pytest.fixture
def celery(settings_there: Settings) -> Iterator[Celery]:
    """A plain Celery client, as a service without agentq has it, with the one setting that RabbitMQ needs."""
    app = Celery("elsewhere", broker=settings_there.broker_url, set_as_current=False)
    app.conf.update(
        broker_transport_options=transport_options(settings_there),
        task_serializer="json",
        task_create_missing_queue_type="quorum",
    )
    yield app
    app.close()


def attempts(admin: psycopg.Connection[Any], tenant: str) -> list[tuple[Any, ...]]:
    """Every step of the tenant: how many of its attempts settled as done, by the trace, and its state."""
    return admin.execute(
        "select e.step_id, e.state, e.crashes, (select count(*) from agentq.trace t where t.tenant = e.tenant"
        " and t.step_id = e.step_id and t.kind = 'attempt' and t.closing in ('next', 'end')) from agentq.ledger_entry e"
        " where e.tenant = %s",
        (tenant,),
    ).fetchall()


# ── work ─────────────────────────────────────────────────────────────────────


def test_sessions_run_to_their_end(fleet_there: Fleet, producer: Client, tenant: str) -> None:
    """
    Chains, branches, async steps, retries: through the broker and back, for a tenant added a moment ago.
    """
    sessions = [
        *producer.start_many("count", tenant=tenant, items=[({"until": 5}, f"c{n}") for n in range(20)]),
        *producer.start_many("fan", tenant=tenant, items=[({"text": "a", "parts": 4}, f"f{n}") for n in range(5)]),
        *producer.start_many("flaky", tenant=tenant, items=[({"fails": 2}, f"k{n}") for n in range(5)]),
    ]
    assert set(producer.wait_all(sessions, timeout=60).values()) == {"done"}
    assert sessions[0].view().result == 5
    assert sessions[20].view().result == ["A0", "A1", "A2", "A3"]
    assert sessions[25].view().result == 3


def test_a_submission_starts_a_session_once(fleet_there: Fleet, producer: Client, celery: Celery, tenant: str) -> None:
    """
    A service that has only the broker submits ten times with one key: one session, which runs.
    """
    for _ in range(10):
        asked = {"agent": "count", "tenant": tenant, "input": {"until": 4}, "key": "order-1"}
        celery.send_task("agentq.submit", kwargs=asked, queue=SUBMIT)
    [row] = until(lambda: producer.list(tenant=tenant, key="order-1"), 20)
    assert producer.get(tenant, str(row.session_id)).wait(timeout=20).result == 4
    assert len(producer.list(tenant=tenant, key="order-1")) == 1


HEADERS = {"lang": "py", "task": "agentq.submit", "id": "x", "root_id": "x", "argsrepr": "()"}


def garbage(marker: str) -> list[tuple[bytes, str, dict[str, Any] | None]]:
    """Things that have no business in a queue: body, content type, headers."""
    return [
        (f"not json {marker}".encode(), "application/json", HEADERS),
        (b"\xff\xfe\x00" + marker.encode(), "application/json", HEADERS),
        (marker.encode(), "application/x-python-serialize", HEADERS),
        (marker.encode(), "image/png", HEADERS),
        (b"[" * 100_000 + marker.encode(), "application/json", HEADERS),
        (json.dumps([[], {"note": marker}, {}]).encode(), "application/json", HEADERS | {"task": f"no.task.{marker}"}),
        (json.dumps({"note": marker}).encode(), "application/json", None),
        (json.dumps({"note": marker}).encode(), "application/json", {"note": 1}),
        (json.dumps([[], {"agent": marker}, {}]).encode(), "application/json", HEADERS),
    ]


@pytest.mark.parametrize("where", ["submit", "tenant"])
def test_garbage_is_kept_and_the_worker_lives(
    fleet_there: Fleet, producer: Client, broker: Broker, admin: psycopg.Connection[Any], tenant: str, where: str
) -> None:
    """
    Whatever somebody sends into a queue: it is kept with a reason, the worker goes on, and no log line shows it.
    """
    marker = f"marker-{uuid.uuid4().hex}"
    queue = SUBMIT if where == "submit" else tenant_queue(tenant)
    [before] = admin.execute("select coalesce(max(submission_id), 0) from agentq.refused_submission").fetchall()
    admin.execute("delete from agentq.poison_message where queue = %s", (queue,))
    bodies = garbage(marker)
    for body, content_type, headers in bodies:
        broker.put(queue, body, content_type=content_type, headers=headers)

    def kept() -> int:
        found = admin.execute(
            "select (select count(*) from agentq.refused_submission where submission_id > %s)"
            " + (select coalesce(sum(times), 0) from agentq.poison_message where queue = %s)",
            (*before, queue),
        ).fetchone()
        return int(found[0]) if found else 0

    until(lambda: kept() >= len(bodies), 20, "all of it is kept")
    assert kept() == len(bodies)
    assert producer.start("count", tenant=tenant, input={}).wait(timeout=20).result == 3
    assert all(worker.alive and f"json {marker}" not in worker.log for worker in fleet_there)


def test_a_submission_that_ends_its_workers_is_kept(
    fleet_there: Fleet, broker: Broker, admin: psycopg.Connection[Any], tenant: str
) -> None:
    """
    RabbitMQ counts deliveries, which somebody must bound; on Valkey nothing says it, and it is taken.
    """
    key = uuid.uuid4().hex
    body = json.dumps([[], {"agent": "count", "tenant": tenant, "input": {}, "key": key}, {}]).encode()
    broker.put(SUBMIT, body, content_type="application/json", headers=HEADERS | {DELIVERIES_HEADER: 10})
    query = "select reason from agentq.refused_submission where position(%s in body) > 0"
    started = "select 1 from agentq.session where tenant = %s and key = %s"
    if isinstance(broker, RabbitBroker):
        [reason] = until(lambda: admin.execute(query, (key.encode(),)).fetchone(), 20)
        assert "delivered 10 times" in reason
        assert admin.execute(started, (tenant, key)).fetchone() is None


def test_forged_wake_ups_do_nothing(
    fleet_there: Fleet, producer: Client, broker: Broker, admin: psycopg.Connection[Any], tenant: str
) -> None:
    """
    I8: ids that do not exist, ids of another tenant, no ids at all: the session of the other is untouched.
    """
    other = new_tenant(admin)
    session = producer.start("wait", tenant=other, input={"seconds": 0})
    session.wait(timeout=20)
    step = str(session.steps()[0].step_id)
    for ids in (
        {},
        {"tenant": tenant, "session": session.id, "step": step},
        {"tenant": "*", "session": session.id, "step": step},
        {"tenant": other, "session": session.id, "step": step, "epoch": 99},
        {"tenant": tenant, "session": str(uuid.uuid4()), "step": str(uuid.uuid4()), "epoch": 10**30},
    ):
        body = json.dumps([[], ids, {}]).encode()
        headers = HEADERS | {"task": "agentq.step", "id": uuid.uuid4().hex}
        broker.put(tenant_queue(tenant), body, content_type="application/json", headers=headers)
    assert producer.start("count", tenant=tenant, input={}).wait(timeout=20).result == 3
    assert session.view().state == "done"
    assert [count for *_, count in attempts(admin, other)] == [1]


# ── queues ───────────────────────────────────────────────────────────────────


def test_a_tenant_added_now_is_served_now_and_a_paused_one_dropped(
    fleet_there: Fleet, producer: Client, tenant: str
) -> None:
    """
    The consumer's queues follow the tenant table while the worker runs.
    """
    [worker] = fleet_there.workers
    name = f"{tenant}-new"
    producer.tenants.add(name)
    until(lambda: f"Started consuming from {tenant_queue(name)}" in worker.log, 10, "it listens to the new tenant")
    producer.tenants.set(name, state="paused", reason="test")
    until(lambda: f"Canceling queue {tenant_queue(name)}" in worker.log, 10, "it drops the paused tenant")
    session = producer.start("count", tenant=name, input={})
    time.sleep(0.5)  # nothing to wait for: what is looked for is that nothing happens
    assert session.steps()[0].state == "ready"
    producer.tenants.set(name, state="active", reason="test")
    assert session.wait(timeout=20).result == 3


def test_a_queue_that_is_deleted_under_its_listeners_comes_back(
    fleet_there: Fleet, producer: Client, broker: Broker, tenant: str
) -> None:
    """
    RabbitMQ ends the consumer of such a queue; the worker declares it and listens again, to this one alone.
    """
    if not isinstance(broker, RabbitBroker):
        pytest.skip("Valkey's queues are there when a message is")
    [worker] = fleet_there.workers
    queue = tenant_queue(tenant)
    until(lambda: broker.listeners(queue), 20, "it listens")
    before = len(worker.log)
    broker.delete(queue)
    assert producer.start("count", tenant=tenant, input={}).wait(timeout=30).result == 3
    until(lambda: broker.listeners(queue), 10, "it listens again")
    said = worker.log[before:]
    assert f"listening to {queue}, which was deleted" in said
    assert "Connected to" not in said, "however many queues it has, one of them is no reason to connect anew"


def test_a_queue_that_is_deleted_while_its_listener_starts_comes_back(
    fleet_there: Fleet, settings_there: Settings, broker: Broker, tmp_path: Path
) -> None:
    """
    Celery passes over what it reads right after it has connected: that a queue was deleted too.

    Submissions would wait for ever for a worker that does not listen and looks well.
    """
    if not isinstance(broker, RabbitBroker):
        pytest.skip("Valkey's queues are there when a message is")
    until(lambda: broker.listeners(SUBMIT) == 1, 20, "the worker of the module")
    said = f"listening to {SUBMIT}, which was deleted"
    with Fleet(settings_there, tmp_path) as two:
        workers = [two.worker(agents="tests.support.deleting", DELETED_QUEUE=SUBMIT), *fleet_there.workers]
        until(lambda: all(said in worker.log for worker in workers), 20, "both are told")
        until(lambda: broker.listeners(SUBMIT) == 2, 20, "both listen again")
        assert all(worker.alive and said in worker.log for worker in workers)


def test_a_long_step_holds_no_message(
    fleet_there: Fleet, producer: Client, publisher: Publisher, broker: Broker, tenant: str
) -> None:
    """
    RabbitMQ ends who does not acknowledge within half an hour: what runs is acknowledged, so nothing comes back.
    """
    session = producer.start("wait", tenant=tenant, input={"seconds": 3})
    until(lambda: session.steps()[0].state == "running", 20)
    fleet_there.workers[0].kill()  # whatever it had not acknowledged would be in the queue again
    fleet_there.workers[0].dismissed = True
    time.sleep(0.3)
    held = [json.loads(one["body"])[1]["session"] for one in broker.take(tenant_queue(tenant))]
    assert session.id not in held
    fleet_there.workers.clear()
    fleet_there.worker(concurrency=8)
    assert session.wait(timeout=30).result == "waited"


# ── a broker that breaks ─────────────────────────────────────────────────────


@pytest.mark.parametrize("blow", ["wiped", "killed for seconds"])
def test_sessions_outlive_the_broker(
    fleet_there: Fleet,
    producer: Client,
    broker: Broker,
    admin: psycopg.Connection[Any],
    blow: str,
) -> None:
    """
    I4: all sessions end, and each step was recorded once.
    """
    tenant = new_tenant(admin)
    items = [({"until": 12}, f"{blow}{n}") for n in range(30)]
    sessions = producer.start_many("count", tenant=tenant, items=items)
    until(lambda: sum(one[1] == "done" for one in attempts(admin, tenant)) > 20, 30, "they run")
    if blow == "wiped":
        broker.wipe()
    else:
        broker.kill()
        time.sleep(2)
        broker.start()
    assert set(producer.wait_all(sessions, timeout=90).values()) == {"done"}
    assert {session.view().result for session in sessions} == {12}
    assert Counter(one[1:] for one in attempts(admin, tenant)) == {("done", 0, 1): 30 * 12}
    assert all(worker.alive for worker in fleet_there)


def test_fifty_sessions_through_a_killed_worker_and_a_restarted_broker(
    settings_there: Settings,
    producer: Client,
    broker: Broker,
    admin: psycopg.Connection[Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """
    I4: 50 sessions of 5 steps on two workers; one is killed and the broker restarted in the middle.

    Each session ends with its result, and no step that was recorded ran again. The first worker drains in the end.
    """
    tenant = new_tenant(admin)
    with Fleet(settings_there, tmp_path_factory.mktemp("two")) as two:
        first, second = two.worker(concurrency=8), two.worker(concurrency=8)
        sessions = producer.start_many("count", tenant=tenant, items=[({"until": 5}, f"s{n}") for n in range(50)])
        until(lambda: sum(one[1] == "done" for one in attempts(admin, tenant)) >= 40, 30, "they run")
        second.kill()
        broker.stop()
        broker.start()
        assert Counter(producer.wait_all(sessions, timeout=90).values()) == {"done": 50}
        assert {session.view().result for session in sessions} == {5}
        found = attempts(admin, tenant)
        assert Counter((state, done) for _, state, _, done in found) == {("done", 1): 250}
        assert first.alive
        assert first.stop() == 0
        row = admin.execute("select state from agentq.worker where pid = %s order by started_at desc", (first.pid,))
        assert row.fetchone() == ("stopped",)


# ── a consumer that hears nothing ────────────────────────────────────────────


def test_a_worker_whose_consumer_went_silent_heals(
    settings_there: Settings,
    producer: Client,
    broker: Broker,
    admin: psycopg.Connection[Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """
    Its connection is open and dead. It notices by the ledger, connects anew, and the session ends.
    """
    tenant, group = new_tenant(admin), "silent"
    producer.tenants.set(tenant, group=group, reason="no other worker is to help")
    port = urlsplit(broker.url).port
    assert port is not None
    with MuteProxy(port) as proxy:
        url = broker.url.replace(f":{port}", f":{proxy.port}")
        there = settings_there.model_copy(update={"broker_url": url, "watchdog_s": 1.5, "worker_group": group})
        with Fleet(there, tmp_path_factory.mktemp("silent")) as behind:
            worker = behind.worker(concurrency=4)
            assert producer.start("count", tenant=tenant, input={}).wait(30).state == "done"
            proxy.mute()
            assert producer.start("count", tenant=tenant, input={}).wait(40).state == "done"
            assert worker.alive
            assert "the consumer is restarted" in worker.log
