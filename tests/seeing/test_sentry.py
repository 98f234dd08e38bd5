"""Sentry: what arrives at an ingest endpoint, and what must not."""

from __future__ import annotations

import gzip
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from agentq import Agent, Context, Done, ModelAgent, Permanent, effect, tool
from agentq.agents.dependencies import Dependencies, rules_of
from agentq.agents.registry import Registry
from agentq.client import Client
from agentq.errors import Park
from agentq.policies.failures import classify
from agentq.relay.anomalies import Anomaly
from agentq.runtime import Runtime
from agentq.seeing.metrics import ProcessMetrics
from agentq.seeing.sentry import Reporting, Reports, only_allowed
from agentq.settings import Settings
from agentq.step import StepRef
from agentq.store.ledger import TakenBack
from agentq.store.pool import Store
from agentq.testing import LocalFleet
from agentq.verdicts import Failure
from tests.support.bad_run import SECRET, Ticket, define

Local = Callable[..., LocalFleet]


class Ingest:
    """Stores the envelopes that it is sent."""

    def __init__(self) -> None:
        self.envelopes: list[str] = []
        ingest = self

        class Door(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                ingest.envelopes.append(body.decode())
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
        self.dsn = f"http://key@127.0.0.1:{self._server.server_port}/1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def events(self) -> list[dict[str, Any]]:
        found = []
        for envelope in self.envelopes:
            for line in envelope.splitlines():
                value = json.loads(line)
                if "fingerprint" in value:
                    found.append(value)
        return found

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def ingest() -> Iterator[Ingest]:
    served = Ingest()
    yield served
    served.stop()


@pytest.fixture
def reports(settings: Settings, ingest: Ingest) -> Reports:
    return Reports(settings.model_copy(update={"sentry_dsn": ingest.dsn}), "test")


def test_a_death_is_one_issue_with_tags_and_without_a_word_of_the_user(
    registry: Registry, client: Client, tenant: str, local: Local, ingest: Ingest, reports: Reports
) -> None:
    """
    Silent on the retries before; the same cause again is the same issue; no prompt, no secret, no message.
    """
    define(registry)
    fleet = local()
    fleet.engine.watch = Reporting(ProcessMetrics(), reports)
    ids = []
    for _ in range(2):
        session = client.start("desk", tenant=tenant, input={"text": "my prompt text"})
        ids.append(session.id)
        with pytest.raises(Exception, match="takes no coupon"):
            fleet.drain(session)
    reports.close()

    first, second = ingest.events()
    assert first["fingerprint"] == second["fingerprint"]
    assert [event["tags"]["session"] for event in (first, second)] == ids
    assert (first["tags"]["tenant"], first["tags"]["agent"], first["tags"]["step"]) == (tenant, "desk", "act")
    assert (first["tags"]["class"], first["level"]) == ("permanent", "error")
    assert first["tags"]["cause"] in first["message"]
    text = "".join(ingest.envelopes)
    for hidden in ("my prompt text", SECRET, "takes no coupon", "jane@example.com", "4111", "What now?", "stacktrace"):
        assert hidden not in text, hidden


@pytest.mark.parametrize("where", ["step", "effect", "tool", "model", "state"])
def test_no_exception_carries_the_prompt_out(
    registry: Registry, client: Client, tenant: str, local: Local, ingest: Ingest, reports: Reports, where: str
) -> None:
    """
    Wherever it is raised, and whatever it quotes: in its message, its cause, its arguments, its locals.
    """
    prompt = f"my prompt text {SECRET} jane@example.com"

    class Quoting(Permanent):
        """Says what it was given."""

    def quote(text: str) -> Exception:
        quoted = f"could not answer {text!r}"
        error = Quoting(quoted)
        error.__cause__ = ValueError(quoted)
        error.add_note(quoted)
        return error

    @effect(idempotent=True)
    def post(text: str) -> str:
        raise quote(text)

    if where in ("tool", "model"):

        @tool(idempotent=True)
        def send(text: str) -> str:
            """Send it."""
            raise quote(text)

        def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
            if where == "model":
                raise quote(prompt)
            return ModelResponse([ToolCallPart("send", {"text": prompt})])

        ModelAgent("quoter", model=FunctionModel(answer), tools=[send], registry=registry)
        given: dict[str, Any] = {"prompt": prompt}
    else:
        agent = Agent("quoter", state=Ticket, registry=registry)

        @agent.step(start=True, retries=0)
        def go(state: Ticket, ctx: Context) -> Done:
            held = state.text  # a local variable with the prompt in it
            if where == "effect":
                ctx.call(post, held)
            if where == "state":
                Ticket.model_validate({"loops": held})
            raise quote(held)

        given = {"text": prompt}
    fleet = local()
    fleet.engine.watch = Reporting(ProcessMetrics(), reports)
    session = client.start("quoter", tenant=tenant, input=given)
    with pytest.raises(Exception):  # noqa: B017 - whatever it says
        fleet.drain(session)
    reports.close()
    [event] = ingest.events()
    assert event["tags"]["session"] == session.id
    text = "".join(ingest.envelopes)
    for hidden in ("my prompt text", SECRET, "jane@example.com", "could not answer", "stacktrace", "vars"):
        assert hidden not in text, hidden


def test_a_fault_of_agentq_itself_is_told_by_its_place(ingest: Ingest, reports: Reports, settings: Settings) -> None:
    """
    What leaves the engine as an exception comes back through the relay; somebody must mend it all the same.
    """

    class Broken:
        def carry(self, ref: StepRef) -> None:
            raise RuntimeError(f"my prompt text {SECRET}")

    runtime = Runtime.__new__(Runtime)
    runtime.engine, runtime.reports, runtime.heart = Broken(), reports, None  # type: ignore[assignment]
    with pytest.raises(RuntimeError):
        runtime.carry(StepRef("acme", uuid.uuid4(), uuid.uuid4()))
    reports.close()
    [event] = ingest.events()
    assert event["fingerprint"] == ["fault", "RuntimeError", "agentq.runtime.carry"]
    assert event["tags"] == {"tenant": "acme", "class": "fault"}
    assert SECRET not in "".join(ingest.envelopes)


def test_a_workers_death_is_told(ingest: Ingest, reports: Reports, tenant: str) -> None:
    reports.lost(TakenBack(tenant, uuid.uuid4(), uuid.uuid4(), "again", None))
    reports.lost(TakenBack(tenant, uuid.uuid4(), uuid.uuid4(), "buried", None))
    reports.close()
    assert [(event["level"], event["fingerprint"]) for event in ingest.events()] == [
        ("warning", ["worker lost", "again"]), ("error", ["worker lost", "buried"]),
    ]  # fmt: skip


def test_breakers_and_anomalies_are_told_with_numbers_and_no_words(
    registry: Registry, client: Client, tenant: str, local: Local, ingest: Ingest, reports: Reports
) -> None:
    """
    A session that parked itself, a dependency that is out of order, a session that is not as usual: an issue each.
    """
    agent = Agent("circles", state=Ticket, registry=registry)

    @agent.step(start=True)
    def go(state: Ticket, ctx: Context) -> Done:
        raise Park("breaker", f"stale: my prompt text {SECRET}", {"rule": "stale", "calls": ["my prompt text"]})

    fleet = local()
    fleet.engine.watch = Reporting(ProcessMetrics(), reports)
    session = client.start("circles", tenant=tenant, input={})
    fleet.carry_next(tenant)
    assert session.view().state == "paused"
    reports.opened(("*", "stripe"))
    reports.anomaly(
        Anomaly(tenant, "desk", 1, uuid.UUID(session.id), f"tool:{SECRET}", "new_tool", 1.0, 0.0, 0.0, True, False)
    )
    reports.close()
    told = {event["tags"]["class"] + event["tags"].get("dependency", ""): event for event in ingest.events()}
    assert set(told) == {"breaker", "breakerstripe", "anomaly"}
    assert told["breaker"]["tags"]["session"] == told["anomaly"]["tags"]["session"] == session.id
    assert told["breaker"]["fingerprint"] == ["session breaker", "circles", "stale"]
    assert told["anomaly"]["fingerprint"] == ["anomaly", "desk", "tool"]
    text = "".join(ingest.envelopes)
    assert "my prompt text" not in text
    assert SECRET not in text


def test_a_breaker_that_opens_is_told_once(store: Store, settings: Settings, tenant: str) -> None:
    """
    When it opens, and not again while it stays open.
    """
    rules = rules_of(settings.model_copy(update={"dependency_volume_min": 2}))
    told: list[tuple[str, str]] = []
    with closing(Dependencies(store, rules, report_s=0, classify=classify)) as dependencies:
        dependencies.opened = told.append
        for _ in range(6):
            dependencies.report(f"dep-{tenant}", False, Failure("transient", "ConnectError", "refused"))
    ours = [scope for scope in told if scope[1].endswith(tenant)]  # others that are open are told once too
    assert ours == [("*", f"dep-{tenant}")]


def test_a_relay_checks_in(ingest: Ingest, reports: Reports) -> None:
    """
    With the monitor's own configuration and nothing else; silence is what Sentry reports.
    """
    reports.relay_turns()
    reports.close()
    [found] = [json.loads(line) for body in ingest.envelopes for line in body.splitlines() if "monitor_slug" in line]
    assert (found["monitor_slug"], found["status"]) == ("agentq-relay", "ok")
    assert found["monitor_config"]["schedule"] == {"type": "interval", "value": 1, "unit": "minute"}
    assert set(found) <= {
        "event_id",
        "timestamp",
        "type",
        "check_in_id",
        "monitor_slug",
        "status",
        "monitor_config",
        "release",
        "environment",
    }


def test_nothing_that_is_not_named_goes_out() -> None:
    """
    Whatever a later release of the SDK adds by itself.
    """
    event = {"message": "m", "tags": {}, "exception": {"values": []}, "extra": {"argv": "x"}, "user": {}, "modules": {}}
    assert only_allowed(event, {}) == {"message": "m", "tags": {}}


def test_a_sentry_that_is_away_holds_up_nothing(settings: Settings, tenant: str) -> None:
    away = Reports(settings.model_copy(update={"sentry_dsn": "http://key@127.0.0.1:9/1"}), "test")
    began = time.monotonic()
    away.lost(TakenBack(tenant, uuid.uuid4(), uuid.uuid4(), "again", None))
    assert time.monotonic() - began < 1.0
    away.close()
    assert time.monotonic() - began < 10.0
