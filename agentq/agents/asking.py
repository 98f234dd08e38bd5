"""Asking people: the leave that an irreversible call needs, and the question that a step returns."""

from __future__ import annotations

import functools
import inspect
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_type_hints

from pydantic import TypeAdapter, ValidationError

from agentq.agents.effects import Declaration
from agentq.agents.returns import Answer, Ask, seconds
from agentq.errors import ApprovalDenied, ApprovalExpired, ApprovalRefused, AwaitsApproval, FenceLost, Permanent
from agentq.payload import bounded, canonical, decode, encode, fingerprint, storable
from agentq.step import new_id, valid_name
from agentq.store.approvals import AnswerRow, Approvals, Permit
from agentq.verdicts import Awaiting, Granted, NewApproval

QUESTION_MAX = 2000


@dataclass(frozen=True, slots=True)
class Asking:
    """How this fleet asks people, where a step or an effect does not say it."""

    approvals: Approvals
    group: str = "operators"
    within_s: float = 3 * 86400.0
    channels: tuple[str, ...] = ()

    def new(
        self,
        *,
        step_id: uuid.UUID,
        name: str,
        args: bytes,
        question: str,
        to: Sequence[str],
        within_s: float | None,
        effect_key: str | None = None,
        details: bytes | None = None,
    ) -> NewApproval:
        """
        The approval to write.

        Raises:
            Permanent: the question is empty, or the time for an answer is none.
        """
        limit_s = self.within_s if within_s is None else within_s
        if limit_s <= 0:
            raise Permanent("a question to people needs time for the answer: within= must be more than 0")
        if not question.strip():
            raise Permanent("a question to people must say what is asked")
        return NewApproval(
            approval_id=new_id(),
            step_id=step_id,
            kind="ask" if effect_key is None else "effect",
            name=name,
            args=args,
            args_hash=hash_of(name, decode(args)),
            question=storable(question)[:QUESTION_MAX],
            groups=tuple(valid_name("group", group) for group in to) or (self.group,),
            within_s=limit_s,
            effect_key=effect_key,
            details=details,
            channels=self.channels,
        )


def hash_of(name: str, args: Mapping[str, Any]) -> bytes:
    """What an approval is bound to: the name of what would be done, and with which arguments."""
    return fingerprint(name.encode(), canonical(args))


# ── what a step returns ──────────────────────────────────────────────────────


def question_of(ask: Ask, asking: Asking, *, step_id: uuid.UUID, name: str, max_bytes: int) -> NewApproval:
    """The approval of an `Ask`; `step_id` is the step that will wait."""
    details = encode(ask.details) if ask.details is not None else None
    return asking.new(
        step_id=step_id,
        name=name,
        args=bounded("the arguments", encode(dict(ask.args)), max_bytes),
        question=str(ask.question),
        to=(ask.to,) if isinstance(ask.to, str) else tuple(ask.to),
        within_s=seconds(ask.within) if ask.within is not None else None,
        details=bounded("the details", details, max_bytes) if details is not None else None,
    )


def answer_of(row: AnswerRow) -> Answer:
    """A stored decision as the step sees it."""
    edited = row.edited is not None
    return Answer(
        outcome=cast(Any, row.state),
        by=row.decided_by,
        comment=row.comment,
        args=decode(row.edited if row.edited is not None else row.args),
        edited=edited,
        at=row.decided_at,
        approval_id=str(row.approval_id),
    )


def refusal(name: str, answer: Answer) -> ApprovalRefused:
    """A no as the error that a step meets."""
    kind = ApprovalDenied if answer.outcome == "denied" else ApprovalExpired
    return kind(name, answer.approval_id, answer.by, answer.comment)


