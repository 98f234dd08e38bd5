"""What the outside service was asked: read from its own record, and from the service while it runs."""

from __future__ import annotations

import json
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentq.chaos import service
from agentq.errors import ConfigError

CONTROL_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Request:
    """One request, as the service recorded it. `until` is None while it is open."""

    number: int
    what: str
    session: str
    place: str
    kind: str
    key: str
    value: str
    pid: int
    at: float
    until: float | None
    applied: bool
    fate: str


@dataclass(frozen=True)
class Open:
    """A request that the service is working on now."""

    what: str
    session: str
    place: str
    kind: str
    pid: int


def read(path: Path) -> list[Request]:
    """Every request in the order of its arrival."""
    base = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    base.row_factory = sqlite3.Row
    try:
        rows = base.execute(service.SQL["everything"]).fetchall()
    finally:
        base.close()
    return [Request(**{**dict(row), "applied": bool(row["applied"])}) for row in rows]


class ServiceProcess:
    """The service as its own process; it ends when we let go of its standard input, or die."""

    def __init__(self, folder: Path, bind: str = "127.0.0.1:0") -> None:
        self.path = folder / "service.sqlite"
        self._log = (folder / "service.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, service.__file__, str(self.path), bind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        port = self._process.stdout.readline().strip()
        if not port:
            self.stop()
            words = (folder / "service.log").read_text("utf-8", "replace").strip().splitlines()[-1:]
            raise ConfigError(f"the effects service does not start on {bind}: {' '.join(words)}")
        self.port = int(port)
        host = bind.rpartition(":")[0]
        self._host = "127.0.0.1" if host in ("", "0.0.0.0") else host  # noqa: S104 - compared, not bound

    def open(self) -> list[Open]:
        """The calls that it is working on now."""
        rows = self._ask(what="open")["open"]
        return [Open(**row) for row in rows]

    def weather(self, shares: Mapping[str, float], seed: int = 0) -> None:
        """Have it misbehave for these shares of the calls, by fate; none: behave."""
        self._ask(what="weather", shares=dict(shares), seed=seed)

    def read(self) -> list[Request]:
        """Its record so far."""
        return read(self.path)

    def stop(self) -> None:
        """Let it go, and wait for it."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _ask(self, **request: Any) -> dict[str, Any]:
        with socket.create_connection((self._host, self.port), timeout=CONTROL_TIMEOUT_S) as connection:
            connection.sendall(json.dumps(request).encode() + b"\n")
            return dict(json.loads(connection.makefile("rb").readline()))
