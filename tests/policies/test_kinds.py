"""Which exceptions mean what, and what is done about them."""

from __future__ import annotations

import json
import smtplib
import ssl
import urllib.error
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import httpx
import psycopg
import pydantic_ai.exceptions
import pytest
import redis
from pydantic import BaseModel, ValidationError

from agentq import Permanent, Semantic, Transient, classify_as
from agentq.engine import Bury, Retry
from agentq.errors import KeyConflict, StoreUnavailable, UnknownEffect
from agentq.policies import kinds
from agentq.policies.failures import ambiguous, classify, retry_with_backoff
from agentq.policies.kinds import kind_of
from agentq.verdicts import Failure, FailureKind


def sdk(name: str, *bases: str, **facts: Any) -> Exception:
    """An exception as a library that is not installed here would raise it."""
    kind: type[Exception] = Exception
    for base in reversed(bases):
        kind = type(base, (kind,), {})
    error = type(name, (kind,), {})("said the provider")
    for fact, value in facts.items():
        setattr(error, fact, value)
    return error


def answered(status: int, headers: dict[str, str] | None = None) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "http://127.0.0.1/v1")
    reply = httpx.Response(status, headers=headers, request=request)
    return httpx.HTTPStatusError("x", request=request, response=reply)


def state(sqlstate: str) -> psycopg.Error:
    return psycopg.errors.lookup(sqlstate)("x")


def aws(code: str, status: int) -> Exception:
    response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return sdk("ClientError", response=response)


class Number(BaseModel):
    n: int


def not_valid(text: str) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Number.model_validate_json(text)
    return caught.value


def caused(error: BaseException, by: BaseException) -> BaseException:
    """As `raise error from by`."""
    error.__cause__ = by
    return error


AMBIGUOUS: list[tuple[BaseException, bool]] = [
    (TimeoutError(), True),
    (ConnectionResetError(), True),
    (ConnectionRefusedError(), False),
    (ValueError("x"), False),
    (httpx.ReadTimeout("x"), True),
    (httpx.ConnectTimeout("x"), False),
    (httpx.PoolTimeout("x"), False),
    # a server broke while it worked on the request
    (answered(500), True),
    # a proxy lost the answer of the one behind it
    (answered(502), True),
    (answered(504), True),
    (answered(503), False),
    (answered(404), False),
    (sdk("APIStatusError", status_code=524), True),
    # there was an answer, and nobody can read it
    (json.JSONDecodeError("x", "", 0), True),
    (httpx.DecodingError("x"), True),
    (UnicodeDecodeError("utf-8", b"x", 0, 1, "x"), True),
    (not_valid("<html>"), True),
    (not_valid('{"n": "x"}'), False),
    # what a library wraps tells whether there was a connection at all
    (caused(sdk("APIConnectionError", "APIError"), httpx.ConnectError("x")), False),
    (caused(sdk("APIConnectionError", "APIError"), httpx.ReadError("x")), True),
    (caused(redis.ConnectionError("x"), ConnectionRefusedError()), False),
    (caused(redis.ConnectionError("x"), ConnectionResetError()), True),
    (sdk("ConnectionError", "RequestException"), True),
    (caused(ConnectionResetError(), ConnectionRefusedError()), True),
]


@pytest.mark.parametrize(
    ("error", "maybe"), AMBIGUOUS, ids=[f"{type(e).__name__}-{m}-{n}" for n, (e, m) in enumerate(AMBIGUOUS)]
)
def test_after_some_errors_the_call_may_have_happened(error: BaseException, maybe: bool) -> None:
    """
    I5: only what surely never reached the other side, or was surely refused there, is a call that failed.
    """
    assert ambiguous(error) is maybe


QUOTA = {"status_code": 429, "code": "insufficient_quota"}

