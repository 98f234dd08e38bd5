"""
Writes `requirements.lock`: exact versions of all that `make` installs, for each supported Python.

pip resolves the requirements once per Python version, for wheels only. A version that differs between Pythons
gets a marker. Run in `.venv` by `make lock`; what is written holds names and versions, no addresses.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# redis asks for it before Python 3.11.3 only, and pip judges that by the interpreter that it runs on.
UNSEEN = ("async-timeout",)
HEADER = """\
# Exact versions of everything `make venv` installs, as constraints for pip; valid on Python 3.11 to 3.14.
# Written by `make lock`; `pyproject.toml` says what is asked for and why.
"""


def main() -> None:
    """Resolve for each Python and write the union."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(line for extra in extras.values() for line in extra), *UNSEEN]
    versions: dict[str, dict[str, str]] = {}
    for python in PYTHONS:
        for name, version in resolve(wanted, python).items():
            versions.setdefault(name, {})[python] = version
    LOCK.write_text(HEADER + "".join(f"{line}\n" for line in lines(versions)), "utf-8")
    print(f"{LOCK.name}: {len(versions)} packages")


def resolve(wanted: list[str], python: str) -> dict[str, str]:
    """Name and version of every package that these requirements bring on that Python."""
    print(f"resolving for Python {python}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--dry-run",
        ]
        command += ["--ignore-installed", "--report", str(report), "--target", scratch]
        command += ["--only-binary=:all:", "--python-version", python, *wanted]
        subprocess.run(command, check=True)
        found = json.loads(report.read_text("utf-8"))["install"]
    return {item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"] for item in found}


def lines(versions: dict[str, dict[str, str]]) -> list[str]:
    """A line per package, or per version of it with the Pythons it is for."""
    written = []
    for name in sorted(versions):
        by_python = versions[name]
        if len(set(by_python.values())) == 1:
            written.append(f"{name}=={next(iter(by_python.values()))}")
            continue
        for version in sorted(set(by_python.values())):
            pythons = [python for python in PYTHONS if by_python.get(python) == version]
            marker = " or ".join(f'python_version == "{python}"' for python in pythons)
            written.append(f"{name}=={version} ; {marker}")
    return written


if __name__ == "__main__":
    main()
