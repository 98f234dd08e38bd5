"""Tools as users declare them: plain functions, and what may be done with them after a crash."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from agentq.agents.effects import idempotency_key
from agentq.agents.returns import Duration, seconds
from agentq.errors import ConfigError
from agentq.sandbox.limits import Limits

if TYPE_CHECKING:
    from agentq.agents.context import AsyncContext, Context

P = ParamSpec("P")
R = TypeVar("R")

_DECLARED = "__agentq_tool__"


@dataclass(frozen=True, slots=True)
class ToolOptions:
    """What a tool's author says about it."""

    name: str | None = None
    idempotent: bool = False
    irreversible: bool = False
    key: Callable[..., str] | None = None
    check: Callable[..., Any] | None = None
    timeout_s: float = 60.0
    retries: int = 2
    poll: bool = False
    needs: str | None = None
    sandbox: Limits | None = None
    to: str | Sequence[str] = ()
    within: Duration | None = None
    question: str | Callable[..., str] | None = None
    auto: Callable[..., bool] | None = None


_UNDECLARED = ToolOptions()


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What a tool, or a function that makes instructions, may know of the session that it works for."""

    tenant: str
    session_id: str
    step_id: str
    agent: str
    attempt: int
    input: Any
    deps: Any
    logger: logging.LoggerAdapter[logging.Logger]
    _context: Context | AsyncContext = field(repr=False)

    @property
    def idempotency_key(self) -> str:
        """The same in every attempt at this call: hand it to the other side, which then sees a repeat."""
        return idempotency_key()

    @property
    def payload_max_bytes(self) -> int:
        """The most that a result may have when it is stored."""
        return self._context.payload_max_bytes

    @property
    def memory(self) -> Any:
        """The tenant's long-term memory: a `StepMemory`, for `async def` tools an `AsyncStepMemory`."""
        return self._context.memory

    def messages(self) -> list[tuple[int, bytes, str]]:
        """The session's messages as they are stored: position, body, writer."""
        return self._context.messages.rows()

    def effect_result(self, key: str) -> bytes | None:
        """What one of the session's own effects came to, as it is stored."""
        return self._context.effect_result(key)

    def progress(self, text: str, **data: Any) -> None:
        """Tell whoever watches the session's events, now."""
        self._context.progress(text, **data)


@overload
def tool(function: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def tool(
    *,
    name: str | None = None,
    idempotent: bool = False,
    irreversible: bool = False,
    key: Callable[..., str] | None = None,
    check: Callable[..., Any] | None = None,
    timeout: Duration = 60.0,
    retries: int = 2,
    poll: bool = False,
    needs: str | None = None,
    sandbox: bool | Limits = False,
    to: str | Sequence[str] = (),
    within: Duration | None = None,
    question: str | Callable[..., str] | None = None,
    auto: Callable[..., bool] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def tool(
    function: Callable[P, R] | None = None,
    /,
    *,
    name: str | None = None,
    idempotent: bool = False,
    irreversible: bool = False,
    key: Callable[..., str] | None = None,
    check: Callable[..., Any] | None = None,
    timeout: Duration = 60.0,
    retries: int = 2,
    poll: bool = False,
    needs: str | None = None,
    sandbox: bool | Limits = False,
    to: str | Sequence[str] = (),
    within: Duration | None = None,
    question: str | Callable[..., str] | None = None,
    auto: Callable[..., bool] | None = None,
) -> Any:
    """
    Declare a function, sync or async, as a tool that models may call.

    Its arguments are checked against its annotations; the docstring describes it and them to the model.
    A first parameter annotated `ToolContext` is filled in and not shown.

    `idempotent`, `check` and `key` are those of `@effect`: what happens when a worker dies in the middle
    of a call. `irreversible=True` waits for a person's leave first, asked as `to`, `within`, `question` and
    `auto` of `@effect` say; a no is told to the model. `timeout` bounds one call, `retries` counts the calls
    after a transient failure. `poll=True`: the same answer many times is normal, and no sign of a loop.
    `needs` names the service whose outage holds the tool back.
    `sandbox=True` (or `Limits(...)`) runs it outside the worker, as `@effect` says.

    Raises:
        ConfigError: the options contradict themselves.
    """
    if isinstance(retries, bool) or not isinstance(retries, int) or not 0 <= retries <= 1000:
        raise ConfigError("retries of a tool is a whole number from 0 to 1000")
    limits = Limits() if sandbox is True else sandbox or None
    if not irreversible and (to or within is not None or question is not None or auto is not None):
        raise ConfigError("to=, within=, question= and auto= say how irreversible=True is asked about; set it")
    options = ToolOptions(
        name=name, idempotent=idempotent, irreversible=irreversible, key=key, check=check,
        timeout_s=seconds(timeout), retries=retries, poll=poll, needs=needs, sandbox=limits,
        to=to, within=within, question=question, auto=auto,
    )  # fmt: skip

    def declare(function: Callable[P, R]) -> Callable[P, R]:
        setattr(function, _DECLARED, options)
        return function

    return declare(function) if function is not None else declare


def options_of(function: Callable[..., Any]) -> ToolOptions:
    """What a function declared as a tool, or the defaults."""
    found = getattr(function, _DECLARED, None)
    return found if isinstance(found, ToolOptions) else _UNDECLARED
