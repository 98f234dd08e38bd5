"""The commands that pause, end, replay, fork and look into sessions."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg
import pytest

from tests.cli.conftest import Cli


def begin(cli: Cli, tenant: str, count: int = 1) -> list[str]:
    """Sessions that no worker runs."""
    return [
        cli.json("start", "count", "--tenant", tenant, "--input", "{}", "--key", f"{tenant}-{n}-{uuid.uuid4()}")["id"]
        for n in range(count)
    ]


def actions(admin: psycopg.Connection[Any], target: str) -> list[tuple[str, str, str]]:
    query = "select action, operator, reason from agentq.operator_action where target = %s order by action_id"
    return admin.execute(query, (target,)).fetchall()


def test_a_session_is_paused_inspected_and_resumed(cli: Cli, idle: str, admin: psycopg.Connection[Any]) -> None:
    """
    Each change asks for a reason and is on record; a dry run changes nothing; inspect says why it stands still.
    """
    [made] = begin(cli, idle)
    assert cli.json("session", "pause", made, "--dry-run")["would_pause"] is True
    assert cli.json("session", "pause", made, "--reason", "lunch")["state"] == "paused"
    assert "paused by tester (operator): lunch" in cli.ok("session", "inspect", made)
    found = cli.json("session", "inspect", made)
    assert (found["state"], found["steps"][0]["waits_for"], found["hold"]["kind"]) == ("paused", "paused", "operator")
    assert f"agentq session resume {made}" in found["next_command"]
    assert cli.json("session", "resume", made, "--reason", "back")["state"] == "running"
    assert cli.json("session", "inspect", made)["steps"][0]["waits_for"] == "tenant"
    assert actions(admin, made) == [("session pause", "tester", "lunch"), ("session resume", "tester", "back")]


def test_a_runaway_is_killed_and_brought_back(cli: Cli, idle: str) -> None:
    """
    Killed, replayed from its first step with another state, forked: each step says what it does.
    """
    [made] = begin(cli, idle)
    assert cli.json("session", "kill", made, "--reason", "loops")["state"] == "cancelled"
    plan = cli.json("session", "replay", made, "--from-step", "0", "--set", "until=5", "--dry-run")
    assert (plan["generation"], plan["changes"]) == (0, [{"path": "until", "before": 3, "after": 5}])
    assert "would go on at step 0 (up)" in cli.ok("session", "replay", made, "--from-step", "0", "--dry-run")
    done = cli.json("session", "replay", made, "--from-step", "up", "--set", "until=5", "--reason", "mended")
    assert (done["generation"], done["sessions"]) == (1, [made])
    assert cli.json("session", "show", made)["state"] == "running"
    said = cli.ok("session", "fork", made, "--from-step", "0", "--dry-effects", "--reason", "what if")
    assert f"has begun at step 0 (up) of session {made}" in said
    cli.refused(1, "session", "replay", made, "--reason", "it runs")


def test_many_are_ended_by_a_filter(cli: Cli, idle: str) -> None:
    """
    The count comes first; with --yes they end, and what had ended stays as it is.
    """
    begin(cli, idle, 3)
    assert cli.json("session", "cancel", "--tenant", idle, "--dry-run") == {
        "matched": 3, "changed": 0, "dry_run": True,
    }  # fmt: skip
    cli.refused(2, "session", "cancel", "--tenant", idle, "--reason", "x", "--json")
    assert cli.json("session", "cancel", "--tenant", idle, "--agent", "nobody", "--reason", "x")["matched"] == 0
    assert cli.json("session", "pause", "--tenant", idle, "--agent", "count", "--reason", "x", "--yes")["changed"] == 3
    assert cli.json("session", "resume", "--tenant", idle, "--held-by", "breaker", "--reason", "x")["matched"] == 0
    words = ("--tenant", idle, "--state", "paused", "--reason", "x", "--yes")
    assert "3 sessions are killed" in cli.ok("session", "kill", *words)
    assert cli.json("session", "cancel", "--tenant", idle, "--reason", "x", "--yes")["matched"] == 0


@pytest.mark.parametrize(
    ("code", "words", "says"),
    [
        (2, ("pause", "--dry-run"), "name a session"),
        (2, ("kill", "--reason", "x"), "name a session"),
        (2, ("cancel", "01a2", "--agent", "count", "--reason", "x"), "not both"),
        (2, ("kill", "01a2"), "--reason"),
        (2, ("cancel", "--tenant", "No Name", "--reason", "x"), "not allowed"),
        (2, ("cancel", "--older", "soon", "--reason", "x"), "duration"),
        (2, ("fork", "01a2", "--reason", "x"), "--from-step"),
        (2, ("replay", "01a2", "--set", "a=1", "--edit", "--reason", "x"), "not both"),
        (4, ("inspect", str(uuid.UUID(int=7))), "no session"),
        (4, ("replay", str(uuid.UUID(int=7)), "--reason", "x"), "no session"),
    ],
)
def test_what_is_wrong_is_said(cli: Cli, code: int, words: tuple[str, ...], says: str) -> None:
    """
    Bad input ends with one line and an exit code, and nothing is changed.
    """
    assert says in cli.refused(code, "session", *words)


def test_a_step_that_is_not_there_is_said(cli: Cli, idle: str) -> None:
    """
    With those that are.
    """
    [made] = begin(cli, idle)
    assert "it has: 0 up" in cli.refused(2, "session", "replay", made, "--from-step", "7", "--reason", "x")
    wrong = ("session", "replay", made, "--from-step", "0", "--set", "until=often", "--reason", "x")
    assert "until" in cli.refused(2, *wrong)
