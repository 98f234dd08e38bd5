"""
OpenTelemetry: the trace rows of a session as GenAI spans, sent when it has ended.

Ids are made of the session's and its attempts' own, so a session that is sent twice is the same spans
twice, and a child session's spans hang under its parent's though no process saw both. The names are
still in development there; each stands once, in `NAMES`.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from agentq.errors import ConfigError, StoreUnavailable
from agentq.payload import readable
from agentq.seeing.story import WAITS, Act, Story, tell
from agentq.settings import Settings
from agentq.step import span_id
from agentq.store.pool import Store
from agentq.store.sessions import Sessions
from agentq.store.traces import Ended, TraceRow, Traces

log = logging.getLogger("agentq.seeing.otel")

# The one place for names that are not ours to choose.
NAMES = {
    "operation": "gen_ai.operation.name",
    "agent": "gen_ai.agent.name",
    "agent_version": "gen_ai.agent.version",
    "conversation": "gen_ai.conversation.id",
    "provider": "gen_ai.provider.name",
    "model": "gen_ai.request.model",
    "max_tokens": "gen_ai.request.max_tokens",
    "finish": "gen_ai.response.finish_reasons",
    "tokens_in": "gen_ai.usage.input_tokens",
    "tokens_out": "gen_ai.usage.output_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "reasoning_tokens": "gen_ai.usage.reasoning.output_tokens",
    "cache_write_tokens": "gen_ai.usage.cache_creation.input_tokens",
    "tool": "gen_ai.tool.name",
    "tool_type": "gen_ai.tool.type",
    "input": "gen_ai.input.messages",
    "output": "gen_ai.output.messages",
    "arguments": "gen_ai.tool.call.arguments",
    "result": "gen_ai.tool.call.result",
    "error": "error.type",
    "tenant": "agentq.tenant",
    "step": "agentq.step.name",
    "step_id": "agentq.step.id",
    "seq": "agentq.step.seq",
    "attempt": "agentq.attempt",
    "closing": "agentq.closing",
    "failure": "agentq.failure.class",
    "cost": "agentq.cost.usd",
    "key": "agentq.idempotency.key",
    "worker": "agentq.worker",
    "picked": "agentq.decision.picked",
    "why": "agentq.decision.why",
    "confidence": "agentq.decision.confidence",
    "approver": "agentq.decision.approver",
    "outcome": "agentq.outcome",
    "repair": "agentq.repair",
    "price_version": "agentq.price.version",
}
_EVERY_S = 5.0
_BATCH = 20


def spans_of(story: Story, *, content: bool, resource: Any = None) -> list[Any]:
    """The spans of a session: its root, its attempts, and what they did."""
    from opentelemetry.trace import SpanKind

    session = story.session
    root = span_id(session.session_id)
    made = _Maker(story, content=content, resource=resource)
    parent = span_id(session.parent_session) if session.parent_session is not None else None
    if parent is None and session.trace_parent is not None:
        parent = session.trace_parent % 2**64  # the producer's
    spans = [
        made.span(
            f"invoke_agent {session.agent}", (root, parent),
            (session.created_at, session.ended_at or session.created_at),
            {
                "operation": "invoke_agent", "agent": session.agent, "agent_version": str(session.agent_version),
                "tokens_in": story.tokens_in, "tokens_out": story.tokens_out, "cost": story.cost_micros / 1_000_000,
                "closing": session.state,
            },
            session.failure,
        )
    ]  # fmt: skip
    for act in story.acts:
        spans.append(made.attempt(act, root))
        own = span_id(session.session_id, act.row.step_id, act.row.fence, 0)
        for event in act.events:
            kind = SpanKind.CLIENT if event.kind == "model" else SpanKind.INTERNAL
            # Nobody worked meanwhile, and it may have begun before the attempt did.
            spans.append(made.event(event, root if event.kind in WAITS else own, kind))
    return spans


class _Maker:
    """Makes spans of one session."""

    def __init__(self, story: Story, *, content: bool, resource: Any) -> None:
        from opentelemetry.sdk.resources import Resource

        self._session = story.session
        self._trace_id = story.trace_id.int
        self._content = content
        self._resource = resource or Resource.create({"service.name": "agentq"})

    def attempt(self, act: Act, parent: int) -> Any:
        row = act.row
        facts: dict[str, Any] = {
            "step": row.name, "step_id": str(row.step_id), "seq": row.seq, "attempt": row.attempt,
            "closing": row.closing, "worker": str(row.worker) if row.worker else None,
            "tokens_in": row.tokens_in or None, "tokens_out": row.tokens_out or None,
            "cost": row.cost_micros / 1_000_000 if row.cost_micros else None,
        }  # fmt: skip
        if act.decisions:
            last = act.decisions[-1]
            facts |= {"confidence": last.confidence, "approver": last.approver}
            if self._content:
                facts |= {"picked": last.picked, "why": last.why}
        own = span_id(self._session.session_id, row.step_id, row.fence, 0)
        return self.span(f"step {row.name}", (own, parent), (row.started_at, row.ended_at), facts, row.failure)

    def event(self, row: TraceRow, parent: int, kind: Any) -> Any:
        detail = row.detail or {}
        facts: dict[str, Any] = {"key": detail.get("effect_key"), "attempt": row.attempt, "step": row.name}
        names = ("input", "output")
        match row.kind:
            case "model":
                model = str(detail.get("model") or row.name)
                name = f"chat {model}"
                facts |= {"operation": "chat", "model": model, "provider": detail.get("provider")}
                facts |= {"cached_tokens": detail.get("cached_tokens"), "tokens_in": row.tokens_in}
                facts |= {"reasoning_tokens": detail.get("reasoning_tokens"), "tokens_out": row.tokens_out}
                facts["cost"] = row.cost_micros / 1_000_000 if row.cost_micros else None
                facts |= {name: detail.get(name) for name in ("cache_write_tokens", "max_tokens", "price_version")}
                facts["finish"] = [str(detail["finish"])] if detail.get("finish") else None
                facts["repair"] = True if row.mends else None
            case "tool":
                name = f"execute_tool {row.name}"
                names = ("arguments", "result")
                facts |= {"operation": "execute_tool", "tool": row.name, "tool_type": "function"}
                facts["outcome"] = detail.get("outcome")
            case "wait" | "approval":
                name = f"{row.kind} {row.name}"
                facts["outcome"] = detail.get("outcome")
            case _:
                name = f"{row.kind} {row.name}"
        if self._content:
            for fact, data in zip(names, (row.input, row.output), strict=True):
                if data is not None:
                    facts[fact] = _text(data)
        own = span_id(self._session.session_id, row.step_id, row.fence, row.ordinal)
        return self.span(name, (own, parent), (row.started_at, row.ended_at), facts, row.failure, kind=kind)

    def span(
        self,
        name: str,
        ids: tuple[int, int | None],
        times: tuple[datetime, datetime],
        facts: dict[str, Any],
        failure: dict[str, Any] | None,
        *,
        kind: Any = None,
    ) -> Any:
        """One span: its id and its parent's, from when to when; facts that are None are left out."""
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

        own, parent = ids

        def context(number: int) -> Any:
            return SpanContext(self._trace_id, number, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))

        facts = {"tenant": self._session.tenant, "conversation": str(self._session.session_id)} | facts
        status = Status(StatusCode.OK)
        if failure is not None:
            facts |= {"error": failure.get("type"), "failure": failure.get("kind")}
            # The message may quote what a user typed.
            status = Status(StatusCode.ERROR, str(failure.get("message", "")) if self._content else None)
        return ReadableSpan(
            name=name,
            context=context(own),
            parent=context(parent) if parent is not None else None,
            resource=self._resource,
            attributes={NAMES[key]: value for key, value in facts.items() if value is not None},
            kind=kind if kind is not None else SpanKind.INTERNAL,
            status=status,
            start_time=_nanoseconds(times[0]),
            end_time=_nanoseconds(times[1]),
            instrumentation_scope=InstrumentationScope("agentq"),
        )


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000) * 1000


