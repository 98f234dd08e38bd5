"""Budgets: what may be spent, what is, on what, and whether it all adds up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from agentq.cli.exits import FAILED, Problem
from agentq.cli.output import json_option, note, print_json, print_table
from agentq.cli.reach import client, resolve
from agentq.verdicts import usd

F = TypeVar("F", bound=Callable[..., Any])

_dry_run = click.option("--dry-run", is_flag=True, help="Say what would change, change nothing.")
_reason: Callable[[F], F] = click.option("--reason", required=True, help="Why; kept with your name.")


@click.group()
def budget() -> None:
    """Budgets: show, set, ledger, alerts, price, check."""


@budget.command()
@click.argument("tenant", required=False)
@json_option
def show(tenant: str | None, as_json: bool) -> None:
    """Show what is spent and held in the windows that are open now. Days and months begin at midnight UTC."""
    with client() as connected:
        windows, limits = connected.budgets.windows(tenant), connected.budgets.ls(tenant)
    if as_json:
        print_json({"windows": windows, "limits": limits})
        return
    seen = {(row.tenant, row.scope, row.subject, row.period) for row in windows}
    rows: list[tuple[Any, ...]] = [
        (
            row.tenant, row.scope, row.subject, row.period, usd(row.limit_micros), usd(row.spent_micros),
            usd(row.reserved_micros) if row.reserved_micros else "", _tokens(row.limit_tokens),
            _tokens(row.spent_tokens), row.calls, row.on_refusal,
        )
        for row in windows
    ]  # fmt: skip
    rows += [
        (
            row.tenant, row.scope, row.subject or "each", row.period, usd(row.cost_micros), "", "",
            _tokens(row.tokens), "", "", row.on_refusal,
        )
        for row in limits
        if (row.tenant, row.scope, row.subject, row.period) not in seen
    ]  # fmt: skip
    print_table(
        (
            "TENANT", "SCOPE", "SUBJECT", "PERIOD", "LIMIT", "SPENT", "HELD", "TOKENS", "USED", "CALLS", "REFUSED",
        ),
        rows,
        empty="nothing is limited and nothing was spent: agentq budget set TENANT --cost 20",
    )  # fmt: skip


@budget.command("set")
@click.argument("tenant")
@click.option(
    "--scope", type=click.Choice(["tenant", "agent", "provider", "session"]), default="tenant", show_default=True
)
@click.option("--subject", default="", help="The agent or provider; of sessions: an agent, or one session's id.")
@click.option("--period", type=click.Choice(["day", "month"]), default="day", show_default=True)
@click.option("--cost", help="Dollars, at most.")
@click.option("--tokens", type=click.IntRange(0, 10**15), help="Tokens, in and out, at most.")
@click.option("--none", "no_limit", is_flag=True, help="Take the limit away.")
@click.option(
    "--on-refusal",
    type=click.Choice(["wait", "park", "end"]),
    help="A call that does not fit: wait for the window, park for a person, end. [default: wait; sessions: park]",
)
@_reason
@_dry_run
@json_option
def set_(
    *,
    tenant: str,
    scope: str,
    subject: str,
    period: str,
    cost: str | None,
    tokens: int | None,
    no_limit: bool,
    on_refusal: str | None,
    reason: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Set one limit of a tenant, in force for the next call. What waits for the old one looks again at once."""
    from agentq.client.budgets import check_limit, to_micros

    if no_limit == (cost is not None or tokens is not None):
        raise click.UsageError("give --cost, --tokens or both; or --none")
    if not reason.strip():
        raise click.UsageError("--reason must say something")
    chosen = on_refusal or ("park" if scope == "session" else "wait")
    check_limit(scope, subject, "session" if scope == "session" else period, chosen)
    limit = {"cost_usd": usd(to_micros(cost)).lstrip("$") if cost is not None else None, "tokens": tokens}
    with client() as connected:
        if not dry_run:
            connected.budgets.set(
                tenant, scope=scope, subject=subject, period=period, cost_usd=cost, tokens=tokens,
                on_refusal=chosen, reason=reason,
            )  # fmt: skip
    facts = {"tenant": tenant, "scope": scope, "subject": subject, "period": period} | limit
    if as_json:
        print_json(facts | {"on_refusal": chosen, "dry_run": dry_run})
        return
    said = ", ".join(
        filter(None, [f"${limit['cost_usd']}" if cost else "", f"{tokens:,} tokens" if tokens is not None else ""])
    )
    what = " ".join(filter(None, [scope, subject]))
    each = "each session" if scope == "session" else f"each {period}"
    click.echo(
        f"budget of {tenant}, {what}, {each}: {'would be ' if dry_run else ''}{said or 'no limit'}"
        + ("" if no_limit else f"; then {chosen}")
    )


