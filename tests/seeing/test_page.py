"""The story of a session, and the page and picture made of it."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import psycopg
import pytest
from pydantic import BaseModel

from agentq import Agent, Context, Done, Next, Permanent, Sleep
from agentq.agents.registry import Registry
from agentq.client import Client
from agentq.errors import UnknownSession
from agentq.policies.redaction import Redactor
from agentq.seeing.page import page, pre
from agentq.seeing.story import Story, changes, tell
from agentq.seeing.timeline import LANES_MAX, scale_of, shown, timeline
from agentq.store.pool import Store
from agentq.store.sessions import Sessions
from agentq.store.traces import Traces
from agentq.testing import LocalFleet
from tests.support.bad_run import EVIL, SECRET, define

Local = Callable[..., LocalFleet]


class Nothing(BaseModel):
    """Nothing to know."""


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
    # One of the whole, and one for each that is drawn.
    assert len(titles) == 1 + len(story.acts) + sum(len(act.events) for act in story.acts)
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


HOSTILE = (
    '</script><script>alert("a")</script>', "<img src=x onerror=alert(1)>", '"><svg onload=alert(1)>', 
    "</pre></details>", "javascript:alert(1)", "{{7*7}}",
    "\x1b[2J\x1b]0;owned\x07", "\u202egnp.exe", "]]>", "&lt;b&gt;", "</style><style>*{}",
)  # fmt: skip


def hostile(registry: Registry, steps: int) -> None:
    """An agent whose every text is written by somebody who means harm."""

    class State(BaseModel):
        n: int = 0
        last: str = ""

    agent = Agent("hostile", state=State, registry=registry)

    @agent.step(start=True, retries=0)
    def go(state: State, ctx: Context) -> Next | Done:
        said = HOSTILE[state.n % len(HOSTILE)]
        with ctx.trace("model", said[:150], input=[{"role": "user", "content": said}], provider=said) as span:
            span.output = {said: said}
        ctx.decide([said, {said: said}], said, said, 0.5, limits={said: said}, approver=said)
        state.n += 1
        state.last = said
        if state.n == steps:
            raise Permanent(said)
        return Next(go, state)


def test_hostile_content_stays_text_wherever_it_comes_from(
    registry: Registry, client: Client, tenant: str, local: Local, store: Store
) -> None:
    """
    In inputs, outputs, names, decisions, states and errors: on the page only our own markup is markup.
    """
    hostile(registry, len(HOSTILE))
    session = client.start("hostile", tenant=tenant, input={}, key='"><img src=x onerror=alert(2)>')
    with pytest.raises(Exception):  # noqa: B017 - whatever it says
        local().drain(session)
    made = page(tell(Sessions(store), Traces(store), tenant, uuid.UUID(session.id), Redactor().value))
    checker = Checker()  # it refuses every attribute that begins with `on`
    checker.feed(made)
    ours = {
        "html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "dl", "dt", "dd", "div", "svg", "line",
        "rect",
        "text", "tspan", "a", "p", "pre", "span", "details", "summary", "b", "ul", "li", "table", "tr", "td", "th",
    }  # fmt: skip
    assert set(checker.tags) <= ours
    assert checker.tags.count("svg") == checker.tags.count("style") == 1
    assert all(link.startswith("#") for link in checker.links)
    assert "&lt;img src=x onerror=alert(1)&gt;" in made
    ElementTree.fromstring(
        timeline(tell(Sessions(store), Traces(store), tenant, uuid.UUID(session.id), Redactor().value))
    )


def test_a_session_of_a_thousand_steps_has_a_page(
    registry: Registry, client: Client, tenant: str, local: Local, store: Store, admin: psycopg.Connection[Any]
) -> None:
    """
    All of its attempts are on it, it stays of a size that a browser opens, and it is made in seconds.
    """
    hostile(registry, 10)
    session = client.start("hostile", tenant=tenant, input={})
    with pytest.raises(Exception):  # noqa: B017 - whatever it says
        local().drain(session)
    admin.execute(
        """insert into agentq.trace (tenant, session_id, step_id, fence, ordinal, ended_at, kind, name, agent,
                                     agent_version, seq, attempt, started_at, closing, worker, input, output)
           select tenant, session_id, md5(step_id::text || g)::uuid, fence, ordinal, ended_at + g * interval '1 s',
                  kind, name, agent, agent_version, seq + 10 * g, attempt, started_at + g * interval '1 s', closing,
                  worker, input, output
             from agentq.trace, generate_series(1, 99) as g where session_id = %s""",
        (session.id,),
    )
    began = time.process_time()
    told = tell(Sessions(store), Traces(store), tenant, uuid.UUID(session.id), Redactor().value)
    made = page(told)
    assert time.process_time() - began < 20
    assert (told.operations, len(told.acts)) == (1000, 1000)
    assert made.count('<details id="a-') == 1000
    assert "left out" not in made
    assert len(made) < 10_000_000


def test_operations_and_attempts_are_counted_apart(story: Story) -> None:
    """
    Five steps took six attempts; those that came to nothing are waste.
    """
    assert (story.operations, len(story.acts)) == (5, 6)
    lines = {line.name: line for line in story.steps}
    assert (lines["think"].steps, lines["think"].attempts, lines["think"].wasted) == (3, 4, 1)
    assert (lines["act"].steps, lines["act"].attempts, lines["act"].wasted) == (1, 1, 1)
    assert sum(line.cost_micros for line in lines.values()) == story.cost_micros
    assert sum(line.waste_micros for line in lines.values()) == story.waste_micros
    assert "came to nothing" in page(story)


def test_a_wait_costs_nothing_and_is_no_use(
    registry: Registry, client: Client, tenant: str, local: Local, store: Store
) -> None:
    agent = Agent("napper", state=Nothing, registry=registry)

    @agent.step(start=True)
    def nap(state: Nothing) -> Sleep:
        return Sleep("3d", then=wake)

    @agent.step
    def wake(state: Nothing) -> Done:
        return Done("ok")

    session = client.start("napper", tenant=tenant, input={})
    local().drain(session)
    told = tell(Sessions(store), Traces(store), tenant, uuid.UUID(session.id), Redactor().value)
    assert [(event.kind, event.name) for event in told.acts[0].events] == [("wait", "wake")]
    assert told.acts[0].events[0].took_s == 3 * 86400
    assert told.cost == ()
    ElementTree.fromstring(timeline(told))


def test_a_large_value_is_cut_on_the_page() -> None:
    assert "980,000 more characters" in pre("x" * 1_000_000)
