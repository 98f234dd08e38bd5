"""The list of mutations keeps up with the code: each guard stands where it is named, and so does its test."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.mutations import MUTATIONS, ROOT, Mutation


@cache
def text(path: Path) -> str:
    return path.read_text("utf-8") if path.is_file() else ""


@cache
def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(text(path))) if isinstance(node, ast.FunctionDef)}


def stale(mutation: Mutation) -> str | None:
    """What about it is no longer so; None when it can be run."""
    if mutation.old not in text(ROOT / mutation.file):
        return f"{mutation.file} no longer has {mutation.old!r}"
    if mutation.new == mutation.old:
        return f"{mutation.file}: {mutation.old!r} is not changed"
    file, *names = mutation.test.split("::")
    if not (ROOT / file).is_file() or (names and names[-1].partition("[")[0] not in functions(ROOT / file)):
        return f"there is no {mutation.test}"
    return None


def test_every_mutation_can_be_run() -> None:
    """
    A guard that moved takes its line in tests/mutations.py along, and a test that is renamed its name.
    """
    found = [why for mutation in MUTATIONS if (why := stale(mutation))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("old", "new", "test"),
    [
        ("no such text", "", "tests/mutations.py::main"),
        ("def main(", "def main(", "tests/mutations.py::main"),
        ("def main(", "", "tests/mutations.py::test_nothing"),
        ("def main(", "", "tests/nowhere.py::main"),
    ],
)
def test_a_stale_one_is_noticed(old: str, new: str, test: str) -> None:
    assert stale(Mutation("tests/mutations.py", "def main(", "", "tests/mutations.py::main")) is None
    assert stale(Mutation("tests/mutations.py", old, new, test))
