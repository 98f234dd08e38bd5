"""Acting: one attempt at a step, from its stored state to an outcome; returns, never raises."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel

from agentq.agents import loop
from agentq.agents.agent import Agent, Step
from agentq.agents.asking import Asking, question_of
from agentq.agents.context import AsyncContext, Context
from agentq.agents.dependencies import Permit, blamed
from agentq.agents.means import Means
from agentq.agents.registry import Registry
from agentq.agents.returns import Ask, Branch, Child, Done, Fail, Next, Sleep, Spawn, seconds
from agentq.engine import Attempt
from agentq.errors import (
    ApprovalRefused,
    BudgetExceeded,
    DeadlineExceeded,
    FenceLost,
    HeldBack,
    InvalidState,
    NotNow,
    Park,
    Permanent,
    SessionCancelled,
)
from agentq.payload import bounded, canonical, decode, encode, fingerprint, fold
from agentq.step import new_id
from agentq.verdicts import (
    Awaiting,
    Broke,
    Extras,
    Failure,
    Finished,
    GaveUp,
    Granted,
    Interrupted,
    NewChild,
    NewStep,
    Outcome,
    Parked,
    Postponed,
    Proceeded,
    Repairing,
)

log = logging.getLogger("agentq.act")

BRANCHES_MAX = 1000
FEEDBACK_MAX = 20_000


class Act:
    """Runs steps of the registered agents."""

    def __init__(self, registry: Registry, means: Means, *, retries: int, timeout_s: float) -> None:
        self._registry = registry
        self._means = means
        self._plan = Planner(
            registry,
            retries=retries,
            timeout_s=timeout_s,
            payload_max_bytes=means.payload_max_bytes,
            asking=means.asking,
        )

    def __call__(self, attempt: Attempt) -> Outcome:
        outcome = self._try(attempt)
        if attempt.awaits is not None and not isinstance(outcome, Interrupted):
            outcome = attempt.awaits  # whatever the step made of the exception that told it so
        if isinstance(outcome, Broke | Repairing | Postponed | Parked | Awaiting):
            return replace(outcome, extras=attempt.extras().of_failed())
        return outcome

    def _try(self, attempt: Attempt) -> Outcome:
        try:
            return self._attempt(attempt)
        except SessionCancelled:
            if attempt.stopped != "cancelled":
                # Cancelled as it would be, the step would leave a session that goes on without any.
                return Broke(Failure("permanent", "SessionCancelled", "the step raised it, but its session goes on"))
            return Interrupted("cancelled")
        except FenceLost as error:
            if attempt.stopped not in ("fenced", "draining"):
                # Only an effect said so. Without the fence the settlement is refused; with it, it must be made.
                return Broke(Failure("transient", "FenceLost", str(error)))
            return Interrupted("draining" if attempt.stopped == "draining" else "fenced")
        except HeldBack as error:
            why = Failure("refused", "HeldBack", str(error), dependency=error.dependency)
            return Postponed(error.delay_s, refund=error.dependency, failure=why)
        except NotNow as error:
            return Postponed(error.delay_s)
        except Park as error:
            return Parked({"kind": error.kind, "reason": error.reason, "evidence": error.evidence})
        except BudgetExceeded as error:
            return _out_of_budget(error, self._means.classify(error))
        except ApprovalRefused as error:
            # A no is no fault: nothing to retry, and no dead letter.
            failure = Failure("gave_up", type(error).__name__, str(error)[:2000])
            return GaveUp(failure, stored_state(attempt.claim), attempt.extras().of_failed())
        except DeadlineExceeded as error:
            failure = Failure("timeout", "DeadlineExceeded", str(error))
            return self._of_dependency(attempt, error, failure) or Broke(failure)
        except (SystemExit, KeyboardInterrupt) as error:
            # A step must not end the worker; its neighbours run in the same process.
            return Broke(Failure("permanent", type(error).__name__, "the step tried to end its process"))
        except BaseException as error:
            # The traceback stays in this process's log at debug level: it may show what users typed.
            log.debug("step %s broke", attempt.claim.name, exc_info=True)
            failure = self._means.classify(error)
            return self._of_dependency(attempt, error, failure) or self._of_answer(attempt, error, failure)

    def _attempt(self, attempt: Attempt) -> Outcome:
        claim = attempt.claim
        agent, step, state = self._found(claim)
        attempt.check()
        if step.needs is None:
            return self._run(attempt, agent, step, state, None)
        with self._means.dependencies.calling(step.needs, claim.ref.tenant) as permit:
            return self._run(attempt, agent, step, state, permit)

    def _found(self, claim: Granted) -> tuple[Agent[Any], Step, BaseModel]:
        """The agent, its step and the state, brought from the version that wrote it to the one that runs here."""
        agent = self._registry.serving(claim.agent, claim.agent_version)
        step = agent.find(agent.renamed(claim.name, claim.state_version))
        return agent, step, agent.read(stored_state(claim), claim.state_version)

    def _run(self, attempt: Attempt, agent: Agent[Any], step: Step, state: BaseModel, permit: Permit | None) -> Outcome:
        claim = attempt.claim
        make = AsyncContext if step.is_async else Context
        context = make(attempt, self._means, repairs_max=step.repairs or 0, needs=step.needs)
        permits = context.permits
        if permit is not None:
            permits.append(permit)
        attempt.extras = context.extras
        attempt.broken = lambda failure: self._late(attempt, permits, failure)
        run = _run_async if step.is_async else _run_here
        try:
            returned = run(attempt, step, self._arguments(step, state, context, claim))
        except DeadlineExceeded as error:
            self._tell_late(permits, Failure("timeout", "DeadlineExceeded", str(error)), error)
            raise
        context.heed_answer()
        if attempt.stopped not in (None, "timeout"):
            attempt.check()  # an answer that is merely late still counts, while the fence holds
        outcome = self._plan.outcome(agent, claim, state, returned, context)
        if isinstance(outcome, Proceeded) and outcome.children:
            self._means.permissions.require_agents(claim.ref.tenant, (child.agent for child in outcome.children))
        assert isinstance(outcome, Proceeded | Finished | GaveUp)
        return replace(outcome, version=agent.version)

    def _late(self, attempt: Attempt, permits: list[Permit], failure: Failure) -> Outcome:
        """A step that ignores its deadline is given up: its failure is told in its place."""
        name = self._tell_late(permits, failure)
        return Broke(failure) if name is None else self._blame(attempt, name, failure)

    def _tell_late(self, permits: list[Permit], failure: Failure, error: BaseException | None = None) -> str | None:
        """A step ran out of time: what it was calling then is most likely why."""
        waiting = [permit for permit in permits if not permit.reported]
        if not waiting:
            return None
        self._means.dependencies.report(waiting[-1].name, False, failure, permit=waiting[-1], error=error)
        return waiting[-1].name

    def _of_dependency(self, attempt: Attempt, error: BaseException, failure: Failure) -> Outcome | None:
        """What a failure comes to that speaks against a dependency; None when it does not."""
        name = blamed(error, attempt.began)
        # What may have happened is asked about, outage or not.
        return self._blame(attempt, name, failure) if name is not None and failure.kind != "unknown" else None

    def _blame(self, attempt: Attempt, name: str, failure: Failure) -> Outcome:
        """Not the step's fault when the breaker is open; if it is not yet, the attempt may be given back later."""
        failure = replace(failure, dependency=name)
        delay_s = self._means.dependencies.held(name, attempt.claim.ref.tenant, failure)
        return Broke(failure) if delay_s is None else Postponed(delay_s, refund=name, failure=failure)

    def _of_answer(self, attempt: Attempt, error: BaseException, failure: Failure) -> Outcome:
        """What a failure of the step itself comes to: a wrong answer may be repaired, then falls back."""
        claim = attempt.claim
        if failure.kind != "semantic":
            return Broke(failure)
        agent = self._registry.serving(claim.agent, claim.agent_version)
        step = agent.find(agent.renamed(claim.name, claim.state_version))
        if step.repairs is None:
            return Broke(failure)
        if claim.repairs < step.repairs:
            feedback = _feedback(step, error, self._found(claim)[2], failure)
            if feedback is not None:
                return Repairing(replace(failure, feedback=feedback[:FEEDBACK_MAX]))
        if step.fallback is None:
            return Broke(replace(failure, final=True))
        try:
            return self._plan.fallback(agent, claim, step, failure)
        except Permanent as wrong:
            return Broke(self._means.classify(wrong))

    @staticmethod
    def _arguments(
        step: Step, state: BaseModel, context: AsyncContext | Context, claim: Granted
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        positional = (state, context) if step.wants_context else (state,)
        return positional, step.bind(decode(claim.args) if claim.args is not None else {})


def _out_of_budget(error: BudgetExceeded, failure: Failure) -> Outcome:
    """What the budget's owner wants of a session that cannot go on: a person looks at it, or it ends."""
    if error.on_refusal != "park":
        return Broke(failure)
    evidence = {"scope": error.scope, "subject": error.subject, "period": error.period}
    return Parked({"kind": "limit", "reason": str(error), "evidence": evidence})


def stored_state(claim: Granted) -> bytes:
    """The state that the claim's step begins from."""
    if claim.states is not None:
        return fold(claim.states)
    assert claim.input is not None  # a step begins from a checkpoint or from the session's input
    return claim.input


def _feedback(step: Step, error: BaseException, state: BaseModel, failure: Failure) -> str | None:
    """What the next attempt is told; None when no repair will help."""
    if step.on_semantic is None:
        return failure.message
    try:
        told = step.on_semantic(error, state)
    except Exception as broken:
        log.warning("on_semantic of step %s raised %s; the error itself is fed back", step.name, type(broken).__name__)
        return failure.message
    return None if told is None else str(told)


def _run_here(_: Attempt, step: Step, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    positional, named = arguments
    return step.function(*positional, **named)


def _run_async(attempt: Attempt, step: Step, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    """Run on the process's loop; this thread only waits. A stop cancels the coroutine."""
    positional, named = arguments
    future = loop.submit(step.function(*positional, **named))
    attempt.on_stop(future.cancel)
    try:
        return future.result(timeout=max(attempt.deadline - time.monotonic(), 0.0))
    except concurrent.futures.TimeoutError:
        if future.done():
            raise  # the step's own TimeoutError
        future.cancel()
        attempt.stop("timeout")
        attempt.check()
        raise
    except (concurrent.futures.CancelledError, asyncio.CancelledError):
        attempt.check()
        raise Permanent(f"step {step.name!r} cancelled itself") from None


class Planner:
    """Turns what a step returned into what the engine records."""

    def __init__(
        self,
        registry: Registry,
        *,
        retries: int,
        timeout_s: float,
        payload_max_bytes: int,
        asking: Asking | None = None,
    ) -> None:
        self._registry = registry
        self._asking = asking
        self._retries = retries
        self._timeout_s = timeout_s
        self._max_bytes = payload_max_bytes

    def outcome(
        self, agent: Agent[Any], claim: Granted, state: BaseModel, returned: Any, context: AsyncContext | Context
    ) -> Outcome:
        """
        The outcome of an attempt that returned.

        Raises:
            Permanent: it returned something else than the vocabulary of `agentq.agents.returns`.
            PayloadTooLarge: its state, arguments or result are too large to store.
        """
        extras = context.extras()
        match returned:
            case Next(step, given, args):
                follower = self._step(agent, claim, step, args)
                return Proceeded(self._state(agent, state, given), (follower,), extras=extras)
            case Done(result):
                data = bounded("the result", encode(result), self._max_bytes)
                return Finished(data, self._state(agent, state, None), extras)
            case Fail(reason, kind, type_):
                failure = Failure(kind, type_, str(reason)[:2000])
                return GaveUp(failure, self._state(agent, state, None), extras)
            case Sleep(duration, then, given, until, args):
                delay_s = _until_s(until) if until is not None else seconds(duration)
                follower = self._step(agent, claim, then, args, delay_s=delay_s)
                return Proceeded(self._state(agent, state, given), (follower,), extras=extras)
            case Ask():
                return self._ask(agent, claim, state, returned, extras)
            case Spawn():
                steps, children = self._spawn(agent, claim, returned)
                return Proceeded(self._state(agent, state, returned.state), steps, children, extras)
            case _:
                raise Permanent(
                    f"step {claim.name!r} returned {type(returned).__name__}; "
                    "return Next, Done, Fail, Sleep, Ask or Spawn (and is an `await` or `return` missing?)"
                )

    def _ask(self, agent: Agent[Any], claim: Granted, state: BaseModel, ask: Ask, extras: Extras) -> Outcome:
        assert self._asking is not None  # only a planner for first steps has none
        follower = self._step(agent, claim, ask.then, ask.args)
        question = question_of(
            ask, self._asking, step_id=follower.step_id, name=follower.name, max_bytes=self._max_bytes
        )
        follower = replace(follower, approval=question.approval_id)
        return Proceeded(self._state(agent, state, ask.state), (follower,), extras=extras, asks=(question,))

    def fallback(self, agent: Agent[Any], claim: Granted, step: Step, failure: Failure) -> Proceeded:
        """The step that goes on where repairs did not help, with the state as the failed one found it."""
        assert step.fallback is not None
        then = agent.find(step.fallback)
        args = {"error": failure.message} if then.takes("error") else None
        return Proceeded(stored_state(claim), (self._step(agent, claim, then, args),))

    def first_step(self, agent: Agent[Any]) -> NewStep:
        """The step with which a session of this agent begins."""
        return self._new(agent.first)

    def _state(self, agent: Agent[Any], current: BaseModel, given: BaseModel | None) -> bytes:
        state = current if given is None else given
        if not isinstance(state, agent.state):
            raise Permanent(f"the state must be a {agent.state.__name__}, not {type(state).__name__}")
        return bounded("the state", encode(state), self._max_bytes)

    def _new(self, step: Step, **more: Any) -> NewStep:
        retries = self._retries if step.retries is None else step.retries
        timeout_s = self._timeout_s if step.timeout_s is None else step.timeout_s
        return NewStep(new_id(), step.name, retries + 1, timeout_s, **more)

    def _step(self, agent: Agent[Any], claim: Granted, step: Step | str, args: Any, **more: Any) -> NewStep:
        """A step that follows in the same branch."""
        more = {"join_step": claim.join_step, "branch": claim.branch} | more
        return self._new(agent.find(step), args=self._arguments(args), **more)

    def _arguments(self, args: Any) -> bytes | None:
        return bounded("the arguments", encode(dict(args)), self._max_bytes) if args else None

    def _spawn(
        self, agent: Agent[Any], claim: Granted, spawn: Spawn
    ) -> tuple[tuple[NewStep, ...], tuple[NewChild, ...]]:
        branches = list(spawn.branches)
        if not 1 <= len(branches) <= BRANCHES_MAX:
            raise Permanent(f"Spawn takes 1 to {BRANCHES_MAX} branches, not {len(branches)}")
        join = self._step(agent, claim, spawn.then, spawn.args, fan=len(branches), collect=spawn.collect)
        steps, children = [join], []
        for number, branch in enumerate(branches):
            match branch:
                case Branch(step, args):
                    more = {"join_step": join.step_id, "branch": number}
                    steps.append(self._new(agent.find(step), args=self._arguments(args), **more))
                case Child():
                    children.append(self._child(branch, join, number))
                case _:
                    raise Permanent(f"Spawn takes Branch and Child, not {type(branch).__name__}")
        return tuple(steps), tuple(children)

    def _child(self, child: Child, join: NewStep, number: int) -> NewChild:
        agent = self._registry.find(child.agent, child.version)
        data = bounded("the input", agent.admit(child.input), self._max_bytes)
        first = self.first_step(agent)
        return NewChild(
            session_id=new_id(),
            agent=agent.name,
            version=agent.version,
            input=data,
            input_hash=input_hash(agent, data),
            step_id=first.step_id,
            name=first.name,
            attempts_max=first.attempts_max,
            timeout_s=first.timeout_s,
            join_step=join.step_id,
            branch=number,
        )


def input_hash(agent: Agent[Any], data: bytes) -> bytes:
    """
    What a reused key is compared by: the agent's name and the input, whatever the order of its fields.

    Raises:
        InvalidState: the state model cannot read what it wrote, so no step could begin.
    """
    try:
        return fingerprint(agent.name.encode(), canonical(agent.read(data)))
    except Permanent as error:
        raise InvalidState(agent.name, str(error)) from None


def _until_s(until: datetime) -> float:
    if until.tzinfo is None:
        raise Permanent("Sleep(until=…) needs a time with a time zone")
    # The wait is measured once, here; from then on only the database's clock counts.
    return max((until - datetime.now(UTC)).total_seconds(), 0.0)
