"""`agentq session`."""

from __future__ import annotations

import json
import shlex
import uuid
from typing import Any

import psycopg
import pytest

from tests.cli.conftest import Cli
from tests.support.fleet import Fleet
from tests.support.hands import Hands


def started(cli: Cli, tenant: str, agent: str = "count", *more: str) -> str:
    return str(cli.json("start", agent, "--tenant", tenant, *more)["id"])


def test_listing(cli: Cli, tenant: str) -> None:
    """
    The newest first, filtered by what is asked, whole cells when piped.
    """
    ids = [started(cli, tenant, "count", "--key", f"key-{n}") for n in range(3)]
    lines = cli.ok("session", "ls", "--tenant", tenant).splitlines()
    assert [line.split()[0] for line in lines] == ["SESSION", *reversed(ids)]
    rows = cli.json("session", "ls", "--tenant", tenant, "--key", "key-1")
    assert [row["session_id"] for row in rows] == [ids[1]]
    assert rows[0]["state"] == "running"
    assert len(cli.json("session", "ls", "--tenant", tenant, "--limit", "2")) == 2
    assert cli.json("session", "ls", "--tenant", tenant, "--state", "done") == []
    assert cli.json("session", "ls", "--tenant", tenant, "--agent", "fan") == []


def test_an_empty_list_is_no_error(cli: Cli, tenant: str) -> None:
    result = cli("session", "ls", "--tenant", tenant)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no session" in result.stderr


def test_a_finished_session_is_shown_whole(cli: Cli, tenant: str, shared_fleet: Fleet) -> None:
    """
    Facts, steps with attempts, effects with calls; the id may be cut short.
    """
    made = cli.json("start", "fan", "--tenant", tenant, "--input", '{"text": "a"}', "--wait", "--timeout", "30")
    facts = cli.json("session", "show", made["id"][:30], "--tenant", tenant)
    assert facts["result"] == ["A0", "A1", "A2"]
    assert facts["input"]["text"] == "a"
    assert [step["name"] for step in facts["steps"]].count("part") == 3
    assert {effect["state"] for effect in facts["effects"]} == {"done"}
    assert facts["advice"] == []
    text = cli.ok("session", "show", made["id"])
    assert "gather" in text
    assert "Effects" in text


def test_a_failed_session_says_what_to_do_next(cli: Cli, tenant: str, shared_fleet: Fleet) -> None:
    cli("start", "flaky", "--tenant", tenant, "--input", '{"fails": 9}', "--key", "f", "--wait", "--timeout", "60")
    [row] = cli.json("session", "ls", "--tenant", tenant)
    assert row["state"] == "failed"
    facts = cli.json("session", "show", row["session_id"])
    advised = facts["advice"][0].partition("let it go on: ")[2]
    assert facts["steps"][0]["attempt"] == 6
    assert "→" in cli.ok("session", "show", row["session_id"])
    assert "goes on" in cli.ok(*shlex.split(advised)[1:])


def test_following(cli: Cli, tenant: str, shared_fleet: Fleet) -> None:
    """
    From the beginning to the end, one JSON document a line.
    """
    made = started(cli, tenant)
    lines = [json.loads(line) for line in cli.ok("session", "tail", made, "--json", "--timeout", "30").splitlines()]
    assert [line["kind"] for line in lines] == ["step", "step", "step", "ended"]
    assert lines[-1]["data"]["state"] == "done"
    assert "session done" in cli.ok("session", "tail", made)


def test_following_ends_with_the_patience(cli: Cli, idle: str) -> None:
    made = started(cli, idle, "wait")
    assert cli("session", "tail", made, "--timeout", "0.2").exit_code == 1


