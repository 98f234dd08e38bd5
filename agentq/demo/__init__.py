"""The demo: real agents on a real fleet, with a worker killed and the broker emptied in the middle."""

from __future__ import annotations

from agentq.demo.play import run

__all__ = ["run"]
