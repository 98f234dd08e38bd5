"""Dead letters in Flower: one of them told in full, redrives on terms that were shown, and how far they are."""

from __future__ import annotations

import contextlib
import html
import re
import urllib.parse
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from agentq.client import Client, Selection, Terms
from agentq.errors import ConfigError
from agentq.settings import Settings
from agentq.step import StepRef
from agentq.store.dead_letters import DeadLetterStore
from agentq.verdicts import Failure
from tests.cli.conftest import Cli, cli
from tests.cli.test_dlq import bury
from tests.flower.test_tabs import Window
from tests.redrives.test_command import count_client, counted, states
from tests.support.bad_run import EVIL, SECRET
from tests.support.hands import Hands
from tests.support.until import until

__all__ = ["cli", "count_client"]

LEAKY = Failure(
    "permanent", "CardDeclined", f"{EVIL} card 4111111111111111 of jane@example.com, {SECRET}", where="pay.py:12"
)
HIDDEN = (EVIL, SECRET, "jane@example.com", "4111111111111111", "hunter2")


@pytest.fixture
def leaky(hands: Hands) -> str:
    """The path of a letter whose error and state hold what nobody should see."""
    claim = hands.begin(input=b'{"n": 7, "password": "hunter2-and-more", "mail": "jane@example.com"}')
    hands.settle(claim, "dead", failure=LEAKY)
    [letter] = DeadLetterStore(hands.store).ls(Selection(tenant=hands.tenant))
    return f"/letter/{hands.tenant}/{letter.letter_id}"


def seen(page: str) -> str:
    """What a page says its dry run was of."""
    found = re.search(r'name="seen" value="([0-9a-f]+)"', page)
    assert found is not None, page[:3000]
    return found[1]


def done_by_jane(admin: psycopg.Connection[Any], target: str) -> list[tuple[str, str]]:
    query = "select action, reason from agentq.operator_action where operator = 'jane' and target = %s order by at"
    return admin.execute(query, (target,)).fetchall()


def test_a_letter_tells_what_the_command_tells(window: Window, leaky: str, cli: Cli, flower: str, hands: Hands) -> None:
    """
    Cause, class, error, each attempt, state, cost, effects, generation, what to do; from the list and the session one
    gets there. Nothing as markup and no secret, for whoever looks.
    """
    told = cli.json("dlq", "show", leaky[-36:])
    for login in ("jane:pass-word-1", "viewer:pass-word-2"):
        page = Window(flower, login=login).page(leaky)
        text = html.unescape(re.sub(r"<[^>]+>", " ", page))
        facts = (told["cause"][:12], told["class"], "CardDeclined", "pay.py:12", told["id"], told["session"], "robot@1")
        for said in (*facts, *told["advice"], '"n": 7', "Brought back before", "0 pending, 0 unknown", "$0.00"):
            assert said in text, said
        assert page.count("CardDeclined") >= 1 + len(told["attempts"])
        for secret in HIDDEN:
            assert secret not in page, secret
    assert leaky in window.page(f"/dead-letters?tenant={hands.tenant}")
    assert leaky in window.page(f"/session/{hands.tenant}/{told['session']}")
    listed = window.page(f"/dead-letters?cause={told['cause'][:12]}&tenant={hands.tenant}")
    assert leaky in listed
    for secret in HIDDEN:
        assert secret not in listed, secret


def test_a_letter_is_its_tenants(window: Window, leaky: str, hands: Hands, other_tenant: str) -> None:
    """
    I8: through another tenant's address it is neither shown nor changed.
    """
    elsewhere = leaky.replace(hands.tenant, other_tenant)
    assert window.get(elsewhere)[0] == 400
    assert window.get(f"/letter/{hands.tenant}/{'-' * 36}")[0] == 400
    for action in ("redrive", "discard"):
        assert window.post(f"{elsewhere}/{action}", reason="curious", seen=seen(window.page(leaky)))[0] in (200, 400)
    assert states(hands) == {"open": 1}


def test_a_letter_is_discarded(window: Window, leaky: str, hands: Hands, admin: psycopg.Connection[Any]) -> None:
    assert window.post(f"{leaky}/discard", reason="")[0] == 400
    assert window.post(f"{leaky}/discard", reason="a test order") == (303, leaky)
    assert states(hands) == {"discarded": 1}
    assert done_by_jane(admin, leaky[-36:]) == [("dlq discard", "a test order")]
    page = window.page(leaky)
    assert "the letter is discarded" in page
    assert "a test order" in page
    assert '<form method="post"' not in page.replace('class="aq-card" ', "")


