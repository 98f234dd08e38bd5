"""Dead letters as records: selected, grouped, discarded, exported; and messages that nobody understood."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, get_args

from psycopg.rows import tuple_row
from psycopg.types.json import Jsonb

from agentq.errors import InvalidInput, PayloadUnreadable
from agentq.payload import encode, fold, storable
from agentq.step import valid_name
from agentq.store import sealing
from agentq.store.pool import ALL_TENANTS, Row, Store, run
from agentq.store.queries import load
from agentq.store.vault import FLEET, Place
from agentq.verdicts import FailureKind

SQL = load("dead_letters")
SESSIONS = load("sessions")

LetterState = Literal["open", "redriving", "redriven", "discarded", "resolved"]
GroupBy = Literal["cause", "agent", "tenant", "step", "class", "dependency"]

POISON_BODY_MAX_BYTES = 64 * 1024

_CAUSE = re.compile(r"[0-9a-f]{1,12}\Z")
_PLAN_SAMPLE = 200
_DISCARD_BATCH = 5000


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter as stored."""

    tenant: str
    letter_id: uuid.UUID
    session_id: uuid.UUID
    step_id: uuid.UUID
    generation: int
    agent: str
    agent_version: int
    step: str
    seq: int
    kind: str
    cause: str
    cause_text: str
    dependency: str | None
    failure: dict[str, Any]
    attempts: list[dict[str, Any]]
    attempt: int
    crashes: int
    state_from: uuid.UUID | None
    cost_micros: int
    effects_pending: int
    effects_unknown: int
    state: LetterState
    job_id: uuid.UUID | None
    canary: bool
    changed_by: str | None
    note: str | None
    died_at: datetime
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class LetterGroup:
    """Letters that have something in common."""

    key: str
    letters: int
    tenants: int
    causes: int
    sample: str
    agents: tuple[str, str]
    first_at: datetime
    last_at: datetime
    cost_micros: int
    with_unknown_effects: int
    generation_max: int


