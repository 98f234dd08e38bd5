"""Agents as users write them: steps, branches, children, histories, timers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any

import pytest
from pydantic import BaseModel

from agentq import (
    Agent,
    AsyncContext,
    Branch,
    Child,
    ConfigError,
    Context,
    Done,
    Fail,
    InvalidInput,
    Next,
    Sleep,
    Spawn,
)
from agentq.agents.registry import Registry, load_agents
from agentq.agents.returns import seconds
from agentq.client import Client
from agentq.store.pool import Store
from agentq.testing import LocalFleet, Stuck

Local = Callable[..., LocalFleet]


class Colour(Enum):
    """Something that is no JSON type."""

    RED = "red"


class State(BaseModel):
    """A state with a bit of everything."""

    n: int = 0
    items: list[str] = []
    colour: Colour = Colour.RED
    price: Decimal = Decimal("1.10")
    text: str = ""


def start(client: Client, tenant: str, agent: str = "robot", **input: Any) -> Any:
    return client.start(agent, tenant=tenant, input=input)


# ── going on ─────────────────────────────────────────────────────────────────


def test_a_state_travels_from_step_to_step(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    With its types, whether it is passed on by name or changed in place; steps may be async, and may be named by text.
    """
    agent = Agent("robot", state=State, registry=registry)

    @agent.step(start=True)
    def one(state: State) -> Next:
        state.n += 1
        return Next(two)

    @agent.step
    async def two(state: State, ctx: AsyncContext) -> Next:
        return Next("three", State(n=state.n + 1, price=state.price * 2))

    @agent.step
    def three(state: State) -> Done:
        assert state.colour is Colour.RED
        return Done({"n": state.n, "price": state.price})

    assert local().drain(start(client, tenant)).result == {"n": 2, "price": "2.20"}


