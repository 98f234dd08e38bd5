"""`agentq start`."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from agentq.client import Client
from tests.cli.conftest import Cli, Program
from tests.support.fleet import Fleet
from tests.support.until import until


def test_it_prints_the_id_alone(cli: Cli, tenant: str) -> None:
    """
    Standard output is the id; what helps people is beside it.
    """
    result = cli("start", "count", "--tenant", tenant)
    assert result.exit_code == 0
    assert len(result.stdout.strip()) == 36
    assert "agentq session tail" in result.stderr


def test_a_key_finds_its_session(cli: Cli, tenant: str) -> None:
    """
    The same key and input: the same session. Another input under the key: refused.
    """
    first = cli.json("start", "count", "--tenant", tenant, "--key", "k", "--input", '{"n": 1}')
    again = cli.json("start", "count", "--tenant", tenant, "--key", "k", "--input", '{"n": 1}')
    assert (first["created"], again["created"]) == (True, False)
    assert first["id"] == again["id"]
    assert "new key" in cli.refused(2, "start", "count", "--tenant", tenant, "--key", "k", "--input", '{"n": 2}')


def test_waiting_gives_the_result(cli: Cli, tenant: str, shared_fleet: Fleet) -> None:
    """
    The result is on standard output, ready for a pipe.
    """
    assert cli.ok("start", "count", "--tenant", tenant, "--wait", "--timeout", "30") == "3\n"
    facts = cli.json("start", "count", "--tenant", tenant, "--wait", "--timeout", "30")
    assert (facts["state"], facts["result"], facts["failure"]) == ("done", 3, None)


def test_waiting_for_a_failure_is_1(cli: Cli, tenant: str, shared_fleet: Fleet) -> None:
    """
    The message says why, and where to look.
    """
    arguments = ("start", "flaky", "--tenant", tenant, "--input", '{"fails": 9}', "--wait", "--timeout", "60")
    said = cli.refused(1, *arguments)
    assert "fails" in said
    assert "agentq session show" in said
    result = cli(*arguments, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["failure"]["message"]


def test_waiting_ends_with_the_patience(cli: Cli, idle: str) -> None:
    """
    The session goes on without the caller.
    """
    assert "goes on" in cli.refused(1, "start", "wait", "--tenant", idle, "--wait", "--timeout", "0.2")


def test_interrupting_the_wait_leaves_the_session(program: Callable[..., Program], idle: str, client: Client) -> None:
    """
    Ctrl-C ends the waiting, not the session.
    """
    run = program("start", "wait", "--tenant", idle, "--wait", "--key", "mine")
    until(lambda: run.says("started"), 20, "the session")
    assert run.end(signal.SIGINT) == 130
    assert "goes on" in run.output
    assert client.list(tenant=idle, key="mine")[0].state == "running"


def test_input_from_a_file_and_from_a_pipe(cli: Cli, tenant: str, client: Client) -> None:
    """
    `@file` and `-` are read as JSON.
    """
    Path("input.json").write_text('{"n": 41}', "utf-8")
    ids = [
        cli.ok("start", "count", "--tenant", tenant, "--input", "@input.json", "--json"),
        cli.ok("start", "count", "--tenant", tenant, "--input", "-", "--json", input='{"n": 42}'),
    ]
    shown = [cli.json("session", "show", json.loads(text)["id"])["input"]["n"] for text in ids]
    assert shown == [41, 42]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("{", "not JSON"),
        ("[1]", "an array"),
        ('"x"', "text"),
        ("null", "null"),
        ("12", "a number"),
        ("@missing.json", "missing.json cannot be read"),
        ("@.", "cannot be read"),
        ("[" * 100_000, "--input"),
        ('{"n": "many"}', "n: "),
    ],
    ids=lambda text: text[:20],
)
def test_input_that_is_refused(cli: Cli, tenant: str, given: str, says: str) -> None:
    """
    What is wrong with it, before anything is stored.
    """
    assert says in cli.refused(2, "start", "count", "--tenant", tenant, "--input", given)


def test_files_that_are_not_text(cli: Cli, tenant: str) -> None:
    Path("input.json").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in cli.refused(2, "start", "count", "--tenant", tenant, "--input", "@input.json")


@pytest.mark.parametrize(
    ("code", "arguments", "says"),
    [
        (4, ("start", "count", "--tenant", "nobody-here"), "agentq tenant add"),
        (4, ("start", "nothing", "--tenant", "TENANT"), "known: "),
        (4, ("start", "count", "--tenant", "TENANT", "--version", "99"), "version 99"),
        (2, ("start", "count", "--tenant", "Not A Name"), "a-z"),
        (2, ("start", "count"), "--tenant"),
        (2, ("start", "--tenant", "TENANT"), "AGENT"),
        (2, ("start", "count", "--tenant", "TENANT", "--key", ""), "1 to 200"),
        (2, ("start", "count", "--tenant", "TENANT", "--key", "x" * 201), "1 to 200"),
        (2, ("start", "count", "--tenant", "TENANT", "--deadline", "soon"), "not a duration"),
        (2, ("start", "count", "--tenant", "TENANT", "--priority", "10"), "10"),
        (2, ("start", "count", "--tenant", "TENANT", "--timeout", "3"), "--wait"),
        (2, ("start", "count", "--tenant", "TENANT", "--wait", "--timeout", "0"), "0"),
    ],
)
def test_what_is_refused(cli: Cli, tenant: str, code: int, arguments: tuple[str, ...], says: str) -> None:
    """
    Each with its code and with what would be right.
    """
    given = tuple(tenant if argument == "TENANT" else argument for argument in arguments)
    assert says in cli.refused(code, *given)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import missing_module_xyz", "missing_module_xyz"),
        ("def broken(:", "SyntaxError"),
        ("1 / 0", "line 1"),
        ("", "defines no agent"),
    ],
)
def test_agents_that_cannot_be_imported(
    program: Callable[..., Program], cli: Cli, tmp_path: Path, text: str, says: str
) -> None:
    """
    A mistake in somebody's agents is one line with the place of it, for producers and workers alike.
    """
    (tmp_path / "my_agents.py").write_text(text, "utf-8")
    known = {name: value for name, value in os.environ.items() if name.startswith("AGENTQ_")}
    run = program("start", "x", "--tenant", "t", variables=known | {"AGENTQ_AGENTS": "my_agents"})
    assert run.process.wait(20) == 2
    run.end()
    assert says in run.output
    assert "Traceback" not in run.output


def test_no_agents_at_all(cli: Cli, tenant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Where none are named, the message says how to name them.
    """
    monkeypatch.delenv("AGENTQ_AGENTS")
    assert "AGENTQ_AGENTS" in cli.refused(2, "start", "count", "--tenant", tenant)
