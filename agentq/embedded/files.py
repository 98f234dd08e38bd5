"""
The data folder's files: private, replaced in one move, and refused with a reason when there is no room.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agentq.errors import ConfigError

MEGABYTE = 1_000_000
LOG_MAX_BYTES = 10 * MEGABYTE


def free_bytes(path: Path) -> int:
    """Free bytes where `path` is, or would be."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """
    Run a block that writes below `path`.

    Raises:
        ConfigError: instead of an OSError; it names the path and the room left there.
    """
    try:
        yield
    except OSError as error:
        what = f"cannot write {error.filename or path}: {error.strerror or error}"
        raise ConfigError(what + _advice(path, error.errno)) from error


def _advice(path: Path, code: int | None) -> str:
    try:
        room = f"{free_bytes(path) // MEGABYTE} MB free"
    except OSError:
        room = "free space unknown"
    if code in (errno.ENOSPC, errno.EDQUOT):
        return f" ({room}): free some space, or name another folder with AGENTQ_DATA_DIR"
    return f" ({room} in {path}): make it writable, or name another folder with AGENTQ_DATA_DIR"


def require_room(path: Path, need_bytes: int) -> None:
    """
    Pass when `path` has `need_bytes` free.

    Raises:
        ConfigError: it has not; nothing was written.
    """
    free = free_bytes(path)
    if free < need_bytes:
        raise ConfigError(
            f"{path} has {free // MEGABYTE} MB free, the embedded servers need {need_bytes // MEGABYTE} MB: "
            "free some space, or name another folder with AGENTQ_DATA_DIR"
        )


def write_private(path: Path, text: str) -> None:
    """Replace the file in one move: others cannot read it, a crash leaves the old one or the new one."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file; empty when there is no file, or none that can be used."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def open_log(path: Path) -> int:
    """A descriptor that appends to the log; a log that has grown is put aside as `<name>.1` first."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_MAX_BYTES:
        path.replace(path.with_suffix(path.suffix + ".1"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def last_lines(path: Path, count: int = 8, since: int = 0) -> str:
    """The end of a log, from byte `since` on, for an error message."""
    try:
        with path.open("rb") as file:
            file.seek(max(since, path.stat().st_size - 8192))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "\n".join(line for line in lines[-count:] if line.strip())


class Remembered:
    """
    What must outlive a restart: the servers' ports and generated passwords, in one private file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def password(self, name: str) -> str:
        """The password of that name, made on first use. Its characters need no quoting in a URL."""
        known = read_json(self.path)
        if name not in known:
            known[name] = secrets.token_urlsafe(24)
            self._save(known)
        return str(known[name])

    def knows(self, name: str) -> bool:
        """Whether the name was ever remembered."""
        return name in read_json(self.path)

    def port(self, name: str) -> int:
        """The port of that name; 0 when none is remembered."""
        return int(read_json(self.path).get(name, 0))

    def keep_port(self, name: str, port: int) -> None:
        """Remember the port."""
        known = read_json(self.path)
        if known.get(name) != port:
            self._save(known | {name: port})

    def _save(self, known: dict[str, Any]) -> None:
        write_private(self.path, json.dumps(known, indent=2) + "\n")


class FolderLock:
    """
    One holder per data folder.

    The kernel drops the lock with its process, so a killed holder leaves nothing behind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """
        Take the lock; holding it already is fine.

        Raises:
            ConfigError: another process holds it; the message names that process.
        """
        if self._descriptor is not None:
            return
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise ConfigError(
                f"agentq is already running on {self.path.parent} (process {holder}): use it, stop it with "
                f"`kill {holder}`, or name another folder with AGENTQ_DATA_DIR"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go. The file stays: removing it would let two holders lock two files of one name."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
