"""The context: what a step may ask for while it runs."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Literal, ParamSpec, TypeVar, cast

from pydantic import TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError

from agentq import engine
from agentq.agents import loop
from agentq.agents.asking import Asking, Request, answer_of, refusal
from agentq.agents.dependencies import Dependencies, Permit, dependency_name
from agentq.agents.effects import (
    Declaration,
    declaration_of,
    done_performing,
    name_of,
    performing,
    result_adapter,
)
from agentq.agents.permissions import Permissions
from agentq.agents.returns import Answer, BranchResult
from agentq.agents.sandboxed import boxed
from agentq.agents.spending import AsyncSpend, Budgeting, Spend, Spending, SpendRequest
from agentq.agents.tracing import Recording, Span, Tracing
from agentq.engine import Attempt
from agentq.errors import FenceLost, HeldBack, KeyConflict, NotNow, Permanent, ReplayConflict, Stopped, UnknownEffect
from agentq.payload import bounded, canonical, decode, encode, fingerprint
from agentq.policies.prices import Quote, split
from agentq.store.effects import EffectClaim, Effects
from agentq.store.ledger import Ledger
from agentq.store.pool import Connection, Store, persist
from agentq.verdicts import Awaiting, Charge, Extras, Failure, Usage

P = ParamSpec("P")
R = TypeVar("R")

_WRITER = "agentq/1"
log = logging.getLogger("agentq.step")


@dataclass(frozen=True, slots=True)
class Means:
    """What every context of a process works with."""

    store: Store
    ledger: Ledger
    effects: Effects
    asking: Asking
    classify: Callable[[BaseException], Failure]
    ambiguous: Callable[[BaseException], bool]
    payload_max_bytes: int
    budgeting: Budgeting
    permissions: Permissions
    dependencies: Dependencies
    patience_s: float = 120.0
    tracing: Tracing = field(default_factory=Tracing)


class History:
    """
    The session's messages: appended, never rewritten.

    What is appended is stored with the step's settlement. Each step stores only what it adds.
    """

    def __init__(self, attempt: Attempt, means: Means) -> None:
        self._attempt = attempt
        self._means = means
        self._stored: list[Any] | None = None
        self._added: list[tuple[Any, str]] = []

    def append(self, message: Any, *, by: str = _WRITER) -> None:
        """Add a message (anything with a JSON form) to the end; `by` names the format and version of its writer."""
        data = bounded("a message", encode(message), self._means.payload_max_bytes)
        self._added.append((decode(data), by))

    def __iter__(self) -> Iterator[Any]:
        return iter([*self._load(), *(message for message, _ in self._added)])

    def __len__(self) -> int:
        return len(self._load()) + len(self._added)

    def added(self) -> tuple[tuple[bytes, str], ...]:
        """What this attempt adds, encoded, with the writer's name."""
        return tuple((encode(message), by) for message, by in self._added)

    def rows(self) -> list[tuple[int, bytes, str]]:
        """The stored messages as they were written: position, body, writer."""
        return self._means.ledger.messages(self._attempt.claim.ref)

    def _load(self) -> list[Any]:
        if self._stored is None:
            self._stored = [decode(body) for _, body, _ in self.rows()]
        return self._stored


@dataclass(slots=True)
class _Call:
    """One call through the effect ledger."""

    key: str
    name: str
    declared: Declaration
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    hash: bytes
    adapter: TypeAdapter[Any]
    permit: Permit | None = None


@dataclass(frozen=True, slots=True)
class Repair:
    """A wrong answer of the attempt before, for this one to mend: the `number`th repair of `of`."""

    number: int
    of: int
    error: str
    feedback: str


@dataclass(frozen=True, slots=True)
class _Known:
    """An effect whose result is stored."""

    value: Any


