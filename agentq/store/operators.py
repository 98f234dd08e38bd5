"""Tenants as records, the record of operators' actions, and refused submissions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from agentq.errors import InvalidInput, UnknownTenant
from agentq.payload import storable
from agentq.store.pool import ALL_TENANTS, Connection, Row, Store, run
from agentq.store.queries import load
from agentq.store.turn import Turn
from agentq.store.vault import FLEET as FLEET_KEYS
from agentq.store.vault import SQL as KEYS

SQL = load("operators")
TOKENS = load("tokens")
MEMORY = load("memory")

_REFUSED = ("refused_submission.body",)
_ERASED = ("sessions", "checkpoints", "messages", "effects", "traces", "dead_letters", "reservations", "memories",
           "steps", "branches", "events", "decisions", "approvals", "notices", "poison", "refused", "anomalies",
           "tallies", "costs", "keys")  # fmt: skip


@dataclass(frozen=True, slots=True)
class TenantRow:
    """A tenant's settings, editable while the fleet runs."""

    name: str
    state: str
    concurrency: int
    weight: float
    created_at: datetime
    preapproved: list[str]
    agents: list[str] | None = None
    tools: list[str] | None = None
    retention_days: int | None = None
    memory_days: int | None = None
    trace_content: str | None = None
    group: str = "default"
    placement: str = "auto"
    queue: str | None = None


@dataclass(frozen=True, slots=True)
class ActionRow:
    """What an operator did, and why."""

    action_id: int
    at: datetime
    operator: str
    tenant: str | None
    action: str
    target: str
    reason: str
    detail: dict[str, Any] | None


