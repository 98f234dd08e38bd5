"""What sandboxed code may use, and what it came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

EndedBy = Literal["itself", "wall", "memory", "processes", "disk", "output", "killed"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Each of them hard. Memory is bounded for one process by the kernel, for all together by a watchdog."""

    wall_s: float = 30.0
    cpu_s: int = 20
    memory_bytes: int = 512 * 1024**2
    processes: int = 32
    open_files: int = 128
    file_bytes: int = 32 * 1024**2
    disk_bytes: int = 64 * 1024**2
    output_bytes: int = 256 * 1024
    result_bytes: int = 8 * 1024**2


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended: its exit code (negative: the signal), what it printed, the files that were asked for."""

    code: int
    ended_by: EndedBy
    stdout: bytes
    stderr: bytes
    files: dict[str, bytes] = field(default_factory=dict)
    took_s: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether it ended by itself, with exit code 0."""
        return self.ended_by == "itself" and self.code == 0
