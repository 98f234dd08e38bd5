"""
The Pydantic AI agent that you already have, unchanged: each model request and each tool call a step.

    triage = durable(existing_agent, name="triage", version=1)

What Pydantic AI calls durable units are journaled as the session's messages. A step runs the agent again
from its beginning, with every journaled unit answered from the journal, up to the one unit that the step is
for; that one really runs, and its result is journaled with the step's settlement.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

try:
    import pydantic_ai
except ModuleNotFoundError as error:
    from agentq.errors import ConfigError as _ConfigError

    if error.name != "pydantic_ai":
        raise
    raise _ConfigError("this adapter needs Pydantic AI: install agentq[model]") from error

from pydantic import TypeAdapter
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai.capabilities import HandleDeferredToolCalls
from pydantic_ai.durable_exec import (
    JSON_CODEC,
    BaseDurabilityCapability,
    DurabilityEngineSpec,
    JournalCallableOperationBackend,
    RoleBasedOperationConfig,
    record_durable_unit,
    replay_scope,
)
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    RetryFeedbackPart,
    ToolReturnPart,
)
from pydantic_ai.models import Model
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults, ToolApproved, ToolDenied
from pydantic_ai.usage import UsageLimits

from agentq.adapters.replay import MAX_TOKENS, Progress, Replay, ReplayedAgent, Start, Unit, current
from agentq.agents.context import AsyncContext
from agentq.agents.listening import listen
from agentq.agents.model.request import dependency, estimate_messages, resolve
from agentq.agents.registry import Registry
from agentq.agents.returns import Duration, seconds
from agentq.errors import ConfigError, Permanent
from agentq.policies.limits import Limits

WRITER = f"agentq-durable/1 pydantic-ai/{pydantic_ai.__version__}"


@dataclass(frozen=True, slots=True)
class _Config:
    """Nothing is configured per unit; the step is."""


class _Backend(JournalCallableOperationBackend[_Config]):
    async def execute(
        self,
        *,
        operation_id: Any,
        name: str,
        body: Callable[[], Awaitable[object]],
        cache_key: tuple[object, ...],
        config: _Config,  # noqa: ARG002 - the base class passes it
    ) -> object:
        kind = _KINDS.get(type(operation_id).__name__, "other")
        key = name
        if kind == "tool":
            # By the call's id and retry: the order in which parallel calls arrive is not the same each time.
            ctx: Any = cache_key[2]
            key = f"{name}:{ctx.tool_call_id}:{ctx.retry}"
        return await current.get().unit(Unit(key, kind, name, body, cache_key))


_KINDS = {"ModelRequestId": "model", "ToolsetCallToolId": "tool"}


class AgentqDurability(BaseDurabilityCapability[Any]):
    """Routes an agent's units to the step that runs it; outside of a step it does nothing."""

    engine_spec = DurabilityEngineSpec(
        engine_name="agentq",
        durable_unit_noun="step",
        durable_container_noun="session",
        codec=JSON_CODEC,
        wrapped_toolset_kinds=frozenset({"function", "mcp", "dynamic"}),
    )

    @property
    def in_durable_context(self) -> bool:
        return current.get(None) is not None

    def get_durable_operation_backend(self) -> _Backend:
        config = _Config()
        return _Backend(
            agent_name=self.name,
            config=RoleBasedOperationConfig(model=config, event=config, capability=config, tool=config),
        )


