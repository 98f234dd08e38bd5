"""Tenants as producers and operators change them, and who is acting."""

from __future__ import annotations

import getpass
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from agentq.broker.publisher import Publisher
from agentq.errors import BrokerUnavailable, InvalidInput
from agentq.settings import Settings
from agentq.step import valid_name
from agentq.store.budgets import Budgets, WindowRow
from agentq.store.ledger import DepthPlace, Ledger, QueueDepth
from agentq.store.operators import Operators, TenantRow
from agentq.store.placement import Placement

log = logging.getLogger("agentq.client")


@dataclass(frozen=True, slots=True)
class TenantPage:
    """Some tenants, the open windows of those that have budgets, and where the next page begins; None: that was all."""

    rows: list[QueueDepth]
    windows: dict[str, list[WindowRow]]
    more: DepthPlace | None


class Tenants:
    """The tenant table, editable while the fleet runs."""

    def __init__(self, operators: Operators, settings: Settings, placement: Placement, publisher: Publisher) -> None:
        self._operators = operators
        self._ledger = Ledger(operators.store)
        self._budgets = Budgets(operators.store)
        self._settings = settings
        self._placement = placement
        self._publisher = publisher

    def add(
        self,
        name: str,
        *,
        concurrency: int | None = None,
        weight: float = 1.0,
        queue: str | None = None,
        group: str | None = None,
        reason: str = "added",
    ) -> bool:
        """
        Add a tenant; False when it was there already, unchanged. Workers listen to it within a second.

        `queue` and `group` are those of `set`.
        """
        valid_name("tenant", name)
        cap = self._settings.tenant_concurrency if concurrency is None else concurrency
        _check_limits(cap, weight)
        _check_place(queue, group)
        return self._operators.add_tenant(
            name,
            concurrency=cap,
            weight=weight,
            operator=operator_name(),
            reason=reason,
            place=lambda connection: self._placement.change(connection, name, placement=queue, group=group),
            detail=_told(queue, group),
        )

    def set(
        self,
        name: str,
        *,
        concurrency: int | None = None,
        weight: float | None = None,
        state: str | None = None,
        preapprove: Sequence[str] | None = None,
        agents: Sequence[str] | None = None,
        tools: Sequence[str] | None = None,
        retention_days: int | None = None,
        memory_days: int | None = None,
        trace_content: str | None = None,
        queue: str | None = None,
        group: str | None = None,
        reason: str,
    ) -> None:
        """
        Change what is given: `state` is active, paused or draining; `preapprove` names the irreversible
        effects that need nobody's leave, all of them. `agents` and `tools` are those that it may use, an
        empty list for every one; ended sessions are removed after `retention_days`, 0 for never, and memories
        `memory_days` after they were written: 0 for never, -1 (as it begins) for as long as sessions.
        `trace_content` is off, kept or exported, or fleet: as the settings say.

        `queue` is own, shard (shared with others), or auto: its own while its group has few tenants. `group` names
        the workers that serve it, and no others: `agentq worker --group`. It moves while it runs; what waits in
        the queue that it leaves is sent again to the new one.

        Raises:
            UnknownTenant, InvalidInput: there is none, or a value is out of range.
        """
        _check_limits(concurrency, weight)
        if retention_days is not None and not 0 <= retention_days <= 36_500:
            raise InvalidInput("retention_days is a whole number of days, or 0 for ever")
        if memory_days is not None and not -1 <= memory_days <= 36_500:
            raise InvalidInput("memory_days is a whole number of days, 0 for ever, or -1 for as long as sessions")
        if trace_content not in (None, "off", "kept", "exported", "fleet"):
            raise InvalidInput(f"trace_content is off, kept, exported or fleet, not {trace_content!r}")
        if state not in (None, "active", "paused", "draining"):
            raise InvalidInput(f"a tenant is active, paused or draining, not {state!r}")
        _check_place(queue, group)
        moves = queue is not None or group is not None
        self._operators.change_tenant(
            valid_name("tenant", name),
            concurrency=concurrency,
            weight=weight,
            state=state,
            preapproved=list(preapprove) if preapprove is not None else None,
            agents=_agents(agents),
            tools=sorted({name.strip() for name in tools if name.strip()}) if tools is not None else None,
            retention_days=retention_days,
            memory_days=memory_days,
            trace_content=trace_content,
            place=(lambda on: self._placement.change(on, name, placement=queue, group=group)) if moves else None,
            detail=_told(queue, group),
            operator=operator_name(),
            reason=reason,
        )

    def place_again(self, *, reason: str, dry_run: bool = False) -> dict[str, tuple[str | None, str]]:
        """
        Place every tenant anew, by the settings as they are now; those that moved: from which queue to which.

        For when `own_queues_max` or `queue_shards` were changed, which by themselves move nobody.
        """
        before = {row.name: row.queue for row in self.ls()}
        placed = self._placement.place_again(list(before), dry_run=dry_run)
        moved = {name: (before[name], queue) for name, queue in sorted(placed.items()) if before[name] != queue}
        if moved and not dry_run:
            self._operators.record_action(
                operator=operator_name(), tenant=None, action="queue place", target="all tenants", reason=reason,
                detail={"moved": len(moved)},
            )  # fmt: skip
        return moved

    def erase(self, name: str, *, reason: str) -> dict[str, int]:
        """
        Remove all sessions of a paused tenant, what they left, and its memories; what is left, by table, as proof.

        Kept: its record, its budgets, and what it was charged. Its queues are emptied and removed; of those that
        the broker keeps because it is away (`queues_left`) a worker's relay does so once it is back.

        Raises:
            UnknownTenant, InvalidInput: there is none, or it is not paused.
        """
        return self._operators.erase_tenant(
            valid_name("tenant", name),
            operator=operator_name(),
            reason=reason,
            remove_queues=self._remove_queues,
        )

    def _remove_queues(self, queues: list[str]) -> dict[str, int]:
        removed = 0
        try:
            for queue in queues:
                self._publisher.purge(queue)
                self._publisher.remove(queue)
                removed += 1
        except BrokerUnavailable as error:
            log.warning("%s are left in the broker, and a relay removes them later: %s", queues[removed:], error)
        return {"queues_removed": removed, "queues_left": len(queues) - removed}

    def ls(
        self, *, match: str | None = None, state: str | None = None, after: str = "", limit: int | None = None
    ) -> list[TenantRow]:
        """
        Tenants by name: every one, or those whose name has `match` in it and that are in a state.

        For a page of so many, `limit` and `after`, the last name of the page before.
        """
        return self._operators.tenants(match=match, state=state, after=after, limit=limit)

    def get(self, name: str) -> TenantRow | None:
        """One tenant; None when there is none of that name."""
        return self._operators.tenant(valid_name("tenant", name))

    def page(
        self, *, match: str | None = None, state: str | None = None, after: DepthPlace | None = None, limit: int = 50
    ) -> TenantPage:
        """Tenants with their work and the state of their budgets: whoever waits longest first, the idle by name."""
        page = self._ledger.queue_depths(limit=limit, match=match, state=state, after=after)
        windows: dict[str, list[WindowRow]] = {}
        for window in self._budgets.windows_of([row.tenant for row in page.rows]):
            windows.setdefault(window.tenant, []).append(window)
        return TenantPage(page.rows, windows, page.more)

    def has(self, name: str) -> bool:
        """Whether there is such a tenant."""
        return self._operators.is_tenant(name)