@dataclass(frozen=True, slots=True)
class Selection:
    """
    Which letters: everything that is given must hold.

    `cause` may be the beginning of one, `agent` a name or `name@version`. `since` and `before` bound
    the moment of death. Nothing else reads filters than the function to which this is handed.
    """

    letters: tuple[uuid.UUID, ...] = ()
    session: uuid.UUID | None = None
    tenant: str | None = None
    cause: str | None = None
    agent: str | None = None
    step: str | None = None
    kind: str | None = None
    dependency: str | None = None
    generation: int | None = None
    since: datetime | None = None
    before: datetime | None = None
    job: uuid.UUID | None = None
    state: LetterState | None = "open"

    def __post_init__(self) -> None:
        if self.cause is not None and not _CAUSE.match(self.cause):
            raise InvalidInput(
                f"{self.cause!r} is no cause: use the first of its hexadecimal digits (dlq ls --by cause)"
            )
        for kind, name in (
            ("tenant", self.tenant),
            ("agent", (self.agent or "a").partition("@")[0]),
            ("step", self.step),
        ):
            if name is not None:
                valid_name(kind, name)
        version = (self.agent or "").partition("@")[2]
        if version and not version.isdecimal():
            raise InvalidInput(f"{self.agent!r} is no agent: use NAME or NAME@VERSION")
        if self.kind is not None and self.kind not in get_args(FailureKind):
            raise InvalidInput(f"{self.kind!r} is no class: use one of {', '.join(get_args(FailureKind))}")
        if self.state is not None and self.state not in get_args(LetterState):
            raise InvalidInput(f"{self.state!r} is no state: use one of {', '.join(get_args(LetterState))}")

    @property
    def narrows(self) -> bool:
        """Whether anything but the state is given: what changes many letters asks for it."""
        return set(self.as_json()) - {"state"} != set()

    def as_json(self) -> dict[str, Any]:
        """As `agentq.letters` reads it."""
        agent, _, version = (self.agent or "").partition("@")
        facts: dict[str, Any] = {
            "letters": sorted(map(str, self.letters)) or None,
            "session": str(self.session) if self.session else None,
            "tenant": self.tenant,
            "cause": self.cause,
            "agent": agent or None,
            "version": int(version) if version else None,
            "step": self.step,
            "class": self.kind,
            "dependency": self.dependency,
            "generation": self.generation,
            "since": self.since.isoformat() if self.since else None,
            "before": self.before.isoformat() if self.before else None,
            "job": str(self.job) if self.job else None,
            "state": self.state,
        }
        return {name: value for name, value in facts.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a redrive of a selection would do, as far as can be told beforehand."""

    letters: int
    too_often: int
    with_pending_effects: int
    with_unknown_effects: int
    agents: tuple[AgentCost, ...]
    without_step: int = 0  # that ran none of the name to go on from

    @property
    def redrives(self) -> int:
        """How many would be brought back at least, when unknown effects are not decided."""
        return max(self.letters - self.too_often - self.with_unknown_effects - self.without_step, 0)

    @property
    def expected_cost_micros(self) -> int | None:
        """What these sessions will go on to cost, going by those that ended well; None: nothing is known."""
        known = [agent.expected_micros for agent in self.agents if agent.expected_micros is not None]
        return sum(known) if known else None


@dataclass(frozen=True, slots=True)
class AgentCost:
    """An agent's letters, what they have cost so far, and what a session of it usually costs."""

    agent: str
    letters: int
    spent_micros: int
    usual_micros: int | None
    samples: int

    @property
    def expected_micros(self) -> int | None:
        """What remains to be spent on all of them: a redrive goes on where its session stopped."""
        if self.usual_micros is None:
            return None
        return self.letters * max(self.usual_micros - self.spent_micros, 0)


@dataclass(frozen=True, slots=True)
class Poison:
    """A message that nobody understood."""

    poison_id: int
    tenant: str
    queue: str
    reason: str
    times: int
    size_bytes: int
    first_at: datetime
    last_at: datetime
    body: bytes


@dataclass(frozen=True, slots=True)
class Notice:
    """What is said of a letter in the tenant's dead letter queue: ids, cause and class, no payload."""

    tenant: str
    letter_id: uuid.UUID
    session_id: uuid.UUID
    step_id: uuid.UUID
    agent: str
    step: str
    kind: str
    cause: str
    cause_text: str
    generation: int
    died_at: datetime

    def as_message(self) -> dict[str, Any]:
        """What the broker gets to know: ids, and where which type of failure was; never what its message quotes."""
        return {
            "letter": str(self.letter_id),
            "tenant": self.tenant,
            "session": str(self.session_id),
            "step_id": str(self.step_id),
            "agent": self.agent,
            "step": self.step,
            "class": self.kind,
            "cause": self.cause,
            "about": self.cause_text.partition(": ")[0],
            "generation": self.generation,
            "died_at": self.died_at.isoformat(),
        }


class DeadLetterStore:
    """The letters of all tenants, or of those that a selection names."""

    def __init__(self, store: Store) -> None:
        self.store = store

    # ── looking ──────────────────────────────────────────────────────────────

    def ls(self, selection: Selection, limit: int = 50) -> list[Letter]:
        """The newest that match."""
        return [self._letter(row) for row in self._read("ls", selection, limit=limit)]

    def count(self, selection: Selection) -> int:
        return int(self._read("count", selection)[0][0])

    def groups(self, by: GroupBy, selection: Selection, limit: int = 50) -> list[LetterGroup]:
        """The largest groups of those that match."""
        if by not in get_args(GroupBy):
            raise InvalidInput(f"letters are grouped by {', '.join(get_args(GroupBy))}, not by {by!r}")
        return [_group(row) for row in self._read("groups", selection, by=by, limit=limit)]

    def find(self, prefix: str, tenant: str | None = None) -> list[tuple[str, uuid.UUID]]:
        """
        The letters whose id begins so, or else those of a session or step whose id does.

        Raises:
            InvalidInput: it is no beginning of an id.
        """
        digits = prefix.replace("-", "").lower()
        if not digits or len(digits) > 32 or any(digit not in "0123456789abcdef" for digit in digits):
            raise InvalidInput(f"{prefix!r} is not the beginning of a letter's or session's id: use hexadecimal digits")
        parameters = {
            "low": uuid.UUID(digits.ljust(32, "0")),
            "high": uuid.UUID(digits.ljust(32, "f")),
            "tenant": tenant,
        }
        rows = self.store.query_as(tenant or ALL_TENANTS, SQL["find"], parameters)
        direct = [row for row in rows if row[1].hex.startswith(digits)]
        return list(dict.fromkeys((row[0], row[1]) for row in direct or rows))

    def open_effects(self, letter: Letter) -> list[Row]:
        """Effects of its session that are pending or unknown: key, name, state, calls, when, failure."""
        parameters = {"tenant": letter.tenant, "session": letter.session_id}
        rows = self.store.query_as(letter.tenant, SQL["effects"], parameters)
        return [(*row[:6], self.store.vault.open_failure(letter.tenant, row[6])) for row in rows]

    def state_before(self, letter: Letter, step: str | None = None) -> tuple[bytes, int]:
        """
        The state from which the buried step began, or an earlier step of its session; and its version.

        Raises:
            InvalidInput: its session ran no step of that name before it.
        """
        parameters = {"tenant": letter.tenant, "letter": letter.letter_id, "step": step}
        rows = self.store.query_as(letter.tenant, SQL["state_of"], parameters)
        if not rows:
            raise InvalidInput(f"the session of letter {letter.letter_id} ran no step {step!r} before it died")
        states, version, at = rows[0]
        return fold(sealing.open_states(self.store.vault, letter.tenant, letter.session_id, states, at=at)), version

    def get(self, tenant: str, letter_id: uuid.UUID) -> Letter:
        """
        One letter.

        Raises:
            InvalidInput: the tenant has none of that id.
        """
        found = self.ls(Selection(letters=(letter_id,), tenant=tenant, state=None), 1)
        if not found:
            raise InvalidInput(f"tenant {tenant!r} has no dead letter {letter_id}")
        return found[0]

    def _usual(self, tenant: str | None, agents: list[str]) -> dict[str, tuple[int, int]]:
        """Of each agent: how many of its newest sessions that ended well were looked at, and their average cost."""
        parameters = {"agents": agents, "tenant": tenant, "limit": _PLAN_SAMPLE}
        with self.store.transaction(tenant or ALL_TENANTS) as connection:
            run(connection, SESSIONS["by_index"], {})
            rows = run(connection, SQL["usual_cost" if tenant is None else "usual_cost_of"], parameters)
        return {agent: (samples, cost) for agent, samples, cost in rows}

    def plan(self, selection: Selection, *, max_generation: int, from_step: str | None = None) -> Plan:
        """What redriving them would do; counted in Postgres, so no letter is loaded."""
        spent = self._read("spent", selection, max_generation=max_generation)
        usual = self._usual(selection.tenant, [row[0] for row in spent])
        agents, too_often, doubtful = [], 0, 0
        for agent, letters, micros, of_those_too_often, with_effects in spent:
            too_often, doubtful = too_often + of_those_too_often, doubtful + with_effects
            samples, cost = usual.get(agent, (0, 0))
            agents.append(AgentCost(agent, letters, micros, cost if samples else None, samples))
        pending, unknown = self._read("effects_open", selection)[0] if doubtful else (0, 0)
        stepless = int(self._read("without_step", selection, step=from_step)[0][0]) if from_step else 0
        return Plan(sum(agent.letters for agent in agents), too_often, pending, unknown, tuple(agents), stepless)

    def export(
        self, selection: Selection, *, with_state: bool, batch: int = 500
    ) -> Iterator[tuple[Letter, bytes | None]]:
        """Each letter that matches, oldest first, and the state it began from; never all of them in memory."""
        parameters = {"selection": Jsonb(selection.as_json()), "with_state": with_state}
        with (
            self.store.transaction(selection.tenant or ALL_TENANTS) as connection,
            connection.cursor("export", binary=True, row_factory=tuple_row) as cursor,
        ):
            cursor.itersize = batch
            cursor.execute(SQL["export"].encode(), parameters)
            for row in cursor:
                letter, states = self._letter(row[:-1]), row[-1]
                yield letter, self._folded(letter, states) if states is not None else None

    def _letter(self, row: Row) -> Letter:
        letter, opened = Letter(*row), self.store.vault.open_failure
        attempts = [opened(letter.tenant, attempt) for attempt in letter.attempts]
        return replace(letter, failure=opened(letter.tenant, letter.failure), attempts=attempts)

    def _folded(self, letter: Letter, states: list[bytes]) -> bytes:
        """The state in plain; one that does not open is said to be so, and does not end an export."""
        try:
            return fold(
                sealing.open_states(self.store.vault, letter.tenant, letter.session_id, states, at=letter.state_from)
            )
        except PayloadUnreadable as error:
            return encode(f"[encrypted: {error.why}]")

    # ── changing ─────────────────────────────────────────────────────────────

    def discard(self, selection: Selection, *, operator: str, reason: str) -> int:
        """Discard every open letter that matches; how many that were. Interrupted, it is just shorter."""
        parameters = {"operator": operator, "reason": storable(reason), "max": _DISCARD_BATCH}
        count = 0
        while found := int(self._read("discard", selection, **parameters)[0][0]):
            count += found
        return count

    # ── the broker's side ────────────────────────────────────────────────────

    def announce(self, limit: int) -> list[Notice]:
        """Letters of which the broker knows nothing yet, now marked as sent."""
        return [Notice(*row) for row in self.store.query(SQL["announce"], {"max": limit})]

    def open_per_tenant(self, most: int) -> dict[str, int]:
        """Tenants that have open letters, and how many, counted up to `most`."""
        rows = self.store.query_as(ALL_TENANTS, SQL["open_per_tenant"], {"most": most})
        return {row[0]: row[1] for row in rows}

    def announce_again(self, tenant: str | None = None) -> None:
        """Send every open letter again, of one tenant or of all."""
        self.store.query_as(ALL_TENANTS, SQL["announce_again"], {"tenant": tenant})

    def unannounce(self, letters: list[uuid.UUID]) -> None:
        """The broker did not take these after all."""
        self.store.query_as(ALL_TENANTS, SQL["unannounce"], {"letters": letters})

    def tenants(self, after: str, limit: int) -> list[str]:
        """Tenants that have letters, by name, after one: whose board might hold something."""
        return [row[0] for row in self.store.query_as(ALL_TENANTS, SQL["tenants"], {"after": after, "limit": limit})]

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Whether this process looks after the boards now; one does at a time."""
        with self.store.transaction(ALL_TENANTS) as connection:
            yield bool(run(connection, SQL["try_turn"], {})[0][0])

    # ── poison ───────────────────────────────────────────────────────────────

    def keep_poison(
        self,
        *,
        queue: str,
        tenant: str | None,
        reason: str,
        body: bytes,
        digest: bytes | None = None,
        size: int | None = None,
    ) -> int:
        """Keep a message that was not understood, cut at a limit; its number. `digest`, `size`: of the whole."""
        digest = digest or digest_of(body)
        stored = self.store.vault.seal(tenant or FLEET, _poison(digest), body[:POISON_BODY_MAX_BYTES])
        parameters = {
            "tenant": tenant or "",
            "queue": storable(queue)[:200],
            "reason": storable(reason)[:1000],
            "digest": digest,
            "body": stored,
            "size": max(len(body) if size is None else size, len(stored)),
        }
        return int(self.store.query(SQL["keep_poison"], parameters)[0][0])

    def poison(self, *, tenant: str | None = None, limit: int = 50) -> list[Poison]:
        """The newest of them."""
        parameters = {"tenant": tenant, "limit": limit}
        rows = self.store.query_as(tenant or ALL_TENANTS, SQL["poison"], parameters)
        show = self.store.vault.show
        return [Poison(*(*row[:8], show(row[1] or FLEET, _poison(row[9]), row[8]))) for row in rows]

    def _read(self, name: str, selection: Selection, **more: Any) -> list[Row]:
        parameters = {"selection": Jsonb(selection.as_json())} | more
        with self.store.transaction(selection.tenant or ALL_TENANTS) as connection:
            return run(connection, SQL[name], parameters)


def _poison(digest: bytes) -> Place:
    return ("poison_message.body", digest)


def digest_of(body: bytes) -> bytes:
    """By which the same message is known again."""
    return hashlib.blake2b(body, digest_size=16).digest()


def _group(row: Row) -> LetterGroup:
    key, letters, tenants, causes, sample, first_agent, last_agent, first_at, last_at, cost, unknown, generation = row
    return LetterGroup(
        key, letters, tenants, causes, sample, (first_agent, last_agent), first_at, last_at, cost, unknown, generation
    )
