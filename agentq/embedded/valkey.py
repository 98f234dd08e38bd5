"""
Embedded Valkey: the broker, with a password and a log on disk. Its loss costs time only.
"""

from __future__ import annotations

import contextlib
import re
import time
from signal import SIGTERM

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from agentq.embedded.binaries import VALKEY
from agentq.embedded.files import MEGABYTE, require_room
from agentq.embedded.ports import HOST
from agentq.embedded.run_as import RunAs
from agentq.embedded.server import Server
from agentq.errors import ConfigError

START_BYTES = 16 * MEGABYTE

# Written anew at each start, readable by the server's user alone.
CONFIGURATION = """\
bind {host}
port {port}
protected-mode yes
requirepass {password}
daemonize no
pidfile valkey.pid
dir .
databases 1

# Celery's messages survive a crash of the server; a crash of the machine costs the last second, which the
# relay sends again.
appendonly yes
appendfsync everysec
save ""
auto-aof-rewrite-min-size 16mb

# Messages hold ids only and the backlog waits in Postgres: this is thousands of times what is needed, and a
# runaway must not take the machine. Full, it refuses; it never throws a message away.
maxmemory 512mb
maxmemory-policy noeviction

tcp-keepalive 60
loglevel notice
"""


class Valkey(Server):
    """Valkey from a wheel, spoken to as Redis."""

    name = "valkey"
    process_name = "valkey-server"
    program = VALKEY
    stop_signals = (SIGTERM,)

    @property
    def url(self) -> str:
        """The broker's address, with its password."""
        return f"redis://:{self.remembered.password('valkey_password')}@{HOST}:{self.port}/0"

    def wipe(self) -> None:
        """Delete every key: what a lost broker looks like to its clients."""
        with self._client(timeout_s=10.0) as client:
            client.flushall()

    def start(self, *, same_port: bool = False) -> None:
        """
        Start it as any server; files that it cannot read are put aside and it starts empty.

        The broker holds nothing that the ledger does not know, so an empty one is better than none.
        """
        try:
            super().start(same_port=same_port)
        except ConfigError:
            damaged = self.folder / "appendonlydir"
            if not damaged.is_dir() or not self._is_damaged():
                raise
            damaged.rename(self.folder / f"appendonlydir.damaged-{int(time.time())}")
            super().start(same_port=same_port)

    def _is_damaged(self) -> bool:
        text = self.log.read_text("utf-8", "replace")[-8192:]
        return "Bad file format" in text or "AOF" in text.rsplit("Fatal", 1)[-1]

    def _client(self, timeout_s: float) -> redis.Redis:
        # No retries: whoever asks whether it answers asks again.
        return redis.Redis.from_url(
            self.url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0)
        )

    def _noted_pid(self) -> int | None:
        try:
            return int((self.folder / "valkey.pid").read_text("ascii"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None

    def _answers(self) -> bool:
        if not self.port or self._noted_pid() != self.pid:
            return False
        with contextlib.suppress(redis.RedisError), self._client(timeout_s=1.0) as client:
            return bool(client.info("server")["process_id"] == self.pid)  # a stranger may hold the port
        return False

    def _found(self, runner: RunAs) -> None:
        require_room(self.folder, START_BYTES)
        runner.own(self.folder)

    def _prepare(self, port: int, runner: RunAs) -> None:
        path = self.folder / "valkey.conf"
        path.touch(mode=0o600)
        path.chmod(0o600)
        password = self.remembered.password("valkey_password")
        path.write_text(CONFIGURATION.format(host=HOST, port=port, password=password), "utf-8")
        runner.own(path)

    def _command(self, runner: RunAs) -> list[str]:
        return [str(self._executable), f"{runner.working_folder(self.folder)}/valkey.conf"]

    def _welcome(self) -> None:
        found = re.search(r"v=([\d.]+)", self.version)
        self.version = found.group(1) if found else self.version
