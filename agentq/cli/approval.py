"""Approvals, for people: listed, shown, granted, denied."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from agentq.cli.output import (
    heading,
    json_option,
    plain,
    print_facts,
    print_json,
    print_table,
    span,
    when,
)
from agentq.cli.reach import client

if TYPE_CHECKING:
    from agentq.client import ApprovalView, Change, Client, Who

_tenant_option = click.option("--tenant", help="Of this tenant; needed only when ids are alike.")
_as_option = click.option("--as", "name", metavar="NAME", help="Who you are; else AGENTQ_OPERATOR, else your login.")
_dry_run = click.option("--dry-run", is_flag=True, help="Say what would be decided, decide nothing.")


@click.group()
def approval() -> None:
    """Approvals: ls, show, grant, deny. An ID may be cut short as long as it is unmistakable.

    Who you are: with approvers in the settings, the name counts that its token proves (AGENTQ_APPROVER_TOKEN) or,
    for those without a token, the system's login. Without any, the name is what you say.
    """


@approval.command()
@click.option("--tenant", help="Only this tenant's.")
@click.option(
    "--state",
    type=click.Choice(["open", "granted", "denied", "expired", "void", "all"]),
    default="open",
    show_default=True,
    help="Only in this state.",
)
@click.option("--session", "session_id", metavar="ID", help="Only of this session.")
@click.option("--group", help="Only what asks this group.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="So many at most.")
@json_option
def ls(*, tenant: str | None, state: str, session_id: str | None, group: str | None, limit: int, as_json: bool) -> None:
    """List what waits for people, by what is due first."""
    from agentq.cli.reach import resolve

    with client() as connected:
        owner, known = tenant, None
        if session_id is not None:
            owner, found_session = resolve(connected, session_id, tenant)
            known = str(found_session)
        found = connected.approvals.ls(
            tenant=owner, state=None if state == "all" else state, session_id=known, group=group, limit=limit
        )
    if as_json:
        print_json(found)
        return
    print_table(
        ("APPROVAL", "TENANT", "AGENT", "WHAT", "ASKS", "STATE", "DEADLINE", "BY", "NOTE"),
        (
            (
                row.approval_id,
                row.tenant,
                row.agent,
                row.name,
                ", ".join(row.groups),
                row.state,
                row.deadline_at,
                row.decided_by,
                row.question,
            )
            for row in found
        ),
        empty="nothing waits for people" if state == "open" else "no approval matches",
    )


@approval.command()
@click.argument("id_", metavar="ID")
@_tenant_option
@json_option
def show(id_: str, tenant: str | None, as_json: bool) -> None:
    """Show one approval: what is asked, with which arguments, of whom, until when, and who was told."""
    with client() as connected:
        view = connected.approvals.get(id_, tenant=tenant)
        notices = connected.approvals.notices(view.id, tenant=view.tenant)
    if as_json:
        print_json(plain(view) | {"notices": plain(notices)})
        return
    _show_facts(view)
    _show_arguments(view)
    if notices:
        heading("Told")
        print_table(
            ("KIND", "BY", "STATE", "ATTEMPTS", "SENT", "WHY"),
            ((n.kind, n.channel, n.state, n.attempts, n.sent_at, n.failure) for n in notices),
            empty="nobody",
        )


@approval.command()
@click.argument("id_", metavar="ID")
@_tenant_option
@_as_option
@click.option("--reason", "--comment", "reason", required=True, help="Why; kept with your name, and told to the step.")
@click.option(
    "--set", "edits", metavar="PATH=VALUE", multiple=True, help="Change an argument: cents=500, lines.0.name='\"x\"'."
)
@_dry_run
@json_option
def grant(
    *,
    id_: str,
    tenant: str | None,
    name: str | None,
    reason: str,
    edits: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Say yes. Exactly what `show` prints goes ahead, or what --set makes of it."""
    _say_something(reason)
    changes = _edits(edits)
    with client() as connected:
        view, who = _prepare(connected, id_, tenant, name)
        _, changed = connected.approvals.edited(view, changes)
        if dry_run:
            _tell_would(view, who, "granted", changed, as_json)
            return
        view = connected.approvals.grant(view.id, tenant=view.tenant, reason=reason, edits=changes, who=who)
    _tell(view, as_json)


