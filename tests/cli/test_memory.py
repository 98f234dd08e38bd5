"""`agentq memory`."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from tests.cli.conftest import Cli

WHY = ("--reason", "a test")


def test_put_look_and_forget(cli: Cli, tenant: str) -> None:
    """
    What is put is listed, found and shown with its versions; forgotten, its content is gone. Each deed is on record.
    """
    put = ("memory", "put", "customers/c-17", "tea")
    assert "is version 1" in cli.ok(*put, '{"fact": "drinks oolong"}', "--tenant", tenant, *WHY)
    assert cli.json(*put, '"drinks rooibos"', "--tenant", tenant, "--ttl", "90d", *WHY)["version"] == 2
    assert "is version 3" in cli.ok(*put, "-", "--text", "--tenant", tenant, *WHY, input="drinks water")
    [listed] = cli.json("memory", "ls", "--tenant", tenant)
    assert (listed["value"], listed["version"], listed["written_by"]) == ("drinks water", 3, "tester")
    assert "drinks water" in cli.ok("memory", "ls", "customers", "--tenant", tenant)
    assert cli.json("memory", "ls", "customers/c-1", "--tenant", tenant) == []
    assert cli.ok("memory", "ls", "--namespaces", "--tenant", tenant).split()[-2:] == ["customers/c-17", "1"]
    [found] = cli.json("memory", "search", "who drinks water?", "--tenant", tenant)
    assert (found["key"], found["found_by"]) == ("tea", "words")
    assert "water" in cli.ok("memory", "search", "water", "customers", "--words", "--tenant", tenant)
    shown = cli.json("memory", "show", "customers/c-17", "tea", "--tenant", tenant)
    assert [row["version"] for row in shown["versions"]] == [3, 2, 1]
    assert "expires_at" in shown["versions"][1]
    table = cli.ok("memory", "show", "customers/c-17", "tea", "--tenant", tenant)
    assert "drinks oolong" in table
    delete = ("memory", "delete", "customers/c-17", "tea", "--tenant", tenant, *WHY)
    assert "would be forgotten" in cli.ok(*delete, "--dry-run")
    assert "is forgotten" in cli.ok(*delete)
    after = cli("memory", "show", "customers/c-17", "tea", "--tenant", tenant)
    assert "is forgotten" in after.stderr
    assert "oolong" not in after.stdout
    deeds = cli.json("audit", "ls", "--tenant", tenant)
    assert [deed["action"] for deed in deeds] == ["memory delete", *["memory put"] * 3]
    assert deeds[0]["target"] == "customers/c-17/tea"
    assert "water" not in json.dumps(deeds)


def test_a_dry_run_changes_nothing(cli: Cli, tenant: str) -> None:
    """
    It says what would be, or why not.
    """
    put = ("memory", "put", "shop", "tea", "1", "--tenant", tenant, "--dry-run", *WHY)
    assert "would become version 1" in cli.ok(*put)
    assert "expected to be version 4" in cli.refused(2, *put, "--if-version", "4")
    assert cli.json("memory", "ls", "--tenant", tenant) == []
    assert cli.json("audit", "ls", "--tenant", tenant) == []


def test_only_over_the_version_that_was_seen(cli: Cli, tenant: str) -> None:
    cli.ok("memory", "put", "shop", "tea", "1", "--tenant", tenant, *WHY)
    put = ("memory", "put", "shop", "tea", "2", "--tenant", tenant, *WHY)
    assert "it is version 1 now" in cli.refused(2, *put, "--if-version", "0")
    assert "is version 2" in cli.ok(*put, "--if-version", "1")
    refused = cli.refused(2, "memory", "delete", "shop", "tea", "--tenant", tenant, "--if-version", "1", *WHY)
    assert "read it and try again" in refused


@pytest.mark.parametrize(
    ("code", "arguments", "says"),
    [
        (2, ("ls",), "--tenant"),
        (4, ("ls", "--tenant", "nobody-of-this-name"), "no tenant"),
        (4, ("put", "a", "b", "1", "--tenant", "nobody-of-this-name", *WHY), "no tenant"),
        (4, ("show", "shop", "nothing", "--tenant", "TENANT"), "no memory shop/nothing"),
        (4, ("delete", "shop", "nothing", "--tenant", "TENANT", *WHY), "no memory"),
        (2, ("put", "shop", "tea", "not json", "--tenant", "TENANT", *WHY), "--text"),
        (2, ("put", "shop", "tea", "null", "--tenant", "TENANT", *WHY), "has no value"),
        (2, ("put", "shop//x", "tea", "1", "--tenant", "TENANT", *WHY), "no namespace"),
        (2, ("put", "shop", " ", "1", "--tenant", "TENANT", *WHY), "no key"),
        (2, ("put", "shop", "tea", "1", "--tenant", "TENANT"), "--reason"),
        (2, ("put", "shop", "tea", "1", "--tenant", "TENANT", "--reason", " "), "reason"),
        (2, ("put", "shop", "tea", "1", "--tenant", "TENANT", "--ttl", "soon", *WHY), "soon"),
        (2, ("put", "shop", "tea", "-", "--text", "--tenant", "TENANT", *WHY), "the limit is 65,536"),
        (2, ("search", "x", "--limit", "0", "--tenant", "TENANT"), "--limit"),
        (2, ("delete", "shop", "tea", "--if-version", "-1", "--tenant", "TENANT", *WHY), "--if-version"),
    ],
)
def test_bad_input_changes_nothing(cli: Cli, tenant: str, code: int, arguments: tuple[str, ...], says: str) -> None:
    """
    One line that says what was wrong, and the exit code of its kind.
    """
    words = [tenant if word == "TENANT" else word for word in arguments]
    assert says in cli.refused(code, "memory", *words, input="x" * 70_000)
    assert cli.json("memory", "ls", "--tenant", tenant) == []


def test_how_long_a_tenant_keeps_them(cli: Cli, tenant: str) -> None:
    """
    Beside its sessions: longer, for ever, or as they.
    """
    for days in ("400", "0", "-1"):
        cli.ok("tenant", "set", tenant, "--memory-days", days, *WHY)
        [row] = cli.json("tenant", "ls", "--tenant", tenant)
        assert row["memory_days"] == {"-1": None}.get(days, int(days))
    assert "--memory-days" in cli.refused(2, "tenant", "set", tenant, "--memory-days", "-2", *WHY)


def test_an_embedder_that_came_later(cli: Cli, stack: object, tenant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    What was written before it gets its vectors when all is indexed anew, once; what is not to be found stays so.
    """
    for key, text in (("a", "prefers oolong"), ("b", "owns a vehicle")):
        cli.ok("memory", "put", "c", key, text, "--text", "--tenant", tenant, *WHY)
    cli.ok("memory", "put", "c", "a", "prefers oolong tea", "--text", "--tenant", tenant, *WHY)
    reindex = ("memory", "reindex", "--tenant", tenant, *WHY)
    assert cli.json(*reindex, "--dry-run") == {"tenant": tenant, "dry_run": True, "memories": 2, "vectors": 0}
    monkeypatch.setenv("AGENTQ_MEMORY_EMBEDDER", "tests.support.embedders:free")
    assert cli.json("memory", "search", "drive", "c", "--tenant", tenant) == []
    assert "2 memories would be indexed, 2 vectors would be made" in cli.ok(*reindex, "--dry-run")
    assert cli.json("memory", "search", "drive", "c", "--tenant", tenant) == []
    assert "2 memories are indexed, 2 vectors are made" in cli.ok(*reindex)
    assert cli.json("memory", "search", "drive", "c", "--tenant", tenant)[0]["key"] == "b"
    assert cli.json(*reindex)["vectors"] == 0
    assert cli.json("memory", "show", "c", "a", "--tenant", tenant)["version"] == 2
    monkeypatch.setenv("AGENTQ_MEMORY_LANGUAGE", "english")
    assert cli.json("memory", "search", "vehicles", "--words", "--tenant", tenant) == []
    cli.ok(*reindex)
    assert [row["key"] for row in cli.json("memory", "search", "vehicles", "--words", "--tenant", tenant)] == ["b"]
    assert cli.json("audit", "ls", "--tenant", tenant)[0]["detail"] == {"memories": 2, "vectors": 0}


