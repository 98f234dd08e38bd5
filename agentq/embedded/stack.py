"""
The stack: PostgreSQL and Valkey with one data folder, one owner, and one file that says where they are.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agentq.embedded import processes
from agentq.embedded.files import FolderLock, Remembered, explained, read_json, write_private
from agentq.embedded.postgres import Postgres
from agentq.embedded.server import Server
from agentq.embedded.valkey import Valkey
from agentq.settings import ADDRESS_FILE


class Stack:
    """
    The embedded servers of one data folder.

    `start` takes the folder for this process, keeps servers that a killed run left behind if they
    answer and replaces them if not, and writes the address file that `agentq.settings` reads. Data and ports
    survive `stop`.
    """

    def __init__(self, data_dir: Path | str, *, postgres: bool = True, valkey: bool = True) -> None:
        self.data_dir = Path(data_dir).absolute()
        remembered = Remembered(self.data_dir / "servers.json")
        self.remembered = remembered
        self.postgres = Postgres(self.data_dir, remembered)
        self.valkey = Valkey(self.data_dir, remembered)
        self.servers: tuple[Server, ...] = tuple(
            server for server, wanted in ((self.postgres, postgres), (self.valkey, valkey)) if wanted
        )
        self._lock = FolderLock(self.data_dir / "lock")

    @property
    def address_file(self) -> Path:
        """Where the addresses are while the stack runs; readable by its owner alone."""
        return self.data_dir / ADDRESS_FILE

    @property
    def addresses(self) -> dict[str, str]:
        """`database_url`, `admin_database_url` and `broker_url` of the servers that this stack has."""
        found: dict[str, str] = {}
        if self.postgres in self.servers:
            found |= {"database_url": self.postgres.url, "admin_database_url": self.postgres.admin_url}
        if self.valkey in self.servers:
            found["broker_url"] = self.valkey.url
        return found

    @property
    def environment(self) -> dict[str, str]:
        """The addresses as `AGENTQ_*` variables, without the owner's: the fleet must not have it."""
        fleets = {name: url for name, url in self.addresses.items() if name != "admin_database_url"}
        return {f"AGENTQ_{name.upper()}": url for name, url in fleets.items()}

    def hold(self) -> None:
        """
        Take the data folder for this process.

        Raises:
            ConfigError: another process has it, or the folder cannot be written.
        """
        with explained(self.data_dir):
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock.acquire()

    def start(self) -> Self:
        """
        Start what does not run yet, and write the address file.

        Raises:
            ConfigError: the folder is taken or cannot be written, or a server does not start. What
                this call had started is stopped again.
        """
        self.hold()
        try:
            with explained(self.data_dir):
                for server in self.servers:
                    server.start()
                self.note()
        except BaseException:
            self.stop()
            raise
        return self

    def note(self, **more: Any) -> None:
        """Write the address file, with `more` in it."""
        servers = {
            server.name: {
                "pid": server.pid,
                "port": server.port,
                "version": server.version,
                "folder": str(server.folder),
                "started_at": processes.born(server.pid or 0),
            }
            for server in self.servers
        }
        known = {"up_pid": os.getpid(), "noted_at": time.time(), **self.addresses, "servers": servers, **more}
        with explained(self.address_file):
            write_private(self.address_file, json.dumps(known, indent=2) + "\n")

    def stop(self) -> None:
        """Stop the servers, the broker first, and let the folder go. Data and ports stay."""
        for server in reversed(self.servers):
            server.stop()
        with contextlib.suppress(OSError):
            self.address_file.unlink(missing_ok=True)
        self._lock.release()

    def remove(self) -> None:
        """Stop, and delete the data folder with all that is in it."""
        self.stop()
        shutil.rmtree(self.data_dir, ignore_errors=True)

    @classmethod
    def attach(cls, data_dir: Path | str) -> Stack | None:
        """
        The stack that another process runs on this folder, or that one left behind; None when none runs.

        Its servers can be asked, killed and restarted; the folder stays the other's.
        """
        noted = read_json(Path(data_dir).absolute() / ADDRESS_FILE)
        stack = cls(data_dir, postgres="database_url" in noted, valkey="broker_url" in noted)
        if not stack.servers or not all(server.is_running() for server in stack.servers):
            return None
        return stack

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
