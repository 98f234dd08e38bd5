"""The Dead letters tab: by cause, and what a redrive would do before it does."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from tornado.web import authenticated

from agentq.client.tenants import acting_as
from agentq.flower.pages.tab import Action, Route, Tab
from agentq.store.dead_letters import Selection
from agentq.store.redrives import Terms


class DeadLetters(Tab):
    """Dead letters by cause, and the letters of one; what a redrive would do before it does."""

    tab = "aq-letters"

    @authenticated
    async def get(self) -> None:
        cause, tenant = self.chosen("cause"), self.chosen("tenant", "tenant")
        selection = Selection(tenant=tenant, cause=cause)
        letters = self.client.dead_letters

        def question() -> dict[str, Any]:
            narrow = cause is not None
            return {
                "groups": letters.groups("cause", selection, limit=100),
                "letters": letters.ls(selection, limit=100) if narrow else [],
                "plan": letters.plan(selection) if narrow else None,
            }

        self.show("aq_letters.html", cause=cause, tenant=tenant, **await self.ask(question))


class LetterAction(Action):
    """Redrive or discard the letters of one cause."""

    tab = "aq-letters"

    def act(self, *, reason: str, user: str, **place: str) -> tuple[str, str]:
        selection = Selection(tenant=self.chosen("tenant", "tenant"), cause=self.chosen("cause"))
        here = str(self.reverse_url("aq-letters"))
        letters = self.client.dead_letters
        if place["action"] == "discard":
            return f"{letters.discard(selection, reason=reason)} letters are discarded", here
        terms = Terms(canary=int(self.chosen("canary") or 0), rate_per_s=float(self.chosen("rate") or 10))
        progress = letters.redrive(selection, reason=reason, terms=terms)
        first = next(progress, None)

        def drive() -> None:
            with acting_as(user), suppress(Exception):
                for _ in progress:
                    pass

        # It goes on by itself; whoever drives next takes it over when this process ends.
        self.application.executor.submit(drive)
        job = f", job {str(first.job.job_id)[:8]}" if first is not None else ""
        return f"the redrive is under way{job}: agentq redrive ls", here


ROUTES = (
    Route("aq-letters", r"/dead-letters", DeadLetters, "Dead letters"),
    Route("aq-letters-act", r"/dead-letters/(?P<action>redrive|discard)", LetterAction),
)