CASES: list[tuple[BaseException, FailureKind]] = [
    (Transient("x"), "transient"),
    (Semantic("x"), "semantic"),
    (Permanent("x"), "permanent"),
    (UnknownEffect("x", "k"), "unknown"),
    (StoreUnavailable("x"), "transient"),
    (KeyConflict("effect key", "k"), "permanent"),
    # the standard library
    (TimeoutError(), "transient"),
    (ConnectionResetError(), "transient"),
    (KeyError("x"), "permanent"),
    (TypeError("x"), "permanent"),
    (ssl.SSLCertVerificationError(), "permanent"),
    (ssl.SSLError(), "transient"),
    (urllib.error.HTTPError("http://x", 503, "x", Message(), None), "transient"),
    (urllib.error.HTTPError("http://x", 404, "x", Message(), None), "permanent"),
    (smtplib.SMTPServerDisconnected("x"), "transient"),
    (smtplib.SMTPDataError(451, b"later"), "transient"),
    (smtplib.SMTPDataError(550, b"no"), "permanent"),
    (smtplib.SMTPAuthenticationError(535, b"no"), "permanent"),
    # nothing is known of these
    (RuntimeError("x"), "unclassified"),
    (ValueError("x"), "unclassified"),
    (json.JSONDecodeError("x", "", 0), "unclassified"),
    # httpx
    (httpx.ConnectError("x"), "transient"),
    (httpx.ReadTimeout("x"), "transient"),
    (httpx.InvalidURL("x"), "permanent"),
    (answered(429), "transient"),
    (answered(503), "transient"),
    (answered(401), "permanent"),
    (answered(422), "permanent"),
    # psycopg
    (state("40001"), "transient"),
    (state("40P01"), "transient"),
    (state("57P01"), "transient"),
    (state("53300"), "transient"),
    (state("53100"), "permanent"),
    (state("23505"), "permanent"),
    (state("42P01"), "permanent"),
    (state("22P02"), "permanent"),
    # redis
    (redis.ConnectionError("x"), "transient"),
    (redis.exceptions.BusyLoadingError("x"), "transient"),
    (redis.exceptions.ReadOnlyError("x"), "transient"),
    (redis.AuthenticationError("x"), "permanent"),
    (redis.exceptions.NoPermissionError("x"), "permanent"),
    # requests, botocore, openai, anthropic, pydantic-ai: by name and status, none is imported
    (sdk("ConnectTimeout", "ConnectionError", "RequestException"), "transient"),
    (sdk("HTTPError", "RequestException", response=SimpleNamespace(status_code=502, headers={})), "transient"),
    (aws("ThrottlingException", 400), "transient"),
    (aws("AccessDeniedException", 403), "permanent"),
    (aws("SomethingElse", 503), "transient"),
    (sdk("RateLimitError", "APIStatusError", status_code=429), "transient"),
    (sdk("RateLimitError", "APIStatusError", **QUOTA), "permanent"),
    (sdk("RateLimitError", status_code=429, body={"error": {"type": "insufficient_quota"}}), "permanent"),
    (sdk("SpendLimitError", "RateLimitError", "APIStatusError", status_code=429), "permanent"),
    (sdk("OverloadedError", "APIStatusError", status_code=529), "transient"),
    (sdk("APIStatusError", "APIError", status_code=529), "transient"),
    (sdk("AuthenticationError", "APIStatusError", status_code=401), "permanent"),
    (sdk("APIConnectionError", "APIError"), "transient"),
    (sdk("ModelHTTPError", status_code=400), "permanent"),
    (sdk("UnexpectedModelBehavior"), "semantic"),
    (sdk("ModelRetry"), "semantic"),
    (sdk("EnforcedSpendLimitReachedError", "RateLimitError", "APIStatusError", status_code=429), "permanent"),
    (sdk("HTTPNotImplementedError", "InternalServerError", status_code=501), "permanent"),
    (sdk("CapacityNotAvailableError", "BotoCoreError"), "transient"),
    (pydantic_ai.exceptions.ModelRateLimitError("m", "x"), "transient"),
    (pydantic_ai.exceptions.ModelQuotaExceededError("m", "x"), "permanent"),
    (pydantic_ai.exceptions.ModelContextWindowExceededError("m", "x"), "semantic"),
    (pydantic_ai.exceptions.ModelAuthenticationError("m", "x"), "permanent"),
    (pydantic_ai.exceptions.ModelTimeoutError("m", "x"), "transient"),
    (pydantic_ai.exceptions.ConcurrencyLimitExceeded("x"), "transient"),
    (pydantic_ai.exceptions.UsageLimitExceeded("x"), "permanent"),
    (not_valid('{"n": "x"}'), "semantic"),
    (httpx.LocalProtocolError("x"), "permanent"),
    (httpx.TooManyRedirects("x"), "permanent"),
    (redis.exceptions.AuthorizationError("x"), "permanent"),
    (redis.exceptions.OutOfMemoryError("x"), "transient"),
    (smtplib.SMTPRecipientsRefused({"a@b": (550, b"no")}), "permanent"),
    (smtplib.SMTPRecipientsRefused({"a@b": (451, b"later")}), "transient"),
    # several at once: what may pass decides, and what may have acted before that
    (ExceptionGroup("all models", [TypeError("x"), TimeoutError()]), "transient"),
    (ExceptionGroup("all models", [Permanent("x"), TypeError("x")]), "permanent"),
    (ExceptionGroup("x", [UnknownEffect("x", "k"), TimeoutError()]), "unknown"),
]


