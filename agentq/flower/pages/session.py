"""One session: its timeline, attempts, states, decisions and cost, and the buttons on it."""

from __future__ import annotations

import uuid
from typing import Any

from tornado.web import authenticated

from agentq.errors import InvalidInput, NotReopened
from agentq.flower.pages.tab import Action, Route, Tab
from agentq.seeing import page as parts
from agentq.seeing.story import tell
from agentq.seeing.timeline import timeline
from agentq.seeing.tracing import redactor_of
from agentq.store.dead_letters import Selection
from agentq.store.traces import Traces

NAMES = {"pause": "Pause", "resume": "Resume", "cancel": "Cancel", "replay": "Replay", "fork": "Fork"}


class OneSession(Tab):
    """One session: its timeline, attempts, states, decisions and cost, and what may be done about it."""

    tab = "aq-sessions"

    @authenticated
    async def get(self, tenant: str, session_id: str) -> None:
        known = _uuid(session_id)
        redact = redactor_of(self.client.settings).value
        step = self.chosen("step")

        def question() -> dict[str, Any]:
            story = tell(self.client.sessions, Traces(self.store), tenant, known, redact)
            return {
                "story": story,
                "steps": self.client.sessions.steps(tenant, known),
                "facts": parts.facts(story),
                "picture": timeline(story),
                "cost": parts.cost_table(story.cost),
                "decisions": parts.decisions(story.acts),
                "family": parts.family(story, lambda one: self._family_link(tenant, one)),
                "attempts": parts.attempts(story, self._replay_link(story.session.state)),
                "letters": self.client.dead_letters.ls(Selection(tenant=tenant, session=known, state=None), limit=20),
                "approvals": self.client.approvals.ls(tenant=tenant, session_id=str(known), limit=20),
                "anomalies": self.client.anomalies.ls(state=None, tenant=tenant, session=known, limit=20),
                "replay": self._replay(tenant, known, step) if step else None,
            }

        self.show("aq_session.html", actions=self._actions, names=NAMES, chosen_step=step, **await self.ask(question))

    def _replay(self, tenant: str, session_id: uuid.UUID, step: str) -> str:
        """What a replay from a step would do, or why it cannot be done."""
        try:
            plan = self.client.recovery.plan(tenant, session_id, from_step=step)
        except (InvalidInput, NotReopened) as error:
            return str(error)
        return (
            f"A replay runs {plan.recorded} recorded steps again, and ends {plan.running} running ones; "
            f"{plan.effects_recalled} effects are recalled, {plan.effects_open} are open."
        )

    def _replay_link(self, state: str) -> parts.Also | None:
        """Beside each attempt of an ended session: the form that begins there."""
        if not self.may_operate or state in ("running", "paused"):
            return None
        return lambda row: f'<p><a href="?step={row.step_id}#acts">replay or fork from here</a></p>'

    def _family_link(self, tenant: str, session_id: uuid.UUID) -> str:
        address = self.reverse_url("aq-session", tenant, str(session_id))
        return f'<a href="{address}">{session_id}</a>'

    def _actions(self, state: str) -> list[str]:
        """What may be done with a session in this state."""
        match state:
            case "running":
                return ["pause", "cancel"]
            case "paused":
                return ["resume", "cancel"]
            case _:
                return ["replay", "fork"]


class SessionAction(Action):
    """Pause, resume, cancel, replay or fork one session, as the command line does."""

    tab = "aq-sessions"

    def act(self, *, reason: str, user: str, **place: str) -> tuple[str, str]:
        tenant, session_id, action = place["tenant"], place["session_id"], place["action"]
        here = str(self.reverse_url("aq-session", tenant, session_id))
        known = _uuid(session_id)
        recovery = self.client.recovery
        if action == "cancel":
            state = self.client.cancel(tenant, str(known), reason=reason)
            return f"the session is {state}", here
        step = self.chosen("step")
        match action:
            case "pause":
                return f"the session is {recovery.pause(tenant, known, reason=reason)}", here
            case "resume":
                return f"the session is {recovery.resume(tenant, known, reason=reason)}", here
            case "replay":
                done = recovery.replay(tenant, known, reason=reason, from_step=step)
                return f"the session goes on, generation {done.generation}", here
            case _:
                if step is None:
                    raise InvalidInput("a fork begins at a step: name one")
                fork = recovery.fork(tenant, known, reason=reason, from_step=step)
                return f"forked from {session_id}", str(self.reverse_url("aq-session", tenant, str(fork)))


def _uuid(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise InvalidInput(f"{text!r} is no session id") from None


_SESSION = r"/session/(?P<tenant>[a-z0-9][a-z0-9_-]{0,62})/(?P<session_id>[0-9a-f-]{36})"
_ACTION = r"/(?P<action>pause|resume|cancel|replay|fork)"

ROUTES = (
    Route("aq-session", _SESSION, OneSession),
    Route("aq-act", _SESSION + _ACTION, SessionAction),
)
