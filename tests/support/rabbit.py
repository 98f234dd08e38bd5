"""A private RabbitMQ: Debian's server as a node of its own on loopback, with its own epmd, cookie, data and log."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path

import amqp
import psutil

from agentq.embedded import ports

INSTALL = "apt-get install rabbitmq-server"
_PATIENCE_S = 120.0
# The distribution's wrapper in /usr/sbin insists on root and the system's data; these are what it calls.
_HOMES = (Path("/usr/lib/rabbitmq/bin"), Path("/opt/homebrew/opt/rabbitmq/sbin"))

# A run that is killed, or ends on a timeout, must not leave a server behind.
_ENDS_WITH_US = ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()

_CONFIG = """\
listeners.tcp.1 = 127.0.0.1:{port}
default_user = agentq
default_pass = {password}
loopback_users = none
log.file.level = warning
log.console = false
# Of a test machine that others fill too: this node stores next to nothing.
disk_free_limit.absolute = 10MB
"""

# Both sides show who they are.
_TLS = """\
listeners.ssl.1 = 127.0.0.1:{port}
ssl_options.cacertfile = {ca}
ssl_options.certfile = {certificate}
ssl_options.keyfile = {key}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
"""


def program() -> Path | None:
    """Where `rabbitmq-server` is; None: nowhere, and the tests that need it say so and are skipped."""
    for home in _HOMES:
        if (home / "rabbitmq-server").is_file() and shutil.which("epmd"):
            return home / "rabbitmq-server"
    return None


class Rabbit:
    """
    One node in one folder. Nothing of it is left once `close` has returned.

    epmd is started here, in the foreground and on a port of its own: Erlang would leave one behind as a daemon.
    """

    def __init__(self, folder: Path, *, tls: tuple[Path, Path, Path] | None = None) -> None:
        """`tls`: files of an authority, and of a certificate and its key, for a second port."""
        found = program()
        assert found is not None, f"RabbitMQ is not installed: {INSTALL}"
        self._server = found
        self._folder = folder
        self._password = secrets.token_hex(12)
        self._name = f"agentq-{secrets.token_hex(4)}@localhost"
        self.port, self._epmd_port, self._dist_port, self.tls_port = self._ports()
        self._epmd: subprocess.Popen[bytes] | None = None
        self._node: subprocess.Popen[bytes] | None = None
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = _CONFIG.format(port=self.port, password=self._password)
        if tls is not None:
            text += _TLS.format(port=self.tls_port, **dict(zip(("ca", "certificate", "key"), tls, strict=True)))
        (folder / "rabbitmq.conf").write_text(text, "utf-8")
        (folder / "enabled_plugins").write_text("[].\n", "utf-8")
        (folder / "env.conf").touch()

    @property
    def url(self) -> str:
        return f"amqp://agentq:{self._password}@127.0.0.1:{self.port}//"

    @property
    def log(self) -> str:
        """What the node and its start said."""
        return "".join(
            path.read_text("utf-8", "replace")
            for path in sorted([self._folder / "start.log", *(self._folder / "log").glob("*.log")])
            if path.is_file()
        )

    def control(self, *words: str) -> None:
        """`rabbitmqctl WORDS`, as an operator does."""
        subprocess.run(
            [self._server.with_name("rabbitmqctl"), *words],
            env=self._environment(), check=True, capture_output=True, timeout=60,
        )  # fmt: skip

    def start(self) -> None:
        """Start the node on the data that it has, and wait until it takes connections."""
        if self._epmd is None:
            self._epmd = subprocess.Popen(
                [*_ENDS_WITH_US, "epmd", "-port", str(self._epmd_port), "-address", "127.0.0.1"],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env=self._environment(), start_new_session=True,
            )  # fmt: skip
        with (self._folder / "start.log").open("ab") as log:
            self._node = subprocess.Popen(
                [*_ENDS_WITH_US, str(self._server)], cwd=self._folder, env=self._environment(),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + _PATIENCE_S
        while not self._answers():
            assert self._node.poll() is None, f"RabbitMQ ended:\n{self.log[-3000:]}"
            assert time.monotonic() < deadline, f"RabbitMQ does not answer:\n{self.log[-3000:]}"
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop it as its init script would."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """
        SIGKILL, as a power cut would.

        What it had confirmed is on disk, except in queues that were declared in the last few seconds: RabbitMQ 3.10
        forgets what was in those.
        """
        self._end(signal.SIGKILL)

    def wipe(self) -> None:
        """Lose every queue, exchange and message: a node that begins anew."""
        self.kill()
        shutil.rmtree(self._folder / "mnesia", ignore_errors=True)
        self.start()

    def close(self) -> None:
        """Stop it and remove its folder."""
        self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait(10)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self, number: signal.Signals) -> None:
        node, self._node = self._node, None
        if node is None or node.poll() is not None:
            return
        try:
            # Erlang's helpers (a port program, a resolver) have sessions of their own.
            family = psutil.Process(node.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            family = []
        node.send_signal(number)
        try:
            node.wait(60)
        except subprocess.TimeoutExpired:
            node.kill()
            node.wait(10)
        for child in family:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, 10)

    def _answers(self) -> bool:
        try:
            with amqp.Connection(
                f"127.0.0.1:{self.port}", userid="agentq", password=self._password, connect_timeout=2
            ) as connection:
                connection.channel().close()
        except (OSError, amqp.AMQPError):
            return False
        return True

    def _environment(self) -> dict[str, str]:
        folder = str(self._folder)
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LC_ALL": "C.UTF-8",
            "HOME": folder,  # Erlang keeps its cookie there
            "RABBITMQ_NODENAME": self._name,
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/env.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{folder}/generated",
            "RABBITMQ_FEATURE_FLAGS_FILE": f"{folder}/feature_flags",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            # Or the start script stays in between, and signals reach it instead of the server.
            "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # Two cores at most: a test machine has other things to do.
            "RABBITMQ_SERVER_ERL_ARGS": "+P 1048576 +t 5000000 +stbt u +sbwt none +sbwtdcpu none +sbwtdio none +S 2:2",
        }

    @staticmethod
    def _ports() -> tuple[int, int, int, int]:
        found: list[int] = []
        while len(found) < 4:
            if (port := ports.pick()) not in found:
                found.append(port)
        return found[0], found[1], found[2], found[3]
