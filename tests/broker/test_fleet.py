"""Real Celery workers on Valkey; what RabbitMQ must keep too is in tests/contract."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import redis
from celery import Celery

from agentq.agents.registry import load_agents
from agentq.broker.connection import transport_options
from agentq.broker.queues import SUBMIT, SUBMIT_DEAD, tenant_queue
from agentq.client import Client
from agentq.errors import WaitTimeout
from agentq.settings import Settings
from tests.conftest import new_tenant
from tests.support.fleet import Fleet
from tests.support.until import until


@pytest.fixture
def producer(settings: Settings) -> Iterator[Client]:
    """A client that knows the agents that the workers have."""
    with Client(settings, load_agents(["tests.support.agents"])) as client:
        yield client


@pytest.fixture(scope="module")
def tenant(admin: psycopg.Connection[Any]) -> str:
    """One tenant for the module: its queue is listened to by the second test at the latest."""
    return new_tenant(admin)


@pytest.fixture
def celery(settings: Settings) -> Iterator[Celery]:
    """A plain Celery client, as a service without agentq has it."""
    app = Celery("elsewhere", broker=settings.broker_url, set_as_current=False)
    app.conf.update(broker_transport_options=transport_options(settings), task_serializer="json")
    yield app
    app.close()


def submit(celery: Celery, /, **kwargs: Any) -> None:
    celery.send_task("agentq.submit", kwargs=kwargs, queue=SUBMIT)


def refused(admin: psycopg.Connection[Any], marker: str) -> tuple[str, bytes, str | None] | None:
    """The refused submission whose body or reason holds the marker: reason, body, tenant."""
    return admin.execute(
        "select reason, body, tenant from agentq.refused_submission"
        " where position(%s in body) > 0 or reason like %s order by submission_id desc limit 1",
        (marker.encode(), f"%{marker}%"),
    ).fetchone()


def dead(broker: redis.Redis, settings: Settings) -> list[dict[str, Any]]:
    """The messages in the dead letter queue of submissions."""
    raws: list[bytes] = broker.lrange(settings.key_prefix + SUBMIT_DEAD, 0, -1)  # type: ignore[assignment]
    return [json.loads(base64.b64decode(json.loads(raw)["body"])) for raw in raws]


def serves_still(producer: Client, tenant: str, fleet: Fleet) -> None:
    """The worker lives, and a session runs through it."""
    session = producer.start("count", tenant=tenant, input={"until": 2})
    try:
        assert session.wait(timeout=10).result == 2
        assert all(worker.alive for worker in fleet if not worker.dismissed)
    except (AssertionError, WaitTimeout):
        log = "".join(worker.log[-3000:] for worker in fleet if not worker.dismissed)
        fleet.replace()  # so that the next test has one
        pytest.fail(f"the worker does not serve any more:\n{log}")


# ── work ─────────────────────────────────────────────────────────────────────


def test_a_running_step_is_cancelled(shared_fleet: Fleet, producer: Client, tenant: str) -> None:
    """
    Within a heartbeat, on a worker that somebody else started.
    """
    session = producer.start("wait", tenant=tenant, input={"seconds": 60})
    until(lambda: session.steps()[0].state == "running", 15)
    began = time.monotonic()
    session.cancel("enough")
    until(lambda: session.steps()[0].state == "cancelled", 10)
    assert time.monotonic() - began < 5


def test_a_start_in_somebodys_transaction_runs_by_itself(
    shared_fleet: Fleet, producer: Client, settings: Settings, tenant: str
) -> None:
    """
    Nobody publishes for it; the relay finds what was committed.
    """
    with psycopg.connect(settings.database_url) as connection:
        session = producer.start("count", tenant=tenant, input={}, connection=connection)
    assert session.wait(timeout=15).result == 3


def test_a_wiped_broker_loses_nothing(
    shared_fleet: Fleet, producer: Client, broker: redis.Redis, settings: Settings, tenant: str
) -> None:
    """
    I4: every key of this fleet is deleted again and again while sessions run; all of them end.
    """
    sessions = producer.start_many("count", tenant=tenant, items=[({"until": 20}, f"w{n}") for n in range(30)])
    wipes = 0
    while any(producer.sessions.state(tenant, uuid.UUID(s.id)) == "running" for s in sessions) and wipes < 8:
        if keys := list(broker.scan_iter(f"{settings.key_prefix}*")):
            broker.delete(*keys)
        wipes += 1
        time.sleep(0.1)
    assert wipes
    assert set(producer.wait_all(sessions, timeout=60).values()) == {"done"}
    assert {session.view().result for session in sessions} == {20}


# ── submissions ──────────────────────────────────────────────────────────────


BAD = [
    ({"agent": "nobody"}, "no agent 'nobody'"),
    ({"tenant": "nobody-here"}, "no tenant 'nobody-here'"),
    ({"tenant": "Not A Name"}, "tenant name"),
    ({"tenant": "zero\0"}, "tenant name"),
    ({"tenant": "half\ud800"}, "tenant name"),
    ({"tenant": {"a": 1}}, "tenant name"),
    ({"input": {"until": "many"}}, "until"),
    ({"input": [1]}, "a mapping or a state model"),
    ({"input": None}, "a mapping or a state model"),
    ({"input": {"until": 3, "half": "\ud800"}, "key": "half \ud800"}, "session key"),
    ({"key": None}, "needs key"),
    ({"key": ["a"]}, "session key"),
    ({"version": [1]}, "version"),
    ({"version": {}}, "version"),
    ({"priority": "high"}, "priority"),
    ({"deadline": [1]}, "duration"),
    ({"surprise": 1}, "a submission has no surprise"),
    ({"self": 1}, "self"),
]


@pytest.mark.parametrize(("change", "words"), BAD, ids=[ascii(change)[:40] for change, _ in BAD])
def test_a_bad_submission_is_kept_with_its_reason(
    shared_fleet: Fleet,
    celery: Celery,
    admin: psycopg.Connection[Any],
    broker: redis.Redis,
    settings: Settings,
    tenant: str,
    change: dict[str, Any],
    words: str,
) -> None:
    """
    As a row, with the body that came, and as a message in `agentq.submit.dead`; it starts nothing.
    """
    marker = f"marker-{uuid.uuid4().hex}"
    asked = {"agent": "count", "tenant": tenant, "input": {"note": marker}, "key": marker} | change
    if marker not in json.dumps(asked):
        asked["input"] = {"note": marker}
        asked["key"] = asked["key"] if "key" in change else marker
    celery.send_task("agentq.submit", kwargs=asked, queue=SUBMIT)

    found = until(lambda: refused(admin, marker), 15, "the submission is kept")
    assert words in found[0]
    assert marker.encode() in found[1]
    until(lambda: [message for message in dead(broker, settings) if marker in message["body"]], 5)
    assert all(worker.alive for worker in shared_fleet if not worker.dismissed)


def test_positional_arguments_are_kept_too(
    shared_fleet: Fleet, celery: Celery, admin: psycopg.Connection[Any], tenant: str
) -> None:
    """
    A submission that Celery itself would refuse does not vanish with a stack trace.
    """
    marker = f"marker-{uuid.uuid4().hex}"
    celery.send_task("agentq.submit", args=[marker, tenant], queue=SUBMIT)
    assert "named arguments only" in until(lambda: refused(admin, marker), 15)[0]


def test_a_token_is_seen_by_nobody_but_the_door(
    shared_fleet: Fleet, producer: Client, celery: Celery, admin: psycopg.Connection[Any]
) -> None:
    """
    Sent as a header or as an argument: what workers log and tell Flower of the task has neither it nor the input.
    """
    tenant = new_tenant(admin)  # its first token closes its door
    token = producer.tokens.create("a shop", tenants=[tenant], reason="a test").token
    told: list[Any] = []
    marker = uuid.uuid4().hex
    with celery.connection_for_read() as connection:
        receiver = celery.events.Receiver(connection, handlers={"*": told.append})
        consumer = threading.Thread(target=lambda: receiver.capture(limit=None, timeout=90, wakeup=True), daemon=True)
        with contextlib.suppress(TimeoutError, OSError):
            consumer.start()
            asked = {"agent": "count", "tenant": tenant, "input": {"until": 1, "note": marker}}
            until(
                lambda: (
                    celery.send_task(
                        "agentq.submit", kwargs=asked | {"key": "1"}, queue=SUBMIT, headers={"agentq_token": token}
                    ),
                    submit(celery, **asked, key="2", token=token),
                    [event for event in told if event.get("name") == "agentq.submit"],
                )[-1],
                60,
                "workers tell of submissions",
            )
            receiver.should_stop = True
    until(lambda: len(producer.list(tenant=tenant)) == 2, 60, "both are started")
    for row in producer.list(tenant=tenant):
        producer.get(tenant, str(row.session_id)).wait(timeout=60)
    # Others' submissions may still be on their way.
    received = [event for event in told if event.get("name") == "agentq.submit" and tenant in event["kwargs"]]
    assert received
    assert all(event["kwargs"].startswith(f"tenant={tenant} agent=count key=") for event in received)
    seen = json.dumps(told, default=str) + "".join(worker.log for worker in shared_fleet)
    assert token not in seen
    assert marker not in seen


# ── garbage ──────────────────────────────────────────────────────────────────


def envelope(**more: Any) -> dict[str, Any]:
    """A message as kombu writes it."""
    identity = str(uuid.uuid4())
    body = base64.b64encode(json.dumps([[], {}, {}]).encode()).decode()
    return {
        "body": body,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": "agentq.submit", "id": identity, "root_id": identity, "argsrepr": "()"},
        "properties": {
            "correlation_id": identity,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": SUBMIT},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    } | more


def garbage(marker: str) -> dict[str, bytes]:
    """Things that have no business in a queue."""
    text = base64.b64encode(f"not json {marker}".encode()).decode()
    headers = {**envelope()["headers"], "task": f"no.such.task.{marker}"}
    nested = base64.b64encode(b"[" * 100_000 + marker.encode()).decode()
    return {
        "text": f"garbage {marker}".encode(),
        "bytes": b"\xff\xfe\x00" + marker.encode(),
        "list": json.dumps([marker]).encode(),
        "object": json.dumps({"what": marker}).encode(),
        "string": json.dumps(marker).encode(),
        "nested": (b"[" * 2000) + marker.encode(),
        "half an envelope": json.dumps({"body": marker}).encode(),
        "no properties": json.dumps({**envelope(), "properties": {}, "note": marker}).encode(),
        "odd properties": json.dumps({**envelope(), "properties": marker}).encode(),
        "garbage body": json.dumps(envelope(body=text)).encode(),
        "body that is no base64": json.dumps(envelope(body=f"%%% {marker}")).encode(),
        "pickle": json.dumps(envelope(body=text, **{"content-type": "application/x-python-serialize"})).encode(),
        "unknown content": json.dumps(envelope(body=text, **{"content-type": "image/png"})).encode(),
        "nested body": json.dumps(envelope(body=nested)).encode(),
        "unknown task": json.dumps(envelope(headers=headers)).encode(),
        "no task": json.dumps(envelope(headers={"note": marker})).encode(),
    }


@pytest.mark.parametrize("queue", ["submit", "tenant"])
@pytest.mark.parametrize("kind", garbage("x"))
def test_garbage_is_kept_and_the_worker_lives(
    shared_fleet: Fleet,
    producer: Client,
    admin: psycopg.Connection[Any],
    broker: redis.Redis,
    settings: Settings,
    tenant: str,
    kind: str,
    queue: str,
) -> None:
    """
    Whatever somebody pushes into a queue: it is kept with a reason, the worker goes on, and no log line shows it.
    """
    marker = f"marker-{uuid.uuid4().hex}"
    name = SUBMIT if queue == "submit" else tenant_queue(tenant)
    # An envelope that says that it came through another queue is believed, as Celery believes it.
    body = garbage(marker)[kind].replace(f'"routing_key": "{SUBMIT}"'.encode(), f'"routing_key": "{name}"'.encode())
    admin.execute("delete from agentq.poison_message where queue = %s", (name,))
    before = admin.execute("select coalesce(max(submission_id), 0) from agentq.refused_submission").fetchone()
    assert before is not None

    broker.lpush(settings.key_prefix + name, body)
    serves_still(producer, tenant, shared_fleet)

    kept = until(
        lambda: admin.execute(
            "select reason, body from agentq.refused_submission where submission_id > %s"
            " union all select reason, body from agentq.poison_message"
            " where queue = %s",
            (*before, name),
        ).fetchall(),
        10,
        "it is kept",
    )
    assert len(kept) == 1
    assert kept[0][0]
    if queue == "tenant":
        assert name in {one.queue for one in producer.dead_letters.poison(tenant=tenant)}
    assert all(
        f"garbage {marker}" not in worker.log and f"not json {marker}" not in worker.log for worker in shared_fleet
    )
