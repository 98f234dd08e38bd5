"""The letterbox: boards that tell of open letters, standing orders, and poison that waits for Postgres."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import redis

from agentq.broker.connection import connect
from agentq.broker.publisher import Publisher
from agentq.broker.queues import DEAD_MARK, carries_wakes, dead_queue, tenant_of
from agentq.client import Client, Policy, Selection, Terms
from agentq.errors import BrokerUnavailable, StoreUnavailable
from agentq.poison import PoisonKeeper
from agentq.relay.letterbox import Letterbox
from agentq.settings import Settings
from agentq.store.dead_letters import DeadLetterStore
from agentq.store.redrives import Redrives
from agentq.testing import LocalFleet
from tests.conftest import TENANTS
from tests.redrives.conftest import Shop, shop
from tests.support.hands import Hands
from tests.support.until import until

__all__ = ["shop"]


LETTERS_OF = "select distinct tenant from agentq.dead_letter"


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def prefix(settings: Settings, tenant: str) -> str:
    return f"{settings.key_prefix}{tenant}:"


@pytest.fixture
def publisher(settings: Settings, prefix: str) -> Iterator[Publisher]:
    """A publisher whose broker holds nothing of other tests."""
    own = settings.model_copy(update={"key_prefix": prefix})
    made = Publisher(lambda: connect(own))
    yield made
    made.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def box(hands: Hands, publisher: Publisher, clock: Clock, admin: psycopg.Connection[Any]) -> Letterbox:
    admin.execute(
        "update agentq.dead_letter set announced = true where not announced and tenant <> %s", (hands.tenant,)
    )
    return Letterbox(DeadLetterStore(hands.store), Redrives(hands.store), publisher, messages_max=5, clock=clock)


def board(broker: redis.Redis, prefix: str, tenant: str) -> list[dict[str, Any]]:
    """What is on the tenant's board."""
    raws: list[bytes] = broker.lrange(prefix + dead_queue(tenant), 0, -1)  # type: ignore[assignment]
    return [json.loads(base64.b64decode(json.loads(raw)["body"])) for raw in raws]


def bury(hands: Hands, times: int = 1) -> None:
    for _ in range(times):
        hands.settle(hands.begin(), "dead")


def test_a_letter_is_announced_once(
    hands: Hands, box: Letterbox, broker: redis.Redis, prefix: str, clock: Clock
) -> None:
    """
    With ids, cause and class, and no payload.
    """
    bury(hands)
    for _ in range(3):
        box.round()
        clock.now += 60
    [told] = board(broker, prefix, hands.tenant)
    [letter] = DeadLetterStore(hands.store).ls(Selection(tenant=hands.tenant))
    assert (told["letter"], told["cause"], told["class"]) == (str(letter.letter_id), letter.cause, "transient")
    assert set(told) == {
        "letter", "tenant", "session", "step_id", "agent", "step", "class", "cause", "about", "generation", "died_at",
    }  # fmt: skip


def test_a_wiped_broker_is_told_again(
    hands: Hands, box: Letterbox, broker: redis.Redis, prefix: str, clock: Clock
) -> None:
    """
    I4: every open letter, none that was dealt with; what a consumer took away stays away.
    """
    bury(hands, 3)
    box.round()
    assert len(board(broker, prefix, hands.tenant)) == 3
    broker.lpop(prefix + dead_queue(hands.tenant))
    clock.now += 60
    box.round()
    assert len(board(broker, prefix, hands.tenant)) == 2
    keys = list(broker.scan_iter(f"{prefix}*"))
    assert (prefix + DEAD_MARK).encode() in keys
    broker.delete(*keys)
    clock.now += 60
    box.round()
    assert len({told["letter"] for told in board(broker, prefix, hands.tenant)}) == 3


def test_what_was_dealt_with_is_taken_down(
    hands: Hands, box: Letterbox, broker: redis.Redis, prefix: str, clock: Clock, publisher: Publisher
) -> None:
    """
    Within a look; also by a process that starts when nothing is open any more.
    """
    bury(hands, 3)
    box.round()
    store = DeadLetterStore(hands.store)
    first, *_ = store.ls(Selection(tenant=hands.tenant))
    store.discard(Selection(letters=(first.letter_id,)), operator="me", reason="x")
    clock.now += 60
    box.round()
    assert len(board(broker, prefix, hands.tenant)) == 2
    assert str(first.letter_id) not in {told["letter"] for told in board(broker, prefix, hands.tenant)}
    store.discard(Selection(tenant=hands.tenant), operator="me", reason="x")
    Letterbox(store, Redrives(hands.store), publisher, clock=clock).round()
    assert board(broker, prefix, hands.tenant) == []


def test_a_board_is_bounded(hands: Hands, box: Letterbox, broker: redis.Redis, prefix: str, clock: Clock) -> None:
    """
    Of more letters than there is room for, the first are told; once these are dealt with, others are.
    """
    bury(hands, 9)
    box.round()
    clock.now += 60
    box.round()
    told = board(broker, prefix, hands.tenant)
    assert len(told) == 5
    store = DeadLetterStore(hands.store)
    ids = tuple(letter.letter_id for letter in store.ls(Selection(tenant=hands.tenant)))[:6]
    store.discard(Selection(letters=ids), operator="me", reason="x")
    clock.now += 60
    box.round()
    assert len(board(broker, prefix, hands.tenant)) == 3


