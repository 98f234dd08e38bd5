"""Anomalies, for people: which sessions were not as usual, how far out, and what is done about the next ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from agentq.cli.output import json_option, note, plain, print_facts, print_json, print_table, when
from agentq.cli.reach import client, resolve
from agentq.cli.selecting import moment

if TYPE_CHECKING:
    from agentq.store.anomalies import AnomalyRow

_tenant = click.option("--tenant", help="Of this tenant.")
_reason = click.option("--reason", required=True, help="Why; kept with your name.")
_dry_run = click.option("--dry-run", is_flag=True, help="Say what would change, change nothing.")


@click.group()
def anomaly() -> None:
    """Anomalies: ls, show, mute, unmute, set, orders, baseline. Sessions that were not as usual."""


@anomaly.command()
@_tenant
@click.option("--agent", help="Of this agent.")
@click.option("--session", "session_text", help="Of this session; its id may be cut short.")
@click.option("--state", type=click.Choice(["open", "muted", "all"]), default="open", show_default=True)
@click.option("--since", metavar="TIME", help="Found since then: 2h, 7d, 2026-11-24, 2026-11-24T14:00.")
@click.option("--until", metavar="TIME", help="Found before then.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="So many at most.")
@json_option
def ls(
    *,
    tenant: str | None,
    agent: str | None,
    session_text: str | None,
    state: str,
    since: str | None,
    until: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List the newest anomalies: the session, the measure, its value and what is normal."""
    with client() as connected:
        session = None
        if session_text:
            tenant, session = resolve(connected, session_text, tenant)
        found = connected.anomalies.ls(
            state=None if state == "all" else state,
            tenant=tenant,
            agent=agent,
            session=session,
            since=moment("--since", since),
            until=moment("--until", until),
            limit=limit,
        )
    if as_json:
        print_json(found)
        return
    print_table(
        ("ID", "FOUND", "TENANT", "AGENT", "SESSION", "NOW", "MEASURE", "VALUE", "NORMAL", "RULE", "STATE"),
        (
            (
                str(row.anomaly_id)[:8],
                when(row.found_at),
                row.tenant,
                f"{row.agent}@{row.agent_version}",
                row.session_id,
                row.session_state,
                row.measure,
                amount(row.measure, row.value),
                normal(row),
                row.rule,
                "parked" if row.parked and row.session_state == "paused" else row.state,
            )
            for row in found
        ),
        empty="nothing is out of the ordinary",
    )


@anomaly.command(short_help="Show one anomaly, and what to do.")
@click.argument("id_", metavar="ID")
@_tenant
@json_option
def show(id_: str, tenant: str | None, as_json: bool) -> None:
    """Show one anomaly: how far out, by which rule, learned from how many runs, and where to look next."""
    with client() as connected:
        row = connected.anomalies.get(id_, tenant=tenant)
    if as_json:
        print_json(row)
        return
    print_facts(
        [
            ("anomaly", row.anomaly_id),
            ("state", row.state),
            ("session", f"{row.session_id} ({row.session_state})"),
            ("tenant", row.tenant),
            ("agent", f"{row.agent}@{row.agent_version}"),
            ("measure", row.measure),
            ("value", amount(row.measure, row.value)),
            ("normal", f"{normal(row)}, learned from {row.runs:,} runs"),
            ("rule", row.rule),
            ("why", row.why),
            ("found", f"{when(row.found_at)}{', while it ran' if row.running else ', when it had ended'}"),
            ("parked", "yes, for this" if row.parked else None),
            ("muted", f"{when(row.muted_at)} by {row.muted_by}" if row.muted_at else None),
        ]
    )
    note(f"agentq session trace {row.session_id}          what it did, step by step; --html FILE for a page")
    if row.session_state == "paused":
        note(f"agentq session resume {row.session_id} --reason WHY   lets it go on; session cancel ends it")
    elif row.session_state == "running":
        note(f"agentq session pause {row.session_id} --reason WHY    holds it")


@anomaly.command(short_help="Say that an anomaly needs nobody any more.")
@click.argument("id_", metavar="ID")
@_tenant
@_reason
@_dry_run
@json_option
def mute(**given: Any) -> None:
    """Say that an anomaly needs nobody any more. Later ones are told all the same: see `agentq anomaly set`."""
    _change("mute", "muted", **given)


@anomaly.command(short_help="Take a mute back.")
@click.argument("id_", metavar="ID")
@_tenant
@_reason
@_dry_run
@json_option
def unmute(**given: Any) -> None:
    """Take a mute back: the anomaly is open again."""
    _change("unmute", "open", **given)


