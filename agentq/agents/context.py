"""The context: what a step may ask for while it runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ParamSpec, TypeVar, cast

from agentq.agents.asking import answer_of, refusal
from agentq.agents.calls import Calls
from agentq.agents.dependencies import Permit, blamed, dependency_name
from agentq.agents.history import History
from agentq.agents.means import Means
from agentq.agents.memory import AsyncStepMemory, StepMemory
from agentq.agents.returns import Answer, BranchResult
from agentq.agents.spending import AsyncSpend, EmbeddingSpend, Spend, Spending, SpendRequest
from agentq.agents.tracing import Recording, Span
from agentq.engine import Attempt
from agentq.errors import HeldBack, Permanent
from agentq.payload import decode, encode
from agentq.policies.budgets import estimate_tokens
from agentq.policies.prices import Quote, split
from agentq.step import span_id
from agentq.store.pool import Connection
from agentq.store.traces import Traces
from agentq.verdicts import Charge, Extras, Failure, Usage

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger("agentq.step")


@dataclass(frozen=True, slots=True)
class Repair:
    """A wrong answer of the attempt before, for this one to mend: the `number`th repair of `of`."""

    number: int
    of: int
    error: str
    feedback: str


class _ContextBase:
    """What both kinds of context share."""

    def __init__(self, attempt: Attempt, means: Means, *, repairs_max: int = 0, needs: str | None = None) -> None:
        claim = attempt.claim
        self._attempt = attempt
        self._means = means
        self._repairs_max = repairs_max
        self._needs = needs
        self._usage = Usage()
        self._recording = Recording(means.tracing, attempt.began, means.classify)
        self._calls = Calls(attempt, means, self._recording, needs=needs)
        self._charges: list[Charge] = []
        self._spending = Spending(attempt, means.budgeting, self._charged)
        self._memory: StepMemory | None = None
        self._results: tuple[BranchResult, ...] | None = None
        self._answer: Answer | None = None
        self._looked_at_answer = False
        self.tenant: str = claim.ref.tenant
        self.session_id: str = str(claim.ref.session_id)
        self.step_id: str = str(claim.ref.step_id)
        self.agent: str = claim.agent
        self.step: str = claim.name
        self.attempt: int = claim.attempt
        self.messages = History(attempt, means)
        self.logger = logging.LoggerAdapter(
            log,
            {"tenant": self.tenant, "session": self.session_id, "step": claim.name, "attempt": claim.attempt},
        )

    @property
    def permits(self) -> list[Permit]:
        """Leaves to call that this attempt got from dependencies."""
        return self._calls.permits

    @property
    def last_effect_key(self) -> str:
        """The key of the effect that was claimed last; empty before the first."""
        return self._calls.last_key

    @property
    def repair(self) -> Repair | None:
        """What was wrong with the answer of the attempt before, when this one is to repair it."""
        claim = self._attempt.claim
        if claim.repair is None:
            return None
        message = claim.repair["message"]
        return Repair(claim.repairs, self._repairs_max, message, claim.repair.get("feedback", message))

    @property
    def idempotency_key(self) -> str:
        """A key for this step, the same in every attempt. Within `ctx.call`, use `agentq.idempotency_key()`."""
        return str(self._attempt.claim.path)

    @property
    def deadline(self) -> float:
        """When this attempt must have ended, on the clock of `time.monotonic()`."""
        return self._attempt.deadline

    def check(self) -> None:
        """
        Return while the step may go on; long loops should ask now and then.

        Raises:
            SessionCancelled, DeadlineExceeded, FenceLost: it may not.
        """
        self._attempt.check()

    def usage(
        self, *, input_tokens: int = 0, output_tokens: int = 0, cost_usd: Decimal | float | str | None = None
    ) -> None:
        """Record what a model call used; stored with the checkpoint and added up by session."""
        micros = 0 if cost_usd is None else int((Decimal(str(cost_usd)) * 1_000_000).to_integral_value())
        if min(input_tokens, output_tokens, micros) < 0:
            raise ValueError("usage cannot be negative")
        self._usage += Usage(input_tokens, output_tokens, micros)

    def trace(self, kind: str, name: str, *, input: Any = None, **facts: Any) -> AbstractContextManager[Span]:
        """
        Time a block and keep it with the attempt: `with ctx.trace("model", "gpt-5", input=prompt) as span: …`.

        Kinds that agentq itself writes are `model`, `tool`, `wait` and `approval`. Set `span.output`, and
        `span.used(…)` for the part of the usage that it had. All of it is redacted before it is kept.

        `repair=True` says of a call that it asks a model again for what it wrote wrong: what it costs is waste.
        """
        return self._recording.span(kind, name, input=input, **facts)

    def _traceparent(self) -> str:
        claim = self._attempt.claim
        trace_id = Traces(self._means.store).trace_id(claim.ref.tenant, claim.ref.session_id)
        own = span_id(claim.ref.session_id, claim.ref.step_id, claim.fence, 0)
        return f"00-{trace_id.hex}-{own:016x}-01"

    def decide(
        self,
        options: Sequence[Any],
        picked: Any,
        why: str | None = None,
        confidence: float | None = None,
        *,
        limits: Mapping[str, Any] | None = None,
        approver: str | None = None,
        alternatives: Sequence[Any] = (),
    ) -> None:
        """
        Keep a choice for people to read: what was considered, what was picked and why, how sure that was.

        `alternatives` are options in a model's own words. They stand among the options, and like `why` are not kept
        where no content is.
        """
        claim = self._attempt.claim
        in_force = {"attempt": claim.attempt, "attempts_max": claim.attempts_max, "timeout_s": claim.timeout_s}
        self._recording.decide(
            options, picked, why, confidence=confidence, limits=in_force | dict(limits or {}), approver=approver,
            alternatives=alternatives,
        )  # fmt: skip

    def progress(self, text: str, **data: Any) -> None:
        """Tell whoever watches the session's events, now; not kept with the result."""
        self.event("progress", text=text, **data)

    def event(self, kind: str, **data: Any) -> None:
        """As `progress`, as an event of another kind."""
        self._means.ledger.add_event(self._attempt.claim.ref, kind, encode(data))

    @property
    def attempts_max(self) -> int:
        """How many attempts this step has in all."""
        return self._attempt.claim.attempts_max

    @property
    def in_branch(self) -> bool:
        """Whether this step belongs to a branch of a `Spawn`, which `Done` ends."""
        return self._attempt.claim.join_step is not None

    def classify(self, error: BaseException) -> Failure:
        """What kind of failure an exception is, and what may be kept of it."""
        return self._means.classify(error)

    def out_of_order(self, error: BaseException) -> str | None:
        """The dependency whose breaker is open, when that is what an exception of this attempt comes of."""
        if isinstance(error, HeldBack):
            return error.dependency
        name = blamed(error, self._attempt.began)
        if name is None or self._means.dependencies.held(name, self.tenant, self.classify(error)) is None:
            return None
        return name

    def quote(self, model: str, *, input_tokens: int, output_tokens: int) -> Quote:
        """What so many tokens of a model (`provider:model`) cost, and which price says so."""
        provider, name = split(model)
        return self._means.budgeting.prices.quote(
            provider, name, input_tokens=input_tokens, output_tokens=output_tokens
        )

    def parks_resumed(self) -> int:
        """How often people let this session go on after it had parked itself."""
        return self._means.ledger.parks_resumed(self._attempt.claim.ref)

    @property
    def payload_max_bytes(self) -> int:
        """The most that one result, state or message may have."""
        return self._means.payload_max_bytes

    def effect_result(self, key: str) -> bytes | None:
        """The stored result of one of this session's effects; None: there is none of that key."""
        return self._means.effects.result(self._attempt.claim.ref, key)

    @property
    def results(self) -> Sequence[BranchResult]:
        """In a join: what each branch came to, in the order in which they were spawned."""
        if self._results is None:
            rows = self._means.ledger.branches(self._attempt.claim.ref)
            self._results = tuple(
                BranchResult(
                    ok=row.state == "done",
                    value=decode(row.result) if row.result is not None else None,
                    error=row.failure["message"] if row.failure else None,
                    session_id=str(row.child_session) if row.child_session else None,
                )
                for row in rows
            )
        return self._results

    @property
    def answer(self) -> Answer:
        """
        What people said to the `Ask` that this step follows.

        Raises:
            Permanent: the step does not follow one.
        """
        self._looked_at_answer = True
        found = self._load_answer()
        if found is None:
            raise Permanent(f"step {self.step!r} does not follow an Ask, so there is no answer")
        return found

    def heed_answer(self) -> None:
        """
        Return when nobody refused what this step follows, or the step knows of it.

        Raises:
            ApprovalDenied, ApprovalExpired: somebody did, and the step goes on as if they had not.
            Permanent: only another session was answered.
        """
        if self._attempt.claim.approval is None or self._looked_at_answer:
            return
        found = self._load_answer()
        if found is not None and not found.granted:
            raise refusal(self.step, found)
        if found is None and self._means.asking.approvals.is_answer(self.tenant, self._attempt.claim.approval):
            raise Permanent(
                f"step {self.step!r} follows an Ask whose answer was given to another session: fork from the step "
                "that asks, so that people are asked for this one"
            )

    def _load_answer(self) -> Answer | None:
        if self._answer is None and self._attempt.claim.approval is not None:
            row = self._means.asking.approvals.answer(self._attempt.claim.ref)
            self._answer = answer_of(row) if row is not None else None
            if self._answer is not None:
                self._recording.decide_by_people(self._answer.outcome, self._answer.comment, self._answer.by)
        return self._answer

    def extras(self) -> Extras:
        """What the attempt leaves beside its state."""
        recording = self._recording
        charges = tuple(self._charges)
        memories = self._memory.writes() if self._memory is not None else ()
        return Extras(self.messages.added(), self._usage, recording.events(), recording.decisions(), charges, memories)

    def _remembers(self) -> StepMemory:
        if self._memory is None:
            claim, means = self._attempt.claim, self._means
            self._memory = StepMemory(
                self._attempt, means.remembering, self._recording, self._embedding, called=claim.name
            )
        return self._memory

    def _embedding(self, model: str, text: str) -> AbstractContextManager[object]:
        """A call of an embedder, reserved and charged as ever; it has no output, and one token is the least."""
        tokens = estimate_tokens(text)
        return EmbeddingSpend(self._spending, SpendRequest(model, max_tokens=1, input_tokens=tokens))

    def _charged(self, charge: Charge, usage: Usage) -> None:
        self._charges.append(charge)
        self._usage += usage

    def _refuse_dry_writes(self) -> None:
        if self._attempt.claim.dry_effects:
            raise Permanent("a dry run (--dry-effects) writes nothing, and ctx.transaction() is for writing")


