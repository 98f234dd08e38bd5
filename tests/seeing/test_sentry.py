"""Sentry: what arrives at an ingest endpoint, and what must not."""

from __future__ import annotations

import gzip
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from agentq.agents.registry import Registry
from agentq.client import Client
from agentq.seeing.metrics import ProcessMetrics
from agentq.seeing.sentry import Reporting, Reports, only_allowed
from agentq.settings import Settings
from agentq.store.ledger import TakenBack
from agentq.testing import LocalFleet
from tests.support.bad_run import SECRET, define

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


def test_a_workers_death_is_told(ingest: Ingest, reports: Reports, tenant: str) -> None:
    reports.lost(TakenBack(tenant, uuid.uuid4(), uuid.uuid4(), "again", None))
    reports.lost(TakenBack(tenant, uuid.uuid4(), uuid.uuid4(), "buried", None))
    reports.close()
    assert [(event["level"], event["fingerprint"]) for event in ingest.events()] == [
        ("warning", ["worker lost", "again"]), ("error", ["worker lost", "buried"]),
    ]  # fmt: skip


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
