"""One arena for this folder: these tests wipe the broker and restart Postgres, so they share with nobody."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.arena import Arena, arena_in


@pytest.fixture(scope="session")
def _arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with arena_in(tmp_path_factory.mktemp("crash")) as arena:
        yield arena


@pytest.fixture
def arena(_arena: Arena) -> Arena:
    """The arena, emptied; workers of the test before may still be there."""
    _arena.clear()
    return _arena


@pytest.fixture
def lonely(arena: Arena) -> Arena:
    """The arena without any worker."""
    arena.dismiss()
    return arena
