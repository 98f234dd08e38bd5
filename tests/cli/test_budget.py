"""Budgets by the command line: set, looked at, added up."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg
import pytest

from agentq.store.pool import Store
from agentq.verdicts import Charge, Extras
from tests.cli.conftest import Cli
from tests.store.test_budgets import Budgets, wanted
from tests.support.hands import Hands


@pytest.fixture
def spent(hands: Hands) -> str:
    """A session with one call that was charged seven micros."""
    claim = hands.begin()
    Budgets(hands.store).reserve(claim, wanted(claim))
    hands.settle(claim, "end", extras=Extras(charges=(Charge(wanted(claim).reservation_id, "charged", 7, 2, 0, 1),)))
    return str(claim.ref.session_id)


def test_a_limit_is_set_shown_and_taken_away(cli: Cli, tenant: str, admin: psycopg.Connection[Any]) -> None:
    """
    With who and why in the record; a dry run changes nothing.
    """
    assert "would be" in cli.ok("budget", "set", tenant, "--cost", "12.5", "--reason", "x", "--dry-run")
    assert cli.json("budget", "show", tenant)["limits"] == []
    said = cli.ok("budget", "set", tenant, "--cost", "12.5", "--period", "month", "--reason", "their contract")
    assert "$12.5" in said
    [row] = cli.json("budget", "show", tenant)["limits"]
    assert (row["cost_micros"], row["period"], row["on_refusal"]) == (12_500_000, "month", "wait")
    assert "$12.50" in cli.ok("budget", "show", tenant)
    cli.ok("budget", "set", tenant, "--none", "--period", "month", "--reason", "no longer")
    assert cli.json("budget", "show", tenant)["limits"] == []
    query = "select operator, action, reason from agentq.operator_action where tenant = %s order by action_id"
    rows = admin.execute(query, (tenant,)).fetchall()
    assert rows == [("tester", "budget set", "their contract"), ("tester", "budget set", "no longer")]


def test_every_call_of_a_session_is_listed(cli: Cli, hands: Hands, spent: str) -> None:
    """
    What was reserved, what was charged, at which price, and the sum.
    """
    [row] = cli.json("budget", "ledger", spent)
    assert (row["reserved_micros"], row["charged_micros"], row["price_version"]) == (10, 7, "test")
    result = cli("budget", "ledger", spent[:13], "--tenant", hands.tenant)
    assert "$0.000007 charged" in result.stderr
    assert "openai:m" in result.stdout


def test_check_adds_up(cli: Cli, hands: Hands, spent: str, admin: psycopg.Connection[Any]) -> None:
    """
    Exit code 0 while all sums are those of their calls, 1 and the difference when one is not.
    """
    assert cli.json("budget", "check", hands.tenant) == {"reconciles": True, "differences": []}
    update = "update agentq.budget_window set spent_micros = 8 where tenant = %s and scope = 'agent'"
    admin.execute(update, (hands.tenant,))
    result = cli("budget", "check", hands.tenant)
    assert result.exit_code == 1
    assert "spent_micros" in result.stdout


def test_alerts_are_listed(cli: Cli, hands: Hands) -> None:
    cli.ok("budget", "set", hands.tenant, "--cost", "0.00001", "--reason", "x")
    claim = hands.begin()
    Budgets(hands.store).reserve(claim, wanted(claim, micros=8))
    hands.settle(claim, "end", extras=Extras(charges=(Charge(wanted(claim).reservation_id, "charged", 8, 2, 0, 1),)))
    assert [row["threshold"] for row in cli.json("budget", "alerts", hands.tenant)] == [80, 50]


def test_prices_are_set_listed_and_taken_away(cli: Cli, store: Store) -> None:
    model = f"acme:{uuid.uuid4().hex[:8]}"
    why = ("--reason", "measured")
    cli.ok("budget", "price", model, "--input", "1", "--output", "2", *why, "--dry-run")
    assert model not in {row["model"] for row in cli.json("budget", "price")}
    cli.ok("budget", "price", model, "--input", "1", "--output", "2", *why)
    cli.ok("budget", "price", model, "--input", "1.5", "--output", "2", *why)
    [row] = [row for row in cli.json("budget", "price") if row["model"] == model]
    assert (row["input_micros"], row["output_micros"], row["cached_micros"], row["revision"]) == (
        1_500_000, 2_000_000, 1_500_000, 2,
    )  # fmt: skip
    cli.ok("budget", "price", model, "--none", *why)
    assert model not in {row["model"] for row in cli.json("budget", "price")}


WHY = ("--reason", "x")


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (4, ("budget", "set", "nobody-here", "--cost", "1", *WHY)),
        (4, ("budget", "show", "nobody-here")),
        (4, ("budget", "check", "nobody-here")),
        (4, ("budget", "ledger", "00000000-dead")),
        (2, ("budget", "ledger", "no-uuid")),
        (2, ("budget", "set", "TENANT", *WHY)),
        (2, ("budget", "set", "TENANT", "--cost", "1")),
        (2, ("budget", "set", "TENANT", "--cost", "1", "--reason", " ")),
        (2, ("budget", "set", "TENANT", "--cost", "much", *WHY)),
        (2, ("budget", "set", "TENANT", "--cost", "-1", *WHY)),
        (2, ("budget", "set", "TENANT", "--cost", "nan", *WHY)),
        (2, ("budget", "set", "TENANT", "--cost", "1e40", *WHY)),
        (2, ("budget", "set", "TENANT", "--cost", "1", "--none", *WHY)),
        (2, ("budget", "set", "TENANT", "--cost", "1", "--scope", "agent", *WHY)),
        (2, ("budget", "set", "TENANT", "--cost", "1", "--subject", "x", *WHY)),
        (2, ("budget", "set", "TENANT", "--cost", "1", "--scope", "session", "--on-refusal", "wait", *WHY)),
        (2, ("budget", "price", "gpt-5", "--input", "1", "--output", "1", *WHY)),
        (2, ("budget", "price", "openai:gpt-5", "--input", "1", *WHY)),
        (2, ("budget", "price", "openai:gpt-5", "--input", "x", "--output", "1", *WHY)),
        (2, ("budget", "price", "openai:gpt-5", "--input", "1", "--output", "1")),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(cli: Cli, tenant: str, code: int, arguments: tuple[str, ...]) -> None:
    """
    One line that says what is wrong, and the exit code that scripts expect.
    """
    before = cli.json("budget", "price")
    cli.refused(code, *(tenant if word == "TENANT" else word for word in arguments))
    assert cli.json("budget", "show", tenant)["limits"] == []
    assert cli.json("budget", "price") == before
