"""Keys that encrypt payloads, and tokens that let producers in."""

from __future__ import annotations

import os
from pathlib import Path

import click

from agentq.cli.exits import REFUSED, Problem
from agentq.cli.output import json_option, note, print_json, print_table
from agentq.cli.reach import client

_reason = click.option("--reason", required=True, help="Why; kept with your name.")
_dry_run = click.option("--dry-run", is_flag=True, help="Say what would change, change nothing.")


@click.group()
def keys() -> None:
    """Keys that encrypt payloads: generate, ls, rotate, reseal, rewrap."""


@keys.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@json_option
def generate(file: Path | None, as_json: bool) -> None:
    """
    Make a key that wraps the tenants' keys: into FILE, readable by its owner alone, or printed.

    A file that is there gets it as its first line, so that it wraps from now on and the older ones still unwrap.
    """
    from agentq.store.providers import new_key

    key = new_key()
    if file is None:
        print_json({"key": key}) if as_json else click.echo(key)
        return
    before = file.read_text("ascii") if file.exists() else ""
    new = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as written:
            written.write(f"{key}\n{before}")
            written.flush()
            os.fsync(written.fileno())
        new.replace(file)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise Problem(f"{file} cannot be written: {error.strerror}", REFUSED) from None
    if as_json:
        print_json({"file": str(file), "wraps_from_now_on": True, "older": len(before.split())})
        return
    click.echo(f"a new key is in {file}; set encryption_key_file to it, in every process, and keep a copy elsewhere")
    if before:
        note("after every process has been restarted: agentq keys rewrap")


@keys.command()
@click.option("--tenant", help="Of this tenant; * is the fleet's own.")
@json_option
def ls(tenant: str | None, as_json: bool) -> None:
    """List data keys, and which key of the provider wraps each. The keys themselves are never shown."""
    with client() as connected:
        rows = connected.keys.ls(tenant)
    if as_json:
        print_json(rows)
        return
    print_table(
        ("TENANT", "KEY", "STATE", "WRAPPED BY", "SINCE", "RETIRED", "DESTROYED"),
        (
            (row.tenant, row.key_no, row.state, row.kek, row.created_at, row.retired_at, row.destroyed_at)
            for row in rows
        ),
        empty="no payload is encrypted: see encryption_key_file in config/agentq.toml",
    )


@keys.command()
@click.option("--tenant", required=True, help="Whose.")
@_reason
@_dry_run
@json_option
def rotate(tenant: str, reason: str, dry_run: bool, as_json: bool) -> None:
    """Give a tenant a new data key for what it writes from now on. What older ones encrypted stays readable."""
    with client() as connected:
        _said(reason)
        known = connected.keys.ls(tenant)
        number = max((row.key_no for row in known), default=0) + 1
        if not dry_run:
            number = connected.keys.rotate(tenant, reason=reason)
    if as_json:
        print_json({"tenant": tenant, "key": number, "dry_run": dry_run})
    else:
        click.echo(f"tenant {tenant} {'would write' if dry_run else 'writes'} under key {number} from now on")


@keys.command()
@click.option("--tenant", required=True, help="Whose.")
@_reason
@_dry_run
@json_option
def reseal(tenant: str, reason: str, dry_run: bool, as_json: bool) -> None:
    """
    Encrypt under a tenant's present key what is in plain, or under an older one.

    In batches while the fleet runs. Messages of failures and facts of traces keep the key that they have.
    """
    with client() as connected:
        _said(reason)
        found = connected.keys.reseal(tenant, reason=reason, dry_run=dry_run)
    if as_json:
        print_json({"tenant": tenant, "payloads": found.counts, "unreadable": found.unreadable, "dry_run": dry_run})
        return
    click.echo(f"{found.total} payloads of tenant {tenant} {'would be' if dry_run else 'are'} encrypted anew")
    if found.unreadable:
        note(f"{found.unreadable} cannot be decrypted, and were left as they are")


