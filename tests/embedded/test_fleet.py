"""`up`, as a real process with real servers; stand-ins play the workers and Flower."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import psycopg
import pytest
from rich.console import Console

from agentq.embedded import Fleet, Stack, files, fleet, ports, processes
from agentq.errors import ConfigError
from agentq.settings import Settings, load

# Plays worker and Flower: registers as a worker does, or answers on Flower's port; both obey SIGTERM.
STAND_IN = """
    import http.server, json, os, pathlib, signal, sys, time
    name = "-".join(sys.argv[1:]).replace("worker---group-", "")
    folder = pathlib.Path(os.environ["AGENTQ_DATA_DIR"])
    known = {k: v for k, v in os.environ.items() if k.startswith("AGENTQ_")}
    (folder / f"{name}.environment").write_text(json.dumps(known))
    def drain(*_):
        (folder / f"{name}.drained").touch()
        sys.exit(0)
    signal.signal(signal.SIGTERM, drain)
    if name == "flower":
        address = (os.environ["AGENTQ_FLOWER_ADDRESS"], int(os.environ["AGENTQ_FLOWER_PORT"]))
        http.server.HTTPServer(address, http.server.SimpleHTTPRequestHandler).serve_forever()
    (folder / f"{name}.live").write_text(str(os.getpid()))
    time.sleep(600)
"""

UP = """
    import pathlib, sys
    from agentq.embedded import fleet
    from agentq.errors import ConfigError
    from agentq.settings import load
    data_dir, stand_in = sys.argv[1:]
    fleet.PROGRAM = (sys.executable, stand_in, "agentq")
    fleet.Fleet._migrate = lambda self: None
    fleet.Fleet._worker_is_live = (
        lambda self, child: (self.stack.data_dir / f"{child.name}.live").exists()
    )
    try:
        fleet.up(load(data_dir=data_dir, flower_port=0))
    except ConfigError as error:
        sys.exit(f"error: {error}")
"""


class Up:
    """One `agentq up` in a process of its own."""

    def __init__(self, data_dir: Path, stand_in: Path) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AGENTQ_")}
        self.output = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(UP), str(data_dir), str(stand_in)],
            env=clean,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_ready(self) -> None:
        """Read until it says that it is ready."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if "Ctrl-C" in line:
                return
        raise AssertionError(self.output)

    def end(self, number: signal.Signals) -> int:
        """Signal it and wait for its end."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for its end."""
        assert self.process.stdout is not None
        self.output += self.process.stdout.read()
        return self.process.wait(60)


@pytest.fixture
def data_dir(stack: Stack) -> Iterator[Path]:
    """A data folder, with nothing left running on it."""
    folder = stack.data_dir
    yield folder
    for child in files.read_json(folder / "stack.json").get("children", []):
        processes.send([child["pid"]], signal.SIGKILL)


