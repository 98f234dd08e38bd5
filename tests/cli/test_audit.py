"""The audit by the command line, and tenants' further settings, which it records."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Cli

WHY = ("--reason", "their contract")


def test_what_was_done_is_listed(cli: Cli, tenant: str) -> None:
    """
    Who, what, to whom, why: newest first, by tenant, person and kind.
    """
    cli.ok("tenant", "set", tenant, "--weight", "2", *WHY)
    cli.ok("budget", "set", tenant, "--cost", "1", *WHY)
    rows = cli.json("audit", "ls", "--tenant", tenant)
    assert [(row["action"], row["operator"], row["reason"]) for row in rows] == [
        ("budget set", "tester", "their contract"),
        ("tenant set", "tester", "their contract"),
    ]
    assert [row["action"] for row in cli.json("audit", "ls", "--tenant", tenant, "--action", "budget")] == [
        "budget set"
    ]
    assert cli.json("audit", "ls", "--tenant", tenant, "--operator", "nobody") == []
    assert "tester" in cli.ok("audit", "ls", "--limit", "1")
    cli.refused(2, "audit", "ls", "--limit", "0")


def test_a_tenant_is_restricted_and_freed(cli: Cli, tenant: str) -> None:
    """
    Agents, tools, retention: what is named counts, `all` and 0 take it back; the same again changes nothing.
    """
    what = ("--agent", "count", "--agent", "fan", "--tool", "pay", "--retention-days", "30")
    assert "retention_days" in cli.ok("tenant", "set", tenant, *what, *WHY)
    [row] = cli.json("tenant", "ls", "--tenant", tenant)
    assert (row["agents"], row["tools"], row["retention_days"]) == (["count", "fan"], ["pay"], 30)
    assert cli.json("tenant", "set", tenant, *what, *WHY)["changed"] == {}
    free = ("--agent", "all", "--tool", "all", "--retention-days", "0")
    assert set(cli.json("tenant", "set", tenant, *free, *WHY, "--dry-run")["changed"]) == {
        "agents", "tools", "retention_days",
    }  # fmt: skip
    cli.ok("tenant", "set", tenant, *free, *WHY)
    [row] = cli.json("tenant", "ls", "--tenant", tenant)
    assert (row["agents"], row["tools"], row["retention_days"]) == (None, None, None)


@pytest.mark.parametrize(("option", "value"), [("--agent", "Not A Name"), ("--retention-days", "-1")])
def test_bad_restrictions_are_refused(cli: Cli, tenant: str, option: str, value: str) -> None:
    """
    By what is wrong with them, and the tenant stays as it was.
    """
    before = cli.json("tenant", "ls", "--tenant", tenant)
    assert value in cli.refused(2, "tenant", "set", tenant, option, value, *WHY)
    assert cli.json("tenant", "ls", "--tenant", tenant) == before


def test_a_tenant_is_erased_once_it_is_paused(cli: Cli, tenant: str) -> None:
    """
    Not by accident: paused, with a reason and `--yes`; what is left is said.
    """
    assert "would be removed" in cli.ok("tenant", "erase", tenant, *WHY)
    assert "pause it first" in cli.refused(2, "tenant", "erase", tenant, *WHY, "--yes")
    cli.ok("tenant", "set", tenant, "--state", "paused", *WHY)
    assert cli.json("tenant", "erase", tenant, *WHY, "--yes")["sessions"] == 0
    assert "nobody-here" in cli.refused(4, "tenant", "erase", "nobody-here", *WHY)
    assert "--reason" in cli.refused(2, "tenant", "erase", tenant)
