"""What the demo sees of its own run, by agentq's own tables."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from agentq.demo.checks import Ended
from agentq.store.pool import ALL_TENANTS, Row, Store


@dataclass(frozen=True)
class Progress:
    """How far one tenant's tickets are."""

    tenant: str
    tickets: int
    ended: int
    steps: int


@dataclass(frozen=True)
class Steps:
    """Some steps, with their fences at that moment."""

    sessions: list[uuid.UUID]
    steps: list[uuid.UUID]
    fences: list[int]

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class Totals:
    """The whole run in figures."""

    steps: int
    crashes: int
    retries: int
    calls_repeated: int
    tokens_in: int
    tokens_out: int
    cost_micros: int


class Observer:
    """Reads the sessions whose keys begin with `run`."""

    def __init__(self, store: Store, run: str) -> None:
        self.store = store
        self.run = run

    def progress(self) -> list[Progress]:
        """How far each tenant's tickets are."""
        return [Progress(*row) for row in self._ask("progress")]

    def in_hand(self) -> dict[int, Steps]:
        """Per worker process: the steps it has in hand."""
        return {row[0]: Steps(*row[1:]) for row in self._ask("in_hand")}

    def uptime_s(self) -> float:
        """How long Postgres has been up."""
        return float(self._ask("uptime")[0][0])

    def since(self, steps: Steps) -> tuple[int, int]:
        """Of these steps: how many have begun since, and how many have ended."""
        [(begun, ended)] = self._ask("since", steps=steps.steps, fences=steps.fences)
        return begun, ended

    def waiting(self) -> Steps:
        """Steps whose message is with the broker and not yet claimed."""
        return Steps(*self._ask("waiting")[0])

    def ended(self) -> list[Ended]:
        """How each session of the run ended, or stands."""
        return [
            Ended(ticket, tenant, str(session), state, json.loads(result) if result else None, failure or "")
            for ticket, tenant, session, state, result, failure in self._ask("ended")
        ]

    def totals(self) -> Totals:
        """The run in figures."""
        return Totals(*map(int, self._ask("totals")[0]))

    def _ask(self, name: str, **parameters: object) -> list[Row]:
        return self.store.query_as(ALL_TENANTS, _queries()[name], {"run": self.run, **parameters})


@cache
def _queries() -> dict[str, str]:
    text = files("agentq.demo").joinpath("sql", "demo.sql").read_text("utf-8")
    parts = re.split(r"^-- name: (\w+)$", text, flags=re.MULTILINE)
    return {parts[i]: parts[i + 1].strip().rstrip(";") for i in range(1, len(parts), 2)}
