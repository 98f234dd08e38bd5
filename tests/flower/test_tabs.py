"""Our tabs in a Flower that runs, over HTTP: what they show, who may change what, and what they refuse."""

from __future__ import annotations

import base64
import html
import re
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from agentq import Agent, Context, Done
from agentq.agents.registry import Registry
from agentq.client import Client
from agentq.errors import ConfigError, InvalidInput
from agentq.flower.pages import ROUTES
from agentq.flower.tabs import with_tabs
from agentq.settings import Settings
from agentq.testing import LocalFleet
from tests.support.bad_run import EVIL, SECRET, define
from tests.support.fleet import Fleet
from tests.support.odd import stands_out
from tests.support.until import until

LOGIN = "jane:pass-word-1,viewer:pass-word-2"


class Nothing(BaseModel):
    """Nothing to know."""


@dataclass
class Window:
    """A browser without a screen: keeps cookies, follows nothing by itself."""

    base: str
    login: str | None = "jane:pass-word-1"
    cookies: str = ""

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        return self._ask(urllib.request.Request(self.base + path, headers=self._headers(headers)))

    def page(self, path: str) -> str:
        status, text = self.get(path)
        assert status == 200, (status, text[:2000])
        return text

    def post(self, path: str, _xsrf: str | None = "own", **fields: str) -> tuple[int, str]:
        """Send a form, as the page would: with the token that the page before had."""
        if _xsrf == "own":
            found = re.search(r'name="_xsrf" value="([^"]+)"', self.page("/tenants"))
            fields["_xsrf"] = found[1] if found else ""
        elif _xsrf is not None:
            fields["_xsrf"] = _xsrf
        data = urllib.parse.urlencode(fields).encode()
        return self._ask(urllib.request.Request(self.base + path, data=data, headers=self._headers({})))

    def _headers(self, more: dict[str, str]) -> dict[str, str]:
        found = dict(more)
        if self.login:
            found["Authorization"] = "Basic " + base64.b64encode(self.login.encode()).decode()
        if self.cookies:
            found["Cookie"] = self.cookies
        return found

    def _ask(self, request: urllib.request.Request) -> tuple[int, str]:
        opener = urllib.request.build_opener(_Stay)
        try:
            with opener.open(request, timeout=15) as answer:
                self._keep(answer.headers.get_all("Set-Cookie") or [])
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            self._keep(error.headers.get_all("Set-Cookie") or [])
            return error.code, error.headers.get("Location") or error.read().decode()

    def _keep(self, cookies: list[str]) -> None:
        known = dict(part.split("=", 1) for part in self.cookies.split("; ") if part)
        known |= dict(cookie.split(";", 1)[0].split("=", 1) for cookie in cookies)
        self.cookies = "; ".join(f"{name}={value}" for name, value in known.items())


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def start_flower(settings: Settings, folder: Path, *arguments: str, **more: str) -> tuple[subprocess.Popen[bytes], str]:
    """`agentq flower` as a process; its address."""
    log = folder / f"flower-{uuid.uuid4().hex[:6]}.log"
    environment = Fleet(settings, folder).environment(AGENTQ_FLOWER_PORT="0", **more)
    process = subprocess.Popen(
        [sys.executable, "-m", *(arguments or ("agentq", "flower"))],
        cwd=folder, env=environment, stdout=log.open("wb"), stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
    )  # fmt: skip

    def address() -> str | None:
        text = log.read_text("utf-8", "replace")
        assert process.poll() is None, text
        found = re.search(r"Visit me at (http://[\d.]+:\d+)", text)
        return found[1] if found else None

    until(address, 30, "Flower to listen")
    return process, address() or ""


@pytest.fixture
def bad(registry: Registry, client: Client, tenant: str, local: Callable[..., LocalFleet]) -> str:
    """The path of a session that went wrong."""
    define(registry)
    session = client.start("desk", tenant=tenant, input={"text": f"{EVIL} 4111111111111111"}, key=f"k {EVIL}")
    with pytest.raises(Exception, match="takes no coupon"):
        local().drain(session)
    return f"/session/{tenant}/{session.id}"


@pytest.fixture
def idle(client: Client, registry: Registry, tenant: str) -> str:
    """The path of a session that waits, because its tenant is paused."""
    define(registry)
    client.tenants.set(tenant, state="paused", reason="so that nothing runs")
    return f"/session/{tenant}/{client.start('desk', tenant=tenant, input={}).id}"


