"""Dependencies, for people: what is out of order, since when and why, and a hand on its breaker."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import click

from agentq.cli.exits import NOT_FOUND, Problem
from agentq.cli.output import heading, json_option, note, print_facts, print_json, print_table, span, when
from agentq.cli.reach import client

if TYPE_CHECKING:
    from agentq.store.dependencies import DependencyRow

_tenant = click.option("--tenant", help="This tenant's own access to it, instead of the whole fleet's.")
_reason = click.option("--reason", required=True, help="Why; kept with your name.")
_new = click.option("--new", is_flag=True, help="Though nothing has called a dependency of that name yet.")
_dry_run = click.option("--dry-run", is_flag=True, help="Say what would change, change nothing.")
_for = click.option("--for", "for_", metavar="TIME", help="Until then, 15m or 2h; without it, until `auto`.")


@click.group()
def dependency() -> None:
    """Dependencies: ls, show, open, shut, auto. What steps need, and the breaker that the fleet shares for each."""


@dependency.command()
@click.option("--not-closed", is_flag=True, help="Only those that hold steps back, or are forced.")
@json_option
def ls(not_closed: bool, as_json: bool) -> None:
    """List every breaker: closed lets calls through, open holds steps back, half_open lets a few try."""
    with client() as connected:
        found = [row for row in connected.dependencies.ls() if not not_closed or row.state != "closed"]
    if as_json:
        print_json(found)
        return
    print_table(
        ("DEPENDENCY", "TENANT", "STATE", "SINCE", "NEXT TRY", "WINDOW", "FAILED", "HELD BACK", "LATEST FAILURE"),
        (
            (
                row.name,
                row.tenant or "all",
                row.state,
                when(row.since),
                _next_try(row),
                f"{row.window_bad} of {row.window_ok + row.window_bad} failed"
                if row.window_ok + row.window_bad
                else "",
                row.bad_total,
                row.refused_total,
                _failure(row),
            )
            for row in found
        ),
        empty="none is open or forced" if not_closed else "nothing has been called yet",
    )


@dependency.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show one dependency: its breakers, what they saw, and when they opened and closed."""
    with client() as connected:
        found, changes = connected.dependencies.ls(name), connected.dependencies.changes(name)
    if not found:
        raise Problem(f"no dependency {name}: agentq dependency ls shows those that were called", NOT_FOUND)
    if as_json:
        print_json({"breakers": found, "changes": changes})
        return
    for row in found:
        print_facts(
            [
                ("dependency", row.name),
                ("tenant", row.tenant or "all"),
                ("state", row.state),
                ("since", when(row.since)),
                ("next try", _next_try(row)),
                ("forced until", when(row.forced_until)),
                ("tries gone well", row.good if row.state == "half_open" else None),
                ("window", f"{row.window_ok} answered, {row.window_bad} failed"),
                ("in all", f"{row.ok_total} answered, {row.bad_total} failed, {row.refused_total} held back"),
                ("openings", row.openings),
                ("latest failure", _failure(row)),
            ]
        )
        click.echo()
    heading("Changes")
    print_table(
        ("AT", "TENANT", "STATE", "WHY"),
        ((when(change.at), change.tenant or "all", change.state, change.why) for change in changes),
        empty="it has never opened",
    )


@dependency.command("open", short_help="Hold back every step that needs it.")
@click.argument("name")
@_tenant
@_for
@_new
@_reason
@_dry_run
@json_option
def open_(**given: Any) -> None:
    """Hold back every step that needs it; no attempt is lost, nothing is called. `auto` ends it."""
    _force("open", **given)


@dependency.command(short_help="Let every call through.")
@click.argument("name")
@_tenant
@_for
@_new
@_reason
@_dry_run
@json_option
def shut(**given: Any) -> None:
    """Let every call through whatever fails; failed attempts count again. `auto` ends it."""
    _force("shut", **given)


@dependency.command(short_help="Give it back to its own judgement.")
@click.argument("name")
@_tenant
@_reason
@_dry_run
@json_option
def auto(**given: Any) -> None:
    """End `open` or `shut`: one that was held open is tried by a few calls before it is trusted."""
    _force("auto", for_=None, **given)


def _force(
    state: Literal["open", "shut", "auto"],
    *,
    name: str,
    tenant: str | None,
    for_: str | None,
    reason: str,
    dry_run: bool,
    as_json: bool,
    new: bool = False,
) -> None:
    from agentq.agents.returns import seconds
    from agentq.step import valid_name

    valid_name("dependency", name)
    if not reason.strip():
        raise click.UsageError("--reason must say something")
    for_s = seconds(for_) if for_ is not None else None
    if for_s == 0:
        raise click.BadParameter("a time above 0", param_hint="--for")
    with client() as connected:
        known = {row.tenant: row.state for row in connected.dependencies.ls(name)}
        before = known.get(tenant)
        if before is None and (state == "auto" or not (known or new)):
            # A mistyped name would be forced, hold nothing back, and look as if it did.
            hint = "" if state == "auto" else "; --new forces a name that nothing has called yet"
            raise Problem(f"no dependency {name}: agentq dependency ls shows those that were called{hint}", NOT_FOUND)
        after = before or "closed"
        if not dry_run:
            _, after = connected.dependencies.force(name, state, reason=reason, tenant=tenant, for_s=for_s)
        elif state != "auto":
            after = "forced_open" if state == "open" else "forced_shut"
        elif before in ("forced_open", "forced_shut"):
            after = "half_open" if before == "forced_open" else "closed"
    if as_json:
        print_json(
            {"dependency": name, "tenant": tenant, "before": before or "closed", "after": after, "dry_run": dry_run}
        )
        return
    whose = f" of tenant {tenant}" if tenant else ""
    if after == before:
        note(f"dependency {name}{whose} is {after} already")
        return
    until = f" for {span(for_s)}" if for_s else ""
    click.echo(f"dependency {name}{whose}: {before or 'closed'} {'would become' if dry_run else '→'} {after}{until}")


def _next_try(row: DependencyRow) -> str:
    if row.next_probe_at is None:
        return ""
    left_s = (row.next_probe_at - datetime.now(UTC)).total_seconds()
    return f"in {span(left_s)}" if left_s > 0 else "with the next step"


def _failure(row: DependencyRow) -> str:
    if not row.last_failure:
        return ""
    status = row.last_failure.get("status")
    return f"{row.last_failure.get('type')}{f' {status}' if status else ''}"
