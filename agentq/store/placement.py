"""Placement as rows: which queue carries a tenant's steps, and which group of workers serves it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agentq.store.pool import ALL_TENANTS, Connection, Store, run
from agentq.store.queries import load

SQL = load("placement")

# Whoever publishes may know of a move only after so long; messages it sent meanwhile are still consumed.
LINGER_S = 10.0
# Of a tenant that has moved, publishers are told so long, and what it has left goes afterwards.
LATELY_S = 20.0
_REMOVE_AFTER_S = LATELY_S
_BATCH = 1000


@dataclass(frozen=True, slots=True)
class DesertedRow:
    """A group that no live worker serves: its tenants, one of them by name, and how many of their steps are due."""

    group: str
    tenants: int
    tenant: str
    due: int


class Placement:
    """Decides queues where nobody has yet, and tells which there are."""

    def __init__(self, store: Store, *, own_max: int = 200, shards: int = 32) -> None:
        self.store = store
        self._terms = {"own_max": own_max, "shards": shards}

    def place_new(self) -> int:
        """Place the tenants that nobody has placed; how many."""
        count = 0
        while placed := self.store.query(SQL["place"], self._terms | {"names": None, "max": _BATCH}):
            count += len(placed)
        return count

    def place_again(self, names: list[str], *, dry_run: bool = False) -> dict[str, str]:
        """Place these anew by the settings as they are now; each one's queue."""
        parameters = self._terms | {"names": names, "max": max(len(names), 1)}
        with self.store.transaction(ALL_TENANTS) as connection, connection.transaction(force_rollback=dry_run):
            return dict(run(connection, SQL["place"], parameters))

    def change(self, connection: Connection, name: str, *, placement: str | None, group: str | None) -> str | None:
        """Move a tenant, within somebody's transaction; its queue, None when there is no such tenant."""
        parameters = self._terms | {"name": name, "placement": placement, "group": group}
        found: str | None = run(connection, SQL["change"], parameters)[0][0]
        return found

    def queues_of(self, tenants: Iterable[str]) -> dict[str, str]:
        """
        The queue of each of these tenants that there is, and of those that have moved of late.

        One that nobody has placed is placed now.
        """
        parameters = {"names": sorted(tenants), "lately_s": LATELY_S}
        found: dict[str, str | None] = dict(self.store.query(SQL["queues_of"], parameters))
        new = [name for name, queue in found.items() if queue is None]
        placed = self.place_again(new) if new else {}
        return {name: queue for name, queue in {**found, **placed}.items() if queue is not None}

    def followed(self, group: str) -> list[str]:
        """The queues that the workers of a group listen to."""
        return [row[0] for row in self.store.query(SQL["followed"], {"group": group, "linger_s": LINGER_S})]

    def left_behind(self) -> list[tuple[str, str, bool]]:
        """Queues that a tenant left long enough ago: tenant, queue, and whether somebody uses it now."""
        rows = self.store.query(SQL["left_behind"], {"age_s": _REMOVE_AFTER_S})
        return [(row[0], row[1], row[2]) for row in rows]

    def forget(self, tenant: str, queue: str) -> None:
        """A queue that a tenant left is gone."""
        self.store.query(SQL["forget"], {"name": tenant, "queue": queue})

    def is_served(self, group: str) -> bool:
        """Whether a live worker serves the group's tenants."""
        return bool(self.store.query(SQL["is_served"], {"group": group})[0][0])

    def deserted(self) -> list[DesertedRow]:
        """Groups with tenants and without a live worker."""
        return [DesertedRow(*row) for row in self.store.query_as(ALL_TENANTS, SQL["deserted"], {})]