def test_a_letter_is_redriven_on_terms_that_were_shown(
    window: Window, hands: Hands, count_client: Any, admin: psycopg.Connection[Any]
) -> None:
    """
    A dry run says what an edit changes and changes nothing; what was not shown is shown first, not done.
    """
    letter = counted(count_client, hands)
    path = f"/letter/{hands.tenant}/{letter}"
    status, page = window.post(f"{path}/redrive", dry_run="1", edits="nn=2")
    assert (status, "its model has no nn" in page) == (200, True)
    status, page = window.post(f"{path}/redrive", dry_run="1", edits="n=2", max_generation="2")
    assert status == 200
    assert re.search(r"<code>n</code>:\s*<span class=\"minus\">1</span> → <span class=\"plus\">2</span>", page), page
    asked = {"edits": "n=2", "max_generation": "2", "reason": "too few"}
    status, other = window.post(f"{path}/redrive", **asked | {"edits": "n=3"}, seen=seen(page))
    assert (status, "Nothing is changed yet" in other, "too few" in other) == (200, True, True)
    assert window.post(f"{path}/redrive", **asked)[0] == 200
    assert window.post(f"{path}/redrive", **asked | {"reason": ""}, seen=seen(page))[0] == 400
    assert states(hands) == {"open": 1}
    assert window.post(f"{path}/redrive", **asked, seen=seen(page)) == (303, path)
    assert states(hands) == {"redriving": 1}
    assert done_by_jane(admin, letter) == [("dlq edit", "too few")]
    told = window.page(path)
    assert "the letter is redriven" in told
    assert re.search(r"<code>[0-9a-f]{8}</code> by jane", told)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [("rate", "fast", "is no rate"), ("canary", "-1", "whole number"), ("threshold", "0", "threshold"),
     ("deadline", "soon", "is not a duration"), ("effects", "maybe", "effects is done"), ("edits", "n", "no edit"),
     ("since", "soon", "not a duration"), ("class", "odd", "is no class"), ("by", "colour", "by is one of")],
)  # fmt: skip
def test_terms_that_are_none_are_refused_in_words(
    window: Window, hands: Hands, field: str, value: str, says: str
) -> None:
    bury(hands)
    fields = {"tenant": hands.tenant, "dry_run": "1", "reason": "x"} | {field: value}
    status, page = window.post("/dead-letters/redrive", **fields)
    assert status == (200 if field == "edits" else 400)
    assert says in html.unescape(page)
    assert "Traceback" not in page


def test_many_are_redriven_with_a_canary_and_stopped(
    window: Window, hands: Hands, admin: psycopg.Connection[Any], client: Client
) -> None:
    """
    The dry run has count, cost, canaries and time; the job is listed while it waits for its canaries, and stopped.
    """
    bury(hands, times=6)
    filters = {"tenant": hands.tenant, "class": "permanent"}
    listed = window.page(f"/dead-letters?{urllib.parse.urlencode(filters)}")
    assert "A redrive would bring back 6 of 6 letters" in listed
    terms = {"canary": "2", "rate": "1/s", "from_step": "first", "deadline": "1h"}
    status, page = window.post("/dead-letters/redrive", **filters, **terms, dry_run="1")
    assert status == 200
    for said in (
        "6 match, 6 would be redriven",
        "about 6.0 s at 1/s",
        "2 first",
        "not known: no session",
        'value="1h"',
    ):
        assert said in page, said
    never = window.post("/dead-letters/redrive", **filters, **terms | {"from_step": "other"}, dry_run="1")[1]
    assert "6 ran no other, refused" in never
    assert states(hands) == {"open": 6}
    status, where = window.post("/dead-letters/redrive", **filters, **terms, reason="mended", seen=seen(page))
    assert (status, where) == (303, "/dead-letters#redrives")
    until(lambda: states(hands) == {"open": 4, "redriving": 2}, 20, "the canaries")

    def job() -> Any:
        [found] = [
            one for one in client.dead_letters.redrives.recent(50) if one.selection.get("tenant") == hands.tenant
        ]
        return found

    until(lambda: job().state == "waiting", 20, "the job to wait for its canaries")
    assert (job().operator, job().reason, job().terms.deadline_s) == ("jane", "mended", 3600)
    listed = window.page("/dead-letters")
    assert str(job().job_id) in listed
    assert "2 of 6" in listed
    path = f"/redrive/{job().job_id}"
    assert window.post(f"{path}/resume", reason="go")[0] == 400  # somebody drives it
    assert window.post(f"{path}/stop", reason="")[0] == 400
    assert window.post(f"{path}/stop", reason="wrong letters")[0] == 303
    assert (job().state, job().note) == ("stopped", "stopped by jane: wrong letters")
    assert window.post(f"{path}/stop", reason="again")[0] == 400
    assert states(hands) == {"open": 4, "redriving": 2}
    did = [action for action, _ in done_by_jane(admin, str(job().job_id))]
    assert did == ["dlq redrive", "dlq stop", "dlq redrive stopped"]