def test_a_broker_that_is_away_is_told_later(
    hands: Hands, box: Letterbox, broker: redis.Redis, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    No letter counts as announced that was not.
    """
    bury(hands, 3)
    publish, sent = Publisher.publish, []

    def failing(self: Publisher, name: str, *args: Any, **more: Any) -> None:
        if name != DEAD_MARK:
            sent.append(name)
            if len(sent) == 2:
                raise BrokerUnavailable("gone")
        publish(self, name, *args, **more)

    monkeypatch.setattr(Publisher, "publish", failing)
    with pytest.raises(BrokerUnavailable):
        box.round()
    box.round()
    assert len({told["letter"] for told in board(broker, prefix, hands.tenant)}) == 3


def test_what_an_earlier_process_left_is_taken_down(
    hands: Hands, box: Letterbox, broker: redis.Redis, prefix: str, clock: Clock, publisher: Publisher
) -> None:
    """
    Of tenants that have letters, some at each look, and of no others: each look at a board costs the broker a command.
    """
    bury(hands)
    box.round()
    hands.rows("update agentq.dead_letter set state = 'discarded' returning 1")
    letters = DeadLetterStore(hands.store)
    [after] = letters.tenants("", 1)
    assert letters.tenants(after, 10_000) == sorted(letters.tenants(after, 10_000))
    assert hands.tenant in letters.tenants("", 10_000)
    assert set(letters.tenants("", 10_000)) == {row[0] for row in hands.store.query_as("*", LETTERS_OF, {})}, (
        "tenants without letters have no board to look at"
    )

    later = Letterbox(letters, Redrives(hands.store), publisher, messages_max=5, clock=clock, unknown=1)
    for _ in range(len(letters.tenants("", 10_000)) + 1):
        later.round()
        clock.now += 60
    assert board(broker, prefix, hands.tenant) == []


def test_boards_are_nobodys_steps() -> None:
    """
    No worker listens to one, and its messages are not wake-ups.
    """
    assert tenant_of(dead_queue("acme")) is None
    assert not carries_wakes(dead_queue("acme"))
    assert tenant_of("agentq.t.acme") == "acme"


# ── standing orders ──────────────────────────────────────────────────────────


def policy(tenant: str, **more: Any) -> Policy:
    facts: dict[str, Any] = {
        "name": tenant, "selection": {"tenant": tenant}, "quiet_s": 60.0, "canary": 2, "threshold": 1.0,
        "rate_per_s": 4.0, "max_generation": 2, "enabled": True, "operator": "me", "reason": "outages end",
    }  # fmt: skip
    return Policy(**facts | more)


@pytest.fixture
def orders(client: Client, tenant: str) -> Iterator[Callable[..., None]]:
    """Sets a policy for the test's tenant; it is gone afterwards."""
    yield lambda **more: client.dead_letters.set_policy(policy(tenant, **more))
    client.dead_letters.remove_policy(tenant, reason="the test is over")


@pytest.fixture
def order_box(shop: Shop, publisher: Publisher, clock: Clock) -> Letterbox:
    letters = shop.client.dead_letters
    return Letterbox(letters.letters, letters.redrives, publisher, clock=clock)


def rounds(box: Letterbox, clock: Clock, shop: Shop, fleet: LocalFleet, count: int = 12) -> None:
    """That many rounds, a second apart, the fleet at work between."""
    for _ in range(count):
        box.begin_policies()
        box.drive_policies()
        shop.run(fleet)
        clock.now += 1.0


def age(admin: psycopg.Connection[Any], tenant: str, seconds: int) -> None:
    """The tenant's deaths happened so long ago."""
    admin.execute(
        "update agentq.dead_letter set died_at = now() - make_interval(secs => %s) where tenant = %s", (seconds, tenant)
    )


def test_letters_come_back_by_themselves_once_it_is_quiet(
    shop: Shop, local: Callable[..., LocalFleet], orders: Any, order_box: Letterbox, clock: Clock, admin: Any
) -> None:
    """
    Not before; canaries first, then the rest at its rate.
    """
    fleet = local()
    shop.open_letters(fleet, 10)
    shop.down = False
    orders()
    rounds(order_box, clock, shop, fleet, 2)
    assert shop.paid == []
    age(admin, shop.tenant, 61)
    order_box.begin_policies()
    order_box.drive_policies()
    assert sum(letter.canary for letter in shop.letters("redriving")) == 2
    assert len(shop.letters("open")) == 8
    rounds(order_box, clock, shop, fleet, 3)  # the canaries are looked at, the rest is let go, four of it go
    assert len(shop.paid) == 6
    rounds(order_box, clock, shop, fleet)
    assert len(shop.paid) == 10
    [job] = [job for job in shop.client.dead_letters.redrives.recent(50) if job.policy == shop.tenant]
    assert (job.state, job.redriven, job.operator) == ("done", 10, f"policy {shop.tenant}")


def test_a_policy_gives_up_when_it_does_not_help(
    shop: Shop, local: Callable[..., LocalFleet], orders: Any, order_box: Letterbox, clock: Clock, admin: Any
) -> None:
    """
    Canaries that die keep the rest, and start the quiet time anew; generations are capped.
    """
    fleet = local()
    shop.open_letters(fleet, 6)
    orders(quiet_s=3600.0)
    age(admin, shop.tenant, 3601)
    rounds(order_box, clock, shop, fleet)
    assert sorted(letter.generation for letter in shop.letters("open")) == [0, 0, 0, 0, 1, 1]
    rounds(order_box, clock, shop, fleet)
    assert len(shop.letters()) == 8
    for _ in range(8):
        admin.execute(
            "update agentq.redrive_job set ended_at = now() - interval '2 h'"
            " where policy = %s and ended_at is not null",
            (shop.tenant,),
        )
        age(admin, shop.tenant, 3601)
        rounds(order_box, clock, shop, fleet, 6)
    assert {letter.generation for letter in shop.letters("open")} == {2}


def test_a_policy_waits_for_the_breaker(
    shop: Shop, local: Callable[..., LocalFleet], orders: Any, order_box: Letterbox, clock: Clock, admin: Any
) -> None:
    """
    While it is open nothing comes back; once it has closed, without the quiet time.
    """
    fleet, name = local(), shop.tenant[-40:]
    shop.open_letters(fleet, 2)
    shop.down = False
    admin.execute("update agentq.dead_letter set dependency = %s where tenant = %s", (name, shop.tenant))
    orders(selection={"tenant": shop.tenant, "dependency": name})
    admin.execute(
        "insert into agentq.dependency (tenant, name, state, probe_at) values ('*', %s, 'open', now())", (name,)
    )
    try:
        age(admin, shop.tenant, 61)
        rounds(order_box, clock, shop, fleet, 2)
        assert shop.paid == []
        age(admin, shop.tenant, 1)
        admin.execute("update agentq.dependency set state = 'closed', changed_at = now() where name = %s", (name,))
        rounds(order_box, clock, shop, fleet)
        assert len(shop.paid) == 2
    finally:
        admin.execute("delete from agentq.dependency where name = %s", (name,))


def test_a_policy_that_is_off_does_nothing(
    shop: Shop, local: Callable[..., LocalFleet], orders: Any, order_box: Letterbox, clock: Clock, admin: Any
) -> None:
    fleet = local()
    shop.open_letters(fleet, 1)
    orders(enabled=False)
    age(admin, shop.tenant, 3600)
    rounds(order_box, clock, shop, fleet, 3)
    assert len(shop.letters("open")) == 1


def test_two_relays_follow_one_order_once(
    shop: Shop, local: Callable[..., LocalFleet], orders: Any, order_box: Letterbox, publisher: Publisher, clock: Clock,
    admin: Any,
) -> None:  # fmt: skip
    fleet = local()
    shop.open_letters(fleet, 3)
    orders()
    age(admin, shop.tenant, 61)
    letters = shop.client.dead_letters
    other = Letterbox(letters.letters, letters.redrives, publisher, clock=clock)
    for box in (order_box, other):
        box.begin_policies()
        box.drive_policies()
    assert len([job for job in letters.redrives.recent(50) if job.policy == shop.tenant]) == 1
    assert fleet is not None


def test_a_policy_must_say_what_it_means(client: Client, tenant: str) -> None:
    from agentq.errors import InvalidInput

    with pytest.raises(InvalidInput):
        client.dead_letters.set_policy(policy(tenant, selection={}))
    for wrong in ({"canary": 0}, {"threshold": 0.0}, {"rate_per_s": 0.0}, {"name": "Not!"}, {"quiet_s": -1.0}):
        with pytest.raises(InvalidInput):
            policy(tenant, **wrong)
    assert Terms().canary == 0


# ── poison ───────────────────────────────────────────────────────────────────


class AwayStore:
    """Postgres is away for the first few."""

    def __init__(self, fails: int) -> None:
        self.fails, self.kept = fails, []

    def keep_poison(self, **facts: Any) -> int:
        if self.fails:
            self.fails -= 1
            raise StoreUnavailable("away")
        self.kept.append(facts)
        return 1


def test_poison_waits_for_postgres_and_holds_up_nobody() -> None:
    """
    The consumer goes on at once; of a flood that does not fit, the rest is counted.
    """
    store = AwayStore(fails=1)
    keeper = PoisonKeeper(store, body_max_bytes=10)  # type: ignore[arg-type]
    keeper.keep("agentq.t.acme", b"x" * 100, "is no message")
    until(lambda: store.kept, 10, "it is kept")
    [kept] = store.kept
    assert (kept["tenant"], kept["size"], len(kept["body"])) == ("acme", 100, 10)
    store.fails = 10**9
    for number in range(400):
        keeper.keep("agentq.quarantine", str(number).encode(), "x")
    assert keeper.dropped >= 100
    keeper.close()
    assert TENANTS
