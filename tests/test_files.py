"""Files that operators start from: settings, Procfile, image and compose file agree with the code."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest

from agentq.cli import main
from agentq.cli.init import template
from agentq.embedded import Stack
from agentq.settings import SECRET_KEYS, Settings, load

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = (ROOT / "config/agentq.toml").read_text("utf-8")


def program(command: list[str]) -> click.Command:
    """The command that these words start; fails when there is none or an option is unknown."""
    group: click.Command = main
    words = list(command)
    while isinstance(group, click.Group):
        group = group.commands[words.pop(0)]
    group.make_context("agentq", words)
    return group


def test_every_setting_is_explained_at_its_default() -> None:
    """
    None is missing, none is left over, and what is commented out says the truth.
    """
    uncommented = re.sub(r"^# ([a-z_]+ = )", r"\1", SETTINGS, flags=re.MULTILINE)
    values = tomllib.loads(uncommented)
    assert set(values) == set(Settings.model_fields)
    assert Settings(**values) == Settings(agents=("tasks",))


def test_only_the_agents_are_set() -> None:
    """
    The file as it stands changes nothing else, and holds no secret.
    """
    assert tomllib.loads(SETTINGS) == {"agents": ["tasks"]}
    assert set(Settings.model_fields) >= SECRET_KEYS


def test_each_setting_has_words_above_it() -> None:
    lines = SETTINGS.splitlines()
    for number, line in enumerate(lines):
        if re.match(r"(# )?[a-z_]+ = ", line):
            assert re.match(r"# [A-Z0-9]|# [a-z]+:[a-z]+|# run", lines[number - 1]), line


def test_a_new_project_gets_the_same_settings() -> None:
    assert template()["config/agentq.toml"] == SETTINGS


def test_the_file_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    From the folder where a program starts; a variable goes before it.
    """
    monkeypatch.chdir(ROOT)
    assert load({}).agents == ("tasks",)
    assert load({"AGENTQ_AGENTS": "mine"}).agents == ("mine",)


@pytest.mark.parametrize("text", [(ROOT / "Procfile").read_text("utf-8"), template()["Procfile"]], ids=["ours", "init"])
def test_the_procfile_starts_programs_that_exist(text: str) -> None:
    lines = [line.partition(":") for line in text.splitlines()]
    assert [name for name, _, _ in lines] == ["worker", "quarantine", "flower"]
    for _, _, command in lines:
        words = shlex.split(command)
        assert words[0] == "agentq"
        program(words[1:])


def test_the_image_is_no_root_and_holds_no_secret() -> None:
    text = (ROOT / "Dockerfile").read_text("utf-8")
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert text.index("\nUSER") > text.rindex("\nCOPY")
    assert not re.search(r"password|secret_key|token", text, re.IGNORECASE)
    check = re.search(r"CMD \[\"agentq\", (.*)\]\n(?=ENTRYPOINT)", text)
    assert check
    program(re.findall(r'"([^"]+)"', check.group(1)))


def test_the_image_gets_only_what_it_needs() -> None:
    """
    Everything is left out but what is named, and everything named is there.
    """
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert "*" in lines
    kept = [line[1:] for line in lines if line.startswith("!")]
    assert all((ROOT / name).exists() for name in kept)
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert {name for line in copied for name in line.split()} <= set(kept)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="PyYAML reads the compose file")
    return dict(yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8")))


def test_the_compose_file_starts_programs_that_exist(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert {"postgres", "valkey", "migrate", "worker", "quarantine", "flower"} <= set(services)
    for service in services.values():
        if service.get("build"):
            program([str(word) for word in service["command"]])


def test_no_password_has_a_default(compose: dict[str, Any]) -> None:
    """
    Compose stops with a message where one is not set; none is written in the file.
    """
    text = (ROOT / "docker-compose.yml").read_text("utf-8")
    passwords = set(re.findall(r"\$\{([A-Z_]*PASSWORD)", text))
    assert passwords == set(re.findall(r"\$\{([A-Z_]*PASSWORD):\?[^}]+\}", text))
    example = (ROOT / "config/compose.env.example").read_text("utf-8")
    assert set(re.findall(r"^([A-Z_]+)=$", example, re.MULTILINE)) == passwords
    assert not re.search(r"://[^:\s]*:(?!\$\{)[^@\s/]+@", text)


def test_ports_are_loopback_and_stops_outlast_the_drain(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name
        if service.get("build"):
            drain_s = float(service["environment"]["AGENTQ_DRAIN_S"])
            assert int(service["stop_grace_period"].removesuffix("s")) > drain_s + 5
            assert service["cap_drop"] == ["ALL"]


def test_variables_are_settings(compose: dict[str, Any]) -> None:
    """
    A mistyped variable would be ignored in silence.
    """
    own = {"AGENTQ_OWNER_PASSWORD", "AGENTQ_FLEET_PASSWORD"}
    for service in compose["services"].values():
        for name in service.get("environment", {}):
            if name.startswith("AGENTQ_") and name not in own:
                assert name.removeprefix("AGENTQ_").lower() in Settings.model_fields


def test_the_owner_is_known_to_the_migration_alone(compose: dict[str, Any]) -> None:
    knowing = [
        name
        for name, service in compose["services"].items()
        if "AGENTQ_ADMIN_DATABASE_URL" in service.get("environment", {})
    ]
    assert knowing == ["migrate"]


def test_volumes_are_named_and_every_server_is_checked(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name in ("postgres", "valkey"):
        assert services[name]["healthcheck"]["test"]
        assert any(volume.split(":")[0] in compose["volumes"] for volume in services[name]["volumes"])
    valkey = services["valkey"]["command"][-1]
    for line in ("requirepass", "appendonly yes", "maxmemory-policy noeviction"):
        assert line in valkey


def test_the_roles_are_made_on_a_real_server(tmp_path: Path) -> None:
    """
    The script makes an owner, a fleet that row security binds, and a database that the schema fits into.
    """
    from agentq.store import migrate

    with Stack(tmp_path / "data", valkey=False) as stack:
        postgres = stack.postgres
        superuser = psycopg.conninfo.conninfo_to_dict(postgres._url("postgres", "postgres"))
        with psycopg.connect(**superuser, autocommit=True) as connection:
            connection.execute("drop database agentq with (force)")
            connection.execute("drop role agentq_owner")
            connection.execute("drop role agentq_fleet")
        binaries = postgres._executable.parent if postgres._executable else Path()
        variables = {
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "PGHOST": str(superuser["host"]),
            "PGPORT": str(superuser["port"]),
            "PGPASSWORD": str(superuser["password"]),
            "AGENTQ_OWNER_PASSWORD": "owner'; --",
            "AGENTQ_FLEET_PASSWORD": "fleet",
        }
        script = ROOT / "config/postgres/10-roles.sh"
        ran = subprocess.run(["sh", script], env=variables, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        where = {"host": superuser["host"], "port": superuser["port"], "dbname": "agentq"}
        with psycopg.connect(**where, user="agentq_owner", password="owner'; --"):
            pass
        url = f"@{superuser['host']}:{superuser['port']}/agentq"
        assert migrate.upgrade(f"postgresql://agentq_owner:owner%27%3B%20--{url}", fleet_role="agentq_fleet")
        status = migrate.check(f"postgresql://agentq_fleet:fleet{url}")
        assert status.ready
        assert not status.bypasses_row_security
        missing = subprocess.run(
            ["sh", script], env=variables | {"AGENTQ_FLEET_PASSWORD": ""}, capture_output=True, text=True, check=False
        )
        assert missing.returncode != 0
