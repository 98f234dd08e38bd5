"""A graph for real workers: two nodes side by side whose worker may die under them."""

from __future__ import annotations

import operator
from typing import Annotated, Any

from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from agentq import effect
from agentq.adapters.langgraph import async_context, context, durable
from tests.support.model_agents import CALLS, _booked, book


class Bookings(TypedDict, total=False):
    """What is booked."""

    prompt: str
    said: Annotated[list[str], operator.add]


booking = effect(check=_booked)(book)


def _left(state: Bookings) -> Any:
    return {"said": [context().call(booking, "A", 0)]}


async def _right(state: Bookings) -> Any:
    return {"said": [await async_context().call(booking, "A", 1)]}


def _last(state: Bookings) -> Any:
    return {"said": [context().call(booking, "A", n) for n in range(len(state["said"]), CALLS)]}


_graph = StateGraph(Bookings)
_graph.add_node("left", _left)
_graph.add_node("right", _right)
_graph.add_node("last", _last)
_graph.add_edge(START, "left")
_graph.add_edge(START, "right")
_graph.add_edge(["left", "right"], "last")

graph = durable(_graph, name="graph")