def _change(verb: str, state: str, *, id_: str, tenant: str | None, reason: str, dry_run: bool, as_json: bool) -> None:
    if not reason.strip():
        raise click.UsageError("--reason must say something")
    with client() as connected:
        change = connected.anomalies.mute if verb == "mute" else connected.anomalies.unmute
        changed = change(id_, reason=reason, tenant=tenant, dry_run=dry_run)
        row = connected.anomalies.get(id_, tenant=tenant)
    if as_json:
        print_json(plain(row) | {"changed": changed, "dry_run": dry_run})
    elif changed:
        click.echo(f"anomaly {row.anomaly_id} {'would be' if dry_run else 'is'} {state}")
    else:
        note(f"anomaly {row.anomaly_id} was {state} before; nothing changed")


@anomaly.command("set", short_help="Say what is done about the next ones.")
@click.option("--tenant", help="Of this tenant; default: of every one.")
@click.option("--agent", help="Of this agent; default: of every one.")
@click.option("--measure", help="Of this measure, as `anomaly ls` names it; default: of every one.")
@click.option(
    "--action", required=True, type=click.Choice(["flag", "park", "mute", "default"]), help="default: no order."
)
@click.option("--for", "for_", metavar="TIME", help="Only for this time: 2h, 7d.")
@_reason
@_dry_run
@json_option
def set_(
    *,
    tenant: str | None,
    agent: str | None,
    measure: str | None,
    action: Any,
    for_: str | None,
    reason: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """
    Say what is done about anomalies from now on: flag them (as without an order), park the session that is out
    of the ordinary while it runs, or keep them muted. The most specific order counts.
    """
    from agentq.agents.returns import seconds

    with client() as connected:
        changed = connected.anomalies.order(
            None if action == "default" else action,
            tenant=tenant,
            agent=agent,
            measure=measure,
            for_s=seconds(for_) if for_ else None,
            reason=reason,
            dry_run=dry_run,
        )
    whose = " ".join(filter(None, (tenant or "every tenant", agent or "every agent", measure or "every measure")))
    if as_json:
        print_json({"of": whose, "action": action, "changed": changed, "dry_run": dry_run})
    elif changed:
        click.echo(f"{whose}: {'would be ' if dry_run else ''}{action}")
    else:
        note(f"{whose}: there was no order; nothing changed")


@anomaly.command()
@json_option
def orders(*, as_json: bool) -> None:
    """List what operators want done about anomalies."""
    with client() as connected:
        found = connected.anomalies.orders()
    if as_json:
        print_json(found)
        return
    print_table(
        ("TENANT", "AGENT", "MEASURE", "ACTION", "UNTIL", "BY", "REASON"),
        ((o.tenant, o.agent or "*", o.measure or "*", o.action, when(o.until), o.operator, o.reason) for o in found),
        empty="no order: anomalies are flagged",
    )


@anomaly.command()
@_tenant
@click.option("--agent", help="Of this agent.")
@json_option
def baseline(*, tenant: str | None, agent: str | None, as_json: bool) -> None:
    """Show what is normal for each agent's version: median and 99th percentile of what its runs came to."""
    from agentq.policies.anomalies import MEASURES, Baseline

    with client() as connected:
        found = connected.anomalies.baselines(tenant=tenant, agent=agent)
    known = [(row, Baseline(row.runs, row.facts)) for row in found]
    if as_json:
        print_json(
            [
                {
                    "tenant": row.tenant,
                    "agent": row.agent,
                    "agent_version": row.agent_version,
                    "runs": row.runs,
                    "measures": {
                        name: {"median": sketch.quantile(0.5), "p99": sketch.quantile(0.99), "most": sketch.top}
                        for name, sketch in of.measures.items()
                    },
                    "tools": of.tools,
                    "classes": of.classes,
                }
                for row, of in known
            ]
        )
        return
    print_table(
        ("TENANT", "AGENT", "RUNS", *(f"{name.upper()} (P50, P99)" for name in MEASURES), "TOOLS"),
        (
            (
                row.tenant,
                f"{row.agent}@{row.agent_version}",
                row.runs,
                *(
                    f"{amount(name, of.measures[name].quantile(0.5))}, {amount(name, of.measures[name].quantile(0.99))}"
                    for name in MEASURES
                ),
                ", ".join(sorted(of.tools)),
            )
            for row, of in known
        ),
        empty="nothing was learned yet: sessions teach it when they end",
    )


def amount(measure: str, value: float) -> str:
    """A value in the measure's unit."""
    match measure:
        case "cost" | "cost_by_hour":
            return f"${value / 1_000_000:.4f}"
        case "duration":
            return f"{value / 1000:.1f} s"
        case "tool_mix":
            return f"{value:.3f}"
        case _:
            return f"{value:,.0f}"


def normal(row: AnomalyRow) -> str:
    """The normal range."""
    if row.rule == "new_tool":
        return "never"
    return f"{amount(row.measure, row.low)} to {amount(row.measure, row.high)}"