def actions(admin: psycopg.Connection[Any], tenant: str) -> list[tuple[Any, ...]]:
    query = "select operator, action, reason from agentq.operator_action where tenant = %s and operator = 'jane'"
    return admin.execute(query, (tenant,)).fetchall()


def test_every_tab_stands_in_flowers_own_bar(window: Window) -> None:
    """
    On our pages and on Flower's; each answers.
    """
    tabs = [route for route in ROUTES if route.title is not None]
    for path in ("/workers", "/tasks", *(tab.pattern for tab in tabs)):
        text = window.page(path)
        for tab in tabs:
            assert f'href="{tab.pattern}"' in text, (path, tab.title)
        assert "Traceback" not in text


def test_a_bar_that_we_do_not_know_is_refused() -> None:
    """
    A Flower whose page changed must fail loudly, not lose its tabs.
    """
    with pytest.raises(ConfigError, match="navigation bar"):
        with_tabs("<nav><ol></ol></nav>")


def test_a_session_that_went_wrong_is_found_and_told(window: Window, bad: str, tenant: str) -> None:
    """
    Searched for, opened; timeline, why, decisions, cost, states and what changed; nothing as markup, no secret.
    """
    listed = window.page(f"/sessions?tenant={tenant}&state=failed&agent=desk")
    assert bad in listed
    assert EVIL not in listed
    assert bad in window.page(f"/sessions?id={bad[-36:][:13]}")
    assert bad not in window.page(f"/sessions?tenant={tenant}&state=done")
    for text, there in (("takes no COUPON", True), (EVIL[:9], True), ("nowhere-to-be-found", False)):
        found = window.page(f"/sessions?{urllib.parse.urlencode({'tenant': tenant, 'text': text})}")
        assert (bad in found) == there, text
    assert bad in window.page(f"/sessions?tenant={tenant}&until=2999-01-01")
    assert bad not in window.page(f"/sessions?tenant={tenant}&until=1999-01-01")
    page = window.page(bad)
    for said in ("<svg", "takes no coupon", "send a coupon", "gpt-5", "$0.1300", "~ loops: 0 → 1", "came to nothing"):
        assert said in page, said
    for secret in (EVIL, SECRET, "jane@example.com", "4111111111111111", "4111 1111"):
        assert secret not in page, secret


def test_pages_follow_each_other_by_place(
    window: Window, client: Client, registry: Registry, tenant: str, admin: psycopg.Connection[Any]
) -> None:
    """
    Keyset: nothing twice, nothing left out, also where times are the same.
    """
    define(registry)
    client.tenants.set(tenant, state="paused", reason="so that nothing runs")
    client.start_many("part", tenant=tenant, items=[({"n": n}, None) for n in range(120)])
    seen: list[str] = []
    path: str | None = f"/sessions?tenant={tenant}"
    while path:
        text = window.page(path)
        seen += re.findall(rf'href="/session/{tenant}/([0-9a-f-]{{36}})"', text)
        older = re.search(r'rel="next" href="\?([^"]+)"', text)
        path = f"/sessions?{older[1].replace('&amp;', '&')}" if older else None
    assert (len(seen), len(set(seen))) == (120, 120)


@pytest.mark.parametrize(
    "path",
    ["/sessions?tenant=No%20Name", "/sessions?id=xyz", "/sessions?before=rubbish", "/cost?since=1y",
     "/sessions?until=tuesday",
     "/dead-letters?cause=zzz", f"/session/nobody-at-all/{uuid.UUID(int=5)}"],
)  # fmt: skip
def test_bad_questions_are_answered_in_words(window: Window, path: str) -> None:
    status, text = window.get(path)
    assert status == 400, text[:500]
    assert "Traceback" not in text


def test_without_a_login_nothing_is_shown(flower: str, bad: str) -> None:
    """
    Not the pages, not the metrics, not the static parts of a session.
    """
    for path in (bad, "/sessions", "/metrics", "/health", "/cost?csv=1"):
        assert Window(flower, login=None).get(path)[0] == 401
        assert Window(flower, login="jane:wrong").get(path)[0] == 401
    assert Window(flower, login=None).post("/tenants/set", _xsrf=None, tenant="x", reason="y")[0] in (401, 403)


