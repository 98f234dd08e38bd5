"""A LangGraph graph as somebody has it, and the line that makes it durable; a large refund asks a person."""

from __future__ import annotations

from typing import TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import interrupt

from agentq import effect, idempotency_key
from agentq.adapters.langgraph import context, durable

_CENTS = {"A1": 1250, "B2": 64_000}


class Refund(TypedDict, total=False):
    """Where a refund stands."""

    order: str
    cents: int
    receipt: str


@effect(idempotent=True)  # the other side knows the key: a repeat is not a second payment
def pay_back(order: str, cents: int) -> str:
    """Stands in for a payment provider."""
    return f"{cents / 100:.2f} for {order}, receipt {idempotency_key()[-4:]}"


def look_up(state: Refund) -> Refund:
    """Find out what was paid."""
    return {"cents": _CENTS[state["order"]]}


def ask(state: Refund) -> Refund:
    """People decide about much money, and may make less of it: `--set resume=5000`."""
    said = interrupt({"question": f"Refund {state['cents'] / 100:.2f} for {state['order']}?"})
    return {"cents": state["cents"] if said is True else int(said)}


def pay(state: Refund) -> Refund:
    """Pay it back, once, however often this node runs."""
    return {"receipt": context().call(pay_back, state["order"], state["cents"])}


graph = StateGraph(Refund)
graph.add_node("look_up", look_up)
graph.add_node("ask", ask)
graph.add_node("pay", pay)
graph.add_edge(START, "look_up")
graph.add_conditional_edges("look_up", lambda state: "ask" if state["cents"] > 10_000 else "pay", ["ask", "pay"])
graph.add_edge("ask", "pay")
graph.add_edge("pay", END)

durable(graph, name="refund-graph", to="finance", within="3d")
