"""One Flower for this folder; what needs another one starts it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agentq.settings import Settings
from tests.flower.test_tabs import LOGIN, Window, start_flower


@pytest.fixture(scope="package")
def flower(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Flower with two logins, of which one may change things."""
    process, address = start_flower(
        settings, tmp_path_factory.mktemp("flower"), FLOWER_BASIC_AUTH=LOGIN, AGENTQ_FLOWER_OPERATORS="jane"
    )
    yield address
    process.terminate()
    process.wait(10)


@pytest.fixture
def window(flower: str) -> Window:
    """What somebody who may change things sees of it."""
    return Window(flower)
