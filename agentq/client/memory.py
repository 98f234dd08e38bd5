"""Memories as producers and operators read, write and forget them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from agentq.agents.embedding import load_embedder
from agentq.agents.memory import Listed, Namespace, Remembering, check_window, key_of, path_of, searchable
from agentq.agents.returns import Duration
from agentq.client.tenants import operator_name
from agentq.errors import InvalidInput, MemoryConflict, UnknownTenant
from agentq.payload import decode, storable
from agentq.settings import Settings
from agentq.step import valid_name
from agentq.store.memory import Memories, Memory, Stored
from agentq.store.operators import Operators
from agentq.store.pool import Store
from agentq.verdicts import MemoryWrite

Named = list[tuple[str, int]]
_PORTION = 100


class ClientMemory:
    """
    A tenant's long-term memories from outside of its steps.

    What is written here is committed when the call returns. A `reason` makes it an operator's deed, with a row in
    the audit. The embedder of the settings is asked as in a step, but no budget is charged.
    """

    def __init__(self, store: Store, operators: Operators, settings: Settings) -> None:
        self._memories = Memories(store)
        self._operators = operators
        self._settings = settings
        self._loaded: Remembering | None = None

    @property
    def _with(self) -> Remembering:
        # When first used: an embedder may be slow to import, and most clients never ask for a memory.
        if self._loaded is None:
            settings = self._settings
            self._loaded = Remembering(
                self._memories,
                settings.memory_max_bytes,
                settings.memory_language,
                load_embedder(settings.memory_embedder),
            )
        return self._loaded

    def put(
        self,
        tenant: str,
        namespace: Namespace,
        key: str,
        value: Any,
        *,
        ttl: Duration | None = None,
        if_version: int | None = None,
        index: bool | Sequence[str] = True,
        reason: str | None = None,
        dry_run: bool = False,
    ) -> int:
        """
        As `ctx.memory.put`: remember a value as a new version of its key; the version.

        Raises:
            MemoryConflict: it is not in the version that `if_version` names.
            MemoryTooLarge, InvalidInput, UnknownTenant: it cannot be kept; nothing was written.
        """
        write = self._with.write(namespace, key, value, ttl=ttl, if_version=if_version, index=index)
        return self._write(tenant, write, reason, dry_run)

    def delete(
        self,
        tenant: str,
        namespace: Namespace,
        key: str,
        *,
        if_version: int | None = None,
        reason: str | None = None,
        dry_run: bool = False,
    ) -> bool:
        """
        Forget a key, with the content of all its versions; whether there was one.

        Raises:
            MemoryConflict: it is not in the version that `if_version` names.
        """
        return self._write(tenant, self._with.deletion(namespace, key, if_version=if_version), reason, dry_run) > 0

    def get(self, tenant: str, namespace: Namespace, key: str) -> Memory | None:
        """What is remembered under a key; None when there is nothing, or no longer."""
        return self._memories.get(valid_name("tenant", tenant), path_of(namespace), key_of(key))

    def versions(self, tenant: str, namespace: Namespace, key: str) -> Listed:
        """Every version of a key that is kept, newest first; `gone_at` says since when it is read no more."""
        return self._memories.versions(valid_name("tenant", tenant), path_of(namespace), key_of(key))

    def search(
        self, tenant: str, namespace: Namespace, query: str, *, limit: int = 10, offset: int = 0, words: bool = False
    ) -> Listed:
        """As `ctx.memory.search`: what answers a question best; `words=True` asks no embedder."""
        check_window(limit, offset)
        found = self._memories.search(
            valid_name("tenant", tenant), path_of(namespace, root=True), storable(query),
            language=self._settings.memory_language, meaning=None if words else self._with.meaning(query),
            limit=limit, offset=offset,
        )  # fmt: skip
        return [hit.memory for hit in found if hit.memory is not None]

    def ls(self, tenant: str, namespace: Namespace = (), *, limit: int = 100, offset: int = 0) -> Listed:
        """What lies in a namespace and all below it, newest first."""
        check_window(limit, offset)
        place = path_of(namespace, root=True)
        return self._memories.below(valid_name("tenant", tenant), place, limit=limit, offset=offset)

    def namespaces(self, tenant: str, below: Namespace = (), *, limit: int = 1000) -> Named:
        """The namespaces at and below one that hold something, and how many memories each."""
        return self._memories.namespaces(valid_name("tenant", tenant), path_of(below, root=True), limit=limit)

    def reindex(self, tenant: str, *, reason: str, dry_run: bool = False) -> dict[str, int]:
        """
        Index all memories of a tenant as the settings now say: in another language, by a new embedder, encrypted.

        Vectors are made where there is none by this embedder; its calls are charged to no budget. In portions, so
        that after a crash the same call does the rest. How many there are, and how many vectors were made.
        """
        if not reason.strip():
            raise InvalidInput("a reason must say something")
        counts = {"memories": 0, "vectors": 0}
        after = 0
        while portion := self._memories.to_index(valid_name("tenant", tenant), after, _PORTION):
            after = portion[-1].number
            lacking = {stored.number for stored in portion if self._lacks_vector(stored.write)}
            counts["vectors"] += len(lacking)
            if dry_run:
                counts["memories"] += len(portion)
                continue
            fresh = [self._fresh(stored, embed=stored.number in lacking) for stored in portion]
            counts["memories"] += self._memories.reindex(tenant, fresh)
        if not dry_run:
            self._operators.record_action(
                operator=operator_name(), tenant=tenant, action="memory reindex", target=tenant, reason=reason,
                detail=counts,
            )  # fmt: skip
        return counts

    def _lacks_vector(self, write: MemoryWrite) -> bool:
        embedder = self._with.embedder
        if embedder is None or not self._with.compares_meaning():
            return False
        return not (write.embedded_by or "").startswith(f"{embedder.name}@")

    def _fresh(self, stored: Stored, *, embed: bool) -> Stored:
        """The memory with the words that it has now, and where it is wanted with another vector."""
        write = stored.write
        assert write.value is not None  # only what lives is indexed
        text = searchable(write.key, decode(write.value), write.fields)
        write = replace(write, text=text, language=self._with.language)
        return replace(stored, write=self._with.embedded(write) if embed else write)

    def _write(self, tenant: str, write: MemoryWrite, reason: str | None, dry_run: bool) -> int:
        if reason is not None and not reason.strip():
            raise InvalidInput("a reason must say something")
        if not self._operators.is_tenant(valid_name("tenant", tenant)):
            raise UnknownTenant(tenant)
        if not dry_run:
            write = self._with.embedded(write)
            return self._memories.put(tenant, write, by=operator_name(), reason=reason)[0]
        before = self._memories.before(tenant, write)
        if write.if_version not in (None, before.live):
            raise MemoryConflict(write.namespace, write.key, write.if_version or 0, before.live)
        return before.next if write.kind == "put" else before.live


class AsyncClientMemory:
    """As `ClientMemory`, awaited; statements run in threads."""

    def __init__(self, memory: ClientMemory) -> None:
        self._memory = memory

    async def put(self, tenant: str, namespace: Namespace, key: str, value: Any, **how: Any) -> int:
        """As `ClientMemory.put`."""
        return await asyncio.to_thread(lambda: self._memory.put(tenant, namespace, key, value, **how))

    async def delete(self, tenant: str, namespace: Namespace, key: str, **how: Any) -> bool:
        """As `ClientMemory.delete`."""
        return await asyncio.to_thread(lambda: self._memory.delete(tenant, namespace, key, **how))

    async def get(self, tenant: str, namespace: Namespace, key: str) -> Memory | None:
        """As `ClientMemory.get`."""
        return await asyncio.to_thread(self._memory.get, tenant, namespace, key)

    async def versions(self, tenant: str, namespace: Namespace, key: str) -> Listed:
        """As `ClientMemory.versions`."""
        return await asyncio.to_thread(self._memory.versions, tenant, namespace, key)

    async def search(self, tenant: str, namespace: Namespace, query: str, **how: Any) -> Listed:
        """As `ClientMemory.search`."""
        return await asyncio.to_thread(lambda: self._memory.search(tenant, namespace, query, **how))

    async def ls(self, tenant: str, namespace: Namespace = (), **how: Any) -> Listed:
        """As `ClientMemory.ls`."""
        return await asyncio.to_thread(lambda: self._memory.ls(tenant, namespace, **how))

    async def namespaces(self, tenant: str, below: Namespace = (), **how: Any) -> Named:
        """As `ClientMemory.namespaces`."""
        return await asyncio.to_thread(lambda: self._memory.namespaces(tenant, below, **how))
