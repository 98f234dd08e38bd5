"""
Dependencies: what a failure says about the thing that was called, and how long to keep away from it.

Two breakers stand before each call, and they learn from different failures. The fleet's breaker opens
when the dependency itself is out of order: connections, timeouts, 5xx. A tenant's own opens when its
access is: credentials refused, quota spent, too many requests with its key. So one tenant's bad key
holds back that tenant, and nobody else.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

from agentq.verdicts import Failure

# answered: it works, whatever the answer. down: it does not. denied: not for this tenant. nothing: no news.
Bearing = Literal["answered", "down", "denied", "nothing"]

_DENIED_STATUSES = frozenset({401, 402, 403, 407, 429})
_DOWN_STATUSES = frozenset({408, 500, 502, 503, 504, 507, 520, 521, 522, 523, 524, 529, 598, 599})
_DENIED_TYPES = frozenset(
    {
        "AuthenticationError", "PermissionDeniedError", "NoPermissionError", "ModelAuthenticationError",
        "ModelQuotaExceededError", "ModelRateLimitError", "RateLimitError", "SpendLimitError",
        "SpendLimitExceededError", "PaymentRequiredError", "SMTPAuthenticationError", "InvalidPassword",
        "InvalidAuthorizationSpecification",
    }
)  # fmt: skip
# Errors that are an answer: about one request, one row, one recipient.
_ANSWERS = frozenset(
    {
        "SerializationFailure", "DeadlockDetected", "LockNotAvailable", "QueryCanceled", "TryAgainError",
        "ConflictError", "SMTPRecipientsRefused", "SMTPSenderRefused", "SMTPDataError", "ModelNotFoundError",
        "ModelRequestRejectedError", "ModelContextWindowExceededError", "NotFoundError", "BadRequestError",
        "UnprocessableEntityError",
    }
)  # fmt: skip
# Of agentq's own making: nothing outside was asked.
_OURS = frozenset({"StoreUnavailable", "BrokerUnavailable", "FenceLost", "KeyConflict", "WorkerLostError"})


@dataclass(frozen=True, slots=True)
class Rules:
    """When a breaker opens, how it tries, and when it closes."""

    window_s: float
    volume_min: int
    failure_rate: float
    pause_s: float
    pause_max_s: float
    probes: int
    probe_s: float
    good: int

    def as_json(self) -> dict[str, float]:
        """As the functions in Postgres read them."""
        return asdict(self)


def bearing(failure: Failure) -> Bearing:
    """What a failed call says about the dependency that it went to."""
    if failure.type in _OURS or failure.kind in ("gave_up", "cancelled", "deadline", "worker_lost"):
        return "nothing"
    if failure.status in _DENIED_STATUSES or failure.type in _DENIED_TYPES:
        return "denied"
    if failure.status in _DOWN_STATUSES:
        return "down"
    if failure.status == 400 and failure.kind == "transient":
        return "denied"  # how one large cloud says that a client is too fast
    if failure.status is not None and failure.status >= 400:
        return "answered"
    if failure.kind == "semantic" or failure.type in _ANSWERS:
        return "answered"
    return "down" if failure.kind in ("transient", "timeout") else "nothing"


@dataclass(frozen=True, slots=True)
class Hold:
    """Not now: the breaker is not closed, and those who try are enough."""

    delay_s: float


def hold(wait_s: float, rules: Rules, draw: Callable[[], float] = random.random) -> Hold:
    """
    How long a step stays away when the next probe is `wait_s` away.

    Spread over as long again, so that those who waited together do not come back together. Never longer
    than the longest pause: a breaker may close, or be given back by an operator, before its time.
    """
    wait_s = min(max(wait_s, 0.0), rules.pause_max_s)
    return Hold(wait_s + draw() * min(max(wait_s, rules.pause_s), rules.pause_max_s))
