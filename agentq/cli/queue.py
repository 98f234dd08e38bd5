"""Queues: the ledger's count of waiting work beside the broker's own."""

from __future__ import annotations

from typing import Any

import click

from agentq.cli.output import json_option, many_options, note, print_json, print_table, span
from agentq.cli.reach import client
from agentq.errors import BrokerUnavailable
from agentq.settings import Settings

_ALL = 10_000_000


@click.group()
def queue() -> None:
    """Queues: ls, place."""


@queue.command()
@click.option("--reason", required=True, help="Why; kept with your name.")
@click.option("--dry-run", is_flag=True, help="Say what would move, move nothing.")
@json_option
def place(*, reason: str, dry_run: bool, as_json: bool) -> None:
    """Place every tenant anew, by own_queues_max and queue_shards as they are now.

    Changing these settings moves nobody by itself. Tenants move while they run; nothing is lost.
    """
    if not reason.strip():
        raise click.UsageError("--reason must say something")
    with client() as connected:
        moved = connected.tenants.place_again(reason=reason, dry_run=dry_run)
    if as_json:
        print_json({"moved": {name: list(pair) for name, pair in moved.items()}, "dry_run": dry_run})
        return
    for name, (old, new) in moved.items():
        click.echo(f"tenant {name}: {old or 'not placed'} {'would become' if dry_run else '→'} {new}")
    if not moved:
        note("every tenant is where the settings want it; nothing changed")


@queue.command()
@click.option("--tenant", help="Only this tenant's.")
@click.option("--match", metavar="TEXT", help="Only of tenants with it in their name.")
@click.option("--state", type=click.Choice(["active", "paused", "draining"]), help="Only of tenants that are so.")
@many_options
@json_option
def ls(
    *, tenant: str | None, match: str | None, state: str | None, limit: int, everything: bool, as_json: bool
) -> None:
    """List tenants' waiting and running steps, beside what the broker holds: whoever waits longest comes first.

    READY waits in Postgres for admission, QUEUED was handed to the broker, RUNNING is with a worker. IN BROKER is of
    the queue, which tenants in a shard share. The ledger decides: a broker that holds less than QUEUED lost messages,
    and the relay sends them again.
    """
    from agentq.step import valid_name

    if tenant is not None:
        valid_name("tenant", tenant)
    with client() as connected:
        if tenant is not None:
            one = connected.ledger.queue_depth(tenant)
            depths, more = [one] if one is not None else [], False
        else:
            page = connected.ledger.queue_depths(limit=_ALL if everything else limit, match=match, state=state)
            depths, more = page.rows, page.more is not None
        queues = sorted({depth.queue for depth in depths})
        broker, trouble = broker_depths(connected.settings, queues, own=tenant is None)
    if more:
        note(f"these are the first {limit}; --all lists all of them, --limit more")
    if as_json:
        rows = [_facts(depth, broker) for depth in depths]
        fleet = {name: count for name, count in broker.items() if not name.startswith("agentq.t.")}  # shards among them
        print_json({"tenants": rows, "queues": fleet, "broker_error": trouble})
        return
    print_table(
        ("TENANT", "STATE", "CAP", "READY", "QUEUED", "RUNNING", "OLDEST", "GROUP", "QUEUE", "IN BROKER"),
        (
            (
                depth.tenant,
                depth.state,
                depth.concurrency,
                depth.ready,
                depth.queued,
                depth.running,
                span(depth.oldest_due_s),
                depth.group,
                depth.queue,
                broker.get(depth.queue, "?"),
            )
            for depth in depths
        ),
        empty="no such tenant" if match or state else "no tenant yet: agentq tenant add NAME",
    )
    others = [(name, count) for name, count in broker.items() if not name.startswith("agentq.t.") and count]
    if others:
        click.echo()
        print_table(("QUEUE", "IN BROKER"), others, empty="")
    if trouble:
        note(f"the broker does not answer, its counts are missing: {trouble}")


def broker_depths(settings: Settings, queues: list[str], *, own: bool) -> tuple[dict[str, int], str | None]:
    """Messages in each queue, and why they are missing when the broker is away."""
    from agentq.broker.connection import connect
    from agentq.broker.publisher import Publisher
    from agentq.broker.queues import QUARANTINE, SUBMIT, SUBMIT_DEAD

    names = queues + ([QUARANTINE, SUBMIT, SUBMIT_DEAD] if own else [])
    found: dict[str, int] = {}
    publisher = Publisher(lambda: connect(settings))
    try:
        for name in names:
            found[name] = publisher.depth(name)
    except BrokerUnavailable as error:
        return found, str(error)
    finally:
        publisher.close()
    return found, None


def _facts(depth: Any, broker: dict[str, int]) -> dict[str, Any]:
    return {
        "tenant": depth.tenant,
        "state": depth.state,
        "concurrency": depth.concurrency,
        "ready": depth.ready,
        "queued": depth.queued,
        "running": depth.running,
        "oldest_due_s": depth.oldest_due_s,
        "group": depth.group,
        "queue": depth.queue,
        "in_broker": broker.get(depth.queue),
    }
