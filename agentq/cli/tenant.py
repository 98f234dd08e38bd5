"""Tenants: added, listed, changed while the fleet runs."""

from __future__ import annotations

from typing import Any

import click

from agentq.cli.output import cut, json_option, many_options, note, print_json, print_table
from agentq.cli.reach import client
from agentq.errors import UnknownTenant

_concurrency = click.option("--concurrency", type=click.IntRange(1, 100_000), help="Steps at once, at most.")
_queue = click.option(
    "--queue",
    type=click.Choice(["auto", "own", "shard"]),
    help="own: a queue of its own. shard: one that it shares. auto: its own while there are few tenants.",
)
_group = click.option("--group", metavar="NAME", help="The workers that serve it: agentq worker --group NAME.")
_dry_run = click.option("--dry-run", is_flag=True, help="Say what would change, change nothing.")


# Where nothing stands in the table, all is allowed, or kept for ever.
_NONE_IS_ALL = frozenset({"agents", "tools", "retention_days"})
# What an erasure says of itself, beside what is left.
_OF_ERASURE = frozenset({"removed", "memories_removed", "keys_destroyed", "queues_removed", "queues_left"})


@click.group()
def tenant() -> None:
    """Tenants: add, ls, set."""


@tenant.command()
@click.argument("name")
@_concurrency
@click.option("--weight", type=float, default=1.0, show_default=True, help="Share of the fleet beside the others.")
@_queue
@_group
@click.option("--reason", default="added", show_default=True, help="Why; kept with your name.")
@_dry_run
@json_option
def add(
    *,
    name: str,
    concurrency: int | None,
    weight: float,
    queue: str | None,
    group: str | None,
    reason: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Add a tenant. Workers listen to its queue within a second. One that is there already is left as it is."""
    from agentq.step import valid_name

    valid_name("tenant", name)
    if not 0 < weight <= 1000:
        raise click.BadParameter("a number above 0, at most 1000", param_hint="--weight")
    with client() as connected:
        if dry_run:
            added = not connected.tenants.has(name)
        else:
            added = connected.tenants.add(
                name, concurrency=concurrency, weight=weight, queue=queue, group=group, reason=reason
            )
    if as_json:
        print_json({"tenant": name, "added": added, "dry_run": dry_run})
    elif added:
        click.echo(f"tenant {name} {'would be' if dry_run else 'is'} added")
    else:
        click.echo(f"tenant {name} is there already; nothing changed (agentq tenant set changes it)")


@tenant.command()
@click.option("--tenant", "name", help="Only this one.")
@click.option("--match", metavar="TEXT", help="Only those with it in their name.")
@click.option("--state", type=click.Choice(["active", "paused", "draining"]), help="Only those that are so.")
@many_options
@json_option
def ls(*, name: str | None, match: str | None, state: str | None, limit: int, everything: bool, as_json: bool) -> None:
    """List tenants, by name."""
    with client() as connected:
        if name is not None:
            one = connected.tenants.get(name)
            if one is None:
                raise UnknownTenant(name)
            found = [one]
        else:
            most = None if everything else limit + 1
            found = connected.tenants.ls(match=match, state=state, limit=most)
    found = cut(found, None if everything else limit)
    if as_json:
        print_json(found)
        return
    print_table(
        ("TENANT", "STATE", "CONCURRENCY", "WEIGHT", "GROUP", "QUEUE", "SINCE"),
        (
            (row.name, row.state, row.concurrency, row.weight, row.group, row.queue or row.placement, row.created_at)
            for row in found
        ),
        empty="no such tenant" if match or state else "no tenant yet: agentq tenant add NAME",
    )


@tenant.command("set")
@click.argument("name")
@_concurrency
@click.option("--weight", type=float, help="Share of the fleet beside the others.")
@click.option(
    "--state",
    type=click.Choice(["active", "paused", "draining"]),
    help="paused: nothing of it runs. draining: no new sessions, the old ones end.",
)
@click.option(
    "--preapprove",
    metavar="EFFECT",
    multiple=True,
    help="An irreversible effect that needs nobody's leave; repeat it for all of them, '' for none.",
)
@click.option("--agent", "agents", multiple=True, metavar="NAME|all", help="May start these agents, and no other.")
@click.option("--tool", "tools", multiple=True, metavar="NAME|all", help="May perform these effects, and no other.")
@click.option("--retention-days", type=click.IntRange(0, 36_500), help="Remove ended sessions after; 0: never.")
@click.option(
    "--memory-days",
    type=click.IntRange(-1, 36_500),
    help="Remove memories so long after they were written; 0: never, -1: as sessions.",
)
@click.option(
    "--trace-content",
    type=click.Choice(["off", "kept", "exported", "fleet"]),
    help="Inputs and outputs in traces: not written, kept here, also sent by OpenTelemetry; fleet: as the settings.",
)
@_queue
@_group
@click.option("--reason", required=True, help="Why; kept with your name.")
@_dry_run
@json_option
def set_(
    *,
    name: str,
    concurrency: int | None,
    weight: float | None,
    state: str | None,
    preapprove: tuple[str, ...],
    agents: tuple[str, ...],
    tools: tuple[str, ...],
    retention_days: int | None,
    memory_days: int | None,
    trace_content: str | None,
    queue: str | None,
    group: str | None,
    reason: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Change a tenant while the fleet runs. What is not given stays as it is."""
    from agentq.store.placement import Placement

    wanted: dict[str, Any] = {"concurrency": concurrency, "weight": weight, "state": state}
    if preapprove:
        wanted["preapproved"] = sorted({name for name in preapprove if name.strip()})
    wanted |= {"agents": _named(agents), "tools": _named(tools), "retention_days": retention_days}
    wanted |= {"memory_days": memory_days, "trace_content": trace_content, "placement": queue, "group": group}
    wanted = {field: value for field, value in wanted.items() if value is not None}
    if not wanted:
        raise click.UsageError(
            "nothing to change: give --concurrency, --weight, --state, --preapprove, --agent, --tool, "
            "--retention-days, --memory-days, --trace-content, --queue, --group"
        )
    if weight is not None and not 0 < weight <= 1000:
        raise click.BadParameter("a number above 0, at most 1000", param_hint="--weight")
    if not reason.strip():
        raise click.UsageError("--reason must say something")
    with client() as connected:
        before = connected.tenants.get(name)
        if before is None:
            raise UnknownTenant(name)
        after = {field: value or None if field in _NONE_IS_ALL else value for field, value in wanted.items()}
        after |= {"memory_days": None} if memory_days == -1 else {}
        after |= {"trace_content": None} if trace_content == "fleet" else {}
        change = {field: [getattr(before, field), value] for field, value in after.items()}
        change = {field: pair for field, pair in change.items() if pair[0] != pair[1]}
        if change and not dry_run:
            preapprove, queue = wanted.pop("preapproved", None), wanted.pop("placement", None)
            connected.tenants.set(name, preapprove=preapprove, queue=queue, **wanted, reason=reason)
        alone = group is not None and not Placement(connected.ledger.store).is_served(group)
    if as_json:
        print_json({"tenant": name, "changed": change, "dry_run": dry_run})
        return
    for field, (old, new) in change.items():
        label = "queue" if field == "placement" else field
        click.echo(f"tenant {name}: {label} {old} {'would become' if dry_run else '→'} {new}")
    if alone:
        note(f"tenant {name} waits for group {group}, which no worker serves: agentq worker --group {group}")
    if not change:
        note(f"tenant {name} is so already; nothing changed")


@tenant.command()
@click.argument("name")
@click.option("--reason", required=True, help="Why; kept with your name.")
@click.option("--yes", is_flag=True, help="Do it; otherwise it is only said what would be.")
@_dry_run
@json_option
def erase(*, name: str, reason: str, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Remove every session of a paused tenant, all they left, its memories and its queues, for good.

    Its charges are kept.
    """
    if not reason.strip():
        raise click.UsageError("--reason must say something")
    yes = yes and not dry_run
    with client() as connected:
        before = connected.tenants.get(name)
        if before is None:
            raise UnknownTenant(name)
        found = connected.tenants.erase(name, reason=reason) if yes else {}
    if as_json:
        print_json({"tenant": name, "dry_run": not yes} | found)
    elif not yes:
        click.echo(f"every session and memory of tenant {name} would be removed; say so with --yes")
    else:
        left = {table: count for table, count in found.items() if table not in _OF_ERASURE}
        gone = f"{found['removed']} sessions and {found['memories_removed']} memories"
        keys = f", {found['keys_destroyed']} data keys destroyed" if found["keys_destroyed"] else ""
        kept = f"kept: {left.pop('reservations')} charges"
        click.echo(f"{gone} of tenant {name} are removed{keys}; {kept}; left: {_counts(left)}")
        if found["queues_left"]:
            note(
                f"the broker did not answer: the queues of tenant {name} are still there. A worker removes them once "
                "it is back; until then they hold ids, and which kind of failure each dead letter was (agentq doctor)"
            )


def _counts(left: dict[str, int]) -> str:
    """What is left, in words: it should be nothing, and each table was looked at."""
    some = ", ".join(f"{count} {table}" for table, count in left.items() if count)
    return some or f"nothing ({', '.join(left)})"


def _named(names: tuple[str, ...]) -> list[str] | None:
    """The names that were given; `all` is none of them in particular."""
    return None if not names else [] if "all" in names else sorted(set(names))
