"""Starting a session from the command line, and waiting for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agentq.cli.exits import FAILED, INTERRUPTED, Problem
from agentq.cli.output import json_option, note, plain, print_json, reason_of
from agentq.cli.reach import client
from agentq.errors import InvalidInput, WaitTimeout

if TYPE_CHECKING:
    from agentq.client import Session, SessionView


@click.command()
@click.argument("agent")
@click.option("--tenant", required=True, help="Whose session it is.")
@click.option(
    "--input", "input_", metavar="JSON|@FILE|-", default="{}", show_default=True, help="The agent's first state."
)
@click.option("--key", help="Idempotency key: the same key finds the same session.")
@click.option("--version", type=click.IntRange(1), help="Of the agent  [default: the newest]")
@click.option("--deadline", metavar="DURATION", help="End it as failed after this, e.g. 90s, 15m, 2h.")
@click.option("--priority", type=click.IntRange(0, 9), default=0, show_default=True, help="0 goes first.")
@click.option("--concurrency-key", help="Of the sessions with this key only one runs at a time.")
@click.option(
    "--on-conflict",
    type=click.Choice(["queue", "reject", "replace", "merge"]),
    default="queue",
    show_default=True,
    help="While one lives: wait for the turn, be refused, end it, or join it.",
)
@click.option("--wait", is_flag=True, help="Wait for its end; exit code 1 when it fails.")
@click.option(
    "--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="With --wait: at most this long."
)
@json_option
def start(
    *,
    agent: str,
    tenant: str,
    input_: str,
    key: str | None,
    version: int | None,
    deadline: str | None,
    priority: int,
    concurrency_key: str | None,
    on_conflict: Any,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Start a session of AGENT.

    \b
    agentq start hello --tenant acme --input '{"name": "Ada"}' --wait
    agentq start refunds --tenant acme --input @ticket.json --key ticket-8812
    """
    given = read_input(input_)
    if timeout is not None and not wait:
        raise click.UsageError("--timeout needs --wait")
    with client(agents=True) as connected:
        session = connected.start(
            agent, tenant=tenant, input=given, key=key, version=version, priority=priority, deadline=deadline,
            concurrency_key=concurrency_key, on_conflict=on_conflict,
        )  # fmt: skip
        if not wait:
            _tell_started(session, as_json)
            return
        if not as_json:
            note(f"session {session.id} {'started' if session.created else 'had been started'}")
        view = await_end(session, timeout, show=not as_json)
    _tell_ended(session, view, as_json)


def read_input(text: str) -> dict[str, Any]:
    """
    The JSON object that `--input` names.

    Raises:
        InvalidInput: it cannot be read, or is no JSON object.
    """
    source = "--input"
    if text == "-":
        source, text = "standard input", sys.stdin.read()
    elif text.startswith("@"):
        source = text[1:]
        try:
            text = Path(source).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise InvalidInput(f"{source} cannot be read: {why}") from None
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidInput(f"{source} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise InvalidInput(f"{source} is nested too deeply") from None
    if not isinstance(found, dict):
        raise InvalidInput(f"{source} must be a JSON object, as the agent's state is, not {_kind(found)}")
    return found


def await_end(session: Session, timeout: float | None, *, show: bool) -> SessionView:
    """
    The session once it has ended, with its steps shown as they end in a terminal.

    Raises:
        WaitTimeout: it goes on.
    """
    try:
        if show and sys.stderr.isatty():
            _watch(session, timeout)
        return session.wait(timeout)
    except KeyboardInterrupt:
        note(f"stopped waiting; the session goes on: agentq session tail {session.id}")
        raise click.exceptions.Exit(INTERRUPTED) from None
    except WaitTimeout as error:
        raise Problem(f"{error}; it goes on: agentq session tail {session.id}", FAILED) from None


def _watch(session: Session, timeout: float | None) -> None:
    from rich.console import Console

    from agentq.cli.session import event_line

    console = Console(stderr=True)
    with console.status(f"session {session.id}") as status:
        for event in session.events(timeout):
            console.print(event_line(event), markup=False, highlight=False, soft_wrap=True)
            if event.step:
                status.update(f"session {session.id}, after {event.step}")


def _tell_started(session: Session, as_json: bool) -> None:
    if as_json:
        print_json({"tenant": session.tenant, "id": session.id, "created": session.created})
        return
    click.echo(session.id)
    if not session.created:
        note("this key had started it before")
    note(f"follow it: agentq session tail {session.id}")


def _tell_ended(session: Session, view: SessionView, as_json: bool) -> None:
    result = view.result if view.state == "done" else None
    if as_json:
        facts = {"tenant": view.tenant, "id": view.id, "created": session.created, "state": view.state}
        print_json(facts | {"result": result, "failure": plain(view.failure), "steps": view.steps})
    elif view.state == "done":
        click.echo(result if isinstance(result, str) else json.dumps(result, indent=2, ensure_ascii=False))
    if view.state != "done":
        what = f"session {view.id} {view.state}: {reason_of(view.failure)}"
        raise Problem(f"{what}; look at it: agentq session show {view.id}", FAILED)


def _kind(value: Any) -> str:
    names = {list: "an array", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
