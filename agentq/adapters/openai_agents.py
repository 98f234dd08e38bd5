"""
The agent of the OpenAI Agents SDK that you have already, unchanged: each model request and tool call a step.

    triage = durable(existing_agent, name="triage", version=1)

A step runs the agent again up to the one unit that it is for (`agentq.adapters.replay`). Models and tools are
wrapped where the SDK lets anybody bring their own: `Model.get_response` and `FunctionTool.on_invoke_tool`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NoReturn, cast

try:
    import agents  # noqa: F401
except ModuleNotFoundError as error:
    from agentq.errors import ConfigError as _ConfigError

    if error.name != "agents":
        raise
    raise _ConfigError("this adapter needs the OpenAI Agents SDK: install agentq[openai-agents]") from error

from agents import Agent as SDKAgent
from agents import (
    FunctionTool,
    Handoff,
    Model,
    ModelProvider,
    ModelResponse,
    ModelSettings,
    ModelTracing,
    MultiProvider,
    RunConfig,
    Runner,
    Usage,
)
from agents.exceptions import InputGuardrailTripwireTriggered, OutputGuardrailTripwireTriggered
from agents.items import TResponseOutputItem
from agents.tool import default_tool_error_function
from agents.tool_context import ToolContext
from agents.version import __version__
from pydantic import BaseModel, TypeAdapter

from agentq.adapters.replay import MAX_TOKENS, Progress, Replay, ReplayedAgent, Start, Unit, current, told
from agentq.agents.context import AsyncContext
from agentq.agents.listening import listen
from agentq.agents.registry import Registry
from agentq.agents.returns import Duration, Fail, seconds
from agentq.errors import ConfigError, FenceLost, Permanent, Stopped
from agentq.payload import decode, encode
from agentq.policies.budgets import estimate_tokens
from agentq.policies.failures import attempts_for
from agentq.policies.limits import Limits
from agentq.step import valid_name

WRITER = f"agentq-durable/1 openai-agents/{__version__}"

# Carried out by the provider, within the model request.
_HOSTED = ("WebSearchTool", "FileSearchTool", "CodeInterpreterTool", "HostedMCPTool", "ImageGenerationTool")

_ITEM: TypeAdapter[Any] = TypeAdapter(TResponseOutputItem)
_USAGE: TypeAdapter[Usage] = TypeAdapter(Usage)


@dataclass(frozen=True)
class Request:
    """A model request as the SDK makes it, and whose it is."""

    agent: SDKAgent[Any]
    instructions: str | None
    input: Any
    settings: ModelSettings
    tools: list[Any]
    output: Any
    handoffs: list[Any]
    more: Mapping[str, Any]

    @property
    def functions(self) -> list[FunctionTool]:
        """The tools that the request describes."""
        return [tool for tool in self.tools if isinstance(tool, FunctionTool)]

    async def ask(self, model: Model, settings: ModelSettings) -> ModelResponse:
        """The model's answer."""
        return await model.get_response(
            self.instructions, self.input, settings, self.tools, self.output, self.handoffs,
            ModelTracing.DISABLED, **self.more,
        )  # fmt: skip


class JournaledModel(Model):
    """An agent's model, asked through the replay."""

    def __init__(self, agent: SDKAgent[Any]) -> None:
        self._agent = agent

    async def get_response(  # noqa: PLR0917 - as the SDK calls it
        self,
        system_instructions: str | None,
        input: Any,
        model_settings: ModelSettings,
        tools: list[Any],
        output_schema: Any,
        handoffs: list[Any],
        tracing: ModelTracing,  # noqa: ARG002 - agentq's trace is the record
        **more: Any,
    ) -> ModelResponse:
        """The answer, from the journal or from the model."""
        agent = self._agent
        request = Request(agent, system_instructions, input, model_settings, tools, output_schema, handoffs, more)
        name = f"model:{agent.name}"
        payload = await current.get().unit(Unit(name, "model", name, _nothing, (request,)))
        return ModelResponse(
            output=[_ITEM.validate_python(item) for item in payload["output"]],
            usage=_USAGE.validate_python(payload["usage"]),
            response_id=payload["response_id"],
        )

    def stream_response(self, *_: Any, **__: Any) -> NoReturn:
        """Not here: a step has nobody to stream to."""
        raise Permanent("a durable agent's model is not streamed")


