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

Cell = Any
Row = Sequence[Cell]

json_option: Callable[[F], F] = click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else.")

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
    elif sys.stdout.isatty():
        _rich_table(headings, cells)
    else:
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
    """A time, to the second, in the reader's zone."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S") if moment else ""


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
            return when(cell)
        case float():
            return f"{cell:g}"
        case _:
            # Control characters of somebody's data must not drive the reader's terminal.
            return "".join(mark if mark.isprintable() else " " for mark in str(cell))


def _styled(text: str) -> str:
    return click.style(text, fg=_STYLES[text]) if text in _STYLES else text


def _rich_table(headings: Sequence[str], cells: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in headings:
        table.add_column(name, overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    Console().print(table)