@pytest.mark.usefixtures("no_keys_left")
def test_encryption_that_came_later(
    cli: Cli, tenant: str, monkeypatch: pytest.MonkeyPatch, admin: psycopg.Connection[Any]
) -> None:
    """
    Indexed anew, what was in plain is sealed, and its words are no longer in the index.
    """
    from agentq.store.providers import new_key

    cli.ok("memory", "put", "c", "a", "prefers oolong", "--text", "--tenant", tenant, *WHY)
    monkeypatch.setenv("AGENTQ_ENCRYPTION_KEYS", new_key())
    assert [row["key"] for row in cli.json("memory", "search", "oolong", "--tenant", tenant)] == ["a"]
    cli.ok("memory", "reindex", "--tenant", tenant, *WHY)
    assert [row["key"] for row in cli.json("memory", "search", "oolong", "--tenant", tenant)] == ["a"]
    query = "select value, words::text from agentq.memory join agentq.memory_words using (memory_id) where tenant = %s"
    [(value, words)] = admin.execute(query, (tenant,)).fetchall()
    assert value[0] == 1
    assert "oolong" not in words


@pytest.mark.parametrize(
    ("name", "value", "check", "says"),
    [
        ("LANGUAGE", "klingon", "memory words", "klingon"),
        ("EMBEDDER", "tests.support.embedders:free", "memory embedder", "pgvector is there"),
        ("EMBEDDER", "tests.support.nothing:free", "memory embedder", "must be module:name"),
    ],
)
def test_the_doctor_looks_at_how_memories_are_found(
    cli: Cli, stack: object, monkeypatch: pytest.MonkeyPatch, name: str, value: str, check: str, says: str
) -> None:
    monkeypatch.setenv(f"AGENTQ_MEMORY_{name}", value)
    findings = json.loads(cli("doctor", "--json").stdout)["findings"]
    [finding] = [finding for finding in findings if finding["check"] == check]
    assert says in finding["found"]
    assert finding["ok"] is (value == "tests.support.embedders:free")
