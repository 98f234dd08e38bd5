"""The fleet's small model agents, with their offline models: what they answer, and what they never do."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from agentq import sandbox
from agentq.agents.agent import Agent
from agentq.agents.registry import Registry
from agentq.client import Client
from agentq.errors import SandboxUnavailable
from agentq.testing import LocalFleet
from tasks import code_runner, helpdesk, research

Local = Callable[..., LocalFleet]


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    for agent in (helpdesk.helpdesk, research.research, code_runner.code_runner):
        assert isinstance(agent, Agent)
        registry.add(agent)
    return registry


@pytest.mark.parametrize(
    ("order", "verdict", "says"),
    [
        ("AB-1001", "", "Done: 12.50 paid back"),
        ("AB-1002", "granted", "Done: 249.00 paid back"),
        ("AB-1002", "less", "Done: 100.00 paid back"),
        ("AB-1002", "denied", "could not"),
        ("AB-9999", "", "could not"),
    ],
)
def test_a_large_refund_waits_for_a_person(
    client: Client, tenant: str, local: Local, order: str, verdict: str, says: str
) -> None:
    session, fleet = client.start("helpdesk", tenant=tenant, input={"prompt": f"{order} is broken"}), local()
    while fleet.carry_next(tenant) is not None:
        pass
    asked = client.approvals.ls(tenant=tenant, session_id=session.id)
    assert bool(asked) == bool(verdict)
    for approval in asked:
        assert approval.question == "Pay 249.00 back for AB-1002?"
        who, key = client.approvals.who("ada"), str(approval.approval_id)
        if verdict == "denied":
            client.approvals.deny(key, reason="used for a year", who=who)
        else:
            client.approvals.grant(key, who=who, edits={"cents": 10_000} if verdict == "less" else None)
    assert says in fleet.drain(session).result


def test_files_are_fetched_side_by_side(
    client: Client, tenant: str, local: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A file that is gone by then fails alone, and the report says so.
    """
    for name, text in {"a.md": "tea\nand Tea", "b.md": "coffee", "c.md": "tea"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "d.md").symlink_to("/etc/passwd")
    monkeypatch.setattr(research, "ROOT", tmp_path)
    session, fleet = client.start("research", tenant=tenant, input={"word": "tea"}), local()
    for _ in range(3):  # the model, the list of files, the model
        fleet.carry_next(tenant)
    (tmp_path / "c.md").unlink()
    result = fleet.drain(session).result
    assert result == "a.md: 2 lines; b.md: 0 lines; c.md: could not be read; d.md: could not be read"
    assert [step.name for step in session.steps()].count("tool-fetch") == 4


def test_a_program_is_mended_by_its_error(client: Client, tenant: str, local: Local) -> None:
    try:
        sandbox.backend()
    except SandboxUnavailable as error:
        pytest.skip(f"no sandbox here: {error}")
    session = client.start("code-runner", tenant=tenant, input={"numbers": [3, 1, 2]})
    assert local().drain(session).result == "2.0"
    assert [step.name for step in session.steps()].count("tool-run_python") == 2


def test_no_example_needs_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Offline models answer in the process; the module names no provider unless its variable does.
    """
    monkeypatch.setattr(socket, "create_connection", None)
    for agent in (helpdesk.helpdesk, research.research, code_runner.code_runner):
        assert [model.system for model in agent.models] == ["function"]
