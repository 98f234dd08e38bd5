"""`agentq tenant`."""

from __future__ import annotations

import json
import secrets
from typing import Any

import psycopg
import pytest

from tests.cli.conftest import Cli
from tests.conftest import TENANTS


def new() -> str:
    return f"{TENANTS}cli-{secrets.token_hex(3)}"


def listed(cli: Cli, name: str) -> dict[str, Any]:
    [row] = cli.json("tenant", "ls", "--tenant", name)
    return dict(row)


def test_adding_once(cli: Cli) -> None:
    """
    The second time changes nothing, and a dry run adds nothing.
    """
    name = new()
    assert cli.json("tenant", "add", name, "--dry-run")["added"] is True
    assert name not in cli.ok("tenant", "ls", "--match", name)
    assert cli.json("tenant", "add", name, "--concurrency", "7", "--weight", "2")["added"] is True
    assert cli.json("tenant", "add", name, "--concurrency", "9")["added"] is False
    row = listed(cli, name)
    assert (row["concurrency"], row["weight"], row["state"]) == (7, 2, "active")
    assert "already" in cli.ok("tenant", "add", name)


def test_changing(cli: Cli, tenant: str, admin: psycopg.Connection[Any]) -> None:
    """
    What is given changes, the rest stays; who and why is kept.
    """
    before = listed(cli, tenant)
    dry = cli.json("tenant", "set", tenant, "--state", "paused", "--reason", "angry", "--dry-run")
    assert dry["changed"] == {"state": ["active", "paused"]}
    assert listed(cli, tenant) == before
    said = cli.ok("tenant", "set", tenant, "--state", "paused", "--concurrency", "3", "--reason", "angry")
    assert "active → paused" in said
    row = listed(cli, tenant)
    assert (row["state"], row["concurrency"], row["weight"]) == ("paused", 3, before["weight"])
    found = admin.execute(
        "select operator, reason from agentq.operator_action where tenant = %s and action = 'tenant set'", (tenant,)
    ).fetchall()
    assert found == [("tester", "angry")]
    assert "nothing changed" in cli("tenant", "set", tenant, "--state", "paused", "--reason", "x").stderr


def test_a_tenants_content_is_its_own_affair(cli: Cli, tenant: str, admin: psycopg.Connection[Any]) -> None:
    """
    What traces keep of it can be set apart from the fleet's settings, and given back to them.
    """
    for chosen, kept in (("off", "off"), ("fleet", None)):
        cli.ok("tenant", "set", tenant, "--trace-content", chosen, "--reason", "asked for")
        row = admin.execute("select trace_content from agentq.tenant where name = %s", (tenant,)).fetchone()
        assert row == (kept,)
    assert "secret" in cli.refused(2, "tenant", "set", tenant, "--trace-content", "secret", "--reason", "x")


def test_placing(cli: Cli, tenant: str) -> None:
    """
    The dry run says what would be, also that nobody serves the group; the record and the queue list follow.
    """
    dry = cli("tenant", "set", tenant, "--queue", "shard", "--group", "lonely", "--reason", "x", "--dry-run")
    assert "queue auto would become shard" in dry.stdout
    assert "agentq worker --group lonely" in dry.stderr
    assert listed(cli, tenant)["group"] == "default"
    change = cli.json("tenant", "set", tenant, "--queue", "shard", "--group", "lonely", "--reason", "small")
    assert change["changed"] == {"placement": ["auto", "shard"], "group": ["default", "lonely"]}
    row = listed(cli, tenant)
    assert row["queue"].startswith("agentq.shard.lonely.")
    [depth] = cli.json("queue", "ls", "--tenant", tenant)["tenants"]
    assert (depth["group"], depth["queue"]) == ("lonely", row["queue"])
    found = cli.json("doctor")["findings"]
    [group] = [finding for finding in found if finding["check"] == "group lonely"]
    assert f"tenant {tenant} waits for group lonely, which no worker serves" in group["found"]
    name = new()
    cli.ok("tenant", "add", name, "--queue", "own", "--group", "lonely")
    assert listed(cli, name)["queue"] == f"agentq.t.{name}"


def test_a_list_is_short_unless_all_are_wanted(cli: Cli, admin: psycopg.Connection[Any]) -> None:
    """
    That there are more is said beside the answer; a part of the name and a state narrow it.
    """
    part = f"{new()}-"
    names = sorted(f"{part}{n}" for n in range(4))
    admin.execute("insert into agentq.tenant (name, concurrency) select unnest(%s::text[]), 1", (names,))
    admin.execute("update agentq.tenant set state = 'draining' where name = %s", (names[2],))
    for command, rows in (("tenant", lambda found: found), ("queue", lambda found: found["tenants"])):
        field = "name" if command == "tenant" else "tenant"

        def listed(*more: str, of: str = command, by: str = field, rows: Any = rows) -> tuple[list[str], str]:
            result = cli(of, "ls", "--match", part, *more, "--json")
            assert result.exit_code == 0, result.output
            return [row[by] for row in rows(json.loads(result.stdout))], result.stderr

        assert listed() == (names, "")
        shown, said = listed("--limit", "3")
        assert shown == names[:3]
        assert "--all" in said
        assert listed("--limit", "3", "--all") == (names, "")
        assert listed("--state", "draining") == ([names[2]], "")
    assert "no such tenant" in cli("tenant", "ls", "--match", f"{part}not").stderr
    assert "no tenant" in cli.refused(4, "tenant", "ls", "--tenant", f"{part}not")


@pytest.mark.parametrize(
    ("code", "arguments", "says"),
    [
        (2, ("add", "Not A Name"), "a-z"),
        (2, ("add", "x" * 64), "1 to 63"),
        (2, ("add", "ok", "--concurrency", "0"), "0"),
        (2, ("add", "ok", "--weight", "0"), "above 0"),
        (2, ("add", "ok", "--weight", "nan"), "above 0"),
        (2, ("add",), "NAME"),
        (4, ("set", "nobody-here", "--weight", "2", "--reason", "x"), "no tenant"),
        (2, ("set", "ok", "--weight", "2"), "--reason"),
        (2, ("set", "ok", "--weight", "2", "--reason", ""), "--reason"),
        (2, ("set", "ok", "--reason", "x"), "nothing to change"),
        (2, ("set", "ok", "--state", "gone", "--reason", "x"), "gone"),
        (2, ("set", "ok", "--weight", "1001", "--reason", "x"), "1000"),
        (2, ("set", "ok", "--queue", "mine", "--reason", "x"), "mine"),
        (2, ("add", "ok", "--group", "quarantine"), "quarantine"),
        (2, ("add", "ok", "--group", "Not A Name"), "a-z"),
    ],
)
def test_what_is_refused(cli: Cli, code: int, arguments: tuple[str, ...], says: str) -> None:
    assert says in cli.refused(code, "tenant", *arguments)
