"""
The Pydantic AI agent that you already have, unchanged: each model request and each tool call a step.

    triage = durable(existing_agent, name="triage", version=1)

What Pydantic AI calls durable units are journaled as the session's messages. A step runs the agent again
from its beginning, with every journaled unit answered from the journal, up to the one unit that the step is
for; that one really runs, and its result is journaled with the step's settlement.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

try:
    import pydantic_ai
except ModuleNotFoundError as error:
    from agentq.errors import ConfigError as _ConfigError

    if error.name != "pydantic_ai":
        raise
    raise _ConfigError("this adapter needs Pydantic AI: install agentq[model]") from error

from pydantic import BaseModel, Field, TypeAdapter
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai.durable_exec import (
    JSON_CODEC,
    BaseDurabilityCapability,
    DurabilityEngineSpec,
    JournalCallableOperationBackend,
    RoleBasedOperationConfig,
    record_durable_unit,
    replay_scope,
)
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models import Model
from pydantic_ai.settings import ModelSettings

from agentq.agents.agent import Agent, Step
from agentq.agents.context import AsyncContext
from agentq.agents.effects import effect
from agentq.agents.model.request import dependency, estimate_messages, resolve
from agentq.agents.registry import Registry
from agentq.agents.returns import Branch, Done, Duration, Fail, Next, Returned, Spawn, seconds
from agentq.agents.tools import ToolOptions, options_of
from agentq.errors import ConfigError, Permanent
from agentq.payload import decode
from agentq.policies.limits import Limits, Reached, Used, before_model_call, before_tools

WRITER = f"agentq-durable/1 pydantic-ai/{pydantic_ai.__version__}"

# Calls that an answer asked for arrive one after another; this long without another, and they are all there.
_SETTLES_S = 0.03
_MAX_TOKENS = 4096

_run: contextvars.ContextVar[Replay] = contextvars.ContextVar("agentq_durable_run")


class Progress(BaseModel):
    """The input, and what the run has used. The units themselves are journaled as messages."""

    prompt: str = Field(min_length=1)
    input: Any = None
    began: float = 0.0
    model_calls: int = 0
    tool_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class _Config:
    """Nothing is configured per unit; the step is."""


@dataclass
class Unit:
    """A unit that the run wants and the journal does not have."""

    key: str
    kind: str  # model, tool, or other
    name: str
    body: Callable[[], Awaitable[object]]
    params: tuple[object, ...]


@dataclass
class Replay:
    """One run of the agent within one step: what it finds in the journal, runs, and leaves open."""

    journal: Mapping[str, Any]
    target: str | None
    perform: Callable[[Unit], Awaitable[object]]
    parked: dict[str, Unit] = field(default_factory=dict)
    added: dict[str, object] = field(default_factory=dict)
    failed: BaseException | None = None
    running: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _seen: Counter[str] = field(default_factory=Counter)

    async def unit(self, unit: Unit) -> object:
        """The unit's payload: from the journal, or run here; another step's is waited for, in vain."""
        self._seen[unit.key] += 1
        if self._seen[unit.key] > 1:
            unit.key = f"{unit.key}#{self._seen[unit.key]}"
        if unit.key in self.journal:
            record_durable_unit(executed=False)
            return self.journal[unit.key]
        if unit.kind == "other" or unit.key == self.target:
            return await self._perform(unit)
        self.parked[unit.key] = unit
        self.changed.set()
        await asyncio.get_running_loop().create_future()  # until the run is cancelled
        raise AssertionError("unreachable")

    async def _perform(self, unit: Unit) -> object:
        self.running += 1
        try:
            self.added[unit.key] = payload = await self.perform(unit)
        except BaseException as error:
            # The step's own failure, whatever the agent would make of it.
            self.failed = self.failed or error
            self.changed.set()
            raise
        finally:
            self.running -= 1
            self.changed.set()
        record_durable_unit(executed=True)
        return payload


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
        return await _run.get().unit(Unit(key, kind, name, body, cache_key))


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
        return _run.get(None) is not None

    def get_durable_operation_backend(self) -> _Backend:
        config = _Config()
        return _Backend(
            agent_name=self.name,
            config=RoleBasedOperationConfig(model=config, event=config, capability=config, tool=config),
        )


class DurableAgent(Agent[Progress]):
    """An existing Pydantic AI agent on agentq; made by `durable`."""

    def __init__(
        self,
        agent: PydanticAgent[Any, Any],
        *,
        name: str,
        version: int,
        deps: Callable[[Any], Any] | None,
        tools: Mapping[str, Callable[..., Any]],
        limits: Limits,
        timeout_s: float,
        retries: int,
        registry: Registry | None,
    ) -> None:
        super().__init__(name, state=Progress, version=version, registry=registry)
        self.agent = agent
        self.limits = limits
        self._deps = deps
        self._tools = {known: options_of(function) for known, function in tools.items()}
        self._capability = AgentqDurability(name=name)
        self._output: TypeAdapter[Any] = TypeAdapter(Any)

        async def run(state: Progress, ctx: AsyncContext, unit: str = "") -> Returned:
            return await self._step(state, ctx, unit or None)

        self.steps["run"] = Step(self.name, run, start=True, retries=retries, timeout_s=timeout_s)

    async def _step(self, state: Progress, ctx: AsyncContext, target: str | None) -> Returned:
        rows = await asyncio.to_thread(ctx.messages.rows)
        journal = {entry["unit"]: entry["payload"] for entry in (decode(body) for _, body, _ in rows)}
        replay = Replay(journal, target, lambda unit: self._perform(unit, state, ctx))
        ended, output = await self._replay(replay, state, ctx)
        if replay.failed is not None:
            raise replay.failed
        for key, payload in replay.added.items():
            ctx.messages.append({"unit": key, "payload": payload}, by=WRITER)
        if target is not None and target not in replay.added and target not in journal:
            raise Permanent(f"the run did not come to unit {target!r} again: is the agent's code still the same?")
        if ctx.in_branch:
            return Done()  # the join goes on with the run
        if ended:
            return Done(output)
        return self._next(state, list(replay.parked.values()))

    def _next(self, state: Progress, units: list[Unit]) -> Returned:
        """Each unit that the run waits for as a step; side by side when there are several."""
        wanted = sum(unit.kind == "tool" for unit in units)
        reached = before_tools(self.limits, _used(state), calls=wanted) if wanted else None
        if reached is not None:
            return Fail(str(reached), kind="limit", type="LimitReached")
        state.tool_calls += wanted
        state.model_calls += len(units) - wanted
        if len(units) == 1:
            return Next(self.steps["run"], state, {"unit": units[0].key})
        return Spawn([Branch(self.steps["run"], {"unit": unit.key}) for unit in units], self.steps["run"], state)

    async def _replay(self, replay: Replay, state: Progress, ctx: AsyncContext) -> tuple[bool, Any]:
        """Run the agent as far as this step may; whether it ended, and with what."""
        token = _run.set(replay)
        try:
            with replay_scope():
                running = asyncio.ensure_future(self._run_agent(state, ctx))
        finally:
            _run.reset(token)
        try:
            await self._until_still(replay, running)
            if not running.done():
                return False, None
            if replay.failed is not None:
                running.exception()
                return False, None
            return True, self._output.dump_python(running.result().output, mode="json")
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def _run_agent(self, state: Progress, ctx: AsyncContext) -> Any:
        settings = ModelSettings(max_retries=0)
        own = self.agent.model_settings
        if not (isinstance(own, dict) and own.get("max_tokens")):
            settings["max_tokens"] = _MAX_TOKENS
        return await self.agent.run(
            state.prompt,
            deps=self._deps(state.input) if self._deps is not None else None,
            model_settings=settings,
            capabilities=[self._capability],
            conversation_id=ctx.session_id,
            run_id=ctx.session_id,
        )

    async def _until_still(self, replay: Replay, running: asyncio.Future[Any]) -> None:
        """Wait until the run has ended, or has only units left that other steps are for."""
        while not running.done():
            replay.changed.clear()
            if replay.failed is not None:
                return
            if replay.running == 0 and (replay.parked or replay.target in replay.added):
                waits = [running, asyncio.ensure_future(replay.changed.wait())]
                try:
                    done, _ = await asyncio.wait(waits, timeout=_SETTLES_S, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    waits[1].cancel()
                if not done and replay.parked:
                    return
                continue
            changed = asyncio.ensure_future(replay.changed.wait())
            try:
                await asyncio.wait([running, changed], return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()

    # ── units ────────────────────────────────────────────────────────────────

    async def _perform(self, unit: Unit, state: Progress, ctx: AsyncContext) -> object:
        match unit.kind:
            case "model":
                return await self._request(unit, state, ctx)
            case "tool":
                return await self._call(unit, ctx)
            case _:
                return await unit.body()

    async def _request(self, unit: Unit, state: Progress, ctx: AsyncContext) -> object:
        """A model request, its money reserved before it goes out."""
        history: list[ModelMessage] = unit.params[1]  # type: ignore[assignment]
        settings: Mapping[str, Any] = unit.params[2] or {}  # type: ignore[assignment]
        model = self._model()
        tokens = estimate_messages(history)
        most = int(settings.get("max_tokens") or _MAX_TOKENS)
        room = before_model_call(self.limits, _used(state, calls=-1), input_tokens=tokens, max_tokens=most, price=None)
        if isinstance(room, Reached):
            raise Permanent(str(room))
        with ctx.trace("model", model.model_name, provider=model.system, max_tokens=most) as span:
            async with ctx.spend(
                model=model.model_name, provider=model.system, input_tokens=tokens, max_tokens=most
            ) as reserved:
                needs = dependency(model)
                async with ctx.needing(needs) if needs else nullcontext():
                    payload: Any = await unit.body()
                usage = (payload.get("response") or payload).get("usage") or {}
                used = {"input_tokens": usage.get("input_tokens", 0), "output_tokens": usage.get("output_tokens", 0)}
                reserved.used(**used)
            span.used(**used, cost_micros=reserved.cost_micros)
        state.input_tokens += used["input_tokens"]
        state.output_tokens += used["output_tokens"]
        return payload

    def _model(self) -> Model:
        model = self.agent.model
        if model is None:
            raise Permanent("the agent has no model")
        return resolve(model) if isinstance(model, str) else model

    async def _call(self, unit: Unit, ctx: AsyncContext) -> object:
        """A tool call through the effect ledger; what it returned, or raised for the model, is what is journaled."""
        name, arguments = str(unit.params[0]), unit.params[1]
        options = self._options(name, unit.params[3])

        async def perform(arguments: dict[str, Any]) -> Any:  # noqa: ARG001 - the body has them already
            return await unit.body()

        check, key = options.check, options.key
        perform.__qualname__ = name
        declared: dict[str, Any] = {"idempotent": options.idempotent}
        if check is not None:
            declared["check"] = lambda arguments: _recorded(check(**arguments))
        if key is not None:
            declared["key"] = lambda arguments: key(**arguments)
        if options.irreversible:
            declared |= {"irreversible": True, "to": options.to, "within": options.within}
        calling: Callable[..., Any] = effect(**declared)(perform)
        return await ctx.call(calling, arguments)

    def _options(self, name: str, tool: Any) -> ToolOptions:
        """What was declared of a tool: here by name, or with `@tool` at its function."""
        if name in self._tools:
            return self._tools[name]
        toolset = getattr(tool, "toolset", None)
        found = getattr(toolset, "tools", {}).get(name) if toolset is not None else None
        function = getattr(found, "function", None)
        return options_of(function) if function is not None else ToolOptions()


def durable(
    agent: PydanticAgent[Any, Any],
    *,
    name: str,
    version: int = 1,
    deps: Callable[[Any], Any] | None = None,
    tools: Mapping[str, Callable[..., Any]] | None = None,
    limits: Limits | None = None,
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

    Limits:

    - Between its units the agent's code runs in every step: instructions, prepare functions, output validators
      and hooks must have no side effects, and must come to the same each time. A run that takes another way
      than its journal is dead, with the unit named.
    - Each step replays what came before, about a millisecond for a unit, so the work of a run grows with the
      square of its length; beyond a hundred units use `ModelAgent`.
    - Names of the agent, its toolsets and tools are part of the journal: renaming them strands live sessions.
    - `limits` counts model calls, tool calls and tokens; cost is held by budgets. `on_reach` is always `fail`.
    - No streaming to the caller, no `toolsets=` per run, no deferred tools; for approval declare the tool
      `irreversible=True`.

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
        timeout_s=seconds(timeout),
        retries=retries,
        registry=registry,
    )


def _used(state: Progress, calls: int = 0) -> Used:
    return Used(
        steps=state.model_calls + state.tool_calls,
        model_calls=state.model_calls + calls,
        tool_calls=state.tool_calls,
        input_tokens=state.input_tokens,
        output_tokens=state.output_tokens,
    )


async def _recorded(answer: Any) -> Any:
    """What a check found, in the form in which Pydantic AI journals a tool's result."""
    found = await answer if inspect.isawaitable(answer) else answer
    return None if found is None else {"kind": "tool_return", "result": found}


__all__ = ["AgentqDurability", "DurableAgent", "durable"]
