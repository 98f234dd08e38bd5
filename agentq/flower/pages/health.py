"""The Health tab: the workers that live, and the breakers of what they call."""

from __future__ import annotations

from typing import Any

from tornado.web import authenticated

from agentq.cli.output import reason_of
from agentq.flower.pages.tab import Route, Tab
from agentq.seeing.story import seconds_text
from agentq.seeing.tracing import redactor_of
from agentq.store.dependencies import Breakers, DependencyRow
from agentq.store.workers import WorkerRow, Workers


class Health(Tab):
    """The worker processes that live, the breakers of what they call, and how old the oldest work is."""

    tab = "aq-health"

    @authenticated
    async def get(self) -> None:
        redact = redactor_of(self.client.settings).value

        def question() -> dict[str, Any]:
            workers, breakers = Workers(self.store).present(), Breakers(self.store, {}).ls()
            # Whoever waits longest comes first.
            due = [
                row.oldest_due_s
                for row in self.client.ledger.queue_depths(limit=1).rows
                if row.oldest_due_s is not None
            ]
            unserved = Workers(self.store).unserved()
            return {
                "workers": workers,
                "breakers": [(row, reason_of(redact("failure", row.last_failure))) for row in breakers],
                "unserved": unserved,
                "tiles": _tiles(workers, breakers, max(due, default=0.0), sum(row.steps for row in unserved)),
            }

        self.show("aq_health.html", **await self.ask(question))


def _tiles(
    workers: list[WorkerRow], breakers: list[DependencyRow], oldest_s: float, unserved: int
) -> list[tuple[str, str, str]]:
    """What one looks at first: name, value, and how it is to be taken."""
    live = sum(row.state == "live" for row in workers)
    shut = sum(row.state not in ("closed", "forced_shut") for row in breakers)
    return [
        ("Live processes", str(live), _look(live > 0)),
        ("Oldest due step", seconds_text(oldest_s) if oldest_s > 0 else "none", "metric-card-active"),
        ("Steps nobody serves", f"{unserved:,}", _look(unserved == 0)),
        ("Dependencies out of order", str(shut), _look(shut == 0)),
    ]


def _look(well: bool) -> str:
    return "metric-card-success" if well else "metric-card-danger"


ROUTES = (Route("aq-health", r"/health", Health, "Health"),)
