"""A new project: laid out so that `agentq up` runs it at once."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from agentq.cli.output import json_option, print_json
from agentq.errors import InvalidInput

_SUFFIX = ".txt"  # so that neither linters nor wheels take the templates for modules of ours


@click.command(short_help="Lay out a new project.")
@click.argument("folder", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Say what would be written, write nothing.")
@json_option
def init(folder: Path, dry_run: bool, as_json: bool) -> None:
    """Lay out a project in DIR (default: here): an agent, settings, Procfile, a test.

    Refuses to touch a file that is there already.
    """
    wanted = {folder / name: text for name, text in template().items()}
    if folder.exists() and not folder.is_dir():
        raise InvalidInput(f"{folder} is not a folder")
    if taken := [str(path) for path in wanted if path.exists() or path.is_symlink()]:
        raise InvalidInput(f"{', '.join(taken)} would be overwritten; nothing was written, name an empty folder")
    if not dry_run:
        _write(wanted)
    if as_json:
        print_json({"folder": folder, "files": [str(path) for path in wanted], "dry_run": dry_run})
        return
    for path in wanted:
        click.echo(f"{'would write' if dry_run else 'wrote'} {path}")
    if not dry_run:
        click.echo(f"\nNext:{'' if folder == Path('.') else f'  cd {folder}, then'}  agentq up")
        click.echo("and in another terminal:")
        click.echo("    agentq tenant add acme")
        click.echo("""    agentq start greeter --tenant acme --input '{"name": "Ada"}' --wait""")


def template() -> dict[str, str]:
    """The files of a new project, by path."""
    return dict(sorted(_texts(files("agentq.cli").joinpath("template"), "")))


def _texts(folder: Traversable, prefix: str) -> list[tuple[str, str]]:
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _texts(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(_SUFFIX):
            name = entry.name.removesuffix(_SUFFIX)
            # A leading dot would be lost in some archives.
            name = f".{name.removeprefix('dot-')}" if name.startswith("dot-") else name
            found.append((prefix + name, entry.read_text("utf-8")))
    return found


def _write(wanted: dict[Path, str]) -> None:
    for path, text in wanted.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise InvalidInput(f"{path} cannot be written: {error.strerror}") from None
