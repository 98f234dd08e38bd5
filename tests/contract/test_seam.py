"""What agentq asks of a broker, whichever it is: messages out, depth, boards, queues that come and go."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from amqp.exceptions import PreconditionFailed

from agentq.agents.registry import load_agents
from agentq.broker.connection import connect
from agentq.broker.publisher import Publisher
from agentq.broker.queues import DEAD_MARK, QUARANTINE, SUBMIT, SUBMIT_DEAD, dead_queue, declared, tenant_queue
from agentq.broker.rates import redis_rates
from agentq.engine import InFlight
from agentq.errors import BrokerUnavailable
from agentq.relay.letterbox import Letterbox
from agentq.settings import Settings
from agentq.step import StepRef, new_id
from agentq.store.dead_letters import DeadLetterStore
from agentq.store.pool import Store
from agentq.store.redrives import Redrives
from agentq.submissions import Submissions
from agentq.verdicts import Wake
from tests.conftest import new_tenant
from tests.support.brokers import Broker, RabbitBroker
from tests.support.hands import Hands
from tests.support.until import until


@pytest.fixture
def tenant(admin: psycopg.Connection[Any]) -> str:
    """A tenant of the test's own: its queue is not there yet."""
    return new_tenant(admin)


@pytest.fixture
def rabbit(broker: Broker) -> RabbitBroker:
    """For what only RabbitMQ has."""
    if not isinstance(broker, RabbitBroker):
        pytest.skip("Valkey has no such thing")
    return broker


def wake(tenant: str, **more: Any) -> Wake:
    facts: dict[str, Any] = {"session_id": new_id(), "step_id": new_id(), "name": "look_up", "quarantine": False}
    return Wake(tenant, **facts | {"epoch": 3} | more)


def ids(message: dict[str, Any]) -> dict[str, Any]:
    """The ids that a wake-up carries."""
    _, kwargs, _ = json.loads(message["body"])
    found: dict[str, Any] = kwargs
    return found


# ── messages ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [1, 2, 450])
def test_wake_ups_arrive_once_each_and_in_order(publisher: Publisher, broker: Broker, tenant: str, count: int) -> None:
    """
    One, a batch, or more than a batch; into a queue that nobody has declared.
    """
    sent = [wake(tenant) for _ in range(count)]
    publisher.send(sent)
    assert publisher.flush(30)
    queue = tenant_queue(tenant)
    assert publisher.depth(queue) == count
    assert [ids(one)["step"] for one in broker.take(queue)] == [str(one.step_id) for one in sent]
    assert publisher.depth(queue) == 0


def test_a_message_holds_ids_and_nothing_else(publisher: Publisher, broker: Broker, tenant: str) -> None:
    """
    The law: JSON under a kilobyte, no prompt, no pickle; names only for people.
    """
    sent = wake(tenant)
    publisher.send([sent])
    publisher.flush()
    [message] = broker.take(tenant_queue(tenant))
    assert StepRef.from_message(ids(message)) == StepRef(tenant, sent.session_id, sent.step_id, 3)
    assert set(ids(message)) == {"tenant", "session", "step", "epoch"}
    assert message["content_type"] == "application/json"
    assert message["headers"]["kwargsrepr"] == f"tenant={tenant} step=look_up session={sent.session_id}"
    assert len(message["body"]) < 1024


def test_suspects_go_to_quarantine(publisher: Publisher, broker: Broker, tenant: str) -> None:
    """
    Not to their tenant's queue.
    """
    suspect = wake(tenant, quarantine=True)
    publisher.send([suspect])
    publisher.flush()
    assert publisher.depth(tenant_queue(tenant)) == 0
    assert str(suspect.step_id) in {ids(one)["step"] for one in broker.take(QUARANTINE)}


def test_a_queue_that_was_removed_comes_back_with_the_next_message(
    publisher: Publisher, broker: Broker, tenant: str
) -> None:
    """
    Also within a batch for queues that are there.
    """
    other = f"{tenant}-x"
    publisher.send([wake(tenant), wake(other)])
    publisher.flush()
    publisher.remove(tenant_queue(tenant))
    assert not broker.has(tenant_queue(tenant))
    publisher.remove(tenant_queue(tenant))  # twice does no harm

    publisher.send([wake(other), wake(tenant), wake(other)])
    publisher.flush()

    assert publisher.depth(tenant_queue(tenant)) == 1
    assert publisher.depth(tenant_queue(other)) == 3


@pytest.mark.parametrize("made_by", ["a wake-up", "a message of another kind", "its declaration"])
def test_who_listens_hears_of_the_end_of_a_queue_that_comes_back_at_once(
    rabbit: RabbitBroker, publisher: Publisher, tenant: str, made_by: str
) -> None:
    """
    RabbitMQ forgets the listener of a queue whose name is taken again before it has told of the end: the new queue
    gives messages to a listener that never gets them. So whoever makes a queue waits a moment.
    """
    queue, other = tenant_queue(tenant), tenant_queue(f"{tenant}-x")
    publisher.send([wake(tenant), wake(f"{tenant}-x")])
    publisher.flush()
    publisher.declare(other)  # every line is open: what follows takes no longer than it must
    ended: list[str] = []
    with rabbit.listen(queue, ended.append) as listening:
        rabbit.delete(queue)
        match made_by:
            case "a wake-up":
                publisher.send([wake(tenant)])
                publisher.flush()
            case "a message of another kind":
                publisher.publish(queue, [({}, {})])
            case _:
                publisher.declare(queue)
        until(lambda: ended or rabbit.heard(listening), 10, "the listener is told")
    assert rabbit.has(queue)
    assert rabbit.listeners(queue) == 0, "nobody whom RabbitMQ believes to listen"


