"""
The stage: what runs first inside a sandbox. It lays out the files, sets the limits, runs the command, and
hands back the files that were asked for.

It runs with the same rights as the command, so nobody outside believes it more than the command: what it
writes is parsed, never opened. Standard library only.
"""

from __future__ import annotations

import base64
import glob
import json
import os
import resource
import stat
import subprocess
import sys
from typing import Any


def limit(spec: dict[str, Any]) -> None:
    """What the kernel bounds for the command and all that it starts."""
    for name, value in spec["rlimits"].items():
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))


def collect(spec: dict[str, Any]) -> dict[str, str]:
    """The files that were asked for: regular ones with one name, not too large."""
    found: dict[str, str] = {}
    room = spec["result_bytes"]
    for pattern in spec["collect"]:
        for path in sorted(
            glob.glob(pattern, include_hidden=True) if sys.version_info >= (3, 11) else glob.glob(pattern)
        ):
            try:
                at = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                continue
            facts = os.fstat(at)
            if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1 or facts.st_size > room:
                os.close(at)
                continue
            with os.fdopen(at, "rb") as file:
                data = file.read(room)
            room -= len(data)
            found[path] = base64.b64encode(data).decode("ascii")
    return found


def lay_out(spec: dict[str, Any]) -> None:
    for name, data in spec["files"].items():
        if os.path.dirname(name):
            os.makedirs(os.path.dirname(name), exist_ok=True)
        with open(name, "wb") as file:
            file.write(base64.b64decode(data))


def main() -> None:
    spec = json.loads(sys.stdin.buffer.read())
    os.chdir(spec["work"])
    lay_out(spec)
    answer: dict[str, Any] = {}
    captured = spec["channel"] == "stdout"
    pipe = subprocess.PIPE if captured else None
    done: Any = None
    try:
        done = subprocess.run(
            spec["argv"],
            env=spec["env"],
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            preexec_fn=lambda: limit(spec),
            timeout=spec["wall_s"] if captured else None,
            check=False,
        )
        answer["code"] = done.returncode
    except subprocess.TimeoutExpired as error:
        done = error
        answer["code"], answer["ended_by"] = -9, "wall"
    except OSError as error:
        answer["code"] = 127
        sys.stderr.write(f"cannot be started: {error.strerror}\n")
    if captured and done is not None:
        for name in ("stdout", "stderr"):
            data = (getattr(done, name) or b"")[: spec["output_bytes"]]
            answer[name] = base64.b64encode(data).decode("ascii")
    answer["files"] = collect(spec)
    with os.fdopen(1 if captured else spec["answer_fd"], "w", closefd=False) as out:
        json.dump(answer, out)
        out.flush()


if __name__ == "__main__":
    main()
