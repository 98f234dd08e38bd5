"""One turn of a model: what came back is weighed, limits are asked, the model is asked, its answer judged."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from pydantic_ai.messages import ModelRequest, ModelResponse, ToolCallPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.settings import ModelSettings

from agentq.agents.context import AsyncContext
from agentq.agents.listening import listen
from agentq.agents.model import answer as answers
from agentq.agents.model import choice as choices
from agentq.agents.model import confidence
from agentq.agents.model import history as histories
from agentq.agents.model.answer import FINAL, Calls, Final, Flaw
from agentq.agents.model.choice import Stated
from agentq.agents.model.conversation import Call, Conversation
from agentq.agents.model.history import WRITER, History, to_store
from agentq.agents.model.request import ask, dependency, estimate, estimate_messages, name_of, resolve, tokens_by_kind
from agentq.agents.returns import Ask, Branch, Done, Fail, Next, Returned, Spawn, seconds
from agentq.agents.tracing import Span
from agentq.errors import BudgetExceeded, HeldBack, Park, Permanent, RepairsExhausted, Stopped, UnknownPrice
from agentq.policies import session_breaker
from agentq.policies.limits import Price, Reached, Room, Used, before_model_call, before_tools
from agentq.policies.session_breaker import Action, Hint, Trip, Window

if TYPE_CHECKING:
    from agentq.agents.model.agent import ModelAgent

# How often a history that the model finds too long is shown shorter, and how many results are then left.
_KEPT_RESULTS = (8, 3, 1)

# About what people are asked, beside the limits' names.
_REPAIRS = "repairs"
_NOT_MADE = "Not called: too many answers could not be used."


class Turn:
    """One model request, from the history so far to what follows. It alone changes the conversation's state."""

    def __init__(self, agent: ModelAgent, state: Conversation, ctx: AsyncContext) -> None:
        self.agent = agent
        self.state = state
        self.ctx = ctx
        self._cost = 0
        self._price_version: str | None = None
        self._guess = 0

    async def take(self, asked: str) -> Returned:
        """
        Take the turn. `asked` names the limit about which people were asked before it.

        Raises:
            RepairsExhausted: the model does not give a usable answer.
            Permanent: the history cannot be read, or a limit of cost meets a model without a price.
            Exception: the model's failure, classified as ever.
        """
        state = self.state
        state.began = state.began or time.time()
        if asked and (stop := self._answered(asked)) is not None:
            return stop
        stored = histories.read_shown(await asyncio.to_thread(self.ctx.messages.rows))
        history = stored.history
        await self._weigh(history)
        if not history:
            self._add(history, self._first())
        context = self.agent.context_for(state, self.ctx)
        instructions = await self.agent.instructed(context)
        parameters = self._parameters(history)
        model = resolve(self.agent.models[state.model])
        shown = self._shown(history, instructions)
        tokens = estimate(shown, instructions, parameters, counted=stored.counted)
        self._guess = estimate_messages(history)
        if self._too_long(tokens):
            return Next(self.agent.steps["compact"], state)
        room = self._room(model, tokens)
        while isinstance(room, Reached):
            if stop := await self._reached(room):
                return stop
            room = self._room(model, tokens)
        response = await self._ask(model, shown, parameters, tokens, room)
        if not isinstance(response, ModelResponse):
            return response
        return await self._follow(response, room)

    # ── before the request ───────────────────────────────────────────────────

    def _answered(self, asked: str) -> Returned | None:
        """What people said to the question before this turn; None: it goes on."""
        granted = self.ctx.answer.granted
        if asked == _REPAIRS:
            if not granted:
                return Fail("the model gave no usable answer, and nobody let it try again", type="RepairsExhausted")
            self.state.model = self.state.repairs = 0
            return None
        if not granted:
            return Fail(f"nobody granted more of {asked}", kind="limit", type="LimitReached")
        self.state.grants += 1
        return None

    def _first(self) -> ModelRequest:
        return ModelRequest([UserPromptPart(self.agent.first_message(self.agent.typed_input(self.state)))])

    async def _weigh(self, history: History) -> None:
        """Look at what the calls of the last turn came to; park, or leave a hint, when it goes in circles."""
        state = self.state
        if not state.calls:
            return
        returns = histories.tool_returns(history)
        asked = histories.tool_calls(history)
        actions = [self._action(asked[call], returns.get(call)) for call in state.calls if call in asked]
        state.window = session_breaker.note_actions(state.window, actions)
        state.calls = []
        match session_breaker.judge(state.window, self.agent.breaker):
            case Trip() as trip:
                await self._tripped(trip)
            case Hint(text=text):
                self._add(history, ModelRequest([UserPromptPart(f"[Note of the system that runs you] {text}")]))

    def _action(self, call: ToolCallPart, returned: ToolReturnPart | None) -> Action:
        entry = self.agent.toolbox.find(call.tool_name)
        options = entry.options if entry else None
        return Action(
            tool=call.tool_name,
            # Bare: a call that is made again for another reason is the same call.
            arguments=self._bare(call),
            result=returned.model_response_str() if returned else None,
            ok=returned is not None and returned.outcome == "success",
            poll=options.poll if options else False,
            changes=not options.idempotent if options else False,
        )

    def _parameters(self, history: History) -> ModelRequestParameters:
        output = self.agent.output
        tools, finals = self.agent.toolbox.definitions(reader=bool(histories.stored_results(history))), output.tools
        if self.agent.confidence_min is not None:
            tools, finals = [*map(confidence.asked, tools)], [*map(confidence.asked, finals)]
        if self.agent.explain:
            apart = self.agent.confidence_min is not None
            tools, finals = (
                [choices.asked(definition, confidence=not apart) for definition in definitions]
                for definitions in (tools, finals)
            )
        return ModelRequestParameters(
            function_tools=tools,
            output_tools=finals,
            output_mode="text" if output.is_text else "tool",
            allow_text_output=output.is_text,
        )

    def _shown(self, history: History, instructions: str) -> History:
        """The history as this request shows it, with the instructions of now; what is stored stays whole."""
        shown = self.agent.view(list(history)) if self.agent.view else list(history)
        if self.state.squeezes:
            shown = histories.drop_old_tool_results(_KEPT_RESULTS[self.state.squeezes - 1])(shown)
        last = shown[-1]
        assert isinstance(last, ModelRequest), "a turn begins with something to answer"
        return [*shown[:-1], replace(last, instructions=instructions or None)]

    def _too_long(self, tokens: int) -> bool:
        """
        Whether the history is made short first: above its limit, and a quarter longer than when that was last done,
        so that a history that cannot be made short is not tried at each turn.
        """
        compaction = self.agent.compaction
        due = compaction is not None and tokens > compaction.above_tokens
        return due and self._guess > self.state.compacted * 1.25

    def _room(self, model: Model, tokens: int) -> Room | Reached:
        limits = self.agent.limits
        return before_model_call(
            limits,
            self._used(),
            input_tokens=tokens,
            max_tokens=int(self.agent.settings.get("max_tokens", self.agent.max_tokens)),
            price=self._price(model) if limits.cost_micros is not None else None,
            grants=self.state.grants,
        )

    def _price(self, model: Model) -> Price:
        """
        What a token costs, in and out.

        Raises:
            UnknownPrice: nobody knows; a limit of cost is never silently one of nothing.
        """
        if self.agent.price is not None:
            return self.agent.price
        name = f"{model.system}:{model.model_name}"
        million = 1_000_000
        one_way = self.ctx.quote(name, input_tokens=million, output_tokens=0).micros
        other = self.ctx.quote(name, input_tokens=0, output_tokens=million).micros
        if one_way is None or other is None:
            raise UnknownPrice(name)
        return Price(one_way / million, other / million)

    def _used(self) -> Used:
        spent = self.state.spent
        # Attempts of this very call that failed are calls too.
        failed = self.ctx.attempt - 1
        return Used(
            spent.steps,
            spent.model_calls + failed,
            spent.tool_calls,
            spent.input_tokens,
            spent.output_tokens,
            spent.cost_micros,
            time.time() - self.state.began,
        )

    # ── the request ──────────────────────────────────────────────────────────

    async def _ask(
        self, model: Model, shown: History, parameters: ModelRequestParameters, tokens: int, room: Room
    ) -> ModelResponse | Returned:
        settings = ModelSettings(timeout=self.agent.timeout_s, max_retries=0)
        settings |= self.agent.settings
        settings["max_tokens"] = room.max_tokens
        sink = self._tell if self.agent.stream else None
        try:
            with self.ctx.trace(
                "model", model.model_name, input=_parts(shown[-1]), provider=model.system, max_tokens=room.max_tokens
            ) as span:
                if self.state.repairing:
                    # Paid for only because the answer before was of no use.
                    span.note(repair=True)
                response = await self._spend(
                    model, tokens, room, lambda: ask(model, shown, parameters=parameters, settings=settings, sink=sink)
                )
                self._count(response, span)
        except HeldBack as error:
            return self._instead(error)
        except Stopped:
            raise
        except BudgetExceeded as error:
            return await self._over_budget(error)
        except Exception as error:
            return self._instead(error)
        return response

    async def _spend(
        self, model: Model, tokens: int, room: Room, call: Callable[[], Awaitable[ModelResponse]]
    ) -> ModelResponse:
        """The call with its money reserved in every budget before it goes out, and its provider asked for."""
        limits, times = self.agent.limits, self.state.grants + 1
        async with self.ctx.spend(
            model=model.model_name,
            provider=model.system,
            input_tokens=tokens,
            max_tokens=room.max_tokens,
            session_cost_usd=None if limits.cost_micros is None else Decimal(limits.cost_micros * times) / 1_000_000,
            session_tokens=None if limits.tokens is None else limits.tokens * times,
        ) as reserved:
            needs = self.agent.needs or dependency(model)
            async with self.ctx.needing(needs) if needs else nullcontext():
                listen(model)
                response = await call()
            usage = response.usage
            price = self.agent.price
            reserved.used(
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cached_input_tokens=usage.cache_read_tokens,
                cost_usd=None
                if price is None
                else Decimal(str(usage.input_tokens * price.input + usage.output_tokens * price.output)) / 1_000_000,
            )
        self._cost, self._price_version = reserved.cost_micros, "the agent's own" if price else reserved.price_version
        return response

    async def _over_budget(self, error: BudgetExceeded) -> Returned:
        """
        A budget that is spent: the session's own is its limit; of another, its owner has said what follows.

        Raises:
            BudgetExceeded: its owner's rule decides.
        """
        if error.period == "session":
            reached = Reached("budget", 1, 1, why=str(error))
            return await self._reached(reached) or Next(self.agent.steps["model"], self.state)
        raise error

    async def _tell(self, text: str) -> None:
        await self.ctx.event_async("text", text=text, attempt=self.ctx.attempt)

    def _count(self, response: ModelResponse, span: Span) -> None:
        usage, spent = response.usage, self.state.spent
        micros = self._cost
        span.output = _parts(response)
        span.used(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cost_micros=micros,
            model=response.model_name,
            finish=response.finish_reason,
            price_version=self._price_version,
            **tokens_by_kind(usage),
        )
        spent.steps += 1
        spent.model_calls += self.ctx.attempt
        spent.input_tokens += usage.input_tokens
        spent.output_tokens += usage.output_tokens
        spent.cost_micros += micros

    def _instead(self, error: Exception) -> Returned:
        """
        What follows a request that failed: a shorter history, another model, or nothing but the error.

        Raises:
            Exception: the error itself.
        """
        held = self.ctx.out_of_order(error) if self.agent.fallback_on_outage else None
        if held is not None and self._next_model(f"{held} is out of order: {type(error).__name__}", besides=held):
            return Next(self.agent.steps["model"], self.state)
        if isinstance(error, HeldBack):
            raise error
        failure = self.ctx.classify(error)
        too_long = failure.type.endswith("ContextWindowExceededError")
        if too_long and self.agent.compaction is not None and self._guess > self.state.compacted:
            return Next(self.agent.steps["compact"], self.state, {"force": True})
        if too_long and self.state.squeezes < len(_KEPT_RESULTS):
            self.state.squeezes += 1
            return Next(self.agent.steps["model"], self.state)
        over = failure.kind in ("permanent", "semantic") or self.ctx.attempt >= self.ctx.attempts_max
        if over and self._next_model(f"{failure.type}: {failure.message}"):
            return Next(self.agent.steps["model"], self.state)
        if too_long:
            raise RepairsExhausted("the history is too long for the model, also without its old results") from error
        raise error

    def _next_model(self, why: str, *, besides: str | None = None) -> bool:
        """Go over to the next model, or to the next that does not need what is out of order (`besides`)."""
        state = self.state
        later = range(state.model + 1, len(self.agent.models))
        able = [number for number in later if besides is None or self._needs(number) != besides]
        if not able:
            return False
        state.model = able[0]
        state.repairs = 0
        chosen = name_of(self.agent.models[state.model])
        self.ctx.logger.warning("falls back to model %s", chosen)
        self.ctx.decide([name_of(model) for model in self.agent.models], chosen, why)
        return True

    def _needs(self, number: int) -> str | None:
        return self.agent.needs or dependency(resolve(self.agent.models[number]))

    # ── after the answer ─────────────────────────────────────────────────────

    async def _follow(self, response: ModelResponse, room: Room) -> Returned:
        plain, said = self._explained(response)
        plain, stated = self._stated(plain)
        found = answers.read(plain, self.agent.toolbox, self.agent.output)
        flawed = isinstance(found, Flaw) or (isinstance(found, Calls) and found.flaw is not None)
        self.state.repairing = isinstance(found, Flaw)
        usage = response.usage
        self.state.window = session_breaker.note_answer(
            self.state.window, tokens=usage.input_tokens + usage.output_tokens, flawed=flawed
        )
        if response.finish_reason == "length" and room.shrunk and isinstance(found, Flaw):
            cut = Reached("output_tokens", room.max_tokens, room.max_tokens)
            return await self._reached(cut) or Next(self.agent.steps["model"], self.state)
        match found:
            case Final(value, note):
                return self._finish(response, value, note, stated, said)
            case Calls():
                return await self._call(response, found, stated, said)
            case Flaw(what, feedback):
                self._choose(response, (), "none", what, said=said)
                stop = self._repair(what)
                self._store(response, feedback)
                return stop or Next(self.agent.steps["model"], self.state)

    def _stated(self, response: ModelResponse) -> tuple[ModelResponse, dict[str, float]]:
        return (response, {}) if self.agent.confidence_min is None else confidence.split(response, self._schemas())

    def _explained(self, response: ModelResponse) -> tuple[ModelResponse, dict[str, Stated]]:
        return choices.split(response, self._schemas()) if self.agent.explain else (response, {})

    def _bare(self, call: ToolCallPart) -> dict[str, Any]:
        """The arguments of a stored call without what it states of itself."""
        arguments, schema = call.args_as_dict(), self._schemas().get(call.tool_name)
        if schema is None:
            return arguments
        if self.agent.explain:
            arguments = choices.without(arguments, schema)
        return arguments if self.agent.confidence_min is None else confidence.without(arguments, schema)

    def _schemas(self) -> dict[str, dict[str, Any]]:
        """What each call may have for arguments of its own."""
        definitions = [*self.agent.toolbox.definitions(reader=True), *self.agent.output.tools]
        return {definition.name: definition.parameters_json_schema for definition in definitions}

    def _finish(
        self,
        response: ModelResponse,
        value: Any,
        note: ModelRequest | None,
        stated: dict[str, float],
        said: dict[str, Stated],
    ) -> Returned:
        sure = _lowest(stated, [part.tool_call_id for part in response.tool_calls if part.tool_name == FINAL])
        if said or any(part.tool_name != FINAL for part in response.tool_calls):
            self._choose(response, (), "answer", response.text, sure, said=said)
        if self.agent.confidence_min is None or sure is None:
            self._store(response, note)
            return Done(value)
        if sure >= self.agent.confidence_min:
            self.ctx.decide(["answer", "ask"], "answer", response.text or None, sure)
            self._store(response, note)
            return Done(value)
        self.ctx.decide(["answer", "ask"], "ask", response.text or None, sure)
        self._store(response)
        return self._ask_people("Is this answer right?", {"answer": value}, sure)

    def _ask_people(self, question: str, args: dict[str, Any], sure: float) -> Ask:
        return Ask(
            f"{question} The model is {sure:.0%} sure, and {self.agent.confidence_min:.0%} are wanted.",
            to=self.agent.confidence_to,
            then=self.agent.steps["confirm"],
            state=self.state,
            args=args,
        )

    async def confirmed(self, calls: list[Call] | None, answer: Any) -> Returned:
        """
        Go on with what a person has said of a call or an answer of which the model was not sure.

        Raises:
            Permanent: they changed which tools are called, and not only with what.
        """
        said = self.ctx.answer
        response = histories.last_response(histories.read(await asyncio.to_thread(self.ctx.messages.rows)))
        assert response is not None, "people are asked about a response"
        if not said.granted:
            why = f"A person did not allow it ({said.outcome}{': ' + said.comment if said.comment else ''})."
            told = f"{why} It was not done. Do otherwise, or find out more."
            asked = response.tool_calls if calls is None else calls_in(response, [call.id for call in calls])
            parts = [ToolReturnPart(c.tool_name, told, tool_call_id=c.tool_call_id, outcome="denied") for c in asked]
            self._store(ModelRequest(parts))
            return Next(self.agent.steps["model"], self.state)
        if calls is None:
            return Done(self.agent.output.again(answer))
        asked = calls_in(response, [call.id for call in calls])
        if [(part.tool_call_id, part.tool_name) for part in asked] != [(call.id, call.tool) for call in calls]:
            raise Permanent("an approver may change what a tool is called with, not which tool is called")
        return self._go(calls)

    async def _call(
        self, response: ModelResponse, found: Calls, stated: dict[str, float], said: dict[str, Stated]
    ) -> Returned:
        state, calls = self.state, found.calls
        picked = ", ".join(call.tool for call in calls)
        sure = _lowest(stated, [call.id for call in calls])
        self._choose(response, calls, picked, response.text, sure, said=said)
        while reached := before_tools(self.agent.limits, self._used(), calls=len(calls), grants=state.grants):
            if stop := await self._reached(reached):
                return stop
        if found.flaw is None:
            state.repairs = 0
        elif stop := self._repair(found.flaw):
            state.repairing = True
            self._store(response, found.feedback, *(answers.returned(call, _NOT_MADE) for call in calls))
            return stop
        self._store(response, found.feedback)
        if sure is not None and self.agent.confidence_min is not None and sure < self.agent.confidence_min:
            dumped = [call.model_dump() for call in calls]
            return self._ask_people(f"May {picked} go ahead?", {"calls": dumped}, sure)
        return self._go(calls)

    def _choose(
        self,
        response: ModelResponse,
        calls: Sequence[Call],
        picked: str,
        why: str | None,
        sure: float | None = None,
        *,
        said: dict[str, Stated],
    ) -> None:
        """Note what was picked of an answer, with what the model states of it; of what was not picked too."""
        chosen = {call.id for call in calls} or {part.tool_call_id for part in response.tool_calls}
        stated = [one for id_, one in said.items() if id_ in chosen]
        if sure is None:
            sure = min((one.confidence for one in stated if one.confidence is not None), default=None)
        words = dict.fromkeys(text for text in (why, choices.reasons(stated)) if text)
        options = self._considered(response, calls, over=picked == "answer")
        self.ctx.decide(
            options, picked, "\n".join(words) or None, sure, limits=self._in_force(),
            alternatives=choices.alternatives(stated),
        )  # fmt: skip

    def _considered(self, response: ModelResponse, calls: Sequence[Call], *, over: bool = False) -> list[Any]:
        """
        What there was to choose from: each tool as it was described, how often it was called, what could not be;
        `over`: what was not, because the answer came with it.

        With which arguments stands in the trace, as the request's answer: where no content is kept, not here either.
        """
        made = Counter(call.tool for call in calls)
        refused = Counter(part.tool_name for part in response.tool_calls if not over or part.tool_name != FINAL) - made
        named = dict.fromkeys([*self.agent.toolbox.names, *refused])
        options: list[Any] = []
        for name in named:
            entry = self.agent.toolbox.find(name)
            facts = {"version": entry.version if entry else None, "calls": made[name]}
            facts["passed_over" if over else "refused"] = refused[name]
            options.append({"tool": name} | {fact: value for fact, value in facts.items() if value})
        return [*options, "answer"]

    def _in_force(self) -> dict[str, str]:
        """The session's limits, and how much of each is used."""
        limits, used, times = self.agent.limits, self._used(), self.state.grants + 1
        counted = {
            "steps": (used.steps, limits.steps),
            "model_calls": (used.model_calls, limits.model_calls),
            "tool_calls": (used.tool_calls, limits.tool_calls),
            "input_tokens": (used.input_tokens, limits.input_tokens),
            "output_tokens": (used.output_tokens, limits.output_tokens),
            "tokens": (used.input_tokens + used.output_tokens, limits.tokens),
            "cost_micros": (used.cost_micros, limits.cost_micros),
            "wall_s": (round(used.wall_s), seconds(limits.wall) if limits.wall is not None else None),
        }
        return {name: f"{part} of {most * times:g}" for name, (part, most) in counted.items() if most is not None}

    def _go(self, calls: Sequence[Call]) -> Returned:
        """The calls as steps: one follows, several are branches."""
        state = self.state
        state.calls = [call.id for call in calls]
        state.spent.tool_calls += len(calls)
        state.spent.steps += len(calls)
        steps = [(self._step_of(call.tool), {"call": call.model_dump()}) for call in calls]
        if len(steps) == 1:
            [(step, args)] = steps
            return Next(step, state, args)
        return Spawn([Branch(step, args) for step, args in steps], then=self.agent.steps["model"], state=state)

    def _step_of(self, tool: str) -> Any:
        entry = self.agent.toolbox.find(tool)
        assert entry is not None
        return self.agent.steps[entry.step]

    def _repair(self, what: str) -> Ask | None:
        """
        Count a flaw; when the model has had its repairs, the next model gets its turn, then a person is asked.

        Raises:
            RepairsExhausted: nobody is to be asked.
        """
        self.state.repairs += 1
        if self.state.repairs <= self.agent.repairs or self._next_model(what):
            return None
        if self.agent.on_exhausted == "ask":
            question = f"No model gave a usable answer: {what}. Try once more from the first?"
            return Ask(question, then=self.agent.steps["model"], state=self.state, args={"asked": _REPAIRS})
        raise RepairsExhausted(f"the model gave no usable answer after {self.agent.repairs} repairs: {what}")

    def _store(self, *messages: ModelRequest | ModelResponse | None) -> None:
        for message in messages:
            if message is not None:
                self.ctx.messages.append(to_store(message), by=WRITER)

    def _add(self, history: History, message: ModelRequest) -> None:
        """A message of our own, stored and shown."""
        self._store(message)
        last = history[-1] if history else None
        if isinstance(last, ModelRequest):
            history[-1] = replace(last, parts=[*last.parts, *message.parts])
        else:
            history.append(message)

    # ── ends ─────────────────────────────────────────────────────────────────

    async def _reached(self, reached: Reached) -> Returned | None:
        """
        What follows a limit that is reached; None when somebody has granted the same once more.

        Raises:
            Park: the session waits for somebody to resume it.
        """
        match self.agent.limits.on_reach:
            case "fail":
                return Fail(str(reached), kind="limit", type="LimitReached")
            case "ask":
                question = f"{str(reached).capitalize()}. Grant the same once more?"
                return Ask(question, then=self.agent.steps["model"], state=self.state, args={"asked": reached.limit})
            case "park":
                if await self._was_resumed():
                    self.state.grants += 1
                    return None
                raise Park("limit", str(reached), {"limit": reached.limit, "used": reached.used, "of": reached.allowed})

    async def _tripped(self, trip: Trip) -> None:
        """
        Isolate the session, unless somebody has let it go on since.

        Raises:
            Park: the session waits for somebody to look at it.
        """
        if not await self._was_resumed():
            self.ctx.decide(["go on", "park"], "park", trip.why, limits={"rule": trip.rule})
            raise Park("breaker", f"{trip.rule}: {trip.why}", {"rule": trip.rule} | trip.evidence)
        self.state.window = Window()

    async def _was_resumed(self) -> bool:
        """Whether somebody resumed the session since it last parked itself; counted once."""
        times = await asyncio.to_thread(self.ctx.parks_resumed)
        news, self.state.resumed = times > self.state.resumed, times
        return news


def calls_in(response: ModelResponse, ids: Sequence[str]) -> list[ToolCallPart]:
    """These calls of a response, in its order."""
    return [part for part in response.tool_calls if part.tool_call_id in ids]


def _lowest(stated: dict[str, float], ids: Sequence[str]) -> float | None:
    """How sure the least sure of these is; None where nobody is asked to say."""
    return min((stated[each] for each in ids if each in stated), default=None)


def _parts(message: ModelRequest | ModelResponse) -> Any:
    """A message as a trace shows it."""
    return to_store(message)["parts"]
