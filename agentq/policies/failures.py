"""Failures: what kind an exception is, and what is done about each kind."""

from __future__ import annotations

import math
import random
import traceback
from collections.abc import Callable

from agentq.engine import Bury, Judge, Retry
from agentq.errors import (
    InvalidInput,
    Permanent,
    Semantic,
    StoreUnavailable,
    Transient,
    UnknownEffect,
)
from agentq.verdicts import Failure, FailureKind, Granted

# Bugs and refusals: the same call with the same state fails the same way.
_PERMANENT: tuple[type[BaseException], ...] = (
    Permanent,
    InvalidInput,
    TypeError,
    AttributeError,
    NameError,
    ImportError,
    SyntaxError,
    NotImplementedError,
)
_TRANSIENT: tuple[type[BaseException], ...] = (Transient, StoreUnavailable, ConnectionError, TimeoutError)

_MESSAGE_MAX = 2000
_RETRY_AFTER_MAX_S = 30 * 86400.0


def classify(error: BaseException) -> Failure:
    """An exception as a failure. One that is not known counts as transient and is retried."""
    return Failure(
        kind=_kind(error),
        type=type(error).__name__,
        message=_message(error),
        retry_after_s=_retry_after_s(error),
        where=_where(error),
    )


def _message(error: BaseException) -> str:
    try:
        return str(error)[:_MESSAGE_MAX]
    except Exception:
        return "its message cannot be shown"


def _retry_after_s(error: BaseException) -> float | None:
    """When the other side wants to be asked again; what is no time, or one beyond a month, is no floor."""
    wanted = getattr(error, "retry_after_s", None) if isinstance(error, Transient) else None
    if isinstance(wanted, bool) or not isinstance(wanted, int | float) or not 0 <= wanted < math.inf:
        return None
    return min(float(wanted), _RETRY_AFTER_MAX_S)


def _kind(error: BaseException) -> FailureKind:
    if isinstance(error, UnknownEffect):
        return "unknown"
    if isinstance(error, Semantic):
        return "semantic"
    if isinstance(error, _TRANSIENT):
        return "transient"
    if isinstance(error, _PERMANENT):
        return "permanent"
    return "transient"


# Errors after which the other side may or may not have acted, by class name: no client library is
# imported to recognise its errors. Refused or never established connections are not among them.
_AMBIGUOUS_NAMES = frozenset(
    {
        "ReadTimeout", "WriteTimeout", "ReadError", "WriteError", "RemoteProtocolError", "RemoteDisconnected",
        "IncompleteRead", "APITimeoutError", "SMTPServerDisconnected",
    }
)  # fmt: skip
_NOT_SENT: tuple[type[BaseException], ...] = (ConnectionRefusedError,)
_NOT_SENT_NAMES = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "NewConnectionError"})


def ambiguous(error: BaseException) -> bool:
    """Whether a call that raised this may nevertheless have happened."""
    if isinstance(error, UnknownEffect):
        return True
    names = {ancestor.__name__ for ancestor in type(error).__mro__}
    if isinstance(error, _NOT_SENT) or names & _NOT_SENT_NAMES:
        return False
    return isinstance(error, TimeoutError | ConnectionError) or bool(names & _AMBIGUOUS_NAMES)


def _where(error: BaseException) -> str:
    """File, line and function of the innermost frame; never its variables."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno} {frames[-1].name}" if frames else ""


def retry_with_backoff(base_s: float, max_s: float, draw: Callable[[], float] = random.random) -> Judge:
    """
    Retry failed attempts with full jitter until the step's attempts are used up.

    `Retry-After` is a floor, never a ceiling. Permanent and unknown outcomes are buried at once.
    """

    def judge(claim: Granted, failure: Failure) -> Retry | Bury:
        if failure.kind in ("permanent", "unknown") or claim.attempt >= claim.attempts_max:
            return Bury()
        # Bounded before the power: an attempt count in the thousands must not overflow.
        ceiling_s = min(max_s, base_s * 2.0 ** min(claim.attempt - 1, 32))
        return Retry((failure.retry_after_s or 0.0) + ceiling_s * draw())

    return judge
