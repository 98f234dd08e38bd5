"""
Verdicts: the closed sets of values that pass between the floors.

A claim is granted or not. An attempt has an outcome. The engine turns the outcome into a
settlement, and a delivery ends in a verdict. All are frozen, so `match` can be exhaustive.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from agentq.causes import Cause, cause_of
from agentq.step import StepRef

FailureKind = Literal[
    "transient",
    "semantic",
    "unclassified",
    "permanent",
    "unknown",
    "refused",
    "worker_lost",
    "timeout",
    "gave_up",
    "cancelled",
    "deadline",
    "limit",
]


@dataclass(frozen=True, slots=True)
class Failure:
    """
    What went wrong, in words that are safe to keep: no arguments, no frame variables.

    `where` is the innermost frame; `place` the innermost one in the user's own code, by which failures
    of one cause are found to be alike.
    """

    kind: FailureKind
    type: str
    message: str
    retry_after_s: float | None = None
    where: str = ""
    place: str = ""
    final: bool = False  # whatever its kind, another attempt would not help
    status: int | None = None
    dependency: str | None = None  # what was called, when the failure speaks against it
    feedback: str | None = None  # what the next attempt is told, when it is to repair a wrong answer

    def cause(self, agent: str, step: str) -> Cause:
        """The cause of this failure in a step."""
        return cause_of(kind=self.kind, type=self.type, message=self.message, place=self.place or f"{agent}.{step}")

    def as_json(self, attempt: int | None = None) -> dict[str, Any]:
        facts: dict[str, Any] = {"kind": self.kind, "type": self.type, "message": _storable(self.message)}
        if self.where:
            facts["where"] = _storable(self.where)
        if self.place:
            facts["place"] = _storable(self.place)
        if self.status is not None:
            facts["status"] = self.status
        if self.dependency is not None:
            facts["dependency"] = self.dependency
        if self.feedback is not None:
            facts["feedback"] = _storable(self.feedback)
        if attempt is not None:
            facts["attempt"] = attempt
        return facts


def _storable(text: str) -> str:
    """The text without what Postgres refuses: zero characters and halves of surrogate pairs."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


@dataclass(frozen=True, slots=True)
class Wake:
    """A step to publish, with the names that people read in Flower."""

    tenant: str
    session_id: uuid.UUID
    step_id: uuid.UUID
    name: str
    quarantine: bool
    epoch: int

    @classmethod
    def from_json(cls, tenant: str, facts: dict[str, Any]) -> Wake:
        """As the store's functions state it; a slot that was passed on wakes another tenant's step, which they name."""
        return cls(
            facts.get("tenant", tenant),
            uuid.UUID(facts["session"]),
            uuid.UUID(facts["step"]),
            facts["name"],
            facts["quarantine"],
            facts["epoch"],
        )


# ── a claim ──────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Granted:
    """The right to one attempt. `fence` and `token` are named by every write that ends it."""

    ref: StepRef
    token: int
    fence: int
    attempt: int
    attempts_max: int
    crashes: int
    seq: int
    name: str
    agent: str
    agent_version: int
    timeout_s: float
    args: bytes | None
    state_from: uuid.UUID | None
    states: tuple[bytes, ...] | None
    input: bytes | None
    join_step: uuid.UUID | None
    branch: int | None
    fan: int
    priority: int
    remaining_s: float | None
    queued_s: float
    path: uuid.UUID
    generation: int
    dry_effects: bool
    traced_by: uuid.UUID | None = None  # the worker, where attempts leave a trace
    approval: uuid.UUID | None = None  # what it waited for
    repairs: int = 0
    refusals: int = 0
    repair: dict[str, Any] | None = None  # the failure that this attempt is to repair
    state_version: int | None = None  # the agent's version that wrote the state
    unreadable: str | None = None  # why what it holds cannot be decrypted


Refusal = Literal[
    "missing",  # no such step: a forged or very old message
    "settled",  # a duplicate of a finished step
    "running",  # another delivery has it
    "ended",  # its session is over
    "not_due",  # a timer, a backoff, or not admitted yet
    "paused",
    "tenant_paused",
    "quarantined",  # it belongs to the other worker group
    "unserved",  # this worker does not have the agent's version
    "worker_dead",  # this process was taken for dead and must register again
]


@dataclass(frozen=True, slots=True)
class NotGranted:
    """The delivery has nothing to do; the ledger or the relay holds what happens next."""

    ref: StepRef
    reason: Refusal


# ── what an attempt came to ──────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Usage:
    """What model calls of one attempt used. Money in micros of a US dollar."""

    tokens_in: int = 0
    tokens_out: int = 0
    cost_micros: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.tokens_in + other.tokens_in,
            self.tokens_out + other.tokens_out,
            self.cost_micros + other.cost_micros,
        )


