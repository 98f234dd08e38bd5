"""Sessions, for people: listed, shown and followed; what changes them is in `recovery`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from agentq.cli import recovery
from agentq.cli.advice import advise, effect_facts, hold_of, on_hold
from agentq.cli.exits import FAILED, INTERRUPTED, Problem
from agentq.cli.output import (
    between,
    heading,
    json_option,
    note,
    plain,
    print_facts,
    print_json,
    print_json_line,
    print_table,
    reason_of,
    when,
)
from agentq.cli.reach import client, resolve
from agentq.cli.selecting import moment
from agentq.cli.trace import cost, trace
from agentq.errors import WaitTimeout

if TYPE_CHECKING:
    from agentq.client import Event
    from agentq.store.sessions import SessionRow, StepRow

_STATES = click.Choice(["running", "paused", "done", "failed", "cancelled"])
_tenant_option = click.option("--tenant", help="Of this tenant; needed only when ids are alike.")


@click.group()
def session() -> None:
    """
    Sessions: looked at, followed, paused, ended, replayed. An ID may be cut short as long as it is unmistakable.
    """


@session.command()
@click.option("--tenant", help="Only this tenant's.")
@click.option("--agent", help="Only this agent's.")
@click.option("--state", type=_STATES, help="Only in this state.")
@click.option("--key", help="Only with this idempotency key.")
@click.option("--text", help="Only with this in the key, the failure or the beginning of the input.")
@click.option("--since", metavar="TIME", help="Begun since then: 2h, 7d, 2026-11-24, 2026-11-24T14:00.")
@click.option("--until", metavar="TIME", help="Begun before then.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="The newest so many.")
@json_option
def ls(
    *,
    tenant: str | None,
    agent: str | None,
    state: str | None,
    key: str | None,
    text: str | None,
    since: str | None,
    until: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List the newest sessions."""
    from agentq.step import valid_name

    for kind, name in (("tenant", tenant), ("agent", agent)):
        if name is not None:
            valid_name(kind, name)
    with client() as connected:
        found = connected.list(
            tenant=tenant,
            agent=agent,
            state=state,
            key=key,
            text=text,
            since=moment("--since", since),
            until=moment("--until", until),
            limit=limit,
        )
    if as_json:
        print_json(found)
        return
    print_table(
        ("SESSION", "TENANT", "AGENT", "STATE", "KEY", "STARTED", "TOOK", "WHY"),
        (
            (
                row.session_id,
                row.tenant,
                f"{row.agent}@{row.agent_version}",
                row.state,
                row.key,
                row.created_at,
                between(row.created_at, row.ended_at),
                reason_of(row.failure),
            )
            for row in found
        ),
        empty="no session matches",
    )


@session.command(short_help="Show one session, its steps and effects.")
@click.argument("id_", metavar="ID")
@_tenant_option
@json_option
def show(id_: str, tenant: str | None, as_json: bool) -> None:
    """Show one session: its facts, its steps and their attempts, its effects, and what to do when it failed."""
    with client() as connected:
        owner, session_id = resolve(connected, id_, tenant)
        row = connected.sessions.get(owner, session_id)
        steps = connected.sessions.steps(owner, session_id)
        effects = [effect_facts(effect) for effect in connected.sessions.effects(owner, session_id)]
        hold = hold_of(connected, row)
    advice = [*on_hold(row, hold), *advise(row, steps, effects)]
    if as_json:
        facts = plain(row) | {"input": _decoded(row.input), "result": _decoded(row.result)}
        facts |= {"cost_usd": row.cost_micros / 1_000_000}
        print_json(facts | {"hold": hold, "steps": plain(steps), "effects": plain(effects), "advice": advice})
        return
    _show_facts(row)
    if hold is not None:
        _show_hold(hold)
    _show_steps(steps)
    _show_effects(effects, steps)
    for line in advice:
        click.secho(f"\n→ {line}", fg="yellow")


@session.command()
@click.argument("id_", metavar="ID")
@_tenant_option
@click.option(
    "--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Stop following after this."
)
@json_option
def tail(id_: str, tenant: str | None, timeout: float | None, as_json: bool) -> None:
    """Follow one session from its beginning to its end. With --json, one event a line."""
    with client() as connected:
        owner, session_id = resolve(connected, id_, tenant)
        try:
            for event in connected.get(owner, str(session_id)).events(timeout):
                print_json_line(event) if as_json else click.echo(event_line(event))
        except KeyboardInterrupt:
            note("stopped following; the session goes on")
            raise click.exceptions.Exit(INTERRUPTED) from None
        except WaitTimeout as error:
            raise Problem(f"{error}; it goes on", FAILED) from None


