"""Model agents within bounds: limits end, park or ask; the breaker isolates one session; people allow what is final."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.usage import RequestUsage

from agentq import Limits, ModelAgent, Price, UnknownPrice, tool
from agentq.agents.registry import Registry
from agentq.client import Client, Session
from agentq.store.recovery import By, Recovery
from agentq.testing import LocalFleet
from agentq.verdicts import Carried
from tests.agents.test_model import Script, calls, start

Local = Callable[..., LocalFleet]
ME = By("ada", "looked at it")


def look(n: int) -> str:
    """Look something up."""
    return f"page {n}"


def looks(count: int) -> list[ModelResponse]:
    return [calls(("look", {"n": n}), tokens=100) for n in range(count)]


def hold(session: Session, admin: Any) -> dict[str, Any]:
    query = "select state, hold from agentq.session where session_id = %s"
    state, found = admin.execute(query, (session.id,)).fetchone()
    assert state == "paused"
    return dict(found)


def run_out(fleet: LocalFleet, tenant: str) -> list[str]:
    """Carry what is due until nothing is; what each delivery came to."""
    verdicts = []
    while (verdict := fleet.carry_next(tenant)) is not None:
        verdicts.append(verdict.closing if isinstance(verdict, Carried) else str(verdict))
    return verdicts


def resume(client: Client, session: Session) -> None:
    assert Recovery(client.sessions.store).resume(session.tenant, uuid.UUID(session.id), ME) == ("running", True)


@pytest.mark.parametrize(
    ("limits", "name", "asked"),
    [
        (Limits(model_calls=3), "model_calls", 3),
        (Limits(tool_calls=2), "tool_calls", 3),
        (Limits(steps=4), "steps", 2),
        (Limits(tokens=450), "tokens", 2),
        (Limits(output_tokens=250), "output_tokens", 3),
        (Limits(cost_usd="0.0005"), "cost_usd", 2),
    ],
)
def test_a_limit_ends_the_session_before_the_call(
    registry: Registry, client: Client, tenant: str, local: Local, limits: Limits, name: str, asked: int
) -> None:
    """
    Hard: the call that would go beyond is not made, and the session says which limit it was.
    """
    script = Script(*looks(9))
    ModelAgent("desk", model=script.model, tools=[look], limits=limits, price=Price(1, 1), registry=registry)
    session = start(client, tenant)
    local().drain(session)
    failure = session.view().failure
    assert failure is not None
    assert (failure["kind"], failure["type"]) == ("limit", "LimitReached")
    assert name in failure["message"]
    assert len(script.asked) == asked


def test_wall_time_is_a_limit(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    script = Script(*looks(9))
    ModelAgent("desk", model=script.model, tools=[look], limits=Limits(wall=0.0001), registry=registry)
    session = start(client, tenant)
    local().drain(session)
    assert "wall" in (session.view().failure or {})["message"]


def test_the_answer_is_held_to_what_is_left(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    max_tokens shrinks; an answer that is cut off for that is the limit, not the model's fault.
    """
    cut = ModelResponse(
        [TextPart("it was")], finish_reason="length", usage=RequestUsage(input_tokens=10, output_tokens=30)
    )
    script = Script(*looks(1), cut)
    ModelAgent("desk", model=script.model, tools=[look], limits=Limits(output_tokens=130), registry=registry)
    session = start(client, tenant)
    local().drain(session)
    assert [info.model_settings["max_tokens"] for info in script.infos] == [130, 30]
    assert (session.view().failure or {})["kind"] == "limit"