def test_arguments_arrive_as_annotated(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    `Next(step, args=...)` hands over values of any type with a JSON form, and defaults hold.
    """
    agent = Agent("robot", state=State, registry=registry)
    when = datetime(2026, 5, 6, tzinfo=UTC)

    @agent.step(start=True)
    def one(state: State) -> Next:
        return Next(two, args={"at": when, "colour": Colour.RED, "state_too": state})

    @agent.step
    def two(state: State, ctx: Context, at: datetime, colour: Colour, state_too: State, n: int = 7) -> Done:
        assert (at, colour, state_too, n) == (when, Colour.RED, State(), 7)
        return Done("ok")

    assert local().drain(start(client, tenant)).result == "ok"


@pytest.mark.parametrize("duration", ["3d", 86400, timedelta(hours=5), "90m"])
def test_sleep_waits_by_the_databases_clock(
    registry: Registry, client: Client, tenant: str, local: Local, duration: Any
) -> None:
    """
    Days pass in a test without waiting, and nothing runs before its time.
    """
    agent = Agent("robot", state=State, registry=registry)

    @agent.step(start=True)
    def one(state: State) -> Sleep:
        return Sleep(duration, then=two, args={"n": 3})

    @agent.step
    def two(state: State, n: int) -> Done:
        return Done(n)

    session = start(client, tenant)
    fleet = local()
    fleet.carry_next(tenant)
    assert fleet.carry_next(tenant) is None
    assert fleet.drain(session).result == 3
    assert fleet.clock.offset_s >= seconds(duration) - 60


def test_sleep_until_a_moment(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    A moment that is over is no wait; one without a time zone is a mistake.
    """
    agent = Agent("robot", state=State, registry=registry)

    @agent.step(start=True, retries=0)
    def one(state: State) -> Sleep:
        moment = datetime(2020, 1, 1, tzinfo=UTC) if state.n == 0 else datetime(2999, 1, 1)
        return Sleep(until=moment, then=two)

    @agent.step
    def two(state: State) -> Done:
        return Done("woken")

    fleet = local()
    assert fleet.drain(start(client, tenant)).result == "woken"
    with pytest.raises(Exception, match="time zone"):
        fleet.drain(start(client, tenant, n=1))


@pytest.mark.parametrize(
    "text", ["", "3 weeks", "-1s", -1, "1e3s", True, None, float("nan"), "11y", "99999d", float("inf")]
)
def test_what_is_no_duration_is_refused(text: Any) -> None:
    """
    A mistyped duration is an error where it is written, not a wait that never ends.
    """
    with pytest.raises(InvalidInput):
        seconds(text)


# ── branches ─────────────────────────────────────────────────────────────────


def test_branches_join_in_their_order(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    Each branch has its arguments and the state as it was; the join finds every result in its place.
    """
    agent = Agent("robot", state=State, registry=registry)

    @agent.step(start=True)
    def split(state: State) -> Spawn:
        state.n = 5
        return Spawn([Branch(square, args={"of": n}) for n in range(12)], then=join)

    @agent.step
    def square(state: State, of: int) -> Next | Done:
        return Next(finish, args={"value": of * of + state.n})

    @agent.step
    async def finish(state: State, ctx: AsyncContext, value: int) -> Done:
        return Done(value)

    @agent.step
    def join(state: State, ctx: Context) -> Done:
        return Done([result.value for result in ctx.results])

    assert local().drain(start(client, tenant)).result == [n * n + 5 for n in range(12)]


def test_children_run_other_agents(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    A child is a session of its own, whose end the join finds among its results, beside plain branches.
    """
    parent = Agent("parent", state=State, registry=registry)
    child = Agent("child", state=State, registry=registry)

    @parent.step(start=True)
    def split(state: State) -> Spawn:
        return Spawn([Child("child", {"n": 3}), Branch(plain), Child("child", State(n=4))], then=join)

    @parent.step
    def plain(state: State) -> Done:
        return Done("plain")

    @parent.step
    def join(state: State, ctx: Context) -> Done:
        assert [result.session_id is not None for result in ctx.results] == [True, False, True]
        return Done([result.value for result in ctx.results])

    @child.step
    def work(state: State) -> Done:
        return Done(state.n * 10)

    assert local().drain(start(client, tenant, "parent")).result == [30, "plain", 40]


def test_collected_failures_are_values(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    With `collect=True` the join decides what a failed branch means.
    """
    agent = Agent("robot", state=State, registry=registry)

    @agent.step(start=True)
    def split(state: State) -> Spawn:
        return Spawn([Branch(fails), Branch(works), Branch(broken), Child("none", {})][:3], then=join, collect=True)

    @agent.step
    def fails(state: State) -> Fail:
        return Fail("not today")

    @agent.step
    def works(state: State) -> Done:
        return Done(1)

    @agent.step(retries=0)
    def broken(state: State) -> Done:
        raise RuntimeError("boom")

    @agent.step
    def join(state: State, ctx: Context) -> Done:
        return Done([(result.ok, result.value, result.error) for result in ctx.results])

    session = start(client, tenant)
    with pytest.raises(RuntimeError):
        local().drain(session)  # it tells of the branch that died, although the session went on
    assert session.view().result == [[False, None, "not today"], [True, 1, None], [False, None, "boom"]]


def test_spawns_within_spawns(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    A branch may branch; its join goes on in the branch, with `Next` and `Done`.
    """
    agent = Agent("robot", state=State, registry=registry)

    @agent.step(start=True)
    def outer(state: State) -> Spawn:
        return Spawn([Branch(inner, args={"base": base}) for base in (10, 20)], then=total)

    @agent.step
    def inner(state: State, base: int) -> Spawn:
        return Spawn([Branch(leaf, args={"n": base + n}) for n in range(3)], then=subtotal)

    @agent.step
    def leaf(state: State, n: int) -> Done:
        return Done(n)

    @agent.step
    def subtotal(state: State, ctx: Context) -> Next:
        return Next(pass_on, args={"n": sum(result.value for result in ctx.results)})

    @agent.step
    def pass_on(state: State, n: int) -> Done:
        return Done(n)

    @agent.step
    def total(state: State, ctx: Context) -> Done:
        return Done([result.value for result in ctx.results])

    assert local().drain(start(client, tenant)).result == [33, 63]


@pytest.mark.parametrize(
    "spawn",
    [
        Spawn([], then="join"),
        Spawn([Branch("leaf")] * 1001, then="join"),
        Spawn(["leaf"], then="join"),  # type: ignore[list-item]
        Spawn([Branch("leaf")], then="nowhere"),
        Spawn([Branch("nowhere")], then="join"),
        Spawn([Child("nobody", {})], then="join"),
        Spawn([Child("robot", {"n": "x"})], then="join"),
        Spawn([Branch("leaf")], then=""),
    ],
    ids=["none", "too many", "no branch", "no join", "no step", "no agent", "bad input", "empty join"],
)
def test_a_spawn_that_cannot_be_is_refused(
    registry: Registry, client: Client, tenant: str, local: Local, spawn: Spawn
) -> None:
    """
    The step fails with words, and no branch of it exists.
    """
    agent = Agent("robot", state=State, registry=registry)

    @agent.step(start=True, retries=0)
    def split(state: State) -> Spawn:
        return spawn

    @agent.step
    def leaf(state: State) -> Done:
        return Done()

    @agent.step
    def join(state: State) -> Done:
        return Done()

    session = start(client, tenant)
    local().carry_next(tenant)
    assert session.view().state == "failed"
    assert len(session.steps()) == 1


def test_a_cancelled_parent_takes_its_children_along(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    Cancelling a session cancels what it spawned, at once.
    """
    parent = Agent("parent", state=State, registry=registry)

    @parent.step(start=True)
    def split(state: State) -> Spawn:
        return Spawn([Child("parent", {"n": state.n + 1})] * 2, then=join) if state.n < 2 else Sleep("1h", then=join)  # type: ignore[return-value]

    @parent.step
    def join(state: State) -> Done:
        return Done()

    session = start(client, tenant, "parent")
    fleet = local()
    while fleet.carry_next(tenant) is not None:
        pass
    session.cancel("stop it all")
    states = {row.state for row in client.list(tenant=tenant, limit=100)}
    assert states == {"cancelled"}
    assert len(client.list(tenant=tenant, limit=100)) == 7
    assert tenant not in client.ledger.backlogged()


# ── histories, usage, progress ───────────────────────────────────────────────


def test_messages_are_appended_and_kept(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    Each step sees what came before, adds its own, and an attempt that fails adds nothing.
    """
    agent = Agent("robot", state=State, registry=registry)
    seen: list[list[Any]] = []

    @agent.step(retries=1)
    def talk(state: State, ctx: Context) -> Next | Done:
        ctx.messages.append({"role": "user", "n": state.n})
        seen.append(list(ctx.messages))
        assert len(ctx.messages) == state.n + 1
        if ctx.attempt == 1 and state.n == 1:
            raise RuntimeError("after appending")
        state.n += 1
        return Next(talk) if state.n < 3 else Done([message["n"] for message in ctx.messages])

    assert local().drain(start(client, tenant)).result == [0, 1, 2]
    assert [len(messages) for messages in seen] == [1, 2, 2, 3]


def test_usage_is_added_up(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    Tokens and money of every recorded step, to the micro-dollar; a failed attempt's are not counted twice.
    """
    agent = Agent("robot", state=State, registry=registry)

    @agent.step
    def model(state: State, ctx: Context) -> Next | Done:
        ctx.usage(input_tokens=100, output_tokens=10, cost_usd="0.000123")
        ctx.usage(input_tokens=1)
        with pytest.raises(ValueError, match="negative"):
            ctx.usage(input_tokens=-1)
        state.n += 1
        return Next(model) if state.n < 3 else Done()

    view = local().drain(start(client, tenant))
    assert (view.input_tokens, view.output_tokens, view.cost_usd) == (303, 30, 0.000369)


def test_progress_is_seen_live(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    What a step reports is there before the step has ended, also when it then fails.
    """
    agent = Agent("robot", state=State, registry=registry)
    live: list[Any] = []

    @agent.step(retries=0)
    def work(state: State, ctx: Context) -> Done:
        ctx.progress("half way", percent=50)
        live.extend(client.sessions.events(tenant, client_session._uuid, 0))
        raise RuntimeError("later")

    client_session = start(client, tenant)
    with pytest.raises(RuntimeError):
        local().drain(client_session)
    assert len(live) == 1
    assert [event.kind for event in client_session.events(timeout=5)] == ["progress", "step", "ended"]


# ── how states are stored ────────────────────────────────────────────────────


def test_bytes_per_step_do_not_grow_with_the_session(
    registry: Registry, client: Client, tenant: str, local: Local, store: Store
) -> None:
    """
    Two hundred steps, each of which adds an item and a message: the second half writes what the first wrote.
    """
    agent = Agent("robot", state=State, registry=registry)
    item = "an item of some length, as a model's answer might be. " * 4

    @agent.step
    def grow(state: State, ctx: Context) -> Next | Done:
        state.items.append(f"{state.n} {item}")
        ctx.messages.append({"n": state.n, "text": item})
        state.n += 1
        return Next(grow) if state.n < 200 else Done(len(state.items))

    session = start(client, tenant)
    assert local().drain(session).result == 200

    def written(table: str, column: str) -> list[int]:
        order = "saved_at" if table == "checkpoint" else "seq"
        with store.transaction(tenant) as connection:
            rows = connection.execute(
                f"select coalesce(octet_length({column}), 0) from agentq.{table} order by {order}".encode()
            ).fetchall()
        return [row[0] for row in rows]

    states, messages = written("checkpoint", "state"), written("message", "body")
    final = 200 * len(item)
    assert len(states) == len(messages) == 200
    assert sum(states) < 4 * final
    # A snapshot now and then is as large as the state; most steps write what they added.
    assert sorted(states)[100] < 3 * len(item)
    assert max(messages) < 2 * len(item)
    assert sum(messages[100:]) < 1.2 * sum(messages[:100])


def test_a_large_input_goes_through_unchanged_steps_unstored(
    registry: Registry, client: Client, tenant: str, local: Local, store: Store
) -> None:
    """
    A step that changes nothing writes no state, however large it is, and a branch finds it all the same.
    """
    agent = Agent("robot", state=State, registry=registry)

    @agent.step(start=True)
    def one(state: State) -> Next:
        return Next(two)

    @agent.step
    def two(state: State) -> Spawn:
        return Spawn([Branch(leaf)], then=join)

    @agent.step
    def leaf(state: State) -> Done:
        return Done(len(state.text))

    @agent.step
    def join(state: State, ctx: Context) -> Done:
        return Done([len(state.text), ctx.results[0].value])

    assert local().drain(start(client, tenant, text="x" * 100_000)).result == [100_000, 100_000]
    with store.transaction(tenant) as connection:
        rows = connection.execute("select kind, octet_length(state) from agentq.checkpoint").fetchall()
    assert set(rows) == {("same", None)}


# ── what cannot be an agent ──────────────────────────────────────────────────


def test_agents_that_cannot_be_are_refused_when_they_are_written(registry: Registry) -> None:
    """
    A mistake in an agent's definition stops the worker's start, not its first session.
    """
    for name, options in {
        "No Name": {"state": State},
        "dict-state": {"state": dict},
        "zero": {"state": State, "version": 0},
        "text": {"state": State, "version": "1"},
        "truth": {"state": State, "version": True},
    }.items():
        with pytest.raises((ConfigError, InvalidInput)):
            Agent(name, registry=registry, **options)  # type: ignore[arg-type]

    agent = Agent("robot", state=State, registry=registry)

    @agent.step(start=True)
    def one(state: State) -> Done:
        return Done()

    for make in (
        lambda: agent.step(start=True)(two),
        lambda: agent.step(one.function),
        lambda: agent.step(lambda state: Done()),
        lambda: agent.step(nothing),
        lambda: agent.step(timeout="soon")(two),
        lambda: agent.step(retries=-1)(two),
        lambda: agent.step(retries=2**40)(two),
    ):
        with pytest.raises((ConfigError, InvalidInput)):
            make()
    with pytest.raises(ConfigError, match="two agents are named robot@1"):
        Agent("robot", state=Other, registry=registry)


class Other(BaseModel):
    """Another state."""


def two(state: State) -> Done:
    return Done()


def nothing() -> Done:
    return Done()


def test_an_agent_without_a_beginning_is_refused(registry: Registry) -> None:
    """
    With several steps, one must say that it begins.
    """
    agent = Agent("robot", state=State, registry=registry)
    with pytest.raises(ConfigError, match="start=True"):
        agent.first  # noqa: B018
    agent.step(two)
    assert agent.first.name == "two"
    agent.step(lambda_named("three"))
    with pytest.raises(ConfigError, match="start=True"):
        agent.first  # noqa: B018


def lambda_named(name: str) -> Callable[..., Any]:
    def function(state: State) -> Done:
        return Done()

    function.__name__ = name
    return function


def test_modules_that_are_not_there_are_named() -> None:
    """
    A mistyped AGENTQ_AGENTS is explained; an import error within an agent's own module is shown as it is.
    """
    with pytest.raises(ConfigError, match="AGENTQ_AGENTS names 'no_such_agents'"):
        load_agents(["no_such_agents"])


def test_versions_live_side_by_side(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    I10: a session stays with the version it began with; new sessions get the newest.
    """
    for version in (1, 2):
        agent = Agent("robot", state=State, version=version, registry=registry)
        agent.step(_answers(version))
    fleet = local()
    assert fleet.drain(client.start("robot", tenant=tenant, input={}, version=1)).result == 1
    assert fleet.drain(client.start("robot", tenant=tenant, input={})).result == 2


def _answers(value: int) -> Callable[..., Any]:
    def answer(state: State) -> Done:
        return Done(value)

    return answer


def test_a_step_can_be_called_without_a_fleet(registry: Registry) -> None:
    """
    Steps are functions: a unit test calls them.
    """
    agent = Agent("robot", state=State, registry=registry)
    step = agent.step(two)
    assert step(State()) == Done()


def test_the_kit_says_when_nothing_moves(
    registry: Registry, client: Client, tenant: str, local: Local, admin: Any
) -> None:
    """
    A session that waits for something outside is reported, instead of a test that hangs.
    """
    agent = Agent("robot", state=State, registry=registry)
    agent.step(two)
    session = start(client, tenant)
    admin.execute("update agentq.ledger_entry set state = 'held' where tenant = %s", (tenant,))
    with pytest.raises(Stuck, match="nothing of tenant"):
        local().drain(session)