class DurableAgent(ReplayedAgent):
    """An existing Pydantic AI agent on agentq; made by `durable`."""

    writer = WRITER

    def __init__(self, agent: PydanticAgent[Any, Any], *, deps: Callable[[Any], Any] | None, **more: Any) -> None:
        super().__init__(**more)
        self.agent = agent
        self._deps = deps
        self._capabilities = [AgentqDurability(name=self.name), HandleDeferredToolCalls(handler=_decide)]
        self._output: TypeAdapter[Any] = TypeAdapter(Any)

    def _scope(self, replay: Replay) -> AbstractContextManager[None]:
        # A span that ends because its run is given up belongs to another step.
        replay.tell = lambda executed: record_durable_unit(executed=executed)
        return replay_scope(is_replaying=lambda: replay.suspended)

    async def _run_agent(self, start: Start, state: Progress, ctx: AsyncContext, replay: Replay) -> Any:  # noqa: ARG002
        settings = ModelSettings(max_retries=0)
        own = self.agent.model_settings
        if not (isinstance(own, dict) and own.get("max_tokens")):
            settings["max_tokens"] = MAX_TOKENS
        result = await self.agent.run(
            None if start.times else state.prompt,
            message_history=ModelMessagesTypeAdapter.validate_python(start.items) if start.times else None,
            deps=self._deps(state.input) if self._deps is not None else None,
            model_settings=settings,
            # The session's limits count over all of it; the framework's own would count what is replayed.
            usage_limits=UsageLimits(request_limit=None),
            capabilities=self._capabilities,
            conversation_id=ctx.session_id,
            run_id=f"{ctx.session_id}-{start.times}" if start.times else ctx.session_id,
        )
        return self._output.dump_python(result.output, mode="json")

    def _history(self, unit: Unit) -> tuple[list[Any], Mapping[str, Any]]:
        history: list[ModelMessage] = unit.params[1]  # type: ignore[assignment]
        return ModelMessagesTypeAdapter.dump_python(history, mode="json"), {}

    # ── units ────────────────────────────────────────────────────────────────

    async def _perform(self, unit: Unit, state: Progress, ctx: AsyncContext) -> object:
        match unit.kind:
            case "model":
                return await self._request(unit, state, ctx)
            case "tool":
                name, arguments = str(unit.params[0]), unit.params[1]
                options = self.options_of(name, _function_of(name, unit.params[3]))
                return await self.call(ctx, name, arguments, options, body=unit.body, returned=_returned)
            case _:
                return await unit.body()

    async def _request(self, unit: Unit, state: Progress, ctx: AsyncContext) -> object:
        """A model request, its money reserved before it goes out."""
        history: list[ModelMessage] = unit.params[1]  # type: ignore[assignment]
        settings: Mapping[str, Any] = unit.params[2] or {}  # type: ignore[assignment]
        model = self._model()
        tokens = estimate_messages(history)
        most = int(settings.get("max_tokens") or MAX_TOKENS)
        self.room(state, tokens=tokens, most=most)
        # As the run has it: in what goes out, feedback is worded as any other text.
        asked: Any = getattr(unit.params[-1], "messages", None)
        mends = {"repair": True} if asked and _is_repair(asked[-1]) else {}
        with ctx.trace("model", model.model_name, provider=model.system, max_tokens=most, **mends) as span:
            async with ctx.spend(
                model=model.model_name, provider=model.system, input_tokens=tokens, max_tokens=most
            ) as reserved:
                needs = dependency(model)
                listen(model)
                async with ctx.needing(needs) if needs else nullcontext():
                    payload: Any = await unit.body()
                usage = (payload.get("response") or payload).get("usage") or {}
                used = {"input_tokens": usage.get("input_tokens", 0), "output_tokens": usage.get("output_tokens", 0)}
                reserved.used(**used)
            span.used(**used, cost_micros=reserved.cost_micros, price_version=reserved.price_version)
            span.input, span.output = _traced(history[-1]), (payload.get("response") or payload).get("parts")
            span.note(**_kinds_of(usage))
        state.input_tokens += used["input_tokens"]
        state.output_tokens += used["output_tokens"]
        return payload

    def _model(self) -> Model:
        model = self.agent.model
        if model is None:
            raise Permanent("the agent has no model")
        return resolve(model) if isinstance(model, str) else model


def _is_repair(message: ModelMessage) -> bool:
    """Whether a request tells the model nothing but what was wrong with its answer."""
    return isinstance(message, ModelRequest) and all(
        isinstance(part, RetryFeedbackPart) or (isinstance(part, ToolReturnPart) and part.outcome == "retried")
        for part in message.parts
    )


def _traced(message: ModelMessage) -> Any:
    """A message as a trace shows it."""
    return ModelMessagesTypeAdapter.dump_python([message], mode="json")[0]["parts"]


def _kinds_of(usage: Mapping[str, Any]) -> dict[str, int]:
    """The kinds of tokens that the provider tells apart."""
    kinds = {
        "cached_tokens": usage.get("cache_read_tokens"),
        "cache_write_tokens": usage.get("cache_write_tokens"),
        "reasoning_tokens": (usage.get("details") or {}).get("reasoning_tokens"),
    }
    return {kind: tokens for kind, tokens in kinds.items() if tokens}


