"""Workers killed while they remember: each memory once, and a count that many raise is never wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentq.agents.registry import Registry
from agentq.client import Client
from agentq.settings import Settings
from tests.support.fleet import Fleet
from tests.support.until import until

pytestmark = pytest.mark.crash

SESSIONS = 12


def test_a_worker_killed_after_it_wrote_leaves_one_version_of_each(
    settings: Settings, fleet: Fleet, tenant: str, tmp_path: Path
) -> None:
    """
    I2, I5: one worker dies within an effect, whose memory is there and is not written twice; one between a step's
    writes and its settlement, and nothing of them is there until another has done it. Meanwhile all raise one count:
    who acted on an old value runs again.
    """
    from tests.support.memory_agents import keeper

    registry = Registry()
    registry.add(keeper)
    for where in ("kill-effect", "kill-step"):
        (tmp_path / where).touch()
    more = {"agents": "tests.support.memory_agents", "MEMORY_TEST_BOOK": str(tmp_path), "AGENTQ_STEP_RETRIES": "50"}
    for _ in range(3):
        fleet.worker(wait=False, **more)
    fleet.worker(wait=False, group="quarantine", **more)  # for a step that had the bad luck of both deaths
    with Client(settings, registry) as client:
        items = [({"name": f"n{n}"}, f"k{n}") for n in range(SESSIONS)]
        sessions = client.start_many("keeper", tenant=tenant, items=items)
        until(lambda: sum(not worker.alive for worker in fleet) == 2, 90, "two workers that were killed")
        assert set(client.wait_all(sessions, timeout=120).values()) == {"done"}
        for namespace in ("effects", "steps"):
            found = client.memory.ls(tenant, namespace)
            assert sorted(memory.key for memory in found) == sorted(f"n{n}" for n in range(SESSIONS))
            assert {memory.version for memory in found} == {1}
        count = client.memory.get(tenant, "all", "count")
        assert count is not None
        assert (count.value, count.version) == (SESSIONS, SESSIONS)
