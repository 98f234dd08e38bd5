"""Tools that run in the sandbox: at the top of a module, as they must be."""

from __future__ import annotations

import os
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
