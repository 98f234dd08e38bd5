"""A hand on the ledger: sessions, claims and settlements without agents, engine or broker."""

from __future__ import annotations

import secrets
import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from psycopg.rows import dict_row

from agentq.payload import fingerprint
from agentq.step import StepRef, new_id
from agentq.store.ledger import Ledger
from agentq.store.pool import Store
from agentq.store.schema import TENANT_TABLES
from agentq.store.sessions import NewSession, Sessions
from agentq.store.workers import Registration
from agentq.verdicts import (
    Extras,
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

PIN = "robot@1"
# So many that what other tests have left holds none of them.
SLOTS = 100_000
BROKEN = Failure("transient", "RuntimeError", "it broke")


class Hands:
    """Works one tenant's ledger as a worker would, one statement at a time."""

    def __init__(self, store: Store, tenant: str) -> None:
        self.store = store
        self.tenant = tenant
        self.ledger = Ledger(store)
        self.sessions = Sessions(store)
        self._registrations: list[Registration] = []
        self.worker = self.register()

    def close(self) -> None:
        for registration in self._registrations:
            registration.stop()

    def register(self, lease_s: float = 3600.0) -> uuid.UUID:
        """A live worker process, as far as Postgres can tell; its id."""
        return self.registration(lease_s).worker_id

    def registration(self, lease_s: float = 3600.0) -> Registration:
        made = Registration(
            self.store, group="default", role="steps", host="test", pid=1, release="0", serves=[PIN], slots=SLOTS
        )
        made.beat(lease_s)
        self._registrations.append(made)
        return made

    def start(self, **more: Any) -> StepRef:
        """A new session; its first step, waiting for admission."""
        new = self.new_session(**more)
        self.sessions.start([new], create_with=None)
        return StepRef(new.tenant, new.session_id, new.step_id)

    def new_session(self, *, input: bytes = b'{"n":0}', key: str | None = None, **more: Any) -> NewSession:
        facts: dict[str, Any] = {
            "tenant": self.tenant, "session_id": new_id(), "agent": "robot", "version": 1, "key": key,
            "input": input, "input_hash": fingerprint(input), "step_id": new_id(), "name": "first",
            "attempts_max": 3, "timeout_s": 30.0,
        }  # fmt: skip
        return NewSession(**facts | more)

    def admit(self, limit: int = 1000) -> list[Wake]:
        return self.ledger.admit(self.tenant, limit)

    def try_claim(self, ref: StepRef, *, worker: uuid.UUID | None = None, **more: Any) -> Granted | NotGranted:
        facts: dict[str, Any] = {"serves": [PIN], "quarantine": False, "token": secrets.randbits(63)}
        return self.ledger.claim(ref, worker=worker or self.worker, **facts | more)

    def claim(self, ref: StepRef, **more: Any) -> Granted:
        """Claim a step that can be claimed."""
        claim = self.try_claim(ref, **more)
        assert isinstance(claim, Granted), claim
        return claim

    def begin(self, **more: Any) -> Granted:
        """A new session whose first step runs now."""
        ref = self.start(**more)
        self.admit()
        return self.claim(ref)

    def ref(self, step: NewStep | Wake | StepRef, session: uuid.UUID | None = None) -> StepRef:
        """The address of a step, wherever it was seen."""
        if isinstance(step, StepRef):
            return step
        if isinstance(step, Wake):
            return StepRef(step.tenant, step.session_id, step.step_id)
        assert session is not None
        return StepRef(self.tenant, session, step.step_id)

    def settle(self, claim: Granted, closing: Any, **more: Any) -> Settled:
        """Settle an attempt; a state is stored where the closing needs one."""
        if closing in ("next", "end", "fail"):
            more = {"kind": "full", "state": b'{"n":1}', "state_from": claim.ref.step_id} | more
        if closing == "end":
            more = {"result": b'"ok"'} | more
        if closing in ("fail", "dead"):
            more = {"failure": BROKEN} | more
        return self.ledger.settle(claim, Settlement(closing, **more))

    def follow(self, claim: Granted, *steps: NewStep, children: Sequence[NewChild] = ()) -> Settled:
        """Settle with `next`."""
        return self.settle(claim, "next", steps=steps, children=tuple(children), extras=Extras())

    def spawn(
        self, claim: Granted, branches: int, *, collect: bool = False, **more: Any
    ) -> tuple[StepRef, list[StepRef]]:
        """Settle with that many branches and a join; the join, and the first step of each branch, admitted."""
        join = step("join", fan=branches, collect=collect, **more)
        arms = [step(f"arm{n}", join_step=join.step_id, branch=n) for n in range(branches)]
        self.follow(claim, join, *arms)
        self.admit()
        session = claim.ref.session_id
        return self.ref(join, session), [self.ref(arm, session) for arm in arms]

    def child(self, join: NewStep, branch: int, **more: Any) -> NewChild:
        facts: dict[str, Any] = {
            "session_id": new_id(), "agent": "robot", "version": 1, "input": b'{"n":0}', "input_hash": b"h",
            "step_id": new_id(), "name": "first", "attempts_max": 3, "timeout_s": 30.0,
            "join_step": join.step_id, "branch": branch,
        }  # fmt: skip
        return NewChild(**facts | more)

    def rows(self, query: str, *parameters: Any) -> list[dict[str, Any]]:
        """What a query finds among this tenant's rows; `:tenant` and `:session` are not needed, RLS sees to it."""
        with self.store.transaction(self.tenant) as connection:
            return connection.cursor(row_factory=dict_row).execute(query.encode(), parameters or None).fetchall()

    def entry(self, ref: StepRef) -> dict[str, Any]:
        """The ledger entry."""
        [row] = self.rows("select * from agentq.ledger_entry where step_id = %s", ref.step_id)
        return row

    def session(self, ref: StepRef) -> dict[str, Any]:
        """The session's row."""
        [row] = self.rows("select * from agentq.session where session_id = %s", ref.session_id)
        return row

    def everything(self) -> dict[str, list[dict[str, Any]]]:
        """All rows of this tenant, to compare before and after."""
        tables = [table.name for table in TENANT_TABLES]
        return {table: self.rows(f"select * from agentq.{table} order by 1, 2, 3") for table in tables}


def step(name: str, **more: Any) -> NewStep:
    """A step to add."""
    return NewStep(new_id(), name, **{"attempts_max": 3, "timeout_s": 30.0} | more)


def new_ask(waiting: NewStep, **more: Any) -> NewApproval:
    """A question for which a step waits."""
    facts: dict[str, Any] = {
        "approval_id": waiting.approval or new_id(), "step_id": waiting.step_id, "kind": "ask", "name": waiting.name,
        "args": b"{}", "args_hash": b"h", "question": "May it?", "groups": ("ops",), "within_s": 3600.0,
    }  # fmt: skip
    return NewApproval(**facts | more)


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Run the calls in threads that start together; what each returned, or raised."""
    barrier = threading.Barrier(len(calls))
    results: list[Any] = [None] * len(calls)

    def run(number: int, call: Callable[[], Any]) -> None:
        barrier.wait(30)
        try:
            results[number] = call()
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(n, call), daemon=True) for n, call in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a call hangs"
    return results
