"""Anomalies as rows: what sessions used, what is normal, what was not, and what operators want done about it."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from psycopg.types.json import Jsonb

from agentq.store.operators import record
from agentq.store.pool import ALL_TENANTS, Connection, Store, run, schema_errors
from agentq.store.queries import load

SQL = load("anomalies")

# Tenant, agent and version: whose sessions are compared with each other.
Whose = tuple[str, str, int]
# So many runs, and what is known of them.
Known = tuple[int, dict[str, Any]]

# A place in the list, newest first.
Place = tuple[datetime, uuid.UUID]
_EARLIEST, _LATEST = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Tally:
    """What a session has used, and whether it has ended."""

    tenant: str
    session_id: uuid.UUID
    agent: str
    agent_version: int
    steps: int
    failures: int
    tokens: int
    cost_micros: int
    busy_ms: int
    tools: dict[str, int] | None
    classes: dict[str, int] | None
    state: str = "running"
    first_run: bool = True
    ended_at: datetime | None = None

    @property
    def whose(self) -> Whose:
        """The baseline it is compared with."""
        return self.tenant, self.agent, self.agent_version


@dataclass(frozen=True, slots=True)
class AnomalyRow:
    """A session, or an hour of an agent, that was not as usual."""

    tenant: str
    anomaly_id: uuid.UUID
    session_id: uuid.UUID
    agent: str
    agent_version: int
    measure: str
    rule: str
    value: float
    low: float
    high: float
    runs: int
    why: str
    running: bool
    parked: bool
    state: str
    found_at: datetime
    seen_at: datetime
    muted_at: datetime | None
    muted_by: str | None
    session_state: str


@dataclass(frozen=True, slots=True)
class OrderRow:
    """What an operator wants done about anomalies of an agent and measure; empty: of all."""

    tenant: str
    agent: str
    measure: str
    action: str
    until: datetime | None
    operator: str
    reason: str
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class BaselineRow:
    """What is normal for an agent's version, as it is stored."""

    tenant: str
    agent: str
    agent_version: int
    runs: int
    facts: dict[str, Any]
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class Raised:
    """What became of a finding: `fresh` when it was not known before."""

    fresh: bool
    anomaly_id: uuid.UUID
    state: str
    parked: bool


