"""Model agents: a model with tools, each model request one step and each tool call one step."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ValidationError
from pydantic_ai import Tool
from pydantic_ai.models import Model
from pydantic_ai.settings import ModelSettings

from agentq.agents.agent import Agent, Step, problems
from agentq.agents.context import AsyncContext, Context
from agentq.agents.model import history as histories
from agentq.agents.model.answer import Output
from agentq.agents.model.calling import call_async, call_sync
from agentq.agents.model.compaction import Compaction, Shortening
from agentq.agents.model.conversation import Call, Conversation, Prompt
from agentq.agents.model.history import View
from agentq.agents.model.request import ModelLike
from agentq.agents.model.toolbox import Entry, Toolbox
from agentq.agents.model.turn import Turn
from agentq.agents.registry import Registry
from agentq.agents.returns import Done, Duration, Returned, seconds
from agentq.agents.tools import ToolContext
from agentq.errors import ConfigError, InvalidState, Permanent
from agentq.payload import encode
from agentq.policies.limits import Limits, Price
from agentq.policies.session_breaker import Breaker
from agentq.step import valid_name

Instruction = str | Callable[[ToolContext], str | Awaitable[str]] | Callable[[], str | Awaitable[str]]

# Beyond the model's or tool's own timeout: for loading, judging, and the bookkeeping of the call.
_SLACK_S = 30.0


class ModelAgent(Agent[Conversation]):
    """
    An agent made of a model and tools.

    Each model request is a step, and so is each tool call; calls of one answer run in parallel and are
    joined. Messages are appended rows, so what a step stores does not grow with the conversation. Tools
    run through the effect ledger: a call whose result is stored is never made again.

    `model` is a name (`"openai:gpt-5"`), a Pydantic AI model, or a function that makes one. `output` is
    `str` or a type that Pydantic can check. `instructions` are texts and functions, the latter asked before
    each request. `input` is the type of the session's input and `prompt` makes the first message of it; by
    default the input is `{"prompt": "..."}`.

    An answer that does not fit is fed back to the model, `repairs` times in a row, then the next of
    `fallbacks` gets its turn, then the session ends as a dead letter. `limits` and `breaker` bound the session.
    `compaction` says when its history is made short for the model, and how; all of it stays stored.
    `price` is what its limit of cost reckons with, where the operator's price or the public list is not to count.
    `needs` names the dependency whose outage holds its requests back; by default the model's provider. While
    the provider of one model is out of order, or its quota spent, the next of `fallbacks` that has another
    provider goes on; with `fallback_on_outage=False` the session waits.

    `confidence_min` has each call, and the final call of a typed output, state from 0 to 1 how sure the model
    is; below it a person (`confidence_to`) decides before anything goes on. They may change arguments; a no is
    told to the model. A call that states nothing counts as 0; an answer in plain text states none and passes.

    `explain` lets each call, and the final call of a typed output, state a `choice` beside its arguments: the reason,
    what else was considered and how sure the model is. It stands in the decision log, redacted, and goes no further:
    neither the tool nor the effect's key nor the breaker sees it, and a call that states nothing is as good. A tool
    that has an argument of that name is not asked.

    `on_exhausted="ask"`: when repairs and fallbacks are used up a person is asked whether to try once more from
    the first model, instead of a dead letter.

    Raises:
        ConfigError: tools, output or settings contradict themselves.
    """

    def __init__(
        self,
        name: str,
        *,
        model: ModelLike,
        version: int = 1,
        instructions: Instruction | Sequence[Instruction] = (),
        tools: Sequence[Callable[..., Any] | Tool[Any] | Entry] = (),
        output: Any = str,
        input: type[BaseModel] = Prompt,
        prompt: Callable[[Any], str] | None = None,
        deps: Callable[[ToolContext], Any] | None = None,
        fallbacks: Sequence[ModelLike] = (),
        repairs: int = 2,
        limits: Limits | None = None,
        breaker: Breaker | None = None,
        settings: ModelSettings | None = None,
        max_tokens: int = 4096,
        timeout: Duration = 120.0,
        retries: int = 5,
        stream: bool = False,
        view: View | None = None,
        compaction: Compaction | None = None,
        needs: str | None = None,
        fallback_on_outage: bool = True,
        confidence_min: float | None = None,
        confidence_to: str | Sequence[str] = (),
        explain: bool = False,
        on_exhausted: Literal["dead", "ask"] = "dead",
        price: Price | None = None,
        result_max_chars: int = 16_000,
        registry: Registry | None = None,
    ) -> None:
        super().__init__(name, state=Conversation, version=version, registry=registry)
        if prompt is None and input is not Prompt and "prompt" not in input.model_fields:
            raise ConfigError(f"agent {name!r} has an input of its own: say with prompt= what the model is told of it")
        if max_tokens < 1 or repairs < 0 or result_max_chars < 200:
            raise ConfigError(f"agent {name!r}: max_tokens from 1, repairs from 0, result_max_chars from 200")
        if confidence_min is not None and not 0 < confidence_min <= 1:
            raise ConfigError(f"agent {name!r}: confidence_min is above 0 and at most 1, not {confidence_min!r}")
        if confidence_to and confidence_min is None:
            raise ConfigError(f"agent {name!r}: confidence_to= says who is asked below confidence_min=; set it")
        if on_exhausted not in ("dead", "ask"):
            raise ConfigError(f"agent {name!r}: on_exhausted is dead or ask, not {on_exhausted!r}")
        self.read_history = histories.read
        self.input = input
        self.instructions = _listed(instructions)
        self.toolbox = Toolbox(tools)
        self.output = Output(output)
        self.models: tuple[ModelLike, ...] = (model, *fallbacks)
        self.repairs = repairs
        self.limits = limits or Limits()
        self.breaker = breaker or Breaker()
        self.settings = settings or ModelSettings()
        self.max_tokens = max_tokens
        self.timeout_s = seconds(timeout)
        self.stream = stream
        self.view = view
        self.compaction = compaction
        self.needs = valid_name("dependency", needs) if needs is not None else None
        self.fallback_on_outage = fallback_on_outage
        self.confidence_min = confidence_min
        self.confidence_to = confidence_to
        self.explain = explain
        self.on_exhausted = on_exhausted
        self.price = price
        self.result_max_chars = result_max_chars
        self._prompt = prompt
        self._deps = deps
        self._add_model_step(retries)
        if confidence_min is not None:
            self._add_confirm_step()
        for entry in self.toolbox:
            self._add_tool_step(entry)

    def admit(self, input: BaseModel | Mapping[str, Any]) -> bytes:
        """As `Agent.admit`: the input, checked by its own type, as the beginning of a conversation."""
        try:
            given = input if isinstance(input, self.input) else self.input.model_validate(_plain(input))
        except ValidationError as error:
            raise InvalidState(self.name, problems(error)) from None
        try:
            return encode({"input": given.model_dump(mode="json")})
        except (TypeError, ValueError) as error:
            raise InvalidState(self.name, str(error)) from None

    def typed_input(self, state: Conversation) -> Any:
        """
        The session's input as its type.

        Raises:
            Permanent: this code cannot read it.
        """
        try:
            return self.input.model_validate(state.input)
        except ValidationError as error:
            raise Permanent(f"the session's input does not fit {self.input.__name__}: {problems(error)}") from None

    def first_message(self, given: Any) -> str:
        """What the model is told of the input."""
        return self._prompt(given) if self._prompt is not None else str(given.prompt)

    async def instructed(self, context: ToolContext) -> str:
        """The instructions for one request, dynamic ones asked anew."""
        parts = []
        for instruction in self.instructions:
            if isinstance(instruction, str):
                parts.append(instruction)
                continue
            takes_context = bool(inspect.signature(instruction).parameters)
            said: Any = instruction(context) if takes_context else instruction()  # type: ignore[call-arg]
            parts.append(await said if inspect.isawaitable(said) else said)
        return "\n\n".join(part for part in parts if part)

    def context_for(self, state: Conversation, ctx: Context | AsyncContext) -> ToolContext:
        """What tools and instructions may know of the session."""
        bare = ToolContext(
            tenant=ctx.tenant,
            session_id=ctx.session_id,
            step_id=ctx.step_id,
            agent=ctx.agent,
            attempt=ctx.attempt,
            input=self.typed_input(state),
            deps=None,
            logger=ctx.logger,
            _context=ctx,
        )
        return bare if self._deps is None else _with_deps(bare, self._deps(bare))

    def _add_model_step(self, retries: int) -> None:
        async def model(state: Conversation, ctx: AsyncContext, asked: str = "") -> Returned:
            return await Turn(self, state, ctx).take(asked)

        async def compact(state: Conversation, ctx: AsyncContext, force: bool = False) -> Returned:
            return await Shortening(self, state, ctx).take(force)

        timeout_s = self.timeout_s + _SLACK_S
        self.steps["model"] = Step(self.name, model, start=True, retries=retries, timeout_s=timeout_s)
        # Also where there is none: a session may be at it when the next release leaves compaction out.
        self.steps["compact"] = Step(self.name, compact, start=False, retries=retries, timeout_s=timeout_s)

    def _add_confirm_step(self) -> None:
        async def confirm(
            state: Conversation, ctx: AsyncContext, calls: list[Call] | None = None, answer: Any = None
        ) -> Returned:
            return await Turn(self, state, ctx).confirmed(calls, answer)

        self.steps["confirm"] = Step(self.name, confirm, start=False, retries=None, timeout_s=None)

    def _add_tool_step(self, entry: Entry) -> None:
        if entry.is_async:

            async def run(state: Conversation, ctx: AsyncContext, call: Call) -> Returned:
                return await call_async(self, entry, state, ctx, call)
        else:

            def run(state: Conversation, ctx: Context, call: Call) -> Returned:  # type: ignore[misc]
                return call_sync(self, entry, state, ctx, call)

        run.__name__ = entry.step
        self.steps[entry.step] = Step(
            self.name,
            run,
            start=False,
            retries=entry.options.retries,
            timeout_s=entry.options.timeout_s + _SLACK_S,
        )


def _listed(instructions: Instruction | Sequence[Instruction]) -> tuple[Instruction, ...]:
    if isinstance(instructions, str) or callable(instructions):
        return (instructions,)
    return tuple(instructions)


def _plain(given: BaseModel | Mapping[str, Any]) -> Any:
    return given.model_dump() if isinstance(given, BaseModel) else given


def _with_deps(context: ToolContext, deps: Any) -> ToolContext:
    from dataclasses import replace

    return replace(context, deps=deps)


__all__ = ["Done", "Model", "ModelAgent"]
