"""Approvals: what a person is asked, who decided it, and who is told."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, cast

from agentq.errors import InvalidInput, PayloadUnreadable
from agentq.step import StepRef
from agentq.store import sealing
from agentq.store.operators import record
from agentq.store.pool import ALL_TENANTS, Row, Store, run
from agentq.store.queries import load
from agentq.store.vault import SQL as KEYS
from agentq.store.vault import Place
from agentq.verdicts import Granted

SQL = load("approvals")

PermitState = Literal["recorded", "granted", "denied", "expired", "open", "ask", "superseded"]
DecisionOutcome = Literal["decided", "late", "void", "taken", "not_allowed", "unknown"]


@dataclass(frozen=True, slots=True)
class Permit:
    """
    Whether a call may go out.

    recorded: it has, and is only recalled. granted: it may. denied, expired: it may not. open: somebody
    is asked already. ask: nobody was yet. superseded: this attempt lost its fence.
    """

    state: PermitState
    approval_id: uuid.UUID | None
    edited: bytes | None
    edited_hash: bytes | None
    decided_by: str | None
    comment: str | None
    deadline_at: datetime | None


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """What came of a question, as stored."""

    approval_id: uuid.UUID
    state: str
    decided_by: str | None
    decided_via: str | None
    comment: str | None
    args: bytes
    edited: bytes | None
    decided_at: datetime | None


@dataclass(frozen=True, slots=True)
class ApprovalListing:
    """An approval in a list: what is asked, of whom, until when, and what came of it."""

    tenant: str
    approval_id: uuid.UUID
    session_id: uuid.UUID
    step_id: uuid.UUID
    agent: str
    kind: str
    name: str
    question: str
    groups: tuple[str, ...]
    state: str
    asked_at: datetime
    deadline_at: datetime
    decided_at: datetime | None
    decided_by: str | None
    decided_via: str | None
    comment: str | None


@dataclass(frozen=True, slots=True)
class ApprovalRow(ApprovalListing):
    """An approval as stored."""

    effect_key: str | None
    args: bytes
    args_hash: bytes
    details: bytes | None
    edited: bytes | None
    diff: bytes | None


@dataclass(frozen=True, slots=True)
class Decision:
    """What a grant or denial came to, and how the approval stands now."""

    outcome: DecisionOutcome
    state: str | None
    decided_by: str | None
    decided_at: datetime | None


@dataclass(frozen=True, slots=True)
class DueNotice:
    """A notice to send, with what it may say."""

    tenant: str
    notice_id: uuid.UUID
    kind: str
    channel: str
    attempt: int
    approval_id: uuid.UUID
    session_id: uuid.UUID
    agent: str
    name: str
    question: str
    details: bytes | None
    groups: tuple[str, ...]
    state: str
    asked_at: datetime
    deadline_at: datetime
    decided_by: str | None


@dataclass(frozen=True, slots=True)
class NoticeRow:
    """A notice and what became of it."""

    notice_id: uuid.UUID
    kind: str
    channel: str
    state: str
    attempts: int
    due_at: datetime
    sent_at: datetime | None
    failure: str | None


class Approvals:
    """Asked in settlements, decided here, each by one update."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def permit(
        self, claim: Granted, key: str, *, name: str, args: bytes, args_hash: bytes, question: str, auto: bool
    ) -> Permit:
        """Whether this attempt may perform an irreversible effect; what policy grants is written down here."""
        vault, tenant = self.store.vault, claim.ref.tenant

        def place(column: str) -> Place:
            return sealing.asked(claim.ref.session_id, name, key, args_hash, column)

        [row] = self.store.query(
            SQL["permit_effect"],
            {
                "tenant": claim.ref.tenant,
                "session": claim.ref.session_id,
                "step": claim.ref.step_id,
                "fence": claim.fence,
                "token": claim.token,
                "key": key,
                "hash": args_hash,
                "name": name,
                "args": vault.seal(tenant, place("args"), args),
                "question": vault.seal_text(tenant, place("question"), question),
                "auto": auto,
            },
        )
        *facts, session = row
        permit = Permit(*facts)
        # What is recorded may have been granted in another session that shares the key.
        edited = sealing.asked(session or claim.ref.session_id, name, key, args_hash, "edited")
        return replace(permit, edited=vault.open(tenant, edited, permit.edited))

    def answer(self, ref: StepRef) -> AnswerRow | None:
        """What people said to the question that this step follows; None when it follows none."""
        parameters = {"tenant": ref.tenant, "session": ref.session_id, "step": ref.step_id}
        rows = self.store.query_as(ref.tenant, SQL["answer"], parameters)
        if not rows:
            return None
        *facts, name, key, args_hash = rows[0]
        row, vault = AnswerRow(*facts), self.store.vault

        def place(column: str) -> Place:
            return sealing.asked(ref.session_id, name, key, args_hash, column)

        args = vault.open(ref.tenant, place("args"), row.args)
        return replace(row, args=args, edited=vault.open(ref.tenant, place("edited"), row.edited))

    def is_answer(self, tenant: str, approval_id: uuid.UUID) -> bool:
        """Whether an approval was a step's question; else it was about a call."""
        rows = self.store.query_as(tenant, SQL["kind"], {"tenant": tenant, "approval": approval_id})
        return bool(rows) and rows[0][0] == "ask"

    def decide(
        self,
        tenant: str,
        approval_id: uuid.UUID,
        verdict: Literal["granted", "denied"],
        *,
        by: str,
        via: str,
        groups: list[str] | None,
        reason: str,
        edited: bytes | None = None,
        edited_hash: bytes | None = None,
        diff: bytes | None = None,
    ) -> Decision:
        """
        Grant or deny, and leave the row that says who and why, in one transaction.

        `groups` are the approver's; None: no groups are configured, so everybody may. Of two at once
        one decides, and the other is told who did.
        """
        sealed, args = self._edits(tenant, approval_id, edited, diff)
        parameters = {
            "tenant": tenant,
            "approval": approval_id,
            "verdict": verdict,
            "by": by,
            "via": via,
            "groups": groups,
            "comment": reason,
            "edited": sealed[0],
            "edited_hash": edited_hash,
            "diff": sealed[1],
            "args": args,
        }
        with self.store.transaction(tenant) as connection:
            [row] = run(connection, SQL["decide"], parameters)
            decision = Decision(cast(DecisionOutcome, row[0]), *row[1:])
            if decision.outcome == "decided":
                record(
                    connection,
                    operator=by,
                    tenant=tenant,
                    action=f"approval {'grant' if verdict == 'granted' else 'deny'}",
                    target=str(approval_id),
                    reason=reason,
                    detail={"via": via, "edited": edited is not None},
                )
            return decision

    def _edits(
        self, tenant: str, approval_id: uuid.UUID, edited: bytes | None, diff: bytes | None
    ) -> tuple[tuple[bytes | None, bytes | None], bytes | None]:
        """Edits and their difference as the approval keeps them, and as the step that waits gets them."""
        vault, row = self.store.vault, self.get(tenant, approval_id) if edited is not None else None
        if row is None or not vault.on:
            return (edited, diff), edited

        def sealed(column: str, data: bytes | None) -> bytes | None:
            place = sealing.asked(row.session_id, row.name, row.effect_key, row.args_hash, column)
            return vault.seal(tenant, place, data)

        args = None
        parameters = {"tenant": tenant, "approval": approval_id}
        for session, path in self.store.query_as(tenant, KEYS["waiting_place"], parameters):
            args = vault.seal(tenant, sealing.args_at(session, path), edited)
        return (sealed("edited", edited), sealed("diff", diff)), args

    def get(self, tenant: str, approval_id: uuid.UUID) -> ApprovalRow | None:
        """The approval as it stands; None when the tenant has none of that id."""
        rows = self.store.query_as(tenant, SQL["get"], {"tenant": tenant, "approval": approval_id})
        if not rows:
            return None
        return self._opened(rows[0])

    def waiting(self, tenant: str | None = None, limit: int = 50) -> list[ApprovalRow]:
        """What is open, by its deadline, as `get` gives it; of one that cannot be read here, that it cannot."""
        rows = self.store.query_as(tenant or ALL_TENANTS, SQL["waiting"], {"tenant": tenant, "limit": limit})
        return [self._told(row) for row in rows]

    def _told(self, stored: Row) -> ApprovalRow:
        try:
            return self._opened(stored)
        except PayloadUnreadable as error:
            # One whose key is gone or elsewhere must not take the others from those who decide.
            return replace(
                ApprovalRow(*_tupled(stored, 8)), question=f"cannot be read here: {error}", args=b"{}", details=None,
                edited=None, diff=None,
            )  # fmt: skip

    def _opened(self, stored: Row) -> ApprovalRow:
        row, vault = ApprovalRow(*_tupled(stored, 8)), self.store.vault
        tenant = row.tenant

        def place(column: str) -> Place:
            return sealing.asked(row.session_id, row.name, row.effect_key, row.args_hash, column)

        return replace(
            row,
            question=vault.open_text(tenant, place("question"), row.question),
            args=vault.open(tenant, place("args"), row.args),
            details=vault.open(tenant, place("details"), row.details),
            edited=vault.open(tenant, place("edited"), row.edited),
            diff=vault.open(tenant, place("diff"), row.diff),
        )

    def listing(
        self,
        *,
        tenant: str | None = None,
        state: str | None = None,
        session_id: uuid.UUID | None = None,
        group: str | None = None,
        limit: int = 50,
    ) -> list[ApprovalListing]:
        """Approvals that match: the open ones by their deadline, then the decided ones, the latest first."""
        parameters = {"tenant": tenant, "state": state, "session": session_id, "group": group, "limit": limit}
        rows = self.store.query_as(tenant or ALL_TENANTS, SQL["list"], parameters)
        return [self._listed(row) for row in rows]

    def _listed(self, row: Row) -> ApprovalListing:
        *facts, key, args_hash = _tupled(row, 8)
        listed = ApprovalListing(*facts)
        place = sealing.asked(listed.session_id, listed.name, key, args_hash, "question")
        return replace(listed, question=self.store.vault.open_text(listed.tenant, place, listed.question))

    def find(self, prefix: str, tenant: str | None = None) -> list[tuple[str, uuid.UUID]]:
        """Up to three approvals whose id begins so, of one tenant or of all."""
        digits = prefix.replace("-", "").lower()
        if not digits or len(digits) > 32 or any(digit not in "0123456789abcdef" for digit in digits):
            raise InvalidInput(f"{prefix!r} is not the beginning of an approval's id: use hexadecimal digits")
        low, high = uuid.UUID(digits.ljust(32, "0")), uuid.UUID(digits.ljust(32, "f"))
        parameters = {"low": low, "high": high, "tenant": tenant}
        return [(row[0], row[1]) for row in self.store.query_as(tenant or ALL_TENANTS, SQL["find"], parameters)]

    def expire(self, limit: int) -> list[tuple[str, uuid.UUID, str]]:
        """End what nobody decided in time: tenant, approval, and whether it expired or was void before."""
        return [(row[0], row[2], row[3]) for row in self.store.query(SQL["expire"], {"max": limit})]

    def remind(self, limit: int) -> int:
        """Write the reminders that are due into the outbox; how many."""
        return int(self.store.query(SQL["remind"], {"max": limit})[0][0])

    def take_notices(self, limit: int, *, lease_s: float) -> list[DueNotice]:
        """Notices to send now; one that is not settled within the lease is taken again."""
        rows = self.store.query(SQL["take_notices"], {"max": limit, "lease_s": lease_s})
        return [self._due(row) for row in rows]

    def _due(self, row: Row) -> DueNotice:
        *facts, key, args_hash = _tupled(row, 11)
        due, vault = DueNotice(*facts), self.store.vault

        def place(column: str) -> Place:
            return sealing.asked(due.session_id, due.name, key, args_hash, column)

        question = vault.open_text(due.tenant, place("question"), due.question)
        return replace(due, question=question, details=vault.show(due.tenant, place("details"), due.details))

    def settle_notice(
        self,
        notice: DueNotice,
        state: Literal["sent", "failed", "due"],
        *,
        delay_s: float = 0.0,
        failure: str | None = None,
    ) -> bool:
        """Write what became of a notice; False when another sender has taken it meanwhile."""
        parameters = {
            "tenant": notice.tenant,
            "notice": notice.notice_id,
            "attempt": notice.attempt,
            "state": state,
            "delay_s": delay_s,
            "failure": failure,
        }
        return bool(self.store.query(SQL["settle_notice"], parameters)[0][0])

    def notices(self, tenant: str, approval_id: uuid.UUID) -> list[NoticeRow]:
        """Who was told of an approval, and whether it arrived."""
        rows = self.store.query_as(tenant, SQL["notices"], {"tenant": tenant, "approval": approval_id})
        return [NoticeRow(*row) for row in rows]


def _tupled(row: Row, column: int) -> Row:
    return (*row[:column], tuple(row[column]), *row[column + 1 :])
