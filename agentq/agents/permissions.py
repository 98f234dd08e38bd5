"""Permissions: which agents and tools a tenant may use, as its record says now."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping

from agentq.errors import NotAllowed, Permanent

_FRESH_S = 3.0

Restricted = Mapping[str, tuple[frozenset[str] | None, frozenset[str] | None]]


class Permissions:
    """Reads the few tenants that are restricted, every few seconds and not for each call."""

    def __init__(self, read: Callable[[], Restricted]) -> None:
        self._read = read
        self._known: Restricted = {}
        self._until = 0.0
        self._lock = threading.Lock()

    def require_tool(self, tenant: str, name: str) -> None:
        """
        Return when the tenant may perform the effect.

        Raises:
            Permanent: it may not.
        """
        tools = self._of(tenant)[1]
        if tools is not None and name not in tools:
            raise Permanent(str(NotAllowed(tenant, "tool", name)))

    def require_agents(self, tenant: str, names: Iterable[str]) -> None:
        """
        Return when the tenant may start child sessions of these agents.

        Raises:
            Permanent: it may not start one of them.
        """
        agents = self._of(tenant)[0]
        for name in names:
            if agents is not None and name not in agents:
                raise Permanent(str(NotAllowed(tenant, "agent", name)))

    def _of(self, tenant: str) -> tuple[frozenset[str] | None, frozenset[str] | None]:
        if time.monotonic() >= self._until:
            with self._lock:
                if time.monotonic() >= self._until:
                    self._known = self._read()
                    self._until = time.monotonic() + _FRESH_S
        return self._known.get(tenant, (None, None))