@approval.command()
@click.argument("id_", metavar="ID")
@_tenant_option
@_as_option
@click.option("--reason", "--comment", "reason", required=True, help="Why; kept with your name, and told to the step.")
@_dry_run
@json_option
def deny(*, id_: str, tenant: str | None, name: str | None, reason: str, dry_run: bool, as_json: bool) -> None:
    """Say no. The step is told so, with the reason."""
    _say_something(reason)
    with client() as connected:
        view, who = _prepare(connected, id_, tenant, name)
        if dry_run:
            _tell_would(view, who, "denied", (), as_json)
            return
        view = connected.approvals.deny(view.id, tenant=view.tenant, reason=reason, who=who)
    _tell(view, as_json)


def _prepare(connected: Client, id_: str, tenant: str | None, name: str | None) -> tuple[ApprovalView, Who]:
    who = connected.approvals.who(name)
    view = connected.approvals.get(id_, tenant=tenant)
    connected.approvals.check(view, who)
    return view, who


def _say_something(reason: str) -> None:
    if not reason.strip():
        raise click.UsageError("--reason must say something")


def _edits(edits: tuple[str, ...]) -> dict[str, Any]:
    """PATH=VALUE pairs; a value is JSON, and what is no JSON is text."""
    changes: dict[str, Any] = {}
    for edit in edits:
        path, sign, text = edit.partition("=")
        if not sign or not path.strip():
            raise click.BadParameter(f"{edit!r} is not PATH=VALUE", param_hint="--set")
        try:
            changes[path.strip()] = json.loads(text)
        except ValueError:
            changes[path.strip()] = text
    return changes


def _tell_would(view: ApprovalView, who: Who, verdict: str, changed: tuple[Change, ...], as_json: bool) -> None:
    if as_json:
        print_json({"approval": view.id, "would_be": verdict, "by": who, "changes": changed, "dry_run": True})
        return
    late = f"; it is {view.state} already, so nothing would change" if view.state != "open" else ""
    click.echo(f"approval {view.id} would be {verdict} by {who.name} ({who.via}){late}")
    for change in changed:
        click.echo(f"    {change.path}: {_json(change.before)} would become {_json(change.after)}")


def _tell(view: ApprovalView, as_json: bool) -> None:
    if as_json:
        print_json(plain(view) | {"dry_run": False})
        return
    click.echo(f"approval {view.id} is {view.state} by {view.decided_by}; session {view.session_id} goes on")
    for change in view.changes:
        click.echo(f"    {change.path}: {_json(change.before)} → {_json(change.after)}")


def _show_facts(view: ApprovalView) -> None:
    left = (view.deadline_at - view.asked_at).total_seconds()
    print_facts(
        (
            ("approval", view.id),
            ("question", view.question),
            ("what", f"{view.name} ({'a call' if view.kind == 'effect' else 'the step that follows'})"),
            ("state", view.state),
            ("asks", ", ".join(view.groups)),
            ("tenant", view.tenant),
            ("session", view.session_id),
            ("agent", view.agent),
            ("asked", when(view.asked_at)),
            ("deadline", f"{when(view.deadline_at)} (after {span(left)})"),
            ("decided", when(view.decided_at)),
            ("by", f"{view.decided_by} ({view.decided_via})" if view.decided_by else None),
            ("comment", view.comment),
            ("key", view.effect_key),
            ("arguments", view.args_hash),
        )
    )


def _show_arguments(view: ApprovalView) -> None:
    changes = {change.path: change for change in view.changes}
    heading("Arguments")
    print_table(("ARGUMENT", "VALUE"), ((name, _json(value)) for name, value in view.args.items()), empty="none")
    for change in changes.values():
        click.echo(f"{view.decided_by} changed {change.path}: {_json(change.before)} → {_json(change.after)}")
    if view.details is not None:
        heading("Details")
        click.echo(view.details if isinstance(view.details, str) else _json(view.details))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
