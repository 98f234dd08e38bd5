"""Recovery as people call it: replays that repeat nothing, forks of their own, and what a session waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from agentq import Agent, Branch, Child, Context, Done, Next, Permanent, Sleep, Spawn, effect, idempotency_key
from agentq.agents.registry import Registry
from agentq.client import AsyncClient, Client, Session
from agentq.errors import InvalidInput, InvalidState, NotReopened
from agentq.settings import Settings
from agentq.testing import LocalFleet, Stuck

Local = Callable[..., LocalFleet]


class Order(BaseModel):
    """What is ordered, and what came of it."""

    number: str = "A1"
    cents: int = 100
    log: list[str] = []
    broken: bool = True


class Outside:
    """Another system: what it was asked to do, by key."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.keys: list[str] = []


@pytest.fixture
def outside() -> Outside:
    return Outside()


@pytest.fixture
def shop(registry: Registry, outside: Outside) -> Agent[Order]:
    """An agent that reserves, pays and then breaks until its state is mended."""
    agent = Agent("shop", state=Order, registry=registry)

    @effect(idempotent=True)
    def call(what: str) -> str:
        outside.calls.append(what)
        outside.keys.append(idempotency_key())
        return f"{what} done"

    @agent.step(start=True)
    def reserve(state: Order, ctx: Context) -> Next:
        state.log.append(ctx.call(call, f"reserve {state.number}"))
        return Next(pay, state)

    @agent.step
    def pay(state: Order, ctx: Context) -> Next:
        state.log.append(ctx.call(call, f"pay {state.cents}"))
        ctx.messages.append({"paid": state.cents})
        return Next(ship, state)

    @agent.step(retries=0)
    def ship(state: Order, ctx: Context) -> Done:
        if state.broken:
            raise Permanent("no van")
        state.log.append(ctx.call(call, "ship"))
        return Done({"log": state.log, "history": list(ctx.messages)})

    return agent


def drained(fleet: LocalFleet, session: Session) -> Any:
    """Run the session to its end, whatever that is."""
    try:
        return fleet.drain(session)
    except Exception:
        return session.view()


def begun(client: Client, tenant: str, local: Local, agent: str = "shop", **state: Any) -> tuple[Session, LocalFleet]:
    """A session that has run as far as it goes."""
    session, fleet = client.start(agent, tenant=tenant, input=state), local()
    drained(fleet, session)
    return session, fleet


# ── replay ───────────────────────────────────────────────────────────────────


def test_a_replay_repeats_no_effect(
    shop: Agent[Order], client: Client, tenant: str, local: Local, outside: Outside
) -> None:
    """
    I5: from the first step on, with a mended state; what was reserved and paid is recalled.
    """
    session, fleet = begun(client, tenant, local)
    assert session.view().state == "failed"
    session.replay("van is back", from_step="0", change={"broken": False})
    view = fleet.drain(session)
    assert view.result["log"] == ["reserve A1 done", "pay 100 done", "ship done"]
    assert view.result["history"] == [{"paid": 100}]
    assert outside.calls == ["reserve A1", "pay 100", "ship"]


def test_a_replay_without_a_step_goes_on_where_it_stopped(
    shop: Agent[Order], client: Client, tenant: str, local: Local, outside: Outside
) -> None:
    """
    The dead step alone runs again.
    """
    session, fleet = begun(client, tenant, local)
    session.replay("again")
    assert drained(fleet, session).state == "failed"
    assert [step.state for step in session.steps()].count("dead") == 2
    assert len(outside.calls) == 2


def test_a_call_with_other_arguments_is_not_made_again(
    shop: Agent[Order], client: Client, tenant: str, local: Local, outside: Outside
) -> None:
    """
    It was paid; a replay that would pay another sum ends with an error that says to fork.
    """
    session, fleet = begun(client, tenant, local)
    session.replay("cheaper", from_step="pay", change={"cents": 50})
    view = drained(fleet, session)
    assert view.failure["type"] == "ReplayConflict"
    assert f"agentq session fork {session.id} --from-step 1" in view.failure["message"]
    assert outside.calls == ["reserve A1", "pay 100"]


