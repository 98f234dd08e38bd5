"""An agent of the OpenAI Agents SDK, unchanged: each request and call a step, recorded work never repeated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import agents as sdk
import pytest
from agents.testing import assistant_message, function_call
from openai import AsyncOpenAI
from pydantic import BaseModel

import agentq
from agentq import Limits, Transient, UnknownEffect
from agentq.adapters.openai_agents import durable
from agentq.adapters.replay import ReplayedAgent
from agentq.agents.registry import Registry
from agentq.client import Client, Session
from agentq.errors import ConfigError
from agentq.testing import LocalFleet, Stuck
from tests.support.hands import Hands
from tests.support.openai_server import OpenAIServer, Reply, error
from tests.support.requests import requests_of

Local = Callable[..., LocalFleet]


class Scripted(sdk.Model):
    """A model that answers by how far the conversation is, and says what it was asked."""

    model = "gpt-5-mini"

    def __init__(self, *said: Any) -> None:
        self.said = list(said)
        self.ran: list[Any] = []
        self.heard: list[Any] = []

    async def get_response(self, system: Any, input: Any, *more: Any, **named: Any) -> sdk.ModelResponse:
        items = [] if isinstance(input, str) else input
        turn = sum(item.get("type") == "function_call" for item in items if isinstance(item, dict))
        self.heard += [item["output"] for item in items if item.get("type") == "function_call_output"][
            len(self.heard) :
        ]
        self.ran.append(f"model {turn}")
        said = self.said[turn]
        output = [assistant_message(said)] if isinstance(said, str) else said
        return sdk.ModelResponse(
            output, sdk.Usage(requests=1, input_tokens=50, output_tokens=10, total_tokens=60), None
        )

    def stream_response(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


def call(name: str, **args: Any) -> Any:
    return function_call(name, args, call_id=f"{name}-{'-'.join(map(str, args.values()))}")


def start(client: Client, tenant: str, **more: Any) -> Session:
    return client.start("triage", tenant=tenant, input={"prompt": "go"} | more)


def test_each_request_and_each_call_is_a_step(
    registry: Registry, client: Client, tenant: str, local: Local, hands: Hands
) -> None:
    """
    Parallel calls are branches; each unit really runs once, however often the run is replayed around it.
    """
    model = Scripted([call("plain", x=1), call("slow", x=2)], None, [call("plain", x=3)], "all done")

    @sdk.function_tool
    def plain(x: int) -> str:
        model.ran.append(f"plain {x}")
        return f"p{x}"

    @sdk.function_tool
    async def slow(context: sdk.RunContextWrapper[str], x: int) -> str:
        model.ran.append(f"slow {x} for {context.context}")
        return f"s{x}"

    agent = sdk.Agent("desk", model=model, tools=[plain, slow], instructions="Be brief.")
    durable(agent, name="triage", context=lambda given: f"{given}!", registry=registry)
    session = start(client, tenant, input="ada")
    assert local().drain(session).result == "all done"
    assert sorted(model.ran) == ["model 0", "model 2", "model 3", "plain 1", "plain 3", "slow 2 for ada!"]
    assert [(step.seq, step.branch) for step in session.steps() if step.branch is not None] == [(2, 0), (2, 1)]
    assert session.view().input_tokens == 150
    assert model.heard == ["p1", "s2", "p3"]
    requests = requests_of(hands, session.id)
    assert "plain" in requests[0][2]
    assert "all done" in requests[-1][2]
    assert all(given for _, given, _ in requests)


class Verdict(BaseModel):
    """A typed output."""

    refund: bool


def test_handoffs_typed_output_and_continuing_as_new(
    registry: Registry, client: Client, tenant: str, local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The run goes on with the agent that it was handed to, also as new from its history; what a step replays is bounded.
    """
    rounds = 10
    model = Scripted([call("transfer_to_clerk")], *[[call("look", x=n)] for n in range(rounds)], '{"refund": true}')

    @sdk.function_tool
    def look(x: int) -> str:
        model.ran.append(f"look {x}")
        return f"seen {x}"

    clerk = sdk.Agent("clerk", model=model, tools=[look], output_type=Verdict, instructions="Decide.")
    agent = sdk.Agent("desk", model=model, handoffs=[clerk])
    replayed: list[int] = []
    plain = ReplayedAgent._read

    def read(self: Any, ctx: Any) -> Any:
        start, journal = plain(self, ctx)
        replayed.append(len(journal))
        return start, journal

    monkeypatch.setattr(ReplayedAgent, "_read", read)
    durable(agent, name="triage", replay_max=6, registry=registry)
    assert local().drain(start(client, tenant)).result == {"refund": True}
    assert max(replayed) <= 8
    wanted = [*(f"model {n}" for n in range(rounds + 2)), *(f"look {n}" for n in range(rounds))]
    assert sorted(model.ran) == sorted(wanted)


