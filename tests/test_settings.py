"""Settings: read once, checked against each other, and never printed with their secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentq.errors import ConfigError
from agentq.settings import ADDRESS_FILE, SECRET_KEYS, Settings, load

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with no settings of anybody's."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"heartbeat_s": 5.1, "lease_s": 15}, "3 * heartbeat_s <= lease_s"),
        ({"lease_s": 100, "visibility_timeout_s": 100, "step_timeout_s": 10}, "lease_s < visibility_timeout_s"),
        ({"step_timeout_s": 21600}, "step_timeout_s < visibility_timeout_s"),
        ({"backoff_base_s": 10, "backoff_max_s": 5}, "backoff_base_s <= backoff_max_s"),
        ({"new_tenant_like": "standard"}, "unknown_tenant = create"),
        ({"broker_url": "redis://h", "broker_ca_file": "ca.pem"}, "rediss:// or amqps://"),
        ({"broker_url": "amqp://h", "broker_cert_file": "c.pem"}, "rediss:// or amqps://"),
        ({"broker_key_file": "key.pem"}, "broker_cert_file beside broker_key_file"),
        ({"broker_url": "amqps://h/v?ssl_ca_certs=ca.pem"}, "broker_ca_file and its like"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, Any], words: str) -> None:
    """
    Each relation on which safety rests is checked at the start, not at the first accident.
    """
    with pytest.raises(ConfigError) as raised:
        load({}, **values)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    "values",
    [
        {"lease_s": 0}, {"lease_s": -1}, {"database_pool": 1}, {"worker_threads": 0}, {"step_retries": -1},
        {"payload_max_bytes": 10}, {"unknown_tenant": "maybe"}, {"log_level": "LOUD"}, {"flower_port": 70000},
        {"heartbeat_s": "often"}, {"heartbeat": 1}, {"lease_s": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_values_out_of_range_are_refused(values: dict[str, Any]) -> None:
    """
    A value that is unknown, malformed or impossible stops the start and names its field.
    """
    with pytest.raises(ConfigError) as raised:
        load({}, **values)
    assert next(iter(values)) in str(raised.value)


@pytest.mark.parametrize("name", sorted(SECRET_KEYS))
def test_a_message_never_prints_a_secret(name: str) -> None:
    """
    An error about settings that hold passwords shows neither them nor their neighbours.
    """
    secrets = dict.fromkeys(SECRET_KEYS, f"postgresql://u:{SECRET}@h/d")
    for wrong in ({"lease_s": "x"}, {"heartbeat_s": 9, "lease_s": 1}, {name: ["a", SECRET]}, {"no_such": SECRET}):
        with pytest.raises(ConfigError) as raised:
            load({}, **{**secrets, **wrong})
        assert SECRET not in str(raised.value)
        assert SECRET not in "".join(map(str, [raised.value.__context__] if raised.value.__cause__ else []))


def test_the_environment_wins_over_the_file(elsewhere: Path) -> None:
    """
    Explicit arguments, then variables, then the file, then the defaults.
    """
    (elsewhere / "config").mkdir()
    (elsewhere / "config/agentq.toml").write_text('lease_s = 30.0\nheartbeat_s = 3.0\nagents = ["a"]\ndrain_s = 1.0\n')
    found = load({"AGENTQ_LEASE_S": "40", "AGENTQ_AGENTS": "b, c"}, drain_s=2.0)
    assert (found.lease_s, found.heartbeat_s, found.agents, found.drain_s) == (40.0, 3.0, ("b", "c"), 2.0)
    assert found.relay_batch == Settings().relay_batch


def test_a_file_that_is_named_must_be_there(elsewhere: Path) -> None:
    """
    A mistyped path is not the same as no file.
    """
    with pytest.raises(ConfigError, match="not a file"):
        load({"AGENTQ_CONFIG": str(elsewhere / "missing.toml")})


def test_a_file_that_is_no_toml_is_refused(elsewhere: Path) -> None:
    """
    With the place of the mistake.
    """
    path = elsewhere / "bad.toml"
    path.write_text("lease_s = = 3")
    with pytest.raises(ConfigError, match="line 1"):
        load({"AGENTQ_CONFIG": str(path)})


def test_a_running_stack_is_found_by_its_address_file(elsewhere: Path) -> None:
    """
    Where `agentq up` runs, no variable is needed.
    """
    folder = elsewhere / ".agentq"
    folder.mkdir()
    (folder / ADDRESS_FILE).write_text(
        json.dumps({"database_url": "postgresql://d", "broker_url": "redis://b", "flower_port": 1234, "up_pid": 1})
    )
    found = load({})
    assert (found.database_url, found.broker_url, found.flower_port) == ("postgresql://d", "redis://b", 1234)
    assert found.require_servers() is found


def test_a_damaged_address_file_is_explained(elsewhere: Path) -> None:
    """
    The message says which file, and what to do about it.
    """
    folder = elsewhere / ".agentq"
    folder.mkdir()
    (folder / ADDRESS_FILE).write_text("{")
    with pytest.raises(ConfigError, match=r"stack\.json cannot be read.*remove it"):
        load({})


def test_missing_servers_are_named() -> None:
    """
    Whoever starts without servers is told both ways to have them.
    """
    with pytest.raises(ConfigError, match="AGENTQ_DATABASE_URL, or start the embedded servers"):
        load({}).require_servers()


def test_settings_cannot_be_changed() -> None:
    """
    One frozen value: nobody alters it for the others.
    """
    with pytest.raises(ValueError, match="frozen"):
        Settings().lease_s = 1.0  # type: ignore[misc]


def test_every_setting_is_explained() -> None:
    """
    The descriptions are the documentation.
    """
    missing = [name for name, field in Settings.model_fields.items() if not field.description]
    assert missing in ([], ["log_level"])