def test_a_button_does_what_the_command_does_under_the_users_name(
    window: Window, idle: str, tenant: str, admin: psycopg.Connection[Any], client: Client
) -> None:
    """
    I11: the record has the login's name, not that of Flower's process.
    """
    assert "cancel" in window.page(idle)
    status, where = window.post(f"{idle}/cancel", reason="it is not wanted")
    assert (status, where) == (303, idle)
    assert client.sessions.get(tenant, uuid.UUID(idle[-36:])).state == "cancelled"
    assert actions(admin, tenant) == [("jane", "session cancel", "it is not wanted")]
    assert "the session is cancelled" in window.page(idle)
    assert "the session is cancelled" not in window.page(idle)


def test_tenants_are_changed_from_their_tab(window: Window, tenant: str, admin: psycopg.Connection[Any]) -> None:
    assert window.post("/tenants/set", tenant=tenant, state="draining", concurrency="7", reason="moving")[0] == 303
    row = admin.execute("select state, concurrency from agentq.tenant where name = %s", (tenant,)).fetchone()
    assert row == ("draining", 7)
    assert actions(admin, tenant) == [("jane", "tenant set", "moving")]


def test_a_tenants_own_breakers_stand_beside_it(window: Window, client: Client, tenant: str) -> None:
    """
    What a tenant's own key does not get any more is told where one looks for why its work waits.
    """
    assert "acme-pay" not in window.page(f"/tenants?name={tenant}")
    client.dependencies.force("acme-pay", "open", reason="its key is revoked", tenant=tenant)
    page = window.page(f"/tenants?name={tenant}")
    assert "acme-pay" in page
    assert "forced open" in page
    with pytest.raises(InvalidInput, match="open, shut or auto"):  # it was taken for "shut"
        client.dependencies.force("acme-pay", "opened", reason="mistyped", tenant=tenant)  # type: ignore[arg-type]
    client.dependencies.force("acme-pay", "shut", reason="a new key", tenant=tenant)
    assert "acme-pay" not in window.page(f"/tenants?name={tenant}")


def test_tenants_come_in_pages_who_waits_first(window: Window, tenant: str, admin: psycopg.Connection[Any]) -> None:
    """
    Whoever has work stands before those that have none, and a page has fifty; a name's part and a state narrow it.
    """
    names = [f"{tenant}-{n:03}" for n in range(60)]
    admin.execute("insert into agentq.tenant (name, concurrency) select unnest(%s::text[]), 1", (names,))
    admin.execute("update agentq.tenant set state = 'paused' where name = any (%s)", (names[:2] + names[-1:],))
    admin.execute(
        "with s as (insert into agentq.session (tenant, session_id, agent, agent_version, input, input_hash)"
        " values (%s, gen_random_uuid(), 'a', 1, '{}', 'h') returning tenant, session_id)"
        " insert into agentq.ledger_entry (tenant, session_id, step_id, seq, name, state, attempts_max, timeout_s,"
        " path) select tenant, session_id, gen_random_uuid(), 0, 's', 'ready', 1, 1, gen_random_uuid() from s",
        (names[-1],),
    )

    def shown(page: str) -> list[str]:
        return re.findall(r"sessions\?tenant=([^\"]+)\"", page)

    first = window.page(f"/tenants?name={tenant}-")
    assert shown(first) == [names[-1], *names[:49]]
    more = re.search(r'rel="next" href="([^"]+)"', first)
    assert more is not None
    second = window.page(f"/tenants{html.unescape(more[1])}")
    assert shown(second) == names[49:59]
    assert 'rel="next"' not in second
    assert shown(window.page(f"/tenants?name={tenant}-&state=paused")) == [names[-1], *names[:2]]
    assert "no tenant matches" in window.page(f"/tenants?name={tenant}-not")
    for damaged in ("after=work~x", "after=name~", "after=x", "state=gone"):
        assert window.get(f"/tenants?{damaged}")[0] == 400


def test_dead_letters_are_shown_by_cause_and_discarded(
    window: Window, bad: str, tenant: str, admin: psycopg.Connection[Any]
) -> None:
    """
    What a redrive would do is said before; a discard needs a cause and a reason.
    """
    listed = window.page(f"/dead-letters?tenant={tenant}")
    [cause] = set(re.findall(r"[?&;]cause=([0-9a-f]+)", listed))
    assert "A redrive would bring back 1 of 1 letters" in window.page(f"/dead-letters?tenant={tenant}&cause={cause}")
    assert window.post("/dead-letters/discard", tenant=tenant, cause=cause, reason="")[0] == 400
    assert window.post("/dead-letters/discard", tenant=tenant, cause=cause, reason="known")[0] == 303
    assert "no dead letter" in window.page(f"/dead-letters?tenant={tenant}")
    assert ("jane", "dlq discard", "known") in actions(admin, tenant)


