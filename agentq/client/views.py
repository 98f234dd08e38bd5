"""Views: a session at one moment, what happens in it, and how often to look."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

from agentq.errors import SessionFailed, WaitTimeout
from agentq.payload import decode
from agentq.step import StepRef
from agentq.store.sessions import SessionRow, Sessions

ENDED = frozenset({"done", "failed", "cancelled"})

# Polling: quick at first, because most waits are short, then gentle.
_POLL_FIRST_S, _POLL_LAST_S = 0.02, 0.5

_EVENTS_OVERLAP = 1000


@dataclass(frozen=True)
class SessionView:
    """A session at one moment."""

    tenant: str
    id: str
    agent: str
    version: int
    key: str | None
    state: str
    failure: Mapping[str, Any] | None
    created_at: datetime
    ended_at: datetime | None
    steps: int
    cost_usd: float
    input_tokens: int
    output_tokens: int
    _result: bytes | None = field(repr=False)

    @property
    def ended(self) -> bool:
        """Whether no further step will run."""
        return self.state in ENDED

    @property
    def result(self) -> Any:
        """
        What the agent returned with `Done`.

        Raises:
            SessionFailed: it ended without one.
            WaitTimeout: it has not ended.
        """
        if self.state == "done":
            return decode(cast(bytes, self._result))
        if self.failure is not None:
            raise SessionFailed(self.id, self.state, str(self.failure.get("message", "")))
        raise WaitTimeout(f"session {self.id} has not ended ({self.state})")


@dataclass(frozen=True)
class Event:
    """Something that happened in a session: a step's end, progress that a step reported, the session's end."""

    kind: str
    at: datetime
    step: str | None
    data: Mapping[str, Any]


def view_of(row: SessionRow) -> SessionView:
    """A stored session as callers see it."""
    return SessionView(
        tenant=row.tenant,
        id=str(row.session_id),
        agent=row.agent,
        version=row.agent_version,
        key=row.key,
        state=row.state,
        failure=row.failure,
        created_at=row.created_at,
        ended_at=row.ended_at,
        steps=row.steps_recorded,
        cost_usd=row.cost_micros / 1_000_000,
        input_tokens=row.tokens_in,
        output_tokens=row.tokens_out,
        _result=row.result,
    )


class Feed:
    """Reads a session's events in order, each once."""

    def __init__(self, sessions: Sessions, tenant: str, session_id: uuid.UUID) -> None:
        self._sessions = sessions
        self._ref = StepRef(tenant, session_id, session_id)
        self._seen: set[uuid.UUID] = set()
        self._seen_events: set[int] = set()
        self._after = 0
        self._news = False
        self.ended = False

    def take_news(self) -> bool:
        """Whether the last read brought something; asked once."""
        news, self._news = self._news, False
        return news

    def read(self) -> Iterator[Event]:
        tenant, session_id = self._ref.tenant, self._ref.session_id
        # The state first: whatever it says, everything before it is in what is read next.
        view = view_of(self._sessions.get(tenant, session_id))
        found = [*self._steps(), *self._progress()]
        self._news = bool(found)
        yield from sorted(found, key=lambda event: event.at)
        if view.ended and view.ended_at is not None:
            self.ended = True
            failure = dict(view.failure) if view.failure else None
            yield Event("ended", view.ended_at, None, {"state": view.state, "failure": failure})

    def _steps(self) -> Iterator[Event]:
        for row in self._sessions.settled_steps(self._ref.tenant, self._ref.session_id):
            step_id, seq, name, state, attempt, settled_at, failure = row
            if step_id in self._seen:
                continue
            self._seen.add(step_id)
            data = {"state": state, "seq": seq, "attempt": attempt}
            yield Event("step", settled_at, name, data | ({"failure": failure} if failure else {}))

    def _progress(self) -> Iterator[Event]:
        # With an overlap: what was numbered first may be committed last.
        after = max(self._after - _EVENTS_OVERLAP, 0)
        for event_id, _, kind, body, at in self._sessions.events(self._ref.tenant, self._ref.session_id, after):
            if event_id in self._seen_events:
                continue
            self._seen_events.add(event_id)
            self._after = max(self._after, event_id)
            yield Event(kind, at, None, decode(body))


def polls(
    timeout: float | None, *, last_s: float = _POLL_LAST_S, reset: Callable[[], bool] | None = None
) -> Iterator[None]:
    """Yield at growing intervals until the time is up; once more after it."""
    pauses = _Pauses(timeout, last_s)
    yield
    while (pause_s := pauses.next(again=reset is not None and reset())) is not None:
        time.sleep(pause_s)
        yield


async def async_polls(timeout: float | None) -> AsyncIterator[None]:
    """As `polls`, without holding up the loop."""
    pauses = _Pauses(timeout, _POLL_LAST_S)
    yield
    while (pause_s := pauses.next()) is not None:
        await asyncio.sleep(pause_s)
        yield


class _Pauses:
    """How long to wait before each look."""

    def __init__(self, timeout: float | None, last_s: float) -> None:
        self._deadline = float("inf") if timeout is None else time.monotonic() + timeout
        self._last_s = last_s
        self._pause_s = _POLL_FIRST_S

    def next(self, *, again: bool = False) -> float | None:
        """The next pause, from the shortest `again`; None: the time is up."""
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            return None
        pause_s = _POLL_FIRST_S if again else self._pause_s
        self._pause_s = min(pause_s * 1.5, self._last_s)
        return min(pause_s * (0.75 + random.random() / 2), left_s)
