"""
Memory as agents use it: `ctx.memory`.

A write of a step is committed with the step's settlement, or not at all: an attempt that fails, or is
superseded, leaves no memory behind. Until then the step that wrote it reads it, and nobody else does. A write
within an effect (`ctx.call`, a model's tool) is made at once, under the step's fence and the effect's key,
because the effect's own record is: a repeat recalls it. A replay writes nothing that is there already from the same
place with the same content; other content is a new version.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from agentq.agents.effects import current_key
from agentq.agents.embedding import Embedder, Kind
from agentq.agents.returns import Duration, seconds
from agentq.agents.tracing import Recording, Span
from agentq.engine import Attempt
from agentq.errors import InvalidInput, MemoryConflict, MemoryTooLarge
from agentq.payload import decode, encode, fingerprint, storable
from agentq.store.memory import Meaning, Memories, Memory
from agentq.verdicts import MemoryWrite

Namespace = str | Sequence[str]
Listed = list[Memory]
Names = list[str]
Reserve = Callable[[str, str], AbstractContextManager[Any]]

NAMESPACE_MAX, PARTS_MAX, KEY_MAX = 400, 8, 200
WRITES_MAX = 100
LIMIT_MAX = 1000
TTL_MAX_S = 100 * 366 * 86400.0
_NUMBER_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Remembering:
    """What memories of a process are kept with: where, how large, and by what they are found."""

    memories: Memories
    max_bytes: int = 65_536
    language: str = "simple"
    embedder: Embedder | None = None

    def write(
        self,
        namespace: Namespace,
        key: str,
        value: Any,
        *,
        ttl: Duration | None = None,
        if_version: int | None = None,
        index: bool | Sequence[str] = True,
    ) -> MemoryWrite:
        """
        A value as it is to be written.

        Raises:
            InvalidInput: a name, a number or the index is none.
            MemoryTooLarge: the value is larger than memories may be.
        """
        place, key = path_of(namespace), key_of(key)
        data = encode(value)
        if len(data) > self.max_bytes:
            raise MemoryTooLarge(f"memory {place}/{key}", len(data), self.max_bytes)
        if data == b"null":
            raise InvalidInput(f"memory {place}/{key} has no value; to forget it, delete it")
        fields = None if isinstance(index, bool) else tuple(dict.fromkeys(index))
        return MemoryWrite(
            "put", place, key, fingerprint(b"put", data), value=data, fields=fields if index else (),
            text=searchable(key, decode(data), fields) if index else None, language=self.language,
            ttl_s=lifetime_s(ttl), if_version=_version(if_version),
        )  # fmt: skip

    def deletion(self, namespace: Namespace, key: str, *, if_version: int | None = None) -> MemoryWrite:
        """A memory as it is to be forgotten."""
        return MemoryWrite(
            "delete", path_of(namespace), key_of(key), fingerprint(b"delete"), if_version=_version(if_version)
        )

    def compares_meaning(self) -> bool:
        """
        Whether memories are found by meaning: there is an embedder, and Postgres has pgvector. Not where payloads are
        encrypted: a vector tells nearly what its text does.
        """
        sealed = self.memories.store.vault.on
        return self.embedder is not None and not sealed and _has_vectors(self.memories)

    def embedded(self, write: MemoryWrite, reserve: Reserve | None = None) -> MemoryWrite:
        """The write with its vector, where meaning is compared."""
        if write.text is None or not self.compares_meaning():
            return write
        meaning = self.meaning(write.text, "document", reserve)
        assert meaning is not None
        return replace(write, embedding=meaning.vector, embedded_by=meaning.embedded_by)

    def meaning(self, text: str, kind: Kind = "query", reserve: Reserve | None = None) -> Meaning | None:
        """A text as a vector; None where meaning is not compared, or nothing is said."""
        if not text.strip() or not self.compares_meaning():
            return None
        embedder = self.embedder
        assert embedder is not None
        charged = embedder.model is not None and reserve is not None
        with reserve(embedder.model or "", text) if charged and reserve else nullcontext():
            vector = embedder.embed(text, kind)
        return Meaning(vector, embedder.mark(vector))


_with_vectors: set[str] = set()


def _has_vectors(memories: Memories) -> bool:
    """Asked until the answer is yes: an operator may add the extension while the fleet runs."""
    url = memories.store.url
    if url not in _with_vectors and memories.has_vectors():
        _with_vectors.add(url)
    return url in _with_vectors


class _Pending:
    """A write of this step that is not committed, and the version it will get unless somebody else is quicker."""

    def __init__(self, write: MemoryWrite, version: int) -> None:
        self.write = write
        self.version = version


class StepMemory:
    """
    The tenant's long-term memory, as a step reads and writes it; `AsyncStepMemory` is its twin.

    A namespace is a path of up to eight parts, such as `("customers", "c-17")` or `"customers/c-17"`; reading one
    reads all below it too. The tenant is always the session's own.
    """

    def __init__(
        self, attempt: Attempt, remembering: Remembering, recording: Recording, reserve: Reserve, *, called: str
    ) -> None:
        self._attempt = attempt
        self._with = remembering
        self._memories = remembering.memories
        self._recording = recording
        self._reserve = reserve
        self._called = called
        self._tenant = attempt.claim.ref.tenant
        self._lock = threading.RLock()
        self._pending: list[_Pending] = []
        self._counts: dict[str, int] = {}

    def put(
        self,
        namespace: Namespace,
        key: str,
        value: Any,
        *,
        ttl: Duration | None = None,
        if_version: int | None = None,
        index: bool | Sequence[str] = True,
    ) -> Memory:
        """
        Remember a value (anything with a JSON form) under a key, as a new version of it.

        `ttl` says when it is forgotten; without, it stays until it is deleted or the tenant's retention is over.
        `if_version` writes only over the version named, 0 for none. `index` names the fields by which it is
        found; True: all texts in it, False: by its key alone.

        Raises:
            MemoryConflict: it is not in the version that `if_version` names.
            MemoryTooLarge, InvalidInput: it cannot be kept; nothing was written.
        """
        write = self._with.write(namespace, key, value, ttl=ttl, if_version=if_version, index=index)
        return self._put(write, self.place())

    def delete(self, namespace: Namespace, key: str, *, if_version: int | None = None) -> bool:
        """
        Forget a key, with the content of all its versions; whether there was one.

        Raises:
            MemoryConflict: it is not in the version that `if_version` names.
        """
        return self._delete(self._with.deletion(namespace, key, if_version=if_version), self.place())

    def get(self, namespace: Namespace, key: str) -> Memory | None:
        """What is remembered under a key; None when there is nothing, or no longer."""
        self._attempt.check()
        place, key = path_of(namespace), key_of(key)
        mine = self._latest(place, key)
        if mine is not None:
            return self._shown(mine) if mine.write.kind == "put" else None
        return self._memories.get(self._tenant, place, key)

    def search(self, namespace: Namespace, query: str, *, limit: int = 10, offset: int = 0) -> Listed:
        """
        What answers a question best, of a namespace and all below it: by its words, and by its meaning where an
        embedder is set. Rare words count more than common ones.
        """
        self._attempt.check()
        place = path_of(namespace, root=True)
        check_window(limit, offset)
        with self._span("search", {"namespace": place, "query": query, "limit": limit}) as span:
            meaning = self._with.meaning(query, reserve=self._reserve)
            with self._lock:
                pending = list(self._pending)
            found = self._memories.search(
                self._tenant, place, storable(query), language=self._with.language, meaning=meaning, limit=limit,
                offset=offset, pending=[each.write for each in pending],
            )  # fmt: skip
            memories = [
                replace(
                    hit.memory or self._shown(pending[(hit.pending or 1) - 1]), score=hit.score, found_by=hit.found_by
                )
                for hit in found
            ]
            span.output = [f"{memory.namespace}/{memory.key}@{memory.version}" for memory in memories]
        return memories

    def list(self, namespace: Namespace = (), *, limit: int = 100, offset: int = 0) -> Listed:
        """What lies in a namespace and all below it, newest first."""
        self._attempt.check()
        place = path_of(namespace, root=True)
        check_window(limit, offset)
        with self._lock:
            mine = {(each.write.namespace, each.write.key): each for each in self._pending}
        stored = self._memories.below(self._tenant, place, limit=limit + offset + len(mine))
        shown = [
            self._shown(each) for each in reversed(mine.values())
            if each.write.kind == "put" and _lies_in(each.write.namespace, place)
        ]  # fmt: skip
        shown += [memory for memory in stored if (memory.namespace, memory.key) not in mine]
        return shown[offset : offset + limit]

    def namespaces(self, below: Namespace = (), *, limit: int = 100) -> Names:
        """The namespaces that hold something, as far as it is committed."""
        self._attempt.check()
        check_window(limit, 0)
        return [name for name, _ in self._memories.namespaces(self._tenant, path_of(below, root=True), limit=limit)]

    def writes(self) -> tuple[MemoryWrite, ...]:
        """What is to be committed with the step; nothing of a dry run."""
        if self._attempt.claim.dry_effects:
            return ()
        with self._lock:
            return tuple(each.write for each in self._pending)

    def place(self) -> tuple[str, bool]:
        """The next write's place in its step or effect, the same in every attempt, and whether it is in an effect."""
        effect = current_key()
        base = effect or f"s:{self._attempt.claim.path}"
        with self._lock:
            number = self._counts[base] = self._counts.get(base, 0) + 1
        return f"{base}:m{number}", effect is not None

    def _put(self, write: MemoryWrite, place: tuple[str, bool]) -> Memory:
        self._attempt.check()
        op, in_effect = place
        with self._span("put", {"namespace": write.namespace, "key": write.key}) as span:
            write = self._with.embedded(replace(write, op=op), self._reserve)
            version = self._at_once(write) if in_effect else self._keep(write)[1]
            span.note(version=version)
        return self._shown(_Pending(write, version))

    def _delete(self, write: MemoryWrite, place: tuple[str, bool]) -> bool:
        self._attempt.check()
        op, in_effect = place
        write = replace(write, op=op)
        with self._span("delete", {"namespace": write.namespace, "key": write.key}):
            return self._at_once(write) > 0 if in_effect else self._keep(write)[0] > 0

    def _at_once(self, write: MemoryWrite) -> int:
        return self._memories.put_in_effect(self._attempt.claim, write)[0]

    def _keep(self, write: MemoryWrite) -> tuple[int, int]:
        """Keep a write for the settlement; the version that lives, and the one that it will get."""
        with self._lock:
            mine = self._latest(write.namespace, write.key)
            before = self._memories.before(self._tenant, write)
            if before.known is not None:
                return before.known, before.known  # an earlier run of this step wrote it
            live, following = before.live, before.next
            if mine is not None:
                live, following = mine.version if mine.write.kind == "put" else 0, mine.version + 1
            if write.if_version is not None and write.if_version != live:
                raise MemoryConflict(write.namespace, write.key, write.if_version, live)
            if write.kind == "delete" and not live:
                return 0, 0
            if len(self._pending) >= WRITES_MAX:
                raise InvalidInput(f"a step writes {WRITES_MAX} memories at most; go on in another step")
            self._pending.append(_Pending(write, following))
            return live, following

    def _latest(self, place: str, key: str) -> _Pending | None:
        with self._lock:
            mine = (each for each in reversed(self._pending) if (each.write.namespace, each.write.key) == (place, key))
            return next(mine, None)

    def _shown(self, pending: _Pending) -> Memory:
        claim, write = self._attempt.claim, pending.write
        return Memory(
            write.namespace, write.key, pending.version, decode(write.value) if write.value is not None else None,
            session_id=claim.ref.session_id, step_id=claim.ref.step_id, agent=claim.agent, attempt=claim.attempt,
            written_by=self._called,
        )  # fmt: skip

    def _span(self, name: str, facts: Mapping[str, Any]) -> AbstractContextManager[Span]:
        return self._recording.span("memory", name, input=dict(facts))


