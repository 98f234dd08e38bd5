"""Tools that run in the sandbox: at the top of a module, as they must be."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

from pydantic import BaseModel

from agentq import effect
from agentq.sandbox import Limits


class Point(BaseModel):
    x: int
    y: int


@effect(sandbox=True)
def moved(point: Point, by: int = 1) -> Point:
    return Point(x=point.x + by, y=point.y)


@effect(sandbox=True)
async def whereabouts() -> dict[str, str]:
    return {
        "secret": os.environ.get("AGENTQ_DATABASE_URL", ""),
        "cwd": str(Path.cwd()),
        "settings": str(Path(__file__).parents[2].joinpath("config/agentq.toml").exists()),
    }


@effect(sandbox=True)
def broken(word: str) -> None:
    raise ValueError(f"no {word}")


@effect(sandbox=Limits(wall_s=1.0))
def endless() -> None:
    while True:
        pass


class Mark(BaseModel):
    """A word to leave wherever one can, and how others' words begin."""

    word: str
    others: str
    stays_s: float = 0.0


@effect(sandbox=Limits(wall_s=40.0))
def leave_and_look(mark: Mark) -> dict[str, object]:
    """Leave the word in files, shared memory and a variable; stay; read whatever can be read, and tell which words."""
    os.environ["MARK"] = mark.word
    for folder in (".", "/tmp", "/var/tmp", "/dev/shm", "/work", os.path.dirname(os.getcwd())):
        try:
            Path(folder, f"{mark.word}.txt").write_text(mark.word)
        except OSError:
            continue
    marked_at = time.time()
    time.sleep(1.0)
    looked_at = time.time()
    seen: dict[str, list[str]] = {}

    def look(where: str, text: str) -> None:
        if words := sorted(set(re.findall(re.escape(mark.others) + "[a-z]+", text))):
            seen[where] = sorted({*seen.get(where, []), *words})

    look("environment", repr(dict(os.environ)))
    # A folder of one's own has neighbours; the root of a namespace of one's own has devices, which block.
    beside = {os.path.dirname(os.getcwd())} - {"/"}
    for root in {os.getcwd(), "/tmp", "/var/tmp", "/dev/shm", "/work", "/home", "/root", "/run"} | beside:
        for place, folders, files in os.walk(root):
            # What every tool is shown: Python, libraries, agentq, and this package.
            folders[:] = {*folders} - {"site-packages", "dist-packages", "lib-dynload", "agentq", "tests"}
            if place.startswith(sys.base_prefix):
                folders[:] = files[:] = []
            for name in (*folders, *files):
                look("file", name)
            for name in files:
                try:
                    with open(os.path.join(place, name), "rb") as file:
                        look("file", file.read(100_000).decode("utf-8", "replace"))
                except OSError:
                    continue
    for process in (name for name in _listed("/proc") if name.isdecimal()):
        for part in ("environ", "cmdline", "maps", "mountinfo"):
            try:
                look("process", Path("/proc", process, part).read_bytes().decode("utf-8", "replace"))
            except OSError:
                continue
        for name in _listed(f"/proc/{process}/fd"):
            try:
                look("process", os.readlink(f"/proc/{process}/fd/{name}"))
            except OSError:
                continue
    time.sleep(mark.stays_s)
    return {"seen": seen, "marked_at": marked_at, "looked_at": looked_at, "ended_at": time.time()}


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