def _text(data: bytes) -> str:
    value = readable(data)
    return value if isinstance(value, str) else data.decode("utf-8", "replace")


class Exporter:
    """Sends ended sessions; one process of the fleet at a time, and each session at least once."""

    def __init__(self, store: Store, settings: Settings, redact: Callable[..., Any], send: Any = None) -> None:
        self._traces, self._sessions = Traces(store), Sessions(store)
        self._settings = settings
        self._redact = redact
        self._send = send or _otlp(settings.otlp_endpoint)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agentq-otel", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def round(self, late_s: float = _EVERY_S) -> int | None:
        """Send what ended since the last round; None when another process does."""
        return self._traces.export("otlp", self._deliver, limit=_BATCH, late_s=late_s)

    def _deliver(self, ended: Iterable[Ended]) -> None:
        spans: list[Any] = []
        for one in ended:
            story = tell(self._sessions, self._traces, one.tenant, one.session_id, self._redact)
            spans += spans_of(story, content=(one.content or self._settings.trace_content) == "exported")
        result = self._send.export(spans)
        if result.name != "SUCCESS":
            raise _NotTaken

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                while self.round() == _BATCH and not self._ending.is_set():
                    pass
            except _NotTaken:
                log.warning("the OTLP endpoint did not take the spans; they are sent again")
            except StoreUnavailable as error:
                log.debug("no spans while Postgres is away: %s", error)
            except Exception:
                log.exception("spans could not be exported; the next round tries again")
            self._ending.wait(_EVERY_S * (0.75 + random.random() / 2))


class _NotTaken(Exception):
    """The other side did not take the spans."""


def _otlp(endpoint: str) -> Any:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise ConfigError(
            "otlp_endpoint is set, and agentq[otel] is not installed: pip install 'agentq[otel]'"
        ) from None
    return OTLPSpanExporter(endpoint=endpoint, timeout=10)


__all__ = ["NAMES", "Exporter", "span_id", "spans_of"]
