"""
The pictures of docs/: three tenants and their sessions over a week, and each tab of Flower, in a real browser.

`python -m tests.support.screens` plays it on servers of its own and makes docs/flower-*.png anew; that needs
Chromium. `--stay` leaves Flower up until Ctrl-C, to be walked through.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agentq.agents.registry import Registry
from agentq.client import Client, Selection
from agentq.embedded import Stack
from agentq.policies.redaction import Redactor
from agentq.seeing.page import page
from agentq.seeing.story import tell
from agentq.settings import Settings
from agentq.store.migrate import upgrade
from agentq.store.traces import Traces
from agentq.store.workers import Workers
from agentq.testing import LocalFleet
from tests.support import lively
from tests.support.chromium import DESK, PHONE, Chromium

ROOT = Path(__file__).resolve().parents[2]
TENANTS = ("acme", "kettle-co", "lumen")
SESSIONS, DAYS = 500, 6
LOGIN = "jane:on-the-stage-1"
BYTES_MAX = 250_000


def paths(client: Client, sessions: list[Any]) -> dict[str, str]:
    """Each page by the name of its picture."""
    letters = client.dead_letters.ls(Selection(), limit=1000)
    dead = {letter.session_id for letter in letters if not letter.generation}
    failed = [session for session in sessions if session._uuid in dead] or sessions
    session = max(failed, key=lambda one: len(one.steps()))
    found = {
        "sessions": "/sessions",
        "session": f"/session/{session.tenant}/{session.id}",
        "dead-letters": "/dead-letters",
        "approvals": "/approvals",
        "tenants": "/tenants",
        "cost": "/cost",
        "anomalies": "/anomalies?state=all",
        "health": "/health",
    }
    for letter in client.dead_letters.ls(Selection(), limit=1):
        found["letter"] = f"/letter/{letter.tenant}/{letter.letter_id}"
        found["cause"] = f"/dead-letters?cause={letter.cause[:12]}"
    for one in client.anomalies.ls(limit=1):
        found["anomaly"] = f"/anomaly/{one.tenant}/{one.anomaly_id}"
    return found


def shoot(browser: Chromium, base: str, pages: dict[str, str], target: Path) -> None:
    """A picture of each page; the redrive's form is open in the one of a cause."""
    browser.resize(*DESK)
    for name, path in pages.items():
        browser.open(base + path)
        if name == "cause":
            browser.run("document.querySelector('.aq-act').open = true")
        picture = browser.picture(target / f"flower-{name}.png")
        print(f"{target / f'flower-{name}.png'}: {len(picture):,} bytes{' TOO LARGE' * (len(picture) > BYTES_MAX)}")
    assert not browser.errors, browser.errors


def shoot_phone(browser: Chromium, base: str, pages: dict[str, str], target: Path) -> None:
    """The same on a phone."""
    browser.resize(*PHONE, phone=True)
    for name, path in pages.items():
        browser.open(base + path)
        browser.picture(target / f"phone-{name}.png", height_max=PHONE[1])


@contextmanager
def stage(folder: Path, sessions: int) -> Iterator[tuple[Client, str, list[Any]]]:
    """Servers, a worker, a week of work, Flower; its address."""
    with Stack(folder / "data") as stack:
        addresses = stack.addresses
        upgrade(addresses["admin_database_url"], fleet_role="agentq_fleet")
        settings = Settings(database_url=addresses["database_url"], broker_url=addresses["broker_url"])
        registry = Registry()
        lively.define(registry, TENANTS)
        environment = os.environ | stack.environment | {"PYTHONPATH": str(ROOT)}
        with Client(settings, registry) as client:
            for tenant in TENANTS:
                client.tenants.add(tenant, concurrency=40, reason="staged")
            began = time.monotonic()
            with LocalFleet(client) as fleet:
                played = lively.play(client, fleet, TENANTS, sessions, days=DAYS)
                lively.furnish(client, fleet, played)
                print(f"{len(played)} sessions in {time.monotonic() - began:.0f} s", flush=True)
                more = {"AGENTQ_FLOWER_BASIC_AUTH": LOGIN, "AGENTQ_FLOWER_PORT": "0", "AGENTQ_AGENTS": "tasks"}
                environment |= more
                with _program("flower", environment, folder) as log, _program("worker", environment, folder):
                    _wait_for_worker(client)
                    yield client, _address(log), played


@contextmanager
def _program(name: str, environment: dict[str, str], folder: Path) -> Iterator[Path]:
    log = folder / f"{name}.log"
    process = subprocess.Popen(
        [sys.executable, "-m", "agentq", name],
        cwd=folder, env=environment, stdout=log.open("wb"), stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield log
    finally:
        process.terminate()
        process.wait(60)


def _wait_for_worker(client: Client) -> None:
    until = time.monotonic() + 60
    while len(Workers(client.sessions.store).present()) < 2:  # one is this process's own fleet
        if time.monotonic() > until:
            raise SystemExit("no worker came up")
        time.sleep(0.2)


def _address(log: Path) -> str:
    until = time.monotonic() + 60
    while not (found := re.search(r"Visit me at (http://[\d.]+:\d+)", log.read_text("utf-8", "replace"))):
        if time.monotonic() > until:
            raise SystemExit(log.read_text("utf-8", "replace"))
        time.sleep(0.1)
    return found[1]


def write_trace(client: Client, session: Any, target: Path) -> Path:
    """The trace's own page, as `agentq session trace --html` writes it."""
    story = tell(client.sessions, Traces(client.sessions.store), session.tenant, session._uuid, Redactor().value)
    target.write_text(page(story), "utf-8")
    return target


def main() -> None:
    """Play and draw."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.screens")
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    parser.add_argument("--target", type=Path, default=ROOT / "docs")
    parser.add_argument("--phone", type=Path, help="pictures as on a phone, into this folder")
    parser.add_argument("--stay", action="store_true", help="leave Flower up until Ctrl-C")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, stage(Path(name), asked.sessions) as (client, base, played):
        pages = paths(client, played)
        with Chromium(LOGIN) as browser:
            shoot(browser, base, pages, asked.target)
            session = next(one for one in played if one.id == pages["session"].rpartition("/")[2])
            trace = write_trace(client, session, Path(name) / "run.html")
            browser.open(trace.as_uri())
            browser.picture(asked.target / "flower-trace.png")
            if asked.phone:
                shoot_phone(browser, base, pages, asked.phone)
        if asked.stay:
            print(f"{base}, {LOGIN}\n{pages}", flush=True)
            sys.stdin.read()


if __name__ == "__main__":
    main()
