"""
Redriving: letters brought back in small steps, canaries first, by whoever has the turn.

A job can be left at any moment and taken up by anybody: what it has done is in the letters
themselves. A letter is taken in one transaction, in which its session goes on, so it is brought back
once, however many drive.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any

from agentq.errors import InvalidInput
from agentq.store.redrives import Job, Outcome, Redrives, Terms

log = logging.getLogger("agentq.redrive")

_BATCH_MAX = 200
_BATCH_S = 0.5
_LOOK_S = 0.5

Edit = Callable[[str, uuid.UUID], tuple[bytes, list[dict[str, Any]]]]
"""A letter's state as it shall be, and what was changed in it; raises InvalidInput when that does not fit."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a job stands after a step of it. `pause_s`: when to go on."""

    job: Job
    pause_s: float = 0.0
    driving: bool = True
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    refusals: tuple[tuple[uuid.UUID, Outcome, str], ...] = ()
    waiting_for: str = ""


class Driver:
    """Drives one job, a step at a time."""

    def __init__(
        self,
        redrives: Redrives,
        job: Job,
        *,
        edit: Edit | None = None,
        name: str | None = None,
        batch_s: float = _BATCH_S,
    ) -> None:
        self._redrives = redrives
        self._batch_s = batch_s
        self._job = job
        self._edit = edit
        self._name = name or f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex[:6]}"

    def steps(self, pause: Callable[[float], object] | None = None) -> Generator[Progress]:
        """
        Drive to the end, or follow whoever does. Leaving the loop leaves the job as it is.

        `pause` waits for the given seconds; a test may pass one that does something else meanwhile.
        """
        wait = pause or threading.Event().wait
        try:
            while True:
                progress = self.step()
                yield progress
                if progress.job.ended:
                    return
                if progress.pause_s > 0:
                    wait(progress.pause_s)
        finally:
            self._redrives.leave(self._job.job_id, self._name)

    def step(self) -> Progress:
        """One small step: a batch, or a look at the canaries."""
        mine = self._redrives.take_turn(self._job.job_id, self._name)
        job = self._job = self._redrives.get(self._job.job_id)
        if job.ended:
            return Progress(job)
        if not mine:
            return Progress(
                job, pause_s=_LOOK_S, driving=False, waiting_for=f"{job.driver or 'another process'} drives it"
            )
        match job.state:
            case "canary":
                return self._send_canaries(job)
            case "waiting":
                return self._look_at_canaries(job)
            case _:
                return self._send_some(job)

    def _send_canaries(self, job: Job) -> Progress:
        sent = self._redrives.canary_count(job.job_id)
        if sent >= job.terms.canary:
            return Progress(self._redrives.move_on(job, "waiting"))
        batch = self._batch(job, min(job.terms.canary - sent, _BATCH_MAX), canary=True)
        if batch is None:
            return Progress(self._redrives.move_on(job, "waiting" if sent else "done"))
        return batch

    def _look_at_canaries(self, job: Job) -> Progress:
        terms, found = job.terms, self._redrives.canaries(job.job_id)
        sent = found.good + found.bad + found.undecided
        needed = math.ceil(terms.threshold * sent - 1e-9)
        if found.good >= needed:
            note = f"{found.good} of {sent} canaries went well"
            return Progress(self._redrives.move_on(job, "running", note))
        if sent - found.bad < needed:
            note = f"{found.bad} of {sent} canaries died again, {needed} were to go well; the rest was left alone"
            return Progress(self._redrives.move_on(job, "stopped", note))
        if (job.waiting_s or 0.0) > terms.canary_timeout_s:
            note = (
                f"after {terms.canary_timeout_s:g} s {found.undecided} of {sent} canaries had not got past their step"
            )
            return Progress(self._redrives.move_on(job, "stopped", f"{note}; the rest was left alone"))
        return Progress(job, pause_s=_LOOK_S, waiting_for=f"{found.undecided} of {sent} canaries")

    def _send_some(self, job: Job) -> Progress:
        rate = job.terms.rate_per_s
        limit = max(1, min(_BATCH_MAX, int(rate * self._batch_s)))
        batch = self._batch(job, limit, canary=False)
        if batch is None:
            return Progress(self._redrives.move_on(job, "done"))
        return replace(batch, pause_s=batch.outcomes["redriven"] / rate)

    def _batch(self, job: Job, limit: int, *, canary: bool) -> Progress | None:
        """Some letters brought back; None when the job has been through all of them."""
        found = self._edited(job, min(limit, 20), canary) if self._edit else self._plain(job, limit, canary)
        if not found:
            return None
        refused = tuple((letter, outcome, why) for letter, outcome, why in found if outcome != "redriven")
        return Progress(
            self._redrives.get(job.job_id),
            outcomes=Counter(outcome for _, outcome, _ in found),
            refusals=refused,
        )

    def _plain(self, job: Job, limit: int, canary: bool) -> list[tuple[uuid.UUID, Outcome, str]]:
        return [(one.letter_id, one.outcome, "") for one in self._redrives.next(job.job_id, limit, canary=canary)]

    def _edited(self, job: Job, limit: int, canary: bool) -> list[tuple[uuid.UUID, Outcome, str]]:
        assert self._edit is not None
        found: list[tuple[uuid.UUID, Outcome, str]] = []
        for tenant, letter_id in self._redrives.candidates(job, limit):
            try:
                state, diff = self._edit(tenant, letter_id)
            except InvalidInput as error:
                self._redrives.pass_over(job, tenant, letter_id)
                found.append((letter_id, "invalid_state", str(error)))
                continue
            found.append(
                (letter_id, self._redrives.redrive_edited(job, tenant, letter_id, state, diff, canary=canary), "")
            )
        return found


__all__ = ["Driver", "Edit", "Progress", "Terms"]
