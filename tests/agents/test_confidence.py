"""Confidence, and the ends of an agent's patience with its models: another model, then a person."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from agentq import ModelAgent, tool
from agentq.agents.registry import Registry
from agentq.client import Client, Session
from agentq.errors import ConfigError, RepairsExhausted
from agentq.testing import LocalFleet
from tests.support.openai_server import OpenAIServer, Reply, error

Local = Callable[..., LocalFleet]


class Verdict(BaseModel):
    """What the desk decides."""

    cents: int


@pytest.fixture
def paid() -> list[int]:
    return []


@pytest.fixture
def pay(paid: list[int]) -> Any:
    @tool
    def pay(cents: int) -> str:
        """Pay."""
        paid.append(cents)
        return f"paid {cents}"

    return pay


def decide(client: Client, session: Session, verdict: str, **edits: Any) -> str:
    """Answer the one question that is open; what was asked."""
    [asked] = client.approvals.ls(tenant=session.tenant, session_id=session.id)
    who = client.approvals.who("ada")
    if verdict == "denied":
        client.approvals.deny(str(asked.approval_id), reason="too much", who=who)
    else:
        client.approvals.grant(str(asked.approval_id), reason="fine", who=who, edits=edits or None)
    return asked.question


def run_out(fleet: LocalFleet, tenant: str) -> None:
    while fleet.carry_next(tenant) is not None:
        pass


def confidences(admin: Any, session: Session) -> list[float]:
    query = "select confidence from agentq.decision where session_id = %s order by decided_at, ordinal"
    rows = admin.execute(query, (session.id,))
    return [row[0] for row in rows.fetchall() if row[0] is not None]


def test_a_sure_call_goes_ahead_and_states_it(
    registry: Registry, client: Client, tenant: str, local: Local, admin: Any, pay: Any, paid: list[int]
) -> None:
    """
    Confidence is asked for with each call, is kept with the decision, and does not reach the tool.
    """
    sure = [Reply(calls=[("pay", {"cents": 5, "confidence": 0.9})])]
    sure += [Reply(calls=[("final_result", {"cents": 5, "confidence": 1})])]
    with OpenAIServer(*sure) as server:
        ModelAgent("desk", model=server.model(), tools=[pay], output=Verdict, confidence_min=0.8, registry=registry)
        session = client.start("desk", tenant=tenant, input={"prompt": "pay"})
        assert local().drain(session).result == {"cents": 5}
        shown = [given["function"]["parameters"] for given in server.requests[0]["tools"]]
    assert all("confidence" in schema["required"] for schema in shown)
    assert paid == [5]
    assert confidences(admin, session) == [0.9, 1.0]


@pytest.mark.parametrize("stated", [{"confidence": 0.5}, {}, {"confidence": "high"}, {"confidence": 7}])
@pytest.mark.parametrize("verdict", ["granted", "denied", "edited"])
def test_an_unsure_call_waits_for_a_person(
    registry: Registry, client: Client, tenant: str, local: Local, pay: Any, paid: list[int], stated: Any, verdict: str
) -> None:
    """
    Nothing is done before the leave; with a no nothing ever, and the model is told; changed, as changed.
    """
    replies = [Reply(calls=[("pay", {"cents": 5, **stated})]), Reply("so be it")]
    with OpenAIServer(*replies) as server:
        ModelAgent("desk", model=server.model(), tools=[pay], confidence_min=0.8, registry=registry)
        session, fleet = client.start("desk", tenant=tenant, input={"prompt": "pay"}), local()
        run_out(fleet, tenant)
        assert paid == []
        edits = {"calls.0.arguments.cents": 3} if verdict == "edited" else {}
        assert "80%" in decide(client, session, verdict, **edits)
        assert fleet.drain(session).result == "so be it"
        told = server.requests[1]["messages"][-1]
    assert told["role"] == "tool"
    assert paid == {"granted": [5], "denied": [], "edited": [3]}[verdict]
    assert ("too much" in str(told["content"])) == (verdict == "denied")


@pytest.mark.parametrize("verdict", ["granted", "denied", "edited"])
def test_an_unsure_answer_waits_for_a_person(
    registry: Registry, client: Client, tenant: str, local: Local, verdict: str
) -> None:
    replies = [
        Reply(calls=[("final_result", {"cents": cents, "confidence": sure})]) for cents, sure in ((5, 0.1), (1, 1))
    ]
    with OpenAIServer(*replies) as server:
        ModelAgent("desk", model=server.model(), output=Verdict, confidence_min=0.8, registry=registry)
        session, fleet = client.start("desk", tenant=tenant, input={"prompt": "how much?"}), local()
        run_out(fleet, tenant)
        assert not session.view().ended
        decide(client, session, verdict, **({"answer.cents": 3} if verdict == "edited" else {}))
        result = fleet.drain(session).result
    assert result == {"granted": {"cents": 5}, "denied": {"cents": 1}, "edited": {"cents": 3}}[verdict]


def test_an_approver_changes_arguments_and_no_tools(
    registry: Registry, client: Client, tenant: str, local: Local, pay: Any, paid: list[int]
) -> None:
    with OpenAIServer(Reply(calls=[("pay", {"cents": 5, "confidence": 0})])) as server:
        ModelAgent("desk", model=server.model(), tools=[pay], confidence_min=0.8, registry=registry)
        session, fleet = client.start("desk", tenant=tenant, input={"prompt": "pay"}), local()
        run_out(fleet, tenant)
        decide(client, session, "granted", **{"calls.0.tool": "read_result"})
        with pytest.raises(Exception, match="not which tool"):
            fleet.drain(session)
    assert paid == []


@pytest.mark.parametrize("wrong", [{"confidence_min": 0}, {"confidence_min": 2}, {"confidence_to": "a"}])
def test_settings_that_make_no_sense(registry: Registry, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ModelAgent("desk", model="test", registry=registry, **wrong)


@pytest.mark.parametrize("verdict", ["granted", "denied"])
def test_after_all_repairs_and_models_a_person_is_asked(
    registry: Registry, client: Client, tenant: str, local: Local, verdict: str
) -> None:
    """
    The whole chain over HTTP: repairs with their own reservations, the fallback model, then a person.
    """
    with OpenAIServer(*[Reply("")] * 2) as first, OpenAIServer(*[Reply("")] * 2) as second:
        ModelAgent(
            "desk", model=first.model(), fallbacks=[second.model("gpt-5")], repairs=1, on_exhausted="ask",
            registry=registry,
        )  # fmt: skip
        session, fleet = client.start("desk", tenant=tenant, input={"prompt": "go"}), local()
        run_out(fleet, tenant)
        assert (len(first.requests), len(second.requests)) == (2, 2)
        assert "usable answer" in str(second.requests[1]) or "empty" in str(second.requests[1])
        assert session.view().input_tokens == 200
        first.replies = [Reply("at last")]
        assert "empty" in decide(client, session, verdict)
        run_out(fleet, tenant)
    view = session.view()
    assert view.state == ("done" if verdict == "granted" else "failed")
    assert view.result == "at last" if verdict == "granted" else (view.failure or {})["type"] == "RepairsExhausted"


def test_without_a_person_it_is_a_dead_letter(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    with OpenAIServer(*[Reply("")] * 2) as server:
        ModelAgent("desk", model=server.model(), repairs=1, registry=registry)
        session = client.start("desk", tenant=tenant, input={"prompt": "go"})
        with pytest.raises(RepairsExhausted):
            local().drain(session)
    assert len(server.requests) == 2


@pytest.mark.parametrize("switches", [True, False])
def test_an_outage_goes_over_to_a_model_of_another_provider(
    registry: Registry, client: Client, tenant: str, local: Local, admin: Any, switches: bool
) -> None:
    """
    The breaker of the first model's provider is open: the next model answers, no attempt is lost, and it is noted.
    """
    name = f"outage-{tenant}"
    client.dependencies.force(name, "open", reason="out of order")
    with OpenAIServer() as first, OpenAIServer(Reply("from the second")) as second:
        agent = ModelAgent(
            "desk", model=first.model(), fallbacks=[second.model("gpt-5")], fallback_on_outage=switches,
            registry=registry,
        )  # fmt: skip
        names = {id(agent.models[0]): name, id(agent.models[1]): f"other-{tenant}"}
        session, fleet = client.start("desk", tenant=tenant, input={"prompt": "go"}), local()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("agentq.agents.model.turn.dependency", lambda model: names[id(model)])
            if switches:
                assert fleet.drain(session, steps_max=20).result == "from the second"
            else:
                fleet.carry_next(tenant)
    assert not first.requests
    assert len(second.requests) == int(switches)
    steps = session.steps()
    assert steps[0].state == ("done" if switches else "ready")
    whys = [row[0] for row in admin.execute("select why from agentq.decision where session_id = %s", (session.id,))]
    assert any(name in why for why in whys) == switches


def test_a_spent_quota_goes_over_at_once(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    with OpenAIServer(error(429, "insufficient_quota")) as first, OpenAIServer(Reply("from the second")) as second:
        ModelAgent("desk", model=first.model(), fallbacks=[second.model("gpt-5")], registry=registry)
        session = client.start("desk", tenant=tenant, input={"prompt": "go"})
        assert local().drain(session).result == "from the second"
    assert len(first.requests) == 1
