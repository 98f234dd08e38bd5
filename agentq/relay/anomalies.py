"""
The watch over anomalies: looks at what runs every few steps, and learns from what ended, each session once.

A small batch at a time, from rows that are taken away as they are judged: no history is read. A crash in
between repeats the batch, because what is learned and what is taken away commit together.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agentq.store.anomalies import Anomalies, Tally
from agentq.store.pool import Connection

_BATCH = 100


@dataclass(frozen=True, slots=True)
class Anomaly:
    """What is told of one: names and numbers, never content."""

    tenant: str
    agent: str
    agent_version: int
    session_id: uuid.UUID
    measure: str
    rule: str
    value: float
    low: float
    high: float
    running: bool
    parked: bool


class Rules(Protocol):
    """The policy: see `agentq.policies.anomalies`."""

    def judge(self, tally: Tally, known: tuple[int, dict[str, Any]]) -> Sequence[Any]:
        """What stands out in a session that runs."""

    def learn(
        self, tallies: Sequence[Tally], known: tuple[int, dict[str, Any]]
    ) -> tuple[int, dict[str, Any], list[tuple[Tally, Any]]]:
        """Runs and facts after these sessions of one agent, and what stood out."""


class AnomalyWatch:
    """One round: what runs, then what ended."""

    def __init__(
        self,
        anomalies: Anomalies,
        rules: Rules,
        *,
        channels: Sequence[str] = (),
        tell: Sequence[Callable[[Anomaly], None]] = (),
    ) -> None:
        self._anomalies = anomalies
        self._rules = rules
        self._channels = channels
        self._tell = tell

    def round(self) -> int:
        """Judge a batch of each; how many sessions were looked at."""
        return self.look_at_running() + self.learn_from_ended()

    def look_at_running(self) -> int:
        """Sessions that have gone on since the last look. What they have used so far only grows."""
        tallies = self._anomalies.running(_BATCH)
        if not tallies:
            return 0
        known = self._anomalies.baselines_of({tally.whose for tally in tallies})
        for tally in tallies:
            for finding in self._rules.judge(tally, known[tally.whose]):
                self._say([self._write(tally, finding, running=True)])
        return len(tallies)

    def learn_from_ended(self) -> int:
        """Sessions that ended: judged, learned from where they were as usual, and forgotten."""
        said: list[Anomaly | None] = []
        with self._anomalies.ended(_BATCH) as (connection, tallies):
            by_agent: dict[tuple[str, str, int], list[Tally]] = {}
            for tally in tallies:
                by_agent.setdefault(tally.whose, []).append(tally)
            if not tallies:
                return 0
            learned = {}
            for whose, known in self._anomalies.hold(connection, by_agent).items():
                runs, facts, found = self._rules.learn(by_agent[whose], known)
                learned[whose] = runs, facts
                said += [self._write(tally, finding, running=False, connection=connection) for tally, finding in found]
            self._anomalies.learn(connection, learned)
        self._say(said)
        return len(tallies)

    def _write(
        self, tally: Tally, finding: Any, *, running: bool, connection: Connection | None = None
    ) -> Anomaly | None:
        session = uuid.UUID(finding.session)
        raised = self._anomalies.raise_(
            tally,
            session=session,
            measure=finding.measure,
            rule=finding.rule,
            value=finding.value,
            low=finding.low,
            high=finding.high,
            runs=finding.runs,
            why=finding.why,
            running=running,
            channels=self._channels,
            connection=connection,
        )
        if not raised.fresh or raised.state != "open":
            return None
        return Anomaly(
            tally.tenant, tally.agent, tally.agent_version, session, finding.measure, finding.rule, finding.value,
            finding.low, finding.high, running, raised.parked,
        )  # fmt: skip

    def _say(self, said: Sequence[Anomaly | None]) -> None:
        for anomaly in said:
            for tell in self._tell if anomaly is not None else ():
                assert anomaly is not None
                tell(anomaly)


__all__ = ["Anomaly", "AnomalyWatch", "Rules"]
