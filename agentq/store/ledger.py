"""The ledger: who may work a step, and what became of it."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from psycopg.types.json import Jsonb

from agentq.errors import FenceLost
from agentq.payload import storable
from agentq.step import StepRef
from agentq.store import sealing, traces
from agentq.store.memory import memory_conflicts
from agentq.store.pool import ALL_TENANTS, Connection, Row, Store, driver_errors, run, schema_errors
from agentq.store.queries import load
from agentq.store.vault import Vault
from agentq.verdicts import (
    Charge,
    Failure,
    Granted,
    NewApproval,
    NewChild,
    NewStep,
    NotGranted,
    Settled,
    Settlement,
    Wake,
)

SQL = load("ledger")
SESSIONS = load("sessions")


@dataclass(frozen=True, slots=True)
class TakenBack:
    """A step that a dead worker left, and what was decided for it: again, suspect or buried."""

    tenant: str
    session_id: uuid.UUID
    step_id: uuid.UUID
    fate: str
    wake: Wake | None


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """One tenant's work as the ledger knows it; the broker is not asked."""

    tenant: str
    state: str
    concurrency: int
    ready: int
    queued: int
    running: int
    oldest_due_s: float | None
    group: str = "default"
    queue: str = ""


@dataclass(frozen=True, slots=True)
class DepthPlace:
    """Where a page of tenants begins: among those with work so far from the first, or after the name of one without."""

    offset: int = 0
    name: str | None = None


@dataclass(frozen=True, slots=True)
class DepthPage:
    """Some tenants, and where the next page begins; None: that was all."""

    rows: list[QueueDepth]
    more: DepthPlace | None


@dataclass(frozen=True, slots=True)
class Busy:
    """What a tenant has to do, or several together."""

    tenant: str
    concurrency: int
    ready: int
    queued: int
    running: int
    oldest_due_s: float

    @property
    def steps(self) -> int:
        """All that wait or run."""
        return self.ready + self.queued + self.running


@dataclass(frozen=True, slots=True)
class BranchRow:
    """What one branch of a join came to."""

    branch: int
    state: str
    result: bytes | None
    failure: dict[str, Any] | None
    child_session: uuid.UUID | None


