"""The publisher: wake-ups of ids alone, in batches, never insisting."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from agentq.broker.connection import connect, transport_options
from agentq.broker.envelope import step_message
from agentq.broker.publisher import Publisher
from agentq.broker.queues import QUARANTINE, carries_wakes, dead_queue, tenant_of, tenant_queue
from agentq.errors import InvalidInput
from agentq.settings import Settings
from agentq.step import StepRef, new_id
from agentq.verdicts import Wake


def wake(tenant: str, **more: Any) -> Wake:
    facts: dict[str, Any] = {"session_id": new_id(), "step_id": new_id(), "name": "look_up", "quarantine": False}
    return Wake(tenant, **facts | {"epoch": 3} | more)


@pytest.fixture
def publisher(settings: Settings) -> Iterator[Publisher]:
    publisher = Publisher(lambda: connect(settings))
    yield publisher
    publisher.close()


def held(broker: redis.Redis, settings: Settings, queue: str) -> list[bytes]:
    """What waits in a queue, as the broker has it."""
    return list(broker.lrange(settings.key_prefix + queue, 0, -1))  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2, 450])
def test_wake_ups_arrive_once_each(
    publisher: Publisher, broker: redis.Redis, settings: Settings, tenant: str, count: int
) -> None:
    """
    One, a batch, or more than a batch.
    """
    publisher.send([wake(tenant) for _ in range(count)])
    assert publisher.flush(10)
    assert len(held(broker, settings, tenant_queue(tenant))) == count == publisher.depth(tenant_queue(tenant))


def test_a_message_holds_ids_and_nothing_else(
    publisher: Publisher, broker: redis.Redis, settings: Settings, tenant: str
) -> None:
    """
    The law: JSON under a kilobyte of payload, no prompt, no pickle; names only for people.
    """
    sent = wake(tenant)
    publisher.send([sent])
    publisher.flush()
    [raw] = held(broker, settings, tenant_queue(tenant))
    envelope = json.loads(raw)
    args, kwargs, _ = json.loads(base64.b64decode(envelope["body"]))
    assert args == []
    assert kwargs == {
        "tenant": tenant, "session": str(sent.session_id), "step": str(sent.step_id), "epoch": 3,
    }  # fmt: skip
    assert envelope["content-type"] == "application/json"
    assert len(base64.b64decode(envelope["body"])) < 1024
    assert len(raw) < 2048
    assert StepRef.from_message(kwargs) == StepRef(tenant, sent.session_id, sent.step_id, 3)


def test_suspects_go_to_quarantine(publisher: Publisher, broker: redis.Redis, settings: Settings, tenant: str) -> None:
    """
    Not to their tenant's queue.
    """
    suspect = wake(tenant, quarantine=True)
    publisher.send([suspect])
    publisher.flush()
    assert publisher.depth(tenant_queue(tenant)) == 0
    assert any(str(suspect.step_id).encode() in raw for raw in held(broker, settings, QUARANTINE))
    broker.delete(settings.key_prefix + QUARANTINE)


def test_every_key_has_the_prefix(publisher: Publisher, broker: redis.Redis, settings: Settings, tenant: str) -> None:
    """
    Two fleets share one broker by their prefixes.
    """
    publisher.send([wake(tenant), wake(tenant)])
    publisher.flush()
    keys = list(broker.scan_iter(f"*{tenant}*"))
    assert keys
    assert all(key.startswith(settings.key_prefix.encode()) for key in keys)


def test_wake_ups_do_not_wait_for_anything_else(
    publisher: Publisher, broker: redis.Redis, settings: Settings, tenant: str
) -> None:
    """
    A thousand notices of dead letters of one tenant are in no step's way: what else is asked of the broker, and
    whoever asks it, stands in another line.
    """
    publisher.send([wake(tenant)])  # from here on they go out in their sender's own thread
    assert publisher.flush(10)
    with publisher._others.lock:  # somebody is at it, for as long as this block lasts
        publisher.send([wake(tenant)])
        publisher.send([wake(tenant), wake(tenant)])
        assert publisher.flush(10)
        assert len(held(broker, settings, tenant_queue(tenant))) == 4


def test_many_messages_of_another_kind_arrive_with_their_headers(
    publisher: Publisher, broker: redis.Redis, settings: Settings, tenant: str
) -> None:
    """
    In a batch, each with its own.
    """
    queue = dead_queue(tenant)
    publisher.declare(queue)
    publisher.publish(queue, [({"letter": number}, {"class": "permanent"}) for number in range(50)])
    assert publisher.depth(queue) == 50
    assert [json.loads(raw)["headers"]["class"] for raw in held(broker, settings, queue)] == ["permanent"] * 50


def test_a_connection_that_breaks_is_opened_anew(
    publisher: Publisher, broker: redis.Redis, settings: Settings, tenant: str
) -> None:
    """
    What is sent after the break arrives.
    """
    publisher.send([wake(tenant)])
    publisher.flush()
    for client in broker.client_list():
        if client["id"] != str(broker.client_id()):
            broker.client_kill_filter(_id=client["id"])
    for _ in range(3):
        publisher.send([wake(tenant)])
        publisher.flush()
    assert publisher.depth(tenant_queue(tenant)) >= 3


@pytest.mark.parametrize(
    "ids",
    [
        {},
        {"tenant": "acme"},
        {"tenant": "Not A Name", "session": str(new_id()), "step": str(new_id())},
        {"tenant": "acme", "session": "1", "step": str(new_id())},
        {"tenant": "acme", "session": str(new_id()), "step": None},
        {"tenant": "acme", "session": [1], "step": str(new_id())},
        {"tenant": "acme", "session": str(new_id()), "step": str(new_id()), "epoch": "x"},
        {"tenant": "*", "session": str(new_id()), "step": str(new_id())},
    ],
    ids=range(8),
)
def test_forged_ids_are_refused(ids: dict[str, Any]) -> None:
    """
    A message that names nothing is an error of one kind, never a crash of another.
    """
    with pytest.raises(InvalidInput, match="needs tenant, session and step ids"):
        StepRef.from_message(ids)


def test_queues_and_tenants_name_each_other() -> None:
    """
    A tenant's queue is its own, and the fleet's queues are no tenant's.
    """
    assert tenant_of(tenant_queue("acme")) == "acme"
    assert tenant_of(QUARANTINE) is None
    assert tenant_queue("quarantine") != QUARANTINE
    assert tenant_of("agentq.shard.3") is None
    assert carries_wakes("agentq.shard.3")
    assert carries_wakes("agentq.shard.premium.3")


def test_flower_sees_names_and_no_payload(tenant: str) -> None:
    """
    The only words beside the ids are the tenant's, the step's and the session's names.
    """
    sent = wake(tenant)
    _, headers, _ = step_message(sent)
    assert headers["kwargsrepr"] == f"tenant={tenant} step=look_up session={sent.session_id}"
    assert headers["argsrepr"] == "()"


def test_rabbitmq_gets_no_redis_options(settings: Settings) -> None:
    """
    Options of one transport are not handed to another.
    """
    assert transport_options(settings)["global_keyprefix"] == settings.key_prefix
    assert transport_options(settings.model_copy(update={"broker_url": "amqp://localhost"})) == {}