class Anomalies:
    """Tallies, baselines, what stands out, and orders."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def running(self, limit: int) -> list[Tally]:
        """Live sessions that are to be looked at; each is handed out once until it has gone on."""
        return [Tally(*row[:11]) for row in self.store.query(SQL["running"], {"max": limit})]

    @contextmanager
    def ended(self, limit: int) -> Iterator[tuple[Connection, list[Tally]]]:
        """Sessions that ended, and the transaction that learns from them: each once, or again after a crash."""
        with self.store.transaction(ALL_TENANTS) as connection:
            yield connection, [Tally(*row) for row in run(connection, SQL["ended"], {"max": limit})]

    def sweep(self) -> None:
        """Remove what attempts left that ended after their session was judged."""
        self.store.query_as(ALL_TENANTS, SQL["strays"], {})

    def baselines_of(self, whose: Collection[Whose]) -> dict[Whose, Known]:
        """Runs and facts of these agents' versions; of one that nothing is known of, none."""
        rows = self.store.query_as(ALL_TENANTS, SQL["baselines_of"], _each(whose))
        found: dict[Whose, Known] = {(row[0], row[1], row[2]): (row[3], row[4]) for row in rows}
        return {one: found.get(one, (0, {})) for one in whose}

    def hold(self, connection: Connection, whose: Collection[Whose]) -> dict[Whose, Known]:
        """The same, held until the transaction ends, in the order of their names."""
        rows = run(connection, SQL["hold_baselines"], _each(whose))
        return {(row[0], row[1], row[2]): (row[3], row[4]) for row in rows}

    def learn(self, connection: Connection, learned: Mapping[Whose, Known]) -> None:
        """Write baselines that are held."""
        rows = [{**_of(whose), "runs": runs, "facts": facts} for whose, (runs, facts) in learned.items()]
        run(connection, SQL["learn"], {"learned": Jsonb(rows)})

    def raise_(
        self,
        tally: Tally,
        *,
        session: uuid.UUID,
        measure: str,
        rule: str,
        value: float,
        low: float,
        high: float,
        runs: int,
        why: str,
        running: bool,
        channels: Sequence[str],
        connection: Connection | None = None,
    ) -> Raised:
        """Write a finding down, and do what the operator's order says."""
        parameters = {
            "tenant": tally.tenant, "session": session, "agent": tally.agent, "version": tally.agent_version,
            "measure": measure, "rule": rule, "value": value, "low": low, "high": high, "runs": runs, "why": why,
            "running": running, "channels": list(channels),
        }  # fmt: skip
        if connection is not None:
            [row] = run(connection, SQL["raise"], parameters)
        else:
            [row] = self.store.query(SQL["raise"], parameters)
        return Raised(*row)

    def ls(
        self,
        *,
        tenant: str | None = None,
        agent: str | None = None,
        state: str | None = None,
        session: uuid.UUID | None = None,
        between: tuple[uuid.UUID, uuid.UUID] | None = None,
        since: datetime | None = None,
        before: Place | None = None,
        limit: int = 50,
    ) -> list[AnomalyRow]:
        """The newest first, of those that stand before a place in the list."""
        low, high = between or (None, None)
        at, anomaly_id = before or (_LATEST, uuid.UUID(int=0))
        parameters: dict[str, Any] = {"tenant": tenant, "agent": agent, "state": state, "session": session}
        parameters |= {"low": low, "high": high, "since": since or _EARLIEST, "limit": limit}
        parameters |= {"before_at": at, "before_id": anomaly_id}
        by = "id" if between else "session" if session is not None else "tenant" if tenant is not None else "all"
        with self.store.transaction(tenant or ALL_TENANTS) as connection, schema_errors():
            run(connection, SQL["by_index"], {})
            return [AnomalyRow(*row) for row in run(connection, SQL[f"list_{by}"], parameters)]

    def set_state(self, row: AnomalyRow, state: str, *, operator: str, reason: str) -> bool:
        """Mute it or take that back; False when it is so already."""
        with self.store.transaction(row.tenant) as connection:
            parameters = {"tenant": row.tenant, "anomaly": row.anomaly_id, "state": state, "operator": operator}
            if not run(connection, SQL["set_state"], parameters):
                return False
            record(
                connection,
                operator=operator,
                tenant=row.tenant,
                action="anomaly mute" if state == "muted" else "anomaly unmute",
                target=str(row.anomaly_id),
                reason=reason,
                detail={"session": str(row.session_id), "measure": row.measure},
            )
            return True

    def order(
        self,
        tenant: str,
        agent: str,
        measure: str,
        action: str | None,
        *,
        for_s: float | None,
        operator: str,
        reason: str,
    ) -> bool:
        """Set what is done from now on, or take the order back (None); False when there was none to take back."""
        whose = {"tenant": tenant, "agent": agent, "measure": measure}
        with self.store.transaction(ALL_TENANTS) as connection:
            if action is None:
                if not run(connection, SQL["end_order"], whose):
                    return False
            else:
                more = {"action": action, "for_s": for_s, "operator": operator, "reason": reason}
                run(connection, SQL["set_order"], whose | more)
            record(
                connection,
                operator=operator,
                tenant=None if tenant == ALL_TENANTS else tenant,
                action="anomaly set",
                target=" ".join(filter(None, (tenant, agent, measure))),
                reason=reason,
                detail={"action": action, "for_s": for_s},
            )
            return True

    def orders(self) -> list[OrderRow]:
        """What operators want done, by tenant and agent."""
        return [OrderRow(*row) for row in self.store.query_as(ALL_TENANTS, SQL["orders"], {})]

    def baselines(self, tenant: str | None = None, agent: str | None = None) -> list[BaselineRow]:
        """What is normal, by tenant, agent and version."""
        rows = self.store.query_as(tenant or ALL_TENANTS, SQL["baselines"], {"tenant": tenant, "agent": agent})
        return [BaselineRow(*row) for row in rows]

    def open(self) -> dict[str, int]:
        """How many are open, by measure."""
        return {row[0]: row[1] for row in self.store.query_as(ALL_TENANTS, SQL["open_count"], {})}


def _of(whose: Whose) -> dict[str, Any]:
    tenant, agent, version = whose
    return {"tenant": tenant, "agent": agent, "version": version}


def _each(whose: Collection[Whose]) -> dict[str, Any]:
    """Sorted, because that is the order in which rows are held."""
    tenants, agents, versions = zip(*sorted(whose), strict=True)
    return {"tenants": list(tenants), "agents": list(agents), "versions": list(versions)}
