"""The decision log: what a model chose, what else it named, and what of an answer was not carried out."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart

from agentq import ModelAgent, idempotency_key, tool
from agentq.agents.model import choice
from agentq.agents.registry import Registry
from agentq.client import Client, Session
from agentq.errors import RepairsExhausted
from agentq.payload import decode
from agentq.store.pool import Store
from agentq.store.traces import DecisionRow, Traces
from agentq.testing import LocalFleet
from tests.agents.test_tracing import recording
from tests.cli.conftest import Cli, cli
from tests.support.openai_server import OpenAIServer, Reply

__all__ = ["cli"]

Local = Callable[..., LocalFleet]

CHOICE = {
    "reason": "it was delivered broken, says ada@example.com",
    "alternatives": [
        {"option": "ask ada@example.com for a picture", "why_not": "she sent one"},
        {"option": "send another"},
    ],
    "confidence": 0.8,
}


class Verdict(BaseModel):
    """What the desk decides."""

    cents: int


@pytest.fixture
def paid() -> list[tuple[int, str]]:
    return []


@pytest.fixture
def pay(paid: list[tuple[int, str]]) -> Any:
    @tool(idempotent=True)
    def pay(cents: int) -> str:
        """Pay."""
        paid.append((cents, idempotency_key()))
        return f"paid {cents}"

    return pay


def decisions(store: Store, session: Session) -> list[tuple[DecisionRow, list[Any]]]:
    rows = Traces(store).decisions(session.tenant, uuid.UUID(session.id), session.view().created_at)
    return [(row, decode(row.options)) for row in rows]


def named(options: list[Any]) -> list[Any]:
    return [option for option in options if isinstance(option, dict) and "alternative" in option]


def one_call(server: OpenAIServer, arguments: Any) -> None:
    server.replies = [Reply(calls=[("pay", arguments)]), Reply("so be it")]


def test_a_call_states_why_and_rather_than_what(
    registry: Registry, client: Client, tenant: str, local: Local, store: Store, cli: Cli, pay: Any, paid: Any
) -> None:
    """
    Reason, alternatives and confidence stand in the decision, redacted; the tool does not get them.
    """
    with OpenAIServer() as server:
        one_call(server, {"cents": 5, "choice": CHOICE})
        ModelAgent("desk", model=server.model(), tools=[pay], explain=True, registry=registry)
        session = client.start("desk", tenant=tenant, input={"prompt": "pay"})
        assert local().drain(session).result == "so be it"
        [shown] = [given["function"]["parameters"] for given in server.requests[0]["tools"]]
        assert "choice" in shown["properties"]
        assert "choice" not in shown["required"]
    assert [cents for cents, _ in paid] == [5]
    [(made, options)] = decisions(store, session)
    assert (made.picked, made.why) == ("pay", "it was delivered broken, says [email]")
    assert made.confidence == pytest.approx(0.8)
    assert named(options) == [
        {"alternative": "ask [email] for a picture", "why_not": "she sent one"}, {"alternative": "send another"},
    ]  # fmt: skip
    assert {"tool": "pay", "calls": 1}.items() <= options[0].items()
    said = cli.ok("session", "trace", session.id)
    assert "RATHER THAN" in said
    assert "send another" in said


def test_it_is_off_unless_asked_for(
    registry: Registry, client: Client, tenant: str, local: Local, store: Store, pay: Any, paid: Any
) -> None:
    """
    No model is asked for more than its tools take, and what one says all the same is an argument like any other.
    """
    with OpenAIServer() as server:
        one_call(server, {"cents": 5, "choice": CHOICE})
        ModelAgent("desk", model=server.model(), tools=[pay], registry=registry)
        session = client.start("desk", tenant=tenant, input={"prompt": "pay"})
        local().drain(session)
        assert "choice" not in str(server.requests[0]["tools"])
    [(made, options)] = decisions(store, session)
    assert "delivered" not in (made.why or "")
    assert (made.confidence, named(options)) == (None, [])


def test_what_is_stated_is_no_part_of_the_call(
    registry: Registry, client: Client, tenant: str, local: Local, admin: Any, pay: Any, paid: Any
) -> None:
    """
    I5: the effect's key and the digest of its arguments are those of a call that states nothing; so is what the
    session breaker compares, to which a call made again for another reason is the same call again.
    """

    def effects(session: Session) -> list[Any]:
        query = "select name, encode(args_hash, 'hex') from agentq.effect where session_id = %s"
        return admin.execute(query, (session.id,)).fetchall()

    found = []
    for number, arguments in enumerate([{"cents": 5}, {"cents": 5, "choice": CHOICE}]):
        with OpenAIServer() as server:
            one_call(server, arguments)
            ModelAgent(f"desk{number}", model=server.model(), tools=[pay], explain=True, registry=registry)
            session = client.start(f"desk{number}", tenant=tenant, input={"prompt": "pay"})
            local().drain(session)
            found.append(effects(session))
    assert found[0] == found[1]
    # By place, not by what was said.
    assert all(key.startswith("s:") for _, key in paid)


def test_the_same_call_for_ever_new_reasons_is_going_in_circles(
    registry: Registry, client: Client, tenant: str, local: Local, pay: Any
) -> None:
    """
    The breaker parks it as soon, and for the same, as it would without any.
    """
    found = []
    for name, reasoned in (("plain", False), ("wordy", True)):
        more = [{"choice": {"reason": f"reason {n}"}} if reasoned else {} for n in range(20)]
        with OpenAIServer(*[Reply(calls=[("pay", {"cents": 5, **one})]) for one in more]) as server:
            ModelAgent(name, model=server.model(), tools=[pay], explain=True, registry=registry)
            session, fleet = client.start(name, tenant=tenant, input={"prompt": "pay"}), local()
            while fleet.carry_next(tenant) is not None:
                pass
            assert session.view().state == "paused"
            found.append((len(server.requests), (session.inspect().hold or {})["evidence"]["rule"]))
    assert found[0] == found[1]
    assert found[0][0] < 20


@pytest.mark.parametrize(
    ("said", "reason", "others", "sure"),
    [
        ("just so", "just so", [], None),
        ({"reason": " ", "alternatives": "wait", "confidence": 7}, None, [{"alternative": "wait"}], None),
        ({"alternatives": [1, None, {}, {"why_not": "x"}, "wait"]}, None, [{"alternative": "wait"}], None),
        ({"alternatives": ["a"] * 100, "confidence": True}, None, [{"alternative": "a"}] * 8, None),
        ({"reason": "x" * 9000, "confidence": 1}, "x" * 500, [], 1.0),
        (["no"], None, [], None),
        (None, None, [], None),
    ],
)  # fmt: skip
def test_a_statement_of_another_form_spoils_no_call(said: Any, reason: Any, others: Any, sure: Any) -> None:
    """
    What can be read of it is kept, bounded; the arguments are the call's in any case.
    """
    call = ToolCallPart("pay", {"cents": 5, "choice": said}, tool_call_id="1")
    bare, stated = choice.split(ModelResponse([TextPart("hm"), call]), {"pay": {"properties": {"cents": {}}}})
    assert bare.parts[1].args == {"cents": 5}  # type: ignore[union-attr]
    found = stated.get("1", choice.Stated("pay"))
    assert (found.reason, list(found.alternatives), found.confidence) == (reason, others, sure)


@pytest.mark.parametrize("arguments", ["{not json", "[1]", None])
def test_what_is_no_object_is_left_as_it_is(arguments: Any) -> None:
    response = ModelResponse([ToolCallPart("pay", arguments, tool_call_id="1")])
    assert choice.split(response, {}) == (response, {})


def test_a_tool_with_such_an_argument_keeps_it(
    registry: Registry, client: Client, tenant: str, local: Local, store: Store
) -> None:
    got: list[str] = []

    @tool(idempotent=True)
    def vote(choice: str) -> str:
        """Vote."""
        got.append(choice)
        return "counted"

    with OpenAIServer(Reply(calls=[("vote", {"choice": "red"})]), Reply("done")) as server:
        ModelAgent("desk", model=server.model(), tools=[vote], explain=True, registry=registry)
        session = client.start("desk", tenant=tenant, input={"prompt": "vote"})
        local().drain(session)
        [given] = [given["function"]["parameters"]["properties"] for given in server.requests[0]["tools"]]
    assert got == ["red"]
    assert given["choice"]["type"] == "string"


def test_calls_side_by_side_say_whose_alternatives_they_are(
    registry: Registry, client: Client, tenant: str, local: Local, store: Store, pay: Any, paid: Any
) -> None:
    calls = [
        ("pay", {"cents": n, "choice": {"reason": f"because {n}", "alternatives": [f"not {n}"], "confidence": n / 10}})
        for n in (1, 2)
    ]
    with OpenAIServer(Reply("Both.", calls=calls), Reply("done")) as server:
        ModelAgent("desk", model=server.model(), tools=[pay], explain=True, registry=registry)
        session = client.start("desk", tenant=tenant, input={"prompt": "pay"})
        local().drain(session)
    [(made, options)] = decisions(store, session)
    assert made.why == "Both.\npay: because 1; pay: because 2"
    assert made.confidence == pytest.approx(0.1)
    assert named(options) == [{"alternative": f"not {n}", "instead": "pay"} for n in (1, 2)]


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_a_final_call_states_it_too(
    registry: Registry, client: Client, tenant: str, local: Local, store: Store, threshold: float | None
) -> None:
    """
    With a threshold of confidence that is asked for beside it, and decides; the choice has none of its own then.
    """
    said = {"cents": 5, "choice": {"reason": "by the book", "alternatives": ["nothing"], "confidence": 0.1}}
    said |= {"confidence": 0.9} if threshold else {}
    with OpenAIServer(Reply(calls=[("final_result", said)])) as server:
        ModelAgent(
            "desk", model=server.model(), output=Verdict, explain=True, confidence_min=threshold, registry=registry
        )
        session = client.start("desk", tenant=tenant, input={"prompt": "pay"})
        assert local().drain(session).result == {"cents": 5}
        [given] = [given["function"]["parameters"]["properties"] for given in server.requests[0]["tools"]]
    assert ("confidence" in given["choice"]["properties"]) == (threshold is None)
    made, options = decisions(store, session)[0]
    assert (made.picked, made.why, named(options)) == ("answer", "by the book", [{"alternative": "nothing"}])
    assert made.confidence == pytest.approx(0.9 if threshold else 0.1)


# ── what was not carried out ─────────────────────────────────────────────────


def test_calls_that_came_with_the_answer_are_told(
    registry: Registry, client: Client, tenant: str, local: Local, store: Store, pay: Any, paid: Any
) -> None:
    both = [("pay", {"cents": 1}), ("final_result", {"cents": 5})]
    with OpenAIServer(Reply("That will do.", calls=both)) as server:
        ModelAgent("desk", model=server.model(), tools=[pay], output=Verdict, registry=registry)
        session = client.start("desk", tenant=tenant, input={"prompt": "pay"})
        assert local().drain(session).result == {"cents": 5}
    assert paid == []
    [(made, options)] = decisions(store, session)
    assert (made.picked, made.why) == ("answer", "That will do.")
    assert options[0]["passed_over"] == 1
    assert "final_result" not in str(options)


@pytest.mark.parametrize("repairs", [0, 1])
def test_calls_of_which_none_could_be_made_are_told(
    registry: Registry, client: Client, tenant: str, local: Local, store: Store, pay: Any, repairs: int
) -> None:
    """
    Whether the model is asked again or the session dies of it.
    """
    wrong = [("nosuch", {"choice": {"reason": "I want to", "alternatives": ["pay"]}}), ("pay", {"cents": "five"})]
    with OpenAIServer(Reply(calls=wrong), Reply("never mind")) as server:
        ModelAgent("desk", model=server.model(), tools=[pay], explain=True, repairs=repairs, registry=registry)
        session, fleet = client.start("desk", tenant=tenant, input={"prompt": "pay"}), local()
        if repairs:
            assert fleet.drain(session).result == "never mind"
        else:
            with pytest.raises(RepairsExhausted):
                fleet.drain(session)
    [(made, options)] = decisions(store, session)
    assert made.picked == "none"
    assert made.why is not None
    assert "there is no tool 'nosuch'" in made.why
    assert "I want to" in made.why
    assert [(one["tool"], one["refused"]) for one in options if isinstance(one, dict) and "refused" in one] == [
        ("pay", 1), ("nosuch", 1),
    ]  # fmt: skip
    assert [one["alternative"] for one in named(options)] == ["pay"]


# ── where no content is kept ─────────────────────────────────────────────────


def test_a_tenant_that_keeps_no_content_keeps_no_alternatives(
    registry: Registry, client: Client, tenant: str, local: Local, store: Store, admin: Any, pay: Any
) -> None:
    """
    They are the model's words, as the reason is; that there was a choice, and of which tools, stays.
    """
    admin.execute("update agentq.tenant set trace_content = 'off' where name = %s", (tenant,))
    with OpenAIServer() as server:
        one_call(server, {"cents": 5, "choice": CHOICE})
        ModelAgent("desk", model=server.model(), tools=[pay], explain=True, registry=registry)
        session = client.start("desk", tenant=tenant, input={"prompt": "pay"})
        local().drain(session)
    [(made, options)] = decisions(store, session)
    assert (made.picked, made.why, named(options)) == ("pay", None, [])
    assert options[-1] == "answer"
    assert options[0]["calls"] == 1


@pytest.mark.parametrize("content", [False, True])
def test_without_content_no_step_keeps_them(content: bool) -> None:
    notes = recording(content=content)
    notes.decide(["pay", "ask"], "pay", "it is due", alternatives=[{"alternative": "wait"}])
    [made] = notes.decisions()
    assert json.loads(made.options) == ["pay", "ask", *([{"alternative": "wait"}] if content else [])]
    assert (made.bare_options is not None) == content
