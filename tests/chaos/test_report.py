"""The report: everything in one page, and a table of many."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from click.testing import CliRunner

from agentq.chaos import report, schedule
from agentq.chaos.judge import History, judge
from agentq.chaos.recovery import recoveries
from agentq.chaos.run import Run
from agentq.cli import main
from tests.chaos.histories import BEGAN, clean


def _run(history: History, seed: int = 1) -> Run:
    drawn = schedule.make(schedule.SHORT, seed)
    found = tuple(recoveries(history.hits, history.requests, lease_s=3.0))
    return Run(drawn, history, judge(history), found, BEGAN, 20.0)


def test_the_page_has_every_blow_and_every_session() -> None:
    """A bar for the blow, a row for each session, the evidence, and nothing from elsewhere."""
    history = clean()
    page = report.document(_run(history))
    assert "Passed" in page
    assert page.count("<title>worker killed: pid 7</title>") == 1
    calls = len(history.requests)
    assert len(re.findall(rf"<rect [^>]*height='{report.ROW - 1:g}' fill", page)) == calls
    assert not re.search(r"(src|href)=|url\(|@import", page)


def test_violations_are_named_and_escaped() -> None:
    """What a session brought to the page is text there."""
    history = clean()
    key = history.wanted[0].key
    broken = replace(
        history,
        ends=[replace(end, state="failed", failure="<b>no</b>") if end.key == key else end for end in history.ends],
    )
    page = report.document(_run(broken))
    assert "Failed: 1 innocent dead" in page
    assert "&lt;b&gt;no&lt;/b&gt;" in page
    assert f"✗ {key}" in page


def test_runs_as_a_table(run_cli: CliRunner, tmp_path: Path) -> None:
    """One line a run, recovery by fault; a stranger's file is passed over, and an empty folder is said to be one."""
    folder = tmp_path / "reports"
    for seed in (3, 1):
        report.write(_run(clean(), seed), folder)
    (folder / "chaos-long-x.json").write_text("{}")
    ran = run_cli.invoke(main, ["chaos", "table", str(folder)])
    assert ran.exit_code == 0, ran.output
    lines = [line.split() for line in ran.output.splitlines()]
    assert [line[1] for line in lines if line[:1] == ["short"]] == ["1", "3"]
    assert any(line[:2] == ["worker", "killed"] for line in lines)
    found = json.loads(run_cli.invoke(main, ["chaos", "table", str(folder), "--json"]).output)
    assert [each["seed"] for each in found] == [1, 3]
    empty = tmp_path / "empty"
    empty.mkdir()
    nothing = run_cli.invoke(main, ["chaos", "table", str(empty)])
    assert nothing.exit_code == 2
    assert "agentq chaos" in nothing.output
