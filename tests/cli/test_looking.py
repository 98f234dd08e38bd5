"""Commands that look: `queue`, `fleet`, `submission`, `db check`, `doctor`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import psycopg
import pytest

from agentq.cli.db import fleet_role
from agentq.embedded import Stack
from agentq.settings import Settings
from agentq.store.operators import Operators
from agentq.store.pool import Store
from agentq.store.recovery import By, Recovery
from agentq.store.workers import Registration
from agentq.verdicts import NotGranted
from tests.cli.conftest import Cli
from tests.support.fleet import Fleet
from tests.support.hands import Hands


def test_queues_beside_the_broker(cli: Cli, idle: str) -> None:
    """
    What the ledger counts, and what the broker holds.
    """
    for _ in range(3):
        cli.ok("start", "wait", "--tenant", idle)
    facts = cli.json("queue", "ls", "--tenant", idle)
    [row] = facts["tenants"]
    assert row["ready"] + row["queued"] == 3
    assert row["in_broker"] == row["queued"]
    assert facts["broker_error"] is None
    assert "agentq.submit.dead" in cli.json("queue", "ls")["queues"]
    assert idle in cli.ok("queue", "ls", "--match", idle)


def test_queues_while_the_broker_is_away(cli: Cli, tenant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The ledger decides, so its counts are shown without the broker's.
    """
    monkeypatch.setenv("AGENTQ_BROKER_URL", "redis://:s3cr3t@127.0.0.1:1/0")
    facts = cli.json("queue", "ls", "--tenant", tenant)
    assert facts["tenants"][0]["in_broker"] is None
    assert facts["broker_error"]
    result = cli("queue", "ls", "--tenant", tenant)
    assert result.exit_code == 0
    assert "broker does not answer" in result.stderr
    assert "s3cr3t" not in result.output


@pytest.mark.parametrize(
    "command",
    [
        "session ls",
        "dlq ls",
        "queue ls",
        "approval ls",
        "audit ls",
        "effect ls",
        "cost ls",
    ],
)
def test_a_mistyped_tenant_is_told(cli: Cli, command: str) -> None:
    """
    It would look like a tenant with nothing to show.
    """
    assert "no tenant 'nobody-here'" in cli.refused(4, *command.split(), "--tenant", "nobody-here")


def test_queue_names_are_checked(cli: Cli) -> None:
    assert "a-z" in cli.refused(2, "queue", "ls", "--tenant", "NOT")


def test_the_fleet(cli: Cli, shared_fleet: Fleet) -> None:
    """
    Each living process with what it serves.
    """
    pids = {row["pid"] for row in cli.json("fleet", "ls")}
    assert {worker.pid for worker in shared_fleet if worker.alive} <= pids
    assert "count@1" in cli.ok("fleet", "ls")
    assert cli("fleet", "ls", "--here").exit_code == 0


