"""The fleet: which worker processes live now."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import click

from agentq.cli.exits import FAILED
from agentq.cli.output import json_option, print_json, print_table, span
from agentq.cli.reach import client

if TYPE_CHECKING:
    from agentq.store.workers import WorkerRow


@click.group()
def fleet() -> None:
    """Worker processes: ls."""


@fleet.command()
@click.option("--here", is_flag=True, help="Only this host's; exit code 1 when there is none, as a health check wants.")
@json_option
def ls(here: bool, as_json: bool) -> None:
    """List the worker processes that live now, as Postgres knows them."""
    from agentq.store.workers import Workers

    with client() as connected:
        found = Workers(connected.sessions.store).present()
    if here:
        found = [row for row in found if row.host == socket.gethostname()]
    if as_json:
        print_json(found)
    else:
        _show(found)
    if here and not found:
        raise click.exceptions.Exit(FAILED)


def _show(found: list[WorkerRow]) -> None:
    print_table(
        (
            "GROUP",
            "HOST",
            "PID",
            "ROLE",
            "STATE",
            "SINCE",
            "LAST HEARD",
            "LAST MESSAGE",
            "RESTARTS",
            "RELEASE",
            "SERVES",
        ),
        (
            (
                row.group,
                row.host,
                row.pid,
                row.role,
                row.state,
                row.started_at,
                f"{span(row.silent_s)} ago",
                row.delivered_at,
                row.watchdog_restarts or None,
                row.release,
                " ".join(row.serves),
            )
            for row in found
        ),
        empty="no worker is alive: agentq worker, or agentq up",
    )
