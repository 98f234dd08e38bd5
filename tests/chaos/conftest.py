"""A command line in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner


@pytest.fixture
def run_cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    """Invokes commands where no settings and no servers are."""
    monkeypatch.chdir(tmp_path)
    return CliRunner()