class AsyncStepMemory:
    """As `StepMemory`, awaited; nothing of it holds up the loop."""

    def __init__(self, memory: StepMemory) -> None:
        self._memory = memory

    async def put(
        self,
        namespace: Namespace,
        key: str,
        value: Any,
        *,
        ttl: Duration | None = None,
        if_version: int | None = None,
        index: bool | Sequence[str] = True,
    ) -> Memory:
        """As `StepMemory.put`."""
        write = self._memory._with.write(namespace, key, value, ttl=ttl, if_version=if_version, index=index)
        # Its place is taken here, in the order of the code, whichever thread is quicker.
        return await asyncio.to_thread(self._memory._put, write, self._memory.place())

    async def delete(self, namespace: Namespace, key: str, *, if_version: int | None = None) -> bool:
        """As `StepMemory.delete`."""
        write = self._memory._with.deletion(namespace, key, if_version=if_version)
        return await asyncio.to_thread(self._memory._delete, write, self._memory.place())

    async def get(self, namespace: Namespace, key: str) -> Memory | None:
        """As `StepMemory.get`."""
        return await asyncio.to_thread(self._memory.get, namespace, key)

    async def search(self, namespace: Namespace, query: str, *, limit: int = 10, offset: int = 0) -> Listed:
        """As `StepMemory.search`."""
        return await asyncio.to_thread(lambda: self._memory.search(namespace, query, limit=limit, offset=offset))

    async def list(self, namespace: Namespace = (), *, limit: int = 100, offset: int = 0) -> Listed:
        """As `StepMemory.list`."""
        return await asyncio.to_thread(lambda: self._memory.list(namespace, limit=limit, offset=offset))

    async def namespaces(self, below: Namespace = (), *, limit: int = 100) -> Names:
        """As `StepMemory.namespaces`."""
        return await asyncio.to_thread(lambda: self._memory.namespaces(below, limit=limit))


