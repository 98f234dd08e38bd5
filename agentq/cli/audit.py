"""The audit: what operators did, when, and why."""

from __future__ import annotations

import click

from agentq.cli.output import json_option, print_json, print_table
from agentq.cli.reach import client


@click.group()
def audit() -> None:
    """What operators did: ls."""


@audit.command()
@click.option("--tenant", help="Done to this tenant.")
@click.option("--operator", help="Done by this person.")
@click.option("--action", help="Of this kind: tenant, budget, dlq redrive, ...")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True)
@json_option
def ls(tenant: str | None, operator: str | None, action: str | None, limit: int, as_json: bool) -> None:
    """List what operators did, newest first. The fleet can neither change nor remove these rows."""
    with client() as connected:
        rows = connected.operators.actions(tenant=tenant, operator=operator, action=action, limit=limit)
    if as_json:
        print_json(rows)
        return
    print_table(
        ("AT", "OPERATOR", "ACTION", "TENANT", "TARGET", "REASON"),
        ((row.at, row.operator, row.action, row.tenant, row.target, row.reason) for row in rows),
        empty="nothing was done by hand",
    )
