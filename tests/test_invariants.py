"""
The law, a test for each invariant. The finer ones stand beside what they test; these say what it comes to.

Which guard each of them hangs on is in `mutations.py`, which takes the guards away one by one.
"""

from __future__ import annotations

import itertools
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from agentq import (
    Agent,
    Branch,
    Context,
    Done,
    Fail,
    Next,
    Permanent,
    Sleep,
    Spawn,
    Transient,
    UnknownEffect,
    effect,
    idempotency_key,
)
from agentq.agents.registry import Registry
from agentq.client import Client
from agentq.errors import FenceLost
from agentq.settings import Settings
from agentq.step import StepRef
from agentq.store.ledger import Ledger
from agentq.testing import LocalFleet
from agentq.verdicts import Extras, Granted, NotGranted, Usage
from tests.support.hands import Hands, at_once, step

Local = Callable[..., LocalFleet]


class Walk(BaseModel):
    """How far a session has come."""

    steps: int = 0


@pytest.fixture
def dies(admin: psycopg.Connection[Any]) -> Callable[[uuid.UUID], None]:
    """Declares a worker process dead, as the relay does after two looks."""

    def die(worker: uuid.UUID) -> None:
        admin.execute(
            "update agentq.worker set state = 'dead', stopped_at = agentq.now() where worker_id = %s", (worker,)
        )

    return die


def walker(registry: Registry, called: Counter[str], *, length: int = 5) -> Agent[Walk]:
    """An agent of so many steps, each with one effect that counts its calls by key."""
    agent = Agent("walker", state=Walk, registry=registry)

    @effect(idempotent=True)
    def tread() -> int:
        called[idempotency_key()] += 1
        return len(called)

    @agent.step(start=True, retries=50)
    def walk(state: Walk, ctx: Context) -> Next | Done:
        ctx.call(tread)
        state.steps += 1
        return Done(state.steps) if state.steps == length else Next(walk, state)

    return agent


def test_i1_one_session_for_a_key_however_it_is_submitted(
    registry: Registry, client: Client, settings: Settings, tenant: str
) -> None:
    """
    Twenty producers, some within transactions of their own, start the same work at the same moment.
    """
    walker(registry, Counter())

    def start() -> str:
        with Client(settings, registry) as producer:
            return producer.start("walker", tenant=tenant, input={}, key="order-1").id

    def start_in_a_transaction() -> str:
        with Client(settings, registry) as producer, psycopg.connect(settings.database_url) as connection:
            return producer.start("walker", tenant=tenant, input={}, key="order-1", connection=connection).id

    ids = at_once(*[start, start_in_a_transaction] * 10)

    assert len(set(ids)) == 1
    assert [row.session_id for row in client.list(tenant=tenant)] == [uuid.UUID(ids[0])]


def test_i2_a_settlement_is_written_whole_or_not_at_all(hands: Hands, admin: psycopg.Connection[Any]) -> None:
    """
    Its last insert is refused: no checkpoint, no message, no usage, no successor, and the step still runs.
    """
    claim = hands.begin()
    before = hands.everything()
    twice = step("follower")
    extras = Extras(messages=((b'{"said":1}', "test/1"),), usage=Usage(1, 2, 3))
    join = step("join", fan=2)
    arms = [step("arm", join_step=join.step_id, branch=0), step("arm", join_step=join.step_id, branch=0)]

    for steps in ((twice, twice), (join, *arms)):
        with pytest.raises(psycopg.errors.UniqueViolation):
            hands.settle(claim, "next", steps=steps, extras=extras)

    assert hands.everything() == before
    hands.settle(claim, "next", steps=(twice,), extras=extras)
    assert [len(hands.everything()[table]) for table in ("checkpoint", "message", "ledger_entry")] == [1, 1, 2]


def test_i3_a_late_worker_writes_nothing(hands: Hands, ledger: Ledger, dies: Callable[[uuid.UUID], None]) -> None:
    """
    Taken for dead while it works; its step was given to another. Whatever it says then is refused.
    """
    zombie = hands.register()
    ref = hands.start()
    hands.admit()
    late = hands.claim(ref, worker=zombie)
    dies(zombie)
    ledger.take_back(100)
    fresh = hands.claim(ref)
    before = hands.everything()

    for closing in ("next", "end", "fail", "retry", "postpone", "dead", "release", "cancelled"):
        with pytest.raises(FenceLost):
            hands.settle(late, closing, steps=(step("follower"),) if closing == "next" else ())

    assert hands.everything() == before
    assert fresh.fence == late.fence + 1
    hands.settle(fresh, "end")