@pytest.fixture
def start(data_dir: Path, tmp_path: Path) -> Iterator[Callable[[], Up]]:
    """Start one more `up` on the data folder."""
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(textwrap.dedent(STAND_IN).replace("sys.argv[1:]", "sys.argv[2:]"))
    started: list[Up] = []

    def one() -> Up:
        started.append(Up(data_dir, stand_in))
        return started[-1]

    yield one
    for up in started:
        if up.process.poll() is None:
            up.end(signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_up_drains_and_stops_everything(start: Callable[[], Up], data_dir: Path, number: signal.Signals) -> None:
    """Ctrl-C, a service manager, a closed terminal: each ends it cleanly, with exit code 0."""
    up = start()
    up.wait_ready()
    noted = files.read_json(data_dir / "stack.json")
    pids = [child["pid"] for child in noted["children"]]
    pids += [one["pid"] for one in noted["servers"].values()]
    assert len(pids) == 5
    assert up.end(number) == 0
    assert all(processes.has_ended(pid) for pid in pids)
    assert sorted(path.stem for path in data_dir.glob("*.drained")) == ["flower", "quarantine", "worker"]
    assert not (data_dir / "stack.json").exists()


def test_up_says_where_things_are_and_keeps_secrets(start: Callable[[], Up], data_dir: Path) -> None:
    """One line each; of all passwords only Flower's, which people type."""
    up = start()
    up.wait_ready()
    noted = files.read_json(data_dir / "stack.json")
    assert up.end(signal.SIGINT) == 0
    for name in ("postgres 18", "valkey 9", "worker ", "quarantine ", "flower "):
        assert f"\n{name}" in f"\n{up.output}"
    for name, value in files.read_json(data_dir / "servers.json").items():
        assert (str(value) in up.output) == (name in ("flower_password", "postgres_port", "valkey_port"))
    assert f"http://127.0.0.1:{noted['flower_port']}" in up.output
    environment = files.read_json(data_dir / "worker.environment")
    assert urlsplit(environment["AGENTQ_DATABASE_URL"]).username == "agentq_fleet"
    assert "AGENTQ_ADMIN_DATABASE_URL" not in environment


def test_two_ups_on_one_folder(start: Callable[[], Up]) -> None:
    """The second names the first and exits with an error; the first does not notice."""
    first = start()
    first.wait_ready()
    second = start()
    assert second.wait() == 1
    assert f"process {first.process.pid}" in second.output
    assert first.process.poll() is None
    assert first.end(signal.SIGINT) == 0


def test_up_after_a_killed_up_takes_over(start: Callable[[], Up], data_dir: Path) -> None:
    """Servers that answer are kept with their data; workers that nobody watches are replaced."""
    first = start()
    first.wait_ready()
    before = files.read_json(data_dir / "stack.json")
    first.end(signal.SIGKILL)
    (data_dir / "worker.live").unlink()

    second = start()
    second.wait_ready()
    after = files.read_json(data_dir / "stack.json")
    assert "stopping what a killed run left: worker, quarantine, flower" in second.output.replace("\n", " ")
    assert after["servers"]["postgres"]["pid"] == before["servers"]["postgres"]["pid"]
    assert after["database_url"] == before["database_url"]
    orphans = [child["pid"] for child in before["children"]]
    assert all(processes.has_ended(pid) for pid in orphans)
    assert second.end(signal.SIGINT) == 0
    assert not any(one.is_running() for one in Stack(data_dir).servers)


def test_a_killed_worker_comes_back_under_up(start: Callable[[], Up], data_dir: Path) -> None:
    """And the address file names the new process, so that a killed `up` leaves no stranger."""
    up = start()
    up.wait_ready()

    def worker() -> int:
        children = files.read_json(data_dir / "stack.json").get("children", [])
        return next((child["pid"] for child in children if child["name"] == "worker"), 0)

    former = worker()
    os.kill(former, signal.SIGKILL)
    assert processes.wait_until(lambda: worker() not in (0, former), 10)
    assert psutil.pid_exists(worker())
    assert up.end(signal.SIGINT) == 0
    assert "worker was killed by SIGKILL" in up.output


def test_servers_of_ones_own_are_used_and_left_running(shared: Stack, tmp_path: Path) -> None:
    """`up` starts only what the settings do not name."""
    settings = load({}, data_dir=tmp_path / "own", database_url=shared.postgres.url, broker_url=shared.valkey.url)
    one = Fleet(settings, console=Console(file=io.StringIO()))
    assert one.stack.servers == ()
    half = Fleet(load({}, data_dir=tmp_path / "half", database_url=shared.postgres.url))
    assert half.stack.servers == (half.stack.valkey,)
    with pytest.raises(ConfigError, match="set both, or neither"):
        Fleet(load({}, data_dir=tmp_path / "odd", admin_database_url=shared.postgres.admin_url))


def test_addresses_of_a_killed_run_are_not_mistaken_for_ones_own(data_dir: Path) -> None:
    """They come from the address file, and name servers that are ours to start."""
    noted = {"database_url": "postgresql://f:x@127.0.0.1:1/a", "broker_url": "redis://:x@127.0.0.1:2/0"}
    files.write_private(data_dir / "stack.json", json.dumps(noted))
    settings = load({}, data_dir=data_dir)
    assert settings.database_url == noted["database_url"]
    assert len(Fleet(settings).stack.servers) == 2


def test_flower_moves_from_a_taken_port(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says so."""
    monkeypatch.setattr(ports, "is_free", lambda port: port != 5555)
    output = io.StringIO()
    one = Fleet(load({}, data_dir=data_dir), console=Console(file=output))
    one.stack.hold()
    settled = one._settle_settings()
    one.stack.stop()
    assert settled.flower_port != 5555
    assert "port 5555 is taken: Flower gets" in output.getvalue()


def test_a_worker_is_live_when_the_database_says_so(stack: Stack, tmp_path: Path) -> None:
    """Not when its process exists: it may still be importing."""
    from agentq.store import migrate

    with stack:
        migrate.upgrade(stack.postgres.admin_url, fleet_role="agentq_fleet")
        settings = Settings(database_url=stack.postgres.url, broker_url=stack.valkey.url, data_dir=tmp_path / "x")
        one = Fleet(settings)
        child = fleet.Child("worker", ["sleep", "60"], log=tmp_path / "log")
        child.start()
        try:
            assert not one._worker_is_live(child)
            with psycopg.connect(stack.postgres.admin_url) as connection:
                connection.execute("set agentq.tenant = '*'")
                connection.execute(
                    "insert into agentq.worker (worker_id, lock_key, host, pid, worker_group, role, release,"
                    " serves, lease_until) values (gen_random_uuid(), 1, 'h', %s, 'default', 'steps', '1', '{}',"
                    " agentq.now() + interval '1 minute')",
                    (child.pid,),
                )
            assert one._worker_is_live(child)
        finally:
            child.kill()


def test_a_second_signal_ends_the_draining(start: Callable[[], Up], data_dir: Path, tmp_path: Path) -> None:
    """Whoever presses Ctrl-C twice means it; the servers are stopped cleanly all the same."""
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(stand_in.read_text().replace("sys.exit(0)", "time.sleep(600)"))
    up = start()
    up.wait_ready()
    up.process.send_signal(signal.SIGINT)
    assert processes.wait_until((data_dir / "worker.drained").exists, 10)
    time.sleep(0.2)
    assert up.end(signal.SIGINT) == 0
    assert "not drained, killed" in up.output
    assert not any(one.is_running() for one in Stack(data_dir).servers)