class Ledger:
    """Claims, settlements and admission, each one round trip and one commit."""

    def __init__(self, store: Store, *, traced: bool = True) -> None:
        self.store = store
        self.traced = traced

    def claim(
        self, ref: StepRef, *, token: int, worker: uuid.UUID, serves: list[str], quarantine: bool
    ) -> Granted | NotGranted:
        """
        Take the right to one attempt, or learn why not.

        Only an admitted, due step of a running session is granted, and to one caller only. `token` is
        random and new: should the answer get lost, `disown` can still name the claim.
        """
        [row] = self.store.query(
            SQL["claim"],
            {
                "tenant": ref.tenant,
                "session": ref.session_id,
                "step": ref.step_id,
                "worker": worker,
                "token": token,
                "serves": serves,
                "quarantine": quarantine,
            },
        )
        if row[0] != "granted":
            return NotGranted(ref, row[0])
        return sealing.opened(self.store.vault, _granted(ref, token, worker if self.traced else None, row))

    def settle(self, claim: Granted, settlement: Settlement, *, on: Connection | None = None) -> Settled:
        """
        Record the attempt's end and post what follows, in one transaction.

        With `on`, as the last statement of that connection's open transaction; the caller commits it.

        Raises:
            FenceLost: a newer attempt owns the step; nothing was written.
            MemoryConflict: a memory is not in the version that the step saw; nothing was written.
            StoreUnavailable: Postgres did not answer, or the connection broke.
        """
        parameters = _settle_parameters(self.store.vault, claim, settlement)
        with memory_conflicts():
            if on is None:
                rows = self.store.query(SQL["settle"], parameters)
            else:
                with driver_errors(), schema_errors():
                    rows = run(on, SQL["settle"], parameters)
        closed, session_state, next_queued, dispatch, more = rows[0]
        if not closed:
            raise FenceLost(str(claim.ref.session_id), str(claim.ref.step_id), claim.fence)
        wakes = _wakes(claim.ref.tenant, dispatch)
        if next_queued:
            follower = settlement.steps[0]
            ref = claim.ref
            wakes = (Wake(ref.tenant, ref.session_id, follower.step_id, follower.name, False, 0), *wakes)
        return Settled(
            wakes=wakes,
            more=more,
            session_ended_before=session_state not in ("running", "paused"),
        )

    def charge_late(self, claim: Granted, charges: tuple[Charge, ...]) -> None:
        """Charge what an attempt used that is superseded, and whose settlement therefore never comes."""
        stated = Jsonb([charge.as_json() for charge in charges])
        self.store.query(SQL["charge_late"], _ids(claim.ref) | {"fence": claim.fence, "charges": stated})

    def disown(self, ref: StepRef, token: int) -> Wake | None:
        """Give back a claim whose answer was lost; nothing happens when it was never made or has ended."""
        rows = self.store.query_as(ref.tenant, SQL["disown"], _ids(ref) | {"token": token})
        return Wake.from_json(ref.tenant, rows[0][0]) if rows else None

    def admit(self, tenant: str, limit: int) -> list[Wake]:
        """Move the tenant's due steps into the broker's share, as far as its concurrency allows."""
        rows = self.store.query(SQL["admit"], {"tenant": tenant, "max": limit})
        return [Wake.from_json(tenant, row[0]) for row in rows]

    def admit_each(self, tenants: Sequence[str], limit: int) -> list[Wake]:
        """The same for several tenants in one transaction: up to `limit` steps of each."""
        rows = self.store.query(SQL["admit_each"], {"tenants": list(tenants), "max": limit})
        return [Wake.from_json(tenant, facts) for tenant, facts in rows]

    def refill(self, tenant: str) -> list[Wake]:
        """What takes the slot of a step that gave it up before it was claimed."""
        rows = self.store.query(SQL["refill"], {"tenant": tenant})
        return [Wake.from_json(tenant, row[0]) for row in rows]

    def backlogged(self) -> dict[str, bool]:
        """The tenants that have steps waiting for admission, due or not; whether admission has anything to do there."""
        return {row[0]: row[1] for row in self.store.query_as(ALL_TENANTS, SQL["backlogged"], {})}

    def broker_should_hold(self, age_s: float) -> list[tuple[str, list[str], int, int]]:
        """Per queue: whose steps should be in it, how many, and how many of them are older than `age_s`."""
        rows = self.store.query_as(ALL_TENANTS, SQL["broker_should_hold"], {"age_s": age_s})
        return [(row[0], row[1], row[2], row[3]) for row in rows]

    def republish(self, *tenants: str, quarantine: bool, age_s: float, limit: int) -> list[Wake]:
        """Up to `limit` steps of these tenants whose message went missing, marked as sent again."""
        parameters = {"tenants": list(tenants), "quarantine": quarantine, "age_s": age_s, "max": limit}
        rows = self.store.query_as(ALL_TENANTS, SQL["republish"], parameters)
        return [Wake.from_json(tenant, facts) for tenant, facts in rows]

    def offer_served(self) -> int:
        """Let steps go on that waited for a worker of their agent's version; how many."""
        return len(self.store.query_as(ALL_TENANTS, SQL["offer_served"], {}))

    def unclaimed(
        self, *, queues: list[str], quarantine: bool, serves: list[str]
    ) -> dict[tuple[uuid.UUID, int], tuple[str, int]]:
        """Queued steps that such a worker should get: by step and fence, the queue, and how often they were resent."""
        parameters = {"queues": queues, "quarantine": quarantine, "serves": serves}
        rows = self.store.query_as(ALL_TENANTS, SQL["unclaimed"], parameters)
        return {(row[2], row[3]): (row[0], row[4]) for row in rows}

    def take_back(self, limit: int) -> list[TakenBack]:
        """Steps of workers that are no longer present, returned to the pool, to quarantine, or buried."""
        return [
            TakenBack(tenant, session, step, fate, Wake.from_json(tenant, wake) if wake else None)
            for tenant, session, step, fate, wake in self.store.query(SQL["take_back"], {"max": limit})
        ]

    def pass_turns(self, limit: int) -> int:
        """Concurrency keys whose turn lay idle, given to whoever waited longest."""
        return int(self.store.query(SQL["pass_turns"], {"max": limit})[0][0])

    def expire_sessions(self, limit: int) -> list[tuple[str, uuid.UUID, Wake | None]]:
        """Sessions ended because their deadline is over or their parent ended, with parents to wake."""
        rows = self.store.query(SQL["expire_sessions"], {"max": limit})
        return [(tenant, session, Wake.from_json(tenant, wake) if wake else None) for tenant, session, wake in rows]

    def branches(self, ref: StepRef) -> list[BranchRow]:
        """What the branches of this join came to, in the order in which they were spawned."""
        rows = self.store.query_as(ref.tenant, SQL["branch_results"], _ids(ref))
        return [_branch(self.store.vault, ref, BranchRow(*row)) for row in rows]

    def messages(self, ref: StepRef) -> list[tuple[int, bytes, str]]:
        """The session's history: position, body, writer."""
        rows = self.store.query_as(ref.tenant, SQL["messages"], _ids(ref))
        messages = [(row[0], row[1], row[2], row[3]) for row in rows]
        return sealing.open_messages(self.store.vault, ref.tenant, ref.session_id, messages)

    def parks_resumed(self, ref: StepRef) -> int:
        """How often people let the session go on after it had parked itself."""
        [(times,)] = self.store.query_as(ref.tenant, SESSIONS["parks_resumed"], _ids(ref))
        return int(times)

    def add_event(self, ref: StepRef, kind: str, body: bytes) -> None:
        """Tell whoever watches the session; not part of the step's settlement."""
        body = self.store.vault.seal(ref.tenant, sealing.event_of(ref.session_id, ref.step_id, kind), body)
        with self.store.transaction(ref.tenant) as connection:
            connection.execute("set local synchronous_commit = off")
            run(connection, SQL["add_event"], _ids(ref) | {"kind": kind, "body": body})

    def queue_depth(self, tenant: str) -> QueueDepth | None:
        """A tenant's backlog and work; None when there is no such tenant."""
        rows = self.store.query_as(ALL_TENANTS, SQL["queue_depths"], {"tenant": tenant})
        return QueueDepth(*rows[0]) if rows else None

    def queue_depths(
        self, *, limit: int, match: str | None = None, state: str | None = None, after: DepthPlace | None = None
    ) -> DepthPage:
        """
        Tenants' backlog and work: those that have some, whoever waits longest first, then the others by name.

        `match` is a part of the name. Only what a page shows is looked at, of tenants without work.
        """
        of = {"match": match, "state": state, "limit": limit + 1}
        place = after or DepthPlace()
        with self.store.transaction(ALL_TENANTS) as connection:
            rows: list[Row] = []
            if place.name is None:
                rows = run(connection, SQL["busy_depths"], of | {"offset": place.offset})
            busy = len(rows)
            if busy <= limit:
                idle = {"after": place.name or "", "limit": limit + 1 - busy}
                rows = rows + run(connection, SQL["idle_depths"], of | idle)
        found = [QueueDepth(*row) for row in rows]
        if len(found) <= limit:
            return DepthPage(found, None)
        more = DepthPlace(place.offset + limit) if busy >= limit else DepthPlace(name=found[limit - 1].tenant)
        return DepthPage(found[:limit], more)

    def busiest(self, top: int) -> tuple[list[Busy], Busy | None]:
        """
        The tenants with most to do, and all others that have something to do together.

        Where fewer have, tenants without work fill the number, by name.
        """
        rows = [Busy(row[0] or "", *row[1:]) for row in self.store.query_as(ALL_TENANTS, SQL["busiest"], {"top": top})]
        shown = [row for row in rows if row.tenant]
        rest = next((row for row in rows if not row.tenant), None)
        return sorted(shown, key=lambda row: (-row.steps, row.tenant)), rest


