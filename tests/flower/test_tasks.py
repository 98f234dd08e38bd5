"""Flower's own task pages: whose a task is and what came of it, never what it is about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agentq.client import Client
from agentq.settings import Settings
from tests.flower.test_tabs import LOGIN, Window, start_flower
from tests.support.fleet import Fleet
from tests.support.until import until

PAYLOAD = 421_337_001


def test_a_task_shows_tenant_agent_step_and_class_and_no_payload(
    settings: Settings, tmp_path: Path, fleet: Fleet, tenant: str
) -> None:
    """
    In the list, on the task's page and in Flower's API; the class is that of its failure.
    """
    process, address = start_flower(settings, tmp_path, FLOWER_BASIC_AUTH=LOGIN)
    try:
        fleet.worker(AGENTQ_TASK_EVENTS="true")
        window = Window(address)
        until(lambda: json.loads(window.page("/api/workers?refresh=1")), 30, "Flower to hear of the worker")
        with Client(settings) as client:
            for agent, given in (("flaky", {"fails": 1}), ("count", {"n": PAYLOAD, "until": PAYLOAD + 1})):
                client.start(agent, tenant=tenant, input=given).wait(timeout=30)

        def ours() -> dict[str, Any]:
            tasks = json.loads(window.page("/api/tasks"))
            return {key: task for key, task in tasks.items() if f"tenant={tenant} " in (task["kwargs"] or "")}

        def results() -> list[str]:
            return sorted(task["result"] or "" for task in ours().values())

        wanted = ["'end count@1'", "'end flaky@1'", "'retry transient flaky@1'"]
        until(lambda: results() == wanted, 30, "the tasks' ends")
        for key, task in ours().items():
            page = window.page(f"/task/{key}")
            for said in (f"tenant={tenant}", "step=", "session=", task["result"].strip("'")):
                assert said in page, said
            assert str(PAYLOAD) not in page + json.dumps(task)
    finally:
        process.terminate()
        process.wait(10)