async def _decide(ctx: Any, requests: DeferredToolRequests) -> DeferredToolResults:  # noqa: ARG001
    """Ask people of each call that needs an approval, within the run."""
    replay = current.get()
    if requests.calls:
        names = ", ".join(call.tool_name for call in requests.calls)
        raise Permanent(f"calls that are carried out elsewhere have no step that would wait for them: {names}")
    approvals: dict[str, Any] = {}
    for call in requests.approvals:
        unit = Unit(f"ask:{call.tool_call_id}", "ask", call.tool_name, _nothing, (call.args_as_dict(),))
        said = await replay.unit(unit)
        granted = ToolApproved(override_args=said["arguments"])
        approvals[call.tool_call_id] = granted if said["granted"] else ToolDenied(said["why"])
    return DeferredToolResults(approvals=approvals)


async def _nothing() -> object:
    return None


def _function_of(name: str, tool: Any) -> Callable[..., Any] | None:
    toolset = getattr(tool, "toolset", None)
    found = getattr(toolset, "tools", {}).get(name) if toolset is not None else None
    return getattr(found, "function", None)


def _returned(value: Any) -> object:
    """The form in which Pydantic AI journals a tool's result."""
    return {"kind": "tool_return", "result": value}


def durable(
    agent: PydanticAgent[Any, Any],
    *,
    name: str,
    version: int = 1,
    deps: Callable[[Any], Any] | None = None,
    tools: Mapping[str, Callable[..., Any]] | None = None,
    limits: Limits | None = None,
    to: str | Sequence[str] = (),
    within: Duration | None = None,
    replay_max: int = 50,
    timeout: Duration = "5m",
    retries: int = 5,
    registry: Registry | None = None,
) -> DurableAgent:
    """
    Carry an existing Pydantic AI agent as it is: each model request and each tool call is one step.

    Sessions take `{"prompt": "..."}` and, for `deps`, `"input"`: `deps(input)` makes the run's dependencies
    anew in each step. The result is the run's output. A worker that dies in a tool repeats nothing that was
    recorded. A tool declared with `@agentq.tool(idempotent=…, check=…, key=…, irreversible=…)`, or here with
    `tools={"book": declared_function}`, is treated accordingly; of any other tool whose outcome a crash leaves
    open, a person decides.

    A tool of the agent with `requires_approval=True` asks people, of the group `to`, `within` a time; the approver
    may change its arguments (`--set arguments.cents=500`), and the model is told of a refusal. So it is with
    `irreversible=True`, whose leave holds for these arguments alone.

    Limits:

    - Between its units the agent's code runs in every step: instructions, prepare functions, output validators
      and hooks must have no side effects, and must come to the same each time. A run that takes another way
      than its journal is dead, with the unit named.
    - Each step replays the units before it, about a millisecond each. After `replay_max` of them the run continues
      as new from its message history: counts of retries of tools and outputs begin anew there.
    - Names of the agent, its toolsets and tools are part of the journal: renaming them strands live sessions.
    - `limits` counts model calls, tool calls and tokens; cost is held by budgets. `on_reach` is always `fail`. The
      framework's own `UsageLimits` are not used.
    - No streaming to the caller, no `toolsets=` per run, no calls that are carried out elsewhere.
    - Instrumented by Pydantic AI, each unit is one span, in the trace of its step; agentq's own trace has them as well.

    Raises:
        ConfigError: the agent has no model, or the declarations fit no function.
    """
    if not isinstance(agent, PydanticAgent):
        raise ConfigError(f"durable() takes a pydantic_ai.Agent, not {type(agent).__name__}")
    if agent.model is None:
        raise ConfigError(f"the agent for {name!r} needs a model of its own")
    return DurableAgent(
        agent,
        name=name,
        version=version,
        deps=deps,
        tools=tools or {},
        limits=limits or Limits(),
        to=to,
        within=within,
        replay_max=replay_max,
        timeout_s=seconds(timeout),
        retries=retries,
        registry=registry,
    )


__all__ = ["AgentqDurability", "DurableAgent", "durable"]
