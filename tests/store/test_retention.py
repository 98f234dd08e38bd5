"""Retention: what is over goes, what it cost stays, and what lives is left alone."""

from __future__ import annotations

import re
import threading

import psycopg
import pytest

from agentq.errors import InvalidInput, NotAllowed
from agentq.store.budgets import Budgets
from agentq.store.operators import Operators
from agentq.store.pool import Store
from agentq.store.queries import load
from agentq.store.schema import TENANT_TABLES
from agentq.store.turn import Turn
from agentq.verdicts import Charge, Extras
from tests.conftest import new_tenant
from tests.store.test_budgets import wanted
from tests.store.test_schema import fill
from tests.support.hands import Hands, step
from tests.support.until import until

# Where what a session did is written down. A table with a session in it belongs here, unless it is about money.
OF_SESSIONS = {table.name for table in TENANT_TABLES if "session_id" in table.c} - {"reservation", "budget_alert"}
OF_SESSIONS |= {"notice", "poison_message", "refused_submission", "memory"}

WHO = {"operator": "test", "reason": "a test"}


def age(admin: psycopg.Connection, hands: Hands, days: int) -> None:
    admin.execute(
        "update agentq.session set created_at = created_at - make_interval(days => %s),"
        " ended_at = ended_at - make_interval(days => %s) where tenant = %s",
        (days, days, hands.tenant),
    )


def spend(hands: Hands, claim: object) -> Extras:
    Budgets(hands.store).reserve(claim, wanted(claim))  # type: ignore[arg-type]
    return Extras(charges=(Charge(wanted(claim).reservation_id, "charged", 7, 2, 0, 1),))  # type: ignore[arg-type]


def test_ended_sessions_go_and_their_charges_stay(hands: Hands, store: Store, admin: psycopg.Connection) -> None:
    """
    Only beyond the tenant's days, only what has ended; the money still adds up.
    """
    old = hands.begin()
    hands.settle(old, "end", extras=spend(hands, old))
    live = hands.begin()
    age(admin, hands, 10)
    young = hands.begin()
    hands.settle(young, "end")
    operators = Operators(store)
    assert hands.tenant not in operators.remove_expired(10)
    operators.change_tenant(hands.tenant, retention_days=9, **WHO)

    assert operators.remove_expired(10)[hands.tenant] == 1

    left = {row["session_id"] for row in hands.rows("select session_id from agentq.session")}
    assert left == {live.ref.session_id, young.ref.session_id}
    assert Budgets(store).check(hands.tenant) == []
    assert [row.charged_micros for row in Budgets(store).ledger(hands.tenant, old.ref.session_id)] == [7]


def test_tenants_take_turns_and_who_has_more_comes_again(hands: Hands, store: Store, admin: psycopg.Connection) -> None:
    """
    However many tenants keep theirs for some days only, so many are looked at each time, and all of them in the end.
    """
    operators = Operators(store)
    names = [new_tenant(admin) for _ in range(5)]
    for name in (*names, hands.tenant):
        operators.change_tenant(name, retention_days=1, **WHO)
    for _ in range(3):
        hands.settle(hands.begin(), "end")
    age(admin, hands, 10)
    turn, looks = Turn(tenants=2), []
    removed: dict[str, int] = {}
    while hands.tenant not in removed:
        looks.append(turn.parameters(2)["after"])
        removed = operators.remove_expired(2, turn)
        assert len(looks) < 100
    assert len(looks) > 1 or looks == [""]
    assert removed[hands.tenant] == 2
    assert turn.parameters(2)["again"] == [hands.tenant]
    assert operators.remove_expired(2, turn)[hands.tenant] == 1, "at once, whoever's turn it is"
    assert turn.parameters(2)["again"] == []
    # And round again.
    hands.settle(hands.begin(), "end")
    age(admin, hands, 10)
    for _ in range(100):
        if operators.remove_expired(2, turn).get(hands.tenant):
            break
    else:
        pytest.fail("its turn did not come again")


def test_a_family_goes_together(hands: Hands, store: Store, admin: psycopg.Connection) -> None:
    """
    A parent that has ended is kept while a child of it lives.
    """
    parent = hands.begin()
    join = step("join", fan=1)
    child = hands.child(join, 0)
    hands.follow(parent, join, children=[child])
    admin.execute(
        "update agentq.session set state = 'failed', failure = '{}', ended_at = now() where session_id = %s",
        (parent.ref.session_id,),
    )
    age(admin, hands, 10)
    operators = Operators(store)
    operators.change_tenant(hands.tenant, retention_days=1, **WHO)
    assert hands.tenant not in operators.remove_expired(10)
    admin.execute(
        "update agentq.session set state = 'failed', failure = '{}', ended_at = created_at where tenant = %s"
        " and ended_at is null",
        (hands.tenant,),
    )
    assert operators.remove_expired(10)[hands.tenant] == 2


