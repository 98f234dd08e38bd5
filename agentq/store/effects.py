"""Effects: what was done outside agentq, under a key that every attempt shares."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any, Literal, cast

from agentq.step import StepRef
from agentq.store import sealing
from agentq.store.ledger import failure_json
from agentq.store.pool import Store
from agentq.store.queries import load
from agentq.verdicts import Failure, Granted

SQL = load("effects")

EffectState = Literal["fresh", "again", "done", "pending", "mine", "held", "unknown", "conflict", "superseded", "dry"]


@dataclass(frozen=True, slots=True)
class EffectClaim:
    """
    What is known of an effect before its call.

    fresh: never tried. again: its last call failed. done: `result` is stored. pending: an attempt
    died between claim and result. mine: pending under this very attempt. held: another step is
    calling now. unknown: waits for a person. conflict: the key was used with other arguments.
    superseded: this attempt lost its fence. dry: not recorded, and this session only recalls.
    """

    state: EffectState
    result: bytes | None
    failure: dict[str, Any] | None


class Effects:
    """Claimed before the call, settled after it."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def claim(self, claim: Granted, key: str, *, name: str, args_hash: bytes, durable: bool) -> EffectClaim:
        """Claim the effect for this attempt; `durable` waits for the disk before the call may go out."""
        [row] = self.store.query(
            SQL["claim_effect"],
            _fenced(claim, key)
            | {"token": claim.token, "name": name, "hash": args_hash, "durable": durable}
            | {"dry": claim.dry_effects},
        )
        vault, tenant = self.store.vault, claim.ref.tenant
        result = vault.open(tenant, sealing.effect_result(key), row[1])
        return EffectClaim(cast(EffectState, row[0]), result, vault.open_failure(tenant, row[2]))

    def take_over(self, claim: Granted, key: str, *, calling: bool) -> bool:
        """Own an effect that a dead attempt left pending. False: the fence is lost, or another step was quicker."""
        parameters = _fenced(claim, key) | {"token": claim.token, "calling": calling}
        return bool(self.store.query(SQL["take_over_effect"], parameters)[0][0])

    def give_back(self, claim: Granted, key: str) -> bool:
        """Undo a claim whose call never went out. False: another attempt owns the effect by now."""
        return bool(self.store.query(SQL["give_back_effect"], _fenced(claim, key))[0][0])

    def settle(
        self,
        claim: Granted,
        key: str,
        state: Literal["done", "failed", "unknown"],
        *,
        result: bytes | None = None,
        failure: Failure | None = None,
    ) -> bool:
        """Store the call's end. False: another attempt owns the effect by now."""
        vault, tenant = self.store.vault, claim.ref.tenant
        parameters = _fenced(claim, key) | {
            "state": state,
            "result": vault.seal(tenant, sealing.effect_result(key), result),
            "failure": failure_json(vault, tenant, failure),
        }
        return bool(self.store.query(SQL["settle_effect"], parameters)[0][0])

    def result(self, ref: StepRef, key: str) -> bytes | None:
        """What an effect of this session came to; None: it is another's, or has no result."""
        parameters = {"tenant": ref.tenant, "session": ref.session_id, "key": key}
        rows = self.store.query_as(ref.tenant, SQL["effect_result"], parameters)
        return self.store.vault.open(ref.tenant, sealing.effect_result(key), rows[0][0]) if rows else None


def _fenced(claim: Granted, key: str) -> dict[str, Any]:
    session: uuid.UUID = claim.ref.session_id
    return {
        "tenant": claim.ref.tenant,
        "key": key,
        "session": session,
        "step": claim.ref.step_id,
        "fence": claim.fence,
    }
