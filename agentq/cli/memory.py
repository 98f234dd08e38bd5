"""Memories, for people: what a tenant's agents remember, where it came from, and how to make them forget."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from agentq.cli.output import json_option, note, plain, print_facts, print_json, print_table, when
from agentq.cli.reach import client
from agentq.errors import NoSuchMemory

if TYPE_CHECKING:
    from agentq.store.memory import Memory

_tenant = click.option("--tenant", required=True, help="Whose.")
_limit = click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="So many at most.")
_dry_run = click.option("--dry-run", is_flag=True, help="Say what would change, change nothing.")
_reason = click.option("--reason", required=True, help="Why; kept with your name.")
_if_version = click.option(
    "--if-version", type=click.IntRange(0, 2**31 - 1), help="Only if this is the version that lives; 0: none does."
)


@click.group()
def memory() -> None:
    """Memories: ls, show, search, put, delete, reindex. What agents keep beyond a session.

    A namespace is a path such as customers/c-17; reading one reads all below it.
    """


@memory.command()
@click.argument("namespace", default="")
@_tenant
@click.option("--namespaces", is_flag=True, help="List namespaces, and how many memories each has.")
@_limit
@json_option
def ls(*, namespace: str, tenant: str, namespaces: bool, limit: int, as_json: bool) -> None:
    """List what is remembered in NAMESPACE and below it, newest first; without one, everywhere."""
    with client() as connected:
        if namespaces:
            found = connected.memory.namespaces(tenant, namespace, limit=limit)
        else:
            memories = connected.memory.ls(tenant, namespace, limit=limit)
    if namespaces:
        if as_json:
            print_json([{"namespace": name, "memories": count} for name, count in found])
        else:
            print_table(("NAMESPACE", "MEMORIES"), found, empty="nothing is remembered there")
        return
    _print(memories, as_json, empty="nothing is remembered there")


@memory.command()
@click.argument("namespace")
@click.argument("key")
@_tenant
@json_option
def show(*, namespace: str, key: str, tenant: str, as_json: bool) -> None:
    """Show one memory: its value, who wrote it, and its versions."""
    with client() as connected:
        live = connected.memory.get(tenant, namespace, key)
        versions = connected.memory.versions(tenant, namespace, key)
    if not versions:
        raise NoSuchMemory(tenant, namespace, key)
    if as_json:
        print_json((_facts(live) if live else {}) | {"versions": [_facts(row) for row in versions]})
        return
    if live is None:
        note(f"{namespace}/{key} is forgotten, or past its time; only older versions are left")
    else:
        print_facts(
            [
                ("namespace", live.namespace),
                ("key", live.key),
                ("version", live.version),
                ("written", when(live.written_at)),
                ("by", _writer(live)),
                ("session", live.session_id),
                ("step", live.step_id),
                ("attempt", live.attempt),
                ("expires", when(live.expires_at)),
            ]
        )
        click.echo(json.dumps(live.value, indent=2, ensure_ascii=False))
        click.echo()
    print_table(
        ("VERSION", "WRITTEN", "BY", "SESSION", "READ UNTIL", "VALUE"),
        (
            (
                row.version,
                when(row.written_at),
                _writer(row),
                str(row.session_id)[:8] if row.session_id else "",
                when(row.gone_at),
                _short(row.value) if row.value is not None else "(forgotten)",
            )
            for row in versions
        ),
        empty="",
    )


@memory.command()
@click.argument("query")
@click.argument("namespace", default="")
@_tenant
@click.option("--words", is_flag=True, help="By words alone: ask no embedder.")
@_limit
@json_option
def search(*, query: str, namespace: str, tenant: str, words: bool, limit: int, as_json: bool) -> None:
    """Search NAMESPACE and below it as agents do: by words, and by meaning where an embedder is set."""
    with client() as connected:
        found = connected.memory.search(tenant, namespace, query, limit=limit, words=words)
    _print(found, as_json, empty="nothing of that is remembered")


@memory.command()
@click.argument("namespace")
@click.argument("key")
@click.argument("value")
@_tenant
@click.option("--ttl", help="Forget it after this, such as 90d.")
@click.option("--text", is_flag=True, help="VALUE is a text, not JSON.")
@_if_version
@_reason
@_dry_run
@json_option
def put(
    *, namespace: str, key: str, value: str, tenant: str, ttl: str | None, text: bool, if_version: int | None,
    reason: str, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Remember VALUE, which is JSON, under KEY, as a new version of it; - reads it from standard input."""
    given = sys.stdin.read() if value == "-" else value
    parsed = given if text else _json(given)
    with client() as connected:
        version = connected.memory.put(
            tenant, namespace, key, parsed, ttl=ttl, if_version=if_version, reason=reason, dry_run=dry_run
        )
    if as_json:
        print_json({"tenant": tenant, "namespace": namespace, "key": key, "version": version, "dry_run": dry_run})
    else:
        click.echo(f"memory {namespace}/{key} {'would become' if dry_run else 'is'} version {version}")


@memory.command()
@click.argument("namespace")
@click.argument("key")
@_tenant
@_if_version
@_reason
@_dry_run
@json_option
def delete(
    *, namespace: str, key: str, tenant: str, if_version: int | None, reason: str, dry_run: bool, as_json: bool
) -> None:
    """Forget KEY: the content of all its versions is removed at once, for good."""
    with client() as connected:
        there = connected.memory.delete(tenant, namespace, key, if_version=if_version, reason=reason, dry_run=dry_run)
    if not there:
        raise NoSuchMemory(tenant, namespace, key)
    if as_json:
        print_json({"tenant": tenant, "namespace": namespace, "key": key, "deleted": True, "dry_run": dry_run})
    else:
        click.echo(f"memory {namespace}/{key} {'would be' if dry_run else 'is'} forgotten")


@memory.command()
@_tenant
@_reason
@_dry_run
@json_option
def reindex(*, tenant: str, reason: str, dry_run: bool, as_json: bool) -> None:
    """Index all memories anew, after memory_language, memory_embedder or encryption has changed.

    Vectors are made where a memory has none by the present embedder; no budget is charged for them. Versions that
    were replaced stay as they were written.
    """
    with client() as connected:
        counts = connected.memory.reindex(tenant, reason=reason, dry_run=dry_run)
    if as_json:
        print_json({"tenant": tenant, "dry_run": dry_run} | counts)
    else:
        done = "would be" if dry_run else "are"
        click.echo(f"{counts['memories']} memories {done} indexed, {counts['vectors']} vectors {done} made")


def _print(memories: list[Memory], as_json: bool, *, empty: str) -> None:
    if as_json:
        print_json([_facts(row) for row in memories])
        return
    print_table(
        ("NAMESPACE", "KEY", "VERSION", "WRITTEN", "BY", "FOUND BY", "VALUE"),
        (
            (
                row.namespace,
                row.key,
                row.version,
                when(row.written_at),
                _writer(row),
                row.found_by or "",
                _short(row.value),
            )
            for row in memories
        ),
        empty=empty,
    )


def _writer(row: Memory) -> str:
    return f"{row.agent}.{row.written_by}" if row.agent else row.written_by


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 70 else text[:69] + "…"


def _facts(row: Memory) -> dict[str, Any]:
    facts: dict[str, Any] = plain(row)
    return {name: fact for name, fact in facts.items() if fact is not None or name == "value"}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}; for a text give --text", param_hint="VALUE") from None