def test_a_tool_is_not_called_again_after_its_result_was_stored(
    registry: Registry, client: Client, tenant: str, local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    I5: the attempt ends between the call and the settlement; the next recalls it, under the same key.
    """
    model = Scripted([call("pay", x=1)], "paid")
    keys: list[str] = []

    @sdk.function_tool
    def pay(x: int) -> str:
        keys.append(agentq.idempotency_key())
        return "receipt"

    durable(sdk.Agent("desk", model=model, tools=[pay]), name="triage", registry=registry)
    fleet, session = local(), start(client, tenant)
    broke = iter([True])

    def probe(point: str) -> None:
        if point == "effect_stored" and next(broke, False):
            raise Transient("the worker stumbles after the call")

    monkeypatch.setattr("agentq.engine.probe", probe)
    assert fleet.drain(session).result == "paid"
    assert (len(keys), model.heard) == (1, ["receipt"])


def test_a_failing_tool_is_tried_again_before_the_model_is_told(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    What may pass is the step's to retry; a bug is told to the model in the SDK's words, not the error's.
    """
    model = Scripted([call("flaky", x=1)], [call("broken", x=2)], "done")
    tries: list[int] = []

    @sdk.function_tool
    def flaky(x: int) -> str:
        tries.append(x)
        if len(tries) == 1:
            raise Transient("not yet")
        return "page"

    @sdk.function_tool
    def broken(x: int) -> str:
        raise KeyError("secret")

    durable(sdk.Agent("desk", model=model, tools=[flaky, broken]), name="triage", registry=registry)
    assert local().drain(start(client, tenant)).result == "done"
    assert len(tries) == 2
    assert model.heard[0] == "page"
    assert "error" in model.heard[1]
    assert "secret" not in model.heard[1]


def test_what_nobody_declared_is_not_repeated(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    model = Scripted([call("pay", x=1)], "paid")

    @sdk.function_tool
    def pay(x: int) -> str:
        raise TimeoutError("no answer")

    durable(sdk.Agent("desk", model=model, tools=[pay]), name="triage", registry=registry)
    with pytest.raises(UnknownEffect):
        local().drain(start(client, tenant))
    assert model.ran == ["model 0"]


def asking(registry: Registry, model: Scripted) -> None:
    @sdk.function_tool(needs_approval=True)
    def pay(cents: int) -> str:
        model.ran.append(f"paid {cents}")
        return f"paid {cents}"

    @sdk.function_tool
    def look(x: int) -> str:
        model.ran.append("look")
        return "seen"

    durable(sdk.Agent("desk", model=model, tools=[pay, look]), name="triage", to="finance", registry=registry)


def asked(fleet: LocalFleet, session: Session) -> str:
    with pytest.raises(Stuck, match="May pay go ahead"):
        fleet.drain(session)
    [found] = fleet.client.approvals.ls(tenant=session.tenant)
    return str(found.approval_id)


def test_a_tool_that_needs_approval_asks_within_the_run(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    Nothing is paid before somebody says so, and then what they made of it, once; other calls do not wait.
    """
    model = Scripted([call("pay", cents=900), call("look", x=1)], None, "done")
    asking(registry, model)
    fleet, session = local(), start(client, tenant)
    approval = client.approvals.get(asked(fleet, session))
    assert (approval.groups, approval.args) == (("finance",), {"arguments": {"cents": 900}})
    assert model.ran == ["model 0", "look"]
    client.approvals.grant(approval.id, edits={"arguments.cents": 500})
    assert fleet.drain(session).result == "done"
    assert model.ran == ["model 0", "look", "paid 500", "model 2"]


def test_the_model_is_told_of_a_refusal(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    model = Scripted([call("pay", cents=900)], "not done")
    asking(registry, model)
    fleet, session = local(), start(client, tenant)
    client.approvals.deny(asked(fleet, session), reason="too much")
    assert fleet.drain(session).result == "not done"
    assert model.heard == ["Not allowed: too much. The call was not carried out."]
    assert model.ran == ["model 0", "model 1"]


def test_it_speaks_to_a_real_server(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    Over HTTP, through the SDK's own model: a refusal for now is the step's to retry, and max_tokens is always set.
    """
    replies = [
        error(429, "rate_limit_exceeded", "slow down", Retry_After="1"),
        Reply(calls=[("look", {"x": 1})], headers={"x-ratelimit-limit-tokens": "987654321"}),
        Reply(text="done"),
    ]

    @sdk.function_tool
    def look(x: int) -> str:
        return "seen"

    with OpenAIServer(*replies) as server:
        own = AsyncOpenAI(base_url=server.url, api_key="sk-test-secret", max_retries=0)
        model = sdk.OpenAIChatCompletionsModel("gpt-5-mini", own)
        durable(sdk.Agent("desk", model=model, tools=[look]), name="triage", registry=registry)
        session = start(client, tenant)
        assert local().drain(session).result == "done"
    assert len(server.requests) == 3
    assert {request.get("max_tokens") for request in server.requests} == {4096}
    assert [row.learned_tokens for row in client.rates.ls() if row.provider == "openai:gpt-5-mini"] == [987654321]
    assert [message["role"] for message in server.requests[-1]["messages"]] == ["user", "assistant", "tool"]
    assert session.view().cost_usd > 0


def test_nothing_is_told_to_the_sdk_s_tracing(
    registry: Registry, client: Client, tenant: str, local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Its default is to send prompts and results to OpenAI, here once for each replay.
    """
    told: list[Any] = []

    class Recorder(sdk.tracing.TracingProcessor):
        def on_trace_start(self, trace: Any) -> None:
            told.append(trace)

        on_trace_end = on_span_start = on_span_end = on_trace_start

        def shutdown(self) -> None:
            """Nothing to end."""

        force_flush = shutdown

    monkeypatch.delenv("OPENAI_AGENTS_DISABLE_TRACING", raising=False)
    sdk.set_trace_processors([Recorder()])
    try:
        asking(registry, model := Scripted([call("look", x=1)], "done"))
        assert local().drain(start(client, tenant)).result == "done"
    finally:
        sdk.set_trace_processors([])
    assert (model.ran, told) == (["model 0", "look", "model 1"], [])


def test_guardrails_and_limits_end_the_session(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    @sdk.input_guardrail(run_in_parallel=False)
    def never(context: Any, agent: Any, input: Any) -> sdk.GuardrailFunctionOutput:
        return sdk.GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)

    @sdk.function_tool
    def look(x: int) -> str:
        return "seen"

    guarded = sdk.Agent("desk", model=Scripted("never said"), input_guardrails=[never])
    durable(guarded, name="triage", registry=registry)
    session = start(client, tenant)
    fleet = local()
    assert (fleet.drain(session).failure or {})["type"] == "InputGuardrailTripwireTriggered"
    endless = sdk.Agent("desk", model=Scripted(*[[call("look", x=n)] for n in range(9)]), tools=[look])
    durable(endless, name="endless", limits=Limits(tool_calls=2), registry=registry)
    session = client.start("endless", tenant=tenant, input={"prompt": "go"})
    assert (local().drain(session).failure or {})["kind"] == "limit"


def test_what_cannot_be_carried_is_refused(registry: Registry) -> None:
    with pytest.raises(ConfigError, match=r"agents\.Agent"):
        durable("agent", name="triage", registry=registry)  # type: ignore[arg-type]
    shell = sdk.LocalShellTool(executor=lambda request: "")
    with pytest.raises(ConfigError, match="LocalShellTool"):
        durable(sdk.Agent("desk", model=Scripted(), tools=[shell]), name="triage", registry=registry)
    twins = sdk.Agent("desk", model=Scripted(), handoffs=[sdk.Agent("desk", model=Scripted())])
    with pytest.raises(ConfigError, match="two agents"):
        durable(twins, name="triage", registry=registry)
