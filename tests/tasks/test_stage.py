"""The demo's stage: its servers start, end with it, and every trouble has a message."""

from __future__ import annotations

import io
import re
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from agentq.demo.checks import Check
from agentq.demo.observe import Progress
from agentq.demo.screen import Screen
from agentq.demo.stage import KEPT_RUNS, Stage
from agentq.errors import ConfigError

ROOT = Path(__file__).parents[2]


def test_a_run_lays_fresh_orders_and_starts_servers_that_end_with_it(tmp_path):
    with Stage(tmp_path, ROOT) as stage:
        found = stage.start()
        assert httpx.get(f"{found['DESK_PAYMENTS_URL']}/health").status_code == 200
        assert httpx.get(f"{found['DESK_MAIL_URL']}/health").status_code == 200
        assert set(found) == {
            "DESK_ORDERS", "DESK_PAYMENTS_URL", "DESK_PAYMENTS_TOKEN", "DESK_SMTP", "DESK_MAIL_URL", "DESK_MAIL_TOKEN",
        }  # fmt: skip
        assert len(stage.expected()) > 50
        assert stage.messages() == []
        assert stage.refunds() == ([], [])
        assert stage.addresses()["AG-1001"].endswith("Kraków")

    assert all(server.poll() is not None for server in stage.servers.values())
    assert (stage.folder / "payments.sqlite").is_file()  # the records stay


def test_two_runs_share_nothing(tmp_path):
    one, two = Stage(tmp_path, ROOT), Stage(tmp_path, ROOT)
    assert one.folder != two.folder
    assert one.key_prefix != two.key_prefix


def test_old_runs_are_removed_in_time(tmp_path):
    for n in range(6):
        (tmp_path / "demo" / f"0101-00000{n}-aaaa").mkdir(parents=True)
    with Stage(tmp_path, ROOT) as stage:
        stage.start()
    left = sorted(path.name for path in (tmp_path / "demo").iterdir())
    assert len(left) == KEPT_RUNS
    assert stage.run in left


def test_outside_a_checkout_it_says_so(tmp_path):
    with pytest.raises(ConfigError, match="run it in the folder with tasks/support_desk"):
        Stage(tmp_path, tmp_path).start()


def test_a_server_that_does_not_start_shows_its_last_words(tmp_path, monkeypatch):
    monkeypatch.setattr("agentq.demo.stage.MAIL_TEMPER", ("--latency", "sometimes"))
    with (
        Stage(tmp_path, ROOT) as stage,
        pytest.raises(ConfigError, match=r"mail_sink server does not start:[\s\S]*sometimes"),
    ):
        stage.start()
    assert all(server.poll() is not None for server in stage.servers.values())


def test_a_producer_that_fails_shows_its_last_words(tmp_path):
    with pytest.raises(ConfigError, match="the producer failed"):
        Stage(tmp_path, ROOT).produce({"PYTHONPATH": str(ROOT), "AGENTQ_AGENTS": "nowhere"})


def test_without_a_terminal_the_screen_says_plain_lines():
    out = io.StringIO()
    with Screen(Console(file=out, force_terminal=False)) as screen:
        screen.follow([Progress("shop", 3, 1, 9)], 2.0, "[note]")
        screen.follow([Progress("shop", 3, 2, 9)], 2.1, "too soon")
        screen.verdict([Check("all went well", True, "3 of 3"), Check("this did not", False, "1 of 3", ("why [x]",))])

    text = out.getvalue()
    assert re.search(r"2\.0 s  shop 1/3 .* steps/s  \[note\]", text)
    assert "too soon" not in text
    assert "✓ all went well" in text
    assert "✗ this did not" in text
    assert "why [x]" in text
    assert "\x1b" not in text


def test_in_a_terminal_the_screen_draws_a_bar_per_tenant():
    out = io.StringIO()
    with Screen(Console(file=out, force_terminal=True, width=120)) as screen:
        screen.follow([Progress("one", 3, 1, 9), Progress("two", 2, 2, 4)], 2.0, "note")
        screen.say("a line", "bold")
    assert "1/3" in out.getvalue()
    assert "2/2" in out.getvalue()