def test_a_host_without_worker_is_unhealthy(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The container's health check: its own worker, not anybody's.
    """
    monkeypatch.setattr("socket.gethostname", lambda: "another-host")
    assert cli("fleet", "ls", "--here").exit_code == 1


def test_refused_submissions(cli: Cli, store: Store, tenant: str) -> None:
    """
    The reason for people; the words of it only for programs.
    """
    number = Operators(store).refuse_submission(tenant=tenant, reason="no agent 'x'", body=b"{secret}")
    [row] = [row for row in cli.json("submission", "ls") if row["submission"] == number]
    assert row["body"] == "{secret}"
    text = cli.ok("submission", "ls")
    assert "no agent 'x'" in text
    assert "secret" not in text
    assert "0" in cli.refused(2, "submission", "ls", "--limit", "0")


def test_the_schema_is_checked(cli: Cli) -> None:
    """
    Ready, and row security binds the fleet.
    """
    facts = cli.json("db", "check")
    assert (facts["ok"], facts["pending"], facts["problems"]) == (True, [], [])
    assert "row security" in cli.ok("db", "check")


def test_a_role_that_escapes_row_security_is_told(cli: Cli, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A fleet that connects as superuser keeps nobody apart: 1, and what to do.
    """
    superuser = stack.postgres._url("postgres")
    monkeypatch.setenv("AGENTQ_DATABASE_URL", superuser)
    result = cli("db", "check")
    assert result.exit_code == 1
    assert "AGENTQ_ADMIN_DATABASE_URL" in result.stderr
    assert json.loads(cli("db", "check", "--json").stdout)["bypasses_row_security"] is True
    assert cli("doctor").exit_code == 1


def test_upgrading_what_is_up_to_date(cli: Cli) -> None:
    assert cli.json("db", "upgrade") == {"ran": [], "pending": [], "dry_run": False}
    assert cli.json("db", "upgrade", "--dry-run", "--phase", "before")["dry_run"] is True
    assert "during" in cli.refused(2, "db", "upgrade", "--phase", "during")


def test_a_new_database_is_upgraded_and_granted(cli: Cli, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    From nothing: check says what to run, the dry run runs nothing, the upgrade leaves its row.
    """
    superuser = stack.postgres._url("postgres", "postgres")
    with psycopg.connect(superuser, autocommit=True) as connection:
        connection.execute("create database fresh owner agentq_owner")
        connection.execute("grant connect on database fresh to agentq_fleet")
    try:
        for name in ("AGENTQ_DATABASE_URL", "AGENTQ_ADMIN_DATABASE_URL"):
            monkeypatch.setenv(name, os.environ[name].rsplit("/", 1)[0] + "/fresh")
        assert "agentq db upgrade" in cli.refused(3, "session", "ls")
        assert cli("db", "check").exit_code == 1
        assert "agentq db upgrade" in cli("doctor").stdout
        assert cli.json("db", "upgrade", "--dry-run")["pending"]
        assert cli.json("db", "upgrade", "--reason", "first")["ran"]
        assert cli("db", "check").exit_code == 0
        assert cli.json("session", "ls") == []
        with psycopg.connect(os.environ["AGENTQ_ADMIN_DATABASE_URL"]) as connection:
            connection.execute("set agentq.tenant = '*'")
            [(operator, reason)] = connection.execute("select operator, reason from agentq.operator_action").fetchall()
        assert (operator, reason) == ("tester", "first")
    finally:
        with psycopg.connect(superuser, autocommit=True) as connection:
            connection.execute("drop database fresh with (force)")


@pytest.mark.parametrize(
    ("fleet", "owner", "role"),
    [
        ("postgresql://f:p@h/d", "postgresql://o:p@h/d", "f"),
        ("postgresql://o:p@h/d", "postgresql://o:p@h/d", None),
        ("postgresql://o:p@h/d", "", None),
    ],
)
def test_who_is_granted(fleet: str, owner: str, role: str | None) -> None:
    """
    The fleet's role, unless it is the owner.
    """
    assert fleet_role(Settings(database_url=fleet, admin_database_url=owner)) == role


def test_the_doctor_of_a_healthy_fleet(cli: Cli, shared_fleet: Fleet, tenant: str) -> None:
    facts = cli.json("doctor")
    assert facts["ok"] is True
    checks = {finding["check"]: finding["ok"] for finding in facts["findings"]}
    assert checks["agents"]
    assert checks["workers, default"]
    assert checks["broker memory"]
    assert "✓ postgres" in cli.ok("doctor")


def told(cli: Cli, check: str) -> dict[str, Any]:
    """The doctor's finding of that name; a warning."""
    result = cli("doctor", "--json")
    [finding] = [finding for finding in json.loads(result.stdout)["findings"] if finding["check"] == check]
    assert finding["ok"] or finding["warning"]
    return dict(finding)


def test_the_doctor_finds_steps_that_nobody_serves(cli: Cli, store: Store, hands: Hands) -> None:
    """
    Due steps by agent and version, waiting with a slot or without; what waits on purpose is left out.
    """
    check = "steps of lonely@7"
    first = hands.start(agent="lonely", version=7)
    hands.start(agent="lonely", version=7)
    later = hands.start(agent="lonely", version=7)
    with store.transaction(hands.tenant) as connection:
        connection.execute("update agentq.ledger_entry set due_at = 'infinity' where step_id = %s", (later.step_id,))
    held = hands.start(agent="lonely", version=7)
    Recovery(store).pause(hands.tenant, held.session_id, By("tester", "a test"))
    finding = told(cli, check)
    assert finding["found"].startswith("2 due, ")
    assert "`agentq worker`" in finding["todo"]
    hands.admit()
    assert isinstance(hands.try_claim(first), NotGranted)
    assert hands.entry(first)["unserved"] == "lonely@7"
    assert told(cli, check)["found"].startswith("2 due, ")

    worker = Registration(store, group="default", role="steps", host="here", pid=1, release="0", serves=["lonely@7"])
    worker.beat(60.0)
    try:
        assert check not in cli("doctor").stdout
    finally:
        worker.stop()
    cli.ok("tenant", "set", hands.tenant, "--state", "paused", "--reason", "so that nothing runs")
    assert check not in cli("doctor").stdout


def test_the_doctor_remembers_the_watchdog_for_a_day(cli: Cli, store: Store, admin: psycopg.Connection[Any]) -> None:
    """
    Also of a process that has ended since, as one does whose restart did not help.
    """
    admin.execute("update agentq.worker set restarted_at = null")
    assert told(cli, "watchdog")["ok"]
    worker = Registration(store, group="default", role="steps", host="deaf", pid=77, release="0", serves=[])
    worker.beat(60.0)
    worker.beat(60.0, restarts=1, restarted_s=86_000.0)
    worker.beat(60.0, restarts=1)
    worker.stop()
    finding = told(cli, "watchdog")
    assert not finding["ok"]
    assert "process 77 on deaf" in finding["found"]
    admin.execute("update agentq.worker set restarted_at = restarted_at - interval '10 minutes' where host = 'deaf'")
    assert told(cli, "watchdog")["ok"]


def test_the_doctor_tells_what_is_held_back(cli: Cli, tenant: str) -> None:
    """
    A breaker that is open, whose it is, and the way back of one that an operator opened.
    """
    cli.ok("dependency", "open", "post-office", "--new", "--tenant", tenant, "--reason", "a test")
    try:
        finding = told(cli, f"dependency post-office of {tenant}")
        assert "operator" in finding["found"]
        assert finding["todo"].startswith(f"agentq dependency auto post-office --tenant {tenant} ")
        cli.ok("dependency", "auto", "post-office", "--tenant", tenant, "--reason", "a test")
        assert told(cli, f"dependency post-office of {tenant}")["todo"] == "agentq dependency show post-office"
    finally:
        cli.ok("dependency", "shut", "post-office", "--tenant", tenant, "--reason", "a test")
    assert "post-office" not in cli("doctor").stdout


def test_the_doctor_without_servers(bare: Cli) -> None:
    """
    3, each missing thing with what to do.
    """
    result = bare("doctor")
    assert result.exit_code == 3
    assert "→ set AGENTQ_DATABASE_URL" in result.stdout
    assert json.loads(bare("doctor", "--json").stdout)["ok"] is False


def test_the_doctor_with_servers_that_are_away(bare: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTQ_DATABASE_URL", "postgresql://a:s3cr3t@127.0.0.1:1/a")
    monkeypatch.setenv("AGENTQ_BROKER_URL", "redis://:s3cr3t@127.0.0.1:1/0")
    result = bare("doctor")
    assert result.exit_code == 3
    assert "s3cr3t" not in result.output
    assert result.stdout.count("✗") >= 2


def test_the_doctor_of_wrong_settings(bare: Cli) -> None:
    """
    A file that contradicts itself, and agents that are not there.
    """
    Path("config").mkdir()
    Path("config/agentq.toml").write_text("lease_s = 1\n", "utf-8")
    assert "heartbeat_s" in bare("doctor").stdout
    Path("config/agentq.toml").write_text('agents = ["nowhere_at_all"]\n', "utf-8")
    result = bare("doctor")
    assert "nowhere_at_all" in result.stdout


@pytest.mark.parametrize(
    ("policy", "aof", "wrong"),
    [("noeviction", 1, []), ("allkeys-lru", 1, ["broker memory"]), ("noeviction", 0, ["broker log"])],
)
def test_a_broker_that_forgets(policy: str, aof: int, wrong: list[str]) -> None:
    """
    Eviction is an error, a missing log a warning.
    """
    from agentq.cli.doctor import _redis_policy

    findings = list(_redis_policy({"maxmemory_policy": policy, "aof_enabled": aof, "maxmemory": 0}))
    assert [finding.check for finding in findings if not finding.ok] == wrong
    assert all(finding.warning for finding in findings if finding.check == "broker log")
