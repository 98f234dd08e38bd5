"""Tables and times as people meet them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from agentq.cli import output

ROWS = [["01a209ce-4839-7893-bc62-3692ad91e20f", "acme", "", "a long reason " * 6]]
HEADINGS = ("SESSION", "TENANT", "KEY", "WHY")


def test_a_wide_terminal_gets_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """
    Ids stay whole, texts are folded, empty columns are left out.
    """
    monkeypatch.setenv("COLUMNS", "90")
    assert output._rich_table(HEADINGS, ROWS)
    text = capsys.readouterr().out
    assert ROWS[0][0] in text
    assert "KEY" not in text
    assert len(text.splitlines()) > 2


def test_a_narrow_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """
    Rather than an id in pieces that nobody can copy.
    """
    monkeypatch.setenv("COLUMNS", "40")
    assert not output._rich_table(HEADINGS, ROWS)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.0314, "31 ms"), (1.6, "1.6 s"), (125, "2 min 5 s"), (7300, "2 h 1 min"), (200_000, "2 d 7 h")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert output.span(seconds) == text


def test_times() -> None:
    """
    Today's without the date; in JSON always whole, in UTC.
    """
    now = datetime.now(UTC)
    assert len(output.when(now)) == 8
    assert len(output.when(now - timedelta(days=2))) == 19
    assert output.when(None) == ""
    assert output.plain(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)) == "2026-01-02T03:04:05.000Z"