# ── names, sizes, texts ──────────────────────────────────────────────────────


def path_of(namespace: Namespace, *, root: bool = False) -> str:
    """
    A namespace as it is stored.

    Raises:
        InvalidInput: it is none; `root` allows the one above all.
    """
    parts = namespace.split("/") if isinstance(namespace, str) and namespace else list(namespace)
    if not parts and root:
        return ""
    good = bool(parts) and all(isinstance(part, str) and _plain_part(part) for part in parts)
    path = "/".join(parts) if good else ""
    if not good or len(parts) > PARTS_MAX or len(path) > NAMESPACE_MAX:
        raise InvalidInput(
            f"{namespace!r} is no namespace: give 1 to {PARTS_MAX} parts of printable text without slashes and outer "
            f'spaces, {NAMESPACE_MAX} characters in all, such as ("customers", "c-17")'
        )
    return path


def key_of(key: object) -> str:
    """
    A key as it is stored.

    Raises:
        InvalidInput: it is none.
    """
    if not isinstance(key, str) or not 1 <= len(key) <= KEY_MAX or not key.isprintable() or key != key.strip():
        raise InvalidInput(f"{key!r} is no key: give 1 to {KEY_MAX} characters of printable text without outer spaces")
    return key


def searchable(key: str, value: Any, fields: Sequence[str] | None) -> str:
    """
    The text by which a value is found: its key's words, and every text and number in it, or in its fields.

    Raises:
        InvalidInput: a field is not there.
    """
    if fields is not None:
        if not isinstance(value, dict) or any(field not in value for field in fields):
            raise InvalidInput(f"index names fields that the value does not have: {', '.join(map(str, fields))}")
        value = [value[field] for field in fields]
    return storable(" ".join([re.sub(r"[\W_]+", " ", key), *_texts(value)]))


