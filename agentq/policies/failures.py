"""Failures: what kind an exception is, and what is done about each kind."""

from __future__ import annotations

import math
import os
import random
import sysconfig
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agentq.engine import Bury, Judge, Retry
from agentq.errors import Transient, UnknownEffect
from agentq.policies.kinds import headers_of, kind_of, names_of, status_of
from agentq.verdicts import Failure, Granted

_MESSAGE_MAX = 2000
# A step may ask for a long pause; a header that asks for more than an hour is not believed.
_DECLARED_MAX_S = 30 * 86400.0
_HEADER_MAX_S = 3600.0
# Of a failure that nobody has classified: once more, in case it passes, and then it is a bug.
_UNCLASSIFIED_ATTEMPTS = 2


def classify(error: BaseException) -> Failure:
    """An exception as a failure; its kind as `agentq.policies.kinds` has it."""
    return Failure(
        kind=kind_of(error),
        type=type(error).__name__,
        message=_message(error),
        retry_after_s=_retry_after_s(error),
        where=_where(error),
        place=_place(error),
        final=getattr(error, "final", None) is True,
        status=status_of(error),
    )


def _message(error: BaseException) -> str:
    try:
        return str(error)[:_MESSAGE_MAX]
    except Exception:
        return "its message cannot be shown"


def _retry_after_s(error: BaseException) -> float | None:
    """When the other side wants to be asked again; what is no time, or is out of range, is no floor."""
    if isinstance(error, Transient):
        return _seconds(error.retry_after_s, _DECLARED_MAX_S)
    headers = headers_of(error)
    milliseconds = _seconds(headers.get("retry-after-ms"), _HEADER_MAX_S * 1000)
    if milliseconds is not None:
        return milliseconds / 1000
    wanted = headers.get("retry-after", getattr(error, "retry_after", None))
    found = _seconds(wanted, _HEADER_MAX_S)
    return found if found is not None else _until_date(wanted)


def _seconds(wanted: Any, most: float) -> float | None:
    try:
        value = math.nan if isinstance(wanted, bool) else float(wanted)
    except (TypeError, ValueError):
        return None
    return min(value, most) if 0 <= value < math.inf else None


def _until_date(wanted: Any) -> float | None:
    try:
        moment = parsedate_to_datetime(str(wanted))
    except (TypeError, ValueError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return min(max((moment - datetime.now(UTC)).total_seconds(), 0.0), _HEADER_MAX_S)


# Errors after which the other side may or may not have acted, by class name: no client library is
# imported to recognise its errors. Refused or never established connections are not among them.
_AMBIGUOUS_NAMES = frozenset(
    {
        "ReadTimeout", "WriteTimeout", "ReadError", "WriteError", "RemoteProtocolError", "RemoteDisconnected",
        "IncompleteRead", "APITimeoutError", "SMTPServerDisconnected", "ReadTimeoutError",
        "ConnectionClosedError", "ChunkedEncodingError", "ProtocolError", "Timeout", "ModelTimeoutError",
        "ResponseStreamingError",
        # the answer came, and says nothing that can be read
        "JSONDecodeError", "DecodingError", "ContentDecodingError", "UnicodeDecodeError", "DecodeError",
        "APIResponseValidationError", "ResponseParserError", "InvalidResponse",
    }
)  # fmt: skip
_NOT_SENT: tuple[type[BaseException], ...] = (ConnectionRefusedError,)
_NOT_SENT_NAMES = frozenset(
    {
        "ConnectError", "ConnectTimeout", "PoolTimeout", "NewConnectionError", "EndpointConnectionError",
        "ConnectTimeoutError", "gaierror", "SMTPConnectError",
    }
)  # fmt: skip
# They stand for any trouble with a connection; what they wrap tells which.
_WRAPPERS = frozenset({"APIConnectionError", "ModelConnectionError", "MaxRetryError", "ConnectionError"})
# A server that broke while it worked on the request, or a proxy's word that it lost the answer of the one
# behind it: either may have acted. 503 and 529 say that it was not taken on.
_AMBIGUOUS_STATUSES = frozenset({500, 502, 504, 520, 524, 598, 599})


def ambiguous(error: BaseException) -> bool:
    """Whether a call that raised this may nevertheless have happened."""
    if isinstance(error, UnknownEffect) or status_of(error) in _AMBIGUOUS_STATUSES or _unreadable(error):
        return True
    if names_of(error) & _WRAPPERS and not isinstance(error, ConnectionError):
        return not _is_not_sent(error) and not _never_connected(error)
    return _came_apart(error)


def _came_apart(error: BaseException) -> bool:
    """Whether a connection that was made ended without an answer, or with one that nobody can read."""
    if _is_not_sent(error):
        return False
    return isinstance(error, TimeoutError | ConnectionError) or bool(names_of(error) & _AMBIGUOUS_NAMES)


def _is_not_sent(error: BaseException) -> bool:
    return isinstance(error, _NOT_SENT) or bool(names_of(error) & _NOT_SENT_NAMES)


def _never_connected(error: BaseException) -> bool:
    """Whether what a library wrapped is a connection that was never made; the innermost cause says most."""
    cause = error.__cause__ or error.__context__
    for _ in range(10):
        if cause is None or _came_apart(cause):
            return False
        if _is_not_sent(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _unreadable(error: BaseException) -> bool:
    """A validation error over an answer that is no JSON at all; one over its fields may be about arguments."""
    return isinstance(error, ValidationError) and any(found["type"] == "json_invalid" for found in error.errors())


def _where(error: BaseException) -> str:
    """File, line and function of the innermost frame; never its variables."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno} {frames[-1].name}" if frames else ""


_OURS = str(Path(__file__).resolve().parents[1]) + os.sep
_LIBRARIES = tuple({str(Path(path)) + os.sep for path in sysconfig.get_paths().values()})


def _place(error: BaseException) -> str:
    """
    File and function of the innermost frame that is neither ours nor a library's: the user's own call.

    When all of the user's code is installed like a library, the first frame that is not ours: the step.
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_OURS)]
    own = [frame for frame in frames if not _is_library(frame.filename)]
    found = own[-1] if own else frames[0] if frames else None
    return f"{found.filename.rsplit('/', 1)[-1]} {found.name}" if found else ""


def _is_library(filename: str) -> bool:
    return filename.startswith(("<", *_LIBRARIES)) or "/site-packages/" in filename or "/dist-packages/" in filename


def attempts_for(failure: Failure, attempts_max: int) -> int:
    """How many attempts a step has whose failure is of this kind: one that nobody has classified is tried once more."""
    return min(attempts_max, _UNCLASSIFIED_ATTEMPTS) if failure.kind == "unclassified" else attempts_max


def retry_with_backoff(base_s: float, max_s: float, draw: Callable[[], float] = random.random) -> Judge:
    """
    Retry failed attempts with full jitter until the step's attempts are used up.

    `Retry-After` is a floor, never a ceiling. Permanent and unknown outcomes are buried at once; a
    failure of no known kind is tried once more.
    """

    def judge(claim: Granted, failure: Failure) -> Retry | Bury:
        attempts = attempts_for(failure, claim.attempts_max)
        if failure.final or failure.kind in ("permanent", "unknown") or claim.attempt >= attempts:
            return Bury()
        # Bounded before the power: an attempt count in the thousands must not overflow.
        ceiling_s = min(max_s, base_s * 2.0 ** min(claim.attempt - 1, 32))
        return Retry((failure.retry_after_s or 0.0) + ceiling_s * draw())

    return judge
