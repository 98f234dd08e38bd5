"""Standing orders for dead letters: which kinds come back by themselves once their trouble is over."""

from __future__ import annotations

from typing import Any

import click

from agentq.cli.exits import NOT_FOUND, Problem
from agentq.cli.output import json_option, plain, print_json, print_table, span
from agentq.cli.reach import client
from agentq.cli.selecting import rate

_dry_run = click.option("--dry-run", is_flag=True, help="Say what would change, change nothing.")
_reason = click.option("--reason", required=True, help="Why; kept with your name.")


@click.group()
def policy() -> None:
    """Automatic redrives, off unless you set one: set, ls, rm."""


@policy.command("set", short_help="Add or replace a policy.")
@click.argument("name")
@click.option("--cause", help="Letters of this cause; the first digits are enough.")
@click.option("--class", "kind", help="Of this class of failure.")
@click.option("--dependency", help="Whose failure speaks against this dependency.")
@click.option("--agent", help="Of this agent: NAME or NAME@VERSION.")
@click.option("--tenant", help="Of this tenant.")
@click.option("--step", help="That died in this step.")
@click.option("--quiet", default="10m", show_default=True, metavar="TIME",
              help="Begin when nothing that matches has died for so long.")  # fmt: skip
@click.option("--canary", type=click.IntRange(1, 10_000), default=5, show_default=True, help="So many first.")
@click.option("--threshold", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True,
              help="The share of canaries that must get past their step.")  # fmt: skip
@click.option("--rate", "rate_", default="2/s", show_default=True, metavar="RATE", help="At most so fast.")
@click.option("--max-generation", type=click.IntRange(1), default=2, show_default=True,
              help="Leave those that were brought back so often before.")  # fmt: skip
@click.option("--off", is_flag=True, help="Keep the policy, but do not act on it.")
@_reason
@_dry_run
@json_option
def set_(*, name: str, cause: str | None, kind: str | None, dependency: str | None, agent: str | None,
         tenant: str | None, step: str | None, quiet: str, canary: int, threshold: float, rate_: str,
         max_generation: int, off: bool, reason: str, dry_run: bool, as_json: bool) -> None:  # fmt: skip
    """Bring letters of a kind back by themselves, once nothing of the kind has died for a while.

    Canaries go first; if they die again, the rest stays until the next quiet time. Relays do it: no process needs to
    run for it.
    """
    from agentq.agents.returns import seconds
    from agentq.client import Policy, Selection, operator_name

    if not reason.strip():
        raise click.UsageError("--reason must say something")
    selection = Selection(
        cause=cause.lower() if cause else None, agent=agent, tenant=tenant, step=step,
        kind=kind.replace("-", "_") if kind else None, dependency=dependency, state=None,
    )  # fmt: skip
    if not selection.narrows:
        raise click.UsageError("name what comes back: --cause, --class, --dependency, --agent, --tenant or --step")
    wanted = Policy(
        name, selection.as_json(), seconds(quiet), canary, threshold, rate(rate_), max_generation, not off,
        operator_name(), reason,
    )  # fmt: skip
    with client() as connected:
        from dataclasses import replace

        waiting = connected.dead_letters.count(replace(selection, state="open"))
        if not dry_run:
            connected.dead_letters.set_policy(wanted)
    if as_json:
        print_json(plain(wanted) | {"letters_now": waiting, "dry_run": dry_run})
        return
    verb = "would be set" if dry_run else "is set"
    click.echo(f"policy {name} {verb}; {waiting:,} open letters match it now{' (it is off)' if off else ''}")


@policy.command()
@json_option
def ls(as_json: bool) -> None:
    """List every policy."""
    with client() as connected:
        found = connected.dead_letters.policies()
    if as_json:
        print_json(found)
        return
    print_table(
        ("POLICY", "STATE", "LETTERS", "QUIET", "CANARY", "THRESHOLD", "RATE", "MAX GEN", "BY", "REASON"),
        (
            (
                one.name,
                "on" if one.enabled else "off",
                _words(one.selection),
                span(one.quiet_s),
                one.canary,
                one.threshold,
                f"{one.rate_per_s:g}/s",
                one.max_generation,
                one.operator,
                one.reason,
            )
            for one in found
        ),
        empty="no policy: nothing is redriven by itself",
    )


@policy.command()
@click.argument("name")
@_reason
@_dry_run
@json_option
def rm(name: str, reason: str, dry_run: bool, as_json: bool) -> None:
    """Remove a policy. A redrive that it has begun goes on."""
    if not reason.strip():
        raise click.UsageError("--reason must say something")
    with client() as connected:
        letters = connected.dead_letters
        known = name in {one.name for one in letters.policies()}
        if known and not dry_run:
            known = letters.remove_policy(name, reason=reason)
    if not known:
        raise Problem(f"there is no policy {name!r} (agentq dlq policy ls)", NOT_FOUND)
    if as_json:
        print_json({"policy": name, "removed": True, "dry_run": dry_run})
    else:
        click.echo(f"policy {name} {'would be' if dry_run else 'is'} removed")


def _words(selection: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in selection.items())