def test_i4_the_broker_is_wiped_at_every_moment(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    Every message is lost before it is delivered; then every one is delivered three times. Nothing runs again.
    """
    called: Counter[str] = Counter()
    walker(registry, called)
    fleet = local()
    wiped, repeated = (client.start("walker", tenant=tenant, input={}, key=key) for key in "ab")

    while wiped.view().state == "running" or repeated.view().state == "running":
        fleet.sent.clear()
        fleet.carry_next(tenant)  # what the relay found missing
        fleet.sent.extend([*fleet.sent, *fleet.sent])

    assert (wiped.view().result, repeated.view().result) == (5, 5)
    assert (len(called), set(called.values())) == (10, {1})


@pytest.mark.parametrize("declared", ["idempotent", "undeclared"])
def test_i5_an_effect_is_repeated_under_its_key_or_not_at_all(
    registry: Registry, client: Client, tenant: str, local: Local, declared: str
) -> None:
    """
    The answer of the call is lost each time: with one key for all attempts, or with one call and a person told.
    """
    keys: list[str] = []
    agent = Agent("payer", state=Walk, registry=registry)

    def pay() -> str:
        keys.append(idempotency_key())
        if len(keys) < 4:
            raise TimeoutError("sent, and no answer")
        return "paid"

    paying = effect(idempotent=True)(pay) if declared == "idempotent" else pay

    @agent.step(start=True, retries=5)
    def work(state: Walk, ctx: Context) -> Done:
        return Done(ctx.call(paying))

    session = client.start("payer", tenant=tenant, input={})
    fleet = local()
    if declared == "idempotent":
        assert fleet.drain(session).result == "paid"
        assert (len(keys), len(set(keys))) == (4, 1)
        return
    with pytest.raises(UnknownEffect):
        fleet.drain(session)
    assert len(keys) == 1


def test_i6_money_is_reserved_before_it_is_spent(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    Twelve calls at once where five can be paid, one of which is cut off and one never sent: never beyond the
    budget, and nothing stays reserved.
    """
    client.budgets.set_price("acme:robot", input_usd=1, output_usd=2, reason="a test")
    client.budgets.set(tenant, cost_usd="0.00025", on_refusal="end", reason="five calls of 50 micros")
    faults: list[Exception | None] = [TimeoutError("sent, and no answer"), ConnectionRefusedError("never sent")]
    made: list[str] = []
    agent = Agent("spender", state=Walk, registry=registry)

    @agent.step(start=True, retries=0)
    def ask(state: Walk, ctx: Context) -> Done:
        with ctx.spend(model="acme:robot", input_tokens=10, max_tokens=20) as call:
            if (fault := faults.pop() if faults else None) is not None:
                raise fault
            made.append(ctx.session_id)
            call.used(input_tokens=10, output_tokens=20)
        return Done("answered")

    sessions = [client.start("spender", tenant=tenant, input={}) for _ in range(12)]
    fleet = local()
    refs = [StepRef(tenant, uuid.UUID(session.id), session.steps()[0].step_id) for session in sessions]
    fleet.ledger.admit(tenant, 100)
    at_once(*[lambda ref=ref: fleet.carry(ref) for ref in refs])

    windows = [row for row in client.budgets.windows(tenant) if row.scope == "tenant"]
    assert {row.reserved_micros for row in windows} == {0}
    assert {row.spent_micros for row in windows} == {50 * (len(made) + 1)}  # the one that was cut off, too
    assert 3 <= len(made) <= 4
    assert client.budgets.check(tenant) == []


def test_i7_every_step_ends(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    Whatever steps do, each session ends in bounded time, and no entry is left that nobody would ever touch.
    """
    agent = Agent("trouble", state=Walk, registry=registry)
    endings: dict[str, Callable[[], Any]] = {
        "raises": lambda: _raise(Transient("again")),
        "refuses": lambda: _raise(Permanent("never")),
        "fails": lambda: Fail("enough"),
        "nonsense": lambda: "neither this nor that",
        "sleeps": lambda: Sleep("3d", then="done"),
        "spawns": lambda: Spawn([Branch("arm", args={"ok": ok}) for ok in (True, False)], then="done"),
        "waits for ever": lambda: Sleep("900d", then="done"),
    }

    @agent.step(start=True, retries=2)
    def begin(state: Walk, ctx: Context) -> Any:
        return endings[list(endings)[state.steps]]()

    @agent.step(retries=1)
    def arm(state: Walk, ctx: Context, *, ok: bool) -> Done:
        return Done(1) if ok else _raise(ConnectionError("the arm broke"))

    @agent.step
    def done(state: Walk, ctx: Context) -> Done:
        return Done("done")

    fleet = local()
    sessions = {
        name: client.start("trouble", tenant=tenant, input={"steps": number}, deadline="30d")
        for number, name in enumerate(endings)
    }
    for session in sessions.values():
        for _ in itertools.repeat(None, 100):
            if session.view().state != "running" or (fleet.carry_next(tenant) is None and not fleet._wait(tenant)):
                break
    ends = {name: session.view() for name, session in sessions.items()}

    assert {name for name, view in ends.items() if view.state == "done"} == {"sleeps"}
    assert {name for name, view in ends.items() if view.state == "failed"} == set(endings) - {"sleeps"}
    for session in sessions.values():
        assert {entry.state for entry in session.steps()} <= {"done", "dead", "cancelled"}
    assert ends["waits for ever"].failure["kind"] == "deadline"


def _raise(error: Exception) -> Any:
    raise error


def test_i8_a_tenants_ids_open_nothing_for_another(hands: Hands, store: Any, other_tenant: str) -> None:
    """
    With another's ids in hand a tenant sees no row, claims no step, and settles nothing.
    """
    claim = hands.begin()
    before = hands.everything()
    thief = Hands(store, other_tenant)
    try:
        forged = Granted(**_facts(claim) | {"ref": StepRef(other_tenant, claim.ref.session_id, claim.ref.step_id)})
        assert isinstance(thief.try_claim(forged.ref), NotGranted)
        with pytest.raises(FenceLost):
            thief.settle(forged, "end")
        assert not any(thief.everything().values())
    finally:
        thief.close()
    assert hands.everything() == before


def _facts(claim: Granted) -> dict[str, Any]:
    return {name: getattr(claim, name) for name in Granted.__dataclass_fields__}


def test_i9_who_kills_its_worker_is_run_again_alone_and_buried(
    hands: Hands, ledger: Ledger, dies: Callable[[uuid.UUID], None]
) -> None:
    """
    Poison and nineteen neighbours share a worker that dies under them: the neighbours lose nothing by it.
    """
    poison, *neighbours = [hands.start() for _ in range(20)]
    fates = []
    for quarantine in (False, False, True):
        worker = hands.register()
        hands.admit()
        hands.claim(poison, worker=worker, quarantine=quarantine)
        if not quarantine:
            for neighbour in neighbours:
                hands.claim(neighbour, worker=worker)
        dies(worker)
        taken = {step.step_id: step.fate for step in ledger.take_back(100) if step.tenant == hands.tenant}
        fates.append(taken.pop(poison.step_id))
        if not quarantine:
            for neighbour in neighbours:  # each was there at one death, so none is a suspect
                hands.settle(hands.claim(neighbour, quarantine=taken[neighbour.step_id] == "suspect"), "end")
            neighbours = [hands.start() for _ in range(19)]

    assert fates == ["again", "suspect", "buried"]
    assert hands.entry(poison)["crashes"] == 3
    assert hands.session(poison)["failure"]["kind"] == "worker_lost"
    states = hands.rows("select state, count(*) as n from agentq.session group by 1")
    assert {row["state"]: row["n"] for row in states} == {"failed": 1, "done": 38, "running": 19}


def test_i10_code_that_cannot_read_a_state_leaves_it_alone(
    registry: Registry, client: Client, settings: Settings, tenant: str, local: Local
) -> None:
    """
    A fleet of another version takes nothing of a live session and changes nothing; the right one ends it.
    """
    walker(registry, Counter(), length=3)
    session = client.start("walker", tenant=tenant, input={})
    fleet = local()
    fleet.carry_next(tenant)
    before = client.sessions.steps(tenant, uuid.UUID(session.id))
    later = Registry()
    Agent("walker", state=Walk, version=2, registry=later).step(another_version)
    with Client(settings, later) as deployed, LocalFleet(deployed) as newer:
        for wake in [*fleet.sent]:
            newer.carry(StepRef(wake.tenant, wake.session_id, wake.step_id))

    after = client.sessions.steps(tenant, uuid.UUID(session.id))
    assert [(entry.step_id, entry.attempt) for entry in after] == [(entry.step_id, entry.attempt) for entry in before]
    assert fleet.drain(session).result == 3


def another_version(state: Walk) -> Done:
    return Done("another version")


def test_i11_who_when_and_why_has_a_row(
    registry: Registry, client: Client, tenant: str, local: Local, admin: psycopg.Connection[Any]
) -> None:
    """
    Each attempt, each decision, what it cost, and each thing that an operator did.
    """
    agent = Agent("watched", state=Walk, registry=registry)

    @agent.step(start=True, retries=1)
    def choose(state: Walk, ctx: Context) -> Done:
        ctx.usage(input_tokens=5, cost_usd="0.002")
        ctx.decide(["left", "right"], "left", "it is shorter", confidence=0.9)
        if ctx.attempt == 1:
            raise Transient("the map was gone")
        return Done("there")

    session = client.start("watched", tenant=tenant, input={})
    client.recovery.pause(tenant, session.id, reason="look first")
    client.recovery.resume(tenant, session.id, reason="looks fine")
    fleet = local()
    assert fleet.drain(session).result == "there"

    def rows(query: str) -> list[tuple[Any, ...]]:
        return admin.execute(query.encode(), (tenant,)).fetchall()

    attempts = rows(
        "select attempt, closing, failure ->> 'message', worker, cost_micros, started_at < ended_at"
        " from agentq.trace where tenant = %s and kind = 'attempt' order by attempt"
    )
    worker = fleet.heart.worker_id
    assert attempts == [(1, "retry", "the map was gone", worker, 2000, True), (2, "end", None, worker, 2000, True)]
    decisions = rows("select picked, why, decided_at is not null from agentq.decision where tenant = %s")
    assert decisions == [("left", "it is shorter", True)] * 2
    actions = rows(
        "select action, reason, operator <> '', at is not null from agentq.operator_action where tenant = %s"
        " order by action_id"
    )
    assert [(action.split()[-1].split(".")[-1], *facts) for action, *facts in actions] == [
        ("pause", "look first", True, True),
        ("resume", "looks fine", True, True),
    ]
