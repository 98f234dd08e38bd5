"""The fleet: which worker processes live now."""

from __future__ import annotations

import click

from agentq.cli.output import json_option, print_json, print_table, span
from agentq.cli.reach import client


@click.group()
def fleet() -> None:
    """Worker processes: ls."""


@fleet.command()
@json_option
def ls(as_json: bool) -> None:
    """List the worker processes that live now, as Postgres knows them."""
    from agentq.store.workers import Workers

    with client() as connected:
        found = Workers(connected.sessions.store).present()
    if as_json:
        print_json(found)
        return
    print_table(
        ("GROUP", "HOST", "PID", "ROLE", "STATE", "SINCE", "LAST HEARD", "RELEASE", "SERVES"),
        (
            (
                row.group,
                row.host,
                row.pid,
                row.role,
                row.state,
                row.started_at,
                f"{span(row.silent_s)} ago",
                row.release,
                " ".join(row.serves),
            )
            for row in found
        ),
        empty="no worker is alive: agentq worker, or agentq up",
    )
