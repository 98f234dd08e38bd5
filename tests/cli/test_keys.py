"""Keys and tokens by the command line."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import psycopg
import pytest

from agentq.client import Client
from agentq.settings import Settings
from agentq.store.pool import Store
from agentq.store.providers import provider_of
from tests.cli.conftest import Cli

pytestmark = pytest.mark.usefixtures("no_keys_left")

WHY = ("--reason", "a test")


@pytest.fixture
def keyed(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line of a fleet whose payloads are encrypted with a key file."""
    assert "a new key is in" in cli.ok("keys", "generate", str(tmp_path / "keys"))
    monkeypatch.setenv("AGENTQ_ENCRYPTION_KEY_FILE", str(tmp_path / "keys"))
    return cli


def sealed(settings: Settings, tmp_path: Path, tenant: str) -> bytes:
    """Something sealed for the tenant, by a process of its own."""
    store = Store(settings.database_url, size=2, keys=provider_of(with_file(settings, tmp_path)))
    try:
        return store.vault.seal(tenant, ("place",), b'"hello"')
    finally:
        store.close()


def opened(settings: Settings, tmp_path: Path, tenant: str, data: bytes) -> bytes:
    store = Store(settings.database_url, size=2, keys=provider_of(with_file(settings, tmp_path)))
    try:
        return store.vault.open(tenant, ("place",), data)
    finally:
        store.close()


def with_file(settings: Settings, tmp_path: Path) -> Settings:
    return settings.model_copy(update={"encryption_key_file": str(tmp_path / "keys"), "encryption_keys": ""})


def test_a_data_key_is_rotated(keyed: Cli, settings: Settings, tmp_path: Path, tenant: str) -> None:
    """
    What is written from now on is under the new key, and the old one still opens what it sealed.
    """
    before = sealed(settings, tmp_path, tenant)
    keyed.ok("keys", "rotate", "--tenant", tenant, *WHY, "--dry-run")
    assert [row["key_no"] for row in keyed.json("keys", "ls", "--tenant", tenant)] == [1]
    assert "under key 2" in keyed.ok("keys", "rotate", "--tenant", tenant, *WHY)
    states = {row["key_no"]: row["state"] for row in keyed.json("keys", "ls", "--tenant", tenant)}
    assert states == {1: "retired", 2: "active"}
    after = sealed(settings, tmp_path, tenant)
    assert (before[4], after[4]) == (1, 2)
    assert [opened(settings, tmp_path, tenant, data) for data in (before, after)] == [b'"hello"'] * 2
    assert keyed.json("audit", "ls", "--action", "keys", "--tenant", tenant)[0]["detail"] == {"key_no": 2, "before": 1}
    assert tenant in keyed.ok("keys", "ls")


def test_what_a_tenant_has_is_encrypted_anew(cli: Cli, keyed: Cli, idle: str) -> None:
    """
    A dry run counts and changes nothing; the second time nothing is left to do.
    """
    keyed.ok("start", "count", "--tenant", idle, "--input", "{}")
    keyed.ok("keys", "rotate", "--tenant", idle, *WHY)
    would = keyed.json("keys", "reseal", "--tenant", idle, *WHY, "--dry-run")
    assert would["payloads"] == {"inputs": 1}
    assert keyed.json("keys", "reseal", "--tenant", idle, *WHY) == would | {"dry_run": False}
    assert "0 payloads" in keyed.ok("keys", "reseal", "--tenant", idle, *WHY)
    assert keyed.json("audit", "ls", "--action", "keys reseal", "--tenant", idle)[-1]["detail"]["payloads"] == {
        "inputs": 1
    }


def test_the_providers_key_is_changed(keyed: Cli, settings: Settings, tmp_path: Path, tenant: str) -> None:
    """
    The new one goes on top, data keys are wrapped by it, and the old one may go.
    """
    path = tmp_path / "keys"
    before = sealed(settings, tmp_path, tenant)
    keyed.ok("keys", "generate", str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_text().splitlines()) == 2
    assert keyed.json("keys", "rewrap", "--tenant", tenant, *WHY, "--dry-run")["keys"] == 1
    assert keyed.json("keys", "rewrap", "--tenant", tenant, *WHY)["keys"] == 1
    assert keyed.json("keys", "rewrap", "--tenant", tenant, *WHY)["keys"] == 0
    path.write_text(path.read_text().splitlines()[0])
    assert opened(settings, tmp_path, tenant, before) == b'"hello"'


