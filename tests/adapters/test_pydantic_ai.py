"""An existing Pydantic AI agent, unchanged: each request and each call a step, recorded work never repeated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, ModelRetry, RunContext
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.instrumented import InstrumentationSettings

import agentq
from agentq import Limits, Permanent, Transient, UnknownEffect
from agentq.adapters.pydantic_ai import durable
from agentq.adapters.replay import ReplayedAgent
from agentq.agents.registry import Registry
from agentq.client import Client, Session
from agentq.errors import ConfigError
from agentq.testing import LocalFleet, Stuck
from tests.support.hands import Hands
from tests.support.requests import requests_of

Local = Callable[..., LocalFleet]


class World:
    """An agent as somebody has it, and what really ran of it."""

    def __init__(self, *said: Any, **more: Any) -> None:
        self.said = list(said)
        self.ran: list[Any] = []
        self.agent: Agent[Any, Any] = Agent(FunctionModel(self.answer, model_name="world"), **more)

    def answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        turn = sum(isinstance(message, ModelResponse) for message in messages)
        self.ran.append(f"model {turn}")
        said = self.said[turn]
        return ModelResponse([TextPart(said)]) if isinstance(said, str) else ModelResponse(said)


def call(name: str, **args: Any) -> ToolCallPart:
    return ToolCallPart(name, args, tool_call_id=f"{name}-{'-'.join(map(str, args.values()))}")


def start(client: Client, tenant: str, **more: Any) -> Session:
    return client.start("triage", tenant=tenant, input={"prompt": "go"} | more)


def test_each_request_and_each_call_is_a_step(
    registry: Registry, client: Client, tenant: str, local: Local, hands: Hands
) -> None:
    """
    Parallel calls are branches; each unit really runs once, however often the run is replayed around it.
    """
    world = World([call("sync", x=1), call("async_", x=2)], [call("sync", x=3)], "all done", instructions="Be brief.")

    @world.agent.tool_plain
    def sync(x: int) -> str:
        world.ran.append(f"sync {x}")
        return f"s{x}"

    @world.agent.tool
    async def async_(ctx: RunContext[Any], x: int) -> str:
        world.ran.append(f"async {x}")
        return f"a{x}"

    durable(world.agent, name="triage", tools={"sync": _idempotent}, registry=registry)
    session = start(client, tenant)
    assert local().drain(session).result == "all done"
    assert sorted(world.ran) == ["async 2", "model 0", "model 1", "model 2", "sync 1", "sync 3"]
    assert [(step.seq, step.branch) for step in session.steps() if step.branch is not None] == [(2, 0), (2, 1)]
    assert session.view().input_tokens > 0
    first, second, last = requests_of(hands, session.id)
    assert "go" in first[1]
    assert "async_" in first[2]
    assert "s1" in second[1]
    assert "all done" in last[2]
    assert all(detail["price_version"] for detail, *_ in (first, second, last))


@agentq.tool(idempotent=True)
def _idempotent() -> None:
    """Only its declaration counts."""


class Verdict(BaseModel):
    """A typed output."""

    refund: bool


def test_typed_output_deps_and_retries(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    What the framework does between its units works as ever: dependencies, ModelRetry, output types.
    """
    world = World(
        [call("look", x=1)],
        [call("look", x=2)],
        [ToolCallPart("final_result", {"refund": True}, tool_call_id="f")],
        deps_type=str,
        output_type=Verdict,
    )

    @world.agent.tool
    def look(ctx: RunContext[str], x: int) -> str:
        world.ran.append(f"look {x} for {ctx.deps}")
        if x == 1:
            raise ModelRetry("try 2")
        return "found"

    durable(world.agent, name="triage", deps=lambda given: f"{given}!", registry=registry)
    assert local().drain(start(client, tenant, input="ada")).result == {"refund": True}
    assert world.ran == ["model 0", "look 1 for ada!", "model 1", "look 2 for ada!", "model 2"]


