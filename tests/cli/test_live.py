"""`agentq db check --live`: asked before a deploy, with the code that is to be deployed."""

from __future__ import annotations

import json

from agentq.client import Client
from agentq.settings import Settings
from tests.cli.conftest import Cli


def test_a_missing_version_is_named_before_the_deploy(settings: Settings, cli: Cli, idle: str) -> None:
    """
    Exit code 1, the sessions and the reason, and nothing changed; 0 where all is well.
    """
    from agentq.agents.registry import Registry
    from tests.agents.test_versions import version_1

    cli.ok("start", "count", "--tenant", idle, "--input", "{}", "--key", "lives")
    said = cli.ok("db", "check", "--live", "--agent", "count")
    assert "can run each of them" in said
    assert not said.startswith("0 live"), "nothing was looked at"
    registry = Registry()
    version_1(registry)
    with Client(settings, registry) as client:
        session = client.start("shop", tenant=idle, input={})
        result = cli("db", "check", "--live", "--agent", "shop")
        assert result.exit_code == 1
        assert "1 live sessions would be stranded" in result.stderr
        assert "migrate(from_version" in result.stderr
        found = json.loads(cli("db", "check", "--live", "--agent", "shop", "--json").stdout)
        assert not found["ok"]
        assert [one["session_id"] for one in found["stranded"]] == [session.id]
        assert "no agent 'shop version 1'" in found["stranded"][0]["why"]
        assert session.cancel() == "cancelled"
    assert cli("db", "check", "--live", "--agent", "shop").exit_code == 0


def test_wrong_words_are_refused(cli: Cli) -> None:
    assert "--live" in cli.refused(2, "db", "check", "--agent", "shop")
    assert "agent name" in cli.refused(2, "db", "check", "--live", "--agent", "No Such!")
