"""
The vault: payloads sealed on their way into Postgres and opened on their way out.

Without a key provider nothing is sealed, and what is plain passes through; so rows of before and after
the switch live side by side. With one, each tenant has data keys of its own, made on first use and kept
in Postgres wrapped by the provider's key. A payload is AES-256-GCM under the tenant's active key, and
bound to its tenant and its place (table, column and what names the row), so that a ciphertext which
somebody moves to another row, column or tenant does not open there.

The nonce is derived from place and content by a key of its own (HMAC-SHA-256), not drawn: storing the
same value in the same place again gives the same bytes, which is how repeated writes are known as
repeats; and no nonce ever serves two contents.

What this does not hide: sizes, times, names, ids, keys of sessions and effects, digests of inputs and
arguments, kinds of failures, and an older value of the same place in place of the newer one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, overload

from agentq.errors import ConfigError, KeyUnavailable, PayloadUnreadable
from agentq.payload import storable
from agentq.store.queries import load

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SQL = load("keys")

# What belongs to no tenant is sealed under the fleet's own key.
FLEET = ALL_TENANTS = "*"

# JSON never begins with it: `agentq.store.schema` keeps bytes below 0x20 for other encodings.
_SEALED = 1
_TEXT = "enc:v1:"
_NONCE_BYTES = 12
_TAG_BYTES = 16
# How long a process goes by the keys that it has read: rotation and erasure reach everybody within it.
_FRESH_S = 15.0
_TENANTS_MAX = 4096

# Facts of a failure that are texts of people, models or other systems; the rest is kept for the ledger to read.
_FAILURE_TEXTS = ("message", "feedback")
# Facts of a trace event that agentq itself writes, and that reports group by.
_PLAIN_FACTS = frozenset(
    {"model", "provider", "price", "price_version", "outcome", "effect_key", "key", "repair", "attempt",
     "cached_tokens", "cache_write_tokens", "reasoning_tokens", "finish_reason"}
)  # fmt: skip

# What of an operator's action quotes a state.
_AUDITED_PAYLOADS = frozenset({"changes", "diff"})

Place = tuple[object, ...]


class KeyProvider(Protocol):
    """
    What holds the key that wraps the tenants' data keys: a file, the environment, or a KMS.

    `key_id` names the key that wraps from now on; those that wrapped before must still unwrap.
    `context` is not secret and must be authenticated: a key wrapped for one tenant is none for another.
    """

    @property
    def key_id(self) -> str:
        """The name of the present key, stored beside what it wraps."""

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """
        The data key, sealed.

        Raises:
            KeyUnavailable: the provider does not answer.
        """

    def unwrap(self, wrapped: bytes, key_id: str, context: bytes) -> bytes:
        """
        The data key that `wrap` sealed under the key of that name.

        Raises:
            KeyUnavailable: the provider does not answer, or has no key of that name.
            PayloadUnreadable: it was not wrapped so.
        """


class Rows(Protocol):
    """What a vault asks for its keys: the store that it belongs to."""

    def query_as(self, tenant: str, sql: str, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
        """One statement that sees one tenant's rows."""


@dataclass(frozen=True, slots=True)
class _Key:
    """A data key, ready for use."""

    number: int
    cipher: AESGCM
    nonces: bytes
    wrapped: bytes


@dataclass(slots=True)
class _Ring:
    """The keys of one tenant as they were last read."""

    keys: dict[int, _Key] = field(default_factory=dict)
    destroyed: frozenset[int] = frozenset()
    active: int | None = None
    until: float = 0.0


