"""Approvals as people decide them: listed, shown, granted, denied, and who it is that decides."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import hmac
import os
import pwd
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast

from agentq.agents.asking import hash_of
from agentq.client.tenants import operator_name
from agentq.errors import ApprovalClosed, InvalidInput, NotAnApprover, UnknownApproval
from agentq.payload import decode, encode, storable
from agentq.settings import Settings
from agentq.step import valid_name
from agentq.store.approvals import ApprovalListing, ApprovalRow, Decision, NoticeRow
from agentq.store.approvals import Approvals as Stored

TOKEN_VARIABLE = "AGENTQ_APPROVER_TOKEN"  # noqa: S105 - the name of a variable, not a token
_COMMENT_MAX = 2000


@dataclass(frozen=True, slots=True)
class Who:
    """
    Who decides, and how sure that is.

    token: they showed the token that the settings know by its hash. login: the system's own name for
    this process's user. claimed: no approvers are configured, and the name is what they say.
    """

    name: str
    via: Literal["token", "login", "claimed"]
    groups: tuple[str, ...] | None = None
    tenants: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """One argument that the approver changed."""

    path: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class ApprovalView:
    """An approval at one moment: what is asked, what would be done, and what came of it."""

    tenant: str
    id: str
    session_id: str
    step_id: str
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
    effect_key: str | None
    args: Mapping[str, Any]
    args_hash: str
    details: Any
    edited: Mapping[str, Any] | None
    changes: tuple[Change, ...]


class Approvals:
    """What waits for people, for all who may decide it. A decision hastens its session at once."""

    def __init__(self, stored: Stored, settings: Settings, admit: Callable[[str], None]) -> None:
        self._stored = stored
        self._settings = settings
        self._admit = admit

    def ls(
        self,
        *,
        tenant: str | None = None,
        state: str | None = "open",
        session_id: str | None = None,
        group: str | None = None,
        limit: int = 50,
    ) -> list[ApprovalListing]:
        """Approvals that match: the open ones by their deadline; `state=None` for decided ones too."""
        for kind, name in (("tenant", tenant), ("group", group)):
            if name is not None:
                valid_name(kind, name)
        session = _uuid(session_id) if session_id is not None else None
        return self._stored.listing(tenant=tenant, state=state, session_id=session, group=group, limit=limit)

    def get(self, approval_id: str, *, tenant: str | None = None) -> ApprovalView:
        """
        The approval of that id, which may be cut short as long as it is unmistakable.

        Raises:
            UnknownApproval, InvalidInput: there is none, or there are several.
        """
        return _view(self._row(approval_id, tenant))

    def waiting(self, *, tenant: str | None = None, limit: int = 50) -> list[ApprovalView]:
        """What is open, by its deadline, with all that a person decides on."""
        if tenant is not None:
            valid_name("tenant", tenant)
        return [_view(row) for row in self._stored.waiting(tenant, limit)]

    def notices(self, approval_id: str, *, tenant: str | None = None) -> list[NoticeRow]:
        """Who was told of it, and whether that arrived."""
        row = self._row(approval_id, tenant)
        return self._stored.notices(row.tenant, row.approval_id)

    def grant(
        self,
        approval_id: str,
        *,
        reason: str = "",
        edits: Mapping[str, Any] | None = None,
        tenant: str | None = None,
        who: Who | None = None,
    ) -> ApprovalView:
        """
        Say yes: exactly what is shown goes ahead, or what `edits` make of it (path to value, `"lines.0.cents"`).

        Raises:
            NotAnApprover: this person may not.
            ApprovalClosed: too late; somebody else was quicker, or its deadline is over.
            UnknownApproval, InvalidInput: there is none, or an edit does not fit.
        """
        return self._decide(approval_id, "granted", reason=reason, edits=edits or {}, tenant=tenant, who=who)

    def deny(self, approval_id: str, *, reason: str, tenant: str | None = None, who: Who | None = None) -> ApprovalView:
        """
        Say no, with a reason that the step sees. Raises as `grant` does.
        """
        if not reason.strip():
            raise InvalidInput("a denial needs a reason: the step is told it")
        return self._decide(approval_id, "denied", reason=reason, edits={}, tenant=tenant, who=who)

    def who(self, name: str | None = None, token: str | None = None) -> Who:
        """
        Who acts here: `name`, else `AGENTQ_OPERATOR`, else the login; with the token, else `AGENTQ_APPROVER_TOKEN`.

        It keeps honest people apart. Whoever holds the fleet's database password could write past it.

        Raises:
            NotAnApprover: approvers are configured, and this is none of them or does not prove it.
        """
        return identify(self._settings, name, token)

    def check(self, view: ApprovalView, who: Who) -> None:
        """
        Return when this person may decide it.

        Raises:
            NotAnApprover: it asks others, or is another tenant's.
        """
        if who.tenants and view.tenant not in who.tenants:
            raise NotAnApprover(who.name, f"it is tenant {view.tenant}'s, they decide for {', '.join(who.tenants)}")
        if who.groups is not None and not set(who.groups) & set(view.groups):
            raise NotAnApprover(who.name, f"it asks {', '.join(view.groups)}, they are of {', '.join(who.groups)}")

    def edited(self, view: ApprovalView, edits: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[Change, ...]]:
        """
        The arguments with the edits, and what they change.

        Raises:
            InvalidInput: there is no such argument, or the value is of another type.
        """
        changed = copy.deepcopy(dict(view.args))
        changes = [_set(changed, path, value) for path, value in edits.items()]
        return changed, tuple(change for change in changes if change.before != change.after)

    def _decide(
        self,
        approval_id: str,
        verdict: Literal["granted", "denied"],
        *,
        reason: str,
        edits: Mapping[str, Any],
        tenant: str | None,
        who: Who | None,
    ) -> ApprovalView:
        acting = who or self.who()
        view = self.get(approval_id, tenant=tenant)
        self.check(view, acting)
        changed, changes = self.edited(view, edits)
        decision = self._stored.decide(
            view.tenant,
            uuid.UUID(view.id),
            verdict,
            by=acting.name,
            via=acting.via,
            groups=list(acting.groups) if acting.groups is not None else None,
            reason=storable(reason)[:_COMMENT_MAX],
            edited=encode(changed) if changes else None,
            edited_hash=hash_of(view.name, changed) if changes else None,
            diff=encode([{"path": c.path, "before": c.before, "after": c.after} for c in changes]) if changes else None,
        )
        now = self.get(view.id, tenant=view.tenant)
        _heed(decision, now, verdict, acting, changed if changes else None)
        self._admit(view.tenant)
        return now

    def _row(self, approval_id: str, tenant: str | None) -> ApprovalRow:
        found = self._stored.find(approval_id, tenant)
        if not found:
            raise UnknownApproval(approval_id)
        if len(found) > 1:
            some = ", ".join(str(each) for _, each in found)
            raise InvalidInput(f"several approvals begin with {approval_id}: {some}; give more digits")
        row = self._stored.get(*found[0])
        if row is None:
            raise UnknownApproval(approval_id)
        return row


class AsyncApprovals:
    """The same for asyncio; statements run in threads."""

    def __init__(self, approvals: Approvals) -> None:
        self._approvals = approvals

    async def ls(self, **which: Any) -> list[ApprovalListing]:
        """As `Approvals.ls`."""
        return await asyncio.to_thread(lambda: self._approvals.ls(**which))

    async def get(self, approval_id: str, *, tenant: str | None = None) -> ApprovalView:
        """As `Approvals.get`."""
        return await asyncio.to_thread(lambda: self._approvals.get(approval_id, tenant=tenant))

    async def grant(self, approval_id: str, **how: Any) -> ApprovalView:
        """As `Approvals.grant`."""
        return await asyncio.to_thread(lambda: self._approvals.grant(approval_id, **how))

    async def deny(self, approval_id: str, **how: Any) -> ApprovalView:
        """As `Approvals.deny`."""
        return await asyncio.to_thread(lambda: self._approvals.deny(approval_id, **how))

    def who(self, name: str | None = None, token: str | None = None) -> Who:
        """As `Approvals.who`."""
        return self._approvals.who(name, token)


def identify(settings: Settings, name: str | None = None, token: str | None = None) -> Who:
    """As `Approvals.who`."""
    claimed = name or operator_name()
    if not settings.approvers:
        return Who(claimed, "claimed")
    known = settings.approvers.get(claimed)
    if known is None:
        raise NotAnApprover(claimed, "no approver of that name is in the settings (approvers)")
    if not known.token_sha256:
        if claimed != _login():
            raise NotAnApprover(claimed, f"the settings know no token of theirs, and the login here is {_login()}")
        return Who(claimed, "login", known.groups, known.tenants)
    shown = token or os.environ.get(TOKEN_VARIABLE, "")
    if not hmac.compare_digest(hashlib.sha256(shown.encode()).hexdigest(), known.token_sha256):
        raise NotAnApprover(claimed, f"{'the token is another' if shown else 'no token was shown'} ({TOKEN_VARIABLE})")
    return Who(claimed, "token", known.groups, known.tenants)


def _login() -> str:
    """This process's user as the system knows it: no variable changes it."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def _heed(decision: Decision, now: ApprovalView, verdict: str, who: Who, edited: Mapping[str, Any] | None) -> None:
    """Return when it was decided so: by this call, or by the same call before, whose answer got lost."""
    match decision.outcome:
        case "decided":
            return
        case "taken" if (now.state, now.decided_by, now.edited) == (verdict, who.name, edited):
            return
        case "not_allowed":
            raise NotAnApprover(who.name, f"it asks {', '.join(now.groups)}")
        case "unknown":
            raise UnknownApproval(now.id)
    at = now.decided_at.astimezone().strftime("%Y-%m-%d %H:%M:%S") if now.decided_at else None
    raise ApprovalClosed(now.id, now.state, now.decided_by, at)


