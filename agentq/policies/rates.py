"""Rates: which limits a call must keep, where they are counted, and what a provider's headers say."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

from agentq.errors import BrokerUnavailable, StoreUnavailable
from agentq.store.rates import FLEET, Bucket, Part, RateRow, StoredRates, Take, Taken, buckets_of

log = logging.getLogger("agentq.rates")

_FRESH_S = 3.0
# How long a Redis that did not answer is left alone, and Postgres counts instead.
_AWAY_S = 5.0
_CLOSED_MAX_S = 3600.0


class Counter(Protocol):
    """Where buckets are kept."""

    def take(self, take: Take) -> Taken:
        """Take from every bucket, or from none."""

    def give_back(self, parts: dict[str, float]) -> None:
        """Seconds of each bucket that were taken and not used."""

    def close(self, bucket: str, seconds: float) -> None:
        """Let nobody call before that."""


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether a call may go out: 0, or the seconds after which to ask again; and what it holds, of which counter."""

    wait_s: float
    tokens: int = 0
    parts: tuple[Part, ...] = ()
    counter: Counter | None = None
    at: float = 0.0


class Gate:
    """Stands before each call to a provider. Limits are read again every few seconds."""

    def __init__(self, stored: StoredRates, counter: Counter | None = None) -> None:
        self._stored = stored
        self._counter = counter
        self._away_until = 0.0
        self._limits: dict[tuple[str, str], RateRow] = {}
        self._weights: dict[str, float] = {}
        self._learned: dict[str, float] = {}
        self._until = 0.0
        self._lock = threading.Lock()

    def wait_s(self, tenant: str, provider: str, tokens: int) -> float:
        """0 when the call may go out now, and is counted; else the seconds after which to ask again."""
        return self.admit(tenant, provider, tokens).wait_s

    def admit(self, tenant: str, provider: str, tokens: int, *, model: str | None = None) -> Admission:
        """Whether the call may go out now; if so, it is counted, as so many tokens."""
        self._refresh()
        places = (provider,) if model is None else (provider, _place(provider, model))
        take = Take(
            # Who shares: the callers of the provider, unless only this model of it is limited.
            provider=provider if (FLEET, provider) in self._limits else places[-1],
            caller=tenant,
            weight=self._weights.get(tenant, 1.0),
            closed=tuple(f"closed:{place}" for place in places),
            buckets=tuple(self._buckets(tenant, places, tokens)),
        )
        if self._counter is not None and time.monotonic() >= self._away_until:
            try:
                return _admission(self._counter.take(take), tokens, self._counter)
            except BrokerUnavailable as error:
                self._leave_alone(error)
        return _admission(self._stored.take(take), tokens, self._stored)

    def give_back(self, admission: Admission, used_tokens: int | None) -> None:
        """
        Return what the call held and did not use; None: it never went out. Never raises.

        Only what time has not given back yet: who took long gets less, so no limit is passed for it.
        """
        elapsed = time.monotonic() - admission.at
        unused = 1.0 if used_tokens is None else 1.0 - used_tokens / max(admission.tokens, 1)
        parts = {
            part.bucket: round(min(part.took_s * unused, part.left_s - elapsed), 6)
            for part in admission.parts
            if used_tokens is None or ":tokens" in part.bucket
        }
        parts = {bucket: seconds for bucket, seconds in parts.items() if seconds > 0}
        if not parts or admission.counter is None:
            return
        try:
            admission.counter.give_back(parts)
        except (BrokerUnavailable, StoreUnavailable) as error:
            log.debug("unused rates come back by themselves: %s", error)

    def learn(self, provider: str, headers: Mapping[str, Any], *, model: str | None = None) -> None:
        """
        Take a provider at its word: its limits, and until when it wants no calls. Never raises.

        Providers limit each model for itself: what one of them says holds for calls of that `model`.
        """
        said, place = read_headers(headers), _place(provider, model) if model is not None else provider
        try:
            if said.closed_s > 0:
                self._close(f"closed:{place}", min(said.closed_s, _CLOSED_MAX_S))
            self._learn(place, said)
        except StoreUnavailable as error:
            log.debug("what %s said of its limits is forgotten: %s", provider, error)

    def _learn(self, place: str, said: Said) -> None:
        row = self._limits.get((FLEET, place))
        known = (row.learned_requests, row.learned_tokens) if row is not None else (None, None)
        if (said.requests_per_min or known[0], said.tokens_per_min or known[1]) == known:
            return
        # Not at each answer, should two keys of one provider have different limits.
        if time.monotonic() >= self._learned.get(place, 0.0):
            self._learned[place] = time.monotonic() + _FRESH_S
            self._stored.learn(place, said.requests_per_min, said.tokens_per_min)
            self._until = 0.0

    def _close(self, bucket: str, seconds: float) -> None:
        if self._counter is not None and time.monotonic() >= self._away_until:
            try:
                self._counter.close(bucket, seconds)
                return
            except BrokerUnavailable as error:
                self._leave_alone(error)
        self._stored.close(bucket, seconds)

    def _leave_alone(self, error: BrokerUnavailable) -> None:
        self._away_until = time.monotonic() + _AWAY_S
        log.warning("%s; Postgres counts them for %g s", error, _AWAY_S)

    def _refresh(self) -> None:
        if time.monotonic() < self._until:
            return
        with self._lock:
            if time.monotonic() < self._until:
                return
            self._limits = {(row.tenant, row.provider): row for row in self._stored.limits()}
            # Weights matter only where a limit is divided.
            self._weights = self._stored.weights() if any(name == FLEET for name, _ in self._limits) else {}
            self._until = time.monotonic() + _FRESH_S

    def _buckets(self, tenant: str, places: tuple[str, ...], tokens: int) -> list[Bucket]:
        found: list[Bucket] = []
        for name, place in (*((FLEET, place) for place in places), (tenant, places[0])):
            row = self._limits.get((name, place))
            if row is None:
                continue
            share = name == FLEET
            requests = _lower(row.requests_per_min, row.learned_requests)
            per_tokens = _lower(row.tokens_per_min, row.learned_tokens)
            for kind, per_min, cost in (("requests", requests, 1), ("tokens", per_tokens, tokens)):
                if per_min is not None:
                    prefix = f"{name}:{place}:{kind}"
                    for bucket in buckets_of(prefix, per_min, cost, share=share):
                        found.append(_owned(bucket, tenant))
        return found


