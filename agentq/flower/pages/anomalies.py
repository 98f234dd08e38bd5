"""The Anomalies tab: sessions that were not as usual, one of them, and a button that mutes it."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from tornado.web import authenticated

from agentq.cli.anomaly import amount, normal
from agentq.errors import InvalidInput
from agentq.flower.pages.tab import Action, Route, Tab, mark_of

PAGE_ROWS = 50
_STATES = ("open", "muted", "all")


class Anomalies(Tab):
    """The newest first, by tenant, agent and state."""

    tab = "aq-anomalies"

    @authenticated
    async def get(self) -> None:
        state = self.chosen("state") or "open"
        if state not in _STATES:
            raise InvalidInput(f"state is one of {', '.join(_STATES)}")
        tenant, agent, before = self.chosen("tenant", "tenant"), self.chosen("agent", "agent"), self.place()

        def question() -> Any:
            chosen = None if state == "all" else state
            return self.client.anomalies.ls(
                state=chosen, tenant=tenant, agent=agent, before=before, limit=PAGE_ROWS + 1
            )

        rows = await self.ask(question)
        older = None
        if len(rows) > PAGE_ROWS:
            rows = rows[:PAGE_ROWS]
            filters = {"tenant": tenant or "", "agent": agent or "", "state": state}
            older = urlencode(filters | {"before": mark_of((rows[-1].found_at, rows[-1].anomaly_id))})
        self.show(
            "aq_anomalies.html",
            rows=rows,
            tenant=tenant,
            agent=agent,
            state=state,
            states=_STATES,
            older=older,
            first=before is None,
            amount=amount,
            normal=normal,
            one=None,
        )


class OneAnomaly(Tab):
    """One, with the rule's words and the way to its session."""

    tab = "aq-anomalies"

    @authenticated
    async def get(self, tenant: str, anomaly_id: str) -> None:
        row = await self.ask(lambda: self.client.anomalies.get(anomaly_id, tenant=tenant))
        self.show("aq_anomaly.html", one=row, amount=amount, normal=normal)


class AnomalyAction(Action):
    """Mute one, or take that back, as the command line does."""

    tab = "aq-anomalies"

    def act(self, *, reason: str, user: str, **place: str) -> tuple[str, str]:
        tenant, anomaly, action = place["tenant"], place["anomaly_id"], place["action"]
        change = self.client.anomalies.mute if action == "mute" else self.client.anomalies.unmute
        changed = change(anomaly, reason=reason, tenant=tenant)
        state = "muted" if action == "mute" else "open"
        said = f"the anomaly is {state}" if changed else f"the anomaly was {state} before"
        return said, str(self.reverse_url("aq-anomaly", tenant, anomaly))


_PLACE = r"/anomaly/(?P<tenant>[a-z0-9][a-z0-9_-]{0,62})/(?P<anomaly_id>[0-9a-f-]{36})"

ROUTES = (
    Route("aq-anomalies", r"/anomalies", Anomalies, "Anomalies"),
    Route("aq-anomaly", _PLACE, OneAnomaly),
    Route("aq-anomaly-act", rf"{_PLACE}/(?P<action>mute|unmute)", AnomalyAction),
)
