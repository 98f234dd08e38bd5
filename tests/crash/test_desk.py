"""The support desk on a model agent, as `benchmarks.desk` judges it by the record of the service outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentq.settings import Settings
from benchmarks.desk import play
from tests.support.fleet import Fleet

pytestmark = pytest.mark.crash

LONG = [
    pytest.mark.skipif(not os.environ.get("AGENTQ_TEST_LONG"), reason="set AGENTQ_TEST_LONG=1"),
    pytest.mark.timeout(1200),
]


@pytest.mark.parametrize(("sessions", "kills"), [(20, 1), pytest.param(200, 8, marks=LONG)])
def test_every_ticket_ends_and_each_change_is_made_once(
    settings: Settings, tenant: str, tmp_path: Path, sessions: int, kills: int
) -> None:
    """
    I5, while tools fail one call in five, and workers are killed with calls out; approvals hold.
    """
    env = Fleet(settings, tmp_path).environment()
    found = play(env, tmp_path, sessions=sessions, kills=kills, seed=7, workers=2, tenant=tenant, timeout_s=1000)
    assert found.wrong == []
    assert found.ended == {"done": sessions}
    assert found.kills == kills
    assert found.tool_failures
