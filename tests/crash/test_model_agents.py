"""Workers killed inside a model agent's tools: each effect once, and every session comes to its end."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from agentq.agents.registry import Registry
from agentq.client import Client
from agentq.settings import Settings
from tests.support.fleet import Fleet
from tests.support.until import until

pytestmark = pytest.mark.crash

SESSIONS = 12


@pytest.mark.parametrize(
    ("agent", "module"),
    [
        ("booker", "tests.support.model_agents"),
        ("adapted", "tests.support.model_agents"),
        ("graph", "tests.support.langgraph_agents"),
        ("clerk", "tests.support.openai_agents"),
    ],
)
def test_a_worker_killed_in_a_tool_repeats_nothing(
    settings: Settings, fleet: Fleet, tenant: str, tmp_path: Path, agent: str, module: str
) -> None:
    """
    I5: killed after the side effect and before its result was stored; the check finds it done.
    """
    from tests.support.model_agents import CALLS

    registry = Registry()
    registry.add(getattr(import_module(module), agent))
    (tmp_path / "lines").touch()
    (tmp_path / "kill").touch()
    more = {"agents": module, "MODEL_TEST_BOOK": str(tmp_path)}
    for _ in range(2):
        fleet.worker(wait=False, **more)
    with Client(settings, registry) as client:
        items = [({"prompt": str(n)}, f"k{n}") for n in range(SESSIONS)]
        sessions = client.start_many(agent, tenant=tenant, items=items)
        until(lambda: any(not worker.alive for worker in fleet), 90, "a worker that was killed")
        assert set(client.wait_all(sessions, timeout=120).values()) == {"done"}
        results = [re.findall(r"\S+:\S+", str(session.view().result)) for session in sessions]
    lines = (tmp_path / "lines").read_text().split()
    assert len(lines) == len(set(lines)) == SESSIONS * CALLS
    assert sorted(key.strip("',]}") for result in results for key in result) == sorted(lines)
