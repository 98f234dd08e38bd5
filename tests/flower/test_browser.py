"""The tabs and the trace's page in a real browser: drawn, without errors, at a desk and on a phone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from agentq.agents.registry import Registry
from agentq.client import Client
from agentq.policies.redaction import Redactor
from agentq.seeing.page import page
from agentq.seeing.story import tell
from agentq.settings import Settings
from agentq.store.traces import Traces
from agentq.testing import LocalFleet
from tests.flower.test_tabs import start_flower
from tests.support import lively
from tests.support.fleet import ROOT

LONG = os.environ.get("AGENTQ_TEST_LONG") == "1"
SCREENS = ROOT / "artifacts" / "screens"


@dataclass
class Browser:
    """Headless Chromium, one page at a time."""

    program: str
    folder: Path

    def draw(self, address: str, name: str, *, width: int = 1280, height: int = 900) -> bytes:
        """A screenshot."""
        SCREENS.mkdir(parents=True, exist_ok=True)
        target = SCREENS / f"{name}.png"
        self._run(address, f"--screenshot={target}", f"--window-size={width},{height}")
        return target.read_bytes()

    def read(self, address: str) -> str:
        """The document after its scripts ran."""
        return self._run(address, "--dump-dom", "--virtual-time-budget=3000")

    def _run(self, address: str, *more: str) -> str:
        ran = subprocess.run(
            [self.program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             "--enable-logging=stderr", f"--user-data-dir={self.folder}", *more, address],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        errors = [line for line in ran.stderr.splitlines() if "CONSOLE" in line and "favicon" not in line]
        assert not errors, errors
        return ran.stdout


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    return Browser(program, tmp_path_factory.mktemp("chromium"))


@pytest.fixture(scope="module")
def fleet(settings: Settings, admin: psycopg.Connection[Any]) -> Iterator[list[Any]]:
    """Three tenants and their sessions: 30, or 120 for pictures."""
    registry = Registry()
    tenants = tuple(f"{name}-{uuid.uuid4().hex[:4]}" if not LONG else name for name in ("acme", "kettle-co", "lumen"))
    lively.define(registry, tenants)
    for tenant in tenants:
        admin.execute("insert into agentq.tenant (name, concurrency) values (%s, 40) on conflict do nothing", (tenant,))
    with Client(settings, registry) as client, LocalFleet(client) as local:
        yield lively.play(client, local, tenants, 120 if LONG else 30)


@pytest.fixture(scope="module")
def flower(settings: Settings, tmp_path_factory: pytest.TempPathFactory, fleet: list[Any]) -> Iterator[str]:
    process, address = start_flower(settings, tmp_path_factory.mktemp("flower"), FLOWER_BASIC_AUTH="jane:pass-1")
    yield address.replace("http://", "http://jane:pass-1@")
    process.terminate()
    process.wait(10)


def path_of(session: Any) -> str:
    return f"/session/{session.tenant}/{session.id}"


def longest(fleet: list[Any]) -> Any:
    """A failed session with many steps: what one wants to see."""
    failed = [session for session in fleet if session.view().state == "failed"] or fleet
    return max(failed, key=lambda session: len(session.steps()))


TABS = {"sessions": "/sessions", "dead-letters": "/dead-letters", "approvals": "/approvals", "tenants": "/tenants",
        "cost": "/cost", "health": "/health"}  # fmt: skip


def test_each_tab_is_drawn_without_an_error(browser: Browser, flower: str, fleet: list[Any]) -> None:
    """
    At a desk; no error of a script or of the page's policy.
    """
    for name, path in (TABS | {"session": path_of(longest(fleet))}).items():
        picture = browser.draw(flower + path, name, height=1300 if name == "session" else 900)
        assert picture[:8] == b"\x89PNG\r\n\x1a\n"
        assert len(picture) > 15_000, f"{name} is nearly empty"


def test_the_pages_fit_a_phone(browser: Browser, flower: str, fleet: list[Any]) -> None:
    """
    Nothing but tables and the picture scrolls sideways.
    """
    for name, path in {"sessions-phone": "/sessions", "session-phone": path_of(longest(fleet))}.items():
        assert len(browser.draw(flower + path, name, width=500, height=900)) > 10_000


def test_a_session_can_be_read_by_what_reads_pages_aloud(browser: Browser, flower: str, fleet: list[Any]) -> None:
    """
    The picture has a name and titles, fields have labels, the tab says where one is.
    """
    text = browser.read(flower + path_of(longest(fleet)))
    assert re.search(r'<svg[^>]*role="img"[^>]*aria-label="Timeline', text)
    assert 'aria-current="page"' in text
    for field in re.findall(r"<(?:input|select|textarea)\b[^>]*>", text):
        assert "aria-label" in field or 'type="hidden"' in field, field


def test_the_traces_own_page_is_drawn(
    browser: Browser, fleet: list[Any], client: Client, tmp_path: Path, store: Any
) -> None:
    """
    From a file, without a server: its policy forbids everything else, and nothing of it is needed.
    """
    session = longest(fleet)
    story = tell(client.sessions, Traces(store), session.tenant, uuid.UUID(session.id), Redactor().value)
    (tmp_path / "run.html").write_text(page(story), "utf-8")
    assert len(browser.draw((tmp_path / "run.html").as_uri(), "trace", width=1100, height=1300)) > 15_000
    assert "<svg" in browser.read((tmp_path / "run.html").as_uri())


def test_a_list_is_kept_as_it_is_now(
    browser: Browser, flower: str, fleet: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The script that keeps it so runs, and leaves the rows in place.
    """
    text = browser.read(f"{flower}/sessions")
    assert text.count('href="/session/') >= min(len(fleet), 30)
