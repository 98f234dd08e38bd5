"""An existing LangGraph graph, unchanged: each superstep a step, effects once, interrupts answered by people."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import pytest
from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import RetryPolicy, Send, interrupt
from pydantic import BaseModel
from typing_extensions import TypedDict

import agentq
from agentq import ApprovalDenied, BudgetExceeded, Permanent, Transient
from agentq.adapters.langgraph import async_context, context, durable
from agentq.agents.registry import Registry
from agentq.client import Client, Session
from agentq.errors import ConfigError
from agentq.testing import LocalFleet
from tests.support.hands import Hands
from tests.support.requests import requests_of

Local = Callable[..., LocalFleet]


class Trip(TypedDict, total=False):
    """Where a trip stands."""

    order: str
    booked: Annotated[list[str], operator.add]
    note: str


def start(client: Client, tenant: str, **given: Any) -> Session:
    return client.start("trip", tenant=tenant, input={"order": "A1"} | given)


def chain(*nodes: Callable[[Trip], Any]) -> StateGraph[Any, Any, Any, Any]:
    graph = StateGraph(Trip)
    names = [START, *(node.__name__ for node in nodes), END]
    for node in nodes:
        graph.add_node(node.__name__, node)
    for one, other in itertools.pairwise(names):
        graph.add_edge(one, other)
    return graph


def test_each_superstep_is_a_step(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    Plain and async nodes, parallel ones and those of a `Send`, end as they would without agentq.
    """
    ran: list[str] = []

    def plan(state: Trip) -> Trip:
        ran.append("plan")
        return {"note": f"for {state['order']}"}

    def fan(state: Trip) -> list[Send]:
        return [Send("book", {"order": f"{state['order']}-{n}"}) for n in range(3)]

    async def book(state: Trip) -> Trip:
        ran.append(state["order"])
        return {"booked": [state["order"]]}

    def tell(state: Trip) -> Trip:
        ran.append("tell")
        return {"note": f"{state['note']}: {len(state['booked'])}"}

    graph = StateGraph(Trip)
    graph.add_node("plan", plan)
    graph.add_node("book", book)
    graph.add_node("tell", tell)
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", fan, ["book"])
    graph.add_edge("book", "tell")
    durable(graph, name="trip", registry=registry)
    session = start(client, tenant)
    given = local().drain(session).result
    assert given == {"order": "A1", "booked": ["A1-0", "A1-1", "A1-2"], "note": "for A1: 3"}
    assert (ran[0], sorted(ran[1:4]), ran[4:]) == ("plan", ["A1-0", "A1-1", "A1-2"], ["tell"])
    assert [step.name for step in session.steps()] == ["superstep"] * 3


