"""
The session breaker: when one session goes in circles.

Pure decisions over a small window that the session keeps in its state. The thresholds were tried on
simulated traffic: the stale streak stops same-call loops and cycles within ten actions, and hits
between 0.5 and 20 of 1,000 ordinary runs, the more the more repetitive they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from agentq.payload import canonical

# Marks are kept in one text, so that a window of them stays below what a checkpoint stores whole.
_MARK = 6
_REMEMBERED = 48


class Breaker(BaseModel):
    """When a session counts as stuck. 0 switches a rule off."""

    hint_after: int = 4
    stale: int = 6
    turns_without_news: int = 15
    semantic: int = 6
    cycle: int = 12
    acceleration: float = 6.0
    acceleration_from_tokens: int = 40_000


class Action(BaseModel):
    """A tool call that came to something."""

    tool: str
    arguments: Any
    result: Any
    ok: bool = True
    poll: bool = False
    changes: bool = False


class Window(BaseModel):
    """What the breaker remembers of a session: digests and counts, no content."""

    seen: str = ""
    calls: str = ""
    stale: int = 0
    idle_turns: int = 0
    flaws: list[int] = Field(default_factory=list)
    tokens: list[int] = Field(default_factory=list)


class Trip(BaseModel):
    """The session goes no further by itself."""

    rule: str
    why: str
    evidence: dict[str, Any] = Field(default_factory=dict)


class Hint(BaseModel):
    """The session goes on, and the model is told."""

    text: str


def digest(*parts: Any) -> str:
    """Few enough characters to keep, enough to tell the actions of a window apart."""
    return hashlib.blake2b(canonical(list(parts)), digest_size=_MARK // 2).hexdigest()


def _marks(text: str) -> list[str]:
    return [text[start : start + _MARK] for start in range(0, len(text), _MARK)]


def note_actions(window: Window, actions: Sequence[Action]) -> Window:
    """The window after one turn's tool calls have come back."""
    seen, calls = _marks(window.seen), _marks(window.calls)
    stale, news = window.stale, not actions
    for action in actions:
        whole = digest("a", action.tool, action.arguments, action.result)
        result = digest("r", action.tool, action.result)
        if action.poll:
            news = True
            continue
        stale = stale + 1 if whole in seen else 0
        news = news or result not in seen or (action.changes and action.ok and whole not in seen)
        calls.append(digest("c", action.tool, action.arguments))
        seen += [mark for mark in (whole, result) if mark not in seen]
    idle = 0 if news else window.idle_turns + 1
    return window.model_copy(
        update={
            "seen": "".join(seen[-2 * _REMEMBERED :]),
            "calls": "".join(calls[-_REMEMBERED:]),
            "stale": stale,
            "idle_turns": idle,
        }
    )


def note_answer(window: Window, *, tokens: int, flawed: bool) -> Window:
    """The window after one model call."""
    return window.model_copy(
        update={"flaws": [*window.flaws, int(flawed)][-12:], "tokens": [*window.tokens, tokens][-10:]}
    )


def judge(window: Window, breaker: Breaker) -> Trip | Hint | None:
    """Whether the session may take another turn."""
    calls = _marks(window.calls)
    if breaker.stale and window.stale >= breaker.stale:
        return Trip(
            rule="stale",
            why=f"the last {window.stale} tool calls repeated calls that had the same result before",
            evidence={"streak": window.stale, "calls": calls[-window.stale :]},
        )
    if breaker.cycle and (period := _period(calls, breaker.cycle)):
        return Trip(
            rule="cycle",
            why=f"the same {period} tool calls came {breaker.cycle} times in a row",
            evidence={"period": period, "calls": calls[-period * breaker.cycle :]},
        )
    if breaker.turns_without_news and window.idle_turns >= breaker.turns_without_news:
        return Trip(
            rule="no_news",
            why=f"{window.idle_turns} turns brought no result that was not known",
            evidence={"turns": window.idle_turns},
        )
    if breaker.semantic and sum(window.flaws) >= breaker.semantic:
        return Trip(
            rule="semantic",
            why=f"{sum(window.flaws)} of the last {len(window.flaws)} answers could not be used",
            evidence={"answers": window.flaws},
        )
    if trip := _accelerates(window.tokens, breaker):
        return trip
    if breaker.hint_after and window.stale == breaker.hint_after:
        return Hint(
            text=f"Your last {window.stale} tool calls repeated earlier ones and had the same results. Repeating them "
            "will not help: use what you know, try something else, or say that you cannot go on."
        )
    return None


def _period(calls: Sequence[str], times: int) -> int | None:
    """The length of a cycle of up to four calls with which the list ends, `times` over."""
    for period in (1, 2, 3, 4):
        tail = calls[-period * times :]
        if len(tail) == period * times and all(tail[n] == tail[n % period] for n in range(len(tail))):
            return period
    return None


def _accelerates(tokens: Sequence[int], breaker: Breaker) -> Trip | None:
    """Twice as many turns use a multiple of the tokens; a history that merely grows does not."""
    if not breaker.acceleration or len(tokens) < 10:
        return None
    before, now = sum(tokens[:5]), sum(tokens[5:])
    if now < breaker.acceleration_from_tokens or now < breaker.acceleration * max(before, 1):
        return None
    return Trip(
        rule="acceleration",
        why=f"five model calls used {now:,} tokens, the five before them {before:,}",
        evidence={"tokens": list(tokens)},
    )
