"""Effects as users declare them: what may be repeated, and how to ask whether it happened."""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, get_type_hints, overload

from pydantic import TypeAdapter

from agentq.agents.returns import Duration, seconds
from agentq.errors import AgentqError, ConfigError
from agentq.sandbox.limits import Limits
from agentq.step import valid_name

P = ParamSpec("P")
R = TypeVar("R")

_DECLARED = "__agentq_effect__"
_current_key: contextvars.ContextVar[str | None] = contextvars.ContextVar("agentq_effect_key", default=None)


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a function promises about being called twice."""

    idempotent: bool = False
    check: Callable[..., Any] | None = None
    key: Callable[..., str] | None = None
    irreversible: bool = False
    to: tuple[str, ...] = ()
    within_s: float | None = None
    question: str | Callable[..., str] | None = None
    auto: Callable[..., bool] | None = None
    needs: str | None = None
    repairable: bool = False
    sandbox: Limits | None = None


_UNDECLARED = Declaration()


@overload
def effect(function: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def effect(
    *,
    idempotent: bool = False,
    check: Callable[..., Any] | None = None,
    key: Callable[..., str] | None = None,
    irreversible: bool = False,
    to: str | Sequence[str] = (),
    within: Duration | None = None,
    question: str | Callable[..., str] | None = None,
    auto: Callable[..., bool] | None = None,
    needs: str | None = None,
    repairable: bool = False,
    sandbox: bool | Limits = False,
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def effect(
    function: Callable[P, R] | None = None,
    /,
    *,
    idempotent: bool = False,
    check: Callable[..., Any] | None = None,
    key: Callable[..., str] | None = None,
    irreversible: bool = False,
    to: str | Sequence[str] = (),
    within: Duration | None = None,
    question: str | Callable[..., str] | None = None,
    auto: Callable[..., bool] | None = None,
    needs: str | None = None,
    repairable: bool = False,
    sandbox: bool | Limits = False,
) -> Any:
    """
    Declare how a function behaves when an attempt dies between its call and its result.

    `idempotent=True`: it is called again, under the same `idempotency_key()`.
    `check=fn`: `fn` is asked with the same arguments whether it happened; it returns the result, or
    None when it did not.
    Neither: it is never called again; the step stops with an unknown outcome, for a person.

    `key` makes the key from the arguments (`key=lambda order: f"refund:{order}"`), tenant-wide, so
    that two sessions asking for the same thing do it once. Never build it from a model's prose.

    `irreversible=True`: `ctx.call` waits for a person's leave first, without a worker: of the group
    `to`, `within` a time, asked `question` (a text, or made from the arguments). The leave holds for
    these arguments alone. `auto=fn` (of the arguments) says which calls need nobody, and so does the
    tenant (`agentq tenant set acme --preapprove NAME`).

    `needs` names what it calls ("stripe"): while that is out of order, the step waits and loses no attempt.

    `repairable=True`: it is a question, whose answer may be wrong. A step that repairs asks it anew, while
    every other effect keeps its recorded result. Never for what changes something.

    `sandbox=True` (or `Limits(...)`): it runs outside the worker, without its environment, network, files
    or rights, or not at all (`agentq.sandbox`). It stands at the top of a module; nothing leaves but its
    result, so it is idempotent.
    """
    limits = Limits() if sandbox is True else sandbox or None
    groups = (to,) if isinstance(to, str) else tuple(to)
    if not irreversible and (groups or within is not None or question is not None or auto is not None):
        raise ConfigError("to=, within=, question= and auto= say how irreversible=True is asked about; set it")
    within_s = seconds(within) if within is not None else None

    if needs is not None:
        valid_name("dependency", needs)
    if repairable and key is not None:
        raise ConfigError("an effect with a key= of its own has one result; it cannot be repairable as well")

    def declare(function: Callable[P, R]) -> Callable[P, R]:
        declared = Declaration(
            idempotent or limits is not None,
            check,
            key,
            irreversible,
            groups,
            within_s,
            question,
            auto,
            needs=needs,
            repairable=repairable,
            sandbox=limits,
        )
        setattr(function, _DECLARED, declared)
        return function

    return declare(function) if function is not None else declare


def declaration_of(function: Callable[..., Any]) -> Declaration:
    """What a function declared, or that it declared nothing."""
    inner = function.func if isinstance(function, functools.partial) else function
    found = getattr(inner, _DECLARED, None)
    return found if isinstance(found, Declaration) else _UNDECLARED


def idempotency_key() -> str:
    """
    The key of the effect that is being performed: the same in every attempt, for the other side's own dedupe.

    Raises:
        AgentqError: called outside `ctx.call`.
    """
    key = _current_key.get()
    if key is None:
        raise AgentqError("idempotency_key() has a value only inside a function called through ctx.call")
    return key


def current_key() -> str | None:
    """The key of the effect whose function runs now; None outside of one."""
    return _current_key.get()


def performing(key: str) -> contextvars.Token[str | None]:
    """Set the key for the call that follows; `reset` it with `done_performing`."""
    return _current_key.set(key)


def done_performing(token: contextvars.Token[str | None]) -> None:
    """End what `performing` began."""
    _current_key.reset(token)


def name_of(function: Callable[..., Any]) -> str:
    """A name for people, stable between releases as long as the function keeps its own."""
    inner = function.func if isinstance(function, functools.partial) else function
    return getattr(inner, "__qualname__", type(inner).__name__)


@functools.lru_cache(maxsize=1024)
def result_adapter(function: Callable[..., Any]) -> TypeAdapter[Any]:
    """How the function's stored result is read back: by its return annotation, else as plain JSON."""
    try:
        annotation = get_type_hints(function).get("return", Any)
    except (NameError, TypeError):
        annotation = Any
    return TypeAdapter(annotation if annotation is not type(None) else Any)