def test_cancelling(cli: Cli, idle: str, admin: psycopg.Connection[Any]) -> None:
    """
    A dry run changes nothing; the real one ends the session and leaves a row that says who and why.
    """
    made = started(cli, idle, "wait")
    would = cli.json("session", "cancel", made, "--reason", "wrong order", "--dry-run")
    assert (would["would_cancel"], would["state"]) == (True, "running")
    assert "would be cancelled" in cli.ok("session", "cancel", made, "--reason", "x", "--dry-run")
    assert cli.json("session", "show", made)["state"] == "running"
    assert cli.json("session", "cancel", made, "--reason", "wrong order")["state"] == "cancelled"
    row = admin.execute("select operator, reason from agentq.operator_action where target = %s", (made,)).fetchall()
    assert row == [("tester", "wrong order")]
    # Again: it is so already, and that is what was asked for.
    assert cli("session", "cancel", made, "--reason", "again").exit_code == 0
    assert "nothing would change" in cli.ok("session", "cancel", made, "--reason", "x", "--dry-run")


def test_cancelling_what_has_ended_is_1(cli: Cli, tenant: str, shared_fleet: Fleet) -> None:
    made = cli.json("start", "count", "--tenant", tenant, "--wait", "--timeout", "30")
    assert "as done" in cli.refused(1, "session", "cancel", made["id"], "--reason", "x")


@pytest.mark.parametrize(
    ("code", "arguments", "says"),
    [
        (2, ("show", "zebra"), "hexadecimal"),
        (2, ("show", ""), "hexadecimal"),
        (2, ("show",), "ID"),
        (4, ("show", str(uuid.UUID(int=7))), "no session"),
        (4, ("tail", str(uuid.UUID(int=7))), "no session"),
        (4, ("cancel", str(uuid.UUID(int=7)), "--reason", "x"), "no session"),
        (2, ("cancel", str(uuid.UUID(int=7))), "--reason"),
        (2, ("cancel", str(uuid.UUID(int=7)), "--reason", " "), "--reason"),
        (2, ("ls", "--state", "sleeping"), "sleeping"),
        (2, ("ls", "--limit", "0"), "0"),
        (2, ("ls", "--tenant", "Not A Name"), "a-z"),
    ],
)
def test_what_is_refused(cli: Cli, code: int, arguments: tuple[str, ...], says: str) -> None:
    assert says in cli.refused(code, "session", *arguments)


def test_ids_that_are_alike(cli: Cli, tenant: str, other_tenant: str) -> None:
    """
    An abbreviation that fits several is refused with the candidates; the other tenant's are not mine.
    """
    one, two = started(cli, tenant), started(cli, tenant)
    alike = "".join(a for a, b in zip(one, two, strict=True) if a == b)[:6]
    said = cli.refused(2, "session", "show", alike)
    assert "several sessions" in said
    assert cli.refused(4, "session", "show", one, "--tenant", other_tenant)


def test_control_characters_do_not_reach_the_terminal(cli: Cli, tenant: str) -> None:
    """
    A key is somebody's data: it must not drive the reader's terminal.
    """
    started(cli, tenant, "count", "--key", "\x1b[31mred\nline")
    text = cli.ok("session", "ls", "--tenant", tenant)
    assert "\x1b" not in text
    assert len(text.splitlines()) == 2


def test_sessions_of_last_tuesday(cli: Cli, hands: Hands, tenant: str, admin: psycopg.Connection[Any]) -> None:
    """
    By when they began, and by what stands in them: without an id and without a page full of others.
    """
    ids = [str(hands.start(key=f"ticket-{number}").session_id) for number in range(3)]
    for age, session in zip(("8 days", "7 days", "1 hour"), ids, strict=True):
        admin.execute(
            "update agentq.session set created_at = now() - %s::interval where session_id = %s", (age, session)
        )

    def found(*options: str) -> list[str]:
        return [row["session_id"] for row in cli.json("session", "ls", "--tenant", tenant, *options)]

    assert found("--since", "2h") == [ids[2]]
    assert found("--since", "180h", "--until", "2h") == [ids[1]]
    assert found("--until", "180h") == [ids[0]]
    assert found("--text", "TICKET-1") == [ids[1]]
    assert found("--since", "2020-01-01", "--limit", "1") == [ids[2]]
    assert "--since" in cli.refused(2, "session", "ls", "--since", "tuesday")
    assert cli.json("anomaly", "ls", "--tenant", tenant, "--since", "7d", "--until", "1h") == []
