"""
Resealing: what lies in plain, or under an older data key, sealed under the present one.

In batches while the fleet runs: a row that changes meanwhile is left to the next call, and one that does not
open is counted and left as it is. Messages of failures and facts of traces keep the key that they have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from agentq.errors import PayloadUnreadable
from agentq.payload import decode
from agentq.store import sealing
from agentq.store.pool import Row, Store
from agentq.store.queries import load
from agentq.store.vault import Place, Vault, row_of

SQL = load("resealing")

_BATCH = 200

# Of each kind: what its rows are told by, in the order of the query, and where its payload belongs.
_KINDS: dict[str, tuple[str, Callable[[dict[str, Any]], Place]]] = {
    "inputs": ("session_id", lambda at: sealing.input_of(at["session_id"])),
    "results": ("session_id", lambda at: sealing.result_of(at["session_id"])),
    "states": ("session_id step_id parent", lambda at: sealing.state_in(at["session_id"])),
    "step_results": ("session_id step_id branch", lambda at: sealing.result_of(at["session_id"], at["branch"])),
    "arguments": ("session_id step_id path", lambda at: sealing.args_at(at["session_id"], at["path"])),
    "branch_results": (
        "session_id join_step branch child_session",
        lambda at: (
            sealing.result_of(at["child_session"])
            if at["child_session"] is not None
            else sealing.result_of(at["session_id"], at["branch"])
        ),
    ),
    "effects": ("effect_key", lambda at: sealing.effect_result(at["effect_key"])),
    "messages": (
        "session_id seq step_id number",
        lambda at: sealing.message_of(at["session_id"], at["step_id"], at["number"]),
    ),
    "events": (
        "session_id event_id step_id kind",
        lambda at: sealing.event_of(at["session_id"], at["step_id"], at["kind"]),
    ),
    "memories": (
        "namespace key version digest fields",
        lambda at: sealing.memory_value(at["namespace"], at["key"], at["digest"]),
    ),
}

# Kinds of several payloads in a row: names of the columns after those by which it is told.
_WIDE = {
    "approvals": ("approval_id session_id name effect_key args_hash", "args question details edited diff"),
    "traces": ("session_id step_id fence ordinal ended_at", "input output"),
    "decisions": ("session_id step_id fence ordinal decided_at", "options picked why"),
}


@dataclass(slots=True)
class Resealed:
    """How many payloads of each kind were sealed anew, or would be; and how many do not open."""

    counts: dict[str, int] = field(default_factory=dict)
    unreadable: int = 0

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def reseal(store: Store, tenant: str, *, dry_run: bool = False) -> Resealed:
    """
    Go over all payloads of a tenant; interrupted, the same call again does the rest.

    Raises:
        KeyUnavailable: the provider does not answer.
    """
    found = Resealed()
    head = store.vault.head(tenant)
    for kind in (*_KINDS, *_WIDE):
        skip = 0
        while rows := _stale(store, kind, tenant, head, skip):
            changes = []
            for row in rows:
                try:
                    changes.append(_change(store.vault, tenant, kind, row))
                except PayloadUnreadable:
                    found.unreadable += 1
            found.counts[kind] = found.counts.get(kind, 0) + len(changes)
            skip += len(rows) if dry_run else len(rows) - _write(store, kind, tenant, changes)
    found.counts = {kind: count for kind, count in found.counts.items() if count}
    return found


def _stale(store: Store, kind: str, tenant: str, head: bytes, skip: int) -> list[Row]:
    parameters = {"tenant": tenant, "head": head, "max": _BATCH, "skip": skip}
    return store.query_as(tenant, SQL[f"stale_{kind}"], parameters)


def _change(vault: Vault, tenant: str, kind: str, row: Row) -> dict[str, Any]:
    """The row's update: what it is told by, what it holds now, and what it is to hold."""
    if kind in _WIDE:
        return _wide(vault, tenant, kind, row)
    names, place_of = _KINDS[kind]
    at = dict(zip(names.split(), row, strict=False))
    before = row[-1]
    place = place_of(at)
    if kind == "states":
        [plain] = sealing.open_states(vault, tenant, at["session_id"], (before,), at=at["step_id"])
        parent = at["parent"].bytes if at["parent"] is not None else bytes(16)
        known = row_of(before)
        bound = at["step_id"].bytes + parent if known is None else known
    else:
        plain, bound = vault.open(tenant, place, before), b""
    change = at | {"tenant": tenant, "before": before, "data": vault.seal(tenant, place, plain, row=bound)}
    return change | {"words": _words(vault, tenant, at, plain)} if kind == "memories" else change


def _words(vault: Vault, tenant: str, at: dict[str, Any], plain: bytes) -> str | None:
    """What a memory is found by, as the index may hold it; None: it is not searched."""
    value, fields = decode(plain), at["fields"]
    if fields is not None:
        value = [value.get(name) for name in fields] if fields and isinstance(value, dict) else None
        if value is None:
            return None
    return sealing.blind_text(vault, tenant, " ".join([at["key"].replace("_", " "), *_texts(value)]))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _wide(vault: Vault, tenant: str, kind: str, row: Row) -> dict[str, Any]:
    names, columns = (part.split() for part in _WIDE[kind])
    at = dict(zip(names, row, strict=False))
    held = dict(zip(columns, row[len(names) :], strict=True))
    change = at | {"tenant": tenant, "before": held.get("args"), "was": held.get("edited")}
    for column, value in held.items():
        place = _place(kind, at, column)
        if isinstance(value, str):
            change[column] = vault.seal_text(tenant, place, vault.open_text(tenant, place, value))
        else:
            change[column] = vault.seal(tenant, place, vault.open(tenant, place, value))
    return change


def _place(kind: str, at: dict[str, Any], column: str) -> Place:
    if kind == "approvals":
        return sealing.asked(at["session_id"], at["name"], at["effect_key"], at["args_hash"], column)
    of = sealing.traced if kind == "traces" else sealing.decided
    return of(at["session_id"], at["step_id"], at["fence"], at["ordinal"], column)


def _write(store: Store, kind: str, tenant: str, changes: list[dict[str, Any]]) -> int:
    """Write a batch; how many rows were as they had been read."""
    if not changes:
        return 0
    with store.transaction(tenant) as connection, connection.cursor(binary=True) as cursor:
        cursor.executemany(SQL[f"reseal_{kind}"].encode(), changes)
        return cursor.rowcount


__all__ = ["Resealed", "reseal"]
