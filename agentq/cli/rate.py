"""Rates: how often providers may be called, by a tenant and by the fleet."""

from __future__ import annotations

import click

from agentq.cli.output import json_option, print_json, print_table
from agentq.cli.reach import client
from agentq.step import valid_name


@click.group()
def rate() -> None:
    """Rates of calls to providers: ls, set."""


@rate.command()
@json_option
def ls(as_json: bool) -> None:
    """List every limit: set by an operator, or told by the provider. The lower one counts."""
    from agentq.store.rates import FLEET

    with client() as connected:
        rows = connected.rates.ls()
    if as_json:
        print_json(rows)
        return
    print_table(
        ("TENANT", "PROVIDER", "REQUESTS/MIN", "TOKENS/MIN", "TOLD REQUESTS", "TOLD TOKENS"),
        (
            (
                "the fleet" if row.tenant == FLEET else row.tenant, row.provider, row.requests_per_min,
                row.tokens_per_min, row.learned_requests, row.learned_tokens,
            )
            for row in rows
        ),
        empty="no rate is limited: agentq rate set openai --requests 500",
    )  # fmt: skip


@rate.command("set")
@click.argument("provider")
@click.option("--tenant", help="Of one tenant; otherwise of the fleet, divided among the tenants that call.")
@click.option("--requests", type=click.IntRange(1, 2_000_000_000), help="Requests a minute, at most.")
@click.option("--tokens", type=click.IntRange(1, 2_000_000_000), help="Tokens a minute, at most, in and out.")
@click.option("--none", "no_limit", is_flag=True, help="Take the limit away.")
@click.option("--reason", required=True, help="Why; kept with your name.")
@click.option("--dry-run", is_flag=True, help="Say what would change, change nothing.")
@json_option
def set_(
    *,
    provider: str,
    tenant: str | None,
    requests: int | None,
    tokens: int | None,
    no_limit: bool,
    reason: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Limit the calls to PROVIDER. Workers follow within seconds; steps over it come back when it allows them."""
    if no_limit == (requests is not None or tokens is not None):
        raise click.UsageError("give --requests, --tokens or both; or --none")
    if not reason.strip():
        raise click.UsageError("--reason must say something")
    valid_name("provider", provider)
    with client() as connected:
        if not dry_run:
            connected.rates.set(
                provider, tenant=tenant, requests_per_min=requests, tokens_per_min=tokens, reason=reason
            )
    if as_json:
        facts = {"provider": provider, "tenant": tenant, "requests_per_min": requests, "tokens_per_min": tokens}
        print_json(facts | {"dry_run": dry_run})
        return
    parts = [f"{requests:,} requests"] if requests is not None else []
    parts += [f"{tokens:,} tokens"] if tokens is not None else []
    said = f"{' and '.join(parts)} a minute" if parts else "no limit"
    click.echo(f"{provider}, {tenant or 'the fleet'}: {'would be ' if dry_run else ''}{said}")
