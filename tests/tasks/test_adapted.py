"""The examples of agents of other frameworks run, and end as they say."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

from agentq.agents.registry import default_registry
from agentq.client import Client, Session
from agentq.settings import Settings
from agentq.testing import LocalFleet, Stuck


def run(settings: Settings, module: str, start: Any, **edits: Any) -> Any:
    """The result of a session that `start` starts; what it asks is granted with these edits."""
    import_module(f"tasks.adapted.{module}")
    with Client(settings, default_registry) as client, LocalFleet(client) as fleet:
        session: Session = start(client)
        if edits:
            with pytest.raises(Stuck, match="waits for people"):
                fleet.drain(session)
            [asked] = client.approvals.ls(tenant=session.tenant)
            client.approvals.grant(str(asked.approval_id), edits=edits.get("edits"))
        return fleet.drain(session).result


def test_the_existing_pydantic_ai_agent(settings: Settings, tenant: str) -> None:
    result = run(
        settings, "existing", lambda client: client.start("waiter", tenant=tenant, input={"prompt": "tea"}), edits=None
    )
    assert result == "ordered tea and cake for 11.50"


def test_the_graph(settings: Settings, tenant: str) -> None:
    small = run(
        settings, "refund_graph", lambda client: client.start("refund-graph", tenant=tenant, input={"order": "A1"})
    )
    assert small["receipt"].startswith("12.50 for A1")
    large = run(
        settings,
        "refund_graph",
        lambda client: client.start("refund-graph", tenant=tenant, input={"order": "B2"}),
        edits={"resume": 5000},
    )
    assert large["receipt"].startswith("50.00 for B2")


def test_the_clerk(settings: Settings, tenant: str) -> None:
    prompt = {"prompt": "Where are AB-1001 and AB-1002?"}
    result = run(settings, "clerk", lambda client: client.start("clerk", tenant=tenant, input=prompt))
    assert result == "AB-1001 is shipped; AB-1002 is being packed"