@budget.command()
@click.argument("session")
@click.option("--tenant", help="Whose session it is, if several begin so.")
@click.option("--own", is_flag=True, help="Without its child sessions.")
@json_option
def ledger(session: str, tenant: str | None, own: bool, as_json: bool) -> None:
    """List every reserved call of a session and of its children, and what it was charged."""
    with client() as connected:
        owner, session_id = resolve(connected, session, tenant)
        rows = connected.budgets.ledger(owner, str(session_id), children=not own)
    if as_json:
        print_json(rows)
        return
    print_table(
        ("AT", "AGENT", "MODEL", "STATE", "RESERVED", "CHARGED", "IN", "CACHED", "OUT", "PRICE", "BY", "NOTE"),
        (
            (
                row.at, row.agent, f"{row.provider}:{row.model}", row.state, usd(row.reserved_micros),
                usd(row.charged_micros), row.used_input, row.used_cached, row.used_output, row.price_version,
                row.settled_by, row.note,
            )
            for row in rows
        ),
        empty="it has reserved no call",
    )  # fmt: skip
    if rows:
        held = sum(row.reserved_micros or 0 for row in rows if row.state == "held")
        spent = sum(row.charged_micros or 0 for row in rows)
        uncertain = sum(row.charged_micros or 0 for row in rows if row.state == "uncertain")
        note(f"{usd(spent)} charged, of it {usd(uncertain)} by estimate; {usd(held)} held")


@budget.command()
@click.argument("tenant", required=False)
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@json_option
def alerts(tenant: str | None, limit: int, as_json: bool) -> None:
    """List the budgets that passed 50, 80 or 100 percent of their limit, newest first."""
    with client() as connected:
        rows = connected.budgets.alerts(tenant, limit=limit)
    if as_json:
        print_json(rows)
        return
    print_table(
        ("AT", "TENANT", "SCOPE", "SUBJECT", "PERIOD", "PERCENT", "SESSION", "NOTE"),
        (
            (row.at, row.tenant, row.scope, row.subject, row.period, row.threshold, row.session_id, row.detail)
            for row in rows
        ),
        empty="no budget has passed half of its limit",
    )


@budget.command()
@click.argument("model", required=False)
@click.option("--input", "input_usd", help="Dollars for a million input tokens.")
@click.option("--output", "output_usd", help="Dollars for a million output tokens.")
@click.option("--cached", "cached_usd", help="Dollars for a million cached input tokens. [default: as --input]")
@click.option("--none", "no_price", is_flag=True, help="Take the price away; the list's counts again.")
@click.option("--reason", help="Why; kept with your name. Needed to change a price.")
@_dry_run
@json_option
def price(
    *,
    model: str | None,
    input_usd: str | None,
    output_usd: str | None,
    cached_usd: str | None,
    no_price: bool,
    reason: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """List the operator's prices, or set what MODEL (provider:name) costs. They go before the list's."""
    from agentq.client.budgets import to_micros
    from agentq.policies.prices import split

    if model is None:
        _list_prices(as_json)
        return
    name = ":".join(split(model))
    if no_price == (input_usd is not None or output_usd is not None):
        raise click.UsageError("give --input and --output; or --none")
    if not no_price and (input_usd is None or output_usd is None):
        raise click.UsageError("a price is of input and output: give both")
    if not (reason or "").strip():
        raise click.UsageError("--reason must say something")
    for sum_ in (input_usd, output_usd, cached_usd):
        if sum_ is not None:
            to_micros(sum_)
    with client() as connected:
        if not dry_run and no_price and not connected.budgets.remove_price(name, reason=reason or ""):
            note(f"{name} had no price of yours; nothing changed")
        if not dry_run and input_usd is not None and output_usd is not None:
            connected.budgets.set_price(
                name, input_usd=input_usd, output_usd=output_usd, cached_usd=cached_usd, reason=reason or ""
            )
    if as_json:
        print_json({"model": name, "input": input_usd, "output": output_usd, "cached": cached_usd, "dry_run": dry_run})
        return
    said = "no price of yours" if no_price else f"${input_usd} in, ${output_usd} out for a million tokens"
    click.echo(f"{name}: {'would have ' if dry_run else ''}{said}")


@budget.command()
@click.argument("tenant", required=False)
@json_option
def check(tenant: str | None, as_json: bool) -> None:
    """Add every call up again and compare with the sums that budgets are checked by. Exit code 1: they differ."""
    with client() as connected:
        found = connected.budgets.check(tenant)
    if as_json:
        print_json({"reconciles": not found, "differences": found})
    else:
        print_table(
            ("TENANT", "SCOPE", "SUBJECT", "PERIOD", "WHAT", "RECORDED", "ADDED UP"),
            ((row.tenant, row.scope, row.subject, row.period, row.what, row.recorded, row.added_up) for row in found),
            empty="every sum is that of its calls",
        )
    if found:
        raise Problem(f"{len(found)} sums are not those of their calls", FAILED)


def _list_prices(as_json: bool) -> None:
    with client() as connected:
        rows = connected.budgets.prices()
    if as_json:
        print_json(rows)
        return
    print_table(
        ("MODEL", "INPUT", "OUTPUT", "CACHED", "REVISION", "SINCE"),
        (
            (
                row.model,
                usd(row.input_micros),
                usd(row.output_micros),
                usd(row.cached_micros),
                row.revision,
                row.changed_at,
            )
            for row in rows
        ),
        empty="no prices of yours; those of genai-prices count",
    )


def _tokens(count: int | None) -> str:
    return "" if count is None else f"{count:,}"
