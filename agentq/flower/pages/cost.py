"""The Cost tab: what was used, over time and by whom."""

from __future__ import annotations

import csv
import io
from typing import Any

from tornado.web import authenticated

from agentq.errors import InvalidInput
from agentq.flower.pages.tab import Route, Tab
from agentq.seeing.story import dollars, waste_text
from agentq.store.traces import Traces

_COLUMNS = (
    "count", "sessions", "tokens_in", "tokens_out", "cost_micros", "waste_micros", "repairs", "repair_micros",
)  # fmt: skip
_WINDOWS = {"24h": 86_400, "7d": 7 * 86_400, "30d": 30 * 86_400}


class Cost(Tab):
    """What was used, by day, agent, tenant and model."""

    tab = "aq-cost"

    @authenticated
    async def get(self) -> None:
        tenant, window = self.chosen("tenant", "tenant"), self.chosen("since") or "7d"
        seconds = _WINDOWS.get(window)
        if seconds is None:
            raise InvalidInput(f"since is one of {', '.join(_WINDOWS)}")
        traces = Traces(self.store)

        def question() -> dict[str, Any]:
            return dict(traces.spends(("day", "agent", "tenant", "model"), seconds=seconds, tenant=tenant))

        found = await self.ask(question)
        if self.chosen("csv"):
            self._send_csv(found)
            return
        days = sorted(found.pop("day"), key=lambda row: row.of)
        self.show(
            "aq_cost.html", days=days, tables=found, tenant=tenant, window=window, windows=_WINDOWS, bars=_bars(days)
        )

    def _send_csv(self, found: dict[str, Any]) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["by", "of", *_COLUMNS])
        for by, rows in found.items():
            for row in rows:
                name = f"'{row.of}" if row.of[:1] in "=+-@" else row.of
                writer.writerow([by, name, *(getattr(row, column) for column in _COLUMNS)])
        self.set_header("Content-Type", "text/csv; charset=utf-8")
        self.set_header("Content-Disposition", 'attachment; filename="agentq-cost.csv"')
        self.finish(text.getvalue())


def _bars(days: list[Any]) -> str:
    """Cost by day as a picture; waste on top."""
    if not days:
        return ""
    top = max(row.cost_micros for row in days) or 1
    width = min(1100 / len(days), 160)
    bar = max(min(width * 0.7, 72), 2)
    parts_ = [
        '<svg class="aq-tl" viewBox="0 0 1120 200" role="img" aria-label="Cost by day">'
        "<title>Cost by day, waste in red</title>"
    ]
    # Many days: a word under every so many, or they would run into each other.
    every = max(round(56 / width), 1)
    for number, row in enumerate(days):
        x, height = 10 + number * width, 140 * row.cost_micros / top
        waste, middle = 140 * row.waste_micros / top, 10 + number * width + bar / 2
        title = f"{row.of}: {dollars(row.cost_micros)}, waste {waste_text(row.waste_micros, row.repair_micros) or '$0'}"
        words = (
            f'<text x="{middle:.1f}" y="{166 - height:.1f}" text-anchor="middle">{dollars(row.cost_micros)}</text>'
            f'<text class="dim" x="{middle:.1f}" y="190" text-anchor="middle">{row.of[5:]}</text>'
        )
        parts_.append(
            f'<g><title>{title}</title><rect class="day" x="{x:.1f}" y="{172 - height:.1f}" width="{bar:.1f}" '
            f'height="{height:.1f}" rx="2"/><rect class="bad" x="{x:.1f}" y="{172 - height:.1f}" width="{bar:.1f}" '
            f'height="{waste:.1f}" rx="2"/>{words if number % every == 0 else ""}</g>'
        )
    return "".join([*parts_, "</svg>"])


ROUTES = (Route("aq-cost", r"/cost", Cost, "Cost"),)