def usd(micros: int | None) -> str:
    """Micros of a dollar as people write them."""
    if micros is None:
        return ""
    text = f"{micros / 1_000_000:.6f}".rstrip("0")
    whole, _, cents = text.partition(".")
    return f"${whole}.{cents.ljust(2, '0')}"


@dataclass(frozen=True, slots=True)
class NewStep:
    """A step that follows. With `fan` it is a join and waits for that many branches."""

    step_id: uuid.UUID
    name: str
    attempts_max: int
    timeout_s: float
    args: bytes | None = None
    delay_s: float = 0.0
    join_step: uuid.UUID | None = None
    branch: int | None = None
    fan: int = 0
    collect: bool = False
    approval: uuid.UUID | None = None  # waits for it


@dataclass(frozen=True, slots=True)
class NewApproval:
    """A question to people. The step waits until it is decided or its time is over."""

    approval_id: uuid.UUID
    step_id: uuid.UUID
    kind: Literal["ask", "effect"]
    name: str
    args: bytes
    args_hash: bytes
    question: str
    groups: tuple[str, ...]
    within_s: float
    effect_key: str | None = None
    details: bytes | None = None
    channels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NewChild:
    """A child session that a join of this session waits for."""

    session_id: uuid.UUID
    agent: str
    version: int
    input: bytes
    input_hash: bytes
    step_id: uuid.UUID
    name: str
    attempts_max: int
    timeout_s: float
    join_step: uuid.UUID
    branch: int


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """
    Something that an attempt did, redacted already; times count from the attempt's start.

    Its usage is a part of the attempt's, told apart; it is not added to it.
    """

    kind: str
    name: str
    at_s: float
    took_s: float
    usage: Usage = field(default_factory=Usage)
    failure: Failure | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    input: bytes | None = None
    output: bytes | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """A choice that an attempt made, redacted already."""

    at_s: float
    options: bytes
    picked: str
    why: str | None = None
    confidence: float | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)
    approver: str | None = None
    bare_options: bytes | None = None  # for a tenant that keeps no content: without those in a model's words


