"""Dead letters as operators work with them: looked at, brought back, discarded, exported, watched."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from dataclasses import replace
from typing import Any

from agentq.agents.registry import Registry
from agentq.client.edits import Change, edited
from agentq.client.tenants import operator_name
from agentq.client.views import async_polls, polls
from agentq.errors import InvalidInput, StoreUnavailable
from agentq.payload import canonical, decode, fingerprint
from agentq.relay.redrives import Driver, Progress
from agentq.store.dead_letters import DeadLetterStore, GroupBy, Letter, LetterGroup, Plan, Poison, Selection
from agentq.store.operators import Operators
from agentq.store.pool import Store
from agentq.store.redrives import Job, Policy, Redrives, Terms

_WATCH_S = 1.0
_WATCH_MAX = 1000
_JOBS_MAX = 1000


class DeadLetters:
    """The dead letters of a fleet. What changes them asks for a reason and leaves an audit row."""

    def __init__(self, store: Store, operators: Operators, registry: Registry) -> None:
        self.letters = DeadLetterStore(store)
        self.redrives = Redrives(store)
        self._operators = operators
        self._registry = registry

    def ls(self, selection: Selection | None = None, *, limit: int = 50) -> list[Letter]:
        """The newest letters that match; open ones unless the selection names another state."""
        return self.letters.ls(selection or Selection(), limit)

    def count(self, selection: Selection | None = None) -> int:
        """How many match."""
        return self.letters.count(selection or Selection())

    def groups(
        self, by: GroupBy = "cause", selection: Selection | None = None, *, limit: int = 50
    ) -> list[LetterGroup]:
        """The largest groups of those that match."""
        return self.letters.groups(by, selection or Selection(), limit)

    def get(self, tenant: str, letter_id: str | uuid.UUID) -> Letter:
        """
        One letter.

        Raises:
            InvalidInput: the tenant has none of that id.
        """
        return self.letters.get(tenant, _uuid(letter_id))

    def plan(self, selection: Selection, terms: Terms | None = None) -> Plan:
        """What a redrive of these would do: how many, at what cost, with which effects open. Nothing is changed."""
        terms = terms or Terms()
        return self.letters.plan(selection, max_generation=terms.max_generation, from_step=terms.from_step)

    def redrive(
        self,
        selection: Selection,
        *,
        reason: str,
        terms: Terms | None = None,
        change: Change | None = None,
        key: str | None = None,
    ) -> Generator[Progress]:
        """
        Bring letters back, and say after each small step how far it is; the last one has the ended job.

        Leaving the loop leaves the rest for the next call with the same selection and terms. Letters are
        brought back once, however many call. `change` edits the state with which each goes on; what does
        not fit the agent's state model is refused.

        Raises:
            InvalidInput: nothing narrows the selection, or the reason says nothing.
        """
        terms = terms or Terms()
        if isinstance(change, Mapping):
            terms = replace(terms, edits=tuple(f"{path} {_digest(change[path])}" for path in sorted(change)))
        _check(selection, reason)
        job, new = self.redrives.begin(selection, terms, operator=operator_name(), reason=reason, key=key)
        if not new:
            self._resume(job, terms)
        return self.drive(job, change=change)

    def under_way(self, selection: Selection, terms: Terms, key: str | None = None) -> Job | None:
        """The unfinished job that the same call would go on with."""
        return self.redrives.under_way(selection, terms, key)

    def _resume(self, job: Job, terms: Terms) -> None:
        """Begin the next pass, unless somebody is in the middle of one."""
        guest = f"resume {uuid.uuid4().hex[:8]}"
        if self.redrives.take_turn(job.job_id, guest):
            self.redrives.go_on(job, terms)
            self.redrives.leave(job.job_id, guest)

    def drive(self, job: Job, *, change: Change | None = None) -> Generator[Progress]:
        """Drive a job to its end, or follow whoever does."""
        edit = None
        if change is not None:

            def edit(tenant: str, letter_id: uuid.UUID) -> tuple[bytes, list[dict[str, Any]]]:
                return self.edit(self.letters.get(tenant, letter_id), change, from_step=job.terms.from_step)

        return Driver(self.redrives, job, edit=edit).steps()

    def job(self, text: str) -> Job:
        """
        The redrive whose id begins so, of the newest thousand.

        Raises:
            InvalidInput: there is none, or there are several.
        """
        digits = text.replace("-", "").lower()
        found = [job for job in self.redrives.recent(_JOBS_MAX) if digits and job.job_id.hex.startswith(digits)]
        if len(found) != 1:
            raise InvalidInput(f"{'several redrives begin' if found else 'no redrive begins'} with {text!r}")
        return found[0]

    def stop(self, job: Job, *, reason: str) -> Job:
        """
        End a redrive before it is through, whoever drives it; as it is afterwards.

        What it has brought back goes on; the batch that is under way, a second's worth at most, may still follow.

        Raises:
            InvalidInput: it has ended, or the reason says nothing.
        """
        self._check_live(job, reason)
        operator = operator_name()
        self._act_on(job, "dlq stop", operator, reason)
        return self.redrives.move_on(job, "stopped", f"stopped by {operator}: {reason}")

    def resume(self, job: Job, *, reason: str) -> Generator[Progress]:
        """
        Go on with a redrive that nobody drives any more, as the command that began it would if given again.

        Raises:
            InvalidInput: it has ended, somebody drives it, or its letters are edited: a job does not keep the edits.
        """
        self._check_live(job, reason)
        if not job.abandoned:
            raise InvalidInput(f"redrive {job.job_id} is driven by {job.driver}")
        if job.terms.edits:
            raise InvalidInput("its letters are edited, and a job does not keep the edits: begin it again with them")
        self._act_on(job, "dlq resume", operator_name(), reason)
        self._resume(job, job.terms)
        return self.drive(job)

    def _check_live(self, job: Job, reason: str) -> None:
        if not reason.strip():
            raise InvalidInput("a reason must say something")
        if job.ended:
            raise InvalidInput(f"redrive {job.job_id} has ended: it is {job.state}")

    def _act_on(self, job: Job, action: str, operator: str, reason: str) -> None:
        tenant = job.selection.get("tenant")
        self._operators.record_action(
            operator=operator, tenant=tenant, action=action, target=str(job.job_id), reason=reason
        )

    def edit(
        self, letter: Letter, change: Change, *, from_step: str | None = None
    ) -> tuple[bytes, list[dict[str, Any]]]:
        """
        The state with which a letter would go on, changed; and the differences.

        Raises:
            InvalidState, UnknownAgent: it does not fit the agent's model, or the agent is not registered here.
        """
        agent = self._registry.serving(letter.agent, letter.agent_version)
        state, version = self.letters.state_before(letter, from_step)
        return edited(agent, state, change, version=version, pinned=letter.agent_version)

    def discard(self, selection: Selection, *, reason: str) -> int:
        """
        Put letters away for good; how many. Their rows and sessions stay as they are.

        Raises:
            InvalidInput: nothing narrows the selection, or the reason says nothing.
        """
        _check(selection, reason)
        if not self.letters.ls(selection, 1):
            return 0  # the second time there is nothing to do, and nothing to put on record
        operator = operator_name()
        # Said before it is done: an interrupted discard is on record too.
        self._operators.record_action(
            operator=operator,
            tenant=selection.tenant,
            action="dlq discard",
            target=str(selection.letters[0]) if len(selection.letters) == 1 else "selection",
            reason=reason,
            detail={"selection": selection.as_json()},
        )
        return self.letters.discard(selection, operator=operator, reason=reason)

    def export(self, selection: Selection | None = None, *, with_state: bool = False) -> Iterator[dict[str, Any]]:
        """Each letter that matches as plain data, oldest first, streamed; with its state only if asked for."""
        for letter, state in self.letters.export(selection or Selection(state=None), with_state=with_state):
            facts = as_facts(letter)
            yield facts | {"state_before": decode(state) if state is not None else None} if with_state else facts

    def watch(self, selection: Selection | None = None, *, timeout: float | None = None) -> Iterator[Letter]:
        """Letters as they are buried, from now on, each once; ends after `timeout` seconds."""
        # Looked at now, not at the first of the caller's turns.
        return self._follow(_Feed(self.letters, selection or Selection()), timeout)

    @staticmethod
    def _follow(feed: _Feed, timeout: float | None) -> Iterator[Letter]:
        for _ in polls(timeout, last_s=_WATCH_S):
            try:
                yield from feed.read()
            except StoreUnavailable:
                continue

    def poison(self, *, tenant: str | None = None, limit: int = 50) -> list[Poison]:
        """Messages that arrived on a queue and were never understood, newest first."""
        return self.letters.poison(tenant=tenant, limit=limit)

    # ── policies ─────────────────────────────────────────────────────────────

    def policies(self) -> list[Policy]:
        """Every standing order."""
        return self.redrives.policies()

    def set_policy(self, policy: Policy) -> None:
        """
        Add or replace a standing order.

        Raises:
            InvalidInput: it would bring back every letter there is.
        """
        if not set(policy.selection) - {"state"}:
            raise InvalidInput("a policy names what it brings back: a cause, class, dependency, agent or tenant")
        self.redrives.set_policy(policy)

    def remove_policy(self, name: str, *, reason: str) -> bool:
        """Remove one; False: there is none of that name."""
        return self.redrives.remove_policy(name, operator=operator_name(), reason=reason)


class AsyncDeadLetters:
    """As `DeadLetters`, awaited; statements run in threads."""

    def __init__(self, dead_letters: DeadLetters, run: Callable[..., Any]) -> None:
        self._sync = dead_letters
        self._run = run

    async def ls(self, selection: Selection | None = None, *, limit: int = 50) -> list[Letter]:
        """As `DeadLetters.ls`."""
        return await self._run(self._sync.ls, selection, limit=limit)  # type: ignore[no-any-return]

    async def count(self, selection: Selection | None = None) -> int:
        """As `DeadLetters.count`."""
        return await self._run(self._sync.count, selection)  # type: ignore[no-any-return]

    async def groups(
        self, by: GroupBy = "cause", selection: Selection | None = None, *, limit: int = 50
    ) -> list[LetterGroup]:
        """As `DeadLetters.groups`."""
        return await self._run(self._sync.groups, by, selection, limit=limit)  # type: ignore[no-any-return]

    async def get(self, tenant: str, letter_id: str | uuid.UUID) -> Letter:
        """As `DeadLetters.get`."""
        return await self._run(self._sync.get, tenant, letter_id)  # type: ignore[no-any-return]

    async def plan(self, selection: Selection, terms: Terms | None = None) -> Plan:
        """As `DeadLetters.plan`."""
        return await self._run(self._sync.plan, selection, terms)  # type: ignore[no-any-return]

    async def redrive(self, selection: Selection, *, reason: str, **more: Any) -> AsyncIterator[Progress]:
        """As `DeadLetters.redrive`."""
        steps = await self._run(self._sync.redrive, selection, reason=reason, **more)
        try:
            while (progress := await self._run(next, steps, None)) is not None:
                yield progress
        finally:
            await self._run(steps.close)

    async def discard(self, selection: Selection, *, reason: str) -> int:
        """As `DeadLetters.discard`."""
        return await self._run(self._sync.discard, selection, reason=reason)  # type: ignore[no-any-return]

    async def watch(self, selection: Selection | None = None, *, timeout: float | None = None) -> AsyncIterator[Letter]:
        """As `DeadLetters.watch`; waiting holds no thread."""
        feed = _Feed(self._sync.letters, selection or Selection())
        async for _ in async_polls(timeout):
            try:
                found = await self._run(feed.read)
            except StoreUnavailable:
                continue
            for letter in found:
                yield letter

    async def poison(self, *, tenant: str | None = None, limit: int = 50) -> list[Poison]:
        """As `DeadLetters.poison`."""
        return await self._run(self._sync.poison, tenant=tenant, limit=limit)  # type: ignore[no-any-return]


class _Feed:
    """Letters that were not there at the look before."""

    def __init__(self, letters: DeadLetterStore, selection: Selection) -> None:
        self._letters = letters
        self._selection = selection
        self._seen: set[uuid.UUID] = {letter.letter_id for letter in letters.ls(selection, _WATCH_MAX)}

    def read(self) -> list[Letter]:
        found = self._letters.ls(self._selection, _WATCH_MAX)
        fresh = [letter for letter in reversed(found) if letter.letter_id not in self._seen]
        # Older ones cannot come back into the newest thousand, but for those that a redrive left open.
        self._seen |= {letter.letter_id for letter in fresh}
        return fresh


def as_facts(letter: Letter) -> dict[str, Any]:
    """A letter as plain data, under the names that the command line uses."""
    return {
        "tenant": letter.tenant,
        "id": str(letter.letter_id),
        "session": str(letter.session_id),
        "step_id": str(letter.step_id),
        "generation": letter.generation,
        "agent": letter.agent,
        "version": letter.agent_version,
        "step": letter.step,
        "seq": letter.seq,
        "class": letter.kind,
        "cause": letter.cause,
        "about": letter.cause_text,
        "dependency": letter.dependency,
        "failure": letter.failure,
        "attempts": letter.attempts,
        "attempt": letter.attempt,
        "crashes": letter.crashes,
        "cost_usd": letter.cost_micros / 1_000_000,
        "effects_pending": letter.effects_pending,
        "effects_unknown": letter.effects_unknown,
        "state": letter.state,
        "redrive": str(letter.job_id) if letter.job_id else None,
        "canary": letter.canary,
        "changed_by": letter.changed_by,
        "note": letter.note,
        "died_at": letter.died_at.isoformat(),
        "changed_at": letter.changed_at.isoformat(),
    }


def _digest(value: Any) -> str:
    """Tells one value from another in a job's terms, which hold no payload."""
    return fingerprint(canonical(value)).hex()[:8]


def _check(selection: Selection, reason: str) -> None:
    if not selection.narrows:
        raise InvalidInput(
            "this would take every dead letter of every tenant: name a cause, agent, tenant, step, class or ids"
        )
    if not reason.strip():
        raise InvalidInput("a reason must say something")


def _uuid(letter_id: str | uuid.UUID) -> uuid.UUID:
    try:
        return letter_id if isinstance(letter_id, uuid.UUID) else uuid.UUID(letter_id)
    except ValueError:
        raise InvalidInput(f"{letter_id!r} is not the id of a dead letter") from None


__all__ = ["AsyncDeadLetters", "DeadLetters", "as_facts"]
