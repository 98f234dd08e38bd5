"""The nemesis's own queries, by name."""

from __future__ import annotations

from agentq.store.queries import load

SQL = load("chaos", "agentq.chaos")