class DurableAgent(ReplayedAgent):
    """An existing agent of the OpenAI Agents SDK on agentq; made by `durable`."""

    writer = WRITER

    def __init__(
        self,
        agent: SDKAgent[Any],
        *,
        context: Callable[[Any], Any] | None,
        provider: str,
        run_config: RunConfig | None,
        **more: Any,
    ) -> None:
        super().__init__(**more)
        self.agent = agent
        self.provider = provider
        self._context = context
        # Its traces would leave this machine, and once for each replay: agentq keeps a trace of its own.
        self._config = replace(run_config or RunConfig(), tracing_disabled=True)
        self._own_provider = run_config is None
        self._wrapped: dict[str, SDKAgent[Any]] = {}
        self._plain: dict[str, SDKAgent[Any]] = {}
        self._first = self._wrap(agent)

    # ── the SDK's agents, with each model and tool asked through the replay ──

    def _wrap(self, agent: SDKAgent[Any]) -> SDKAgent[Any]:
        if agent.name in self._wrapped:
            if self._plain[agent.name] is not agent:
                raise ConfigError(f"two agents that {self.name!r} reaches are named {agent.name!r}")
            return self._wrapped[agent.name]
        if agent.mcp_servers:
            raise ConfigError(f"agent {agent.name!r} has MCP servers, whose tools this adapter cannot make durable")
        clone = agent.clone(tools=[self._tool(agent, tool) for tool in agent.tools])
        self._wrapped[agent.name], self._plain[agent.name] = clone, agent
        # Set, not cloned with it: the SDK chooses settings by the kind of model that it is given.
        clone.model = JournaledModel(agent)
        clone.handoffs = [self._handoff(handoff) for handoff in agent.handoffs]
        return clone

    def _handoff(self, handoff: SDKAgent[Any] | Handoff[Any, Any]) -> Any:
        if not isinstance(handoff, Handoff):
            return self._wrap(handoff)
        plain = handoff.on_invoke_handoff

        async def invoke(context: Any, arguments: str) -> Any:
            return self._wrap(await plain(context, arguments))

        return replace(handoff, on_invoke_handoff=invoke)

    def _tool(self, agent: SDKAgent[Any], tool: Any) -> Any:
        if type(tool).__name__ in _HOSTED:
            return tool
        if not isinstance(tool, FunctionTool):
            raise ConfigError(f"a {type(tool).__name__} of agent {agent.name!r} runs here and cannot be made durable")
        plain = _raising(tool)

        async def invoke(context: ToolContext[Any], arguments: str) -> Any:
            replay = current.get()
            said = told(replay, f"ask:{context.tool_call_id}")
            if said is not None and said["arguments"] is not None:
                arguments = json.dumps(said["arguments"])

            async def body() -> object:
                return _jsonable(await plain(context, arguments))

            key = f"tool:{agent.name}:{tool.name}:{context.tool_call_id}"
            unit = Unit(key, "tool", tool.name, body, (arguments, tool, context))
            return (await replay.unit(unit))["result"]

        return replace(tool, on_invoke_tool=invoke)

    async def _run_agent(self, start: Start, state: Progress, ctx: AsyncContext, replay: Replay) -> Any:  # noqa: ARG002
        first = self._found(start.more["agent"]) if start.times else self._first
        made = self._context(state.input) if self._context is not None else None
        given: Any = list(start.items) if start.times else state.prompt
        # Turns are model calls, which the session's limits count over all of it.
        result = await Runner.run(first, given, context=made, max_turns=None, run_config=self._config)
        while result.interruptions:
            so_far = result.to_state()
            for item in result.interruptions:
                name, arguments = str(item.name), _mapping(item.arguments)
                said = await replay.unit(Unit(f"ask:{item.call_id}", "ask", name, _nothing, (arguments,)))
                if said["granted"]:
                    so_far.approve(item)
                else:
                    so_far.reject(item, rejection_message=said["why"])
            result = await Runner.run(first, so_far, max_turns=None, run_config=self._config)
        return decode(encode(result.final_output))

    def _found(self, name: str) -> SDKAgent[Any]:
        if name not in self._wrapped:
            raise Permanent(f"the run was with agent {name!r}, which {self.name!r} no longer reaches")
        return self._wrapped[name]

    def _history(self, unit: Unit) -> tuple[list[Any], Mapping[str, Any]]:
        [request] = cast(tuple[Request], unit.params)
        given = request.input
        items = [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
        return items, {"agent": request.agent.name}

    def _ended(self, error: Exception) -> Fail | None:
        if isinstance(error, InputGuardrailTripwireTriggered | OutputGuardrailTripwireTriggered):
            return Fail(str(error), type=type(error).__name__)
        return None

    # ── units ────────────────────────────────────────────────────────────────

    async def _perform(self, unit: Unit, state: Progress, ctx: AsyncContext) -> object:
        if unit.kind == "model":
            return await self._request(unit, state, ctx)
        arguments, tool, context = cast(tuple[str, FunctionTool, ToolContext[Any]], unit.params)
        options = self.options_of(tool.name, getattr(tool, "__wrapped__", None))

        async def body() -> object:
            return {"result": await unit.body()}

        try:
            return await self.call(
                ctx, tool.name, _mapping(arguments), options, body=body, returned=lambda found: {"result": found}
            )
        except (Stopped, FenceLost):
            raise
        except Exception as error:
            return {"result": self._tell(error, tool, context, ctx)}

    def _tell(self, error: Exception, tool: FunctionTool, context: ToolContext[Any], ctx: AsyncContext) -> str:
        """
        What the model is told of a tool that failed for good, as the SDK words it.

        Raises:
            Exception: the error itself, when another attempt may help or a person must look.
        """
        failure = ctx.classify(error)
        comes_again = failure.kind in ("transient", "timeout", "unclassified")
        again = comes_again and ctx.attempt < attempts_for(failure, ctx.attempts_max)
        if again or failure.kind == "unknown" or not _tells_the_model(tool):
            raise error
        ctx.logger.warning("tool %s failed: %s", tool.name, failure.type)
        return default_tool_error_function(context, error)

    async def _request(self, unit: Unit, state: Progress, ctx: AsyncContext) -> object:
        """A model request, its money reserved before it goes out."""
        [request] = cast(tuple[Request], unit.params)
        model, settings = self._model(request.agent), request.settings
        name = str(getattr(model, "model", None) or "model")
        described = [[tool.name, tool.description, tool.params_json_schema] for tool in request.functions]
        tokens = estimate_tokens(f"{request.instructions or ''}{json.dumps([request.input, described], default=str)}")
        room = self.room(state, tokens=tokens, most=int(settings.max_tokens or MAX_TOKENS))
        bounded = replace(settings, max_tokens=room.max_tokens)
        needs = re.sub(r"[^a-z0-9_-]", "-", self.provider) if self.provider else None
        with ctx.trace("model", name, provider=self.provider, max_tokens=room.max_tokens) as span:
            async with ctx.spend(
                model=name, provider=self.provider, input_tokens=tokens, max_tokens=room.max_tokens
            ) as reserved:
                listen(model)
                async with ctx.needing(needs) if needs else nullcontext():
                    response = await request.ask(model, bounded)
                used = {"input_tokens": response.usage.input_tokens, "output_tokens": response.usage.output_tokens}
                reserved.used(**used)
            span.used(**used, cost_micros=reserved.cost_micros, price_version=reserved.price_version)
            span.input = request.input[-1:] if isinstance(request.input, list) else request.input
            span.output = [_dumped(item) for item in response.output]
            span.note(
                cached_tokens=response.usage.input_tokens_details.cached_tokens or 0,
                reasoning_tokens=response.usage.output_tokens_details.reasoning_tokens or 0,
            )
        state.input_tokens += used["input_tokens"]
        state.output_tokens += used["output_tokens"]
        return {
            "output": [_dumped(item) for item in response.output],
            "usage": _USAGE.dump_python(response.usage, mode="json"),
            "response_id": response.response_id,
        }

    def _model(self, agent: SDKAgent[Any]) -> Model:
        """The agent's own model; one that is named is made once per process, without retries of its own."""
        chosen = self._config.model or agent.model
        return chosen if isinstance(chosen, Model) else self._provider().get_model(chosen)

    def _provider(self) -> ModelProvider:
        if not self._own_provider:
            return self._config.model_provider
        key = (os.getpid(), id(self))
        if key not in _providers:
            from openai import AsyncOpenAI

            # Attempts and their waiting are agentq's.
            _providers[key] = MultiProvider(openai_client=AsyncOpenAI(max_retries=0))
        return _providers[key]


def durable(
    agent: SDKAgent[Any],
    *,
    name: str,
    version: int = 1,
    context: Callable[[Any], Any] | None = None,
    tools: Mapping[str, Callable[..., Any]] | None = None,
    provider: str = "openai",
    run_config: RunConfig | None = None,
    limits: Limits | None = None,
    to: str | Sequence[str] = (),
    within: Duration | None = None,
    replay_max: int = 50,
    timeout: Duration = "5m",
    retries: int = 5,
    registry: Registry | None = None,
) -> DurableAgent:
    """
    Carry an existing agent of the OpenAI Agents SDK as it is: each model request and each tool call is one step.

    Sessions take `{"prompt": "..."}` and, for `context`, `"input"`: `context(input)` makes the run's context
    anew in each step. The result is the run's final output. Agents that it hands over to are carried as well. A
    worker that dies in a tool repeats nothing that was recorded. A tool whose function is declared with
    `@agentq.tool(idempotent=…, check=…, key=…, irreversible=…)`, or here with `tools={"book": declared_function}`,
    is treated accordingly; of any other tool whose outcome a crash leaves open, a person decides.

    A tool with `needs_approval` asks people, of the group `to`, `within` a time; the approver may change its
    arguments (`--set arguments.cents=500`), and the model is told of a refusal.

    `provider` is the name under which its models have prices, rates and a breaker. Without a `run_config` the
    client is OpenAI's own with its retries off; one of yours should have `max_retries=0`.

    Limits:

    - Between its units the agent's code runs in every step: dynamic instructions, guardrails, hooks and
      filters must have no side effects, and must come to the same each time. A run that takes another way
      than its journal is dead, with the unit named. What a guardrail itself asks a model is not recorded.
    - A tool that fails for good is told to the model as the SDK does, unless it has a `failure_error_function` of
      its own, which is asked at once; before that, what may pass is tried again as the step.
    - An agent used as a tool runs whole within that tool's step. Tools of MCP servers, and those of the SDK that
      run on this machine (shell, computer, patches), are refused; hosted ones run with the model request.
    - Each step replays the units before it, some milliseconds each. After `replay_max` of them the run continues
      as new from its message history.
    - Names of the agents and tools are part of the journal: renaming them strands live sessions.
    - `limits` counts model calls, tool calls and tokens, in place of `max_turns`; cost is held by budgets.
      `on_reach` is always `fail`.
    - The SDK's tracing is off: it would send each replay to OpenAI. agentq's own trace is the record.
    - No streaming to the caller, no `Session` memory, no conversations kept by the provider.

    Raises:
        ConfigError: it is no agent of the SDK, or has tools that cannot be carried.
    """
    if not isinstance(agent, SDKAgent):
        raise ConfigError(f"durable() takes an agents.Agent, not {type(agent).__name__}")
    return DurableAgent(
        agent,
        context=context,
        provider=valid_name("provider", provider),
        run_config=run_config,
        name=name,
        version=version,
        tools=tools or {},
        limits=limits or Limits(),
        to=to,
        within=within,
        replay_max=replay_max,
        timeout_s=seconds(timeout),
        retries=retries,
        registry=registry,
    )


_providers: dict[tuple[int, int], ModelProvider] = {}


async def _nothing() -> object:
    return None


def _tells_the_model(tool: FunctionTool) -> bool:
    """Whether the SDK would tell the model of a failure in its own words."""
    return bool(getattr(tool, "_use_default_failure_error_function", False))


def _raising(tool: FunctionTool) -> Callable[[ToolContext[Any], str], Any]:
    """The tool's function, whose errors reach agentq instead of becoming the SDK's text at once."""
    if not _tells_the_model(tool):
        return tool.on_invoke_tool
    bare = replace(tool, _use_default_failure_error_function=False, _failure_error_function=None)
    return bare.on_invoke_tool


def _mapping(arguments: Any) -> dict[str, Any]:
    """Arguments as people and effects see them; text that is no JSON object as the model wrote it."""
    try:
        found = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        found = None
    return dict(found) if isinstance(found, Mapping) else {"arguments": arguments}


def _jsonable(value: Any) -> Any:
    return value if isinstance(value, str) else decode(encode(value))


def _dumped(item: Any) -> Any:
    """An item as it came: fields that the model did not send are not sent back to it."""
    return item.model_dump(mode="json", exclude_unset=True) if isinstance(item, BaseModel) else item


__all__ = ["DurableAgent", "JournaledModel", "durable"]