def test_who_may_only_look_sees_no_buttons_and_has_none(flower: str, idle: str, tenant: str, client: Client) -> None:
    """
    Roles: the viewer's login opens pages; its posts are refused, also with a valid token.
    """
    viewer = Window(flower, login="viewer:pass-word-2")
    page = viewer.page(idle)
    assert 'method="post"' not in page
    token = re.search(r"_xsrf=([^;]+)", viewer.cookies)
    assert token is not None
    assert viewer.post(f"{idle}/cancel", _xsrf=token[1], reason="x")[0] == 403
    assert client.sessions.get(tenant, uuid.UUID(idle[-36:])).state == "running"


def test_cost_is_shown_and_exported(window: Window, bad: str, tenant: str) -> None:
    page = window.page(f"/cost?tenant={tenant}")
    assert "$0.1300" in page
    assert "gpt-5" in page
    table = window.page(f"/cost?tenant={tenant}&csv=1")
    assert f"tenant,{tenant},5,1,1300,130,130000,30000" in table


def test_repairs_are_told_apart_in_the_cost_tab(
    window: Window, client: Client, registry: Registry, tenant: str, local: Callable[..., LocalFleet]
) -> None:
    """
    On its page, in its picture and in its CSV; of a session, on its page.
    """
    agent = Agent("writer", state=Nothing, registry=registry)

    @agent.step(start=True)
    def write(state: Nothing, ctx: Context) -> Done:
        for cost, facts in (("0.02", {}), ("0.01", {"repair": True})):
            with ctx.trace("model", "gpt-5", **facts) as span:
                span.used(input_tokens=100, cost_usd=cost)
                ctx.usage(input_tokens=100, cost_usd=cost)
        return Done("x")

    session = client.start("writer", tenant=tenant, input={})
    local().drain(session)
    page = window.page(f"/cost?tenant={tenant}")
    assert page.count("of it repairs") == 3
    assert "waste $0.0100, $0.0100 of it for repairs" in page
    assert f"tenant,{tenant},1,1,200,0,30000,10000,1,10000" in window.page(f"/cost?tenant={tenant}&csv=1")
    told = window.page(f"/session/{tenant}/{session.id}")
    assert "$0.0100 of it for repairs" in told
    assert "model gpt-5, repair" in told


def test_metrics_of_flower_and_of_the_fleet(window: Window) -> None:
    text = window.page("/metrics")
    assert "flower_events_total" in text
    assert "agentq_due_steps" in text


def test_read_only_means_read_only(settings: Settings, tmp_path: Path, idle: str, tenant: str, client: Client) -> None:
    """
    Whoever logs in; and `celery -A … flower` has the tabs as well.
    """
    process, address = start_flower(
        settings, tmp_path, "celery", "-A", "agentq.celery_app:app", "flower", "--address=127.0.0.1", "--port=0",
        "--read_only=true", FLOWER_BASIC_AUTH=LOGIN,
    )  # fmt: skip
    try:
        window = Window(address)
        assert 'method="post"' not in window.page(idle)
        token = re.search(r"_xsrf=([^;]+)", window.cookies)
        assert token is not None
        assert window.post(f"{idle}/cancel", _xsrf=token[1], reason="x")[0] == 403
        assert client.sessions.get(tenant, uuid.UUID(idle[-36:])).state == "running"
    finally:
        process.terminate()
        process.wait(10)


def test_no_page_of_one_tenant_shows_anothers(
    window: Window, bad: str, client: Client, admin: psycopg.Connection[Any], other_tenant: str
) -> None:
    """
    I8: narrowed to tenant A, no page and no action finds a session, a letter or an approval of B.
    """
    _, _, theirs, session = bad.split("/")
    [(letter,)] = admin.execute("select letter_id from agentq.dead_letter where session_id = %s", (session,)).fetchall()
    pages = [route.pattern for route in ROUTES if route.title]
    assert len(pages) >= 6
    for path in pages:
        status, text = window.get(f"{path}?tenant={other_tenant}")
        assert status == 200, path
        if path not in ("/tenants", "/cost", "/health"):  # an operator's: each tenant is named there
            assert theirs not in text.replace(other_tenant, ""), path
        assert session not in text, path
        assert str(letter) not in text, path
    assert window.get(f"/session/{other_tenant}/{session}")[0] in (400, 404)
    for action in ("cancel", "replay", "fork"):
        status, text = window.post(f"/session/{other_tenant}/{session}/{action}", reason="curious", from_step="0")
        assert status >= 400, text
    window.post("/dead-letters/redrive", tenant=other_tenant, letter=str(letter), reason="curious")
    assert client.get(theirs, session).view().state == "failed"
    assert actions(admin, theirs) == []