class Operators:
    """What people change by hand. Every write leaves a row that says who and why."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def add_tenant(
        self,
        name: str,
        *,
        concurrency: int,
        weight: float,
        operator: str,
        reason: str,
        place: Callable[[Connection], str | None] | None = None,
        detail: dict[str, Any] | None = None,
    ) -> bool:
        """Add a tenant; False when it was there already, unchanged. `place` gives it a queue."""
        with self.store.transaction(ALL_TENANTS) as connection:
            parameters = {"name": name, "concurrency": concurrency, "weight": weight}
            if not run(connection, SQL["add_tenant"], parameters):
                return False
            if place is not None:
                place(connection)
            record(
                connection,
                operator=operator,
                tenant=name,
                action="tenant add",
                target=name,
                reason=reason,
                detail={"concurrency": concurrency, "weight": weight} | (detail or {}),
            )
            return True

    def change_tenant(
        self,
        name: str,
        *,
        operator: str,
        reason: str,
        concurrency: int | None = None,
        weight: float | None = None,
        state: str | None = None,
        preapproved: list[str] | None = None,
        agents: list[str] | None = None,
        tools: list[str] | None = None,
        retention_days: int | None = None,
        memory_days: int | None = None,
        trace_content: str | None = None,
        place: Callable[[Connection], str | None] | None = None,
        detail: dict[str, Any] | None = None,
    ) -> None:
        """
        Change what is given; `place` moves it, `detail` tells of that. Workers follow within a relay round.

        Raises:
            UnknownTenant: there is none of that name.
        """
        change = {"concurrency": concurrency, "weight": weight, "state": state, "preapproved": preapproved}
        change |= {"agents": agents, "tools": tools, "retention_days": retention_days}
        change |= {"memory_days": memory_days, "trace_content": trace_content}
        with self.store.transaction(ALL_TENANTS) as connection:
            if not run(connection, SQL["change_tenant"], change | {"name": name}):
                raise UnknownTenant(name)
            given = {field: value for field, value in change.items() if value is not None} | (detail or {})
            if place is not None:
                given["placed"] = place(connection)
            record(
                connection,
                operator=operator,
                tenant=name,
                action="tenant set",
                target=name,
                reason=reason,
                detail=given,
            )

    def tenants(
        self, *, match: str | None = None, state: str | None = None, after: str = "", limit: int | None = None
    ) -> list[TenantRow]:
        """Tenants by name, after one: all, or those with a part of a name and a state."""
        parameters = {"match": match, "state": state, "after": after, "limit": limit}
        return [TenantRow(*row) for row in self.store.query(SQL["tenants"], parameters)]

    def tenant(self, name: str) -> TenantRow | None:
        """One tenant."""
        rows = self.store.query(SQL["tenant"], {"name": name})
        return TenantRow(*rows[0]) if rows else None

    def known(self, names: Sequence[str]) -> set[str]:
        """Which of these tenants there are."""
        return {row[0] for row in self.store.query(SQL["known"], {"names": list(names)})}

    def is_tenant(self, name: str) -> bool:
        """Whether the tenant is in the table."""
        return bool(self.store.query_as(ALL_TENANTS, SQL["is_tenant"], {"name": name})[0][0])

    def remove_expired(self, limit: int, turn: Turn | None = None) -> dict[str, int]:
        """Remove a batch of sessions older than their tenants keep them, of those whose turn it is; how many."""
        turn = turn or Turn()
        return turn.take(self.store.query(SQL["remove_expired"], turn.parameters(limit)), limit)

    def erase_tenant(
        self,
        name: str,
        *,
        operator: str,
        reason: str,
        remove_queues: Callable[[list[str]], dict[str, int]] = lambda _: {},
    ) -> dict[str, int]:
        """
        Remove every session of a tenant, live or ended, all they left, and its memories; what is left, by table.

        It is closed first: no agent may be started for it until somebody says which (`change_tenant`). Then its
        data keys are destroyed: from there on nothing of it opens, wherever a copy lies, not even with the
        provider's key. Its own row, its budgets and what it was charged are kept. In batches, so a crash in the
        middle is mended by calling it again.

        `remove_queues` removes its queues from the broker, as far as that answers, and says how far it came. The relay
        does so too, later: whoever was just announcing a dead letter has done so by then.

        Raises:
            UnknownTenant: there is none.
            InvalidInput: it is not paused, or steps of it still run.
        """
        queues = self._close_tenant(name)
        with self.store.transaction(name) as connection:
            destroyed = len(run(connection, KEYS["destroy"], {"tenant": name}))
        self.store.query_as(ALL_TENANTS, TOKENS["revoke_of_tenant"], {"tenant": name})
        self.store.vault.forget(name)
        removed = self._remove_all(name)
        self._close_tenant(name)  # once more: a start that had passed the door before has committed by now
        removed += self._remove_all(name)
        memories = 0
        while batch := int(self.store.query(MEMORY["remove"], {"tenant": name, "max": 500})[0][0]):
            memories += batch
        self.store.query_as(name, SQL["forget_refused"], {"tenant": name})
        [counts] = self.store.query_as(name, SQL["left"], {"tenant": name})
        left = dict(zip(_ERASED, counts, strict=True))
        gone = {"memories_removed": memories, "keys_destroyed": destroyed} | remove_queues(queues)
        detail = {"sessions_removed": removed, "left": left} | gone
        self.record_action(
            operator=operator, tenant=name, action="tenant erase", target=name, reason=reason, detail=detail
        )
        return {"removed": removed} | gone | left

    def _close_tenant(self, name: str) -> list[str]:
        """Let nothing in any more, and note that its queues are to go; which those are."""
        with self.store.transaction(ALL_TENANTS) as connection:
            found = run(connection, SQL["to_erase"], {"name": name})
            if not found:
                raise UnknownTenant(name)
            state, running = found[0]
            if state != "paused":
                raise InvalidInput(f"tenant {name!r} is {state}: pause it first, and let its running steps end")
            if running:
                raise InvalidInput(
                    f"{running} steps of tenant {name!r} still run: let them end, or kill their sessions"
                )
            return list(run(connection, SQL["close_tenant"], {"name": name})[0])

    def _remove_all(self, name: str) -> int:
        removed = 0
        while batch := int(self.store.query(SQL["remove_all"], {"tenant": name, "max": 200})[0][0]):
            removed += batch
        return removed

    def restricted(self) -> dict[str, tuple[frozenset[str] | None, frozenset[str] | None]]:
        """The tenants that may not use every agent or every tool: what they may."""
        return {
            name: (_names(agents), _names(tools)) for name, agents, tools in self.store.query(SQL["restricted"], {})
        }

    def actions(
        self, *, tenant: str | None = None, operator: str | None = None, action: str | None = None, limit: int = 50
    ) -> list[ActionRow]:
        """What operators did, newest first; `action` may be the first word alone."""
        parameters = {"tenant": tenant, "operator": operator, "action": action, "limit": limit}
        rows = [ActionRow(*row) for row in self.store.query_as(tenant or ALL_TENANTS, SQL["actions"], parameters)]
        return [replace(row, detail=self.store.vault.open_audit(row.tenant, row.detail)) for row in rows]

    def record_action(
        self,
        *,
        operator: str,
        tenant: str | None,
        action: str,
        target: str,
        reason: str,
        detail: dict[str, Any] | None = None,
    ) -> None:
        """Leave the row that says who did what, when and why."""
        with self.store.transaction(ALL_TENANTS) as connection:
            record(
                connection,
                operator=operator,
                tenant=tenant,
                action=action,
                target=target,
                reason=reason,
                detail=detail,
            )

    def refuse_submission(self, *, tenant: str | None, reason: str, body: bytes) -> int:
        """Keep a submission that was not understood, with the reason; its number."""
        # Whose it is, is not known: the tenant is what it says itself.
        sealed = self.store.vault.seal(FLEET_KEYS, _REFUSED, body)
        parameters = {"tenant": tenant, "reason": reason, "body": sealed}
        return int(self.store.query_as(ALL_TENANTS, SQL["refuse_submission"], parameters)[0][0])

    def refused_submissions(self, limit: int = 50) -> list[Row]:
        """The newest refused submissions: number, when, tenant, reason, body."""
        rows = self.store.query_as(ALL_TENANTS, SQL["refused_submissions"], {"limit": limit})
        return [(*row[:4], self.store.vault.show(FLEET_KEYS, _REFUSED, row[4])) for row in rows]


def _names(names: list[str] | None) -> frozenset[str] | None:
    return frozenset(names) if names is not None else None


def record(
    connection: Connection,
    *,
    operator: str,
    tenant: str | None,
    action: str,
    target: str,
    reason: str,
    detail: dict[str, Any] | None,
) -> None:
    """Write the audit row in the transaction of the change itself."""
    run(
        connection,
        SQL["record_action"],
        {
            "operator": operator,
            "tenant": tenant,
            "action": action,
            "target": target,
            "reason": storable(reason),
            "detail": Jsonb(detail) if detail is not None else None,
        },
    )
