"""Output: tables for people, JSON for programs, and nothing else on standard output."""

from __future__ import annotations

import dataclasses
import json
import sys
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")

Cell = Any
Row = Sequence[Cell]

json_option: Callable[[F], F] = click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else.")

_MANY = 100


def many_options(command: F) -> F:
    """`--limit` and `--all`, for lists that are long in a large fleet."""
    command = click.option("--all", "everything", is_flag=True, help="All, however many there are.")(command)
    return click.option(
        "--limit", type=click.IntRange(1, 100_000), default=_MANY, show_default=True, help="So many at most."
    )(command)


def cut(rows: list[R], limit: int | None) -> list[R]:
    """The first so many of one more than that; that others follow is said on standard error."""
    if limit is None or len(rows) <= limit:
        return rows
    note(f"these are the first {limit}; --all lists all of them, --limit more")
    return rows[:limit]


_FOLDING = {"WHY", "NOTE", "REASON", "SERVES", "KEY"}

_STYLES = {
    "done": "green",
    "active": "green",
    "live": "green",
    "running": "cyan",
    "queued": "cyan",
    "failed": "red",
    "dead": "red",
    "unknown": "red",
    "cancelled": "yellow",
    "paused": "yellow",
    "draining": "yellow",
    "pending": "yellow",
    "half_open": "yellow",
    "forced_open": "red",
    "forced_shut": "yellow",
}


def print_json(value: Any) -> None:
    """One JSON document."""
    click.echo(json.dumps(plain(value), indent=2, ensure_ascii=False))


def print_json_line(value: Any) -> None:
    """One JSON document on one line, at once: for what goes on."""
    click.echo(json.dumps(plain(value), ensure_ascii=False))
    sys.stdout.flush()


def plain(value: Any) -> Any:
    """A value in types that JSON has."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    match value:
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        case uuid.UUID() | Path():
            return str(value)
        case bytes():
            return value.decode("utf-8", "replace")
        case dict():
            return {str(name): plain(item) for name, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [plain(item) for item in value]
        case _:
            return value


def print_table(headings: Sequence[str], rows: Iterable[Row], *, empty: str) -> None:
    """
    Rows for people: a table in a terminal, aligned columns elsewhere, so that `grep` and `awk` see whole cells.

    With no rows, `empty` goes to standard error.
    """
    cells = [[_text(cell) for cell in row] for row in rows]
    if not cells:
        note(empty)
    elif not (sys.stdout.isatty() and _rich_table(headings, cells)):
        widths = [max(len(row[column]) for row in [headings, *cells]) for column in range(len(headings))]
        for row in [headings, *cells]:
            click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_facts(facts: Iterable[tuple[str, Cell]]) -> None:
    """Name and value, one a line; facts without a value are left out."""
    known = [(name, _text(value)) for name, value in facts if value not in (None, "")]
    width = max((len(name) for name, _ in known), default=0)
    for name, value in known:
        click.echo(f"{click.style(name.ljust(width), dim=True)}  {_styled(value)}")


def heading(text: str) -> None:
    """A line above a table."""
    click.echo()
    click.secho(text, bold=True)


def note(text: str) -> None:
    """A line that is not the answer: standard error."""
    click.echo(text, err=True)


def when(moment: datetime | None) -> str:
    """A time, to the second, in the reader's zone; today's without the date."""
    if moment is None:
        return ""
    local = moment.astimezone()
    today = local.date() == datetime.now(local.tzinfo).date()
    return local.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")


def span(seconds: float | None) -> str:
    """A duration that people can read at a glance."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def between(start: datetime | None, end: datetime | None) -> str:
    """How long something took."""
    return span((end - start).total_seconds()) if start and end else ""


def reason_of(failure: Any) -> str:
    """A stored failure in one line."""
    if not failure:
        return ""
    return " ".join(f"{failure.get('type', '')}: {failure.get('message', '')}".split())


def _text(cell: Cell) -> str:
    match cell:
        case None:
            return ""
        case datetime():
            return when(cell) if sys.stdout.isatty() else cell.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        case float():
            return f"{cell:g}"
        case _:
            # Control characters of somebody's data must not drive the reader's terminal.
            return "".join(mark if mark.isprintable() else " " for mark in str(cell))


def _styled(text: str) -> str:
    return click.style(text, fg=_STYLES[text]) if text in _STYLES else text


def _rich_table(headings: Sequence[str], cells: list[list[str]]) -> bool:
    """Print a table where the terminal is wide enough for it; texts are folded, ids and states never broken."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    used = [column for column in range(len(headings)) if any(row[column] for row in cells)]
    needed = 0
    for column in used:
        width = max(len(headings[column]), *(len(row[column]) for row in cells))
        folds = headings[column] in _FOLDING
        needed += min(width, 24) + 2 if folds else width + 2
        table.add_column(headings[column], overflow="fold", no_wrap=not folds)
    if needed > console.width + 2:
        return False
    for row in cells:
        table.add_row(*(Text(row[column], style=_STYLES.get(row[column], "")) for column in used))
    console.print(table)
    return True