def test_a_node_that_runs_again_repeats_no_effect(
    registry: Registry, client: Client, tenant: str, local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    I5: the attempt ends after the calls, in nodes side by side; the next recalls them under the same keys.
    """
    keys: list[str] = []
    runs: list[str] = []

    def reserve(what: str) -> str:
        keys.append(agentq.idempotency_key())
        return f"{what} reserved"

    def left(state: Trip) -> Trip:
        runs.append("left")
        ctx = context()
        return {"booked": [ctx.call(reserve, "seat"), context().call(reserve, "seat")]}

    async def right(state: Trip) -> Trip:
        runs.append("right")
        done = await async_context().call(reserve, "room")
        if runs.count("right") == 1:
            raise Transient("the worker stumbles after the call")
        return {"booked": [done]}

    graph = StateGraph(Trip)
    for node in (left, right):
        graph.add_node(node.__name__, node)
        graph.add_edge(START, node.__name__)
    durable(graph, name="trip", registry=registry)
    booked = local().drain(start(client, tenant)).result["booked"]
    assert sorted(booked) == ["room reserved", "seat reserved", "seat reserved"]
    assert runs.count("right") == 2
    assert len(keys) == len(set(keys)) == 3


def test_langgraph_s_own_retries_repeat_no_effect(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    A retry policy tries the node again within the step, and its calls are counted anew.
    """
    paid: list[str] = []
    runs: list[int] = []

    def pay(order: str) -> str:
        paid.append(order)
        return "paid"

    def node(state: Trip) -> Trip:
        runs.append(1)
        said = context().call(pay, state["order"])
        if len(runs) < 3:
            raise ConnectionError("after the payment")
        return {"note": said}

    graph = StateGraph(Trip)
    graph.add_node("node", node, retry_policy=RetryPolicy(initial_interval=0.001, jitter=False))
    graph.add_edge(START, "node")
    durable(graph, name="trip", registry=registry)
    session = start(client, tenant)
    assert local().drain(session).result["note"] == "paid"
    assert (len(paid), len(runs), len(session.steps())) == (1, 3, 1)


def asking(ran: list[str]) -> StateGraph[Any, Any, Any, Any]:
    def charge(order: str) -> str:
        ran.append(f"charged {order}")
        return "charged"

    def node(state: Trip) -> Trip:
        ran.append("node")
        context().call(charge, state["order"])
        said = interrupt({"question": "Send it?", "order": state["order"]})
        return {"note": f"{said!r}"}

    return chain(node)


def test_an_interrupt_is_answered_by_people(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    The session waits without a worker; the node then runs again from its start, and charges nobody twice.
    """
    ran: list[str] = []
    durable(asking(ran), name="trip", to="desk", within="1d", registry=registry)
    fleet, session = local(), start(client, tenant)
    fleet.carry_next(tenant)
    [found] = client.approvals.ls(tenant=tenant)
    asked = client.approvals.get(str(found.approval_id))
    assert (asked.question, asked.groups) == ("Send it?", ("desk",))
    assert asked.details == {"question": "Send it?", "order": "A1"}
    client.approvals.grant(asked.id, edits={"resume": "by train"})
    assert fleet.drain(session).result["note"] == "'by train'"
    assert ran == ["node", "charged A1", "node"]


def test_a_refused_interrupt_ends_the_session(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    ran: list[str] = []
    durable(asking(ran), name="trip", registry=registry)
    fleet, session = local(), start(client, tenant)
    fleet.carry_next(tenant)
    [asked] = client.approvals.ls(tenant=tenant)
    client.approvals.deny(str(asked.approval_id), reason="no")
    view = fleet.drain(session)
    assert (view.failure or {})["type"] == ApprovalDenied.__name__
    assert ran == ["node", "charged A1"]


def test_resume_says_what_a_refusal_means(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    durable(asking([]), name="trip", resume=lambda answer: answer.outcome, registry=registry)
    fleet, session = local(), start(client, tenant)
    fleet.carry_next(tenant)
    [asked] = client.approvals.ls(tenant=tenant)
    client.approvals.deny(str(asked.approval_id), reason="no")
    assert fleet.drain(session).result["note"] == "'denied'"


def test_questions_asked_side_by_side_are_answered_one_by_one(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    The graph goes on when the last is answered, and each node gets its own answer.
    """
    ran: list[str] = []

    def left(state: Trip) -> Trip:
        ran.append("left")
        return {"booked": [f"left {interrupt('left?')}"]}

    def right(state: Trip) -> Trip:
        ran.append("right")
        return {"booked": [f"right {interrupt('right?')}"]}

    def after(state: Trip) -> Trip:
        return {"note": "after"}

    graph = StateGraph(Trip)
    for node in (left, right):
        graph.add_node(node.__name__, node)
        graph.add_edge(START, node.__name__)
    graph.add_node("after", after)
    graph.add_edge(["left", "right"], "after")
    durable(graph, name="trip", registry=registry)
    fleet, session = local(), start(client, tenant)
    fleet.carry_next(tenant)
    for _ in range(2):
        [asked] = client.approvals.ls(tenant=tenant)
        word = client.approvals.get(str(asked.approval_id)).question.rstrip("?")
        client.approvals.grant(str(asked.approval_id), edits={"resume": f"is {word}"})
        fleet.carry_next(tenant)
    result = fleet.drain(session).result
    assert (sorted(result["booked"]), result["note"]) == (["left is left", "right is right"], "after")
    assert sorted(ran) == ["left", "left", "right", "right"]


def test_a_subgraph_asks_and_goes_on_where_it_was(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    ran: list[str] = []

    def effect(name: str) -> str:
        ran.append(name)
        return name

    def first(state: Trip) -> Trip:
        return {"note": context().call(effect, "first")}

    def second(state: Trip) -> Trip:
        context().call(effect, "second")
        return {"note": f"{state['note']} {interrupt('go on?')}"}

    inner = chain(first, second).compile()
    graph = StateGraph(Trip)
    graph.add_node("inner", inner)
    graph.add_node("after", lambda state: {"order": f"{state['order']}!"})
    graph.add_edge(START, "inner")
    graph.add_edge("inner", "after")
    durable(graph, name="trip", registry=registry)
    fleet, session = local(), start(client, tenant)
    fleet.carry_next(tenant)
    [asked] = client.approvals.ls(tenant=tenant)
    client.approvals.grant(str(asked.approval_id))
    result = fleet.drain(session).result
    assert (result["note"], result["order"]) == ("first True", "A1!")
    assert ran == ["first", "second"]


def test_a_long_conversation_is_stored_by_what_it_grew(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    Messages of LangChain survive the database as what they were; a superstep stores those that it added.
    """
    turns = 30

    async def say(state: MessagesState) -> dict[str, Any]:
        assert isinstance(state["messages"][0], HumanMessage)
        return {"messages": [AIMessage(f"{len(state['messages'])} " + "x" * 400)]}

    graph = StateGraph(MessagesState)
    graph.add_node("say", say)
    graph.add_edge(START, "say")
    graph.add_conditional_edges("say", lambda state: END if len(state["messages"]) > turns else "say")
    durable(graph, name="talk", registry=registry)
    fleet = local()
    session = client.start("talk", tenant=tenant, input={"messages": [{"role": "user", "content": "hello"}]})
    messages = fleet.drain(session).result["messages"]
    assert (len(messages), messages[-1]["content"][:3], messages[-1]["type"]) == (turns + 1, "30 ", "ai")
    query = "select octet_length(state) from agentq.checkpoint where session_id = %s order by step_id"
    with fleet.store.transaction(tenant) as connection:
        sizes = [size for (size,) in connection.execute(query, (session.id,)).fetchall() if size]
    # Every few supersteps a snapshot is due; the total is a few times the conversation, not its square.
    assert sum(sizes) < 6 * len(str(messages))


class Place(BaseModel):
    """A type of the user's own."""

    city: str


class Odd:
    """A type that cannot be read back."""


class Typed(TypedDict, total=False):
    """A state with a type of the user's."""

    place: Place
    other: Any


def test_what_cannot_be_read_back_is_refused_when_written(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    Types that the state's annotations name come back as themselves; no stored bytes name any other.
    """

    def choose(state: Typed) -> Typed:
        return {"place": Place(city="Oslo")}

    def look(state: Typed) -> Typed:
        return {"other": f"{type(state['place']).__name__} {state['place'].city}"}

    def spoil(state: Typed) -> Typed:
        return {"other": Hidden(city="Rome")}

    class Hidden(BaseModel):
        city: str

    graph = StateGraph(Typed)
    for node in (choose, look, spoil):
        graph.add_node(node.__name__, node)
    graph.add_edge(START, "choose")
    graph.add_edge("choose", "look")
    durable(graph, name="typed", registry=registry)
    session = client.start("typed", tenant=tenant, input={"place": {"city": "?"}})
    assert local().drain(session).result == {"place": {"city": "Oslo"}, "other": "Place Oslo"}
    graph.add_edge("look", "spoil")
    graph.add_edge("spoil", END)
    durable(graph, name="spoiled", registry=registry)
    with pytest.raises(Permanent, match="types="):
        local().drain(client.start("spoiled", tenant=tenant, input={}))


class Bill(FakeMessagesListChatModel):
    """A model that has a provider and a price, as far as LangChain tells."""

    asked: ClassVar[list[str]] = []

    def _get_ls_params(self, stop: Any = None, **more: Any) -> Any:
        return {"ls_provider": "openai", "ls_model_name": "gpt-5-mini", "ls_max_tokens": 1000}

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return False

    def _generate(self, messages: Any, *more: Any, **named: Any) -> Any:
        self.asked.append(str(messages[-1].content))
        return super()._generate(messages, *more, **named)


def billed(registry: Registry) -> Bill:
    told = {"headers": {"x-ratelimit-limit-requests": "54321"}}
    usage = {
        "input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100, "input_token_details": {"cache_read": 256},
        "output_token_details": {"reasoning": 40},
    }  # fmt: skip
    model = Bill(responses=[AIMessage("hi", usage_metadata=usage, response_metadata=told)])  # type: ignore[arg-type]
    Bill.asked.clear()

    def first(state: MessagesState) -> Any:
        return {"messages": [model.invoke(state["messages"])]}

    async def second(state: MessagesState) -> Any:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("first", first)
    graph.add_node("second", second)
    graph.add_edge(START, "first")
    graph.add_edge("first", "second")
    durable(graph, name="talk", registry=registry)
    return model


def test_models_within_nodes_are_held_by_budgets(
    registry: Registry, client: Client, tenant: str, local: Local, hands: Hands
) -> None:
    """
    I6: each call is reserved before it goes out and charged as the provider counted, and what it says of its limits is
    kept.
    """
    model = billed(registry)
    given = {"messages": [{"role": "user", "content": "hello"}]}
    session = client.start("talk", tenant=tenant, input=given)
    local().drain(session)
    view = session.view()
    assert (len(model.asked), view.input_tokens, view.output_tokens) == (2, 2000, 200)
    assert view.cost_usd > 0
    assert [row.learned_requests for row in client.rates.ls() if row.provider == "openai:gpt-5-mini"] == [54321]
    for detail, given, said in requests_of(hands, session.id):
        assert given
        assert "hi" in said
        assert detail["price_version"]
        assert (detail["cached_tokens"], detail["reasoning_tokens"]) == (256, 40)


def test_a_model_that_no_budget_allows_is_not_asked(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    model = billed(registry)
    client.budgets.set(tenant, cost_usd="0.000001", period="day", reason="next to nothing")
    session = client.start("talk", tenant=tenant, input={"messages": [{"role": "user", "content": "hello"}]})
    with pytest.raises(BudgetExceeded):
        local().drain(session)
    assert model.asked == []


def test_a_graph_that_goes_on_for_ever_reaches_its_limit(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    graph = StateGraph(Trip)
    graph.add_node("again", lambda state: {"booked": ["x"]})
    graph.add_edge(START, "again")
    graph.add_edge("again", "again")
    durable(graph, name="trip", supersteps_max=4, registry=registry)
    session = start(client, tenant)
    view = local().drain(session)
    assert (view.failure or {})["kind"] == "limit"
    assert len(session.steps()) == 4


def test_a_sync_context_in_an_async_node_is_told_so(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    Waiting for itself, it would hold up every step of the process.
    """

    async def node(state: Trip) -> Trip:
        return {"note": context().call(str, 1)}

    durable(chain(node), name="trip", registry=registry)
    with pytest.raises(Permanent, match="async_context"):
        local().drain(start(client, tenant))


def test_what_is_no_graph_is_refused(registry: Registry) -> None:
    with pytest.raises(ConfigError, match="LangGraph graph"):
        durable("graph", name="trip", registry=registry)  # type: ignore[arg-type]
    with pytest.raises(agentq.AgentqError, match="runs on agentq"):
        context()