session.add_command(trace)
session.add_command(cost)
for _command in (recovery.inspect, recovery.pause, recovery.resume, recovery.cancel, recovery.kill, recovery.replay,
                 recovery.fork):  # fmt: skip
    session.add_command(_command)


def event_line(event: Event) -> str:
    """An event as one line."""
    at = event.at.astimezone().strftime("%H:%M:%S.%f")[:-3]
    data = dict(event.data)
    match event.kind:
        case "step":
            tries = f" (attempt {data['attempt']})" if data.get("attempt", 1) > 1 else ""
            text = f"{event.step}: {data.get('state')}{tries}"
        case "ended":
            text = f"session {data.get('state')}"
        case _:
            text = f"{event.kind}: {data.pop('text', '')}"
            text += f" {json.dumps(plain(data), ensure_ascii=False)}" if data else ""
    why = reason_of(data.get("failure")) if event.kind in ("step", "ended") else ""
    return " ".join(f"{at}  {text}{f', {why}' if why else ''}".split("\n"))


def _show_facts(row: SessionRow) -> None:
    result = _decoded(row.result)
    print_facts(
        (
            ("session", row.session_id),
            ("tenant", row.tenant),
            ("agent", f"{row.agent}@{row.agent_version}"),
            ("state", row.state),
            ("key", row.key),
            ("parent", row.parent_session),
            ("priority", row.priority or None),
            ("started", when(row.created_at)),
            ("ended", when(row.ended_at)),
            ("took", between(row.created_at, row.ended_at)),
            ("deadline", when(row.deadline_at)),
            ("cost", f"${row.cost_micros / 1_000_000:.4f}" if row.cost_micros else None),
            ("tokens", f"{row.tokens_in} in, {row.tokens_out} out" if row.tokens_in or row.tokens_out else None),
            ("input", _short(_decoded(row.input))),
            ("result", _short(result) if row.result is not None else None),
            ("failure", reason_of(row.failure)),
        )
    )


def _show_hold(hold: dict[str, Any]) -> None:
    """Why it is paused: who or what did it, and what that saw."""
    heading("Paused")
    evidence = hold.get("evidence") or {}
    print_facts(
        (
            ("by", hold.get("by") or hold.get("kind")),
            ("reason", hold.get("reason")),
            *((name, _short(value)) for name, value in evidence.items()),
        )
    )


def _show_steps(steps: list[StepRow]) -> None:
    heading("Steps")
    print_table(
        ("#", "STEP", "STATE", "ATTEMPT", "STARTED", "TOOK", "NOTE"),
        (
            (
                step.seq if step.branch is None else f"{step.seq}.{step.branch}",
                step.name,
                step.state,
                f"{step.attempt}/{step.attempts_max}",
                step.started_at,
                between(step.started_at, step.settled_at),
                _step_note(step),
            )
            for step in steps
        ),
        empty="none",
    )


def _step_note(step: StepRow) -> str:
    notes = [
        f"waits for {step.waits_for} of {step.fan}" if step.state == "waiting" else "",
        f"due {when(step.due_at)}" if step.state == "ready" else "",
        f"its worker died {step.crashes}×" if step.crashes else "",
        f"repaired {step.repairs}×" if step.repairs else "",
        f"put off {step.refusals}×" if step.refusals else "",
        "in quarantine" if step.quarantine else "",
        reason_of(step.failure),
    ]
    return "; ".join(filter(None, notes))


def _show_effects(effects: list[dict[str, Any]], steps: list[StepRow]) -> None:
    if not effects:
        return
    names = {step.step_id: step.name for step in steps}
    heading("Effects")
    print_table(
        ("EFFECT", "STEP", "STATE", "CALLS", "CLAIMED", "TOOK", "KEY", "WHY"),
        (
            (
                effect["name"],
                names.get(effect["step_id"], ""),
                effect["state"],
                effect["calls"],
                effect["claimed_at"],
                between(effect["claimed_at"], effect["settled_at"]),
                effect["key"],
                reason_of(effect["failure"]),
            )
            for effect in effects
        ),
        empty="none",
    )


def _decoded(data: bytes | None) -> Any:
    from agentq.payload import readable

    return None if data is None else readable(data)


def _short(value: Any, limit: int = 400) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text):,} characters; --json shows all)"
