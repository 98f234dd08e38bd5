"""Every command of every runbook runs against an incident of its kind, and prints what the runbook says."""

from __future__ import annotations

import importlib
import re
import shlex
import time
from pathlib import Path

import click
import pytest

from agentq.cli import main
from tests.runbooks.conftest import Scene
from tests.runbooks.reading import SECTIONS, BadRunbook, Command, Words, commands_of, difference, sections_of
from tests.support.fleet import ROOT

RUNBOOKS = sorted(path for path in (ROOT / "runbooks").glob("*.md") if path.name != "README.md")
WAIT_S = 30.0


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda path: path.stem)
def test_every_command_does_what_the_runbook_says(path: Path, scene: Scene) -> None:
    """
    In order, on one staged incident: exit code and output as written there.
    """
    incident = importlib.import_module(f"tests.runbooks.incidents.{path.stem.replace('-', '_')}")
    words: Words = incident.stage(scene)
    commands = commands_of(path)
    assert commands, "a runbook without a command"
    for command in commands:
        problem = outcome(command, words, scene)
        assert problem is None, f"{path.name}:{command.line}: $ {command.text}\n{problem}"


def outcome(command: Command, words: Words, scene: Scene) -> str | None:
    """What is wrong with it; None: it did what it should."""
    deadline = time.monotonic() + (WAIT_S if command.wait else 0.0)
    while True:
        code, printed = scene.run(command.filled(words))
        problem = difference(command.expected, printed, words)
        if code != command.exit_code:
            problem = f"exit code {code}, not {command.exit_code}\n{printed}"
        if problem is None or time.monotonic() > deadline:
            return problem
        time.sleep(0.2)


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda path: path.stem)
def test_a_runbook_has_its_five_sections(path: Path) -> None:
    """
    In this order, so that at 2 a.m. nobody searches.
    """
    assert sections_of(path) == list(SECTIONS)


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda path: path.stem)
def test_commands_in_the_text_exist(path: Path) -> None:
    """
    Those in prose too, with their options.
    """
    for text in re.findall(r"`(agentq [^`]+)`", path.read_text("utf-8")):
        group: click.Command = main
        words = [word for word in shlex.split(text)[1:] if word not in ("…", "...")]
        while isinstance(group, click.Group) and words and not words[0].startswith("-"):
            assert words[0] in group.commands, text
            group = group.commands[words.pop(0)]
        known = {option for parameter in group.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0] in known | {"--help"}, text


def test_the_list_names_every_runbook() -> None:
    listed = re.findall(r"\]\(([a-z0-9-]+\.md)\)", (ROOT / "runbooks/README.md").read_text("utf-8"))
    assert sorted(listed) == [path.name for path in RUNBOOKS]


# ── the format itself ────────────────────────────────────────────────────────


def read(tmp_path: Path, text: str) -> list[Command]:
    path = tmp_path / "some.md"
    path.write_text(text, "utf-8")
    return commands_of(path)


def test_commands_are_read_with_what_they_print(tmp_path: Path) -> None:
    """
    Only from `console` blocks; continued with '>', ended by an exit code, repeated when it says wait.
    """
    text = "# x\n```console\n$ one TENANT\na\n\n$ two \\\n> more  # wait\nb\n[exit 3]\n```\n```sh\n$ not me\n```\n"
    one, two = read(tmp_path, text)
    assert (one.text, one.expected, one.exit_code, one.wait) == ("one TENANT", ["a", ""], 0, False)
    assert (two.text, two.expected, two.exit_code, two.wait) == ("two \\\nmore", ["b"], 3, True)
    assert one.filled({"TENANT": lambda: "acme"}) == "one acme"


@pytest.mark.parametrize("text", ["```console\nno command\n```\n", "```console\n$ open\n"])
def test_a_broken_block_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadRunbook):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        (["a  b"], "a b\n", True),
        (["a … c"], "a many things c\n", True),
        (["a … c"], "a c d\n", False),
        (["a"], "a\nb\n", False),
        (["a", "…"], "a\nb\nc\n", True),
        (["…", "c"], "a\nb\nc\n", True),
        (["…", "x"], "a\nb\n", False),
        ([], "", True),
        ([], "noise\n", False),
        (["a.c"], "abc\n", False),
        (["CAUSE CAUSE"], "CAUSE 12ab\n", True),
        (["CAUSE"], "34cd\n", False),
    ],
)
def test_output_is_compared_strictly(expected: list[str], printed: str, same: bool) -> None:
    """
    Only `…` leaves anything open; a dot is a dot.
    """
    assert (difference(expected, printed, {"CAUSE": "12ab"}) is None) is same
