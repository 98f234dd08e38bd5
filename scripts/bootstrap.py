"""
Makes `.venv` and installs agentq into it; does nothing when nothing changed.

Runs on a bare Python 3.11 to 3.14: standard library only.

    python scripts/bootstrap.py            make or refresh .venv
    python scripts/bootstrap.py --this     the same, with this version of Python and no other
    python scripts/bootstrap.py --suits    exit 0 when this Python can make it
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "agentq.stamp"
PROJECT = ROOT / "pyproject.toml"
LOCK = ROOT / "requirements.lock"

EXTRAS = "embedded,demo,dev"
OLDEST, NEWEST = (3, 11), (3, 14)

# Would bend the installation: another place, another interpreter, another set of packages.
HARMFUL = (
    "PYTHONHOME",
    "PYTHONPATH",
    "PIP_TARGET",
    "PIP_PREFIX",
    "PIP_USER",
    "PIP_REQUIRE_HASHES",
    "__PYVENV_LAUNCHER__",
)


def main() -> int:
    """Make `.venv` match `pyproject.toml` and `requirements.lock`; 0 when it does."""
    if "--suits" in sys.argv[1:]:
        return 0 if suits() else 1
    # One at a time; the file is there anyway and the lock ends with this process.
    with PROJECT.open("rb") as project:
        fcntl.flock(project, fcntl.LOCK_EX)
        return 0 if is_fresh() else install()


def suits() -> bool:
    """Whether this interpreter is of a supported version and can make virtual environments with pip."""
    return OLDEST <= sys.version_info[:2] <= NEWEST and importlib.util.find_spec("ensurepip") is not None


def fingerprint() -> str:
    """What the environment depends on: packages, versions, the place. Not linter settings."""
    import tomllib

    project = tomllib.loads(PROJECT.read_text("utf-8"))
    wanted = [
        project["project"],
        project["build-system"],
        project.get("tool", {}).get("hatch", {}),
        LOCK.read_text("utf-8"),
        EXTRAS,
        str(ROOT),  # an environment cannot be moved
    ]
    return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()


def is_fresh() -> bool:
    """Whether `.venv` works and was finished from the same files."""
    if not STAMP.is_file() or STAMP.read_text("utf-8") != fingerprint():
        return False
    return works()


def works() -> bool:
    """Whether the environment's interpreter starts and is of a version that will do."""
    oldest, newest = (OLDEST, NEWEST) if "--this" not in sys.argv[1:] else 2 * (tuple(sys.version_info[:2]),)
    question = f"import sys; sys.exit(not {oldest} <= sys.version_info[:2] <= {newest})"
    try:
        return subprocess.run([PYTHON, "-c", question], check=False, capture_output=True).returncode == 0
    except OSError:  # no such file, or its base interpreter is gone
        return False


def install() -> int:
    """Install what the lock names; the stamp is written last, so a broken attempt is repeated."""
    began = time.monotonic()
    STAMP.unlink(missing_ok=True)
    if not works():
        print(f"Making .venv with Python {sys.version.split()[0]} ({sys.executable})", flush=True)
        venv.EnvBuilder(clear=True, with_pip=True, symlinks=True).create(VENV)
    print(
        "Installing agentq and what it needs into .venv, as requirements.lock says",
        flush=True,
    )
    command = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    # Relative on purpose: pip and a path with spaces or '#' in it do not agree on quoting.
    command += ["--constraint", LOCK.name, "--editable", f".[{EXTRAS}]"]
    environment = {name: value for name, value in os.environ.items() if name not in HARMFUL}
    code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    if code != 0:
        print(
            "\nThe installation failed; pip says why above. Without a network, point pip to a mirror or a "
            "folder of wheels (PIP_INDEX_URL, PIP_FIND_LINKS). Then run the same command again.",
            file=sys.stderr,
        )
        return code
    STAMP.write_text(fingerprint(), "utf-8")
    print(f"Installed in {time.monotonic() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"cannot make {VENV}: {error}", file=sys.stderr)
        sys.exit(1)
