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

    fits = cli.json("start", "count", "--tenant", idle, "--input", "{}", "--key", "lives")["id"]
    looked = json.loads(cli("db", "check", "--live", "--agent", "count", "--json").stdout)
    assert looked["steps"] >= 1, "nothing was looked at"
    assert fits not in {one["session_id"] for one in looked["stranded"]}
    registry = Registry()
    version_1(registry)
    with Client(settings, registry) as client:
        session = client.start("shop", tenant=idle, input={})
        result = cli("db", "check", "--live", "--agent", "shop")
        assert result.exit_code == 1
        assert "live sessions would be stranded" in result.stderr
        assert "migrate(from_version" in result.stderr
        found = json.loads(cli("db", "check", "--live", "--agent", "shop", "--json").stdout)
        assert not found["ok"]
        [why] = [one["why"] for one in found["stranded"] if one["session_id"] == session.id]
        assert "no agent 'shop version 1'" in why
        assert session.cancel() == "cancelled"
    after = json.loads(cli("db", "check", "--live", "--agent", "shop", "--json").stdout)
    assert session.id not in {one["session_id"] for one in after["stranded"]}


def test_wrong_words_are_refused(cli: Cli) -> None:
    assert "--live" in cli.refused(2, "db", "check", "--agent", "shop")
    assert "agent name" in cli.refused(2, "db", "check", "--live", "--agent", "No Such!")
