"""
The launcher: from the worker's process to the sandbox, in a bare interpreter (`python -I -S`).

It gives up root, confines itself, and becomes the sandbox. Whatever fails on the way ends it with code 125
before any foreign code has run. Standard library only.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import kernel  # type: ignore[import-not-found]

FAILED = 125


def main() -> None:
    with os.fdopen(int(sys.argv[1]), "rb") as given:
        spec = json.loads(given.read())
    try:
        (bubblewrap if spec["backend"] == "bubblewrap" else landlocked)(spec)
    except Exception as error:
        sys.stderr.write(f"the sandbox could not be closed: {type(error).__name__}: {error}\n")
        os._exit(FAILED)


def bubblewrap(spec: dict[str, Any]) -> None:
    """Namespaces of its own: no network, no other processes, only the files that are shown."""
    shown = [(path, path) for path in spec["readable"]]
    if spec["uid"] is not None:
        # Shown to a user who may not walk there: bound into the run's own folder, in mounts of our own.
        kernel.own_mounts()
        shown = [(_staged(spec["staging"], number, path), path) for number, path in enumerate(spec["readable"])]
        kernel.become(spec["uid"])
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    reading, writing = os.pipe()
    os.write(writing, kernel.seccomp_program(shared=False))
    os.close(writing)
    os.set_inheritable(reading, True)
    arguments = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]
    arguments += ["--hostname", "sandbox", "--seccomp", str(reading)]
    # Before what is shown, which may lie below a folder of that name.
    arguments += ["--size", str(spec["disk_bytes"]), "--tmpfs", "/work"]
    for source, target in shown:
        arguments += ["--ro-bind", source, target]
    for target, source in spec["links"]:
        arguments += ["--symlink", target, source]
    arguments += ["--proc", "/proc", "--dev", "/dev", "--size", str(spec["shm_bytes"]), "--tmpfs", "/dev/shm"]
    arguments += ["--remount-ro", "/dev"]
    if not any(target.startswith("/tmp/") for _, target in shown):
        arguments += ["--symlink", "work", "/tmp"]
    arguments += ["--remount-ro", "/", "--chdir", "/work"]
    os.execve(spec["bwrap"], [*arguments, "--", *spec["stage"]], {"PATH": "/usr/bin:/bin"})


def _staged(folder: str, number: int, path: str) -> str:
    target = os.path.join(folder, str(number))
    if os.path.isdir(path):
        os.mkdir(target)
    else:
        with open(target, "xb"):
            pass
    kernel.bind(path, target)
    return target


def landlocked(spec: dict[str, Any]) -> None:
    """No namespaces: the kernel confines files, signals and calls. A supervisor stays outside and cleans up."""
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    child = os.fork()
    if child == 0:
        try:
            _confine(spec)
            os.execve(spec["stage"][0], spec["stage"], {})
        except Exception as error:
            sys.stderr.write(f"the sandbox could not be closed: {type(error).__name__}: {error}\n")
        os._exit(FAILED)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    # What it holds open of the pipes would keep the worker reading.
    for descriptor in (0, 1, spec["answer_fd"]):
        os.close(descriptor)
    status = _outlive(child)
    _kill_all_below()
    os._exit(status)


def _confine(spec: dict[str, Any]) -> None:
    if spec["uid"] is not None:
        kernel.become(spec["uid"])
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    os.chdir(spec["work"])
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.landlock(spec["readable"], [spec["work"]], ["/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"])
    kernel.filter_calls(kernel.seccomp_program(shared=True))


def _outlive(child: int) -> int:
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status) & 0xFF


def _kill_all_below() -> None:
    """Daemonised children come to this process, the subreaper, one generation after the other."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/self/task/{os.getpid()}/children") as file:
                below = [int(pid) for pid in file.read().split()]
        except OSError:
            return
        if not below:
            return
        for pid in below:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except OSError:
                continue


if __name__ == "__main__":
    main()
