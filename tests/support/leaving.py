"""Leaving a stack behind: nobody waits for the sixteen hundred files of a cluster to be deleted."""

from __future__ import annotations

import contextlib
import subprocess
import uuid

from agentq.embedded import Stack


def leave(stack: Stack) -> None:
    """Stop it; its folder is out of the way at once, and gone when a process of its own has come to it."""
    stack.stop()
    gone = stack.data_dir.with_name(f"gone-{uuid.uuid4().hex[:8]}")
    with contextlib.suppress(FileNotFoundError):
        stack.data_dir.rename(gone)
        subprocess.run(["sh", "-c", 'rm -rf "$1" >/dev/null 2>&1 &', "sh", str(gone)], check=True)
