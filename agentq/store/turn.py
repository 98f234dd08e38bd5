"""Turns: a chore that is owed to many tenants, done for a few hundred of them at once."""

from __future__ import annotations

from typing import Any

from agentq.store.pool import Row

TENANTS_AT_ONCE = 200


class Turn:
    """
    Which tenants come next, by name and round again; whoever had more than a batch comes again at once.

    A process's own, so that several of them, each at another place, come round sooner.
    """

    def __init__(self, tenants: int = TENANTS_AT_ONCE) -> None:
        self._tenants = tenants
        self._after = ""
        self._again: list[str] = []

    def parameters(self, limit: int) -> dict[str, Any]:
        """What the statement is asked with."""
        return {"after": self._after, "tenants": self._tenants, "again": self._again, "max": limit}

    def take(self, rows: list[Row], limit: int) -> dict[str, int]:
        """From its answer, of how many something went, by tenant; and where the next turn begins."""
        found: dict[str, int] = {}
        self._after = ""
        for tenant, count, in_turn in rows:
            if in_turn:
                self._after = tenant
            else:
                found[tenant] = found.get(tenant, 0) + count
        self._again = [tenant for tenant, count in found.items() if count >= limit][: self._tenants]
        return found