@keys.command()
@click.option("--tenant", help="Of this tenant alone.")
@_reason
@_dry_run
@json_option
def rewrap(tenant: str | None, reason: str, dry_run: bool, as_json: bool) -> None:
    """Wrap data keys by the provider's present key, after it was changed. Then the older one may go."""
    with client() as connected:
        _said(reason)
        count = connected.keys.to_rewrap(tenant)
        if not dry_run:
            count = connected.keys.rewrap(tenant, reason=reason)
    if as_json:
        print_json({"tenant": tenant, "keys": count, "dry_run": dry_run})
    else:
        click.echo(f"{count} data keys {'would be' if dry_run else 'are'} wrapped by the provider's present key")


@click.group()
def token() -> None:
    """Tokens for producers that have only the broker: create, ls, revoke."""


@token.command()
@click.argument("name")
@click.option("--tenant", "tenants", multiple=True, required=True, help="May submit for it; repeat it for more.")
@click.option("--agent", "agents", multiple=True, help="May start these agents, and no other.")
@click.option("--expires", default="365d", show_default=True, help="After so long; `never`.")
@_reason
@_dry_run
@json_option
def create(
    *,
    name: str,
    tenants: tuple[str, ...],
    agents: tuple[str, ...],
    expires: str,
    reason: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """
    Make a token for NAME, who uses it. It is shown now and never again; only its digest is stored.

    From now on nobody submits for these tenants without a token.
    """
    from agentq.agents.returns import seconds

    until = None if expires == "never" else seconds(expires)
    with client() as connected:
        _said(reason)
        if dry_run:
            from agentq.client.keys import known_tenants

            known_tenants(connected.operators, tenants)
            made = None
        else:
            made = connected.tokens.create(name, tenants=tenants, agents=agents or None, expires=until, reason=reason)
    facts = {"name": name, "tenants": list(tenants), "agents": list(agents) or None, "dry_run": dry_run}
    if as_json:
        print_json(facts | ({"id": made.id, "token": made.token} if made else {}))
    elif made is None:
        click.echo(f"a token for {name} would be made, for {', '.join(tenants)}")
    else:
        note(f"token {made.id[:8]} for {name}, for {', '.join(tenants)}; this is the only time that it is shown:")
        click.echo(made.token)


@token.command("ls")
@click.option("--tenant", help="Those that are for it.")
@json_option
def token_ls(tenant: str | None, as_json: bool) -> None:
    """List tokens, the newest first: whose, for what, and when each was last used."""
    with client() as connected:
        rows = connected.tokens.ls(tenant)
    if as_json:
        print_json(rows)
        return
    print_table(
        ("ID", "NAME", "STATE", "TENANTS", "AGENTS", "MADE BY", "EXPIRES", "LAST USED"),
        (
            (
                row.token_id.hex[:12], row.name, row.state, ", ".join(row.tenants),
                ", ".join(row.agents) if row.agents is not None else "all", row.created_by, row.expires_at,
                row.used_at,
            )
            for row in rows
        ),
        empty="no token yet: agentq token create NAME --tenant TENANT",
    )  # fmt: skip


@token.command()
@click.argument("id_", metavar="ID")
@_reason
@_dry_run
@json_option
def revoke(id_: str, reason: str, dry_run: bool, as_json: bool) -> None:
    """Let nobody in with this token any more, from the next submission on."""
    with client() as connected:
        _said(reason)
        found = connected.tokens.find(id_)
        changed = connected.tokens.revoke(str(found), reason=reason) if not dry_run else True
    if as_json:
        print_json({"id": found, "revoked": changed, "dry_run": dry_run})
    elif not changed:
        note(f"token {found.hex[:12]} is revoked already; nothing changed")
    else:
        click.echo(f"token {found.hex[:12]} {'would be' if dry_run else 'is'} revoked")


def _said(reason: str) -> None:
    if not reason.strip():
        raise click.UsageError("--reason must say something")
