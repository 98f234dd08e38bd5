"""A graph on agentq: one superstep per step, its interrupts as questions to people."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.graph import StateGraph
from langgraph.pregel import Pregel
from langgraph.types import Command
from pydantic import BaseModel

from agentq.adapters.langgraph.money import Purse
from agentq.adapters.langgraph.node import Superstep, current
from agentq.adapters.langgraph.thread import Codec, Saver, Thread, serializer_of, types_in
from agentq.agents.agent import Agent, Step
from agentq.agents.asking import refusal
from agentq.agents.context import AsyncContext
from agentq.agents.registry import Registry
from agentq.agents.returns import Answer, Ask, Done, Duration, Fail, Next, Returned, seconds
from agentq.errors import ConfigError, InvalidState
from agentq.payload import decode, encode

Resume = Callable[[Answer], Any]


class DurableGraph(Agent[Thread]):
    """An existing LangGraph graph on agentq; made by `durable`."""

    def __init__(
        self,
        graph: Pregel[Any, Any, Any, Any],
        *,
        name: str,
        version: int,
        context: Callable[[Any], Any] | None,
        to: str | Sequence[str],
        within: Duration | None,
        resume: Resume | None,
        supersteps_max: int,
        types: Iterable[type],
        timeout_s: float,
        retries: int,
        registry: Registry | None,
    ) -> None:
        super().__init__(name, state=Thread, version=version, registry=registry)
        self.graph = graph
        self._context = context
        self._to, self._within, self._resume = to, within, resume
        self._supersteps_max = supersteps_max
        found = {kind for channel in graph.channels.values() for kind in types_in(_value_type(channel))}
        self._serializer = serializer_of(found | set(types))

        async def superstep(state: Thread, ctx: AsyncContext) -> Returned:
            return await self._superstep(state, ctx)

        async def answered(state: Thread, ctx: AsyncContext, resume: Any = None) -> Returned:  # noqa: ARG001
            return await self._answered(state, ctx)

        self.steps["superstep"] = Step(self.name, superstep, start=True, retries=retries, timeout_s=timeout_s)
        self.steps["answered"] = Step(self.name, answered, start=False, retries=retries, timeout_s=timeout_s)

    def admit(self, input: BaseModel | Mapping[str, Any]) -> bytes:
        """The graph's own input, as the beginning of a session."""
        try:
            given = decode(encode(input if isinstance(input, BaseModel) else dict(input)))
            return encode({"input": given})
        except (TypeError, ValueError) as error:
            raise InvalidState(self.name, str(error)) from None

    async def _superstep(self, state: Thread, ctx: AsyncContext) -> Returned:
        if not state.anchor or state.anchored_in != ctx.session_id:
            state.anchor, state.anchored_in = ctx.idempotency_key, ctx.session_id
        given = self._given(state)
        saver = Saver(state, Codec(self._serializer))
        graph = self.graph.copy({"checkpointer": saver})
        purse = Purse(ctx)
        config: RunnableConfig = {"configurable": {"thread_id": ctx.session_id}, "callbacks": [purse]}
        token = current.set(Superstep(ctx, state.anchor))
        try:
            output = await graph.ainvoke(
                given,
                config,
                context=self._context(state.input) if self._context is not None else None,
                interrupt_after="*",
                durability="sync",
            )
        except BaseException as error:
            purse.close(error)
            raise
        finally:
            current.reset(token)
        purse.close(None)
        # Without the configuration's leave, the snapshot would look for a checkpoint of its own.
        snapshot = await graph.aget_state(config)
        saver.store(state)
        state.began, state.answers = True, {}
        if snapshot.interrupts:
            state.questions = {one.id: one.value for one in snapshot.interrupts}
            return self._ask(state)
        state.anchor, state.supersteps = "", state.supersteps + 1
        if not snapshot.next:
            return Done(_plain(output))
        if state.supersteps >= self._supersteps_max:
            return Fail(
                f"the graph has not ended after {state.supersteps} supersteps", kind="limit", type="LimitReached"
            )
        return Next(self.steps["superstep"], state)

    def _given(self, state: Thread) -> Any:
        if not state.began:
            return state.input
        return Command(resume=state.answers) if state.answers else None

    def _ask(self, state: Thread) -> Ask:
        """One question after another; the graph goes on when the last is answered."""
        value = next(iter(state.questions.values()))
        question = value if isinstance(value, str) else _question_in(value)
        return Ask(
            question or f"{self.name} asks",
            to=self._to,
            within=self._within,
            then=self.steps["answered"],
            state=state,
            args={"resume": None},
            details=_plain(value),
        )

    async def _answered(self, state: Thread, ctx: AsyncContext) -> Returned:
        answer = await asyncio.to_thread(lambda: ctx.answer)
        if self._resume is None and not answer.granted:
            raise refusal(f"{self.name} asked", answer)
        yes = answer.args.get("resume") if answer.edited else True
        told = self._resume(answer) if self._resume is not None else yes
        state.answers[next(iter(state.questions))] = told
        del state.questions[next(iter(state.questions))]
        return self._ask(state) if state.questions else Next(self.steps["superstep"], state)