class Vault:
    """Seals and opens the payloads of one store. Safe to share between threads."""

    def __init__(self, rows: Rows, provider: KeyProvider | None) -> None:
        self._rows = rows
        self.provider = provider
        self._rings: dict[str, _Ring] = {}
        # A provider may take its time: the tenants do not wait for each other, but each asks once.
        self._locks = [threading.RLock() for _ in range(32)]

    @property
    def on(self) -> bool:
        """Whether what is written is sealed."""
        return self.provider is not None

    def require_provider(self) -> None:
        """
        Return when this process can read what is sealed, or nothing is.

        Raises:
            ConfigError: tenants have data keys, and no provider is configured.
        """
        if self.provider is None and self._rows.query_as(ALL_TENANTS, SQL["in_use"], {})[0][0]:
            raise ConfigError(
                "payloads in this database are encrypted and no key provider is configured: "
                "set encryption_key_file, encryption_keys or encryption_provider as the fleet has it"
            )

    # ── bytes ────────────────────────────────────────────────────────────────

    @overload
    def seal(self, tenant: str, place: Place, data: bytes, row: bytes = b"") -> bytes: ...
    @overload
    def seal(self, tenant: str, place: Place, data: bytes | None, row: bytes = b"") -> bytes | None: ...
    def seal(self, tenant: str, place: Place, data: bytes | None, row: bytes = b"") -> bytes | None:
        """
        The bytes as they are to be stored in that place of that tenant.

        `row` is written into the envelope in the clear and bound like the place: for a reader that learns
        only from it which row this is (see `row_of`).

        Raises:
            KeyUnavailable: the provider or Postgres does not answer, so nothing can be sealed.
        """
        if self.provider is None or data is None:
            return data
        key = self._writing(tenant)
        bound = _bound(tenant, place, row, key.number)
        nonce = hmac.digest(key.nonces, bound + data, "sha256")[:_NONCE_BYTES]
        head = bytes((_SEALED,)) + key.number.to_bytes(4, "big") + bytes((len(row),)) + row
        return head + nonce + key.cipher.encrypt(nonce, data, bound)

    @overload
    def open(self, tenant: str, place: Place, data: bytes) -> bytes: ...
    @overload
    def open(self, tenant: str, place: Place, data: bytes | None) -> bytes | None: ...
    def open(self, tenant: str, place: Place, data: bytes | None) -> bytes | None:
        """
        What was sealed in that place; what is plain, as it is.

        Raises:
            PayloadUnreadable: it was altered or moved, its key was destroyed, or there is no provider.
            KeyUnavailable: the provider or Postgres does not answer.
        """
        if not data or data[0] != _SEALED:
            return data
        number, row, rest = _parts(data, place)
        key = self._reading(tenant, number, place)
        from cryptography.exceptions import InvalidTag

        try:
            return key.cipher.decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], _bound(tenant, place, row, number))
        except InvalidTag:
            raise PayloadUnreadable(tenant, str(place[0]), "it was altered, or belongs to another place") from None

    # ── texts and facts ──────────────────────────────────────────────────────

    @overload
    def seal_text(self, tenant: str, place: Place, text: str) -> str: ...
    @overload
    def seal_text(self, tenant: str, place: Place, text: str | None) -> str | None: ...
    def seal_text(self, tenant: str, place: Place, text: str | None) -> str | None:
        """As `seal`, for a column or a fact that is text."""
        if self.provider is None or text is None:
            return text
        return _TEXT + base64.b64encode(self.seal(tenant, place, storable(text).encode())).decode("ascii")

    @overload
    def open_text(self, tenant: str, place: Place, text: str) -> str: ...
    @overload
    def open_text(self, tenant: str, place: Place, text: str | None) -> str | None: ...
    def open_text(self, tenant: str, place: Place, text: str | None) -> str | None:
        """
        As `open`, for people who look: what cannot be read is said to be so, and never raised.

        A plain text that merely begins like a sealed one is shown as it is.
        """
        if text is None or not text.startswith(_TEXT):
            return text
        try:
            data = base64.b64decode(text[len(_TEXT) :], validate=True)
        except (binascii.Error, ValueError):
            return text
        if not data or data[0] != _SEALED:
            return text
        try:
            return self.open(tenant, place, data).decode()
        except (PayloadUnreadable, KeyUnavailable) as error:
            return f"[encrypted: {error.why}]"

    def seal_failure(self, tenant: str, facts: dict[str, Any]) -> dict[str, Any]:
        """A failure as the ledger keeps it: what went wrong in words is sealed, its kind and cause are not."""
        if self.provider is None:
            return facts
        sealed = {
            name: self.seal_text(tenant, ("failure", name), value)
            if name in _FAILURE_TEXTS and isinstance(value, str)
            else value
            for name, value in facts.items()
        }
        if "cause_text" in facts:
            # Shown in lists and sent in notices; made of the message, so it may quote somebody's data.
            sealed["cause_text"] = str(facts["cause_text"]).partition(": ")[0]
        return sealed

    @overload
    def open_failure(self, tenant: str, facts: dict[str, Any]) -> dict[str, Any]: ...
    @overload
    def open_failure(self, tenant: str, facts: dict[str, Any] | None) -> dict[str, Any] | None: ...
    def open_failure(self, tenant: str, facts: dict[str, Any] | None) -> dict[str, Any] | None:
        """A failure in words again. Not bound to a row: it goes up to joins, parents and letters as it is."""
        if not facts:
            return facts
        return {
            name: self.open_text(tenant, ("failure", name), value)
            if name in _FAILURE_TEXTS and isinstance(value, str)
            else value
            for name, value in facts.items()
        }

    def seal_facts(self, tenant: str, place: Place, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Facts of a trace event: all but agentq's own names and figures are sealed together."""
        if self.provider is None or not facts:
            return dict(facts)
        plain = {name: value for name, value in facts.items() if name in _PLAIN_FACTS or _is_figure(value)}
        rest = {name: value for name, value in facts.items() if name not in plain}
        if not rest:
            return plain
        return plain | {"enc": self.seal_text(tenant, place, json.dumps(rest, default=str))}

    def open_facts(self, tenant: str, place: Place, facts: dict[str, Any] | None) -> dict[str, Any] | None:
        """Those facts again."""
        if not facts or not isinstance(facts.get("enc"), str):
            return facts
        rest = _json(self.open_text(tenant, place, facts["enc"]))
        if not isinstance(rest, dict):
            return facts | {"enc": rest}
        return {name: value for name, value in facts.items() if name != "enc"} | rest

    def show(self, tenant: str, place: Place, data: bytes | None) -> bytes | None:
        """As `open`, for people who look at many rows: one that does not open is said to be so, in JSON."""
        try:
            return self.open(tenant, place, data)
        except (PayloadUnreadable, KeyUnavailable) as error:
            return json.dumps(f"[encrypted: {error.why}]").encode()

    def seal_audit(self, tenant: str | None, detail: dict[str, Any] | None) -> dict[str, Any] | None:
        """What an operator did, for the record: parts of payloads in it are sealed."""
        if self.provider is None or not detail:
            return detail
        whose = tenant or FLEET
        return {
            name: self.seal_text(whose, ("operator_action", name), json.dumps(value, default=str))
            if name in _AUDITED_PAYLOADS
            else value
            for name, value in detail.items()
        }

    def open_audit(self, tenant: str | None, detail: dict[str, Any] | None) -> dict[str, Any] | None:
        """That record again."""
        if not detail:
            return detail
        return {
            name: _json(self.open_text(tenant or FLEET, ("operator_action", name), value))
            if name in _AUDITED_PAYLOADS and isinstance(value, str)
            else value
            for name, value in detail.items()
        }

    def blind(self, tenant: str, words: Iterable[str]) -> list[str]:
        """
        Words as an index may hold them: the same word gives the same digest for a tenant, and nobody without its
        key learns which. Of the tenant's first key, so that a rotation changes none.
        """
        self._writing(tenant)
        keys = self._rings[tenant].keys
        secret = hmac.digest(keys[min(keys)].nonces, b"agentq words", "sha256")
        return ["w" + hmac.digest(secret, word.encode("utf-8", "replace"), "sha256").hex()[:20] for word in words]

    # ── keys ─────────────────────────────────────────────────────────────────

    def forget(self, tenant: str | None = None) -> None:
        """Read keys anew: of one tenant, or of all."""
        if tenant is None:
            self._rings.clear()
        else:
            self._rings.pop(tenant, None)

    def head(self, tenant: str) -> bytes:
        """How what is sealed now begins: everything of the tenant that begins otherwise is not under this key."""
        return bytes((_SEALED,)) + self._writing(tenant).number.to_bytes(4, "big")

    def _writing(self, tenant: str) -> _Key:
        ring = self._rings.get(tenant)
        if ring is None or ring.active is None or time.monotonic() >= ring.until:
            ring = self._refresh(tenant, ring)
            for _ in range(10):
                if ring.active is not None:
                    break
                self._make(tenant, max([*ring.keys, *ring.destroyed], default=0) + 1)
                ring = self._refresh(tenant, ring)
        if ring.active is None:
            raise KeyUnavailable(f"tenant {tenant!r} has no active data key and none could be made")
        return ring.keys[ring.active]

    def _reading(self, tenant: str, number: int, place: Place) -> _Key:
        if self.provider is None:
            raise PayloadUnreadable(
                tenant, str(place[0]), "no key provider is configured (encryption_key_file, encryption_keys)"
            )
        ring = self._rings.get(tenant)
        if ring is None or number not in ring.keys or time.monotonic() >= ring.until:
            ring = self._refresh(tenant, ring)
        if number not in ring.keys:
            why = "its key was destroyed" if number in ring.destroyed else "its key is not this database's"
            raise PayloadUnreadable(tenant, str(place[0]), why)
        return ring.keys[number]

    def _refresh(self, tenant: str, seen: _Ring | None) -> _Ring:
        """What Postgres has of the tenant's keys now; each is unwrapped once in a process."""
        with self._locks[hash(tenant) % len(self._locks)]:
            last = self._rings.get(tenant)
            if last is not None and last is not seen:
                return last  # somebody has just read them
            ring = _Ring(until=time.monotonic() + _FRESH_S)
            for number, state, kek, wrapped in self._rows.query_as(tenant, SQL["of"], {"tenant": tenant}):
                if state == "destroyed":
                    ring.destroyed |= {number}
                    continue
                found = last.keys.get(number) if last is not None else None
                if found is None or found.wrapped != wrapped:
                    found = self._unwrap(tenant, number, kek, wrapped)
                ring.keys[number] = found
                if state == "active":
                    ring.active = number
            while len(self._rings) >= _TENANTS_MAX and tenant not in self._rings:
                self._rings.pop(next(iter(self._rings)), None)
            self._rings[tenant] = ring
            return ring

    def _unwrap(self, tenant: str, number: int, kek: str, wrapped: bytes) -> _Key:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        assert self.provider is not None
        secret = self.provider.unwrap(wrapped, kek, context_of(tenant, number))
        return _Key(number, AESGCM(derived(secret, "content")), derived(secret, "nonce"), wrapped)

    def _make(self, tenant: str, number: int) -> None:
        """A new data key; whoever made the same one first has made it."""
        assert self.provider is not None
        wrapped = self.provider.wrap(os.urandom(32), context_of(tenant, number))
        parameters = {"tenant": tenant, "key_no": number, "kek": self.provider.key_id, "wrapped": wrapped}
        self._rows.query_as(tenant, SQL["add"], parameters)


def row_of(data: bytes | None) -> bytes | None:
    """Which row an envelope says it is; None when it is plain. Only opening it tells whether that is true."""
    if not data or data[0] != _SEALED:
        return None
    return _parts(data, ("payload",))[1]


def key_of(data: bytes | None) -> int | None:
    """The number of the key under which this is sealed; None when it is plain."""
    if not data or data[0] != _SEALED:
        return None
    return int.from_bytes(data[1:5], "big")


def place_of_step(before: uuid.UUID, name: str, as_: str) -> uuid.UUID:
    """A step's place in its session, as `agentq.place` makes it."""
    digest = hashlib.md5(f"{before}:{as_}:{name}".encode(), usedforsecurity=False)
    return uuid.UUID(digest.hexdigest())


def context_of(tenant: str, number: int) -> bytes:
    """What a wrapped data key is bound to."""
    return f"agentq data key {number} of {tenant}".encode()


def derived(secret: bytes, purpose: str) -> bytes:
    """A key of its own for each purpose."""
    return hmac.digest(secret, f"agentq {purpose}".encode(), "sha256")


def _bound(tenant: str, place: Place, row: bytes, number: int) -> bytes:
    """What a ciphertext is bound to, each part with its length: no two places read the same."""
    parts = [b"agentq1", tenant.encode(), *(_part(part) for part in place), row, number.to_bytes(4, "big")]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def _part(part: object) -> bytes:
    return part if isinstance(part, bytes) else str(part).encode()


def _parts(data: bytes, place: Place) -> tuple[int, bytes, bytes]:
    """Number of the key, row, and the rest of an envelope."""
    length = data[5] if len(data) > 5 else 0
    row, rest = data[6 : 6 + length], data[6 + length :]
    if len(rest) < _NONCE_BYTES + _TAG_BYTES:
        raise PayloadUnreadable("", str(place[0]), "it is cut short")
    return int.from_bytes(data[1:5], "big"), row, rest


def _json(text: str) -> Any:
    """The value; a text that is no JSON is itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _is_figure(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float)