# ── an irreversible call ─────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Request:
    """An irreversible call that wants to go out."""

    key: str
    name: str
    declared: Declaration
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def permitted(
        self, claim: Granted, asking: Asking, await_: Callable[[Awaiting], None], note: Callable[[Permit], None]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """
        The arguments with which the call may go out: those asked for, or as the approver changed them.

        What was decided of it is noted.

        Raises:
            AwaitsApproval: a person must be asked; `await_` was told how.
            ApprovalDenied, ApprovalExpired: they did not allow it.
            FenceLost: a newer attempt owns the step.
        """
        named = named_arguments(self.function, self.args, self.kwargs)
        data, name = canonical(named), self.name
        auto = self.declared.auto is not None and bool(self.declared.auto(*self.args, **self.kwargs))
        question = self._question()
        permit = asking.approvals.permit(
            claim, self.key, name=name, args=data, args_hash=hash_of(name, named), question=question, auto=auto
        )
        if permit.state in ("granted", "denied", "expired"):
            note(permit)
        match permit.state:
            case "granted" | "recorded":
                return self._arguments(permit)
            case "denied":
                raise ApprovalDenied(name, str(permit.approval_id), permit.decided_by, permit.comment)
            case "expired":
                raise ApprovalExpired(name, str(permit.approval_id))
            case "open":
                assert permit.approval_id is not None
                await_(Awaiting(permit.approval_id, None))
                raise AwaitsApproval(name, str(permit.approval_id))
            case "superseded":
                raise FenceLost(str(claim.ref.session_id), str(claim.ref.step_id), claim.fence)
        ask = asking.new(
            step_id=claim.ref.step_id,
            name=name,
            args=data,
            question=question,
            to=self.declared.to,
            within_s=self.declared.within_s,
            effect_key=self.key,
        )
        await_(Awaiting(ask.approval_id, ask))
        raise AwaitsApproval(name, str(ask.approval_id))

    def _question(self) -> str:
        given = self.declared.question
        text = given(*self.args, **self.kwargs) if callable(given) else given
        return str(text) if text else f"May {self.name} go ahead?"

    def _arguments(self, permit: Permit) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if permit.edited is None:
            return self.args, self.kwargs
        edited = decode(permit.edited)
        if hash_of(self.name, edited) != permit.edited_hash:
            raise Permanent(f"the edited arguments of approval {permit.approval_id} are not those that were granted")
        return with_edits(self.function, self.args, self.kwargs, edited)


def named_arguments(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name, as JSON has them, so that people can read and change them."""
    bound = _bound(function, args, kwargs)
    named = dict(bound.arguments) if bound is not None else {"args": args, "kwargs": kwargs}
    return cast(dict[str, Any], decode(canonical(named)))


def with_edits(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], edited: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """
    The call with what the approver changed, read as the annotations say; the rest is as the step gave it.

    Raises:
        Permanent: a changed argument does not fit its annotation.
    """
    bound = _bound(function, args, kwargs)
    if bound is None:
        return tuple(edited["args"]), dict(edited["kwargs"])
    before = named_arguments(function, args, kwargs)
    hints = _hints(function)
    for name, value in edited.items():
        if encode(before.get(name)) == encode(value):
            continue
        kind = bound.signature.parameters[name].kind
        try:
            if kind is inspect.Parameter.VAR_POSITIONAL:
                bound.arguments[name] = tuple(value)
            elif kind is inspect.Parameter.VAR_KEYWORD:
                bound.arguments[name] = dict(value)
            else:
                bound.arguments[name] = TypeAdapter(hints.get(name, Any)).validate_python(value)
        except (ValidationError, TypeError):
            raise Permanent(f"the approver's {name!r} does not fit its annotation") from None
    return bound.args, bound.kwargs


def _bound(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> inspect.BoundArguments | None:
    try:
        return inspect.signature(function).bind(*args, **kwargs)
    except ValueError:  # a builtin without a signature
        return None


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    inner = function.func if isinstance(function, functools.partial) else function
    try:
        return get_type_hints(inner)
    except (NameError, TypeError):
        return {}
