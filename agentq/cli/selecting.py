"""Options that name dead letters: the same for every command that lists, changes or exports them."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agentq.cli.exits import NOT_FOUND, Problem
from agentq.errors import InvalidInput

if TYPE_CHECKING:
    from agentq.client import Client, Selection

F = TypeVar("F", bound=Callable[..., Any])

STATES = ("open", "redriving", "redriven", "discarded", "resolved")

_OPTIONS = (
    click.option("--cause", help="Of this cause; the first digits are enough."),
    click.option("--agent", help="Of this agent: NAME or NAME@VERSION."),
    click.option("--tenant", help="Of this tenant."),
    click.option("--step", help="That died in this step."),
    click.option("--class", "kind", help="Of this class of failure: transient, permanent, unknown, worker_lost, …"),
    click.option("--dependency", help="Whose failure speaks against this dependency."),
    click.option("--generation", type=click.IntRange(0), help="After so many redrives and replays."),
    click.option("--since", metavar="TIME", help="Dead since then: 2h, 3d, or 2026-11-23T14:00."),
    click.option("--age", metavar="TIME", help="Dead for at least so long: 10m, 2h, 3d."),
)

_RATE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:/\s*(s|sec|m|min|h))?\s*\Z")
_PER_S = {None: 1.0, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def selecting(function: F) -> F:
    """Add the options; they arrive as keyword arguments that `selection_of` takes."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def selection_of(
    *,
    cause: str | None,
    agent: str | None,
    tenant: str | None,
    step: str | None,
    kind: str | None,
    dependency: str | None,
    generation: int | None,
    since: str | None,
    age: str | None,
    **more: Any,
) -> Selection:
    """
    The selection that the options name.

    Raises:
        InvalidInput: one of them is none.
    """
    from agentq.client import Selection

    return Selection(
        cause=cause.lower() if cause else None,
        agent=agent,
        tenant=tenant,
        step=step,
        kind=kind.replace("-", "_") if kind else None,
        dependency=dependency,
        generation=generation,
        since=moment("--since", since),
        before=moment("--age", age),
        **more,
    )


def letters_named(client: Client, ids: tuple[str, ...], tenant: str | None) -> tuple[Any, ...]:
    """
    The letters that the ids, or the beginnings of them, name; a session's id names its newest letter.

    Raises:
        Problem: one names none. InvalidInput: one names several.
    """
    found = []
    for text in ids:
        some = client.dead_letters.letters.find(text, tenant)
        if not some:
            raise Problem(f"no dead letter{f' of tenant {tenant}' if tenant else ''} begins with {text}", NOT_FOUND)
        hits = [letter for _, letter in some if letter.hex.startswith(text.replace("-", "").lower())]
        if len(hits) > 1:
            names = ", ".join(str(letter) for letter in hits)
            raise InvalidInput(f"several dead letters begin with {text}: {names}; give more digits, or --tenant")
        found.append(some[0])
    return tuple(found)


def rate(text: str) -> float:
    """
    `2/s`, `30/min`, `500/h` or a number, as letters per second.

    Raises:
        click.BadParameter: it is none of these.
    """
    match = _RATE.match(text)
    if not match or not (value := float(match[1]) / _PER_S[match[2]]) > 0:
        raise click.BadParameter(f"{text!r} is no rate: use 2/s, 30/min or 500/h", param_hint="--rate")
    return value


def moment(option: str, text: str | None) -> datetime | None:
    """
    The moment that an option names: so long ago, or a day or time of day in the reader's zone.

    Raises:
        click.BadParameter: it is none of these.
    """
    from agentq.agents.returns import seconds

    if text is None:
        return None
    if re.match(r"\d{4}-\d\d-\d\d", text):
        try:
            named = datetime.fromisoformat(text)
        except ValueError as error:
            raise click.BadParameter(f"{text!r}: {error}", param_hint=option) from None
        return named.astimezone(UTC)
    try:
        return datetime.now(UTC) - timedelta(seconds=seconds(text))
    except InvalidInput as error:
        raise click.BadParameter(f"{error}, or a time like 2026-11-23T14:00", param_hint=option) from None
