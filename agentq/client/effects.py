"""Effects and dependencies as operators work with them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, Literal

from agentq.client.tenants import operator_name
from agentq.errors import InvalidInput, NoSuchEffect
from agentq.payload import encode
from agentq.step import valid_name
from agentq.store.dependencies import FLEET, Breakers, DependencyChange, DependencyRow, State
from agentq.store.pool import Store
from agentq.store.resolving import EffectDesk, EffectRow, Resolution

EFFECT_STATES = ("pending", "unknown", "done", "failed")
OPEN = ("pending", "unknown")


class ClientEffects:
    """The effect ledger: what is open, and a person's word on what nobody knows."""

    def __init__(self, store: Store) -> None:
        self._desk = EffectDesk(store)

    def ls(
        self,
        states: Sequence[str] = OPEN,
        *,
        tenant: str | None = None,
        session: uuid.UUID | None = None,
        limit: int = 50,
    ) -> list[EffectRow]:
        """The newest effects; those that nobody knows the end of, unless other states are named."""
        if unknown := set(states) - set(EFFECT_STATES):
            raise InvalidInput(f"an effect is {', '.join(EFFECT_STATES)}, not {', '.join(sorted(unknown))}")
        return self._desk.ls(list(states), tenant=tenant, session=session, limit=limit)

    def get(self, key: str, *, tenant: str | None = None) -> EffectRow:
        """
        One effect, with its result.

        Raises:
            NoSuchEffect: there is none of that key.
            InvalidInput: several tenants have one.
        """
        found = self._desk.find(key, tenant)
        if not found:
            raise NoSuchEffect(key, tenant)
        if len(found) > 1:
            raise InvalidInput(f"several tenants have an effect {key!r}: name one with --tenant")
        return found[0]

    def resolve(
        self,
        key: str,
        *,
        done: bool,
        result: Any = None,
        reason: str,
        tenant: str | None = None,
        dry_run: bool = False,
    ) -> tuple[Resolution, EffectRow]:
        """
        Tell what became of an effect of unknown outcome: done, with its result, or not done.

        A step that asks for it afterwards recalls that result, or makes the call under the same key. The
        same word twice changes nothing.

        Raises:
            NoSuchEffect, InvalidInput: there is none; its call is out now; or it is known to be otherwise.
        """
        if not reason.strip():
            raise InvalidInput("a resolution needs a reason")
        effect = self.get(key, tenant=tenant)
        outcome, before = self._desk.resolve(
            effect.tenant,
            key,
            result=encode(result) if done else None,
            operator=operator_name(),
            reason=reason,
            dry_run=dry_run,
        )
        match outcome:
            case "missing":
                raise NoSuchEffect(key, tenant)
            case "running":
                raise InvalidInput(
                    f"effect {key!r} is being called now by session {effect.session_id}: wait for its end"
                )
            case "settled":
                raise InvalidInput(f"effect {key!r} is known to be {before}; nothing was changed")
        return outcome, self.get(key, tenant=effect.tenant)


class ClientDependencies:
    """The breakers: looked at, forced, given back to their own judgement."""

    def __init__(self, store: Store, rules: dict[str, float]) -> None:
        self._breakers = Breakers(store, rules)

    def ls(self, name: str | None = None) -> list[DependencyRow]:
        """Every breaker, with its counters; the fleet's before the tenants' own."""
        return self._breakers.ls(name)

    def changes(self, name: str, *, limit: int = 20) -> list[DependencyChange]:
        """When its breakers opened and closed, newest first."""
        return self._breakers.changes(name, limit)

    def force(
        self,
        name: str,
        state: Literal["open", "shut", "auto"],
        *,
        reason: str,
        tenant: str | None = None,
        for_s: float | None = None,
    ) -> tuple[State, State]:
        """
        Hold everybody back (open), let everybody through (shut), or end that (auto); what it was, and is.

        With a tenant, that tenant's own breaker. Workers know within about a second.

        Raises:
            InvalidInput: no reason, a name that is none, or another word for the state.
        """
        if not reason.strip():
            raise InvalidInput("forcing a breaker needs a reason")
        if state not in ("open", "shut", "auto"):
            raise InvalidInput(f"a breaker is forced open, shut or auto, not {state!r}")
        scope = (valid_name("tenant", tenant) if tenant else FLEET, valid_name("dependency", name))
        return self._breakers.force(
            scope,
            "auto" if state == "auto" else "forced_open" if state == "open" else "forced_shut",
            for_s=for_s,
            operator=operator_name(),
            reason=reason,
        )