def test_a_limit_of_cost_needs_a_price(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    Never silently zero.
    """
    model = FunctionModel(Script("x").answer, model_name="gpt-of-nobody")
    model._system = "openai"
    ModelAgent("desk", model=model, limits=Limits(cost_usd=1), registry=registry)
    with pytest.raises(UnknownPrice, match="gpt-of-nobody"):
        local().drain(start(client, tenant))


def test_a_limit_that_parks_is_granted_once_more_by_resuming(
    registry: Registry, client: Client, tenant: str, local: Local, admin: Any
) -> None:
    """
    No attempt is lost, nothing is asked of the model meanwhile; each resume grants the same again, once.
    """
    script = Script(*looks(5), "end")
    ModelAgent(
        "desk", model=script.model, tools=[look], limits=Limits(model_calls=2, on_reach="park"), registry=registry
    )
    session, fleet = start(client, tenant), local()
    for granted in (1, 2):
        assert run_out(fleet, tenant)[-1] == "park"
        assert hold(session, admin)["kind"] == "limit"
        assert hold(session, admin)["evidence"]["limit"] == "model_calls"
        assert len(script.asked) == 2 * granted
        resume(client, session)
    assert fleet.drain(session).result == "end"
    assert {step.attempt for step in session.steps()} == {1}


@pytest.mark.parametrize("granted", [True, False])
def test_a_limit_that_asks(registry: Registry, client: Client, tenant: str, local: Local, granted: bool) -> None:
    script = Script(*looks(3), "end")
    ModelAgent(
        "desk", model=script.model, tools=[look], limits=Limits(model_calls=2, on_reach="ask"), registry=registry
    )
    session, fleet = start(client, tenant), local()
    run_out(fleet, tenant)
    [approval] = client.approvals.ls(tenant=tenant, session_id=session.id)
    assert "model_calls" in approval.question
    decide = client.approvals.grant if granted else client.approvals.deny
    decide(str(approval.approval_id), reason="because", who=client.approvals.who("ada"))
    fleet.drain(session) if granted else run_out(fleet, tenant)
    view = session.view()
    assert view.result == "end" if granted else (view.failure or {})["kind"] == "limit"
    assert len(script.asked) == (4 if granted else 2)


def test_the_breaker_isolates_one_session(
    registry: Registry, client: Client, tenant: str, local: Local, admin: Any
) -> None:
    """
    A loop is hinted at, then parked with its evidence; another session of the same agent and tenant goes on.
    """
    stuck = [calls(("look", {"n": 1})) for _ in range(20)]
    script = Script(*stuck)
    ModelAgent("desk", model=script.model, tools=[look], registry=registry)
    session, fleet = start(client, tenant), local()
    assert run_out(fleet, tenant)[-1] == "park"
    found = hold(session, admin)
    assert found["kind"] == "breaker"
    assert found["evidence"]["rule"] == "stale"
    assert "repeated" in found["reason"]
    assert len(script.asked) == 7
    assert "repeated earlier ones" in str(script.asked[5][-1])

    script.said = ["fine"]
    other = start(client, tenant)
    assert fleet.drain(other).result == "fine"
    assert session.view().state == "paused"

    # Somebody has looked at it: the window is new, and a new loop is a new trip.
    script.said = list(stuck)
    resume(client, session)
    assert run_out(fleet, tenant)[-1] == "park"
    assert len(script.asked) == 7 + 1 + 7
    script.said = ["found it"]
    resume(client, session)
    assert fleet.drain(session).result == "found it"


def test_a_pause_by_an_operator_excuses_nothing(
    registry: Registry, client: Client, tenant: str, local: Local, admin: Any
) -> None:
    """
    Only a resume after the session parked itself lets it go on; one after somebody's pause does not.
    """
    script = Script(*[calls(("look", {"n": 1})) for _ in range(20)])
    ModelAgent("desk", model=script.model, tools=[look], registry=registry)
    session, fleet = start(client, tenant), local()
    Recovery(client.sessions.store).pause(tenant, uuid.UUID(session.id), ME)
    resume(client, session)
    assert run_out(fleet, tenant)[-1] == "park"
    assert len(script.asked) == 7


@pytest.mark.parametrize("granted", [True, False])
def test_an_irreversible_tool_waits_for_people(
    registry: Registry, client: Client, tenant: str, local: Local, granted: bool
) -> None:
    """
    Nothing happens before the leave; a no is told to the model as a no, and nothing happens at all.
    """
    wired: list[int] = []

    @tool(irreversible=True, question=lambda cents, to: f"Wire {cents} to {to}?")
    def wire(cents: int, to: str) -> str:
        """Wire money."""
        wired.append(cents)
        return "wired"

    script = Script(calls(("wire", {"cents": 500, "to": "bob"}), ("look", {"n": 1})), "told")
    ModelAgent("desk", model=script.model, tools=[wire, look], registry=registry)
    session, fleet = start(client, tenant), local()
    run_out(fleet, tenant)
    assert wired == []
    [approval] = client.approvals.ls(tenant=tenant, session_id=session.id)
    assert approval.question == "Wire 500 to bob?"
    decide = client.approvals.grant if granted else client.approvals.deny
    decide(str(approval.approval_id), reason="so be it", who=client.approvals.who("ada"))
    assert fleet.drain(session).result == "told"
    assert wired == ([500] if granted else [])
    assert [part.outcome for part in script.told] == ["success" if granted else "denied", "success"]


def test_an_approver_may_change_the_arguments(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    wired: list[int] = []

    @tool(irreversible=True)
    async def wire(cents: int) -> str:
        """Wire money."""
        wired.append(cents)
        return f"wired {cents}"

    script = Script(ModelResponse([ToolCallPart("wire", {"cents": 500})]), "told")
    ModelAgent("desk", model=script.model, tools=[wire], registry=registry)
    session, fleet = start(client, tenant), local()
    run_out(fleet, tenant)
    [approval] = client.approvals.ls(tenant=tenant, session_id=session.id)
    client.approvals.grant(
        str(approval.approval_id), reason="less", who=client.approvals.who("ada"), edits={"cents": 5}
    )
    assert fleet.drain(session).result == "told"
    assert wired == [5]
    assert script.told[0].content == "wired 5"
