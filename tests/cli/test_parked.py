"""`agentq session show` of a session that its breaker has parked."""

from __future__ import annotations

from agentq import ModelAgent
from agentq.agents.registry import Registry
from agentq.client import Client
from agentq.settings import Settings
from agentq.testing import LocalFleet
from tests.agents.test_model import Script, calls, start
from tests.cli.conftest import Cli


def look(n: int) -> str:
    """Look."""
    return f"page {n}"


def test_it_says_what_tripped_and_what_to_do(settings: Settings, cli: Cli, tenant: str) -> None:
    """
    The rule, its evidence, and the command with which it goes on.
    """
    registry = Registry()
    script = Script(*[calls(("look", {"n": 1})) for _ in range(9)])
    ModelAgent("desk", model=script.model, tools=[look], registry=registry)
    with Client(settings, registry) as client, LocalFleet(client) as fleet:
        session = start(client, tenant)
        while fleet.carry_next(tenant) is not None:
            pass
    shown = cli.ok("session", "show", session.id)
    assert "breaker" in shown
    assert "the last 6 tool calls repeated" in " ".join(shown.split())
    facts = cli.json("session", "show", session.id)
    assert facts["hold"]["kind"] == "breaker"
    assert facts["hold"]["evidence"]["rule"] == "stale"
    assert f"agentq session resume {session.id}" in facts["advice"][0]
    cli.ok("session", "resume", session.id, "--reason", "looked at it")
    assert cli.json("session", "show", session.id)["hold"] is None