def test_a_question_about_a_queue_that_is_not_there_disturbs_nothing(
    publisher: Publisher, broker: Broker, tenant: str
) -> None:
    """
    It holds nothing, and what is sent next arrives.
    """
    for _ in range(3):
        assert publisher.depth(f"agentq.t.{tenant}-nobody") == 0
        publisher.purge(f"agentq.t.{tenant}-nobody")
        publisher.send([wake(tenant)])
        publisher.flush()
    assert publisher.depth(tenant_queue(tenant)) == 3
    publisher.purge(tenant_queue(tenant))
    assert publisher.depth(tenant_queue(tenant)) == 0


def test_messages_outlive_the_broker_and_connections_are_made_anew(
    publisher: Publisher, broker: Broker, tenant: str
) -> None:
    """
    Stopped, started: what it held is there; what is sent while it is away is nobody's error.
    """
    publisher.send([wake(tenant) for _ in range(20)])
    publisher.flush()
    broker.stop()  # not killed: RabbitMQ forgets what was in a queue that is a second old
    try:
        publisher.send([wake(tenant)])
        assert publisher.flush(30)
        with pytest.raises(BrokerUnavailable):
            publisher.depth(tenant_queue(tenant))
    finally:
        broker.start()
    until(lambda: publisher.depth(tenant_queue(tenant)) == 20, 15, "what it held is there")
    publisher.send([wake(tenant)])
    publisher.flush()
    assert publisher.depth(tenant_queue(tenant)) == 21


def test_a_queue_that_lost_its_leader_is_made_anew(rabbit: RabbitBroker, publisher: Publisher, tenant: str) -> None:
    """
    One that was declared a moment before RabbitMQ was killed takes nothing afterwards, for ever: a tenant's end.
    """
    queue = tenant_queue(tenant)
    publisher.send([wake(tenant)])
    publisher.flush()
    rabbit.kill()
    rabbit.start()

    def arrives() -> bool:
        publisher.send([wake(tenant)])  # as the relay does, every other second
        publisher.flush(40)
        return publisher.depth(queue) > 0

    assert until(arrives, 60, "it takes messages again")


def test_a_message_that_is_not_taken_is_told(
    rabbit: RabbitBroker, publisher: Publisher, tenant: str, caplog: pytest.LogCaptureFixture
) -> None:
    """
    A queue that refuses: who published one message learns it, who sent wake-ups does not, and the log does.
    """
    caplog.set_level("WARNING", logger="agentq.broker")  # which importing a chaos run silences
    queue = f"agentq.t.{tenant}"
    refusing = {"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"}
    rabbit.declare(queue, **refusing)

    def told() -> str:
        try:
            publisher.publish(queue, [({}, {})])
        except BrokerUnavailable as error:
            return str(error)
        return ""

    assert "refused" in until(told, 10, "the bound, which is kept with a delay")

    def told_in_the_log() -> bool:
        publisher.send([wake(tenant)])  # each connection learns of the bound by itself, after its first message
        assert publisher.flush()
        return "the relay will send them" in caplog.text

    assert until(told_in_the_log, 10, "the log tells of it")


def test_queues_are_quorum_queues(rabbit: RabbitBroker, publisher: Publisher, tenant: str) -> None:
    """
    All of them, however they came about: RabbitMQ refuses a declaration that differs.
    """
    publisher.send([wake(tenant), wake(tenant, quarantine=True)])
    publisher.flush()
    publisher.publish(dead_queue(tenant), [({}, {})])
    publisher.declare(SUBMIT)
    for name in (tenant_queue(tenant), QUARANTINE, dead_queue(tenant), SUBMIT):
        with pytest.raises(PreconditionFailed):
            rabbit.declare(name)
        rabbit.declare(name, **declared(name).queue_arguments)
    # As a foreign Celery client does with task_create_missing_queue_type="quorum".
    rabbit.declare(SUBMIT, **{"x-queue-type": "quorum"})
    assert publisher.depth(tenant_queue(tenant)) == 1


def test_a_queue_with_a_listener_is_not_removed(rabbit: RabbitBroker, publisher: Publisher, tenant: str) -> None:
    """
    As soon as nobody listens it is.
    """
    queue = tenant_queue(tenant)
    publisher.send([wake(tenant)])
    publisher.flush()
    with rabbit.consume(queue):
        publisher.remove(queue)
        assert rabbit.has(queue)

    def removed() -> bool:
        publisher.remove(queue)
        return not rabbit.has(queue)

    until(removed, 10, "it is removed once the broker has noticed that the listener left")