def durable(
    graph: Pregel[Any, Any, Any, Any] | StateGraph[Any, Any, Any, Any],
    *,
    name: str,
    version: int = 1,
    context: Callable[[Any], Any] | None = None,
    to: str | Sequence[str] = (),
    within: Duration | None = None,
    resume: Resume | None = None,
    supersteps_max: int = 100,
    types: Sequence[type] = (),
    timeout: Duration = "5m",
    retries: int = 5,
    registry: Registry | None = None,
) -> DurableGraph:
    """
    Carry an existing LangGraph graph as it is: each superstep is one step, and its checkpoint commits with it.

    Sessions take the graph's input and end with its output. `context(input)` makes the run's `context`
    anew in each step. The graph's own checkpointer is not used: the checkpoint is the session's state, so replay,
    fork and dead letters hold for it as for any other.

    `interrupt(value)` asks people: of the group `to`, `within` a time. The graph resumes with `True`, or with
    what the approver put in its place (`agentq approval grant ID --set resume=…`); a denied or expired question
    ends the session. `resume=fn` takes the `Answer`, refusals too, and says what the graph resumes with.

    Limits:

    - A node runs at least once: after a crash, a failure or an `interrupt()` it runs again from its start. Let it
      do what changes something with `agentq.adapters.langgraph.context().call(…)` (`async_context()` in an
      `async def`): that happens once, whatever happens around it.
    - Nodes of one superstep run in one process, and one that fails repeats the others. A subgraph runs within
      its node's step.
    - Budgets hold each call of a LangChain model (its callbacks tell of it) and what is asked within
      `context().spend(…)`, no other. Set the model's `max_tokens`, which is what is reserved, and its retries to
      none. A node that runs again asks its models again, and pays again.
    - What the state holds is read back as LangGraph's safe types and those that its schema or `types` name; any
      other is refused when it is written. Only the latest checkpoint is kept: no time travel in the graph itself.
    - No streaming to the caller; `context().progress(…)` reaches those who watch the session. No `DeltaChannel`.
    - Names of the nodes are part of the state: renaming one strands live sessions.
    - After `supersteps_max` supersteps the session fails as one that reached its limit.

    Raises:
        ConfigError: it is no graph, or one that cannot be carried.
    """
    if isinstance(graph, StateGraph):
        graph = graph.compile()
    if not isinstance(graph, Pregel):
        raise ConfigError(f"durable() takes a LangGraph graph, not {type(graph).__name__}")
    if isinstance(supersteps_max, bool) or not isinstance(supersteps_max, int) or supersteps_max < 1:
        raise ConfigError("supersteps_max is a whole number from 1")
    if any("Delta" in type(channel).__name__ for channel in graph.channels.values()):
        raise ConfigError(f"the graph for {name!r} has a DeltaChannel, which needs the whole history of checkpoints")
    return DurableGraph(
        graph,
        name=name,
        version=version,
        context=context,
        to=to,
        within=within,
        resume=resume,
        supersteps_max=supersteps_max,
        types=types,
        timeout_s=seconds(timeout),
        retries=retries,
        registry=registry,
    )


def _value_type(channel: Any) -> Any:
    return getattr(channel, "typ", None) or getattr(channel, "ValueType", None)


def _question_in(value: Any) -> str | None:
    """The text of a question that came as a mapping, as most do."""
    if isinstance(value, Mapping):
        for name in ("question", "message", "description", "task"):
            if isinstance(value.get(name), str):
                return str(value[name])
    return None


def _plain(value: Any) -> Any:
    return decode(encode(value))