class _ContextBase:
    """What both kinds of context share."""

    def __init__(self, attempt: Attempt, means: Means, *, repairs_max: int = 0, needs: str | None = None) -> None:
        claim = attempt.claim
        self._attempt = attempt
        self._means = means
        self._repairs_max = repairs_max
        self._needs = needs
        self.permits: list[Permit] = []  # of its calls to dependencies, for what runs out of time
        self._calls = 0
        self._claimed: set[str] = set()
        self.last_effect_key = ""
        self._usage = Usage()
        self._recording = Recording(means.tracing, attempt.began, means.classify)
        self._charges: list[Charge] = []
        self._spending = Spending(attempt, means.budgeting, self._charged)
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
        """
        return self._recording.span(kind, name, input=input, **facts)

    def decide(
        self,
        options: Sequence[Any],
        picked: Any,
        why: str | None = None,
        confidence: float | None = None,
        *,
        limits: Mapping[str, Any] | None = None,
        approver: str | None = None,
    ) -> None:
        """Keep a choice for people to read: what was considered, what was picked and why, how sure that was."""
        claim = self._attempt.claim
        in_force = {"attempt": claim.attempt, "attempts_max": claim.attempts_max, "timeout_s": claim.timeout_s}
        self._recording.decide(
            options, picked, why, confidence=confidence, limits=in_force | dict(limits or {}), approver=approver
        )

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
        return self._answer

    def extras(self) -> Extras:
        """What the attempt leaves beside its state."""
        recording = self._recording
        charges = tuple(self._charges)
        return Extras(self.messages.added(), self._usage, recording.events(), recording.decisions(), charges)

    def _charged(self, charge: Charge, usage: Usage) -> None:
        self._charges.append(charge)
        self._usage += usage

    # ── effects ──────────────────────────────────────────────────────────────

    def _call_span(self, call: _Call) -> AbstractContextManager[Span]:
        given = {"args": call.args, "kwargs": call.kwargs} if call.kwargs else call.args
        return self._recording.span("tool", call.name, input=given, effect_key=call.key)

    def _prepare(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
        self.check()
        self.heed_answer()
        self._calls += 1
        declared, name = declaration_of(function), name_of(function)
        self._means.permissions.require_tool(self.tenant, name)
        arguments = bounded(f"the arguments of {name}", canonical([args, kwargs]), self._means.payload_max_bytes)
        # The ordinal, not the arguments: prose that a model words anew must not make a new payment.
        key = f"s:{self._attempt.claim.path}:{self._calls}"
        if declared.repairable and self._attempt.claim.repairs:
            key += f":r{self._attempt.claim.repairs}"  # the recorded answer is the one that was wrong
        if declared.key is not None:
            key = f"d:{declared.key(*args, **kwargs)}"
            if len(key) > 500:
                raise Permanent(f"the effect key of {name} is longer than 500 characters")
        try:
            adapter = result_adapter(function)
        except (PydanticSchemaGenerationError, TypeError):
            adapter = TypeAdapter(Any)
        if declared.sandbox is not None:
            function = boxed(function, declared.sandbox)
        return _Call(key, name, declared, function, args, kwargs, fingerprint(name.encode(), arguments), adapter)

    def _permitted(self, call: _Call) -> _Call:
        """The call with the arguments that a person, or policy, allowed; raises when nobody has."""
        if not call.declared.irreversible or self._attempt.claim.dry_effects:
            return call  # a dry run calls nothing, so nobody is asked
        request = Request(call.key, call.name, call.declared, call.function, call.args, call.kwargs)
        args, kwargs = request.permitted(self._attempt.claim, self._means.asking, self._await)
        digest = fingerprint(call.name.encode(), canonical([args, kwargs]))
        return replace(call, args=args, kwargs=kwargs, hash=digest)

    def _await(self, awaits: Awaiting) -> None:
        # Kept beside the exception that follows: a step that catches everything must not run past it.
        if self._attempt.awaits is None:
            self._attempt.awaits = awaits

    def _claim(self, call: _Call) -> EffectClaim:
        found = persist(
            lambda: self._means.effects.claim(
                self._attempt.claim,
                call.key,
                name=call.name,
                args_hash=call.hash,
                # Only a call that may be repeated need not be known after a crash of the database.
                durable=not call.declared.idempotent,
            ),
            patience_s=self._means.patience_s,
            what=f"effect {call.key}",
            give_up=lambda: self._attempt.stopped is not None,
        )
        if found.state == "mine":
            # Pending under this very attempt: its call went out earlier in this step and nobody knows how it
            # ended, or only the answer to the claim was lost and nothing went out.
            found = replace(found, state="pending" if call.key in self._claimed else "fresh")
        self._claimed.add(call.key)
        self.last_effect_key = call.key
        engine.probe("effect_claimed")
        return found

    def _decide(self, call: _Call, found: EffectClaim) -> _Known | None:
        """The stored result, or None when the call may go out; raises when it may not."""
        # What the step itself needs, it has leave for.
        if call.declared.needs not in (None, self._needs) and found.state in ("fresh", "again", "pending"):
            self._admit(call, found)
        match found.state:
            case "fresh" | "again":
                return None
            case "done":
                return _Known(call.adapter.validate_json(cast(bytes, found.result)))
            case "pending" if call.declared.idempotent:
                # Same key on purpose: the other side must see a repeat, not a second request.
                self._take_over(call, calling=True)
                return None
            case "pending" if call.declared.check is not None:
                self._take_over(call, calling=False)
                return None
            case "pending":
                self._take_over(call, calling=False)
                failure = Failure("unknown", "UnknownEffect", "an attempt died between this call and its result")
                self._means.effects.settle(self._attempt.claim, call.key, "unknown", failure=failure)
                raise self._unknown(call)
            case "unknown":
                raise self._unknown(call)
            case "held":
                raise NotNow(f"effect {call.key!r} is being performed by another step now", delay_s=1.0)
            case "conflict":
                used_by = (found.failure or {}).get("name", call.name)
                raise self._conflict(call, used_by)
            case "dry":
                raise Permanent(
                    f"{call.name} was not called: this is a dry run (--dry-effects), which only recalls what is "
                    f"recorded, and there is no record of this call (effect {call.key})"
                )
            case "superseded" | "mine":
                raise self._fence_lost()

    def _admit(self, call: _Call, found: EffectClaim) -> None:
        """
        Leave to call what the effect needs.

        Raises:
            HeldBack: it is out of order. Nothing went out, and the effect is as it was.
        """
        assert call.declared.needs is not None
        try:
            call.permit = self._means.dependencies.admit(call.declared.needs, self.tenant)
            self.permits.append(call.permit)
        except HeldBack:
            if found.state != "pending":
                self._means.effects.give_back(self._attempt.claim, call.key)
                self._claimed.discard(call.key)
            raise

    def _reported(self, call: _Call, error: BaseException | None = None) -> None:
        """Tell what became of the call to what it needs."""
        if call.permit is None or call.declared.needs is None:
            return
        failure = self._means.classify(error) if error is not None else None
        self._means.dependencies.report(call.declared.needs, error is None, failure, permit=call.permit, error=error)

    def _conflict(self, call: _Call, used_by: str) -> KeyConflict:
        claim = self._attempt.claim
        if claim.generation or claim.dry_effects:
            return ReplayConflict(call.key, call.name, self.session_id, claim.seq)
        return KeyConflict(f"effect {call.name}: its key", call.key, "" if used_by == call.name else used_by)

    def _refuse_dry_writes(self) -> None:
        if self._attempt.claim.dry_effects:
            raise Permanent("a dry run (--dry-effects) writes nothing, and ctx.transaction() is for writing")

    def _asks_first(self, call: _Call, found: EffectClaim) -> bool:
        return found.state == "pending" and not call.declared.idempotent and call.declared.check is not None

    def _store_result(self, call: _Call, value: Any) -> Any:
        engine.probe("effect_called")
        result = bounded(f"the result of {call.name}", encode(value), self._means.payload_max_bytes)
        if not self._settle_effect(call, "done", result=result):
            raise self._fence_lost()
        engine.probe("effect_stored")
        self._reported(call)
        # Read back even now, so that a recalled result is no different from a fresh one.
        return call.adapter.validate_json(result)

    def _store_error(self, call: _Call, error: BaseException) -> None:
        """
        Record that the call raised.

        When the error leaves open whether it happened, only a function that may be repeated counts as
        failed; one with a `check` stays pending, so that it is asked; any other is unknown.
        """
        if isinstance(error, Stopped | FenceLost):
            self._reported(call, error)
            return  # stopped from outside: the effect stays pending
        failure = self._means.classify(error)
        if call.declared.idempotent or not self._means.ambiguous(error):
            self._settle_effect(call, "failed", failure=failure)
        elif call.declared.check is None:
            self._settle_effect(call, "unknown", failure=failure)
            self._reported(call, error)
            raise self._unknown(call) from error
        self._reported(call, error)

    def _settle_effect(self, call: _Call, state: Literal["done", "failed", "unknown"], **end: Any) -> bool:
        """Store what the call came to. It happened, so a Postgres that is away is waited for."""
        return persist(
            lambda: self._means.effects.settle(self._attempt.claim, call.key, state, **end),
            patience_s=self._means.patience_s,
            what=f"effect {call.key}",
            give_up=lambda: self._attempt.stopped in ("fenced", "draining"),
        )

    def _take_over(self, call: _Call, *, calling: bool) -> None:
        if not self._means.effects.take_over(self._attempt.claim, call.key, calling=calling):
            # Another step was quicker, or this attempt lost its fence, which its settlement then finds out.
            raise NotNow(f"effect {call.key!r} is being performed by another step now", delay_s=1.0)

    def _unknown(self, call: _Call) -> UnknownEffect:
        return UnknownEffect(
            f"whether {call.name} happened is not known: the call was cut off. It is not repeated, because it is "
            "declared neither idempotent=True nor with a check=. Look at the other side, then tell what you found: "
            f"agentq effect resolve '{call.key}' --tenant {self.tenant} --done RESULT_JSON (or --not-done) "
            "--reason WHY, and redrive the session",
            call.key,
        )

    def _fence_lost(self) -> FenceLost:
        claim = self._attempt.claim
        return FenceLost(str(claim.ref.session_id), str(claim.ref.step_id), claim.fence)


class Context(_ContextBase):
    """What a step may ask for while it runs. `AsyncContext` is its twin for `async def` steps."""

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
        call = self._permitted(self._prepare(function, args, kwargs))
        with self._call_span(call) as span:
            span.output = self._perform(call, span)
        return cast(R, span.output)

    def _perform(self, call: _Call, span: Span) -> Any:
        found = self._claim(call)
        known = self._decide(call, found)
        if known is not None:
            span.note(outcome="recalled")
            return known.value
        token = performing(call.key)
        try:
            if self._asks_first(call, found):
                # A question that fails says nothing: the effect stays pending, to be asked about again.
                answer = _wait_for(cast(Callable[..., Any], call.declared.check)(*call.args, **call.kwargs))
                if answer is not None:
                    span.note(outcome="found done")
                    return self._store_result(call, answer)
                self._take_over(call, calling=True)
            try:
                value: Any = _wait_for(call.function(*call.args, **call.kwargs))
            except BaseException as error:
                self._store_error(call, error)
                raise
        finally:
            done_performing(token)
        return self._store_result(call, value)

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
            self.permits.append(permit)
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

    def __init__(self, attempt: Attempt, means: Means, *, repairs_max: int = 0, needs: str | None = None) -> None:
        super().__init__(attempt, means, repairs_max=repairs_max, needs=needs)
        self._turns: dict[str, asyncio.Lock] = {}

    async def call(
        self, function: Callable[P, Awaitable[R]] | Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """As `Context.call`. A plain function runs in a thread, so that it does not hold up the loop."""
        if self._attempt.claim.approval is not None:
            await asyncio.to_thread(self.heed_answer)
        call = self._prepare(function, args, kwargs)
        # One key asked for twice side by side: the second waits, and recalls what the first was told.
        async with self._turns.setdefault(call.key, asyncio.Lock()):
            call = await asyncio.to_thread(self._permitted, call)
            with self._call_span(call) as span:
                span.output = await self._perform(call, span)
            return cast(R, span.output)

    async def _perform(self, call: _Call, span: Span) -> Any:
        found = await asyncio.to_thread(self._claim, call)
        known = await asyncio.to_thread(self._decide, call, found)
        if known is not None:
            span.note(outcome="recalled")
            return known.value
        token = performing(call.key)
        try:
            if self._asks_first(call, found):
                # A question that fails says nothing: the effect stays pending, to be asked about again.
                answer = await _run(cast(Callable[..., Any], call.declared.check), call.args, call.kwargs)
                if answer is not None:
                    span.note(outcome="found done")
                    return await asyncio.to_thread(self._store_result, call, answer)
                await asyncio.to_thread(self._take_over, call, calling=True)
            try:
                value = await _run(call.function, call.args, call.kwargs)
            except asyncio.CancelledError:
                # Stopped from outside: the effect stays pending, its outcome unknown.
                if call.permit is not None and self._attempt.stopped != "timeout":
                    self._means.dependencies.give_back_later(call.permit)
                raise
            except BaseException as error:
                await asyncio.to_thread(self._store_error, call, error)
                raise
        finally:
            done_performing(token)
        return await asyncio.to_thread(self._store_result, call, value)

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
        self.permits.append(permit)
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

    async def progress_async(self, text: str, **data: Any) -> None:
        """As `progress`, without holding up the loop."""
        await self.event_async("progress", text=text, **data)

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


async def _run(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if inspect.iscoroutinefunction(function):
        return await function(*args, **kwargs)
    value = await asyncio.to_thread(function, *args, **kwargs)  # carries the effect key along
    return await value if inspect.isawaitable(value) else value


def _wait_for(value: Any) -> Any:
    return loop.submit(_finish(value)).result() if inspect.isawaitable(value) else value


async def _finish(awaitable: Awaitable[R]) -> R:
    return await awaitable