_acting: ContextVar[str | None] = ContextVar("agentq_operator", default=None)


@contextmanager
def acting_as(name: str) -> Iterator[None]:
    """Within the block, what this thread or coroutine changes is recorded under this name: a face's user."""
    token = _acting.set(name)
    try:
        yield
    finally:
        _acting.reset(token)


def operator_name() -> str:
    """Who acts, for the record: whom `acting_as` names, else `AGENTQ_OPERATOR`, else the login name."""
    if (acting := _acting.get()) is not None:
        return acting
    try:
        return os.environ.get("AGENTQ_OPERATOR") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _agents(agents: Sequence[str] | None) -> list[str] | None:
    return sorted({valid_name("agent", name) for name in agents}) if agents is not None else None


def _check_place(queue: str | None, group: str | None) -> None:
    if queue not in (None, "auto", "own", "shard"):
        raise InvalidInput(f"a tenant's queue is auto, own or shard, not {queue!r}")
    if group is not None and valid_name("group", group) == "quarantine":
        raise InvalidInput("quarantine serves suspects of every tenant, and no tenant by itself")


def _told(queue: str | None, group: str | None) -> dict[str, str]:
    return {field: value for field, value in (("queue", queue), ("group", group)) if value is not None}


def _check_limits(concurrency: int | None, weight: float | None) -> None:
    if concurrency is not None and not 1 <= concurrency <= 100_000:
        raise InvalidInput("concurrency is a whole number from 1 to 100,000")
    if weight is not None and not 0 < weight <= 1000:
        raise InvalidInput("weight is a number above 0, at most 1000")
