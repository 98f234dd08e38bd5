"""Effects as operators work with them: listed, looked at, and told what became of those that nobody knows."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from psycopg.types.json import Jsonb

from agentq.store import sealing
from agentq.store.operators import record
from agentq.store.pool import ALL_TENANTS, Row, Store, run
from agentq.store.queries import load
from agentq.store.vault import Vault

SQL = load("effects")

Resolution = Literal["resolved", "already", "settled", "running", "missing"]


@dataclass(frozen=True, slots=True)
class EffectRow:
    """An effect as operators see it. `held`: the step that called it runs now."""

    tenant: str
    key: str
    name: str
    state: str
    calls: int
    session_id: uuid.UUID
    step_id: uuid.UUID
    step: str | None
    session_state: str
    failure: dict[str, Any] | None
    resolved_by: str | None
    claimed_at: datetime
    settled_at: datetime | None
    held: bool
    result: bytes | None


class EffectDesk:
    """The effect ledger from outside the fleet."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def ls(
        self, states: list[str], *, tenant: str | None = None, session: uuid.UUID | None = None, limit: int = 50
    ) -> list[EffectRow]:
        """The newest effects in these states, without their results."""
        parameters = {"tenant": tenant, "states": states, "session": session, "limit": limit}
        return [
            _row(self.store.vault, row)
            for row in self.store.query_as(tenant or ALL_TENANTS, SQL["effects"], parameters)
        ]

    def find(self, key: str, tenant: str | None = None) -> list[EffectRow]:
        """The effect of that key; two, when several tenants have one and none is named."""
        rows = self.store.query_as(tenant or ALL_TENANTS, SQL["effect"], {"key": key, "tenant": tenant})
        return [_row(self.store.vault, row) for row in rows]

    def resolve(
        self, tenant: str, key: str, *, result: bytes | None, operator: str, reason: str, dry_run: bool
    ) -> tuple[Resolution, str | None]:
        """
        Tell what became of it: `result` when it happened, None when it did not. What came of that, and what it was.

        The same answer twice changes nothing. The audit row is written with it.
        """
        failure = None
        if result is None:
            failure = {"kind": "resolved", "type": "NotDone", "message": f"{operator} found that it did not happen"}
        stored = self.store.vault.seal(tenant, sealing.effect_result(key), result)
        with self.store.transaction(tenant) as connection:
            [(outcome, before)] = run(
                connection,
                SQL["resolve_effect"],
                {
                    "tenant": tenant,
                    "key": key,
                    "done": result is not None,
                    "result": stored,
                    "failure": Jsonb(failure) if failure else None,
                    "by": operator,
                    "dry": dry_run,
                },
            )
            if outcome == "resolved" and not dry_run:
                record(
                    connection,
                    operator=operator,
                    tenant=tenant,
                    action="effect resolve",
                    target=key,
                    reason=reason,
                    detail={"before": before, "after": "done" if result is not None else "failed"},
                )
        return outcome, before


def _row(vault: Vault, row: Row) -> EffectRow:
    found = EffectRow(*(*row[:13], bool(row[13]), row[14]))  # no such step any more: not held
    return replace(
        found,
        failure=vault.open_failure(found.tenant, found.failure),
        result=vault.show(found.tenant, sealing.effect_result(found.key), found.result),
    )
