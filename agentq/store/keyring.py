"""The key ring: what operators do with tenants' data keys. Each change leaves its audit row."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime

from agentq.errors import ConfigError
from agentq.store.operators import record
from agentq.store.pool import ALL_TENANTS, Connection, Store, run
from agentq.store.resealing import Resealed, reseal
from agentq.store.vault import SQL, KeyProvider, context_of

__all__ = ["KeyRow", "Keyring", "destroy"]


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A tenant's data key: what it is for, and which key of the provider wraps it. Never the key."""

    tenant: str
    key_no: int
    state: str
    kek: str
    created_at: datetime
    retired_at: datetime | None
    destroyed_at: datetime | None


class Keyring:
    """Lists, rotates and rewraps."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def ls(self, tenant: str | None = None) -> list[KeyRow]:
        """The keys of one tenant, or of all; `*` is the fleet's own."""
        return [KeyRow(*row) for row in self.store.query_as(tenant or ALL_TENANTS, SQL["ls"], {"tenant": tenant})]

    def rotate(self, tenant: str, *, operator: str, reason: str) -> int:
        """
        A new data key for what the tenant writes from now on; its number. What older ones sealed stays readable.

        Every process goes over to it within seconds. Of two at once one rotates and the other finds it done.

        Raises:
            ConfigError: no key provider is configured.
            KeyUnavailable: it does not answer.
        """
        provider = self._provider()
        known = self.ls(tenant)
        active = next((row.key_no for row in known if row.state == "active"), None)
        number = max((row.key_no for row in known), default=0) + 1
        wrapped = provider.wrap(os.urandom(32), context_of(tenant, number))
        new = {"tenant": tenant, "key_no": number, "kek": provider.key_id, "wrapped": wrapped}
        with self.store.transaction(tenant) as connection:
            if active is not None and not run(connection, SQL["retire"], {"tenant": tenant, "key_no": active}):
                return number  # somebody else has just done so
            if not run(connection, SQL["add"], new):
                return number
            record(
                connection,
                operator=operator,
                tenant=tenant,
                action="keys rotate",
                target=tenant,
                reason=reason,
                detail={"key_no": number, "before": active},
            )
        self.store.vault.forget(tenant)
        return number

    def reseal(self, tenant: str, *, operator: str, reason: str, dry_run: bool = False) -> Resealed:
        """
        Seal under the tenant's present key what is in plain or under an older one, in batches.

        Raises:
            ConfigError: no key provider is configured.
            KeyUnavailable: it does not answer.
        """
        self._provider()
        self.store.vault.forget(tenant)
        found = reseal(self.store, tenant, dry_run=dry_run)
        if not dry_run:
            detail = {"payloads": found.counts, "unreadable": found.unreadable}
            with self.store.transaction(tenant) as connection:
                record(
                    connection,
                    operator=operator,
                    tenant=tenant,
                    action="keys reseal",
                    target=tenant,
                    reason=reason,
                    detail=detail,
                )
        return found

    def to_rewrap(self, tenant: str | None = None) -> int:
        """How many data keys another key of the provider wraps than the present one."""
        return len(self._others(self._provider(), tenant))

    def rewrap(self, tenant: str | None = None, *, operator: str, reason: str) -> int:
        """
        Wrap by the provider's present key what older ones wrap; how many. Payloads are not touched.

        Interrupted, the same call again does the rest. After it, an older key may be taken out of the provider.

        Raises:
            ConfigError: no key provider is configured.
            KeyUnavailable: it does not answer, or lacks a key that still wraps one.
        """
        provider, count = self._provider(), 0
        for whose, number, kek, wrapped in self._others(provider, tenant):
            context = context_of(whose, number)
            again = provider.wrap(provider.unwrap(wrapped, kek, context), context)
            change = {"tenant": whose, "key_no": number, "kek": provider.key_id, "wrapped": again, "before": wrapped}
            count += len(self.store.query_as(whose, SQL["rewrap"], change))
        with self.store.transaction(ALL_TENANTS) as connection:
            record(
                connection,
                operator=operator,
                tenant=tenant,
                action="keys rewrap",
                target=tenant or "every tenant",
                reason=reason,
                detail={"kek": provider.key_id, "keys": count},
            )
        self.store.vault.forget(tenant)
        return count

    def _others(self, provider: KeyProvider, tenant: str | None) -> list[tuple[str, int, str, bytes]]:
        parameters = {"kek": provider.key_id, "tenant": tenant}
        rows = self.store.query_as(tenant or ALL_TENANTS, SQL["wrapped_by_others"], parameters)
        return [(row[0], row[1], row[2], row[3]) for row in rows]

    def _provider(self) -> KeyProvider:
        provider = self.store.vault.provider
        if provider is None:
            raise ConfigError(
                "no key provider is configured: set encryption_key_file, encryption_keys or encryption_provider"
            )
        return provider


def destroy(connection: Connection, tenant: str) -> list[int]:
    """Destroy every data key of a tenant, in the caller's transaction, which has named it; their numbers."""
    return [row[0] for row in run(connection, SQL["destroy"], {"tenant": tenant})]