@pytest.fixture
def odd(client: Client, registry: Registry, tenant: str) -> str:
    """The path of an open anomaly."""
    define(registry)
    client.tenants.set(tenant, state="paused", reason="so that nothing runs")
    stands_out(client, client.start("part", tenant=tenant, input={}), why=f"steps 60 {EVIL}")
    [row] = client.anomalies.ls(tenant=tenant)
    return f"/anomaly/{tenant}/{row.anomaly_id}"


def state_of(client: Client, odd: str) -> str:
    return client.anomalies.get(odd[-36:]).state


def test_an_anomaly_is_muted_from_its_page(
    window: Window, odd: str, tenant: str, admin: psycopg.Connection[Any], client: Client, other_tenant: str
) -> None:
    """
    Listed, told with nothing as markup, muted and taken back under the login's name; not without a reason, and not
    through another tenant's address (I8).
    """
    assert odd in window.page(f"/anomalies?tenant={tenant}")
    page = window.page(odd)
    assert "5 to 7" in page
    assert EVIL not in page
    elsewhere = odd.replace(tenant, other_tenant)
    assert window.get(elsewhere)[0] in (400, 404)
    assert window.post(f"{elsewhere}/mute", reason="curious")[0] >= 400
    assert window.post(f"{odd}/mute", reason="")[0] == 400
    assert state_of(client, odd) == "open"
    assert window.post(f"{odd}/mute", reason="known") == (303, odd)
    assert state_of(client, odd) == "muted"
    assert odd not in window.page(f"/anomalies?tenant={tenant}")
    assert odd in window.page(f"/anomalies?tenant={tenant}&state=muted")
    assert window.post(f"{odd}/unmute", reason="not so") == (303, odd)
    assert sorted(actions(admin, tenant)) == [("jane", "anomaly mute", "known"), ("jane", "anomaly unmute", "not so")]


def test_anomalies_are_paged(window: Window, odd: str, tenant: str, client: Client) -> None:
    """
    Fifty of them, and a link to the older ones, with what was chosen; each stands on one page.
    """
    [first] = client.anomalies.ls(tenant=tenant)
    for number in range(60):
        stands_out(client, client.get(tenant, str(first.session_id)), f"tool:t{number}")
    path: str | None = f"/anomalies?tenant={tenant}"
    listed: list[str] = []
    counts = []
    while path is not None:
        page = window.page(path)
        rows = re.findall(rf"/anomaly/{tenant}/([0-9a-f-]{{36}})", page)
        listed, counts = listed + rows, [*counts, len(rows)]
        found = re.search(r'rel="next" href="([^"]+)"', page)
        path = f"/anomalies{html.unescape(found[1])}" if found else None
    assert counts == [50, 11]
    assert listed == [str(row.anomaly_id) for row in client.anomalies.ls(tenant=tenant, limit=100)]


def test_an_anomaly_is_not_muted_from_elsewhere_or_by_who_may_only_look(
    window: Window, flower: str, odd: str, client: Client
) -> None:
    """
    Without our token or with another's; and by the viewer's login also with a valid one.
    """
    window.page(odd)
    assert window.post(f"{odd}/mute", _xsrf=None, reason="x")[0] == 403
    assert window.post(f"{odd}/mute", _xsrf="2|aaaa|bbbb|1", reason="x")[0] == 403
    assert window.get(f"{odd}/mute")[0] == 405
    viewer = Window(flower, login="viewer:pass-word-2")
    assert 'method="post"' not in viewer.page(odd)
    token = re.search(r"_xsrf=([^;]+)", viewer.cookies)
    assert token is not None
    assert viewer.post(f"{odd}/mute", _xsrf=token[1], reason="x")[0] == 403
    assert Window(flower, login=None).get(odd)[0] == 401
    assert state_of(client, odd) == "open"
