"""
Replay: an agent of another framework carried unit by unit, each unit a step.

A unit is a model request, a tool call or a question to people. A step runs the agent again from its
beginning, with every recorded unit answered from the journal, up to the one unit that the step is for; that
one really runs, and is journaled with the step's settlement. After so many units the run continues as new
from its message history, so that what a step replays does not grow with the run.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from abc import abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, Field

from agentq.agents.agent import Agent, Step
from agentq.agents.context import AsyncContext
from agentq.agents.effects import effect
from agentq.agents.registry import Registry
from agentq.agents.returns import Ask, Branch, Done, Duration, Fail, Next, Returned, Spawn
from agentq.agents.tools import ToolOptions, options_of
from agentq.errors import ApprovalRefused, ConfigError, Permanent
from agentq.payload import decode, encode
from agentq.policies.limits import Limits, Reached, Room, Used, before_model_call, before_tools

# Calls that an answer asked for arrive one after another; this long without another, and they are all there.
_SETTLES_S = 0.03
MAX_TOKENS = 4096
_HISTORY = "/history"

current: contextvars.ContextVar[Replay] = contextvars.ContextVar("agentq_replay")


class Progress(BaseModel):
    """The input, and what the run has used. The units themselves are journaled as messages."""

    prompt: str = Field(min_length=1)
    input: Any = None
    began: float = 0.0
    model_calls: int = 0
    tool_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    asked: str = ""


@dataclass
class Unit:
    """A unit that the run wants and the journal does not have."""

    key: str
    kind: str  # model, tool, ask, or other
    name: str
    body: Callable[[], Awaitable[object]]
    params: tuple[object, ...]


@dataclass(frozen=True)
class Start:
    """Where the run begins: at the prompt, or as new from a message history."""

    items: list[Any]
    more: Mapping[str, Any]
    times: int  # it continued as new


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
    suspended: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    tell: Callable[[bool], None] = lambda executed: None  # noqa: ARG005
    _seen: Counter[str] = field(default_factory=Counter)

    async def unit(self, unit: Unit) -> Any:
        """The unit's payload: from the journal, or run here; another step's is waited for, in vain."""
        self._seen[unit.key] += 1
        if self._seen[unit.key] > 1:
            unit.key = f"{unit.key}#{self._seen[unit.key]}"
        if unit.key in self.journal:
            self.tell(False)
            return self.journal[unit.key]
        if unit.kind == "other" or (unit.key == self.target and unit.kind != "ask"):
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
        self.tell(True)
        return payload


class ReplayedAgent(Agent[Progress]):
    """An agent of another framework on agentq."""

    writer: str

    def __init__(
        self,
        *,
        name: str,
        version: int,
        tools: Mapping[str, Callable[..., Any]],
        limits: Limits,
        to: str | Sequence[str],
        within: Duration | None,
        replay_max: int,
        timeout_s: float,
        retries: int,
        registry: Registry | None,
    ) -> None:
        if isinstance(replay_max, bool) or not isinstance(replay_max, int) or replay_max < 1:
            raise ConfigError("replay_max is a whole number from 1")
        super().__init__(name, state=Progress, version=version, registry=registry)
        self.limits = limits
        self._to, self._within, self._replay_max = to, within, replay_max
        self._tools = {known: options_of(function) for known, function in tools.items()}

        async def run(state: Progress, ctx: AsyncContext, unit: str = "") -> Returned:
            return await self._step(state, ctx, unit or None)

        async def answered(state: Progress, ctx: AsyncContext, arguments: Any = None) -> Returned:  # noqa: ARG001
            return await self._answered(state, ctx)

        self.steps["run"] = Step(self.name, run, start=True, retries=retries, timeout_s=timeout_s)
        self.steps["answered"] = Step(self.name, answered, start=False, retries=retries, timeout_s=timeout_s)

    # ── what a framework says ────────────────────────────────────────────────

    @abstractmethod
    async def _run_agent(self, start: Start, state: Progress, ctx: AsyncContext, replay: Replay) -> Any:
        """Run the agent to its output, each unit through the replay."""

    @abstractmethod
    async def _perform(self, unit: Unit, state: Progress, ctx: AsyncContext) -> object:
        """Really run a unit; its payload in the form that JSON keeps."""

    @abstractmethod
    def _history(self, unit: Unit) -> tuple[list[Any], Mapping[str, Any]]:
        """The messages with which a model request goes out, and what else continuing from there needs."""

    def _scope(self, replay: Replay) -> AbstractContextManager[None]:  # noqa: ARG002
        return nullcontext()

    def _ended(self, error: Exception) -> Fail | None:  # noqa: ARG002
        """An exception of the framework that ends the session without being a fault."""
        return None

    # ── one step ─────────────────────────────────────────────────────────────

    async def _step(self, state: Progress, ctx: AsyncContext, target: str | None) -> Returned:
        start, journal = await asyncio.to_thread(self._read, ctx)
        replay = Replay(journal, target, lambda unit: self._perform(unit, state, ctx))
        try:
            ended, output = await self._replay(replay, start, state, ctx)
        except Exception as error:
            end = self._ended(error)
            if end is None:
                raise
            return end
        if replay.failed is not None:
            raise replay.failed
        for key, payload in replay.added.items():
            ctx.messages.append({"unit": key, "payload": payload}, by=self.writer)
        if target is not None and target not in replay.added and target not in journal:
            raise Permanent(f"the run did not come to unit {target!r} again: is the agent's code still the same?")
        if ctx.in_branch:
            return Done()  # the join goes on with the run
        if ended:
            return Done(output)
        units = list(replay.parked.values())
        if [unit.kind for unit in units] == ["model"] and len(journal) + len(replay.added) >= self._replay_max:
            self._continue_as_new(units[0], start, ctx)
        return self._next(state, units)

    def _read(self, ctx: AsyncContext) -> tuple[Start, dict[str, Any]]:
        """Where the run begins, and what is recorded since. What was recorded before is not even decoded."""
        rows = ctx.messages.rows()
        items: list[Any] = []
        more: Mapping[str, Any] = {}
        times, since = 0, 0
        for number, (_, body, by) in enumerate(rows, 1):
            if not by.endswith(_HISTORY):
                continue
            row = decode(body)
            if "kept" in row:
                items, more, times = items[: row["kept"]], row["more"], times + 1
            else:
                items.append(row["item"])
            since = number
        journal = {entry["unit"]: entry["payload"] for entry in (decode(body) for _, body, _ in rows[since:])}
        return Start(items, more, times), journal

    def _continue_as_new(self, unit: Unit, start: Start, ctx: AsyncContext) -> None:
        """Write the history of the request, by what it has more than the one before; the journal begins anew."""
        given, more = self._history(unit)
        items, kept = decode(encode(given)), 0
        for one, other in zip(items, start.items, strict=False):
            if one != other:
                break
            kept += 1
        ctx.messages.append({"kept": kept, "more": dict(more)}, by=self.writer + _HISTORY)
        for item in items[kept:]:
            ctx.messages.append({"item": item}, by=self.writer + _HISTORY)
        unit.key = unit.name

    def _next(self, state: Progress, units: list[Unit]) -> Returned:
        """Each unit that the run waits for as a step; side by side when there are several, questions last."""
        work = [unit for unit in units if unit.kind != "ask"]
        if not work:
            return self._ask(state, units[0])
        wanted = sum(unit.kind == "tool" for unit in work)
        reached = before_tools(self.limits, self.used(state), calls=wanted) if wanted else None
        if reached is not None:
            return Fail(str(reached), kind="limit", type="LimitReached")
        state.tool_calls += wanted
        state.model_calls += len(work) - wanted
        if len(work) == 1:
            return Next(self.steps["run"], state, {"unit": work[0].key})
        return Spawn([Branch(self.steps["run"], {"unit": unit.key}) for unit in work], self.steps["run"], state)

    async def _replay(self, replay: Replay, start: Start, state: Progress, ctx: AsyncContext) -> tuple[bool, Any]:
        """Run the agent as far as this step may; whether it ended, and with what."""
        token = current.set(replay)
        try:
            with self._scope(replay):
                running = asyncio.ensure_future(self._run_agent(start, state, ctx, replay))
        finally:
            current.reset(token)
        try:
            await _until_still(replay, running)
            if not running.done():
                return False, None
            if replay.failed is not None:
                running.exception()
                return False, None
            return True, running.result()
        finally:
            replay.suspended = not running.done()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    # ── people ───────────────────────────────────────────────────────────────

    def _ask(self, state: Progress, unit: Unit) -> Ask:
        state.asked = unit.key
        return Ask(
            f"May {unit.name} go ahead?",
            to=self._to,
            within=self._within,
            then=self.steps["answered"],
            state=state,
            args={"arguments": unit.params[0]},
            details={"tool": unit.name},
        )

    async def _answered(self, state: Progress, ctx: AsyncContext) -> Returned:
        """Journal what people said; the model is told of a refusal, and the run goes on."""
        answer = await asyncio.to_thread(lambda: ctx.answer)
        said = answer.comment or ("nobody answered in time" if answer.outcome == "expired" else "no reason was given")
        told = {
            "granted": answer.granted,
            "arguments": answer.args["arguments"] if answer.edited else None,
            "why": f"Not allowed: {said}. The call was not carried out.",
        }
        ctx.messages.append({"unit": state.asked, "payload": told}, by=self.writer)
        return Next(self.steps["run"], state)

    # ── units ────────────────────────────────────────────────────────────────

    def room(self, state: Progress, *, tokens: int, most: int) -> Room:
        """
        Leave for a model request within the session's limits.

        Raises:
            Permanent: one is reached.
        """
        used = self.used(state, calls=-1)
        room = before_model_call(self.limits, used, input_tokens=tokens, max_tokens=most, price=None)
        if isinstance(room, Reached):
            raise Permanent(str(room))
        return room

    async def call(
        self,
        ctx: AsyncContext,
        name: str,
        arguments: Any,
        options: ToolOptions,
        *,
        body: Callable[[], Awaitable[object]],
        returned: Callable[[Any], object],
    ) -> object:
        """
        A tool call through the effect ledger.

        `returned` puts what a `check` found, or why the call was refused, into the form of the body's results.
        """

        async def perform(arguments: Any) -> Any:  # noqa: ARG001 - the body has them already
            return await body()

        perform.__qualname__ = name
        declared: dict[str, Any] = {"idempotent": options.idempotent, "needs": options.needs}
        check, key, auto, question = options.check, options.key, options.auto, options.question
        if check is not None:

            async def recorded(arguments: Any) -> Any:
                found: Any = check(**arguments)
                found = await found if inspect.isawaitable(found) else found
                return None if found is None else returned(found)

            declared["check"] = recorded
        if key is not None:
            declared["key"] = lambda arguments: key(**arguments)
        if options.irreversible:
            declared |= {"irreversible": True, "to": options.to or self._to, "within": options.within or self._within}
            if auto is not None:
                declared["auto"] = lambda arguments: auto(**arguments)
            if question is not None:
                declared["question"] = (
                    question if isinstance(question, str) else lambda arguments: question(**arguments)
                )
        calling: Callable[..., Any] = effect(**declared)(perform)
        try:
            return await ctx.call(calling, arguments)
        except ApprovalRefused as error:
            return returned(f"{error}. The call was not carried out.")

    def options_of(self, name: str, function: Callable[..., Any] | None) -> ToolOptions:
        """What was declared of a tool: here by name, or with `@tool` at its function."""
        if name in self._tools:
            return self._tools[name]
        return options_of(function) if function is not None else ToolOptions()

    @staticmethod
    def used(state: Progress, calls: int = 0) -> Used:
        """What the session has used, for its limits."""
        return Used(
            steps=state.model_calls + state.tool_calls,
            model_calls=state.model_calls + calls,
            tool_calls=state.tool_calls,
            input_tokens=state.input_tokens,
            output_tokens=state.output_tokens,
        )


async def _until_still(replay: Replay, running: asyncio.Future[Any]) -> None:
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


def told(replay: Replay, key: str) -> Mapping[str, Any] | None:
    """What people said to the question of that key, if it was asked."""
    found = replay.journal.get(key)
    return found if isinstance(found, Mapping) else None