def _place(provider: str, model: str) -> str:
    return f"{provider}:{model}"


def _admission(taken: Taken, tokens: int, counter: Counter) -> Admission:
    return Admission(taken.wait_s, tokens, taken.parts, counter, time.monotonic())


def _owned(bucket: Bucket, tenant: str) -> Bucket:
    if not bucket.share:
        return bucket
    return Bucket(f"{bucket.bucket}:{tenant}", bucket.each_s, bucket.burst, bucket.cost, share=True)


def _lower(one: int | None, other: int | None) -> int | None:
    known = [value for value in (one, other) if value is not None]
    return min(known, default=None)


@dataclass(frozen=True, slots=True)
class Said:
    """What a provider's headers say of its limits."""

    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    closed_s: float = 0.0


def read_headers(headers: Mapping[str, Any], now: datetime | None = None) -> Said:
    """
    Limits and pauses as OpenAI, Anthropic and their kin tell them; what cannot be read says nothing.

    A limit of which nothing remains closes the provider until its reset, as `Retry-After` does.
    """
    known = {str(name).lower(): str(value).strip() for name, value in headers.items()}
    now = now or datetime.now(UTC)
    closed_s = _wait(known.get("retry-after-ms"), now, scale=0.001) or _wait(known.get("retry-after"), now)
    limits: dict[str, int | None] = {}
    for kind in ("requests", "tokens"):
        limit = remaining = reset = None
        for pattern in (f"x-ratelimit-{{}}-{kind}", f"anthropic-ratelimit-{kind}-{{}}"):
            limit = limit or known.get(pattern.format("limit"))
            remaining = remaining or known.get(pattern.format("remaining"))
            reset = reset or known.get(pattern.format("reset"))
        limits[kind] = _count(limit) or None
        if _count(remaining) == 0:
            closed_s = max(closed_s, _wait(reset, now))
    return Said(limits["requests"], limits["tokens"], min(closed_s, _CLOSED_MAX_S))


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 10 else None


_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def _wait(text: str | None, now: datetime, *, scale: float = 1.0) -> float:
    """Seconds from a number, `1m30s`, an HTTP date or an ISO time; 0 when it is none of them."""
    if not text:
        return 0.0
    if re.fullmatch(r"\d{1,12}(\.\d+)?", text):
        return float(text) * scale
    if re.fullmatch(rf"(?:{_SPAN.pattern})+", text):
        return sum(float(number) * _UNITS[unit] for number, unit in _SPAN.findall(text))
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            moment = parse(text)
        except (TypeError, ValueError):
            continue
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max((moment - now).total_seconds(), 0.0)
    return 0.0
