"""Memories: what agents keep beyond a session; written in versions, found by words and by meaning."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import psycopg
from psycopg.types.json import Jsonb

from agentq.errors import ConfigError, FenceLost, MemoryConflict
from agentq.payload import decode
from agentq.store import sealing
from agentq.store.operators import record
from agentq.store.pool import Connection, Row, Store, run
from agentq.store.queries import load
from agentq.store.turn import Turn
from agentq.verdicts import Granted, MemoryWrite

SQL = load("memory")

_CONFLICT = "AQ001"

FoundBy = Literal["words", "meaning", "both"]


@dataclass(frozen=True, slots=True)
class Memory:
    """
    One memory, in one version, with who wrote it.

    `found_by` and `score` are set by a search; scores compare within one search alone. What was remembered came
    from users and models: data, never instructions.
    """

    namespace: str
    key: str
    version: int
    value: Any
    written_at: datetime | None = None
    expires_at: datetime | None = None
    session_id: uuid.UUID | None = None
    step_id: uuid.UUID | None = None
    agent: str | None = None
    attempt: int | None = None
    written_by: str = ""
    gone_at: datetime | None = None
    score: float | None = None
    found_by: FoundBy | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """One hit of a search: a stored memory, or the `pending`th write of the step that asks, counted from 1."""

    memory: Memory | None
    pending: int | None
    score: float
    found_by: FoundBy


@dataclass(frozen=True, slots=True)
class Before:
    """What a write will meet: the live version (0: none), the one it would get, and the one it has written already."""

    live: int
    next: int
    known: int | None


@dataclass(frozen=True, slots=True)
class Stored:
    """A memory by its number in the database, as it would be written."""

    number: int
    write: MemoryWrite


@dataclass(frozen=True, slots=True)
class Meaning:
    """A question as a vector, and whose: only embeddings of the same are compared with it."""

    vector: tuple[float, ...]
    embedded_by: str


@contextmanager
def memory_conflicts() -> Iterator[None]:
    """
    Postgres's word that a memory has changed, as ours.

    Raises:
        MemoryConflict: a write within the block named another version.
    """
    try:
        yield
    except psycopg.DatabaseError as error:
        if error.sqlstate != _CONFLICT:
            raise
        facts = json.loads(error.diag.message_detail or "{}")
        raise MemoryConflict(facts["namespace"], facts["key"], facts["expected"], facts["found"]) from None


class Memories:
    """A tenant's memories. Every call names the tenant, and row security holds it to that."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def get(self, tenant: str, namespace: str, key: str) -> Memory | None:
        """The live version of a key."""
        rows = self.store.query(SQL["get"], {"tenant": tenant, "namespace": namespace, "key": key})
        return self._memory(tenant, rows[0]) if rows else None

    def below(self, tenant: str, namespace: str, *, limit: int, offset: int = 0) -> list[Memory]:
        """What lies in a namespace and below it, newest first."""
        parameters = {"tenant": tenant, "namespace": namespace, "limit": limit, "offset": offset}
        return [self._memory(tenant, row) for row in self.store.query(SQL["list"], parameters)]

    def versions(self, tenant: str, namespace: str, key: str) -> list[Memory]:
        """Every version of a key that is kept, newest first."""
        parameters = {"tenant": tenant, "namespace": namespace, "key": key}
        return [self._memory(tenant, row) for row in self.store.query_as(tenant, SQL["versions"], parameters)]

    def namespaces(self, tenant: str, namespace: str, *, limit: int) -> list[tuple[str, int]]:
        """The namespaces at and below one, and how much each holds."""
        parameters = {"tenant": tenant, "namespace": namespace, "limit": limit}
        return [(row[0], row[1]) for row in self.store.query_as(tenant, SQL["namespaces"], parameters)]

    def search(
        self,
        tenant: str,
        namespace: str,
        query: str,
        *,
        language: str,
        meaning: Meaning | None = None,
        limit: int,
        offset: int = 0,
        pending: Sequence[MemoryWrite] = (),
    ) -> list[Found]:
        """What answers a question best, of a namespace and below it, and of what is not committed yet."""
        vault = self.store.vault
        if vault.on:
            # Both: what was written before encryption was switched on stands in the index as it is.
            query, meaning = f"{sealing.blind_text(vault, tenant, query)} {query}", None
        pending = [sealing.memory_sealed(vault, tenant, write) for write in pending]
        parameters = {
            "tenant": tenant,
            "namespace": namespace,
            "query": query,
            "language": language,
            "vector": list(meaning.vector) if meaning else None,
            "embedded_by": meaning.embedded_by if meaning else None,
            "limit": limit,
            "offset": offset,
            "pending": Jsonb([write.as_json() for write in pending]) if pending else None,
        }
        found = []
        for row in self.store.query(SQL["search"], parameters):
            number, score, by = row[12:]
            memory = None if number is not None else self._memory(tenant, row[:12], score=score, found_by=by)
            found.append(Found(memory, number, score, by))
        return found

    def before(self, tenant: str, write: MemoryWrite) -> Before:
        """What the write will meet."""
        parameters = {
            "tenant": tenant, "namespace": write.namespace, "key": write.key, "op": write.op, "digest": write.digest,
        }  # fmt: skip
        return Before(*self.store.query(SQL["before"], parameters)[0])

    def put_in_effect(self, claim: Granted, write: MemoryWrite) -> tuple[int, bool]:
        """
        Write at once, under the step's fence: the version, and whether it is a new one.

        Raises:
            FenceLost: a newer attempt owns the step; nothing was written.
            MemoryConflict: it is not in the version that the write names.
        """
        parameters = {
            "tenant": claim.ref.tenant, "session": claim.ref.session_id, "step": claim.ref.step_id,
            "fence": claim.fence, "token": claim.token, "agent": claim.agent,
            "writes": Jsonb([sealing.memory_sealed(self.store.vault, claim.ref.tenant, write).as_json()]),
        }  # fmt: skip
        with memory_conflicts():
            rows = self.store.query(SQL["put_in_effect"], parameters)
        if not rows:
            raise FenceLost(str(claim.ref.session_id), str(claim.ref.step_id), claim.fence)
        return rows[0][1], rows[0][2]

    def put(self, tenant: str, write: MemoryWrite, *, by: str, reason: str | None = None) -> tuple[int, bool]:
        """
        Write for a producer, or for an operator who says why; the latter leaves an audit row.

        Raises:
            MemoryConflict: it is not in the version that the write names.
            ConfigError: the tenant's payloads are encrypted, and this process has not the keys.
        """
        write = sealing.memory_sealed(self.store.vault, tenant, write)
        with self.store.transaction(tenant) as connection:
            version, written = self._put(connection, tenant, write, by)
            if reason is not None and written:
                record(
                    connection,
                    operator=by,
                    tenant=tenant,
                    action=f"memory {write.kind}",
                    target=f"{write.namespace}/{write.key}"[:600],
                    reason=reason,
                    detail={"version": version},
                )
        return version, written

    def _put(self, connection: Connection, tenant: str, write: MemoryWrite, by: str) -> tuple[int, bool]:
        writes = Jsonb([write.as_json()])
        parameters = {"tenant": tenant, "by": by, "writes": writes, "sealed": self.store.vault.on}
        with memory_conflicts():
            rows = run(connection, SQL["put"], parameters)
        if not rows:
            raise ConfigError(
                f"payloads of tenant {tenant!r} are encrypted and this process has no key provider: "
                "set encryption_key_file, encryption_keys or encryption_provider as the fleet has it"
            )
        return rows[0][1], rows[0][2]

    def to_index(self, tenant: str, after: int, limit: int) -> list[Stored]:
        """A portion of what lives and is searched, by number, each as it would be written."""
        rows = self.store.query_as(tenant, SQL["to_index"], {"tenant": tenant, "after": after, "max": limit})
        found = []
        for number, namespace, key, _, value, digest, fields, embedding, by in rows:
            plain = self.store.vault.open(tenant, sealing.memory_value(namespace, key, digest), value)
            write = MemoryWrite(
                "put", namespace, key, digest, value=plain, fields=tuple(fields) if fields is not None else None,
                embedding=tuple(embedding) if embedding is not None else None, embedded_by=by,
            )  # fmt: skip
            found.append(Stored(number, write))
        return found

    def reindex(self, tenant: str, portion: Sequence[Stored]) -> int:
        """Store words, vectors and sealed values of a portion anew; how many still lived."""
        items = [
            sealing.memory_sealed(self.store.vault, tenant, stored.write).as_json() | {"id": stored.number}
            for stored in portion
        ]
        return int(self.store.query(SQL["reindex"], {"tenant": tenant, "items": Jsonb(items)})[0][0])

    def expire(self, limit: int, keep_days: int, turn: Turn | None = None) -> int:
        """Take the content of what is over, a small batch of each kind and tenant in its turn; how many lost it."""
        turn = turn or Turn()
        over = int(self.store.query(SQL["expire"], {"max": limit, "keep_days": keep_days})[0][0])
        return over + sum(turn.take(self.store.query(SQL["expire_of"], turn.parameters(limit)), limit).values())

    def has_language(self, name: str) -> bool:
        """Whether Postgres knows how words of it are told apart."""
        return bool(self.store.query(SQL["has_language"], {"language": name})[0][0])

    def has_vectors(self) -> bool:
        """Whether this server compares meanings: it has pgvector."""
        return bool(self.store.query(SQL["has_vectors"], {})[0][0])

    def _memory(self, tenant: str, row: Row, *, score: float | None = None, found_by: FoundBy | None = None) -> Memory:
        namespace, key, version, value, written_at, expires_at, session, step, agent, attempt, by, digest = row[:12]
        plain = self.store.vault.open(tenant, sealing.memory_value(namespace, key, digest), value)
        return Memory(
            namespace, key, version, decode(plain) if plain is not None else None, written_at, expires_at, session,
            step, agent, attempt, by, row[12] if len(row) > 12 else None, score, found_by,
        )  # fmt: skip
