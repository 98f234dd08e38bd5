"""The Health tab: the workers that live, and the breakers of what they call."""

from __future__ import annotations

from typing import Any

from tornado.web import authenticated

from agentq.flower.pages.tab import Route, Tab
from agentq.seeing.story import seconds_text
from agentq.store.dependencies import Breakers
from agentq.store.workers import Workers


class Health(Tab):
    """The worker processes that live, the breakers of what they call, and how old the oldest work is."""

    tab = "aq-health"

    @authenticated
    async def get(self) -> None:
        def question() -> dict[str, Any]:
            return {
                "workers": Workers(self.store).present(),
                "breakers": Breakers(self.store, {}).ls(),
            }

        self.show("aq_health.html", span=seconds_text, **await self.ask(question))


ROUTES = (Route("aq-health", r"/health", Health, "Health"),)
