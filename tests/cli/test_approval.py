"""`agentq approval`."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from agentq import Agent, Ask, Context, Done
from agentq.agents.registry import Registry
from agentq.client import Client
from agentq.testing import LocalFleet, Stuck
from tests.cli.conftest import Cli

Local = Callable[..., LocalFleet]


class Refund(BaseModel):
    order: str = "A1"


@pytest.fixture
def waiting(cli: Cli, registry: Registry, client: Client, tenant: str, local: Local) -> tuple[LocalFleet, str]:
    """A session that asks finance; its fleet and its approval."""
    agent = Agent("asker", state=Refund, registry=registry)

    @agent.step(start=True)
    def ask(state: Refund) -> Ask:
        lines = [{"cents": 900, "why": "broken"}]
        return Ask("Refund A1?", to="finance", within="1h", then=hear, args={"lines": lines}, details="a long story")

    @agent.step
    def hear(state: Refund, ctx: Context, lines: list[dict[str, Any]]) -> Done:
        return Done([ctx.answer.outcome, ctx.answer.by, lines[0]["cents"]])

    fleet = local()
    session = client.start("asker", tenant=tenant, input={})
    with pytest.raises(Stuck):
        fleet.drain(session)
    [row] = cli.json("approval", "ls", "--tenant", tenant)
    return fleet, str(row["approval_id"])


def result(fleet: LocalFleet, tenant: str) -> Any:
    [row] = fleet.client.list(tenant=tenant)
    return fleet.drain(fleet.client.get(tenant, str(row.session_id))).result


def test_listed_shown_and_granted(cli: Cli, tenant: str, waiting: tuple[LocalFleet, str]) -> None:
    """
    From the list to the decision, as a person does it; the audit says who and why.
    """
    fleet, approval = waiting
    assert approval in cli.ok("approval", "ls", "--group", "finance", "--tenant", tenant)
    assert cli.json("approval", "ls", "--group", "legal", "--tenant", tenant) == []
    text = cli.ok("approval", "show", approval[:30])
    for word in ("Refund A1?", "finance", "a long story", "broken", "deadline"):
        assert word in text
    would = cli.ok("approval", "grant", approval, "--set", "lines.0.cents=500", "--reason", "half", "--dry-run")
    assert "would become 500" in would
    assert cli.json("approval", "show", approval)["state"] == "open"
    said = cli.json("approval", "grant", approval, "--set", "lines.0.cents=500", "--comment", "half")
    assert (said["state"], said["decided_by"], said["decided_via"]) == ("granted", "tester", "claimed")
    assert said["changes"] == [{"path": "lines.0.cents", "before": 900, "after": 500}]
    assert "900 → 500" in cli.ok("approval", "show", approval)
    assert result(fleet, tenant) == ["granted", "tester", 500]
    query = "select operator, reason from agentq.operator_action where target = %(target)s"
    rows = fleet.store.query_as("*", query, {"target": approval})
    assert rows == [("tester", "half")]


def test_the_second_to_decide_is_told_of_the_first(cli: Cli, tenant: str, waiting: tuple[LocalFleet, str]) -> None:
    fleet, approval = waiting
    assert "denied" in cli.ok("approval", "deny", approval, "--reason", "no", "--as", "bob")
    assert "was denied by bob" in cli.refused(1, "approval", "grant", approval, "--reason", "yes")
    assert "denied" in cli.ok("approval", "deny", approval, "--reason", "no", "--as", "bob"), "the answer got lost"
    assert result(fleet, tenant)[:2] == ["denied", "bob"]


@pytest.mark.parametrize(
    ("code", "arguments", "why"),
    [
        (2, ["grant", "ID", "--reason", " "], "must say something"),
        (2, ["grant", "ID"], "--reason"),
        (2, ["grant", "ID", "--reason", "x", "--set", "lines"], "PATH=VALUE"),
        (2, ["grant", "ID", "--reason", "x", "--set", "lines.7.cents=1"], "no argument"),
        (2, ["grant", "ID", "--reason", "x", "--set", "lines.0.cents=much"], "cannot become a text"),
        (2, ["grant", "ID", "--reason", "x", "--set", "=1"], "PATH=VALUE"),
        (2, ["deny", "ID", "--reason", ""], "must say something"),
        (4, ["show", "00000000-0000-4000-8000-000000000000"], "no approval"),
        (2, ["show", "nonsense"], "hexadecimal"),
        (2, ["ls", "--tenant", "No Name"], "tenant name"),
        (2, ["ls", "--group", "No Group"], "group name"),
    ],
)
def test_bad_input_changes_nothing(
    cli: Cli, tenant: str, waiting: tuple[LocalFleet, str], code: int, arguments: list[str], why: str
) -> None:
    _, approval = waiting
    words = [approval if word == "ID" else word for word in arguments]
    assert why in cli.refused(code, "approval", *words)
    assert cli.json("approval", "show", approval)["state"] == "open"


TOKEN = "correct horse battery staple"
APPROVERS = {
    "ada": {"groups": ["finance"], "token_sha256": hashlib.sha256(TOKEN.encode()).hexdigest()},
    "bob": {"groups": ["legal"], "token_sha256": hashlib.sha256(b"b").hexdigest()},
    "eve": {"groups": ["finance"], "tenants": ["another"], "token_sha256": hashlib.sha256(b"e").hexdigest()},
    "joe": {"groups": ["finance"]},
    pwd.getpwuid(os.getuid()).pw_name: {"groups": ["finance"]},
}


@pytest.mark.parametrize(
    ("name", "token", "why"),
    [
        ("ada", "wrong", "the token is another"),
        ("ada", "", "no token was shown"),
        ("bob", "b", "it asks finance, they are of legal"),
        ("eve", "e", "they decide for another"),
        ("joe", TOKEN, "the login here is"),
        ("mallory", TOKEN, "no approver of that name"),
    ],
)
def test_only_an_approver_decides(
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    waiting: tuple[LocalFleet, str],
    name: str,
    token: str,
    why: str,
) -> None:
    """
    With approvers in the settings: a known name, proven, of a group that is asked, for this tenant.
    """
    _, approval = waiting
    monkeypatch.setenv("AGENTQ_APPROVERS", json.dumps(APPROVERS))
    monkeypatch.setenv("AGENTQ_OPERATOR", name)
    monkeypatch.setenv("AGENTQ_APPROVER_TOKEN", token)
    said = cli.refused(2, "approval", "grant", approval, "--reason", "please")
    assert why in said
    assert token not in said or len(token) < 3
    assert cli.json("approval", "show", approval)["state"] == "open"


@pytest.mark.parametrize("how", ["token", "login"])
def test_a_proven_name_is_recorded_with_its_proof(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, waiting: tuple[LocalFleet, str], how: str
) -> None:
    _, approval = waiting
    login = pwd.getpwuid(os.getuid()).pw_name
    monkeypatch.setenv("AGENTQ_APPROVERS", json.dumps(APPROVERS))
    monkeypatch.setenv("AGENTQ_OPERATOR", "ada" if how == "token" else login)
    monkeypatch.setenv("AGENTQ_APPROVER_TOKEN", TOKEN)
    said = cli.json("approval", "grant", approval, "--reason", "fine")
    assert (said["decided_by"], said["decided_via"]) == (("ada", "token") if how == "token" else (login, "login"))