def test_a_batch_is_small_whatever_the_number_of_tenants(
    hands: Hands, store: Store, admin: psycopg.Connection, other_tenant: str
) -> None:
    """
    One transaction removes no more than it was told to, of all tenants together; the next ones do the rest.
    """
    operators, other = Operators(store), Hands(store, other_tenant)
    for one in (hands, other):
        for _ in range(4):
            one.settle(one.begin(), "end")
        age(admin, one, 10)
        operators.change_tenant(one.tenant, retention_days=9, **WHO)
    other.close()
    batches = [operators.remove_expired(3) for _ in range(4)]
    assert max(sum(batch.values()) for batch in batches) <= 3
    assert {name: sum(batch.get(name, 0) for batch in batches) for name in (hands.tenant, other_tenant)} == {
        hands.tenant: 4, other_tenant: 4,
    }  # fmt: skip


def test_an_erased_tenant_leaves_its_charges_alone(hands: Hands, store: Store) -> None:
    """
    Every table that holds what its sessions did is empty; what it was charged is kept, and the deed recorded.
    """
    fill(hands)
    operators = Operators(store)
    operators.change_tenant(hands.tenant, state="paused", **WHO)
    found = operators.erase_tenant(hands.tenant, **WHO)
    assert found["removed"] >= 2
    assert {name for name, count in found.items() if count} == {
        "removed", "memories_removed", "reservations",
    }  # fmt: skip
    left = {table for table, rows in hands.everything().items() if rows}
    assert not left & OF_SESSIONS, left & OF_SESSIONS
    looked_at = set(re.findall(r"from agentq\.(\w+)", load("operators")["left"]))
    assert looked_at >= OF_SESSIONS, OF_SESSIONS - looked_at
    [action, *_] = operators.actions(tenant=hands.tenant)
    assert action.action == "tenant erase"
    assert operators.erase_tenant(hands.tenant, **WHO)["removed"] == 0


def test_a_tenant_at_work_is_not_erased(hands: Hands, store: Store) -> None:
    """
    A step that runs would go on calling the world for a session that is gone.
    """
    claim = hands.begin()
    operators = Operators(store)
    operators.change_tenant(hands.tenant, state="paused", **WHO)
    with pytest.raises(InvalidInput, match="1 steps of tenant"):
        operators.erase_tenant(hands.tenant, **WHO)
    hands.settle(claim, "end")
    assert operators.erase_tenant(hands.tenant, **WHO)["removed"] == 1


def test_an_erased_tenant_takes_nothing_new_until_somebody_says_what(hands: Hands, store: Store) -> None:
    """
    What a producer sends meanwhile would be left behind by the erasure, under a new key.
    """
    hands.start()
    operators = Operators(store)
    operators.change_tenant(hands.tenant, state="paused", **WHO)
    operators.erase_tenant(hands.tenant, **WHO)
    with pytest.raises(NotAllowed):
        hands.start()
    operators.change_tenant(hands.tenant, state="active", **WHO)
    with pytest.raises(NotAllowed):
        hands.start()
    operators.change_tenant(hands.tenant, agents=[], **WHO)
    hands.start()


def test_a_start_that_has_not_committed_is_erased_too(hands: Hands, store: Store, admin: psycopg.Connection) -> None:
    """
    It passed the door before the tenant was closed, in a producer's own long transaction.
    """
    operators = Operators(store)
    operators.change_tenant(hands.tenant, state="paused", **WHO)
    found: list[dict[str, int]] = []
    erasing = threading.Thread(target=lambda: found.append(operators.erase_tenant(hands.tenant, **WHO)))
    with hands.store.transaction(hands.tenant) as connection:
        hands.sessions.start([hands.new_session()], create_with=None, on=connection)
        erasing.start()
        waits = "select count(*) from pg_locks where not granted"
        until(lambda: admin.execute(waits).fetchone() != (0,) or not erasing.is_alive(), 10)
    erasing.join(20)
    assert found[0]["removed"] == 1
    assert hands.rows("select session_id from agentq.session") == []
