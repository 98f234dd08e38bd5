"""Exit codes, messages and help, the same for every command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from agentq import errors
from agentq.cli import exits, main
from agentq.client import Client
from tests.cli.conftest import Cli


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


COMMANDS = dict(commands(main))
# Writes JSON in any case.
ALWAYS_JSON = {("dlq", "export")}
IN_THE_FOREGROUND = {("up",), ("demo",), ("worker",), ("flower",)}


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(bare: Cli, path: tuple[str, ...]) -> None:
    """
    Help needs no server and no settings, and is more than a list of options.
    """
    text = bare.ok(*path, "--help")
    assert COMMANDS[path].help
    assert text.startswith(f"Usage: agentq {' '.join(path)}")


@pytest.mark.parametrize(
    "path",
    [p for p, c in COMMANDS.items() if not isinstance(c, click.Group) and p not in IN_THE_FOREGROUND | ALWAYS_JSON],
    ids=" ".join,
)
def test_every_answer_can_be_had_as_json(path: tuple[str, ...]) -> None:
    """
    What does not run in the foreground has `--json`.
    """
    assert "--json" in {option for parameter in COMMANDS[path].params for option in parameter.opts}


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_refuses_what_it_does_not_know(bare: Cli, path: tuple[str, ...]) -> None:
    """
    A mistyped option ends with 2 and changes nothing.
    """
    assert "No such option" in bare.refused(2, *path, "--frobnicate")


def test_the_root_refuses_unknown_commands(bare: Cli) -> None:
    assert "No such command" in bare.refused(2, "sesion", "ls")


@pytest.mark.parametrize(
    "arguments",
    [
        ("session", "ls"),
        ("session", "show", "01a2"),
        ("session", "tail", "01a2"),
        ("session", "cancel", "01a2", "--reason", "x"),
        ("tenant", "ls"),
        ("tenant", "add", "acme"),
        ("tenant", "set", "acme", "--weight", "2", "--reason", "x"),
        ("queue", "ls"),
        ("fleet", "ls"),
        ("submission", "ls"),
        ("start", "hello", "--tenant", "acme"),
        ("db", "check"),
        ("db", "upgrade"),
        ("worker",),
        ("flower",),
    ],
    ids=" ".join,
)
def test_without_servers_every_command_says_how_to_get_them(bare: Cli, arguments: tuple[str, ...]) -> None:
    """
    No server named and none running here: 3, and what to do.
    """
    assert "agentq up" in bare.refused(3, *arguments)


def test_a_database_that_does_not_answer(bare: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The message names host and port and never the password, and comes at once.
    """
    monkeypatch.setenv("AGENTQ_DATABASE_URL", "postgresql://agentq:s3cr3t@127.0.0.1:1/agentq")
    monkeypatch.setenv("AGENTQ_BROKER_URL", "redis://127.0.0.1:1/0")
    for arguments in (("session", "ls"), ("db", "check"), ("db", "upgrade"), ("queue", "ls")):
        said = bare.refused(3, *arguments)
        assert "127.0.0.1:1" in said
        assert "s3cr3t" not in said


def test_wrong_settings_are_refused(bare: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A contradiction in the settings is 2, in one line.
    """
    monkeypatch.setenv("AGENTQ_LEASE_S", "1")
    said = bare.refused(2, "session", "ls")
    assert "heartbeat_s" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("x"), 2),
        (errors.InvalidInput("x"), 2),
        (errors.InvalidName("tenant", "A"), 2),
        (errors.UnknownTenant("acme"), 4),
        (errors.UnknownAgent("a", None, ()), 4),
        (errors.UnknownSession("acme", "1"), 4),
        (errors.StoreUnavailable("x"), 3),
        (errors.BrokerUnavailable("x"), 3),
        (errors.SessionFailed("1", "failed", "x"), 1),
        (errors.WaitTimeout("x"), 1),
        (ZeroDivisionError("x"), 1),
    ],
)
def test_each_error_has_its_code(error: Exception, code: int) -> None:
    """
    One place decides; scripts can rely on it.
    """
    assert exits.explained(error).exit_code == code


def test_a_bug_is_one_line_unless_debugging(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A traceback is for those who asked for it.
    """

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(Client, "list", broken)
    assert "AGENTQ_LOG_LEVEL=DEBUG" in cli.refused(1, "session", "ls")
    monkeypatch.setenv("AGENTQ_LOG_LEVEL", "DEBUG")
    assert "Traceback" in cli("session", "ls").stderr


def test_an_interrupt_is_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    As shells expect.
    """

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "list", interrupted)
    assert "interrupted" in cli.refused(130, "session", "ls")


def test_the_version(bare: Cli) -> None:
    assert bare.ok("--version").startswith("agentq ")


def test_importing_the_command_line_brings_no_servers_library() -> None:
    """
    The command line's own modules import what they need when they need it, so that `--help` is quick.
    """
    code = "import sys, agentq; before = set(sys.modules); import agentq.cli; print(*set(sys.modules) - before)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"celery", "flower", "rich", "sqlalchemy", "alembic", "psycopg", "redis", "agentq.embedded"}
    assert not heavy & set(ran.stdout.split())
