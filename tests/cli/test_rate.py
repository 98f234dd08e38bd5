"""Rates by the command line."""

from __future__ import annotations

import uuid

import pytest

from tests.cli.conftest import Cli

WHY = ("--reason", "their contract")


def test_a_rate_is_set_listed_and_taken_away(cli: Cli, tenant: str) -> None:
    """
    Of one tenant or of the fleet; a dry run changes nothing.
    """
    provider = f"p{uuid.uuid4().hex[:8]}"

    def limits() -> dict[str, tuple[int | None, int | None]]:
        rows = [row for row in cli.json("rate", "ls") if row["provider"] == provider]
        return {row["tenant"]: (row["requests_per_min"], row["tokens_per_min"]) for row in rows}

    cli.ok("rate", "set", provider, "--requests", "5", *WHY, "--dry-run")
    assert limits() == {}
    assert "500 requests" in cli.ok("rate", "set", provider, "--requests", "500", *WHY)
    cli.ok("rate", "set", provider, "--tenant", tenant, "--tokens", "1000", *WHY)
    assert limits() == {"*": (500, None), tenant: (None, 1000)}
    cli.ok("rate", "set", provider, "--none", *WHY)
    assert limits()["*"] == (None, None)
    assert provider in cli.ok("rate", "ls")


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (4, ("p", "--tenant", "nobody-here", "--requests", "1", *WHY)),
        (2, ("p", *WHY)),
        (2, ("p", "--requests", "1")),
        (2, ("p", "--requests", "1", "--reason", " ")),
        (2, ("p", "--requests", "0", *WHY)),
        (2, ("p", "--requests", "-5", *WHY)),
        (2, ("p", "--requests", "many", *WHY)),
        (2, ("p", "--none", "--requests", "1", *WHY)),
        (2, ("Not A Provider", "--requests", "1", *WHY)),
    ],
)
def test_bad_input_is_refused(cli: Cli, code: int, arguments: tuple[str, ...]) -> None:
    before = cli.json("rate", "ls")
    cli.refused(code, "rate", "set", *arguments)
    assert cli.json("rate", "ls") == before