def chunks(text: str, size: int = 2000) -> list[str]:
    """A text in parts of at most `size` characters, split where paragraphs, sentences or words end."""
    if size < 20:
        raise InvalidInput("parts have 20 characters at least")
    parts, rest = [], text.strip()
    while len(rest) > size:
        head = rest[:size]
        cuts = (head.rfind(mark) + len(mark) for mark in ("\n\n", "\n", ". ", " ") if head.rfind(mark) >= size // 2)
        cut = next(cuts, size)
        parts.append(rest[:cut].strip())
        rest = rest[cut:].strip()
    return [part for part in [*parts, rest] if part]


def _plain_part(part: str) -> bool:
    return bool(part) and "/" not in part and part.isprintable() and part == part.strip()


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case bool() | None:
            return
        case int() | float():
            yield str(value)
        case dict():
            for item in value.values():
                yield from _texts(item)
        case list():
            for item in value:
                yield from _texts(item)


def _lies_in(namespace: str, place: str) -> bool:
    return not place or namespace == place or namespace.startswith(f"{place}/")


def lifetime_s(ttl: Duration | None) -> float | None:
    if ttl is None:
        return None
    length = seconds(ttl)
    if not 0 < length <= TTL_MAX_S:
        raise InvalidInput(f"a ttl is above 0 and at most a hundred years, not {ttl!r}")
    return length


def _version(version: int | None) -> int | None:
    whole = isinstance(version, int) and not isinstance(version, bool)
    if version is not None and not (whole and 0 <= version <= _NUMBER_MAX):
        raise InvalidInput("if_version is a version's number, or 0 for none")
    return version


def check_window(limit: int, offset: int) -> None:
    """
    Return when so many may be asked for.

    Raises:
        InvalidInput: they may not.
    """
    if not 1 <= limit <= LIMIT_MAX or not 0 <= offset <= 100_000:
        raise InvalidInput(f"limit is from 1 to {LIMIT_MAX:,}, offset from 0 to 100,000")
