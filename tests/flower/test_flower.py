"""Flower's arguments, and when it refuses to start."""

from __future__ import annotations

from typing import Any

import pytest

from agentq import flower
from agentq.errors import ConfigError
from agentq.settings import Settings


def test_its_arguments_are_options_of_this_flower() -> None:
    """
    A renamed option would be ignored in silence.
    """
    import flower.options as known

    for argument in flower.arguments(Settings(), read_only=True)[1:]:
        name = argument.removeprefix("--").partition("=")[0]
        assert hasattr(known.options, name), name


def test_memory_is_bounded() -> None:
    """
    Some 6 kB a task: 10,000 are enough to look at, 100,000 are half a gigabyte.
    """
    assert f"--max_tasks={flower.TASKS_MAX}" in flower.arguments(Settings())
    assert flower.TASKS_MAX <= 20_000


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("10.0.0.7", False),
        ("flower.example", False),
        ("127.0.0.1.example", False),
    ],
)
def test_what_reaches_only_this_machine(address: str, loopback: bool) -> None:
    """
    An empty address binds every interface; a name may point anywhere.
    """
    assert flower.is_loopback(address) is loopback


@pytest.fixture(autouse=True)
def no_login_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLOWER_BASIC_AUTH", "FLOWER_AUTH"):
        monkeypatch.delenv(name, raising=False)


def refusal(**settings: Any) -> str | None:
    """Why Flower would not start with these; None: it would."""
    try:
        flower.require_login(Settings(**settings))
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("login", ["", "operator", "operator:", ":secret"])
def test_the_network_needs_a_login(login: str) -> None:
    """
    No login, or half of one, is refused before anything listens.
    """
    said = refusal(flower_address="0.0.0.0", flower_basic_auth=login)
    assert said is not None
    assert "secret" not in said


@pytest.mark.parametrize(
    "settings",
    [{}, {"flower_basic_auth": "a:b"}, {"flower_address": "0.0.0.0", "flower_basic_auth": "a:b"}],
)
def test_what_is_allowed(settings: dict[str, Any]) -> None:
    """
    This machine alone needs no login; with one it may be the network.
    """
    assert refusal(**settings) is None


@pytest.mark.parametrize(
    ("variable", "value"), [("FLOWER_AUTH", ".*@example\\.com"), ("FLOWER_BASIC_AUTH", "jane:pass-word-1")]
)
def test_the_login_of_flowers_own_counts(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    OAuth and Flower's own variables are logins too: what was refused without is allowed with one.
    """
    assert refusal(flower_address="0.0.0.0") is not None
    monkeypatch.setenv(variable, value)
    assert refusal(flower_address="0.0.0.0") is None
