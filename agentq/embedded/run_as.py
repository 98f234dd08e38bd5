"""
Who runs the servers: ourselves, or, when we are root, somebody harmless.

PostgreSQL refuses to run as root, and Valkey has no business doing so. The uid need not have a name; only
`initdb` wants one, and gets `nobody` for its half second.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from agentq.errors import ConfigError

# Of our own rather than `nobody`, whom other programs share: they could read and signal the servers.
SERVERS_UID = 47_118


class Identity(TypedDict, total=False):
    """The arguments of `subprocess.Popen` that change the user."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True)
class RunAs:
    """The user that a server runs as; uid None is ourselves."""

    uid: int | None = None

    @property
    def identity(self) -> Identity:
        """For `subprocess.Popen`."""
        if self.uid is None:
            return {}
        return {"user": self.uid, "group": self.uid, "extra_groups": []}

    def own(self, path: Path) -> None:
        """Give it the path and all that is below."""
        if self.uid is None:
            return
        os.chown(path, self.uid, self.uid, follow_symlinks=False)
        for folder, folders, files in os.walk(path):
            for name in (*folders, *files):
                os.chown(Path(folder) / name, self.uid, self.uid, follow_symlinks=False)

    def working_folder(self, folder: Path) -> str:
        """
        A name for the folder, which must be the process's working directory, that this user can open.

        A checkout below /root has parents that only root may pass; a process's own working directory needs no
        passing.
        """
        return str(folder) if self.uid is None else "/proc/self/cwd"


def choose(folder: Path) -> RunAs:
    """
    Ourselves; when root, the owner of what the folder holds, else a uid of the servers' own.

    Raises:
        ConfigError: root, and no other user can be used; or the folder belongs to somebody else.
    """
    owner = folder.stat().st_uid if folder.is_dir() else os.geteuid()
    if os.geteuid() != 0:
        if owner != os.geteuid():
            raise ConfigError(
                f"{folder} belongs to user {owner}, probably because it was made by root: run as root again, "
                "or name another folder with AGENTQ_DATA_DIR"
            )
        return RunAs()
    if sys.platform != "linux":
        raise ConfigError("PostgreSQL does not run as root: use an ordinary user, or set AGENTQ_DATABASE_URL")
    for uid in (owner, SERVERS_UID, named().uid):
        if uid and _can_become(RunAs(uid)):
            return RunAs(uid)
    raise ConfigError(
        "PostgreSQL does not run as root and no other user can be used here: use an ordinary user, or set "
        "AGENTQ_DATABASE_URL and AGENTQ_BROKER_URL to servers of your own"
    )


def named() -> RunAs:
    """A user with a name, `nobody` if there is one, for `initdb`; ourselves unless root."""
    if os.geteuid() != 0:
        return RunAs()
    users = [user for user in pwd.getpwall() if user.pw_uid]
    users.sort(key=lambda user: user.pw_name != "nobody")
    return RunAs(users[0].pw_uid) if users else RunAs()


def has_name(uid: int) -> bool:
    """Whether the user has an entry; in containers it may not."""
    try:
        return bool(pwd.getpwuid(uid))
    except KeyError:
        return False


def _can_become(run_as: RunAs) -> bool:
    # A container may map only a few users.
    try:
        return subprocess.run(["/bin/sh", "-c", ":"], cwd="/", check=False, **run_as.identity).returncode == 0
    except (OSError, ValueError, subprocess.SubprocessError):
        return False