class Context(_ContextBase):
    """What a step may ask for while it runs. `AsyncContext` is its twin for `async def` steps."""

    def traceparent(self) -> str:
        """
        This attempt's place in the session's trace as a W3C `traceparent`, to hand on to what the step calls.

        Spans made under it hang below the attempt's own, which is sent when the session has ended. Asks Postgres.
        """
        return self._traceparent()

    @property
    def memory(self) -> StepMemory:
        """The tenant's long-term memory: what is written here is committed with the step, or not at all."""
        return self._remembers()

    def call(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """
        Perform an effect once and remember its result: in a later attempt the stored result is returned.

        The key is this session, this step and the call's ordinal, unless the function declares one.
        Arguments and results must have a JSON form; a result is read back by the return annotation.

        Raises:
            UnknownEffect: an attempt died in the middle of it, and nothing says what to do then.
            KeyConflict: the key was used with other arguments.
            ApprovalDenied, ApprovalExpired: it is irreversible, and a person did not allow it.
        """
        self.check()
        self.heed_answer()
        return cast(R, self._calls.perform(function, args, kwargs))

    def spend(
        self,
        *,
        model: str,
        max_tokens: int,
        input_tokens: int | None = None,
        prompt: Any = None,
        provider: str | None = None,
        session_cost_usd: Decimal | float | str | None = None,
        session_tokens: int | None = None,
    ) -> Spend:
        """
        Reserve a model call in every budget before it goes out; its charge is written with the step's settlement.

            with ctx.spend(model="openai:gpt-5", prompt=text, max_tokens=800) as call:
                answer = …
                call.used(input_tokens=answer.usage.input, output_tokens=answer.usage.output)

        `max_tokens` is what the call is told, too. Give `input_tokens`, or the `prompt` to estimate them
        from (`agentq.policies.budgets.anchored_tokens` knows better after the first call). An error in the
        block decides: never sent or refused, nothing is charged; otherwise the estimate is, marked uncertain.
        What is used counts as the step's usage; do not report it to `ctx.usage` again.

        Raises:
            BudgetExceeded, UnknownPrice: the call is not made. Catch them to do with less.
        """
        request = SpendRequest(model, max_tokens, input_tokens, prompt, provider, session_cost_usd, session_tokens)
        return Spend(self._spending, request)

    @contextmanager
    def needing(self, dependency: str) -> Iterator[None]:
        """
        Calls within the block go to this dependency, by a name that is known only now; else say `needs=`.

        Raises:
            HeldBack: its breaker is open. Let it pass: the step comes back, and no attempt is lost.
        """
        name = dependency_name(dependency)
        if name == self._needs:
            yield
            return
        with self._means.dependencies.calling(name, self.tenant) as permit:
            self._calls.permits.append(permit)
            yield

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """
        A psycopg connection whose writes commit with this step's checkpoint, exactly once, or not at all.

        Held until the step returns, so open it late: after a minute without a statement Postgres ends it.
        An exception in the step undoes the writes.
        """
        self.check()
        self.heed_answer()
        self._refuse_dry_writes()
        yield self._attempt.open_transaction(self._means.store)


class AsyncTransaction:
    """The step's transaction for `async def` steps: statements run in a thread, one after another."""

    def __init__(self, attempt: Attempt, connection: Connection) -> None:
        self._attempt = attempt
        self._connection = connection
        self._turn = asyncio.Lock()

    async def execute(self, query: Any, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows, if it has any."""
        async with self._turn:
            return await asyncio.to_thread(self._execute, query, parameters)

    def _execute(self, query: Any, parameters: Any) -> list[tuple[Any, ...]]:
        # A coroutine may outlive its attempt, and the connection then serves somebody else.
        with self._attempt.keep_open(self._connection):
            cursor = self._connection.execute(query, parameters)
            return cursor.fetchall() if cursor.description else []


class AsyncContext(_ContextBase):
    """The context of an `async def` step; `call` is awaited, whatever kind of function it is given."""

    async def traceparent(self) -> str:
        """As `Context.traceparent`, awaited."""
        return await asyncio.to_thread(self._traceparent)

    @property
    def memory(self) -> AsyncStepMemory:
        """As `Context.memory`, awaited."""
        return AsyncStepMemory(self._remembers())

    async def call(
        self, function: Callable[P, Awaitable[R]] | Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """As `Context.call`. A plain function runs in a thread, so that it does not hold up the loop."""
        return cast(R, await self.call_at(None, function, args, kwargs))

    async def call_at(
        self, place: str | None, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """As `call`, for a caller that counts its calls itself: `place` stands for the step and the ordinal."""
        self.check()
        if self._attempt.claim.approval is not None:
            await asyncio.to_thread(self.heed_answer)
        return await self._calls.perform_async(function, args, kwargs, place=place)

    def call_in_thread(
        self, place: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """As `call_at`, in the thread that asks: it needs no other one, so that threads cannot wait for each other."""
        self.check()
        self.heed_answer()
        return self._calls.perform(function, args, kwargs, place=place)

    def spend(
        self,
        *,
        model: str,
        max_tokens: int,
        input_tokens: int | None = None,
        prompt: Any = None,
        provider: str | None = None,
        session_cost_usd: Decimal | float | str | None = None,
        session_tokens: int | None = None,
    ) -> AsyncSpend:
        """As `Context.spend`, for `async with`."""
        request = SpendRequest(model, max_tokens, input_tokens, prompt, provider, session_cost_usd, session_tokens)
        return AsyncSpend(self._spending, request)

    @asynccontextmanager
    async def needing(self, dependency: str) -> AsyncIterator[None]:
        """As `Context.needing`, for `async with`."""
        name, dependencies = dependency_name(dependency), self._means.dependencies
        if name == self._needs:
            yield
            return
        permit = await asyncio.to_thread(dependencies.admit, name, self.tenant)
        self._calls.permits.append(permit)
        try:
            yield
        except asyncio.CancelledError:
            if self._attempt.stopped != "timeout":
                dependencies.give_back_later(permit)
            raise
        except BaseException as error:
            failure = self._means.classify(error)
            await asyncio.to_thread(dependencies.report, name, False, failure, permit=permit, error=error)
            raise
        await asyncio.to_thread(dependencies.report, name, True, permit=permit)

    async def event_async(self, kind: str, **data: Any) -> None:
        """As `event`, without holding up the loop."""
        await asyncio.to_thread(lambda: self.event(kind, **data))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncTransaction]:
        """As `Context.transaction`, for `async with`."""
        self.check()
        await asyncio.to_thread(self.heed_answer)
        self._refuse_dry_writes()
        connection = await asyncio.to_thread(self._attempt.open_transaction, self._means.store)
        yield AsyncTransaction(self._attempt, connection)