def test_a_queue_of_another_kind_is_named(rabbit: RabbitBroker, publisher: Publisher, tenant: str) -> None:
    """
    Somebody declared it first, as a classic one: the error says what is the matter, and nothing else breaks.
    """
    rabbit.declare(f"agentq.t.{tenant}.dead")
    with pytest.raises(BrokerUnavailable, match="of another kind"):
        publisher.declare(f"agentq.t.{tenant}.dead")
    publisher.send([wake(tenant)])
    publisher.flush()
    assert publisher.depth(tenant_queue(tenant)) == 1


# ── dead letters and refused submissions ─────────────────────────────────────


@dataclass
class Box:
    """The letterbox on this broker."""

    round: Any
    hands: Hands
    now: float = 1000.0


@pytest.fixture
def box(store: Store, tenant: str, publisher: Publisher, admin: psycopg.Connection[Any]) -> Iterator[Box]:
    hands = Hands(store, tenant)
    admin.execute("update agentq.dead_letter set announced = true where not announced and tenant <> %s", (tenant,))
    box = Box(None, hands)
    letters = Letterbox(DeadLetterStore(store), Redrives(store), publisher, messages_max=5, clock=lambda: box.now)
    box.round = letters.round
    yield box
    hands.close()


def test_dead_letters_are_on_the_board_also_after_a_wipe(
    box: Box, broker: Broker, publisher: Publisher, tenant: str
) -> None:
    """
    I4: each open letter once, at most as many as the board takes, and all of them anew on an empty broker.
    """
    for _ in range(7):
        box.hands.settle(box.hands.begin(), "dead")
    for _ in range(2):
        box.round()
        box.now += 60
    assert publisher.depth(dead_queue(tenant)) == 5
    assert publisher.depth(DEAD_MARK) == 1
    broker.wipe()
    assert not broker.has(dead_queue(tenant))
    with contextlib.suppress(BrokerUnavailable):  # the round that finds its connection gone
        box.round()
    box.now += 60
    box.round()
    board = [json.loads(one["body"]) for one in broker.take(dead_queue(tenant))]
    assert len({one["letter"] for one in board}) == len(board) == 5
    assert all(one["tenant"] == tenant and "input" not in one for one in board)


def test_a_refused_submission_is_kept_as_a_row_and_as_a_message(
    settings_there: Settings,
    store: Store,
    publisher: Publisher,
    broker: Broker,
    admin: psycopg.Connection[Any],
    tenant: str,
) -> None:
    """
    With the reason, in both places.
    """
    broker.take(SUBMIT_DEAD)
    agents = load_agents(["tests.support.agents"])
    door = Submissions(settings_there, agents, store, publisher, InFlight())
    door.take((), {"agent": "nobody", "tenant": tenant, "key": "k"})
    row = admin.execute("select reason from agentq.refused_submission where tenant = %s", (tenant,)).fetchone()
    assert row is not None
    assert "no agent 'nobody'" in row[0]
    [message] = broker.take(SUBMIT_DEAD)
    assert json.loads(message["body"])["reason"] == row[0]
    assert "no agent 'nobody'" in message["headers"]["reason"]


# ── where the broker is, and what counts there ───────────────────────────────


def test_a_broker_that_is_not_there_stops_nobody(settings_there: Settings, broker: Broker, tenant: str) -> None:
    """
    What cannot be sent is the relay's; only those who ask about the broker are told that it is away.
    """
    scheme = settings_there.broker_url.partition(":")[0]
    nowhere = settings_there.model_copy(update={"broker_url": f"{scheme}://127.0.0.1:1/0"})
    publisher = Publisher(lambda: connect(nowhere))
    try:
        publisher.send([wake(tenant) for _ in range(3)])
        assert publisher.flush(15)
        with pytest.raises(BrokerUnavailable):
            publisher.depth(tenant_queue(tenant))
        with pytest.raises(BrokerUnavailable):
            publisher.publish(SUBMIT_DEAD, [({}, {})])
    finally:
        publisher.close()


def test_rates_are_counted_in_redis_or_in_postgres(settings_there: Settings, broker: Broker) -> None:
    """
    RabbitMQ counts nothing, so there is no counter beside Postgres.
    """
    assert (redis_rates(settings_there) is None) == isinstance(broker, RabbitBroker)


@pytest.mark.parametrize("words", ["user or password", "no such vhost"])
def test_a_wrong_login_or_vhost_is_named(rabbit: RabbitBroker, settings_there: Settings, words: str) -> None:
    """
    Not as a broker that is away; and no password is told.
    """
    head, _, host = rabbit.url.partition("@")
    url = f"{head}wrong@{host}" if "password" in words else f"{head}@{host.rstrip('/')}/nope"
    publisher = Publisher(lambda: connect(settings_there.model_copy(update={"broker_url": url})))
    try:
        with pytest.raises(BrokerUnavailable, match=words) as told:
            publisher.depth("agentq.submit")
        assert head.rpartition(":")[2] not in str(told.value)
    finally:
        publisher.close()
