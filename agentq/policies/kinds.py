"""
Kinds: which exceptions mean what, as a table.

Client libraries are recognised by the names of their exception classes, by SQLSTATE and by HTTP
status; none is imported for it. The most specific name along the class hierarchy decides, so that a
spending limit, which one SDK derives from its rate limit, is not retried.

Raise `Transient`, `Semantic` or `Permanent` to say it yourself, or `classify_as(MyError, "transient")`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

from agentq.errors import ConfigError, InvalidInput, Permanent, Semantic, StoreUnavailable, Transient, UnknownEffect
from agentq.verdicts import FailureKind

Declared = Literal["transient", "semantic", "permanent", "unknown"]
Match = type[BaseException] | str | Callable[[BaseException], bool]


def _rows(kind: FailureKind, *names: str) -> dict[str, FailureKind]:
    return {name: kind for line in names for name in line.split()}


# By class name. Standard library, then httpx, requests, urllib3, redis, smtplib, botocore, model SDKs.
NAMES: Mapping[str, FailureKind] = {
    **_rows(
        "permanent",
        "TypeError AttributeError NameError ImportError SyntaxError NotImplementedError AssertionError",
        "KeyError IndexError RecursionError UnicodeError PermissionError FileNotFoundError IsADirectoryError",
        "SSLCertVerificationError InvalidURL UnsupportedProtocol MissingSchema InvalidSchema URLRequired",
        "InvalidHeader TooManyRedirects LocalProtocolError CookieConflict",
        # redis, smtplib, botocore
        "AuthenticationError AuthorizationError NoPermissionError DataError ResponseError",
        "SMTPAuthenticationError SMTPNotSupportedError",
        "NoCredentialsError PartialCredentialsError CredentialRetrievalError ParamValidationError",
        "UnknownServiceError NoRegionError NoAuthTokenError TokenRetrievalError SSOError LoginError ProfileNotFound",
        # model SDKs
        "PermissionDeniedError NotFoundError BadRequestError UnprocessableEntityError",
        "ModelAuthenticationError ModelNotFoundError ModelRequestRejectedError ModelQuotaExceededError",
        "EnforcedSpendLimitReachedError ContractSpendLimitReachedError CredentialsError WorkloadIdentityError",
        "IdentityTokenFileError HTTPNotImplementedError InvalidWebhookSignatureError SuspendedResponseExpired",
        "SpendLimitError SpendLimitExceededError PaymentRequiredError UserError UsageLimitExceeded",
    ),
    **_rows(
        "transient",
        "TimeoutError ConnectionError gaierror SSLError IncompleteRead RemoteDisconnected BrokenProcessPool",
        "TransportError DecodingError TimeoutException NetworkError RemoteProtocolError",
        "Timeout ChunkedEncodingError ProtocolError MaxRetryError NewConnectionError",
        "RetryError BusyLoadingError TryAgainError ReadOnlyError ClusterDownError MasterDownError MovedError AskError",
        "ClusterError SlotNotCoveredError OutOfMemoryError LockError WatchError InvalidResponse",
        "SMTPServerDisconnected SMTPConnectError SMTPHeloError",
        "EndpointConnectionError ConnectTimeoutError ReadTimeoutError ConnectionClosedError HTTPClientError",
        "ResponseStreamingError IncompleteReadError ChecksumError MetadataRetrievalError CapacityNotAvailableError",
        "RateLimitError InternalServerError APIConnectionError APITimeoutError OverloadedError ConflictError",
        "ServiceUnavailableError DeadlineExceededError RetryableError WebSocketConnectionClosedError",
        "ModelRateLimitError ModelOverloadedError ModelUnavailableError ModelServerError",
        "ModelConnectionError ModelTimeoutError ModelRequestTimeout ConcurrencyLimitExceeded",
        # Celery and billiard
        "WorkerLostError SoftTimeLimitExceeded",
    ),
    **_rows(
        "semantic",
        "ValidationError ModelRetry ToolFailed ToolFailedError ToolRetryError UnexpectedModelBehavior",
        "ContentFilterError ContentFilterFinishReasonError ModelBehaviorError APIResponseValidationError",
        "IncompleteToolCall OutputTokenLimitExceeded ModelContextWindowExceededError LengthFinishReasonError",
    ),
}

# By SQLSTATE: five characters, or the class of two. The longer one decides.
SQLSTATES: Mapping[str, FailureKind] = {
    **_rows("transient", "08 40 53 58 55P03 57P01 57P02 57P03 57P05 57014 25P03 25P04"),
    **_rows("permanent", "53100 0A 21 22 23 25 28 2B 3D 3F 42 44 54"),
}

STATUSES: Mapping[int, FailureKind] = {
    **dict.fromkeys((408, 409, 423, 425, 429, 500, 502, 503, 504, 507, 520, 521, 522, 523, 524, 529), "transient"),
    **dict.fromkeys(
        (400, 401, 402, 403, 404, 405, 406, 410, 411, 413, 414, 415, 416, 417, 422, 426, 431, 451, 501, 505),
        "permanent",
    ),
}

# botocore names its errors in the answer, not by class.
AWS_CODES: Mapping[str, FailureKind] = _rows(
    "transient",
    "Throttling ThrottlingException ThrottledException RequestThrottled RequestThrottledException",
    "TooManyRequestsException ProvisionedThroughputExceededException RequestLimitExceeded SlowDown",
    "BandwidthLimitExceeded PriorRequestNotComplete TransactionInProgressException RequestTimeout",
    "RequestTimeoutException InternalError InternalFailure ServiceUnavailable ModelNotReadyException",
    "ModelTimeoutException",
)

# An exhausted quota comes as status 429 and is no rate limit: it ends when somebody pays.
_QUOTA = (
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "credit balance is too low",
    "quota_exceeded",
)

_OWN: tuple[tuple[type[BaseException], FailureKind], ...] = (
    (UnknownEffect, "unknown"),
    (Semantic, "semantic"),
    (Transient, "transient"),
    (Permanent, "permanent"),
    (StoreUnavailable, "transient"),
    (InvalidInput, "permanent"),
    (ConfigError, "permanent"),
)

_registered: list[tuple[Match, FailureKind]] = []


def classify_as(match: Match, kind: Declared) -> None:
    """
    Say what an exception means: by its class, the name of its class, or a function that looks at it.

    The latest declaration that matches decides, ahead of all that agentq knows by itself.

    Raises:
        InvalidInput: no such kind.
    """
    if kind not in ("transient", "semantic", "permanent", "unknown"):
        raise InvalidInput(f"a failure is transient, semantic, permanent or unknown, not {kind!r}")
    _registered.insert(0, (match, kind))


def kind_of(error: BaseException) -> FailureKind:
    """What kind of failure an exception is; `unclassified` when nothing is known of it."""
    for match, kind in _registered:
        if _matches(match, error):
            return kind
    for known, kind in _OWN:
        if isinstance(error, known):
            return kind
    if _is_quota(error):
        return "permanent"
    if isinstance(error, BaseExceptionGroup):
        return _of_group(error)
    # The name before the status: an SDK's class says more than the number it came with.
    return _by_sqlstate(error) or _by_aws_code(error) or _by_name(error) or _by_status(error) or "unclassified"


# Of several failures at once: one that may have acted, then one that may pass, decides for all.
_GROUP: tuple[FailureKind, ...] = ("unknown", "transient", "semantic", "unclassified", "permanent")


def _of_group(group: BaseExceptionGroup[Any]) -> FailureKind:
    kinds = {kind_of(member) for member in group.exceptions}
    return next((kind for kind in _GROUP if kind in kinds), "unclassified")


def status_of(error: BaseException) -> int | None:
    """The HTTP or SMTP-like status that an exception carries, wherever its library keeps it."""
    response = getattr(error, "response", None)
    for holder, name in (
        (error, "status_code"), (error, "status"), (response, "status_code"), (response, "status"), (error, "code"),
    ):  # fmt: skip
        value = getattr(holder, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and 100 <= value <= 599:
            return value
    if isinstance(response, Mapping):
        value = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return value if isinstance(value, int) else None
    return None


def names_of(error: BaseException) -> frozenset[str]:
    """The names of an exception's classes."""
    return frozenset(ancestor.__name__ for ancestor in type(error).__mro__)


