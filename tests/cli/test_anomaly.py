"""`agentq anomaly`: looked at, muted with a reason and a name, and what is ordered for the next ones."""

from __future__ import annotations

import pytest

from agentq.agents.registry import Registry
from agentq.client import Client
from tests.cli.conftest import Cli
from tests.support.bad_run import define
from tests.support.odd import stands_out


@pytest.fixture
def odd(registry: Registry, client: Client, idle: str) -> str:
    """The id of a session of two anomalies, of a tenant whose steps wait."""
    define(registry)
    session = client.start("part", tenant=idle, input={})
    stands_out(client, session)
    stands_out(client, session, "cost")
    return session.id


def of(cli: Cli, session: str, measure: str = "steps", state: str = "all") -> str:
    """The id of the session's anomaly of that measure."""
    [row] = [
        one for one in cli.json("anomaly", "ls", "--session", session, "--state", state) if one["measure"] == measure
    ]
    return str(row["anomaly_id"])


def test_what_stands_out_is_listed_and_shown(cli: Cli, odd: str, idle: str, other_tenant: str) -> None:
    """
    With its value and what is normal; narrowed to tenant, agent and session; one tells where to look next.
    """
    listed = cli.ok("anomaly", "ls", "--tenant", idle)
    assert [line.split()[6] for line in listed.splitlines()[1:]] in (["cost", "steps"], ["steps", "cost"])
    assert "5 to 7" in listed
    assert odd in cli.ok("anomaly", "ls", "--agent", "part", "--session", odd[:18])
    assert len(cli.json("anomaly", "ls", "--tenant", idle, "--limit", "1")) == 1
    assert cli.json("anomaly", "ls", "--tenant", idle, "--agent", "desk") == []
    assert cli.json("anomaly", "ls", "--tenant", other_tenant) == []
    for times, count in ((("--since", "1h"), 2), (("--until", "1h"), 0), (("--since", "2h", "--until", "1h"), 0)):
        assert len(cli.json("anomaly", "ls", "--tenant", idle, *times)) == count, times
    shown = cli("anomaly", "show", of(cli, odd))
    for said in (odd, "5 to 7, learned from 200 runs", "while it ran", "steps 60, of a test", "p99"):
        assert said in shown.stdout, said
    assert f"agentq session trace {odd}" in shown.stderr
    assert f"agentq session pause {odd}" in shown.stderr
    assert cli.json("anomaly", "show", of(cli, odd)[:13])["value"] == 60


def test_an_anomaly_is_muted_with_a_reason_and_taken_back(cli: Cli, odd: str, idle: str) -> None:
    """
    A dry run changes nothing, a second time says so, the other measure stays open; each change is audited.
    """
    one = of(cli, odd)
    assert "would be muted" in cli.ok("anomaly", "mute", one, "--reason", "known", "--dry-run")
    assert of(cli, odd, state="open") == one
    assert "is muted" in cli.ok("anomaly", "mute", one, "--reason", "known")
    assert of(cli, odd, state="muted") == one
    assert [row["measure"] for row in cli.json("anomaly", "ls", "--session", odd)] == ["cost"]
    assert "by tester" in cli.ok("anomaly", "show", one)
    again = cli("anomaly", "mute", one, "--reason", "known")
    assert (again.exit_code, again.stdout) == (0, "")
    assert "nothing changed" in again.stderr
    assert cli.json("anomaly", "unmute", one, "--reason", "not so")["changed"] is True
    assert of(cli, odd, state="open") == one
    done = cli.json("audit", "ls", "--tenant", idle)
    mine = [(row["action"], row["operator"], row["reason"]) for row in done if row["action"].startswith("anomaly")]
    assert mine == [("anomaly unmute", "tester", "not so"), ("anomaly mute", "tester", "known")]


def test_orders_are_given_listed_and_taken_back(cli: Cli, idle: str) -> None:
    order = ("anomaly", "set", "--tenant", idle, "--agent", "part")
    assert "would be park" in cli.ok(*order, "--action", "park", "--reason", "they loop", "--dry-run")
    assert idle not in cli.ok("anomaly", "orders")
    assert f"{idle} part every measure: park" in cli.ok(*order, "--action", "park", "--reason", "they loop")
    [row] = [one for one in cli.json("anomaly", "orders") if one["tenant"] == idle]
    assert (row["agent"], row["action"], row["operator"], row["reason"]) == ("part", "park", "tester", "they loop")
    assert cli.json(*order, "--action", "default", "--reason", "corrected")["changed"] is True
    assert "nothing changed" in cli(*order, "--action", "default", "--reason", "corrected").stderr


def test_bad_questions_are_refused(cli: Cli, odd: str, other_tenant: str) -> None:
    """
    I8 too: narrowed to another tenant, there is no such anomaly, and it is not changed.
    """
    one = of(cli, odd)
    cli.refused(4, "anomaly", "show", "0" * 32)
    cli.refused(4, "anomaly", "show", one, "--tenant", other_tenant)
    cli.refused(4, "anomaly", "mute", one, "--reason", "curious", "--tenant", other_tenant)
    cli.refused(2, "anomaly", "show", "xyz")
    cli.refused(2, "anomaly", "mute", one)
    cli.refused(2, "anomaly", "mute", one, "--reason", "  ")
    cli.refused(2, "anomaly", "ls", "--state", "odd")
    cli.refused(2, "anomaly", "ls", "--limit", "0")
    cli.refused(2, "anomaly", "set", "--action", "stop", "--reason", "x")
    cli.refused(2, "anomaly", "set", "--action", "park", "--for", "soon", "--reason", "x")
    assert of(cli, odd, state="open") == one
