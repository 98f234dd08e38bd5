"""The command line: `agentq`, noun then verb."""

from __future__ import annotations

from agentq.cli.root import main

__all__ = ["main"]