def headers_of(error: BaseException) -> Mapping[str, Any]:
    """The answer's headers, names in lower case."""
    for holder in (getattr(error, "response", None), error):
        headers = getattr(holder, "headers", None)
        if headers is None and isinstance(holder, Mapping):
            headers = holder.get("ResponseMetadata", {}).get("HTTPHeaders")
        if headers is not None:
            try:
                return {str(name).lower(): value for name, value in dict(headers).items()}
            except (TypeError, ValueError):
                continue
    return {}


def _matches(match: Match, error: BaseException) -> bool:
    if isinstance(match, str):
        return match in (ancestor.__name__ for ancestor in type(error).__mro__)
    if isinstance(match, type):
        return isinstance(error, match)
    return bool(match(error))


def _by_sqlstate(error: BaseException) -> FailureKind | None:
    state = getattr(error, "sqlstate", None)
    if not isinstance(state, str) or len(state) != 5:
        return None
    return SQLSTATES.get(state) or SQLSTATES.get(state[:2])


def _by_aws_code(error: BaseException) -> FailureKind | None:
    response = getattr(error, "response", None)
    if not isinstance(response, Mapping):
        return None
    found = response.get("Error")
    return AWS_CODES.get(str(found.get("Code"))) if isinstance(found, Mapping) else None


def _by_status(error: BaseException) -> FailureKind | None:
    smtp = getattr(error, "smtp_code", None)
    if isinstance(smtp, int) and 400 <= smtp <= 599:
        # RFC 5321: 4yz is a transient negative completion, 5yz a permanent one.
        return "transient" if smtp < 500 else "permanent"
    recipients = getattr(error, "recipients", None)
    if isinstance(recipients, Mapping) and recipients:
        # One that is refused for good is not accepted by trying again.
        codes = [answer[0] for answer in recipients.values() if isinstance(answer, tuple) and answer]
        return "permanent" if any(isinstance(code, int) and code >= 500 for code in codes) else "transient"
    status = status_of(error)
    return STATUSES.get(status) if status is not None else None


def _by_name(error: BaseException) -> FailureKind | None:
    for ancestor in type(error).__mro__:
        kind = NAMES.get(ancestor.__name__)
        if kind is not None:
            return kind
    return None


def _is_quota(error: BaseException) -> bool:
    if status_of(error) not in (None, 402, 403, 429):
        return False
    return any(token in text for text in _codes(error) for token in _QUOTA)


def _codes(error: BaseException) -> Iterator[str]:
    """Where SDKs say more than the status: code, type, and the body's own error."""
    yield from _texts((getattr(error, "code", None), getattr(error, "type", None)))
    body = getattr(error, "body", None)
    for part in (body, body.get("error") if isinstance(body, Mapping) else None):
        if isinstance(part, Mapping):
            yield from _texts(part.get(name) for name in ("code", "type", "message"))


def _texts(values: Iterable[Any]) -> Iterator[str]:
    return (value.lower() for value in values if isinstance(value, str))
