"""Effects, for people: which ones nobody knows the end of, and a word on what became of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from agentq.cli.output import json_option, note, plain, print_facts, print_json, print_table, reason_of, when
from agentq.cli.reach import client, resolve

if TYPE_CHECKING:
    from agentq.store.resolving import EffectRow

_tenant = click.option("--tenant", help="Of this tenant.")


@click.group()
def effect() -> None:
    """Effects: ls, show, resolve. What tools did outside, under keys that every attempt shares."""


@effect.command()
@_tenant
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(["unknown", "pending", "done", "failed"]),
    help="In this state; may be repeated. Default: unknown and pending.",
)
@click.option("--session", "session_text", help="Of this session; its id may be cut short.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="So many at most.")
@json_option
def ls(*, tenant: str | None, states: tuple[str, ...], session_text: str | None, limit: int, as_json: bool) -> None:
    """List the newest effects; without --state, those whose end nobody knows (yet)."""
    with client() as connected:
        session = None
        if session_text:
            tenant, session = resolve(connected, session_text, tenant)
        chosen = states or (("unknown", "pending", "done", "failed") if session else ("unknown", "pending"))
        found = connected.effects.ls(chosen, tenant=tenant, session=session, limit=limit)
    if as_json:
        print_json([_facts(row) for row in found])
        return
    print_table(
        ("KEY", "EFFECT", "STATE", "TENANT", "SESSION", "STEP", "CALLS", "SINCE", "WHY"),
        (
            (
                row.key,
                row.name,
                row.state,
                row.tenant,
                str(row.session_id)[:8],
                row.step,
                row.calls,
                when(row.claimed_at),
                "is being called now" if row.held and row.state == "pending" else reason_of(row.failure),
            )
            for row in found
        ),
        empty="no such effect" if states or session_text else "no effect is open",
    )


@effect.command(short_help="Show one effect, and what to do.")
@click.argument("key")
@_tenant
@json_option
def show(key: str, tenant: str | None, as_json: bool) -> None:
    """Show one effect: who called it, what it came to, and what to do when nobody knows."""
    with client() as connected:
        row = connected.effects.get(key, tenant=tenant)
    if as_json:
        print_json(_facts(row) | {"advice": _advice(row)})
        return
    print_facts(
        [
            ("key", row.key),
            ("effect", row.name),
            ("state", row.state),
            ("tenant", row.tenant),
            ("session", f"{row.session_id} ({row.session_state})"),
            ("step", row.step),
            ("calls", row.calls),
            ("claimed", when(row.claimed_at)),
            ("settled", when(row.settled_at)),
            ("resolved by", row.resolved_by),
            ("why", reason_of(row.failure)),
            ("result", row.result.decode("utf-8", "replace")[:500] if row.result is not None else None),
        ]
    )
    if advice := _advice(row):
        note(advice)


@effect.command("resolve", short_help="Tell what became of an effect.")
@click.argument("key")
@_tenant
@click.option("--done", "done", metavar="RESULT_JSON", help="It happened, with this result; null, if it has none.")
@click.option("--not-done", "not_done", is_flag=True, help="It did not happen: it may go out again, under its key.")
@click.option("--reason", required=True, help="How you know; kept with your name.")
@click.option("--dry-run", is_flag=True, help="Say what would change, change nothing.")
@json_option
def resolve_(
    *, key: str, tenant: str | None, done: str | None, not_done: bool, reason: str, dry_run: bool, as_json: bool
) -> None:
    """Tell what became of an effect whose outcome nobody knows.

    Look at the other side first, under the effect's key: that is what the tool was given as its idempotency key.
    Afterwards bring the session back: agentq dlq redrive SESSION. Its step then reads the result, or calls again.
    """
    if (done is None) == (not not_done):
        raise click.UsageError("give one of --done RESULT_JSON and --not-done")
    if not reason.strip():
        raise click.UsageError("--reason must say something")
    result = _json(done) if done is not None else None
    with client() as connected:
        outcome, row = connected.effects.resolve(
            key, done=done is not None, result=result, reason=reason, tenant=tenant, dry_run=dry_run
        )
    if as_json:
        print_json(_facts(row) | {"outcome": outcome, "dry_run": dry_run})
        return
    told = "done" if done is not None else "not done"
    if outcome == "already":
        note(f"effect {row.key} was told to be {told} before; nothing changed")
    else:
        click.echo(f"effect {row.key} ({row.name}) {'would be' if dry_run else 'is'} {told}")
    if row.session_state == "failed" and not dry_run:
        note(f"its session has failed: agentq dlq redrive {row.session_id} --reason WHY brings it back")


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.BadParameter(
            f"{error}; a text is JSON only with its quotes: '\"receipt 7\"'", param_hint="--done"
        ) from None


def _facts(row: EffectRow) -> dict[str, Any]:
    facts: dict[str, Any] = plain(row)
    if row.result is not None:
        facts["result"] = json.loads(row.result)
    return facts


def _advice(row: EffectRow) -> str:
    if row.state == "pending" and row.held:
        return "It is being called now: wait for its end."
    if row.state not in ("pending", "unknown"):
        return ""
    return (
        f"Nobody knows whether it happened. Look at the other side for the key {row.key}, then tell:\n"
        f"  agentq effect resolve '{row.key}' --tenant {row.tenant} --done RESULT_JSON --reason WHY   (it happened)\n"
        f"  agentq effect resolve '{row.key}' --tenant {row.tenant} --not-done --reason WHY           (it did not)\n"
        f"and bring its session back: agentq dlq redrive {row.session_id} --reason WHY"
    )