def _granted(ref: StepRef, token: int, traced_by: uuid.UUID | None, row: Row) -> Granted:
    (_, fence, attempt, attempts_max, crashes, seq, name, agent, version, timeout_s, args, state_from, states) = row[
        :13
    ]
    (
        given, join_step, branch, fan, priority, remaining_s, queued_s, path, generation, dry_effects, approval,
        repairs, refusals, repair, state_version,
    ) = row[13:]  # fmt: skip
    return Granted(
        ref, token, fence, attempt, attempts_max, crashes, seq, name, agent, version, timeout_s, args, state_from,
        tuple(states) if states is not None else None, given, join_step, branch, fan, priority, remaining_s, queued_s,
        path, generation, dry_effects, traced_by, approval, repairs, refusals, repair, state_version,
    )  # fmt: skip


def _branch(vault: Vault, ref: StepRef, row: BranchRow) -> BranchRow:
    """What a branch came to, in plain: its own result, or its child session's."""
    of = (row.child_session, None) if row.child_session is not None else (ref.session_id, row.branch)
    result = vault.open(ref.tenant, sealing.result_of(*of), row.result)
    return replace(row, result=result, failure=vault.open_failure(ref.tenant, row.failure))


def _settle_parameters(vault: Vault, claim: Granted, settlement: Settlement) -> dict[str, Any]:
    settlement = sealing.sealed(vault, claim, settlement)
    follower = _plain_follower(settlement)
    plan = _plan(settlement, follower)
    failure = settlement.failure
    return {
        "tenant": claim.ref.tenant,
        "session": claim.ref.session_id,
        "step": claim.ref.step_id,
        "fence": claim.fence,
        "token": claim.token,
        "closing": settlement.closing,
        "delay_s": settlement.delay_s,
        "kind": settlement.kind,
        "state": settlement.state,
        "parent": settlement.parent,
        "state_from": settlement.state_from,
        "version": settlement.version or claim.agent_version,
        "result": settlement.result,
        "failure": Jsonb(vault.seal_failure(claim.ref.tenant, _failure(claim, settlement, failure)))
        if failure
        else None,
        "next": follower.step_id if follower else None,
        "next_name": follower.name if follower else None,
        "next_attempts": follower.attempts_max if follower else None,
        "next_timeout_s": follower.timeout_s if follower else None,
        "next_args": follower.args if follower else None,
        "plan": Jsonb(plan) if plan else None,
        "traced_by": claim.traced_by,
    }