def _view(row: ApprovalRow) -> ApprovalView:
    changes = decode(row.diff) if row.diff is not None else []
    return ApprovalView(
        tenant=row.tenant,
        id=str(row.approval_id),
        session_id=str(row.session_id),
        step_id=str(row.step_id),
        agent=row.agent,
        kind=row.kind,
        name=row.name,
        question=row.question,
        groups=row.groups,
        state=row.state,
        asked_at=row.asked_at,
        deadline_at=row.deadline_at,
        decided_at=row.decided_at,
        decided_by=row.decided_by,
        decided_via=row.decided_via,
        comment=row.comment,
        effect_key=row.effect_key,
        args=decode(row.args),
        args_hash=row.args_hash.hex(),
        details=decode(row.details) if row.details is not None else None,
        edited=decode(row.edited) if row.edited is not None else None,
        changes=tuple(Change(**change) for change in changes),
    )


def _set(arguments: dict[str, Any], path: str, value: Any) -> Change:
    """Set one value deep in the arguments; what it was before."""
    *parents, last = path.split(".")
    holder: Any = arguments
    for part in parents:
        holder = _at(holder, part, path, arguments)
    before = _at(holder, last, path, arguments)
    after = decode(encode(value))
    if before is not None and _kind(before) != _kind(after):
        raise InvalidInput(f"{path} is a {_kind(before)}, so it cannot become a {_kind(after)}")
    holder[int(last) if isinstance(holder, list) else last] = after
    return Change(path, before, after)


def _at(holder: Any, part: str, path: str, arguments: Mapping[str, Any]) -> Any:
    try:
        return holder[int(part)] if isinstance(holder, list) else cast(dict[str, Any], holder)[part]
    except (KeyError, IndexError, ValueError, TypeError):
        raise InvalidInput(f"there is no argument {path!r} (there are: {', '.join(arguments) or 'none'})") from None


def _kind(value: Any) -> str:
    match value:
        case bool():
            return "truth value"
        case int() | float():
            return "number"
        case str():
            return "text"
        case list():
            return "list"
        case dict():
            return "mapping"
        case _:
            return "nothing"


def _uuid(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise InvalidInput(f"{text!r} is not a session's id") from None
