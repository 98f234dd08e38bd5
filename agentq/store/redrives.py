"""Redrives as records: jobs that bring letters back, who drives them, and the policies that begin them."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

from psycopg.types.json import Jsonb

from agentq.errors import InvalidInput
from agentq.payload import storable
from agentq.step import new_id, valid_name
from agentq.store import sealing
from agentq.store.dead_letters import Selection
from agentq.store.operators import record
from agentq.store.pool import ALL_TENANTS, Row, Store, run
from agentq.store.queries import load
from agentq.store.vault import SQL as KEYS

SQL = load("redrives")

Effects = Literal["done", "not-done", "again"]
JobState = Literal["canary", "waiting", "running", "done", "stopped"]
Outcome = Literal[
    "redriven",
    "taken",  # somebody else has it, or has dealt with it
    "moved",  # its session went on without this redrive
    "generation",  # brought back too often
    "unknown_effects",  # a person must say first what happened outside
    "no_step",
    "deadline_over",
    "parent_ended",
    "agent_refused",  # its tenant may not use it any more
    "invalid_state",  # the edited state does not fit the agent's model
]

TURN_S = 30.0
_RATE_MAX = 10_000.0


@dataclass(frozen=True, slots=True)
class Terms:
    """
    How letters are brought back.

    `canary` of them first, and the rest once `threshold` of these got past the step that had died;
    `rate_per_s` bounds how fast. Letters whose session has an effect of unknown outcome are refused
    unless `effects` says what a person found. `deadline_s` gives their sessions a new deadline, from now.
    """

    canary: int = 0
    threshold: float = 1.0
    canary_timeout_s: float = 600.0
    rate_per_s: float = 10.0
    max_generation: int = 3
    effects: Effects | None = None
    from_step: str | None = None
    deadline_s: float | None = None
    edits: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.canary < 0 or not 0 < self.threshold <= 1:
            raise InvalidInput("canary is a whole number from 0, threshold above 0 and at most 1")
        if not 0 < self.rate_per_s <= _RATE_MAX:
            raise InvalidInput(f"the rate is above 0 and at most {_RATE_MAX:g}/s")
        if self.max_generation < 1 or not self.canary_timeout_s > 0:
            raise InvalidInput("max_generation is at least 1, canary_timeout above 0")
        if self.effects not in (None, "done", "not-done", "again"):
            raise InvalidInput(f"effects is done, not-done or again, not {self.effects!r}")
        if self.from_step is not None:
            valid_name("step", self.from_step)

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value not in (None, ())}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Terms:
        known = {name: value for name, value in facts.items() if name in cls.__dataclass_fields__}
        return cls(**known | {"edits": tuple(known.get("edits", ()))})


@dataclass(frozen=True, slots=True)
class Job:
    """A redrive as stored."""

    job_id: uuid.UUID
    operator: str
    reason: str
    policy: str | None
    selection: dict[str, Any]
    terms: Terms
    state: JobState
    matched: int
    redriven: int
    refused: int
    driver: str | None
    created_at: datetime
    waiting_since: datetime | None
    ended_at: datetime | None
    note: str | None
    waiting_s: float | None

    @property
    def ended(self) -> bool:
        return self.ended_at is not None

    @property
    def abandoned(self) -> bool:
        """Whether it waits for somebody to give the same command again: nobody drives it."""
        return not self.ended and self.driver is None


@dataclass(frozen=True, slots=True)
class Redriven:
    """What became of one letter."""

    tenant: str
    letter_id: uuid.UUID
    session_id: uuid.UUID
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Canaries:
    """What became of the letters that were sent ahead."""

    good: int
    bad: int
    undecided: int


@dataclass(frozen=True, slots=True)
class Policy:
    """A standing order: bring these letters back by themselves once nothing of the kind has died for a while."""

    name: str
    selection: dict[str, Any]
    quiet_s: float
    canary: int
    threshold: float
    rate_per_s: float
    max_generation: int
    enabled: bool
    operator: str
    reason: str
    changed_at: datetime | None = None

    def __post_init__(self) -> None:
        valid_name("policy", self.name)
        if self.quiet_s < 0 or self.canary < 1:
            raise InvalidInput("a policy waits for a quiet time of 0 s or more, and sends at least one canary ahead")
        self.terms()

    def terms(self) -> Terms:
        """The terms of the jobs that it begins."""
        return Terms(
            canary=self.canary,
            threshold=self.threshold,
            rate_per_s=self.rate_per_s,
            max_generation=self.max_generation,
        )


class Redrives:
    """Jobs and policies. A job's letters are taken one by one, so no two jobs bring the same one back."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def begin(
        self,
        selection: Selection,
        terms: Terms,
        *,
        operator: str,
        reason: str,
        key: str | None = None,
        policy: str | None = None,
    ) -> tuple[Job, bool]:
        """
        Begin a job, or go on with the unfinished one that is the same; whether it is new.

        `key` tells which are the same, where the selection has times that are counted from now.
        """
        selected = selection.as_json()
        same_as = _same_as(selected, terms, key if policy is None else f"policy {policy}")
        job_id: uuid.UUID | None = uuid.uuid4()
        parameters: dict[str, Any] = {
            "job": job_id,
            "same_as": same_as,
            "operator": operator,
            "reason": storable(reason),
            "policy": policy,
            "selection": Jsonb(selected),
            "terms": Jsonb(terms.as_json()),
            "canary": terms.canary,
        }
        with self.store.transaction(ALL_TENANTS) as connection:
            made = run(connection, SQL["begin"], parameters)
            if made:
                record(
                    connection,
                    operator=operator,
                    tenant=selection.tenant,
                    action="dlq redrive",
                    target=str(job_id),
                    reason=reason,
                    detail={"selection": selected, "terms": terms.as_json(), "policy": policy},
                )
            else:
                rows = run(connection, SQL["under_way"], parameters)
                job_id = rows[0][0] if rows else None
        if job_id is None:  # it ended between the two
            return self.begin(selection, terms, operator=operator, reason=reason, key=key, policy=policy)
        return self.get(job_id), bool(made)

    def under_way(self, selection: Selection, terms: Terms, key: str | None = None) -> Job | None:
        """The unfinished job of this selection and these terms."""
        rows = self._run("under_way", {"same_as": _same_as(selection.as_json(), terms, key)})
        return self.get(rows[0][0]) if rows else None

    def go_on(self, job: Job, terms: Terms) -> None:
        """Take an unfinished job up again, at a new rate if one is given."""
        changed = {"rate_per_s": terms.rate_per_s, "canary_timeout_s": terms.canary_timeout_s}
        self._run("go_on", {"job": job.job_id, "selection": Jsonb(job.selection), "terms": Jsonb(changed)})

    def get(self, job_id: uuid.UUID) -> Job:
        """
        A job.

        Raises:
            InvalidInput: there is none of that id.
        """
        rows = self._run("get", {"job": job_id})
        if not rows:
            raise InvalidInput(f"there is no redrive {job_id}")
        return _job(rows[0])

    def recent(self, limit: int = 20) -> list[Job]:
        """The newest jobs."""
        return [_job(row) for row in self._run("recent", {"limit": limit})]

    def take_turn(self, job_id: uuid.UUID, driver: str) -> bool:
        """Drive the job for the next half minute; False: another process does, or it has ended."""
        return bool(self._run("take_turn", {"job": job_id, "driver": driver, "lease_s": TURN_S}))

    def leave(self, job_id: uuid.UUID, driver: str) -> None:
        """Give the turn up."""
        self._run("leave", {"job": job_id, "driver": driver})

    def next(self, job_id: uuid.UUID, limit: int, *, canary: bool) -> list[Redriven]:
        """Bring the next letters back; empty when the job has been through all of them."""
        rows = self.store.query(SQL["next"], {"job": job_id, "max": limit, "canary": canary})
        return [Redriven(*row) for row in rows]

    def candidates(self, job: Job, limit: int) -> list[tuple[str, uuid.UUID]]:
        """The next letters of a job whose states are edited one by one: tenant and id."""
        parameters = {"job": job.job_id, "selection": Jsonb(job.selection), "max": limit}
        return [(row[0], row[1]) for row in self._run("candidates", parameters)]

    def redrive_edited(
        self, job: Job, tenant: str, letter_id: uuid.UUID, state: bytes, diff: list[dict[str, Any]], *, canary: bool
    ) -> Outcome:
        """Bring one letter back with this state; what was edited, by whom and why, is kept with it."""
        vault, edit = self.store.vault, new_id()
        for (session,) in self.store.query_as(
            tenant, KEYS["session_of_letter"], {"tenant": tenant, "letter": letter_id}
        ):
            state = vault.seal(tenant, sealing.state_in(session), state, row=edit.bytes + bytes(16))
        parameters = {"job": job.job_id, "tenant": tenant, "letter": letter_id, "state": state, "canary": canary}
        parameters["edit"] = edit
        with self.store.transaction(ALL_TENANTS) as connection:
            outcome: Outcome = run(connection, SQL["edited"], parameters)[0][0]
            if outcome == "redriven":
                record(
                    connection,
                    operator=job.operator,
                    tenant=tenant,
                    action="dlq edit",
                    target=str(letter_id),
                    reason=job.reason,
                    detail=vault.seal_audit(tenant, {"job": str(job.job_id), "diff": diff}),
                )
            return outcome

    def pass_over(self, job: Job, tenant: str, letter_id: uuid.UUID) -> None:
        """Leave a letter whose edited state does not fit, and count it as refused."""
        self._run("pass_over", {"job": job.job_id, "tenant": tenant, "letter": letter_id})

    def canaries(self, job_id: uuid.UUID) -> Canaries:
        """What became of the canaries so far."""
        return Canaries(*self._run("canaries", {"job": job_id})[0])

    def canary_count(self, job_id: uuid.UUID) -> int:
        return int(self._run("canary_count", {"job": job_id})[0][0])

    def move_on(self, job: Job, state: JobState, note: str | None = None) -> Job:
        """Put the job into its next state; its end is kept in the record of actions."""
        parameters = {"job": job.job_id, "state": state, "note": storable(note) if note else None}
        with self.store.transaction(ALL_TENANTS) as connection:
            moved = run(connection, SQL["move_on"], parameters)
            after = _job(run(connection, SQL["get"], parameters)[0])
            if moved and after.ended:
                record(
                    connection,
                    operator=job.operator,
                    tenant=job.selection.get("tenant"),
                    action=f"dlq redrive {after.state}",
                    target=str(job.job_id),
                    reason=job.reason,
                    detail={"redriven": after.redriven, "refused": after.refused, "note": note},
                )
        return after

    def outcomes(self, job_id: uuid.UUID) -> dict[str, int]:
        """States of the letters that the job brought back."""
        return {row[0]: row[1] for row in self._run("outcomes", {"job": job_id})}

    # ── policies ─────────────────────────────────────────────────────────────

    def set_policy(self, policy: Policy) -> None:
        """Add or replace a policy."""
        facts = asdict(policy) | {"selection": Jsonb(policy.selection)}
        with self.store.transaction(ALL_TENANTS) as connection:
            run(connection, SQL["set_policy"], facts)
            detail = {name: value for name, value in asdict(policy).items() if name not in ("changed_at", "reason")}
            record(
                connection,
                operator=policy.operator,
                tenant=policy.selection.get("tenant"),
                action="dlq policy set",
                target=policy.name,
                reason=policy.reason,
                detail=detail,
            )

    def remove_policy(self, name: str, *, operator: str, reason: str) -> bool:
        """Remove it; False: there is none. A job that it began goes on."""
        with self.store.transaction(ALL_TENANTS) as connection:
            if not run(connection, SQL["remove_policy"], {"name": name}):
                return False
            record(
                connection,
                operator=operator,
                tenant=None,
                action="dlq policy rm",
                target=name,
                reason=reason,
                detail=None,
            )
            return True

    def policies(self) -> list[Policy]:
        return [Policy(*row) for row in self._run("policies", {"name": None})]

    def policies_due(self) -> list[Policy]:
        """Those whose trouble seems to be over."""
        return [Policy(*row) for row in self._run("policies_due", {})]

    def policy_jobs(self) -> list[uuid.UUID]:
        return [row[0] for row in self._run("policy_jobs", {})]

    def _run(self, name: str, parameters: dict[str, Any]) -> list[Row]:
        return self.store.query_as(ALL_TENANTS, SQL[name], parameters)


def _same_as(selection: dict[str, Any], terms: Terms, key: str | None) -> str:
    chosen = key if key is not None else selection
    rest = {name: value for name, value in terms.as_json().items() if name not in ("rate_per_s", "canary_timeout_s")}
    text = json.dumps([chosen, rest], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _job(row: Row) -> Job:
    facts: list[Any] = list(row)
    facts[5] = Terms.from_json(facts[5])
    return Job(*facts)
