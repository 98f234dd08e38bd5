"""The tabs and the trace's page in a real browser: drawn without errors, at a desk, on a phone, by keyboard alone."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
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
from tests.support import lively, screens
from tests.support.chromium import DESK, PHONE, Chromium, program
from tests.support.fleet import ROOT
from tests.support.until import until

LONG = os.environ.get("AGENTQ_TEST_LONG") == "1"
SCREENS = ROOT / "artifacts" / "screens"
LOGIN = "jane:pass-1"
NAMES = ("sessions", "session", "dead-letters", "cause", "letter", "approvals", "tenants", "cost", "anomalies",
         "anomaly", "health")  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    if program() is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with Chromium(LOGIN) as found:
        yield found


@pytest.fixture(scope="module")
def pages(settings: Settings, admin: psycopg.Connection[Any]) -> Iterator[tuple[dict[str, str], list[Any]]]:
    """Three tenants, their sessions (40, or 500), and where each page is."""
    registry = Registry()
    tenants = tuple(f"{name}-{uuid.uuid4().hex[:4]}" for name in screens.TENANTS)
    lively.define(registry, tenants)
    for tenant in tenants:
        admin.execute("insert into agentq.tenant (name, concurrency) values (%s, 40) on conflict do nothing", (tenant,))
    with Client(settings, registry) as client, LocalFleet(client) as local:
        played = lively.play(client, local, tenants, 500 if LONG else 40)
        lively.furnish(client, local, played)
        found = screens.paths(client, played)
        assert set(found) == set(NAMES)
        yield found, played


@pytest.fixture(scope="module")
def flower(settings: Settings, tmp_path_factory: pytest.TempPathFactory, pages: Any) -> Iterator[str]:
    process, address = start_flower(settings, tmp_path_factory.mktemp("flower"), FLOWER_BASIC_AUTH=LOGIN)
    yield address
    process.terminate()
    process.wait(10)


@pytest.fixture
def opened(browser: Chromium, flower: str, pages: Any, request: pytest.FixtureRequest) -> Iterator[Chromium]:
    """The page that the test names, on the screen that it names; what its scripts complain of fails the test."""
    name, size = request.param
    browser.errors.clear()
    browser.resize(*size, phone=size == PHONE)
    browser.open(flower + pages[0][name])
    yield browser
    assert not browser.errors, browser.errors


def each(size: tuple[int, int]) -> Any:
    """The test runs for each page, on a screen of that size."""
    return pytest.mark.parametrize("opened", [(name, size) for name in NAMES], ids=NAMES, indirect=True)


UNFOLD = "document.querySelectorAll('main details').forEach(one => { one.open = true })"

# Of everything that can be pressed or filled in, what is too small for a finger: 24 by 24 (WCAG 2.2, AA), fields and
# buttons 40 high. What a picture holds is there a second time, below it; words within a sentence are exempt.
SMALL = """[...document.querySelectorAll('main a, main button, main input, main select, main textarea, main summary')]
  .filter(one => one.checkVisibility() && one.type !== 'hidden' && !one.closest('svg') && !one.closest('label.aq-live'))
  .filter(one => !(one.tagName === 'A' && one.closest('p, li, dd') && getComputedStyle(one).display === 'inline'))
  .map(one => [one, one.getBoundingClientRect()])
  .filter(([one, box]) => box.height < (one.matches('button, .btn, input, select, .aq-act > summary') ? 40 : 24)
                          || box.width < 24)
  .map(([one, box]) => `${one.outerHTML.slice(0, 120)} ${box.width}x${box.height}`)"""


@each(DESK)
def test_a_page_is_drawn_without_an_error(opened: Chromium, request: pytest.FixtureRequest) -> None:
    """
    No error of a script or of the page's policy; it has one heading, and says where one is.
    """
    name = request.node.callspec.id
    assert len(opened.picture(SCREENS / f"{name}.png")) > 15_000, f"{name} is nearly empty"
    assert opened.run("document.querySelectorAll('nav [aria-current=page]').length") == 1
    assert opened.run("document.querySelectorAll('main h1').length") == 1


@each(PHONE)
def test_a_page_fits_a_phone(opened: Chromium, request: pytest.FixtureRequest) -> None:
    """
    At 390 by 844 the page does not scroll sideways, with everything unfolded either; what is pressed is large enough.
    """
    opened.picture(SCREENS / f"{request.node.callspec.id}-phone.png")
    for _ in ("as it comes", "unfolded"):
        wide, window = opened.run("[document.scrollingElement.scrollWidth, innerWidth]")
        assert (window, wide) == (PHONE[0], PHONE[0])
        assert opened.run(SMALL) == []
        opened.run(UNFOLD)


@each(PHONE)
def test_wide_tables_scroll_inside_their_own_frame(opened: Chromium) -> None:
    """
    None is cut off: whatever is wider than its frame can be scrolled there, by keyboard too.
    """
    cut = opened.run(
        """[...document.querySelectorAll('main table, main svg.aq-tl')].filter(one => {
             let frame = one.parentElement;
             while (frame && frame.tagName !== 'MAIN' && getComputedStyle(frame).overflowX === 'visible')
               frame = frame.parentElement;
             return one.checkVisibility() && one.getBoundingClientRect().width > frame.clientWidth + 1
                    && getComputedStyle(frame).overflowX !== 'auto';
           }).map(one => one.outerHTML.slice(0, 200))"""
    )
    assert cut == []


@each(DESK)
def test_a_page_can_be_read_aloud(opened: Chromium) -> None:
    """
    Fields have labels, heads of tables a scope, pictures a role and a name; no id stands twice.
    """
    assert (
        opened.run(
            """[
          ...[...document.querySelectorAll('main input, main select, main textarea')]
            .filter(one => one.type !== 'hidden' && !one.labels.length && !one.getAttribute('aria-label')),
          ...document.querySelectorAll('main th:not([scope])'),
          ...[...document.querySelectorAll('main svg')].filter(one => one.getAttribute('role') !== 'img'
            || !one.getAttribute('aria-label') || !one.querySelector('title')),
          ...document.querySelectorAll('main img:not([alt]), main progress:not([aria-label])'),
          ...[...document.querySelectorAll('main a, main button, main summary')].filter(one => !one.textContent.trim()),
          ...[...document.querySelectorAll('main details')].filter(one => one.firstElementChild.tagName !== 'SUMMARY'),
          ...[...document.querySelectorAll('[id]')].filter(
            one => document.querySelectorAll('#' + CSS.escape(one.id)).length > 1),
        ].map(one => one.outerHTML.slice(0, 200))"""
        )
        == []
    )


# Where the focus is: which of the page's stops, where it stands, and whether one sees it.
FOCUS = """(() => {
  const one = document.activeElement, box = one.getBoundingClientRect(), look = getComputedStyle(one);
  return { stop: window.stops.indexOf(one), inside: one.closest('main') !== null,
           top: box.top + scrollY, bottom: box.bottom + scrollY, left: box.left + scrollX,
           seen: (look.outlineStyle !== 'none' && parseFloat(look.outlineWidth) > 0) || look.boxShadow !== 'none',
           what: one.outerHTML.slice(0, 160) } })()"""
STOPS = """window.stops = [...document.querySelectorAll(
    'main a[href], main button, main input, main select, main textarea, main summary, main [tabindex="0"]')]
  .filter(one => one.checkVisibility() && !one.disabled && one.type !== 'hidden'); window.stops.length"""
STOPS_MAX = 60


@each(DESK)
def test_the_keyboard_reaches_everything_in_the_order_that_one_sees(opened: Chromium) -> None:
    """
    With forms unfolded, Tab goes through every control, never back up the page but into another column, and the focus
    is always visible. Long lists are gone through as far as their first rows.
    """
    opened.run(
        "document.querySelectorAll('main details.aq-act, main details.aq-more').forEach(one => { one.open = true })"
    )
    count = opened.run(STOPS)
    assert count > 0
    opened.run("document.querySelector('main').setAttribute('tabindex', '-1'); document.querySelector('main').focus()")
    before: dict[str, Any] | None = None
    reached = []
    while len(reached) < min(count, STOPS_MAX):
        opened.press("Tab")
        now = opened.run(FOCUS)
        assert now["inside"], f"the focus left the page at {now['what']} after {before}"
        # A date has a stop for each of its parts; what overflows is one by itself, so that its end can be read.
        if now["stop"] < 0 or reached[-1:] == [now["stop"]]:
            continue
        assert now["seen"], f"nobody sees the focus on {now['what']}"
        if before is not None:
            back_up = now["bottom"] <= before["top"] and now["left"] <= before["left"]
            assert not back_up, f"{before['what']} is followed by {now['what']}, above it"
        reached.append(now["stop"])
        before = now
    assert reached == list(range(min(count, STOPS_MAX)))


def test_a_search_is_sent_with_enter(browser: Chromium, flower: str, pages: Any) -> None:
    """
    As is a form that changes something: by keyboard alone a session is found, opened and resumed.
    """
    _, played = pages
    browser.resize(*DESK)
    browser.open(f"{flower}/sessions")
    browser.run("document.querySelector('[name=tenant]').focus()")
    browser.type(played[0].tenant)
    browser.press("Enter")
    browser.wait_for("Page.loadEventFired")
    assert f"tenant={played[0].tenant}" in browser.run("location.search")
    browser.open(f"{flower}/sessions?key=ticket-7778&tenant={played[0].tenant}")
    browser.run("document.querySelector('main tbody a').focus()")
    browser.press("Enter")
    browser.wait_for("Page.loadEventFired")
    assert "/session/" in browser.run("location.pathname")
    browser.run("document.querySelector('.aq-act summary').focus()")
    browser.press("Enter")
    assert browser.run("document.querySelector('.aq-act').open")
    browser.run("document.querySelector('.aq-act[open] [name=reason]').focus()")
    browser.type("the call is over")
    browser.press("Enter")
    browser.wait_for("Page.loadEventFired")
    assert "the session is running" in browser.run("document.querySelector('[role=status]').textContent")


def test_a_redrive_says_what_it_would_do_first(browser: Chromium, flower: str, pages: Any) -> None:
    """
    Enter in its form is a dry run, never the redrive itself; the terms stay as they were typed.
    """
    browser.resize(*DESK)
    browser.open(flower + pages[0]["cause"])
    browser.run("document.querySelector('.aq-act').open = true; document.querySelector('[name=rate]').select()")
    browser.run("document.querySelector('[name=rate]').focus()")
    browser.type("30/min")
    browser.press("Enter")
    browser.wait_for("Page.loadEventFired")
    assert browser.run("document.querySelector('.aq-act').open")
    assert browser.run("document.querySelector('[name=rate]').value") == "30/min"
    assert "would be redriven" in browser.run("document.querySelector('.aq-act dl').textContent")


def test_the_traces_own_page_is_drawn(
    browser: Chromium, pages: Any, client: Client, tmp_path: Path, store: Any
) -> None:
    """
    From a file, without a server: its policy forbids everything else, and nothing of it is needed.
    """
    _, tenant, session = pages[0]["session"].strip("/").split("/")
    story = tell(client.sessions, Traces(store), tenant, uuid.UUID(session), Redactor().value)
    (tmp_path / "run.html").write_text(page(story), "utf-8")
    browser.errors.clear()
    for size in (DESK, PHONE):
        browser.resize(*size, phone=size == PHONE)
        browser.open((tmp_path / "run.html").as_uri())
        assert browser.run("document.scrollingElement.scrollWidth <= innerWidth")
        assert len(browser.picture(SCREENS / f"trace-{size[0]}.png")) > 10_000
    assert browser.run("document.querySelectorAll('svg[role=img] title').length") > 0
    assert not browser.errors


def test_a_list_is_kept_as_it_is_now(browser: Chromium, flower: str, pages: Any) -> None:
    """
    Live: what has changed since is there by itself, and whoever stands in a row stays there.
    """
    _, played = pages
    browser.resize(*DESK)
    browser.open(f"{flower}/sessions?tenant={played[0].tenant}")
    browser.run("first = document.querySelector('main tbody a'); first.focus(); first.dataset.mark = 'old'; 1")
    until(lambda: not browser.run("document.querySelector('[data-mark]') !== null"), 20, "the rows as they are now")
    assert browser.run("document.activeElement.matches('main tbody a')")
    text = browser.run("document.documentElement.outerHTML")
    assert text.count('href="/session/') >= min(len([one for one in played if one.tenant == played[0].tenant]), 10)