@pytest.fixture
def left(hands: Hands, client: Client) -> Iterator[Any]:
    """A redrive that somebody left after its first letter of three."""
    bury(hands, times=3)
    steps = client.dead_letters.redrive(
        Selection(tenant=hands.tenant), reason="mended", terms=Terms(rate_per_s=2), key=hands.tenant
    )
    job = next(steps).job
    steps.close()
    yield job
    rows = client.dead_letters.redrives.get(job.job_id)
    assert rows.ended


def test_a_redrive_that_was_left_is_gone_on_with(window: Window, hands: Hands, left: Any, client: Client) -> None:
    """
    It stands as interrupted; whoever may go on with it does, under their name.
    """
    page = window.page("/dead-letters")
    assert "interrupted" in page
    assert f"/redrive/{left.job_id}/resume" in page
    assert window.post(f"/redrive/{left.job_id}/resume", reason="the laptop was shut")[0] == 303
    until(lambda: states(hands) == {"redriving": 3}, 20, "the rest")
    until(lambda: client.dead_letters.redrives.get(left.job_id).state == "done", 20, "its end")


def test_an_unknown_effect_is_a_persons_matter(window: Window, hands: Hands, admin: psycopg.Connection[Any]) -> None:
    """
    A letter with an effect of unknown outcome is not redriven until somebody says what they found; the key is shown.
    """
    claim = hands.begin()
    ref: StepRef = claim.ref
    admin.execute(
        "insert into agentq.effect (tenant, session_id, step_id, effect_key, name, state, calls, fence, args_hash, "
        "claimed_at, settled_at, failure) values (%s, %s, %s, 'refund:A1', 'refund', 'unknown', 1, %s, ''::bytea, "
        """agentq.now(), agentq.now(), '{"kind": "unknown", "type": "Timeout", "message": "no answer"}')""",
        (hands.tenant, ref.session_id, ref.step_id, claim.fence),
    )
    hands.settle(claim, "dead", failure=Failure("unknown", "Timeout", "no answer"))
    [letter] = DeadLetterStore(hands.store).ls(Selection(tenant=hands.tenant))
    path = f"/letter/{hands.tenant}/{letter.letter_id}"
    page = window.page(path)
    for said in ("refund:A1", "unknown", "refused unless", "what you found"):
        assert said in page, said
    assert window.post(f"{path}/redrive", reason="x", seen=seen(page))[0] == 400
    status, page = window.post(f"{path}/redrive", dry_run="1", effects="done")
    assert (status, "1 match, 1 would be redriven" in page) == (200, True)
    assert window.post(f"{path}/redrive", effects="done", reason="the bank says so", seen=seen(page))[0] == 303
    assert states(hands) == {"redriving": 1}


def test_groups_lead_to_their_letters(window: Window, hands: Hands) -> None:
    """
    Counted by each of what the command counts by; each group's link shows its letters.
    """
    [one] = bury(hands)
    for by in ("cause", "agent", "tenant", "step", "class", "dependency"):
        page = window.page(f"/dead-letters?by={by}&tenant={hands.tenant}")
        links = {html.unescape(link) for link in re.findall(r'<th scope="row"><a href="(\?[^"]+)"', page)}
        assert links, by
        for link in links:
            assert one in window.page(f"/dead-letters{link}"), (by, link)
    assert uuid.UUID(one)


def test_flower_may_have_no_agents(settings: Settings, hands: Hands) -> None:
    """
    Where the fleet's modules are not, everything but an edit works: the client of the tabs is made without them.
    """
    from agentq.flower.tabs import _client

    lacking = settings.model_copy(update={"agents": ("not_installed_here",)})
    with pytest.raises(ConfigError, match="not_installed_here"):
        Client(lacking)
    [one] = bury(hands)
    with contextlib.closing(_client(lacking)) as client:
        assert [str(letter.letter_id) for letter in client.dead_letters.ls(Selection(tenant=hands.tenant))] == [one]
