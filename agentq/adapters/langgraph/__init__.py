"""
The LangGraph graph that you already have: each superstep a step, `interrupt()` a question to people.

    flow = durable(graph, name="flow", version=1)

The graph's checkpoint is the session's state, written with the step that made it; no other checkpointer is
needed. Read `DurableGraph` for what happens in a step, `Thread` for what is kept.
"""

from __future__ import annotations

try:
    import langgraph.graph  # noqa: F401
except ModuleNotFoundError as error:
    from agentq.errors import ConfigError as _ConfigError

    if error.name not in ("langgraph", "langgraph.graph", "langchain_core"):
        raise
    raise _ConfigError("this adapter needs LangGraph: install agentq[langgraph]") from error

from agentq.adapters.langgraph.graph import DurableGraph, durable
from agentq.adapters.langgraph.node import AsyncNodeContext, NodeContext, async_context, context

__all__ = ["AsyncNodeContext", "DurableGraph", "NodeContext", "async_context", "context", "durable"]
