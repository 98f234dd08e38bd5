"""Figures of the whole fleet, as the ledger has them."""

from __future__ import annotations

from agentq.store.pool import ALL_TENANTS, Row, Store
from agentq.store.queries import load

SQL = load("metrics")


class Figures:
    """Each method is one short question to Postgres."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def ask(self, name: str, top: int = 20) -> list[Row]:
        """The rows of one question of `sql/metrics.sql`."""
        return self.store.query_as(ALL_TENANTS, SQL[name], {"top": top})
