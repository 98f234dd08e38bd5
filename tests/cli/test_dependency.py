"""`agentq dependency`."""

from __future__ import annotations

import itertools
from typing import Any

import psycopg
import pytest

from agentq.settings import Settings
from agentq.store.dependencies import FLEET, Breakers, Report
from agentq.store.pool import Store
from tests.cli.conftest import Cli
from tests.conftest import RUN
from tests.support.breakers import RULES

_numbers = itertools.count()


@pytest.fixture
def name() -> str:
    return f"dep-c-{RUN}-{next(_numbers)}"


@pytest.fixture
def out(store: Store, settings: Settings, name: str) -> str:
    """A dependency that is out of order."""
    breakers = Breakers(store, RULES)
    facts = {"kind": "transient", "type": "ReadTimeout", "status": 503}
    breakers.report([Report((FLEET, name), ok=2, bad=8, refused=5, failure=facts)])
    return name


def test_what_is_out_of_order(cli: Cli, out: str) -> None:
    """
    Listed with its state, what failed and when the next try is; `show` tells when it opened and why.
    """
    [row] = [row for row in cli.json("dependency", "ls", "--not-closed") if row["name"] == out]
    assert (row["state"], row["bad_total"], row["refused_total"], row["openings"]) == ("open", 8, 5, 1)
    assert row["last_failure"]["type"] == "ReadTimeout"
    shown = cli.ok("dependency", "show", out)
    assert "ReadTimeout 503" in shown
    assert "8 of 10 calls failed" in shown
    assert "next try" in shown
    assert out in cli.ok("dependency", "ls")


def test_a_hand_on_it(cli: Cli, name: str, admin: psycopg.Connection[Any]) -> None:
    """
    A dry run changes nothing; opening, again, and giving back each say what they did; who and why is kept.
    """
    said = cli.ok("dependency", "open", name, "--new", "--for", "15m", "--reason", "maintenance", "--dry-run")
    assert f"dependency {name}: closed would become forced_open for 15 min 0 s" in said
    assert name not in cli.ok("dependency", "ls")
    assert "→ forced_open" in cli.ok("dependency", "open", name, "--new", "--for", "15m", "--reason", "maintenance")
    assert "already" in cli("dependency", "open", name, "--reason", "maintenance").stderr
    assert cli.json("dependency", "auto", name, "--reason", "over")["after"] == "half_open"
    assert "half_open already" in cli("dependency", "auto", name, "--reason", "over").stderr
    assert cli.json("dependency", "shut", name, "--reason", "we know better")["after"] == "forced_shut"
    found = admin.execute(
        "select action, operator, reason from agentq.operator_action where target = %s order by action_id", (name,)
    ).fetchall()
    assert found[0] == ("dependency open", "tester", "maintenance")
    assert [row[0] for row in found][-1] == "dependency shut"


def test_a_tenants_own(cli: Cli, name: str, tenant: str) -> None:
    """
    I8: with a tenant, that tenant's own breaker, and nobody else's.
    """
    cli.ok("dependency", "open", name, "--new", "--tenant", tenant, "--reason", "its key is gone")
    rows = [(row["tenant"], row["state"]) for row in cli.json("dependency", "ls") if row["name"] == name]
    assert rows == [(tenant, "forced_open")]


@pytest.mark.parametrize(
    ("code", "arguments", "says"),
    [
        (2, ("open", "Not A Name", "--reason", "x"), "a-z"),
        (2, ("open", "ok"), "--reason"),
        (2, ("open", "ok", "--reason", " "), "--reason"),
        (2, ("open", "ok", "--reason", "x", "--for", "soon"), "duration"),
        (2, ("open", "ok", "--reason", "x", "--for", "0s"), "above 0"),
        (4, ("open", "ok", "--reason", "x", "--tenant", "nobody-here"), "no tenant"),
        (4, ("show", "nothing-of-this-name"), "no dependency"),
        (4, ("auto", "nothing-of-this-name", "--reason", "x"), "no dependency"),
        (4, ("open", "nothing-of-this-name", "--reason", "x"), "--new"),
        (4, ("shut", "nothing-of-this-name", "--reason", "x", "--dry-run"), "--new"),
    ],
)
def test_bad_input_changes_nothing(cli: Cli, code: int, arguments: tuple[str, ...], says: str) -> None:
    """
    One line that says what was wrong, and the exit code of its kind.
    """
    assert says in cli.refused(code, "dependency", *arguments)
