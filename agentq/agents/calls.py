"""
Calls through the effect ledger: each claimed before it goes out, its result stored after.

Read `Calls.perform` first. A call is prepared (its key, and a hash of its arguments), permitted where a
person must allow it, claimed, and then recalled, asked about or made. `perform_async` is its twin: what
touches Postgres runs in a thread there.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, cast

from pydantic import TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError

from agentq import engine
from agentq.agents import loop
from agentq.agents.asking import Request
from agentq.agents.dependencies import Permit
from agentq.agents.effects import (
    Declaration,
    declaration_of,
    done_performing,
    name_of,
    performing,
    result_adapter,
)
from agentq.agents.means import Means
from agentq.agents.sandboxed import boxed, is_boxed
from agentq.agents.tracing import Recording, Span
from agentq.engine import Attempt
from agentq.errors import FenceLost, HeldBack, KeyConflict, NotNow, Permanent, ReplayConflict, Stopped, UnknownEffect
from agentq.payload import bounded, canonical, encode, fingerprint
from agentq.store import approvals
from agentq.store.effects import EffectClaim
from agentq.store.pool import persist
from agentq.verdicts import Awaiting, Failure

R = TypeVar("R")


@dataclass(slots=True)
class Call:
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
class Known:
    """An effect whose result is stored."""

    value: Any


class Calls:
    """The effects of one attempt, in their order."""

    def __init__(self, attempt: Attempt, means: Means, recording: Recording, *, needs: str | None) -> None:
        self._attempt = attempt
        self._means = means
        self._recording = recording
        self._needs = needs
        self._tenant = attempt.claim.ref.tenant
        self._session_id = str(attempt.claim.ref.session_id)
        self._count = 0
        self._claimed: set[str] = set()
        self._turns: dict[str, asyncio.Lock] = {}
        self.permits: list[Permit] = []  # of calls to dependencies, for what runs out of time
        self.last_key = ""

    def perform(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, place: str | None = None
    ) -> Any:
        """
        Perform one effect, or recall its result; see `Context.call`.

        `place` stands for the step and the call's ordinal in it.
        """
        call = self._permitted(self._prepare(function, args, kwargs, place))
        with self._span(call) as span:
            span.output = self._carry(call, span)
        return span.output

    async def perform_async(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, place: str | None = None
    ) -> Any:
        """As `perform`, without holding up the loop."""
        call = self._prepare(function, args, kwargs, place)
        # One key asked for twice side by side: the second waits, and recalls what the first was told.
        async with self._turns.setdefault(call.key, asyncio.Lock()):
            call = await asyncio.to_thread(self._permitted, call)
            with self._span(call) as span:
                span.output = await self._carry_async(call, span)
            return span.output

    def _carry(self, call: Call, span: Span) -> Any:
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

    async def _carry_async(self, call: Call, span: Span) -> Any:
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

    def _span(self, call: Call) -> AbstractContextManager[Span]:
        given = {"args": call.args, "kwargs": call.kwargs} if call.kwargs else call.args
        # What ran in the sandbox is told apart where time is added up.
        where = {"sandbox": True} if is_boxed(call.function) else {}
        return self._recording.span("tool", call.name, input=given, effect_key=call.key, **where)

    def _prepare(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], place: str | None = None
    ) -> Call:
        self._count += 1
        declared, name = declaration_of(function), name_of(function)
        self._means.permissions.require_tool(self._tenant, name)
        arguments = bounded(f"the arguments of {name}", canonical([args, kwargs]), self._means.payload_max_bytes)
        # The ordinal, not the arguments: prose that a model words anew must not make a new payment.
        key = f"s:{place or self._place()}"
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
        return Call(key, name, declared, function, args, kwargs, fingerprint(name.encode(), arguments), adapter)

    def _place(self) -> str:
        return f"{self._attempt.claim.path}:{self._count}"

    def _permitted(self, call: Call) -> Call:
        """The call with the arguments that a person, or policy, allowed; raises when nobody has."""
        if not call.declared.irreversible or self._attempt.claim.dry_effects:
            return call  # a dry run calls nothing, so nobody is asked
        request = Request(call.key, call.name, call.declared, call.function, call.args, call.kwargs)
        args, kwargs = request.permitted(self._attempt.claim, self._means.asking, self._await, self._note_permit)
        digest = fingerprint(call.name.encode(), canonical([args, kwargs]))
        return replace(call, args=args, kwargs=kwargs, hash=digest)

    def _note_permit(self, permit: approvals.Permit) -> None:
        self._recording.decide_by_people(permit.state, permit.comment, permit.decided_by)

    def _await(self, awaits: Awaiting) -> None:
        # Kept beside the exception that follows: a step that catches everything must not run past it.
        if self._attempt.awaits is None:
            self._attempt.awaits = awaits

    def _claim(self, call: Call) -> EffectClaim:
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
        self.last_key = call.key
        engine.probe("effect_claimed")
        return found

    def _decide(self, call: Call, found: EffectClaim) -> Known | None:
        """The stored result, or None when the call may go out; raises when it may not."""
        # What the step itself needs, it has leave for.
        if call.declared.needs not in (None, self._needs) and found.state in ("fresh", "again", "pending"):
            self._admit(call, found)
        match found.state:
            case "fresh" | "again":
                return None
            case "done":
                return Known(call.adapter.validate_json(cast(bytes, found.result)))
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

    def _admit(self, call: Call, found: EffectClaim) -> None:
        """
        Leave to call what the effect needs.

        Raises:
            HeldBack: it is out of order. Nothing went out, and the effect is as it was.
        """
        assert call.declared.needs is not None
        try:
            call.permit = self._means.dependencies.admit(call.declared.needs, self._tenant)
            self.permits.append(call.permit)
        except HeldBack:
            if found.state != "pending":
                self._means.effects.give_back(self._attempt.claim, call.key)
                self._claimed.discard(call.key)
            raise

    def _reported(self, call: Call, error: BaseException | None = None) -> None:
        """Tell what became of the call to what it needs."""
        if call.permit is None or call.declared.needs is None:
            return
        failure = self._means.classify(error) if error is not None else None
        self._means.dependencies.report(call.declared.needs, error is None, failure, permit=call.permit, error=error)

    def _conflict(self, call: Call, used_by: str) -> KeyConflict:
        claim = self._attempt.claim
        if claim.generation or claim.dry_effects:
            return ReplayConflict(call.key, call.name, self._session_id, claim.seq)
        return KeyConflict(f"effect {call.name}: its key", call.key, "" if used_by == call.name else used_by)

    def _asks_first(self, call: Call, found: EffectClaim) -> bool:
        return found.state == "pending" and not call.declared.idempotent and call.declared.check is not None

    def _store_result(self, call: Call, value: Any) -> Any:
        engine.probe("effect_called")
        result = bounded(f"the result of {call.name}", encode(value), self._means.payload_max_bytes)
        if not self._settle_effect(call, "done", result=result):
            raise self._fence_lost()
        engine.probe("effect_stored")
        self._reported(call)
        # Read back even now, so that a recalled result is no different from a fresh one.
        return call.adapter.validate_json(result)

    def _store_error(self, call: Call, error: BaseException) -> None:
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

    def _settle_effect(self, call: Call, state: Literal["done", "failed", "unknown"], **end: Any) -> bool:
        """Store what the call came to. It happened, so a Postgres that is away is waited for."""
        return persist(
            lambda: self._means.effects.settle(self._attempt.claim, call.key, state, **end),
            patience_s=self._means.patience_s,
            what=f"effect {call.key}",
            give_up=lambda: self._attempt.stopped in ("fenced", "draining"),
        )

    def _take_over(self, call: Call, *, calling: bool) -> None:
        if not self._means.effects.take_over(self._attempt.claim, call.key, calling=calling):
            # Another step was quicker, or this attempt lost its fence, which its settlement then finds out.
            raise NotNow(f"effect {call.key!r} is being performed by another step now", delay_s=1.0)

    def _unknown(self, call: Call) -> UnknownEffect:
        return UnknownEffect(
            f"whether {call.name} happened is not known: the call was cut off. It is not repeated, because it is "
            "declared neither idempotent=True nor with a check=. Look at the other side, then tell what you found: "
            f"agentq effect resolve '{call.key}' --tenant {self._tenant} --done RESULT_JSON (or --not-done) "
            "--reason WHY, and redrive the session",
            call.key,
        )

    def _fence_lost(self) -> FenceLost:
        claim = self._attempt.claim
        return FenceLost(str(claim.ref.session_id), str(claim.ref.step_id), claim.fence)


async def _run(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if inspect.iscoroutinefunction(function):
        return await function(*args, **kwargs)
    value = await asyncio.to_thread(function, *args, **kwargs)  # carries the effect key along
    return await value if inspect.isawaitable(value) else value


def _wait_for(value: Any) -> Any:
    return loop.submit(_finish(value)).result() if inspect.isawaitable(value) else value


async def _finish(awaitable: Awaitable[R]) -> R:
    return await awaitable