def _failure(claim: Granted, settlement: Settlement, failure: Failure) -> dict[str, Any]:
    """The failure as it is stored; with its cause where it buries the step."""
    facts = failure.as_json(claim.attempt)
    if settlement.closing == "dead":
        cause = failure.cause(claim.agent, claim.name)
        facts |= {"cause": cause.fingerprint, "cause_text": storable(cause.text)}
    return facts


def _plain_follower(settlement: Settlement) -> NewStep | None:
    """The one step that simply follows, as nearly always; timers and joins are planned instead."""
    if len(settlement.steps) != 1 or settlement.children:
        return None
    [step] = settlement.steps
    return step if step.delay_s <= 0 and not step.fan and step.approval is None else None


def _plan(settlement: Settlement, follower: NewStep | None) -> dict[str, Any]:
    """What the settle function reads from JSON; empty parts are left out, and mostly all are."""
    plan: dict[str, Any] = {}
    if follower is None and settlement.steps:
        plan["steps"] = [_step(step) for step in settlement.steps]
        if branches := list(_branches(settlement)):
            plan["branches"] = branches
    if settlement.children:
        plan["children"] = [_child(child) for child in settlement.children]
    if settlement.asks:
        plan["asks"] = [_ask(ask) for ask in settlement.asks]
    if settlement.awaits is not None:
        plan["awaits"] = str(settlement.awaits)
    if settlement.extras.messages:
        plan["messages"] = [{"body": _text(body), "by": by} for body, by in settlement.extras.messages]
    if settlement.hold is not None:
        plan["hold"] = settlement.hold
    if settlement.extras.charges:
        plan["charges"] = [charge.as_json() for charge in settlement.extras.charges]
    usage = settlement.extras.usage
    if usage.tokens_in or usage.tokens_out or usage.cost_micros:
        plan["usage"] = {
            "tokens_in": usage.tokens_in,
            "tokens_out": usage.tokens_out,
            "cost_micros": usage.cost_micros,
        }
    if settlement.extras.trace or settlement.extras.decisions:
        plan |= traces.as_plan(settlement.extras)
    if settlement.extras.memories:
        plan["memories"] = [write.as_json() for write in settlement.extras.memories]
    if settlement.refund is not None:
        plan["refund"] = settlement.refund
    return plan


