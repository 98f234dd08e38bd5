"""Stacks of real servers in folders of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentq.embedded import Stack


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that runs for the whole module, for tests that leave it as they found it."""
    stack = Stack(tmp_path_factory.mktemp("shared") / "data")
    with stack:
        yield stack
    stack.remove()


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack that the test starts; whatever it did, nothing is left of it."""
    stack = Stack(tmp_path / "data")
    yield stack
    stack.remove()
