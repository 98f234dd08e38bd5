"""What is left of a run: its schedule, what was recorded, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass

from agentq.chaos.judge import History, Judgement
from agentq.chaos.recovery import Recovery
from agentq.chaos.schedule import Schedule


@dataclass(frozen=True)
class Run:
    """One run, as the screen and the report tell it."""

    schedule: Schedule
    history: History
    judgement: Judgement
    recoveries: tuple[Recovery, ...]
    began: float
    took_s: float

    @property
    def ok(self) -> bool:
        return self.judgement.ok
