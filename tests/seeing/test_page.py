"""The story of a session, and the page and picture made of it."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from agentq.agents.registry import Registry
from agentq.client import Client
from agentq.errors import UnknownSession
from agentq.policies.redaction import Redactor
from agentq.seeing.page import page
from agentq.seeing.story import Story, changes, tell
from agentq.seeing.timeline import LANES_MAX, scale_of, shown, timeline
from agentq.store.pool import Store
from agentq.store.sessions import Sessions
from agentq.store.traces import Traces
from agentq.testing import LocalFleet
from tests.support.bad_run import EVIL, SECRET, define

Local = Callable[..., LocalFleet]


@pytest.fixture
def story(registry: Registry, client: Client, tenant: str, local: Local, store: Store) -> Story:
    """A run that went wrong, told."""
    define(registry)
    session = client.start("desk", tenant=tenant, input={"text": f"{EVIL} my card 4111111111111111"})
    with pytest.raises(Exception, match="takes no coupon"):
        local().drain(session)
    return tell(Sessions(store), Traces(store), tenant, uuid.UUID(session.id), Redactor().value)


def test_the_story_has_every_attempt_with_what_it_did(story: Story) -> None:
    """
    The one that failed too, with what it had asked by then; states before and after, and what changed.
    """
    assert [(act.row.name, act.row.closing) for act in story.acts] == [
        ("read", "next"), ("think", "next"), ("think", "retry"), ("think", "next"), ("think", "next"), ("act", "dead"),
    ]  # fmt: skip
    assert [event.kind for event in story.acts[0].events] == ["tool", "model"]
    assert [event.kind for event in story.acts[2].events] == ["model"]
    assert story.acts[1].decisions[0].picked == "send a coupon"
    assert story.acts[1].changes == ("~ loops: 0 → 1",)
    assert story.acts[0].given["text"].endswith("my card [card]")
    assert [one.agent for one in story.children] == ["part"]
    assert story.trace_id == story.session.session_id


def test_the_cost_is_told_apart_and_adds_up(story: Story) -> None:
    """
    By model; what the failed attempt used is waste; the sums are the attempts', to the last token.
    """
    [model, *tools] = [line for line in story.cost if line.kind != "step"]
    assert (model.what, model.count, model.cost_micros, model.waste_micros) == ("gpt-5", 5, 130_000, 30_000)
    assert {line.what.rpartition(".")[2] for line in tools} == {"look_up", "send_coupon"}
    assert sum(line.cost_micros for line in story.cost) == story.cost_micros == 130_000
    assert sum(line.tokens_in for line in story.cost) == story.tokens_in
    assert story.waste_micros == 30_000
    # Of what was recorded with checkpoints, no waste.
    assert story.session.cost_micros == story.cost_micros - story.waste_micros


class Checker(HTMLParser):
    """What a page holds that it must not."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"{tag} {name}"
            if name == "id":
                assert value not in self.ids
                self.ids.add(value or "")
            if name in ("src", "href", "action"):
                self.links.append(value or "")


def test_the_page_stands_alone_and_lets_nothing_in(story: Story) -> None:
    """
    No script, nothing to load, nothing of the data as markup, no secret; each link leads somewhere on it.
    """
    made = page(story)
    checker = Checker()
    checker.feed(made)
    assert not {"script", "link", "img", "iframe", "form", "object"} & set(checker.tags)
    assert all(link.startswith("#") for link in checker.links)
    assert {link[1:] for link in checker.links} <= checker.ids
    assert "alert(1)&lt;/script" in made
    assert "<script" not in made
    assert "default-src 'none'" in made
    for secret in (SECRET, "jane@example.com", "4111 1111", "4111111111111111"):
        assert secret not in made
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", made)
    for said in ("overloaded", "takes no coupon", "send a coupon", "confidence 0.42", "$0.13", "my card [card]"):
        assert said in made


def test_the_picture_is_well_formed_and_says_what_it_shows(story: Story) -> None:
    picture = ElementTree.fromstring(timeline(story))
    name = "{http://www.w3.org/2000/svg}"
    titles = [title.text or "" for title in picture.iter(f"{name}title")]
    assert any("attempt think: retry" in title for title in titles)
    assert len(titles) == len(story.acts) + sum(len(act.events) for act in story.acts)
    for rect in picture.iter(f"{name}rect"):
        assert 0 <= float(rect.get("x", "")) <= 960


def test_a_long_pause_is_drawn_short() -> None:
    """
    An approval that took three days must not squeeze the rest into one pixel.
    """
    scale = scale_of([(0, 1), (1.5, 3), (260_000, 260_002)], 0, 100)
    assert [round(seconds) for _, _, seconds in scale.gaps] == [259_997]
    assert scale.x(0) == 0
    assert scale.x(260_002) == pytest.approx(100)
    assert scale.x(3) - scale.x(0) > 40
    assert scale.x(260_002) - scale.x(260_000) > 30
    assert [scale.x(n) for n in (-5, 130_000, 999_999)] == sorted(scale.x(n) for n in (-5, 130_000, 999_999))


def test_attempts_of_no_length_still_have_a_scale() -> None:
    scale = scale_of([(5, 5), (5, 5)], 10, 20)
    assert 10 <= scale.x(5) <= 20


def test_a_session_of_a_thousand_attempts_has_a_picture_of_bounded_size(story: Story) -> None:
    acts, left_out = shown(story.acts * 200)
    assert (len(acts), left_out) == (LANES_MAX, 1200 - LANES_MAX)


def test_changes_are_told_field_by_field() -> None:
    before = {"a": 1, "gone": 2, "deep": {"x": [1]}, "same": "s", "t": "a"}
    after = {"a": 2, "deep": {"x": [1, 2]}, "same": "s", "new": None, "t": ["b"]}
    assert changes(before, after) == ["~ a: 1 → 2", "- gone: 2", "+ deep.x[1]: 2", '~ t: a → ["b"]', "+ new: null"]
    assert changes(before, before) == []


def test_another_tenant_has_no_such_story(story: Story, store: Store, other_tenant: str) -> None:
    """
    I8.
    """
    with pytest.raises(UnknownSession):
        tell(Sessions(store), Traces(store), other_tenant, story.session.session_id, Redactor().value)
