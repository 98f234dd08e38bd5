"""A whole run in the short profile, and one against a fleet whose guard is gone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from agentq.cli import main

pytestmark = pytest.mark.crash

SEED = os.environ.get("AGENTQ_TEST_SEED", "7")


def test_the_short_profile(tmp_path: Path) -> None:
    """Nothing is lost, repeated, corrupt, out of order or stuck, whatever breaks; and everything did break."""
    ran = CliRunner().invoke(main, ["chaos", "--profile", "short", "--seed", SEED, "--out", str(tmp_path), "--json"])
    assert ran.exit_code == 0, ran.output[-4000:]
    found = json.loads(ran.stdout)
    assert found["ok"]
    assert not found["violations"]
    figures = found["figures"]
    assert figures["blows that hit"] == figures["blows"] >= 19
    assert figures["calls repeated under their key"] > 0, "no call was cut off: this proves nothing"
    assert figures["sessions done"] >= 40
    page = (tmp_path / f"chaos-short-{SEED}.html").read_text("utf-8")
    assert "<svg" in page
    assert "http" not in page.replace("http://www.w3.org", ""), "the page must need nothing else"
    assert not (tmp_path / f"run-short-{SEED}").exists(), "the run left its servers' folder"
