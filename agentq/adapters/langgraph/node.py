"""What a node may ask agentq for: effects that happen once, money, progress."""

from __future__ import annotations

import asyncio
import contextvars
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ParamSpec, TypeVar, cast

from langgraph.config import get_config

from agentq.agents.context import AsyncContext
from agentq.agents.spending import ModelCall
from agentq.agents.tracing import Span
from agentq.errors import AgentqError, Permanent
from agentq.payload import fingerprint

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class Superstep:
    """The step that runs, for its nodes."""

    ctx: AsyncContext
    anchor: str
    # Calls that each run of a node has made: by the identity of the run, so that its repetition counts anew.
    calls: dict[str, list[Any]] = field(default_factory=dict)

    def place(self) -> str:
        """Where the effect that a node asks for now stands: the same when the node runs again."""
        config = get_config()
        meta: Mapping[str, Any] = config.get("metadata") or {}
        within = re.sub(r":[0-9a-f-]{36}", "", str(meta.get("langgraph_checkpoint_ns", "")))
        node, number = meta.get("langgraph_node", "node"), meta.get("langgraph_step")
        # The first superstep's number is the graph's; within one agentq step only subgraphs have several.
        where = json.dumps([within, number, meta.get("langgraph_path")], default=str)
        known = self.calls.setdefault(where, [None, 0])
        run = _attempt_of(config)
        if known[0] != run:
            known[:] = [run, 0]
        known[1] += 1
        return f"{self.anchor}:{str(node)[:100]}:{fingerprint(where.encode()).hex()[:12]}:{known[1]}"


current: contextvars.ContextVar[Superstep] = contextvars.ContextVar("agentq_langgraph_superstep")


class NodeContext:
    """What a node may ask for, as `agentq.Context`; for nodes that are plain functions."""

    def __init__(self, superstep: Superstep) -> None:
        ctx = superstep.ctx
        self._superstep = superstep
        self._ctx = ctx
        self.tenant, self.session_id, self.agent = ctx.tenant, ctx.session_id, ctx.agent
        self.attempt, self.logger = ctx.attempt, ctx.logger

    def call(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """
        Perform an effect once and remember its result, as `agentq.Context.call`.

        Its key is made of the superstep, the node and the ordinal of the call in it: a node that runs again,
        after a crash or because people were asked, recalls what it had done. So a node makes its calls in
        the same order each time.
        """
        _refuse_on_loop()
        return cast(R, self._ctx.call_in_thread(self._superstep.place(), function, args, kwargs))

    def spend(
        self,
        *,
        model: str,
        max_tokens: int,
        input_tokens: int | None = None,
        prompt: Any = None,
        provider: str | None = None,
    ) -> AbstractContextManager[ModelCall]:
        """Reserve a model call in every budget before it goes out, as `agentq.Context.spend`."""
        _refuse_on_loop()
        return self._ctx.spend(
            model=model, max_tokens=max_tokens, input_tokens=input_tokens, prompt=prompt, provider=provider
        )

    def check(self) -> None:
        """Return while the step may go on; long loops should ask now and then."""
        self._ctx.check()

    def progress(self, text: str, **data: Any) -> None:
        """Tell whoever watches the session's events, now."""
        self._ctx.progress(text, **data)

    def usage(
        self, *, input_tokens: int = 0, output_tokens: int = 0, cost_usd: Decimal | float | str | None = None
    ) -> None:
        """Record what a model call used, where `spend` does not."""
        self._ctx.usage(input_tokens=input_tokens, output_tokens=output_tokens, cost_usd=cost_usd)

    def trace(self, kind: str, name: str, *, input: Any = None, **facts: Any) -> AbstractContextManager[Span]:
        """Time a block and keep it with the attempt."""
        return self._ctx.trace(kind, name, input=input, **facts)

    def decide(
        self, options: Sequence[Any], picked: Any, why: str | None = None, confidence: float | None = None
    ) -> None:
        """Keep a choice for people to read."""
        self._ctx.decide(options, picked, why, confidence)


class AsyncNodeContext(NodeContext):
    """The twin of `NodeContext` for `async def` nodes."""

    async def call(  # type: ignore[override]
        self, function: Callable[P, Awaitable[R]] | Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """As `NodeContext.call`."""
        return cast(R, await self._ctx.call_at(self._superstep.place(), function, args, kwargs))

    def spend(  # type: ignore[override]
        self,
        *,
        model: str,
        max_tokens: int,
        input_tokens: int | None = None,
        prompt: Any = None,
        provider: str | None = None,
    ) -> AbstractAsyncContextManager[ModelCall]:
        """As `NodeContext.spend`, for `async with`."""
        return self._ctx.spend(
            model=model, max_tokens=max_tokens, input_tokens=input_tokens, prompt=prompt, provider=provider
        )


def context() -> NodeContext:
    """
    The context of the agentq step in which this node runs, for nodes that are plain functions.

    Raises:
        AgentqError: the graph does not run on agentq.
    """
    return NodeContext(_superstep())


def async_context() -> AsyncNodeContext:
    """As `context`, for `async def` nodes."""
    return AsyncNodeContext(_superstep())


def _superstep() -> Superstep:
    found = current.get(None)
    if found is None:
        raise AgentqError("context() is for nodes of a graph that runs on agentq: durable(graph, name=…)")
    return found


def _attempt_of(config: Mapping[str, Any]) -> Any:
    """Which try of the node this is, where LangGraph's own retry policy tries it again in place."""
    runtime = (config.get("configurable") or {}).get("__pregel_runtime")
    return getattr(getattr(runtime, "execution_info", None), "node_attempt", 1)


def _refuse_on_loop() -> None:
    """On the loop it would hold up every step of the process."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise Permanent("an async node asks with `await async_context().call(…)`; context() is for plain functions")
