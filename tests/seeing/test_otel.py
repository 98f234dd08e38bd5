"""OpenTelemetry: the spans of a session as a real receiver gets them."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psycopg
import pytest

from agentq import Agent, AsyncContext, Context, Done, Sleep, Transient
from agentq.agents.registry import Registry
from agentq.client import Client
from agentq.errors import ConfigError, InvalidInput
from agentq.policies.redaction import Redactor
from agentq.seeing.otel import NAMES, Exporter, span_id
from agentq.settings import Settings
from agentq.store.pool import Store
from agentq.testing import LocalFleet
from tests.support.bad_run import SECRET, Ticket, define

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="agentq[otel] is not installed")

Local = Callable[..., LocalFleet]


class Receiver:
    """An OTLP receiver over HTTP: keeps what it is sent, or refuses."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.refusing = False
        receiver = self

        class Door(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    import gzip

                    body = gzip.decompress(body)
                if not receiver.refusing:
                    request = ExportTraceServiceRequest.FromString(body)
                    for of in request.resource_spans:
                        for scope in of.scope_spans:
                            receiver.spans += scope.spans
                self.send_response(400 if receiver.refusing else 200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def of(self, session: str) -> list[Any]:
        """The spans of one session."""
        return [span for span in self.spans if facts(span)[NAMES["conversation"]] == session]


def facts(span: Any) -> dict[str, Any]:
    found = {}
    for pair in span.attributes:
        kind = pair.value.WhichOneof("value")
        found[pair.key] = getattr(pair.value, kind)
    return found


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    served = Receiver()
    yield served
    served.stop()


def exporter(store: Store, settings: Settings, receiver: Receiver) -> Exporter:
    return Exporter(store, settings.model_copy(update={"otlp_endpoint": receiver.url}), Redactor().value)


def drain(made: Exporter) -> None:
    while made.round(late_s=0.0):
        pass


@pytest.fixture
def bad(
    registry: Registry, client: Client, tenant: str, local: Local, store: Store, settings: Settings, receiver: Receiver
) -> Any:
    """A session that went wrong and has ended, after the export began."""
    exporter(store, settings, receiver).round(late_s=0.0)
    define(registry)
    session = client.start("desk", tenant=tenant, input={"text": "hello"})
    with pytest.raises(Exception, match="takes no coupon"):
        local().drain(session)
    return session


def test_a_session_arrives_as_one_tree_of_genai_spans(
    bad: Any, store: Store, settings: Settings, receiver: Receiver
) -> None:
    """
    Root, attempts under it, requests and calls under those; names as the receivers read them; no content.
    """
    drain(exporter(store, settings, receiver))
    spans = receiver.of(bad.id)
    root = next(span for span in spans if span.name == "invoke_agent desk")
    assert root.trace_id.hex() == uuid.UUID(bad.id).hex
    assert int.from_bytes(root.span_id, "big") == span_id(bad.id)
    assert not root.parent_span_id
    assert root.status.code == 2
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == len(spans)
    chats = [span for span in spans if span.name == "chat gpt-5"]
    assert len(chats) == 5
    for chat in chats:
        step = by_id[chat.parent_span_id]
        assert step.name.startswith("step ")
        assert by_id[step.parent_span_id] is root
        assert step.start_time_unix_nano <= chat.start_time_unix_nano <= chat.end_time_unix_nano
        told = facts(chat)
        assert (told[NAMES["operation"]], told[NAMES["provider"]], told[NAMES["model"]]) == ("chat", "openai", "gpt-5")
        assert told[NAMES["cached_tokens"]] == 64
    assert sum(facts(chat)[NAMES["tokens_in"]] for chat in chats) == facts(root)[NAMES["tokens_in"]] == 1300
    assert {"execute_tool look_up", "execute_tool send_coupon"} <= {span.name for span in spans}
    text = str(spans)
    for hidden in ("What now?", SECRET, "takes no coupon", "hello", "the customer wants"):
        assert hidden not in text


def test_children_hang_under_their_parent(bad: Any, store: Store, settings: Settings, receiver: Receiver) -> None:
    """
    One trace through the family, though no process knew both ends.
    """
    drain(exporter(store, settings, receiver))
    child = next(span for span in receiver.spans if span.name == "invoke_agent part"
                 and span.trace_id.hex() == uuid.UUID(bad.id).hex)  # fmt: skip
    assert int.from_bytes(child.parent_span_id, "big") == span_id(bad.id)


def test_a_producers_span_is_the_parent(
    registry: Registry, client: Client, tenant: str, local: Local, store: Store, settings: Settings, receiver: Receiver
) -> None:
    """
    From the current context, and from a header's text; children and the session itself keep the producer's trace.
    """
    from opentelemetry import trace

    define(registry)
    given = trace.SpanContext(0xABC123, 0xFEDCBA9876543210, is_remote=False, trace_flags=trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(given)):
        session = client.start("desk", tenant=tenant, input={"text": "hello"})
    told = client.start("desk", tenant=tenant, input={}, traceparent=f"00-{7:032x}-{9:016x}-01")
    fleet = local()
    for one in (session, told):
        with pytest.raises(Exception, match="takes no coupon"):
            fleet.drain(one)
    drain(exporter(store, settings, receiver))
    for one, trace_id, parent in ((session, 0xABC123, 0xFEDCBA9876543210), (told, 7, 9)):
        spans = receiver.of(one.id)
        root = next(span for span in spans if span.name == "invoke_agent desk")
        assert int.from_bytes(root.parent_span_id, "big") == parent
        assert {int.from_bytes(span.trace_id, "big") for span in spans} == {trace_id}
        children = [span for span in receiver.spans if span.name == "invoke_agent part"]
        mine = [span for span in children if int.from_bytes(span.parent_span_id, "big") == span_id(one.id)]
        assert [int.from_bytes(span.trace_id, "big") for span in mine] == [trace_id] * len(mine) != []
    with pytest.raises(InvalidInput, match="traceparent"):
        client.start("desk", tenant=tenant, input={}, traceparent="00-0-0-01")


def test_content_goes_out_only_where_it_may(
    bad: Any, tenant: str, admin: psycopg.Connection[Any], store: Store, settings: Settings, receiver: Receiver
) -> None:
    """
    By tenant; redacted all the same.
    """
    admin.execute("update agentq.tenant set trace_content = 'exported' where name = %s", (tenant,))
    drain(exporter(store, settings, receiver))
    text = str(receiver.of(bad.id))
    assert "What now?" in text
    assert SECRET not in text
    assert "jane@example.com" not in text


def test_what_was_not_taken_is_sent_again_and_what_was_is_not(
    bad: Any, store: Store, settings: Settings, receiver: Receiver
) -> None:
    made = exporter(store, settings, receiver)
    receiver.refusing = True
    with pytest.raises(Exception):  # noqa: B017 - a private one
        drain(made)
    receiver.refusing = False
    drain(made)
    sent = len(receiver.of(bad.id))
    assert sent > 10
    drain(made)
    assert len(receiver.of(bad.id)) == sent


def test_an_endpoint_without_the_extra_is_refused_in_words(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"agentq\[otel\]"):
        Exporter(store, settings.model_copy(update={"otlp_endpoint": "http://127.0.0.1:1"}), Redactor().value)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_step_hands_its_place_in_the_trace_on(
    registry: Registry,
    client: Client,
    tenant: str,
    local: Local,
    store: Store,
    settings: Settings,
    receiver: Receiver,
    is_async: bool,
) -> None:
    """
    From the producer through every step to what the step calls: the header names the span that is sent at the end.
    """
    agent = Agent("caller", state=Ticket, registry=registry)
    told: list[str] = []
    exporter(store, settings, receiver).round(late_s=0.0)
    if is_async:

        @agent.step(start=True, retries=1)
        async def call(state: Ticket, ctx: AsyncContext) -> Done:
            told.append(await ctx.traceparent())
            if ctx.attempt == 1:
                raise Transient("again")
            return Done("ok")
    else:

        @agent.step(start=True, retries=1)
        def call(state: Ticket, ctx: Context) -> Done:
            told.append(ctx.traceparent())
            if ctx.attempt == 1:
                raise Transient("again")
            return Done("ok")

    session = client.start("caller", tenant=tenant, input={}, traceparent=f"00-{7:032x}-{9:016x}-01")
    local().drain(session)
    drain(exporter(store, settings, receiver))
    spans = {f"{int.from_bytes(span.span_id, 'big'):016x}": span for span in receiver.of(session.id)}
    assert len(told) == len(set(told)) == 2
    for header in told:
        _, trace_id, own, _ = header.split("-")
        assert trace_id == f"{7:032x}"
        assert spans[own].name == "step call"


def test_a_replay_keeps_the_trace_and_a_wait_hangs_under_the_root(
    registry: Registry, client: Client, tenant: str, local: Local, store: Store, settings: Settings, receiver: Receiver
) -> None:
    """
    One trace id through retries and what people bring back; sent again, a span has the same id, so nobody counts twice.
    """
    agent = Agent("tries", state=Ticket, registry=registry)
    exporter(store, settings, receiver).round(late_s=0.0)
    broken = [True]

    @agent.step(start=True)
    def rest(state: Ticket) -> Sleep:
        return Sleep(0.05, then=call)

    @agent.step(retries=1)
    def call(state: Ticket) -> Done:
        if broken[0]:
            raise Transient("not yet")
        return Done("ok")

    session = client.start("tries", tenant=tenant, input={})
    fleet = local()
    with pytest.raises(Exception, match="not yet"):
        fleet.drain(session)
    drain(exporter(store, settings, receiver))
    before = receiver.of(session.id)
    root = next(span for span in before if span.name == "invoke_agent tries")
    waits = [span for span in before if span.name == "wait call"]
    assert [span.parent_span_id for span in waits] == [root.span_id]
    assert facts(waits[0])[NAMES["outcome"]] == "timer"
    broken[0] = False
    session.replay("it is back")
    fleet.drain(session)
    drain(exporter(store, settings, receiver))
    after = receiver.of(session.id)[len(before) :]
    assert {span.trace_id for span in (*before, *after)} == {uuid.UUID(session.id).bytes}
    assert {span.span_id for span in before} < {span.span_id for span in after}
    assert [facts(span)[NAMES["closing"]] for span in after if span.name == "step call"] == ["retry", "dead", "end"]
