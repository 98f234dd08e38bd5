"""Submissions that came through the broker alone and were refused."""

from __future__ import annotations

import click

from agentq.cli.output import json_option, print_json, print_table
from agentq.cli.reach import client

_FACTS = ("submission", "at", "tenant", "reason", "body")


@click.group()
def submission() -> None:
    """Refused submissions: ls."""


@submission.command()
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="The newest so many.")
@json_option
def ls(limit: int, as_json: bool) -> None:
    """List the newest submissions that were refused, with the reason. With --json also what they said."""
    with client() as connected:
        rows = connected.operators.refused_submissions(limit)
    if as_json:
        print_json([dict(zip(_FACTS, row, strict=True)) for row in rows])
        return
    print_table(
        ("#", "AT", "TENANT", "BYTES", "REASON"),
        ((number, at, tenant, len(body), reason) for number, at, tenant, reason, body in rows),
        empty="none was refused",
    )
