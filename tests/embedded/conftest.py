"""Stacks of real servers in folders of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentq.embedded import Stack
from tests.support.leaving import leave


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder whose servers ran once and were stopped; copying it is quicker than making another."""
    folder = tmp_path_factory.mktemp("made") / "data"
    Stack(folder).start().stop()
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that runs for the whole module, for tests that leave it as they found it."""
    stack = Stack(tmp_path_factory.mktemp("shared") / "data")
    with stack:
        yield stack
    leave(stack)


@pytest.fixture
def stack(made: Path, tmp_path: Path) -> Iterator[Stack]:
    """A stack that ran before and that the test starts; whatever it did, nothing is left of it."""
    stack = Stack(tmp_path / "data")
    subprocess.run(["cp", "-a", made, stack.data_dir], check=True)  # keeps the owners, as shutil does not
    yield stack
    leave(stack)