def _branches(settlement: Settlement) -> Iterator[dict[str, Any]]:
    """The branches of the joins that this settlement adds."""
    joins = {step.step_id for step in settlement.steps if step.fan}
    for step in settlement.steps:
        if step.join_step in joins:
            yield {"join_step": str(step.join_step), "branch": step.branch}
    for child in settlement.children:
        yield {"join_step": str(child.join_step), "branch": child.branch, "child": str(child.session_id)}


def _step(step: NewStep) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "id": str(step.step_id),
        "name": step.name,
        "attempts_max": step.attempts_max,
        "timeout_s": step.timeout_s,
    }
    if step.args is not None:
        facts["args"] = _text(step.args)
    if step.delay_s > 0:
        facts["delay_s"] = step.delay_s
    if step.join_step is not None:
        facts |= {"join_step": str(step.join_step), "branch": step.branch}
    if step.fan:
        facts |= {"fan": step.fan, "collect": step.collect}
    if step.approval is not None:
        facts["approval"] = str(step.approval)
    return facts


def _ask(ask: NewApproval) -> dict[str, Any]:
    return {
        "id": str(ask.approval_id),
        "step": str(ask.step_id),
        "kind": ask.kind,
        "name": ask.name,
        "key": ask.effect_key,
        "args": _text(ask.args),
        "hash": _text(ask.args_hash),
        "question": ask.question,
        "details": _text(ask.details) if ask.details is not None else None,
        "groups": list(ask.groups),
        "channels": list(ask.channels),
        "within_s": ask.within_s,
    }


def _child(child: NewChild) -> dict[str, Any]:
    return {
        "id": str(child.session_id),
        "agent": child.agent,
        "version": child.version,
        "input": _text(child.input),
        "input_hash": _text(child.input_hash),
        "step_id": str(child.step_id),
        "name": child.name,
        "attempts_max": child.attempts_max,
        "timeout_s": child.timeout_s,
        "join_step": str(child.join_step),
        "branch": child.branch,
    }


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _wakes(tenant: str, dispatch: list[dict[str, Any]] | None) -> tuple[Wake, ...]:
    return tuple(Wake.from_json(tenant, facts) for facts in dispatch or ())


def _ids(ref: StepRef) -> dict[str, Any]:
    return {"tenant": ref.tenant, "session": ref.session_id, "step": ref.step_id}


def failure_json(vault: Vault, tenant: str, failure: Failure | None) -> Jsonb | None:
    """A failure as the `failure` columns hold it."""
    return Jsonb(vault.seal_failure(tenant, failure.as_json())) if failure else None
