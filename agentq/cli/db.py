"""The schema: brought to this release, and checked."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

import click

from agentq.cli.exits import FAILED, Problem
from agentq.cli.output import json_option, note, print_facts, print_json, print_table
from agentq.cli.reach import knock, servers
from agentq.settings import Settings

_SHOWN = 50


@click.group()
def db() -> None:
    """The schema in Postgres: upgrade, check."""


@db.command()
@click.option(
    "--phase",
    type=click.Choice(["before", "after"]),
    help="before: only what the previous release can live with. after: the rest, once it is gone  [default: all]",
)
@click.option("--reason", default="schema upgrade", show_default=True, help="Why; kept with your name.")
@click.option("--dry-run", is_flag=True, help="Say what would run, change nothing.")
@json_option
def upgrade(phase: Literal["before", "after"] | None, reason: str, dry_run: bool, as_json: bool) -> None:
    """Bring the schema to this release, as the owner, and grant the fleet's role what it needs.

    The owner is AGENTQ_ADMIN_DATABASE_URL; without it AGENTQ_DATABASE_URL. Safe to repeat, also from several machines.
    """
    from agentq.store import migrate

    settings = servers()
    knock(settings.migration_url)
    if dry_run:
        ran = list(migrate.check(settings.migration_url).pending)
    else:
        ran = migrate.upgrade(settings.migration_url, fleet_role=fleet_role(settings), phase=phase)
        if ran:
            _record(settings, ran, reason)
    if as_json:
        print_json({"ran": [] if dry_run else ran, "pending": ran if dry_run else [], "dry_run": dry_run})
    elif ran:
        click.echo(f"{'would run' if dry_run else 'ran'} {', '.join(ran)}")
    else:
        click.echo("the schema is of this release; nothing to run")


@db.command()
@click.option("--live", is_flag=True, help="Instead: could the agents that are here carry on every live session?")
@click.option("--agent", help="With --live: only sessions of this agent.")
@json_option
def check(live: bool, agent: str | None, as_json: bool) -> None:
    """Compare the schema with this release; changes nothing. Exit code 1 when something is wrong.

    With --live, before a deploy and with the new code: replays the state, arguments and history of every step that is
    still to run on the agents that AGENTQ_AGENTS names, and tells those that would be stranded.
    """
    from agentq.store import migrate

    if live:
        _check_live(agent, as_json)
        return
    if agent is not None:
        raise click.UsageError("--agent goes with --live")

    settings = servers()
    knock(settings.database_url)
    # As the fleet's role: whether row security binds it is half of the question.
    status = migrate.check(settings.database_url)
    wrong = []
    if status.pending:
        wrong.append(f"{len(status.pending)} migrations have not run: agentq db upgrade")
    if status.differences:
        wrong.append(f"{len(status.differences)} things were altered by hand; bring them back, or migrate them")
    if status.bypasses_row_security:
        wrong.append(
            "the fleet's role bypasses row security, so nothing keeps tenants apart: name another role in "
            "AGENTQ_DATABASE_URL, and this one in AGENTQ_ADMIN_DATABASE_URL"
        )
    if as_json:
        facts = {"ok": not wrong, "current": status.current, "head": status.head, "pending": status.pending}
        facts |= {"differences": status.differences, "bypasses_row_security": status.bypasses_row_security}
        print_json(facts | {"problems": wrong})
    else:
        print_facts((("schema", status.current or "none"), ("release", status.head)))
        for difference in status.differences:
            note(f"differs: {difference}")
    if wrong:
        raise Problem("; ".join(wrong), FAILED)
    if not as_json:
        click.echo("the schema is of this release, and row security binds the fleet")


def _check_live(agent: str | None, as_json: bool) -> None:
    from agentq.cli.reach import client
    from agentq.client.live import LiveCheck
    from agentq.step import valid_name

    if agent is not None:
        valid_name("agent", agent)
    with client(agents=True) as connected:
        check = LiveCheck(connected.sessions.store, connected.registry)
        found = list(check.stranded(agent))
    if as_json:
        print_json({"ok": not found, "steps": check.steps, "stranded": found})
    elif not found:
        click.echo(f"{check.steps:,} live steps, and the agents that are here can run each of them")
    else:
        rows = (
            (one.tenant, one.session_id, f"{one.agent}@{one.agent_version}", one.step, one.why)
            for one in found[:_SHOWN]
        )
        print_table(("TENANT", "SESSION", "AGENT", "STEP", "WHY"), rows, empty="none")
        if len(found) > _SHOWN:
            note(f"{len(found) - _SHOWN:,} more; --json shows all")
    if found:
        sessions = len({one.session_id for one in found})
        raise Problem(
            f"{sessions:,} live sessions would be stranded by this code: keep their version registered, or declare "
            "@agent.migrate(from_version=…)",
            FAILED,
        )


def fleet_role(settings: Settings) -> str | None:
    """The role of the fleet, when it is not the owner's own."""
    fleet, owner = (urlsplit(url).username for url in (settings.database_url, settings.migration_url))
    return fleet if fleet and fleet != owner else None


def _record(settings: Settings, ran: list[str], reason: str) -> None:
    from agentq.client import operator_name
    from agentq.store.operators import Operators
    from agentq.store.pool import Store

    store = Store(settings.migration_url, size=1, name="agentq db upgrade")
    try:
        Operators(store).record_action(
            operator=operator_name(),
            tenant=None,
            action="db upgrade",
            target=ran[-1],
            reason=reason,
            detail={"ran": ran},
        )
    finally:
        store.close()