@pytest.mark.parametrize(
    ("error", "kind"), CASES, ids=[f"{type(e).__name__}-{k}-{n}" for n, (e, k) in enumerate(CASES)]
)
def test_known_exceptions_have_their_kind(error: BaseException, kind: FailureKind) -> None:
    """Each row of the table, with the library's real exception where it is installed here."""
    assert kind_of(error) == kind


@pytest.fixture
def declared() -> Iterator[None]:
    """What a test declares is forgotten after it."""
    before = list(kinds._registered)
    yield
    kinds._registered[:] = before


@pytest.mark.usefixtures("declared")
def test_ones_own_word_goes_before_the_table() -> None:
    """By class, by name, by a look at it; the latest declaration wins."""
    classify_as(LookupError, "transient")
    classify_as("OutOfStock", "permanent")
    classify_as(lambda error: "maintenance" in str(error), "transient")

    assert kind_of(KeyError("x")) == "transient"
    assert kind_of(sdk("OutOfStock")) == "permanent"
    assert kind_of(RuntimeError("down for maintenance")) == "transient"
    assert kind_of(RuntimeError("anything else")) == "unclassified"
    classify_as(KeyError, "permanent")
    assert kind_of(KeyError("x")) == "permanent"


def test_an_unheard_of_kind_is_refused() -> None:
    """A slip in the declaration is told where it is made."""
    with pytest.raises(ValueError, match="transient, semantic, permanent or unknown"):
        classify_as(KeyError, "fatal")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"Retry-After": "99999999"}, 3600.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-5"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_from_the_answer(headers: dict[str, str], seconds: float | None) -> None:
    """Seconds, milliseconds, never more than an hour, and nothing when it makes no sense."""
    assert classify(answered(429, headers)).retry_after_s == seconds


def test_retry_after_may_be_a_date() -> None:
    """HTTP allows a date; it is measured from now."""
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    found = classify(answered(503, {"Retry-After": date})).retry_after_s
    assert found is not None
    assert 55 <= found <= 60


def claim(attempt: int, attempts_max: int) -> Any:
    return SimpleNamespace(attempt=attempt, attempts_max=attempts_max)


@pytest.mark.parametrize(
    ("kind", "attempt", "goes_on"),
    [
        ("transient", 1, True),
        ("transient", 4, True),
        ("transient", 5, False),
        ("unclassified", 1, True),
        ("unclassified", 2, False),
        ("permanent", 1, False),
        ("unknown", 1, False),
        ("timeout", 1, True),
    ],
)
def test_each_kind_has_its_treatment(kind: FailureKind, attempt: int, goes_on: bool) -> None:
    """Transient to the end of the attempts, unclassified once more, permanent and unknown not at all."""
    judged = retry_with_backoff(1.0, 60.0)(claim(attempt, 5), Failure(kind, "X", "x"))
    assert isinstance(judged, Retry if goes_on else Bury)


def test_retry_after_is_a_floor_below_the_jitter() -> None:
    """The other side's word is kept, and the herd is spread above it."""
    judge = retry_with_backoff(1.0, 60.0, draw=lambda: 0.5)
    assert judge(claim(1, 5), Failure("transient", "X", "x", retry_after_s=10.0)) == Retry(10.5)
    assert judge(claim(40, 50), Failure("transient", "X", "x")) == Retry(30.0)
