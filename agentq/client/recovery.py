"""Recovery as operators and producers call it: sessions paused, ended, replayed, forked and looked into."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from agentq.agents.act import input_hash
from agentq.agents.registry import Registry
from agentq.agents.returns import Duration, seconds
from agentq.client.edits import Change, edited
from agentq.client.inspection import Inspection, look_into
from agentq.client.tenants import operator_name
from agentq.errors import InvalidInput, NotReopened
from agentq.payload import fingerprint
from agentq.store.recovery import By, Chosen, Place, Recovery, Reopened, Standing
from agentq.store.sessions import Sessions


@dataclass(frozen=True, slots=True)
class Plan:
    """What a replay or a fork would do."""

    session_id: str
    step: Place | None
    generation: int
    recorded: int
    running: int
    effects_recalled: int
    effects_open: int
    changes: list[dict[str, Any]]
    state: bytes | None


class Recoveries:
    """What people do to sessions. Each call asks for a reason and leaves an audit row."""

    def __init__(
        self, recovery: Recovery, sessions: Sessions, registry: Registry, hasten: Callable[[str], None]
    ) -> None:
        self.store = recovery
        self._sessions = sessions
        self._registry = registry
        self._hasten = hasten

    def pause(self, tenant: str, session_id: uuid.UUID | str, *, reason: str) -> str:
        """
        Hold a session and its children: what runs now finishes, nothing follows. Its state afterwards.

        Raises:
            UnknownSession: there is none.
        """
        known, by = _uuid(session_id), _by(reason)
        state, _ = self.store.pause(tenant, known, by)
        if state == "paused":
            for child in self._sessions.children(tenant, known):
                self._pause_with(tenant, child, by, known)
        return state

    def _pause_with(self, tenant: str, session_id: uuid.UUID, by: By, parent: uuid.UUID) -> None:
        self.store.pause(tenant, session_id, by, parent=parent)
        for child in self._sessions.children(tenant, session_id):
            self._pause_with(tenant, child, by, session_id)

    def resume(self, tenant: str, session_id: uuid.UUID | str, *, reason: str) -> str:
        """
        Let a paused session go on, and the children that were paused with it. Its state afterwards.

        Raises:
            UnknownSession: there is none.
        """
        known, by = _uuid(session_id), _by(reason)
        children = self.store.paused_with(tenant, known)
        state, _ = self.store.resume(tenant, known, by)
        if state == "running":
            for child in children:
                self.resume(tenant, child, reason=reason)
            self._hasten(tenant)
        return state

    def kill(self, tenant: str, session_id: uuid.UUID | str, *, reason: str) -> tuple[str, int]:
        """
        End a session and its children now: what runs has lost its fence, whatever it returns is thrown away.

        Its state afterwards, and how many running attempts were fenced. A thread that does not listen is left
        to its deadline.

        Raises:
            UnknownSession: there is none.
        """
        known, by = _uuid(session_id), _by(reason)
        children = self._sessions.children(tenant, known)
        state, _, fenced = self.store.kill(tenant, known, by)
        if state == "cancelled":
            for child in children:
                fenced += self.kill(tenant, child, reason=reason)[1]
            self._hasten(tenant)
        return state, fenced

    def plan(
        self, tenant: str, session_id: uuid.UUID | str, *, from_step: str | None, change: Change | None = None
    ) -> Plan:
        """
        What a replay, or a fork, from this step would do; nothing is changed.

        Raises:
            UnknownSession, NotReopened, InvalidInput: it cannot be done; the message says why.
        """
        known = _uuid(session_id)
        standing = self.store.standing(tenant, known)
        place = self._place(tenant, known, from_step) if from_step is not None else None
        state, changes = self._changed(tenant, known, standing, place, change)
        met = self.store.undone_after(tenant, known, place.step_id) if place is not None else (0, 0, 0, 0)
        return Plan(str(known), place, standing.generation, *met, changes, state)

    def replay(
        self,
        tenant: str,
        session_id: uuid.UUID | str,
        *,
        reason: str,
        from_step: str | None = None,
        change: Change | None = None,
        deadline: Duration | None = None,
    ) -> Reopened:
        """
        Let the same session go on from a step, in a new generation; without one, from where it stopped.

        Recorded effects are recalled under their keys, not repeated. `from_step` is the number that `session show`
        prints (`3`, `3.1` in a branch), a step's name when it is the only one, or the beginning of its id.
        `change` edits the state that the step begins from, checked against the agent's model. `deadline`
        gives a new one from now; 0 takes it away. Of several who replay at once, one wins.

        Raises:
            UnknownSession: there is none.
            NotReopened: it cannot go on from there, or somebody was quicker; nothing was changed.
            InvalidInput: no such step, or the edit does not fit.
        """
        plan = self.plan(tenant, session_id, from_step=from_step, change=change)
        found = self.store.reopen(
            tenant,
            _uuid(session_id),
            _by(reason),
            generation=plan.generation,
            step_id=plan.step.step_id if plan.step else None,
            state=plan.state,
            deadline_s=seconds(deadline) if deadline is not None else None,
            detail={"changes": plan.changes} if plan.changes else None,
        )
        self._hasten(tenant)
        return found

    def fork(
        self,
        tenant: str,
        session_id: uuid.UUID | str,
        *,
        reason: str,
        from_step: str,
        change: Change | None = None,
        dry_effects: bool = False,
        deadline: Duration | None = None,
    ) -> uuid.UUID:
        """
        Begin a new session at a step of another, with its state; the new session's id.

        Its effects are made anew under keys of its own. With `dry_effects` none is made at all: those that the
        other session recorded are recalled, and a call without a record ends the fork.

        Raises:
            UnknownSession, NotReopened, InvalidInput: as `replay`.
        """
        known = _uuid(session_id)
        plan = self.plan(tenant, known, from_step=from_step, change=change)
        if plan.step is None:
            raise InvalidInput("a fork needs the step to begin at")
        standing = self.store.standing(tenant, known)
        state = plan.state or self.store.state_before(tenant, known, plan.step.step_id)
        fork = self.store.fork(
            tenant,
            known,
            _by(reason),
            step_id=plan.step.step_id,
            state=state,
            input_hash=self._hash(standing, state),
            dry=dry_effects,
            deadline_s=seconds(deadline) if deadline is not None else None,
            detail={"changes": plan.changes} if plan.changes else None,
        )
        self._hasten(tenant)
        return fork

    def inspect(self, tenant: str, session_id: uuid.UUID | str) -> Inspection:
        """
        Where a session stands: its state, what each of its steps waits for and why, and what to do next.

        Raises:
            UnknownSession: there is none.
        """
        return look_into(self._sessions, self.store, tenant, _uuid(session_id))

    def count(self, chosen: Chosen) -> int:
        """How many sessions a filter names."""
        return self.store.count(chosen)

    def select(self, chosen: Chosen) -> Iterator[tuple[str, uuid.UUID, str, str]]:
        """The sessions that a filter names: tenant, id, agent, state."""
        return self.store.select(chosen)

    def _place(self, tenant: str, session_id: uuid.UUID, text: str) -> Place:
        places = self.store.places(tenant, session_id)
        digits = text.replace("-", "").lower()
        for found in (
            [place for place in places if place.number == text],
            [place for place in places if place.name == text],
            [place for place in places if len(digits) >= 4 and place.step_id.hex.startswith(digits)],
        ):
            if len(found) == 1:
                return found[0]
            if found:
                ids = ", ".join(f"{place.number} {place.name} ({place.step_id})" for place in found[:5])
                raise InvalidInput(f"several steps are {text}: {ids}; give the beginning of an id")
        known = ", ".join(f"{place.number} {place.name}" for place in places[:20])
        raise InvalidInput(f"session {session_id} has no step {text}; it has: {known}")

    def _changed(
        self, tenant: str, session_id: uuid.UUID, standing: Standing, place: Place | None, change: Change | None
    ) -> tuple[bytes | None, list[dict[str, Any]]]:
        if change is None:
            return None, []
        if place is None:
            raise InvalidInput("an edit needs the step that is to begin with it: give --from-step")
        agent = self._registry.serving(standing.agent, standing.agent_version)
        return edited(agent, self.store.state_before(tenant, session_id, place.step_id), change)

    def _hash(self, standing: Standing, state: bytes) -> bytes:
        try:
            return input_hash(self._registry.serving(standing.agent, standing.agent_version), state)
        except InvalidInput:
            # A fork has no key, so nothing compares it; its agent may be registered elsewhere only.
            return fingerprint(standing.agent.encode(), state)


def _by(reason: str) -> By:
    if not reason.strip():
        raise InvalidInput("a reason must say something")
    return By(operator_name(), reason)


def _uuid(session_id: uuid.UUID | str) -> uuid.UUID:
    try:
        return session_id if isinstance(session_id, uuid.UUID) else uuid.UUID(session_id)
    except ValueError:
        raise NotReopened(str(session_id), "it is no session id") from None
