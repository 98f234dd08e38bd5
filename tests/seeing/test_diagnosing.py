"""docs/diagnosing.md: the staged run goes wrong as told, and its commands print what the page shows."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner

from agentq.agents.registry import Registry
from agentq.cli import main
from agentq.client import Client
from agentq.settings import Settings
from tests.cli.conftest import environment
from tests.conftest import Servers
from tests.support.staged import PAGE, PICTURE, ROOT, Staged, commands

# What differs from run to run: times of day, durations, offsets, ids, and the bars drawn from them.
_VARIES = re.compile(
    r"\+?\b\d+(\.\d+)? (ms|s)\b|\b\d\d:\d\d:\d\d\b|\b(\d{4}-\d\d-\d\d|[0-9a-f]{8}(-[0-9a-f-]+)?)\b|[█▪+]"
)


def words(line: str, tenant: str) -> list[str]:
    """What of a line is the same in every run."""
    return _VARIES.sub(" ", line).replace(tenant, "acme").split()


def shown() -> list[tuple[str, list[str]]]:
    """Each command of the page, and the lines that the page shows of its output."""
    blocks = re.findall(r"```text\n\$ (agentq [^\n]*)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    return [(command, text.splitlines()) for command, text in blocks]


def test_the_page_shows_what_its_commands_print(
    settings: Settings,
    servers: Servers,
    client: Client,
    registry: Registry,
    tenant: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    Every line of output on the page, but for times and ids, in its order; the faults are found while it runs.
    """
    staged = Staged(client, registry, tenant)
    session = staged.play()
    assert {"steps", "tokens", "cost", "tool:export_archive"} <= set(staged.found_while_running)
    for name, value in environment(settings, servers, tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    assert len(shown()) == len(commands()) == 3
    for (command, lines), arguments in zip(shown(), commands(), strict=True):
        ran = CliRunner().invoke(main, [word.replace("SESSION", session.id) for word in arguments])
        assert ran.exit_code == 0, (command, ran.output)
        # Anomalies of other tests are listed too, and a slow machine makes this run's duration one.
        printed = iter([words(line, tenant) for line in ran.output.splitlines()])
        for line in lines:
            wanted = words(line, tenant)
            assert line == "…" or wanted in printed, f"{command} no longer prints: {line}"
    html = (tmp_path / "run.html").read_text("utf-8")
    for said in ("tool-export_archive", "It may be on the next page.", "next_page", "five model calls used"):
        assert said in html, said


def test_an_order_parks_the_next_such_run_before_the_archive(client: Client, registry: Registry, tenant: str) -> None:
    """
    As the page promises of `anomaly set --action park`: paused at the first look that finds it out of the ordinary.
    """
    client.anomalies.order("park", tenant=tenant, agent="invoice-desk", reason="until the tool is corrected")
    session = Staged(client, registry, tenant).play()
    assert session.view().state == "paused"
    names = [step.name for step in session.steps()]
    assert len(names) == 9, "eight attempts, and the step that is held"
    assert "tool-export_archive" not in names
    assert len(client.anomalies.ls(tenant=tenant, session=uuid.UUID(session.id))) >= 1


def test_the_picture_is_there_and_modest() -> None:
    assert f"({PICTURE.name})" in PAGE.read_text("utf-8")
    assert PICTURE.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert PICTURE.stat().st_size < 250_000
    assert "docs/diagnosing.md" in (ROOT / "README.md").read_text("utf-8")