def test_a_tool_is_not_called_again_after_its_result_was_stored(
    registry: Registry, client: Client, tenant: str, local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    I5: the attempt ends between the call and the settlement; the next recalls it, under the same key.
    """
    world = World([call("pay", x=1)], "paid")
    keys: list[str] = []

    @world.agent.tool_plain
    def pay(x: int) -> str:
        keys.append(agentq.idempotency_key())
        return "receipt"

    durable(world.agent, name="triage", registry=registry)
    fleet, session = local(), start(client, tenant)
    broke = iter([True])

    def probe(point: str) -> None:
        if point == "effect_stored" and next(broke, False):
            raise Transient("the worker stumbles after the call")

    monkeypatch.setattr("agentq.engine.probe", probe)
    assert fleet.drain(session).result == "paid"
    assert len(keys) == 1


def test_what_nobody_declared_is_not_repeated(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    world = World([call("pay", x=1)], "paid")

    @world.agent.tool_plain
    def pay(x: int) -> str:
        raise TimeoutError("no answer")

    durable(world.agent, name="triage", registry=registry)
    with pytest.raises(UnknownEffect):
        local().drain(start(client, tenant))
    assert world.ran == ["model 0"]


def test_a_transient_failure_is_tried_again_as_the_step(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    world = World([call("fetch", x=1)], "fetched")
    tries: list[int] = []

    @world.agent.tool_plain
    def fetch(x: int) -> str:
        tries.append(x)
        if len(tries) == 1:
            raise Transient("not yet")
        return "page"

    durable(world.agent, name="triage", registry=registry)
    session = start(client, tenant)
    assert local().drain(session).result == "fetched"
    assert len(tries) == 2
    assert world.ran == ["model 0", "model 1"]


def test_limits_hold(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    world = World(*[[call("look", x=n)] for n in range(9)])

    @world.agent.tool_plain
    def look(x: int) -> str:
        return "seen"

    durable(world.agent, name="triage", limits=Limits(tool_calls=2), registry=registry)
    session = start(client, tenant)
    local().drain(session)
    assert (session.view().failure or {})["kind"] == "limit"
    assert world.ran == ["model 0", "model 1", "model 2"]


def test_a_run_that_takes_another_way_is_dead(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    Code that no longer comes to the recorded unit is told so, and nothing is called in its place.
    """
    world = World([call("look", x=1)], "seen")

    @world.agent.tool_plain
    def look(x: int) -> str:
        world.ran.append("look")
        return "seen"

    durable(world.agent, name="triage", retries=0, registry=registry)
    fleet, session = local(), start(client, tenant)
    for _ in range(2):
        fleet.carry_next(tenant)
    other = World("something else")
    durable(other.agent, name="triage", retries=0, registry=registry)
    query = "update agentq.message set body = convert_to(replace(convert_from(body, 'utf8'), 'look', 'gone'), 'utf8')"
    with fleet.store.transaction(tenant) as connection:
        connection.execute(f"{query} where session_id = %s", (session.id,))
    with pytest.raises(Permanent, match="did not come to unit"):
        fleet.drain(session)
    assert "look" not in world.ran


def test_a_long_run_continues_as_new_from_its_history(
    registry: Registry, client: Client, tenant: str, local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    What a step replays is bounded; nothing runs again, and the history is written by what it grew.
    """
    rounds = 14
    world = World(*[[call("look", x=n)] for n in range(rounds)], "done", instructions="Be brief.")

    @world.agent.tool_plain
    def look(x: int) -> str:
        world.ran.append(f"look {x}")
        return f"seen {x}"

    replayed: list[int] = []
    plain = ReplayedAgent._read

    def read(self: Any, ctx: Any) -> Any:
        start, journal = plain(self, ctx)
        replayed.append(len(journal))
        return start, journal

    monkeypatch.setattr(ReplayedAgent, "_read", read)
    durable(world.agent, name="triage", replay_max=6, registry=registry)
    session = start(client, tenant)
    fleet = local()
    assert fleet.drain(session).result == "done"
    assert max(replayed) <= 8
    assert sorted(world.ran) == sorted(
        [*(f"model {n}" for n in range(rounds + 1)), *(f"look {n}" for n in range(rounds))]
    )
    query = "select count(*) from agentq.message where session_id = %s and written_by like '%%/history'"
    with fleet.store.transaction(tenant) as connection:
        [(rows,)] = connection.execute(query, (session.id,)).fetchall()
    assert rows <= 2 * rounds + 2 + 2 * rounds // 6


def needing_leave(world: World) -> None:
    @world.agent.tool_plain(requires_approval=True)
    def pay(cents: int) -> str:
        world.ran.append(f"paid {cents}")
        return f"paid {cents}"


def asked(fleet: LocalFleet, session: Session) -> str:
    with pytest.raises(Stuck, match="May pay go ahead"):
        fleet.drain(session)
    [found] = fleet.client.approvals.ls(tenant=session.tenant)
    return str(found.approval_id)


def test_a_tool_that_requires_approval_asks_within_the_run(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    Nothing is paid before somebody says so, and then what they made of it, once.
    """
    world = World([call("pay", cents=900)], "done")
    needing_leave(world)
    durable(world.agent, name="triage", to="finance", registry=registry)
    fleet, session = local(), start(client, tenant)
    approval = client.approvals.get(asked(fleet, session))
    assert (approval.groups, approval.args, approval.details) == (
        ("finance",), {"arguments": {"cents": 900}}, {"tool": "pay"},
    )  # fmt: skip
    assert world.ran == ["model 0"]
    client.approvals.grant(approval.id, edits={"arguments.cents": 500})
    assert fleet.drain(session).result == "done"
    assert world.ran == ["model 0", "paid 500", "model 1"]


@pytest.mark.parametrize("silent", [False, True])
def test_the_model_is_told_of_a_refusal(
    registry: Registry, client: Client, tenant: str, local: Local, silent: bool
) -> None:
    heard: list[Any] = []

    class Listening(World):
        def answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
            heard.extend(part.content for part in messages[-1].parts if isinstance(part, ToolReturnPart))
            return super().answer(messages, info)

    world = Listening([call("pay", cents=900)], "not done")
    needing_leave(world)
    durable(world.agent, name="triage", within="1d", registry=registry)
    fleet, session = local(), start(client, tenant)
    approval = asked(fleet, session)
    if silent:
        fleet.clock.advance("2d")
    else:
        client.approvals.deny(approval, reason="too much")
    assert fleet.drain(session).result == "not done"
    why = "nobody answered in time" if silent else "too much"
    assert heard == [f"Not allowed: {why}. The call was not carried out."]
    assert world.ran == ["model 0", "model 1"]


def test_each_unit_is_one_span(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    What is replayed, and what is given up half way, leaves no spans of the framework's.
    """
    trace = pytest.importorskip("opentelemetry.sdk.trace", reason="agentq[otel] is not installed")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), trace.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    settings = InstrumentationSettings(tracer_provider=provider)
    world = World([call("look", x=1), call("look", x=2)], [call("look", x=3)], "done")
    world.agent.instrument = settings

    @world.agent.tool_plain
    def look(x: int) -> str:
        return "seen"

    durable(world.agent, name="triage", registry=registry)
    assert local().drain(start(client, tenant)).result == "done"
    counted = Counter(span.name.split()[0] for span in exporter.get_finished_spans())
    assert (counted["chat"], counted["execute_tool"], counted["invoke_agent"]) == (3, 3, 1)


def test_what_cannot_be_carried_is_refused(registry: Registry) -> None:
    with pytest.raises(ConfigError, match="model"):
        durable(Agent(), name="triage", registry=registry)
    with pytest.raises(ConfigError, match="pydantic_ai"):
        durable("agent", name="triage", registry=registry)  # type: ignore[arg-type]
