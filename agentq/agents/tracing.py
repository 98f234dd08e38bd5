"""Tracing: what a step notes of itself while it runs, redacted before anything keeps it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from agentq.payload import encode
from agentq.step import valid_name
from agentq.verdicts import Decision, Failure, TraceEvent, Usage

# More is noise that nobody reads, and a settlement that grows without bound.
EVENTS_MAX = 200


@dataclass(frozen=True, slots=True)
class Tracing:
    """What is traced, and how it is made safe to keep. Without a redactor nothing is."""

    on: bool = False
    content: bool = True
    content_max: int = 16_384
    redact: Callable[..., Any] = lambda *_, **__: "[no redactor]"

    def keep(self, kind: str, value: Any) -> bytes | None:
        """The value as redacted JSON of a bounded size; None where no content is kept."""
        if not (self.on and self.content) or value is None:
            return None
        return self._bounded(kind, value)

    def facts(self, kind: str, value: Any) -> bytes:
        """The same for what is no content, such as the options of a decision."""
        return self._bounded(kind, value)

    def text(self, kind: str, value: str, limit: int = 2000) -> str:
        """A text, redacted and cut."""
        redacted = self.redact(kind, value, text_max=limit)
        return redacted if isinstance(redacted, str) else str(redacted)

    def _bounded(self, kind: str, value: Any) -> bytes:
        try:
            plain = _plain(value)
            data = encode(self.redact(kind, plain, text_max=self.content_max))
        except Exception as error:
            # A trace is never the reason why a step fails.
            return encode(f"[cannot be shown: {type(error).__name__}]")
        if len(data) <= self.content_max:
            return data
        return encode({"cut": data[: self.content_max].decode("utf-8", "ignore"), "bytes": len(data)})


def _plain(value: Any) -> Any:
    """The value as JSON has it, so that the rules see every text of it."""
    from agentq.payload import decode

    return value if isinstance(value, str) else decode(encode(value))


class Span:
    """Something that takes time within a step. What is set here is kept when its block ends."""

    def __init__(self, kind: str, name: str, at_s: float, input: Any) -> None:
        self.kind = kind
        self.name = name
        self.input = input
        self.output: Any = None
        self.failure: Failure | None = None
        self.detail: dict[str, Any] = {}
        self._at_s = at_s
        self._usage = Usage()

    def used(
        self,
        *,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cost_usd: Decimal | float | str | None = None,
        cost_micros: int | None = None,
        **by_kind: Any,
    ) -> None:
        """
        Which part of the step's usage was this; `ctx.usage` or `ctx.spend` is what counts it.

        More tokens by kind (`cached_tokens=`, `reasoning_tokens=`) and facts such as `model=`, `provider=`,
        `price=` are kept beside it.
        """
        if cost_micros is None:
            cost_micros = 0 if cost_usd is None else int((Decimal(str(cost_usd)) * 1_000_000).to_integral_value())
        if min(input_tokens, output_tokens, cost_micros) < 0:
            raise ValueError("usage cannot be negative")
        self._usage += Usage(input_tokens, output_tokens, cost_micros)
        self.note(**by_kind)

    def note(self, **facts: Any) -> None:
        """Facts about it, short ones; texts are redacted."""
        self.detail |= facts

    def ended(self, took_s: float, tracing: Tracing) -> TraceEvent:
        """What is written of it."""
        return TraceEvent(
            kind=self.kind,
            name=tracing.text("name", str(self.name), 200),
            at_s=self._at_s,
            took_s=took_s,
            usage=self._usage,
            failure=self.failure,
            detail=_redacted_facts(tracing, self.detail),
            input=tracing.keep("input", self.input),
            output=tracing.keep("output", self.output),
        )


def _redacted_facts(tracing: Tracing, facts: Mapping[str, Any]) -> dict[str, Any]:
    if not facts:
        return {}
    redacted = tracing.redact("detail", dict(facts), text_max=500)
    return redacted if isinstance(redacted, dict) else {"detail": redacted}


class Recording:
    """What one attempt has noted so far. Threads and coroutines of a step may note at once."""

    def __init__(self, tracing: Tracing, began: float, classify: Callable[[BaseException], Failure]) -> None:
        self._tracing = tracing
        self._began = began
        self._classify = classify
        self._lock = threading.Lock()
        self._events: list[TraceEvent] = []
        self._decisions: list[Decision] = []
        self._dropped = 0

    @contextmanager
    def span(self, kind: str, name: str, *, input: Any = None, **facts: Any) -> Iterator[Span]:
        """Time a block; an exception that leaves it is noted and goes on."""
        valid_name("trace kind", kind)
        if kind == "attempt":
            raise ValueError("a trace of kind 'attempt' is agentq's own")
        began = time.monotonic()
        span = Span(kind, name, began - self._began, input)
        span.note(**facts)
        try:
            yield span
        except BaseException as error:
            if span.failure is None:
                span.failure = self._classify(error)
            raise
        finally:
            if self._tracing.on:
                self.add(span.ended(time.monotonic() - began, self._tracing))

    def add(self, event: TraceEvent) -> None:
        """Keep an event, while there is room."""
        with self._lock:
            if len(self._events) < EVENTS_MAX:
                self._events.append(event)
            else:
                self._dropped += 1

    def decide(
        self,
        options: Sequence[Any],
        picked: Any,
        why: str | None = None,
        *,
        confidence: float | None = None,
        limits: Mapping[str, Any] | None = None,
        approver: str | None = None,
        alternatives: Sequence[Any] = (),
    ) -> None:
        """Note a choice. `alternatives` are options in a model's words, which is content."""
        if confidence is not None and not 0 <= confidence <= 1:
            raise ValueError("confidence is between 0 and 1")
        if not self._tracing.on:
            return
        tracing = self._tracing
        bare = tracing.facts("decision", list(options))
        worded = tracing.content and bool(alternatives)
        made = Decision(
            at_s=time.monotonic() - self._began,
            options=tracing.facts("decision", [*options, *alternatives]) if worded else bare,
            bare_options=bare if worded else None,
            picked=tracing.text("decision", picked if isinstance(picked, str) else encode(picked).decode()),
            # The model's words, which is content.
            why=tracing.text("decision", why) if why is not None and tracing.content else None,
            confidence=confidence,
            limits=_redacted_facts(tracing, limits or {}),
            approver=approver,
        )
        with self._lock:
            if len(self._decisions) < EVENTS_MAX:
                self._decisions.append(made)

    def decide_by_people(self, outcome: str, comment: str | None, by: str | None) -> None:
        """Note what people, or a policy of theirs, said to a question of this step."""
        self.decide(["granted", "denied", "expired"], outcome, comment, approver=by)

    def events(self) -> tuple[TraceEvent, ...]:
        """What was noted, and how much more there was."""
        with self._lock:
            noted = tuple(self._events)
            dropped = self._dropped
        if dropped:
            last = noted[-1]
            more = TraceEvent("more", f"{dropped} more were not kept", last.at_s, last.took_s)
            noted = (*noted, more)
        return noted

    def decisions(self) -> tuple[Decision, ...]:
        with self._lock:
            return tuple(self._decisions)
