"""Every action of Flower's and ours: refused to who may only look, in read-only mode, and without a token."""

from __future__ import annotations

import itertools
import re
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from flower.urls import handlers
from tornado.routing import URLSpec
from tornado.web import RequestHandler

from agentq.flower.guard import guarded
from agentq.flower.pages import ROUTES, Route
from agentq.flower.pages.tab import Action
from agentq.settings import Settings
from tests.flower.test_tabs import LOGIN, Window, start_flower
from tests.support.until import until

VIEWER = "viewer:pass-word-2"


def posts(handler: Any) -> bool:
    """Whether it answers to anything but a question."""
    return any(
        getattr(handler, verb, None) is not getattr(RequestHandler, verb) for verb in ("post", "put", "patch", "delete")
    )


def addresses(pattern: str) -> list[str]:
    """Addresses that a route answers, one for each of its actions; their ids are nobody's."""
    parts = re.split(r"\(\?P<(\w+)>((?:[^()]|\([^()]*\))*)\)", pattern)
    choices: list[list[str]] = []
    for number, part in enumerate(parts):
        if number % 3 == 0:
            choices.append([part])
        elif number % 3 == 2:
            name = parts[number - 1]
            choices.append(
                part.split("|") if name == "action" else ["test-nobody" if name == "tenant" else str(_NOBODY)]
            )
    return ["".join(chosen) for chosen in itertools.product(*choices)]


_NOBODY = uuid.UUID(int=7)
ACTIONS = [route for route in ROUTES if posts(route.handler)]
ADDRESSES = [address for route in ACTIONS for address in addresses(route.pattern)]


@pytest.fixture(scope="module")
def read_only(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Flower in which nobody may change anything."""
    process, address = start_flower(
        settings, tmp_path_factory.mktemp("flower"),
        "celery", "-A", "agentq.celery_app:app", "flower", "--address=127.0.0.1", "--port=0", "--read_only=true",
        FLOWER_BASIC_AUTH=LOGIN,
    )  # fmt: skip
    yield address
    process.terminate()
    process.wait(10)


def with_token(window: Window) -> str:
    """A valid token of a page that this window was shown."""
    window.page("/sessions")
    found = re.search(r"_xsrf=([^;]+)", window.cookies)
    assert found is not None
    return found[1]


def test_the_actions_are_those_that_we_know() -> None:
    """
    Each is an `Action`, whose checks it does not replace; and the addresses below are theirs.
    """
    assert {route.name for route in ACTIONS} >= {
        "aq-act", "aq-letters-act", "aq-letter-act", "aq-redrive-act", "aq-approvals-act", "aq-tenants-act",
        "aq-anomaly-act",
    }  # fmt: skip
    for route in ACTIONS:
        assert issubclass(route.handler, Action), route.name
        assert route.handler.post is Action.post, f"{route.name} answers posts by itself"
        assert route.title is None, route.name
    for address in ADDRESSES:
        assert any(re.fullmatch(route.pattern, address) for route in ACTIONS), address


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_action_is_refused(window: Window, flower: str, read_only: str, address: str) -> None:
    """
    To a viewer with a valid token, to anybody in read-only mode, without a token or with another's, without a login,
    and as a question. Its ids are nobody's: what is refused for them is refused too late.
    """
    fields = {"tenant": "test-nobody", "cause": "0", "reason": "x", "dry_run": "1"}
    viewer, still = Window(flower, login=VIEWER), Window(read_only)
    assert viewer.post(address, _xsrf=with_token(viewer), **fields)[0] == 403
    assert still.post(address, _xsrf=with_token(still), **fields)[0] == 403
    with_token(window)
    assert window.post(address, _xsrf=None, **fields)[0] == 403
    assert window.post(address, _xsrf="2|aaaa|bbbb|1", **fields)[0] == 403
    assert window.get(address)[0] == 405
    nobody = Window(flower, login=None)
    nobody.cookies = window.cookies
    assert nobody.post(address, _xsrf=with_token(window), **fields)[0] == 401
    # By who may, with a token, it is heard: the refusals above are those of the checks.
    assert window.post(address, _xsrf=with_token(window), **fields)[0] not in (401, 403, 405)


def api_of_flower() -> list[str]:
    found = []
    for one in handlers:
        pattern, handler = (one.regex.pattern, one.handler_class) if isinstance(one, URLSpec) else one[:2]
        if pattern.startswith("/api/") and posts(handler):
            found.append(pattern.replace("(.+)", "celery@nobody"))
    return found


@pytest.mark.parametrize("address", api_of_flower())
def test_flowers_own_buttons_are_an_operators(flower: str, address: str) -> None:
    """
    Stock Flower lets whoever may look stop workers, revoke tasks and send new ones.
    """
    viewer = Window(flower, login=VIEWER)
    assert viewer.post(address, _xsrf=with_token(viewer))[0] == 403
    assert Window(flower, login="jane:wrong").post(address, _xsrf=None)[0] == 401


def test_flowers_own_pages_show_a_viewer_no_buttons(flower: str) -> None:
    """
    Its task and worker pages offer none where the role has none; for an operator they are as before.
    """
    found = dict(guarded(""))
    assert {"/worker/(.+)$", "/task/(.+)$", "/tasks$", "/workers$"} <= set(found)
    for login in (VIEWER, "jane:pass-word-1"):
        for path in ("/workers", "/tasks", "/broker"):
            assert Window(flower, login=login).get(path)[0] == 200


def test_what_flowers_own_buttons_did_is_on_record(window: Window, admin: psycopg.Connection[Any]) -> None:
    """
    I11: with the login's name. From a browser they need its token; a script that logs in by itself needs none.
    """
    name = f"no.such.{uuid.uuid4().hex[:8]}"
    token = with_token(window)
    for foreign in (None, "2|aaaa|bbbb|1"):
        assert window.post(f"/api/task/revoke/{name}", _xsrf=foreign)[0] == 403
    assert admin.execute("select from agentq.operator_action where target = %s", (name,)).fetchall() == []
    assert window.post(f"/api/task/revoke/{name}", _xsrf=token)[0] == 200
    assert Window(window.base).post(f"/api/task/revoke/{name}-script", _xsrf=None)[0] == 200
    query = "select operator, action from agentq.operator_action where target = %s"
    until(lambda: admin.execute(query, (name,)).fetchall() == [("jane", "flower task revoke")], 10, "the row")


def test_a_route_without_the_checks_would_be_noticed() -> None:
    """
    The walk above finds a new action by itself: whatever answers a post is one.
    """

    class Careless(RequestHandler):
        def post(self) -> None:
            """Changes something for anybody."""

    route = Route("aq-careless", r"/careless/(?P<tenant>[a-z]+)/(?P<action>a|b)", Careless)
    assert posts(route.handler)
    assert addresses(route.pattern) == ["/careless/test-nobody/a", "/careless/test-nobody/b"]
    assert not issubclass(route.handler, Action)
