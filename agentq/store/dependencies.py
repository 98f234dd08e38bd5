"""Dependencies as the fleet's database knows them: one breaker for each, and one for each tenant's access."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from psycopg.types.json import Jsonb

from agentq.store.operators import record
from agentq.store.pool import ALL_TENANTS, Store, run
from agentq.store.queries import load

SQL = load("dependencies")

FLEET = ALL_TENANTS  # whose breaker: all tenants', as in `agentq.store.schema.dependencies`

State = Literal["closed", "open", "half_open", "forced_open", "forced_shut"]
Answer = Literal["good", "bad", "nothing"]
Scope = tuple[str, str]  # tenant ('*': the fleet), name


@dataclass(frozen=True, slots=True)
class Report:
    """What one process saw of one breaker's dependency since it last told."""

    scope: Scope
    ok: int = 0
    bad: int = 0
    refused: int = 0
    retry_after_s: float | None = None
    failure: dict[str, Any] | None = None

    def __add__(self, later: Report) -> Report:
        waits = [wait for wait in (self.retry_after_s, later.retry_after_s) if wait is not None]
        return Report(
            self.scope,
            self.ok + later.ok,
            self.bad + later.bad,
            self.refused + later.refused,
            max(waits, default=None),
            later.failure or self.failure,
        )


@dataclass(frozen=True, slots=True)
class Breaker:
    """A breaker that is not simply closed. `watched`: closed, a tenant's own, with failures in its window."""

    scope: Scope
    state: State
    wait_s: float | None
    watched: bool


@dataclass(frozen=True, slots=True)
class ProbeClaim:
    """Whether to try: without a probe, it is closed by now; not granted, come back in `wait_s`."""

    granted: bool
    probe: uuid.UUID | None
    wait_s: float | None


@dataclass(frozen=True, slots=True)
class DependencyRow:
    """A breaker as operators see it."""

    name: str
    tenant: str | None
    state: State
    since: datetime
    seen_at: datetime
    next_probe_at: datetime | None
    forced_until: datetime | None
    pause_s: float
    good: int
    window_ok: int
    window_bad: int
    ok_total: int
    bad_total: int
    refused_total: int
    openings: int
    last_failure: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class DependencyChange:
    """One opening, closing or operator's word."""

    at: datetime
    name: str
    tenant: str | None
    state: State
    why: str


class Breakers:
    """
    The breakers in Postgres. `rules` are those of `agentq.policies.dependencies`, as JSON.

    `worker` tells which process asks, whose death then gives up the places that it holds.
    """

    def __init__(
        self, store: Store, rules: dict[str, float], worker: Callable[[], uuid.UUID | None] = lambda: None
    ) -> None:
        self.store = store
        self._worker = worker
        self._rules = rules

    def report(self, reports: Iterable[Report]) -> list[Breaker]:
        """Add what this process saw; every breaker that is not simply closed, of all scopes."""
        counted = [
            {
                "tenant": report.scope[0],
                "name": report.scope[1],
                "ok": report.ok,
                "bad": report.bad,
                "refused": report.refused,
                "retry_after_s": report.retry_after_s,
                "failure": report.failure,
            }
            for report in reports
        ]
        rows = self.store.query(SQL["report"], {"reports": Jsonb(counted), "rules": Jsonb(self._rules)})
        return [Breaker((row[0], row[1]), row[2], row[3], row[4]) for row in rows]

    def claim_probe(self, scope: Scope) -> ProbeClaim:
        """Ask to be one of the few who try; K at a time in the whole fleet."""
        parameters = _scoped(scope) | {"probe": uuid.uuid4(), "worker": self._worker(), "rules": Jsonb(self._rules)}
        [row] = self.store.query(SQL["claim_probe"], parameters)
        return ProbeClaim(*row)

    def end_probe(
        self,
        scope: Scope,
        probe: uuid.UUID,
        answer: Answer,
        *,
        retry_after_s: float | None = None,
        failure: dict[str, Any] | None = None,
    ) -> State:
        """Tell what the probe came to; the breaker's state by it."""
        parameters = _scoped(scope) | {
            "probe": probe,
            "answer": answer,
            "retry_after_s": retry_after_s,
            "failure": Jsonb(failure) if failure is not None else None,
            "rules": Jsonb(self._rules),
        }
        state: State = self.store.query(SQL["end_probe"], parameters)[0][0]
        return state

    def force(
        self,
        scope: Scope,
        state: Literal["forced_open", "forced_shut", "auto"],
        *,
        for_s: float | None,
        operator: str,
        reason: str,
    ) -> tuple[State, State]:
        """Put a breaker into a state by hand, or give it back; what it was, and what it is. Audited."""
        tenant, name = scope
        with self.store.transaction(ALL_TENANTS) as connection:
            why = f"{operator}: {reason}"
            parameters = {"state": state, "for_s": for_s, "why": why, "rules": Jsonb(self._rules)}
            [(before, after)] = run(connection, SQL["force"], _scoped(scope) | parameters)
            record(
                connection,
                operator=operator,
                tenant=None if tenant == FLEET else tenant,
                action=f"dependency {state.removeprefix('forced_')}",
                target=name,
                reason=reason,
                detail={"before": before, "after": after, "for_s": for_s},
            )
        return before, after

    def ls(self, name: str | None = None) -> list[DependencyRow]:
        """Every breaker by name, the fleet's before the tenants'."""
        return [DependencyRow(*row) for row in self.store.query_as(ALL_TENANTS, SQL["ls"], {"name": name})]

    def out_of_order(self, tenants: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
        """By tenant, the name and state of each breaker of its own that holds calls back."""
        found: dict[str, list[tuple[str, str]]] = {}
        for tenant, name, state in self.store.query_as(ALL_TENANTS, SQL["out_of_order"], {"tenants": list(tenants)}):
            found.setdefault(tenant, []).append((name, state))
        return found

    def changes(self, name: str, limit: int = 20) -> list[DependencyChange]:
        """The latest changes of a dependency's breakers, newest first."""
        parameters = {"name": name, "limit": limit}
        return [DependencyChange(*row) for row in self.store.query_as(ALL_TENANTS, SQL["changes"], parameters)]


def _scoped(scope: Scope) -> dict[str, Any]:
    return {"tenant": scope[0], "name": scope[1]}