def test_an_erased_tenant_cannot_be_decrypted(
    keyed: Cli, settings: Settings, tmp_path: Path, tenant: str, admin: psycopg.Connection[Any]
) -> None:
    """
    Its keys are destroyed with its rows; a copy of a row that somebody kept opens no more, and its tokens are void.
    """
    from agentq.errors import PayloadUnreadable

    kept = sealed(settings, tmp_path, tenant)
    made = keyed.json("token", "create", "theirs", "--tenant", tenant, *WHY)
    keyed.ok("tenant", "set", tenant, "--state", "paused", *WHY)
    said = keyed.ok("tenant", "erase", tenant, "--yes", *WHY)
    assert "1 data keys destroyed" in said
    assert "left: nothing" in said
    assert "keys" in said.partition("left: ")[2]
    with pytest.raises(PayloadUnreadable, match="its key was destroyed"):
        opened(settings, tmp_path, tenant, kept)
    [row] = keyed.json("keys", "ls", "--tenant", tenant)
    assert row["state"] == "destroyed"
    assert {row["state"] for row in keyed.json("token", "ls") if row["token_id"] == made["id"]} == {"revoked"}
    rows = admin.execute("select wrapped from agentq.tenant_key where tenant = %s", (tenant,)).fetchall()
    assert rows == [(None,)]


def test_a_token_is_shown_once(cli: Cli, client: Client, tenant: str, other_tenant: str, admin: Any) -> None:
    made = cli("token", "create", "their shop", "--tenant", tenant, "--agent", "count", "--expires", "90d", *WHY)
    token = made.stdout.strip()
    assert token.startswith("agq_")
    assert token not in made.stderr
    [row] = [row for row in cli.json("token", "ls", "--tenant", tenant) if row["name"] == "their shop"]
    assert (row["state"], row["tenants"], row["agents"], row["used_at"]) == ("live", [tenant], ["count"], None)
    for shown in (cli.ok("token", "ls"), cli.ok("audit", "ls", "--action", "token", "--json")):
        assert token not in shown
        assert token.rpartition("_")[2] not in shown
    [(digest,)] = admin.execute("select digest from agentq.api_token where token_id = %s", (row["token_id"],))
    assert token.encode() not in bytes(digest)
    assert "their shop" in cli.ok("token", "ls")
    cli.ok("token", "revoke", row["token_id"][:20], *WHY, "--dry-run")
    assert cli.json("token", "revoke", row["token_id"], *WHY)["revoked"]
    assert not cli.json("token", "revoke", row["token_id"], *WHY)["revoked"]
    assert cli.json("audit", "ls", "--action", "token revoke")[0]["target"] == row["token_id"]
    assert cli.json("token", "create", "x", "--tenant", tenant, *WHY, "--dry-run")["dry_run"]


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (4, ("token", "create", "x", "--tenant", "nobody-here", *WHY)),
        (2, ("token", "create", "x", *WHY)),
        (2, ("token", "create", " ", "--tenant", "TENANT", *WHY)),
        (2, ("token", "create", "x", "--tenant", "TENANT")),
        (2, ("token", "create", "x", "--tenant", "TENANT", "--reason", " ")),
        (2, ("token", "create", "x", "--tenant", "TENANT", "--expires", "soon", *WHY)),
        (2, ("token", "create", "x", "--tenant", "TENANT", "--agent", "Not An Agent", *WHY)),
        (2, ("token", "revoke", "nothing", *WHY)),
        (2, ("token", "revoke", "0123", *WHY)),
        (4, ("keys", "rotate", "--tenant", "nobody-here", *WHY)),
        (2, ("keys", "rotate", "--tenant", "TENANT", "--reason", " ")),
        (2, ("keys", "rotate", *WHY)),
        (4, ("keys", "reseal", "--tenant", "nobody-here", *WHY)),
        (2, ("keys", "reseal", "--tenant", "TENANT")),
        (2, ("keys", "rewrap", "--reason", " ")),
        (2, ("keys", "generate", "/no/such/folder/keys")),
    ],
)
def test_bad_input_is_refused(keyed: Cli, tenant: str, code: int, arguments: tuple[str, ...]) -> None:
    before = keyed.json("token", "ls")
    keyed.refused(code, *(argument.replace("TENANT", tenant) for argument in arguments))
    assert keyed.json("token", "ls") == before


def test_without_a_provider_nothing_is_rotated(cli: Cli, settings: Settings, tenant: str) -> None:
    if settings.encryption_keys:
        pytest.skip("this run has one")
    assert "no key provider" in cli.refused(2, "keys", "rotate", "--tenant", tenant, *WHY)
    assert "no key provider" in cli.refused(2, "keys", "rewrap", *WHY)
    assert "no key provider" in cli.refused(2, "keys", "reseal", "--tenant", tenant, *WHY)
    assert len(cli.ok("keys", "generate").strip()) == 44
