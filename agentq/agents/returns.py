"""What a step returns: the whole vocabulary of what happens next."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from agentq.errors import InvalidInput
from agentq.verdicts import FailureKind

if TYPE_CHECKING:
    from agentq.agents.agent import Step

_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*\Z")
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

Duration = float | int | str | timedelta


def seconds(duration: Duration) -> float:
    """
    A duration in seconds: a number of seconds, a `timedelta`, or text like `"90s"`, `"15m"`, `"3d"`.

    Raises:
        InvalidInput: it is none of these, or negative.
    """
    if isinstance(duration, timedelta):
        value = duration.total_seconds()
    elif isinstance(duration, int | float) and not isinstance(duration, bool):
        value = float(duration)
    elif isinstance(duration, str) and (match := _DURATION.match(duration)):
        value = float(match[1]) * _UNITS_S[match[2]]
    else:
        raise InvalidInput(f"{duration!r} is not a duration: use seconds, a timedelta, or text like '90s', '15m', '3d'")
    if not 0 <= value < 10 * 365 * 86400:
        raise InvalidInput(f"the duration {duration!r} is out of range")
    return value


@dataclass(frozen=True)
class Next:
    """Go on with `step`. Without `state`, the state this step was given goes along as it is now."""

    step: Step | str
    state: BaseModel | None = None
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """The session, or this branch of it, ends with `result` (anything that has a JSON form)."""

    result: Any = None


@dataclass(frozen=True)
class Fail:
    """The session, or this branch of it, ends failed, on purpose; nothing is retried."""

    reason: str
    kind: FailureKind = "gave_up"
    type: str = "Fail"


@dataclass(frozen=True)
class Sleep:
    """Go on with `then` after a time (`"10m"`) or at a moment (`until`). No worker is held meanwhile."""

    duration: Duration = 0
    then: Step | str = ""
    state: BaseModel | None = None
    until: datetime | None = None
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Branch:
    """One branch of a `Spawn`: a step of this agent, with arguments of its own and the state as it is."""

    step: Step | str
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Child:
    """One branch of a `Spawn`: another session, of this or another agent, for the same tenant."""

    agent: str
    input: BaseModel | Mapping[str, Any]
    version: int | None = None


@dataclass(frozen=True)
class Spawn:
    """
    Run branches side by side, then `then`, once, when the last has ended.

    The join finds `ctx.results` in the order of the branches. A branch that fails, fails the session,
    unless `collect=True`: then the join finds its error among the results.
    """

    branches: Sequence[Branch | Child]
    then: Step | str
    state: BaseModel | None = None
    collect: bool = False
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BranchResult:
    """What one branch came to: its value, or its error."""

    ok: bool
    value: Any = None
    error: str | None = None
    session_id: str | None = None


@dataclass(frozen=True)
class Ask:
    """
    Ask people, and go on with `then` once one has answered; no worker is held meanwhile.

    `to` is the group, or groups, of which one may answer (default: the setting `approval_group`),
    `within` the time they have (`approval_within_s`). `args` are arguments of `then`, which the
    approver may change; `details` is shown to them beside the question.

    `then` finds the answer in `ctx.answer`: granted, denied or expired. A step that does not look at it
    never gets past a refusal: its first call, or its return, ends with ApprovalDenied or ApprovalExpired.
    """

    question: str
    to: str | Sequence[str] = ()
    within: Duration | None = None
    then: Step | str = ""
    state: BaseModel | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    details: Any = None


@dataclass(frozen=True)
class Answer:
    """What people said: to an `Ask`, in `ctx.answer`."""

    outcome: Literal["granted", "denied", "expired"]
    by: str | None = None
    comment: str | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    edited: bool = False
    at: datetime | None = None
    approval_id: str = ""

    @property
    def granted(self) -> bool:
        """Whether somebody said yes, in time."""
        return self.outcome == "granted"


Returned = Next | Done | Fail | Sleep | Spawn | Ask