def test_a_child_that_is_spawned_again_recalls_its_effects(
    registry: Registry, client: Client, tenant: str, local: Local, outside: Outside
) -> None:
    """
    Another session with another id, at the same place: its calls and those of branches are recalled as well.
    """
    parent, child = (Agent(name, state=Order, registry=registry) for name in ("parent", "child"))

    @effect(idempotent=True)
    def call(what: str) -> str:
        outside.calls.append(what)
        return what

    @child.step(start=True)
    def only(state: Order, ctx: Context) -> Done:
        return Done(ctx.call(call, "child"))

    @parent.step(start=True)
    def split(state: Order, ctx: Context) -> Spawn:
        return Spawn([Child("child", {}), Branch(arm), Child("child", {})], then=join)

    @parent.step
    def arm(state: Order, ctx: Context) -> Done:
        return Done(ctx.call(call, "arm"))

    @parent.step
    def join(state: Order, ctx: Context) -> Done:
        return Done([result.value for result in ctx.results])

    session, fleet = begun(client, tenant, local, "parent")
    first = session.view().result
    session.replay("again", from_step="split")
    assert fleet.drain(session).result == first == ["child", "arm", "child"]
    assert sorted(outside.calls) == ["arm", "child", "child"]


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"from_step": "9"}, "has no step 9"),
        ({"from_step": "pay", "change": {"cents": "many"}}, "cents"),
        ({"from_step": "pay", "change": {"colour": 1}}, "colour"),
        ({"from_step": "pay", "change": {"number": 22}}, """written number='"22"'"""),
        ({"change": {"cents": 1}}, "from-step"),
        ({"from_step": "pay", "reason": " "}, "reason"),
    ],
)
def test_what_cannot_be_replayed_changes_nothing(
    shop: Agent[Order], client: Client, tenant: str, local: Local, wrong: dict[str, Any], error: str
) -> None:
    """
    A wrong step, a state that does not fit or no reason: said clearly, and the session is as it was.
    """
    session, _ = begun(client, tenant, local)
    before = session.steps()
    with pytest.raises((InvalidInput, InvalidState, NotReopened), match=error):
        client.recovery.replay(tenant, session.id, **{"reason": "x"} | wrong)
    assert session.steps() == before


# ── fork ─────────────────────────────────────────────────────────────────────


def test_a_fork_has_effects_of_its_own(
    shop: Agent[Order], client: Client, tenant: str, local: Local, outside: Outside
) -> None:
    """
    Under new keys, with the history until then; the session it came from is left alone.
    """
    session, fleet = begun(client, tenant, local)
    before = session.steps()
    fork = session.fork("what if", from_step="pay", change={"cents": 50, "broken": False})
    view = fleet.drain(fork)
    assert view.result == {"log": ["reserve A1 done", "pay 50 done", "ship done"], "history": [{"paid": 50}]}
    assert outside.calls == ["reserve A1", "pay 100", "pay 50", "ship"]
    assert len(set(outside.keys)) == 4
    assert session.steps() == before
    late = session.fork("later", from_step="ship", change={"broken": False})
    assert fleet.drain(late).result["history"] == [{"paid": 100}]


def test_a_dry_fork_recalls_and_never_calls(
    shop: Agent[Order], client: Client, tenant: str, local: Local, outside: Outside
) -> None:
    """
    What is recorded is recalled; the first call without a record ends it, and says which.
    """
    session, fleet = begun(client, tenant, local)
    fork = session.fork("look", from_step="reserve", change={"broken": False}, dry_effects=True)
    view = drained(fleet, fork)
    assert view.state == "failed"
    assert "dry run" in view.failure["message"]
    assert outside.calls == ["reserve A1", "pay 100"]
    assert fork.inspect().dry_effects
    changed = drained(fleet, session.fork("other", from_step="pay", change={"cents": 1}, dry_effects=True))
    assert changed.failure["type"] == "ReplayConflict"
    assert outside.calls == ["reserve A1", "pay 100"]


