"""Versions: a live session goes on under newer code that declares how, and is left alone by code that cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai.models.function import FunctionModel

from agentq import Agent, Branch, ConfigError, Context, Done, ModelAgent, Next, Permanent, Spawn
from agentq.agents.registry import Registry
from agentq.client import Client, Session
from agentq.client.live import LiveCheck
from agentq.step import StepRef
from agentq.testing import LocalFleet
from agentq.verdicts import Dropped

Local = Callable[..., LocalFleet]


class Old(BaseModel):
    """Version 1: dollars."""

    amount: float = 1.5
    log: list[str] = []


class New(BaseModel):
    """Version 2: cents."""

    cents: int
    log: list[str] = []


def version_1(registry: Registry) -> Agent[Old]:
    agent = Agent("shop", state=Old, version=1, registry=registry)

    @agent.step(start=True)
    def look(state: Old, ctx: Context) -> Next:
        state.log.append("look 1")
        return Next("pay", state)

    @agent.step
    def pay(state: Old, ctx: Context) -> Next:
        state.log.append("pay 1")
        return Next("thank", state)

    @agent.step
    def thank(state: Old, ctx: Context) -> Done:
        return Done([*state.log, "thank 1", state.amount])

    return agent


def version_2(registry: Registry, *, migrates: bool = True) -> Agent[New]:
    agent = Agent("shop", state=New, version=2, registry=registry)

    @agent.step(start=True)
    def look(state: New, ctx: Context) -> Next:
        state.log.append("look 2")
        return Next("charge", state)

    @agent.step
    def charge(state: New, ctx: Context) -> Next:
        state.log.append("charge 2")
        return Next("thank", state)

    @agent.step
    def thank(state: New, ctx: Context) -> Done:
        return Done([*state.log, "thank 2", state.cents])

    if migrates:

        @agent.migrate(from_version=1, steps={"pay": "charge"})
        def _cents(old: dict[str, Any]) -> dict[str, Any]:
            return {"cents": round(old["amount"] * 100), "log": old["log"]}

    return agent


@pytest.fixture
def newer(settings: Any) -> Any:
    """A registry and a client of the code that is deployed next."""
    registry = Registry()
    with Client(settings, registry) as client:
        yield registry, client


def again(client: Client, session: Session) -> Session:
    return client.get(session.tenant, session.id)


@pytest.mark.parametrize("steps_before", [0, 1, 2])
def test_a_session_in_flight_goes_on_under_the_next_version(
    registry: Registry, client: Client, tenant: str, newer: Any, steps_before: int, admin: Any
) -> None:
    """
    I10: begun by version 1, finished by version 2, wherever it stood; a renamed step is found.
    """
    version_1(registry)
    session = client.start("shop", tenant=tenant, input={"amount": 2.5})
    with LocalFleet(client) as old:
        for _ in range(steps_before):
            old.carry_next(tenant)
    version_2(newer[0])
    with LocalFleet(newer[1]) as fleet:
        result = fleet.drain(again(newer[1], session)).result
    before = ["look 1", "pay 1"][:steps_before]
    assert result == [*before, *["look 2", "charge 2"][steps_before:], "thank 2", 250]
    pinned = admin.execute("select agent_version from agentq.session where session_id = %s", (session.id,)).fetchone()
    assert pinned == (2,)


def test_code_that_cannot_read_a_state_leaves_it_alone(
    registry: Registry, client: Client, tenant: str, newer: Any
) -> None:
    """
    I10: once version 2 has written, version 1 claims nothing of that session, though it was begun by it.
    """
    version_1(registry)
    session = client.start("shop", tenant=tenant, input={})
    version_2(newer[0])
    with LocalFleet(client) as old, LocalFleet(newer[1]) as new:
        new.carry_next(tenant)
        wake = new.sent[0]
        verdict = old.carry(StepRef(tenant, wake.session_id, wake.step_id))
        assert verdict == Dropped("unserved")
        assert new.drain(again(newer[1], session)).result[0] == "look 2"


def test_bytes_of_another_version_are_stored_anew(registry: Registry, client: Client, tenant: str, newer: Any) -> None:
    """
    A number that means something else now, in the very same bytes: what was written last is what counts.
    """

    class Count(BaseModel):
        n: int = 1

    def define(registry: Registry, version: int) -> Agent[Any]:
        agent: Agent[Any] = Agent("counter", state=Count, version=version, registry=registry)

        @agent.step(start=True)
        def first(state: Any) -> Next:
            return Next("second", state)

        @agent.step
        def second(state: Any) -> Next:
            return Next("third", Count(n=1))

        @agent.step
        def third(state: Any) -> Done:
            return Done(state.n)

        return agent

    define(registry, 1)
    session = client.start("counter", tenant=tenant, input={})
    define(newer[0], 2).migrate(from_version=1)(lambda old: {"n": old["n"] * 100})
    with LocalFleet(client) as old, LocalFleet(newer[1]) as new:
        old.carry_next(tenant)
        assert new.drain(again(newer[1], session)).result == 1


def test_a_version_that_declares_nothing_takes_nothing_over(
    registry: Registry, client: Client, tenant: str, newer: Any
) -> None:
    version_1(registry)
    session = client.start("shop", tenant=tenant, input={})
    version_2(newer[0], migrates=False)
    assert newer[0].serves() == ["shop@2"]
    with LocalFleet(newer[1]) as new:
        assert new.carry_next(tenant) in (None, Dropped("unserved"))
    with LocalFleet(client) as old:
        assert old.drain(session).result[-2] == "thank 1"


def test_what_nobody_serves_leaves_its_slot_at_once(
    registry: Registry, client: Client, tenant: str, newer: Any
) -> None:
    """
    I8: with one slot, whatever lies before it: the refusal of one admits the next, without a round of the relay.
    """
    client.tenants.set(tenant, concurrency=1, reason="test")
    version_1(registry)
    abandoned = [client.start("shop", tenant=tenant, input={}) for _ in range(3)]
    version_2(newer[0], migrates=False)
    served = newer[1].start("shop", tenant=tenant, input={"cents": 5})
    with LocalFleet(newer[1]) as new:
        verdicts = [new.carry_next(tenant)]
        while new.sent:
            wake = new.sent.popleft()
            verdicts.append(new.carry(StepRef(tenant, wake.session_id, wake.step_id)))
        assert verdicts.count(Dropped("unserved")) == len(abandoned)
        assert served.view().state == "done"


def test_with_both_versions_here_each_session_keeps_its_own(registry: Registry, client: Client, tenant: str) -> None:
    version_1(registry)
    session = client.start("shop", tenant=tenant, input={})
    version_2(registry)
    assert registry.serves() == ["shop@1", "shop@2"]
    with LocalFleet(client) as fleet:
        assert fleet.drain(session).result[0] == "look 1"
        assert fleet.drain(client.start("shop", tenant=tenant, input={"cents": 1})).result[0] == "look 2"


def test_branches_in_flight_are_joined_by_the_next_version(
    registry: Registry, client: Client, tenant: str, newer: Any
) -> None:
    """
    One branch ends under each version; the join reads the state of the spawn, whoever wrote it.
    """

    def define(registry: Registry, version: int) -> Agent[Any]:
        model = Old if version == 1 else New
        agent: Agent[Any] = Agent("fan", state=model, version=version, registry=registry)

        @agent.step(start=True)
        def split(state: Any) -> Spawn:
            return Spawn([Branch("part", {"n": n}) for n in range(2)], then="join", state=state)

        @agent.step
        def part(state: Any, n: int) -> Next:
            return Next("end", state, {"n": n})

        @agent.step
        def end(state: Any, n: int) -> Done:
            return Done([n, version])

        @agent.step
        def join(state: Any, ctx: Context) -> Done:
            return Done([[one.value for one in ctx.results], state.model_dump()])

        return agent

    define(registry, 1)
    session = client.start("fan", tenant=tenant, input={"amount": 3})
    define(newer[0], 2).migrate(from_version=1)(lambda old: {"cents": round(old["amount"] * 100)})
    with LocalFleet(client) as old, LocalFleet(newer[1]) as new:
        for _ in range(2):
            old.carry_next(tenant)
        new.carry_next(tenant)
        [[first, second], state] = new.drain(again(newer[1], session)).result
    assert {first[1], second[1]} == {2}
    assert state == {"cents": 300, "log": []}


def test_migrations_are_a_chain(registry: Registry) -> None:
    agent = Agent("shop", state=New, version=4, registry=registry)
    agent.migrate(from_version=3)(lambda old: old)
    assert agent.takes_over == (3,)
    agent.migrate(from_version=1)(lambda old: old)
    assert agent.takes_over == (3,)
    agent.migrate(from_version=2)(lambda old: old | {"cents": old["cents"] + 1})
    assert agent.takes_over == (3, 2, 1)
    assert agent.read(b'{"cents": 1}', 1).cents == 2
    assert agent.read(b'{"cents": 1}', 3).cents == 1
    with pytest.raises(Permanent, match="version 5"):
        agent.read(b'{"cents": 1}', 5)
    for wrong in (4, 0, True):
        with pytest.raises(ConfigError):
            agent.migrate(from_version=wrong)
    with pytest.raises(ConfigError, match="twice"):
        agent.migrate(from_version=1)


def test_a_migration_that_raises_is_permanent(registry: Registry) -> None:
    agent = Agent("shop", state=New, version=2, registry=registry)

    @agent.migrate(from_version=1)
    def _broken(old: dict[str, Any]) -> dict[str, Any]:
        return {"cents": old["nosuch"]}

    with pytest.raises(Permanent, match="from version 1 raised KeyError"):
        agent.read(b"{}", 1)


def why(client: Client, registry: Registry, session: Session) -> list[str]:
    return [
        one.why for one in LiveCheck(client.sessions.store, registry).stranded() if str(one.session_id) == session.id
    ]


def test_the_live_check_names_what_would_be_stranded(registry: Registry, client: Client, tenant: str) -> None:
    """
    Before a deploy, with the code to be deployed: no such version, a state that does not fit, a step that is gone.
    """
    version_1(registry)
    session = client.start("shop", tenant=tenant, input={"amount": 2.5})
    with LocalFleet(client) as fleet:
        fleet.carry_next(tenant)
        assert why(client, registry, session) == []

        good, none, gone, unfit = Registry(), Registry(), Registry(), Registry()
        version_2(good)
        version_2(none, migrates=False)
        version_2(gone, migrates=False).migrate(from_version=1)(lambda old: {"cents": 1})
        version_2(unfit, migrates=False).migrate(from_version=1, steps={"pay": "charge"})(lambda old: old)
        assert why(client, good, session) == []
        assert "no agent 'shop version 1'" in why(client, none, session)[0]
        assert "no step 'pay'" in why(client, gone, session)[0]
        assert "cents: Field required" in why(client, unfit, session)[0]
        assert session.view().state == "running"
        assert fleet.drain(session).result[-1] == 2.5
    assert why(client, none, session) == []


def test_the_live_check_reads_histories(registry: Registry, client: Client, tenant: str, admin: Any) -> None:
    from tests.agents.test_model import Script, calls

    def add(a: int) -> int:
        """Add."""
        return a

    script = Script(calls(("add", {"a": 1})), "x")
    ModelAgent("desk", model=FunctionModel(script.answer), tools=[add], registry=registry)
    session = client.start("desk", tenant=tenant, input={"prompt": "go"})
    with LocalFleet(client) as fleet:
        fleet.carry_next(tenant)
        assert why(client, registry, session) == []
        admin.execute(
            "update agentq.message set body = %s, written_by = 'pydantic-ai/9' where session_id = %s and seq = 1",
            (b'{"kind": "from the future"}', session.id),
        )
        assert "pydantic-ai/9" in why(client, registry, session)[0]