@dataclass(frozen=True, slots=True)
class Charge:
    """What a reserved call came to: charged as used, uncertain (charged as estimated), or never sent."""

    reservation_id: str
    state: Literal["charged", "uncertain", "released"]
    cost_micros: int | None = None
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    note: str | None = None

    def as_json(self) -> dict[str, Any]:
        """As the function `agentq.settle_charges` reads it."""
        return {
            "id": self.reservation_id,
            "state": self.state,
            "micros": self.cost_micros,
            "input": self.input_tokens,
            "cached": self.cached_tokens,
            "output": self.output_tokens,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class MemoryWrite:
    """
    A memory as it is to be written, or forgotten.

    `op` is its place in its step or effect: the same content from the same place is written once. `text` is what
    it is found by; None: it is not searched.
    """

    kind: Literal["put", "delete"]
    namespace: str
    key: str
    digest: bytes
    op: str | None = None
    value: bytes | None = None
    text: str | None = None
    language: str = "simple"
    fields: tuple[str, ...] | None = None
    ttl_s: float | None = None
    if_version: int | None = None
    embedding: tuple[float, ...] | None = None
    embedded_by: str | None = None

    def as_json(self) -> dict[str, Any]:
        """As the function `agentq.write_memories` reads it; what is not set is left out."""
        facts: dict[str, Any] = {
            "kind": self.kind,
            "ns": self.namespace,
            "key": self.key,
            "op": self.op,
            "digest": base64.b64encode(self.digest).decode("ascii"),
            "value": base64.b64encode(self.value).decode("ascii") if self.value is not None else None,
            "text": self.text,
            "language": self.language,
            "fields": list(self.fields) if self.fields is not None else None,
            "ttl_s": self.ttl_s,
            "if_version": self.if_version,
            "embedding": list(self.embedding) if self.embedding is not None else None,
            "embedded_by": self.embedded_by,
        }
        return {name: fact for name, fact in facts.items() if fact is not None}


@dataclass(frozen=True, slots=True)
class Extras:
    """What an attempt leaves beside its state: messages for the history, usage, and what is written of it."""

    messages: tuple[tuple[bytes, str], ...] = ()
    usage: Usage = field(default_factory=Usage)
    trace: tuple[TraceEvent, ...] = ()
    decisions: tuple[Decision, ...] = ()
    charges: tuple[Charge, ...] = ()
    memories: tuple[MemoryWrite, ...] = ()

    def of_failed(self) -> Extras:
        """
        What is written of an attempt that brought the session no further: everything but its messages and memories.
        """
        return replace(self, messages=(), memories=())


@dataclass(frozen=True, slots=True)
class Proceeded:
    """The step ended and others follow."""

    state: bytes
    steps: tuple[NewStep, ...]
    children: tuple[NewChild, ...] = ()
    extras: Extras = field(default_factory=Extras)
    asks: tuple[NewApproval, ...] = ()
    version: int | None = None  # of the agent that wrote the state; None: it is as the step found it


@dataclass(frozen=True, slots=True)
class Finished:
    """The session, or the branch, has its result."""

    result: bytes
    state: bytes
    extras: Extras = field(default_factory=Extras)
    version: int | None = None


@dataclass(frozen=True, slots=True)
class GaveUp:
    """The step decided that its session fails; that is no error of the step."""

    failure: Failure
    state: bytes
    extras: Extras = field(default_factory=Extras)
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Broke:
    """The attempt raised. What it had used by then is written all the same; its messages are not."""

    failure: Failure
    extras: Extras = field(default_factory=Extras)


@dataclass(frozen=True, slots=True)
class Repairing:
    """The answer was wrong: the next attempt is told so, at once. Counted as a repair, not as an attempt."""

    failure: Failure
    extras: Extras = field(default_factory=Extras)


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The attempt was stopped from outside: cancelled, fenced off, or handed back while draining."""

    reason: Literal["cancelled", "fenced", "draining"]


@dataclass(frozen=True, slots=True)
class Postponed:
    """
    Not now, through no fault of the step: it comes back later, and the attempt does not count.

    `refund` names a dependency that is out of order: attempts that failed on it before it was known are
    given back too. `failure` says why, for people.
    """

    delay_s: float
    extras: Extras = field(default_factory=Extras)
    refund: str | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Parked:
    """
    Not without a person, through no fault of the step: its session is paused, and the attempt does not count.

    `hold` says why: kind (operator, breaker or limit), by, reason and evidence.
    """

    hold: dict[str, Any]
    extras: Extras = field(default_factory=Extras)


@dataclass(frozen=True, slots=True)
class Awaiting:
    """A call of the step needs a person's leave first: the step waits and runs again; the attempt does not count."""

    approval_id: uuid.UUID
    ask: NewApproval | None  # None: somebody is asked already
    extras: Extras = field(default_factory=Extras)


Outcome = Proceeded | Finished | GaveUp | Broke | Repairing | Interrupted | Postponed | Parked | Awaiting


# ── a settlement ─────────────────────────────────────────────────────────────

Closing = Literal["next", "end", "fail", "retry", "repair", "postpone", "await", "dead", "release", "park", "cancelled"]


@dataclass(frozen=True, slots=True)
class Settlement:
    """One attempt's end as it is written."""

    closing: Closing
    delay_s: float = 0.0
    kind: Literal["full", "delta", "same"] = "same"
    state: bytes | None = None
    parent: uuid.UUID | None = None
    state_from: uuid.UUID | None = None
    result: bytes | None = None
    failure: Failure | None = None
    hold: dict[str, Any] | None = None
    refund: str | None = None
    steps: tuple[NewStep, ...] = ()
    children: tuple[NewChild, ...] = ()
    extras: Extras = field(default_factory=Extras)
    asks: tuple[NewApproval, ...] = ()
    awaits: uuid.UUID | None = None
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Settled:
    """The settlement is durable; `wakes` may be published, `more` rows wait for admission."""

    wakes: tuple[Wake, ...]
    more: bool
    session_ended_before: bool


# ── how a delivery ended ─────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Carried:
    """
    The attempt was settled: next, end, fail, retry, repair, postpone, await, dead, release, park or cancelled.

    `agent` and `kind`, the class of its failure, are for people who read Flower.
    """

    closing: Closing
    agent: str = field(default="", compare=False)
    kind: str = field(default="", compare=False)

    def __str__(self) -> str:
        return " ".join(filter(None, (self.closing, self.kind, self.agent)))


@dataclass(frozen=True, slots=True)
class Dropped:
    """Nothing to do: a duplicate, or a step that is not due, paused or not ours."""

    reason: Refusal


@dataclass(frozen=True, slots=True)
class Superseded:
    """A newer attempt owns the step; this one's result was thrown away."""

    fence: int


@dataclass(frozen=True, slots=True)
class Deferred:
    """Postgres or this worker could not take it now; the relay brings it back."""

    reason: Literal["store_unavailable", "draining"]


Verdict = Carried | Dropped | Superseded | Deferred