def test_a_dry_fork_writes_nothing(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    Not even in the caller's own tables.
    """
    agent = Agent("writer", state=Order, registry=registry)

    @agent.step(start=True)
    def write(state: Order, ctx: Context) -> Done:
        with ctx.transaction() as connection:
            connection.execute("select 1")
        return Done()

    session, fleet = begun(client, tenant, local, "writer")
    assert session.view().state == "done"
    view = drained(fleet, session.fork("x", from_step="0", dry_effects=True))
    assert "writes nothing" in view.failure["message"]


# ── pause, resume, kill ──────────────────────────────────────────────────────


def test_a_tree_is_paused_and_resumed_together(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    A paused parent's children do nothing either, and go on with it; one that was paused for itself does not.
    """
    parent, child = (Agent(name, state=Order, registry=registry) for name in ("parent", "child"))

    @child.step(start=True)
    def only(state: Order) -> Done:
        return Done(1)

    @parent.step(start=True)
    def split(state: Order) -> Spawn:
        return Spawn([Child("child", {}), Child("child", {})], then=join)

    @parent.step
    def join(state: Order, ctx: Context) -> Done:
        return Done([result.value for result in ctx.results])

    session, fleet = client.start("parent", tenant=tenant, input={}), local()
    fleet.carry_next(tenant)
    one, two = client.sessions.children(tenant, session._uuid)
    client.recovery.pause(tenant, two, reason="this one alone")
    assert session.pause("all") == "paused"
    with pytest.raises(Stuck):
        fleet.drain(session)
    assert session.resume("go") == "running"
    with pytest.raises(Stuck):
        fleet.drain(session)
    client.recovery.resume(tenant, two, reason="and this")
    assert fleet.drain(session).result == [1, 1]
    assert one != two


def test_an_async_client_does_the_same(
    shop: Agent[Order], settings: Settings, registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    The same calls, awaited.
    """
    session, fleet = begun(client, tenant, local)

    async def act() -> Any:
        async with AsyncClient(settings, registry) as other:
            handle = await other.get(tenant, session.id)
            await handle.replay("again", from_step="ship", change={"broken": False})
            assert await handle.pause("wait") == "paused"
            assert (await handle.inspect()).state == "paused"
            assert await handle.resume("go") == "running"
            fork = await handle.fork("what if", from_step="ship")
            assert await fork.kill("enough") == "cancelled"

    asyncio.run(act())
    assert fleet.drain(session).state == "done"


# ── inspect ──────────────────────────────────────────────────────────────────


def test_an_inspection_says_what_is_waited_for(
    registry: Registry, client: Client, tenant: str, local: Local, admin: Any
) -> None:
    """
    A worker, a timer, a pause, a tenant, a slot: each is told apart, with the state at the last checkpoint.
    """
    agent = Agent("sleeper", state=Order, registry=registry)

    @agent.step(start=True)
    def doze(state: Order) -> Sleep:
        state.cents += 1
        return Sleep("1h", then=wake, state=state)

    @agent.step
    def wake(state: Order) -> Done:
        return Done(state.cents)

    session = client.start("sleeper", tenant=tenant, input={})

    def waits(of: Session = session) -> str:
        [step] = of.inspect().steps
        return step.waits_for

    assert waits() == "unserved"  # nobody runs
    fleet = local()
    assert waits() == "worker"
    fleet.carry_next(tenant)
    found = session.inspect()
    assert (waits(), found.state_now["cents"], found.state_of) == ("timer", 101, "doze")
    assert found.steps[0].until is not None
    session.pause("lunch")
    found = session.inspect()
    assert waits() == "paused"
    assert "lunch" in found.why
    assert found.next_command is not None
    assert "resume" in found.next_command
    session.resume("back")
    admin.execute("update agentq.tenant set state = 'paused' where name = %s", (tenant,))
    assert waits() == "tenant"
    admin.execute("update agentq.tenant set state = 'active', concurrency = 1 where name = %s", (tenant,))
    more = [client.start("sleeper", tenant=tenant, input={}) for _ in range(2)]
    assert [waits(one) for one in more] == ["worker", "slot"]


def test_an_inspection_of_a_failed_session_names_the_failure(
    shop: Agent[Order], client: Client, tenant: str, local: Local
) -> None:
    """
    And the command that would bring it back.
    """
    session, _ = begun(client, tenant, local)
    found = session.inspect()
    assert "no van" in found.why
    assert found.next_command == f"agentq session replay {session.id} --reason '…' --dry-run"
    assert found.steps == ()
