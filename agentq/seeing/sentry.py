"""
Reports to Sentry: one issue for each cause, silent on retries, refusals and whatever heals itself.

A client of its own, without Sentry's automatic integrations: what those capture has local variables in
it, and thereby prompts. What goes out is named here, and everything else is cut off before it is sent.
An error's message stays at home, because it may quote what a user typed; its cause leads to it
(`agentq dlq ls --cause`).
"""

from __future__ import annotations

import logging
import uuid
from traceback import walk_tb
from typing import Any

import sentry_sdk

from agentq.causes import cause_of
from agentq.engine import Watch
from agentq.relay.anomalies import Anomaly
from agentq.settings import Settings
from agentq.store.ledger import TakenBack
from agentq.verdicts import Failure, Granted, Settlement, Verdict

log = logging.getLogger("agentq.seeing.sentry")

_ALLOWED = frozenset(
    {"event_id", "timestamp", "platform", "level", "logger", "logentry", "message", "fingerprint", "tags", "release",
     "environment", "sdk"}
)  # fmt: skip
_CHECK_IN = frozenset(
    {
        "event_id",
        "timestamp",
        "type",
        "check_in_id",
        "monitor_slug",
        "status",
        "monitor_config",
        "release",
        "environment",
    }
)


def only_allowed(event: Any, _hint: Any) -> Any:
    """The event without anything that is not named here."""
    if event.get("type") == "check_in":
        return {name: value for name, value in event.items() if name in _CHECK_IN}
    return {name: value for name, value in event.items() if name in _ALLOWED}


class Reports:
    """Tells Sentry what a person must look at. Sending never holds up a step and never fails one."""

    def __init__(self, settings: Settings, release: str) -> None:
        self._client = sentry_sdk.Client(
            dsn=settings.sentry_dsn,
            release=f"agentq@{release}",
            default_integrations=False,
            auto_enabling_integrations=False,
            include_local_variables=False,
            include_source_context=False,
            send_client_reports=False,
            auto_session_tracking=False,
            server_name="",
            before_send=only_allowed,
        )

    def buried(self, claim: Granted, failure: Failure) -> None:
        """A step is dead: its cause is an issue, its session and step are tags."""
        place = failure.where or f"{claim.agent}.{claim.name}"
        cause = cause_of(kind=failure.kind, type=failure.type, message=failure.message, place=place)
        self._send(
            "error",
            f"{failure.type} in {claim.agent}.{claim.name} ({failure.kind}), cause {cause.fingerprint}",
            [cause.fingerprint],
            {
                "tenant": claim.ref.tenant,
                "agent": claim.agent,
                "session": str(claim.ref.session_id),
                "step": claim.name,
                "class": failure.kind,
                "cause": cause.fingerprint,
            },
        )

    def lost(self, step: TakenBack) -> None:
        """A worker died under a step; buried when it was alone with it."""
        self._send(
            "error" if step.fate == "buried" else "warning",
            f"a worker died under a step, which is {'buried' if step.fate == 'buried' else 'run again'}",
            ["worker lost", step.fate],
            {"tenant": step.tenant, "session": str(step.session_id), "class": "worker_lost", "fate": step.fate},
        )

    def tripped(self, claim: Granted, hold: dict[str, Any]) -> None:
        """A session goes in circles, and its breaker parked it."""
        rule = str((hold.get("evidence") or {}).get("rule") or hold.get("kind"))
        self._send(
            "warning",
            f"{claim.agent}: a session parked itself, by the rule {rule}",
            ["session breaker", claim.agent, rule],
            {
                "tenant": claim.ref.tenant,
                "agent": claim.agent,
                "session": str(claim.ref.session_id),
                "step": claim.name,
                "class": "breaker",
                "rule": rule,
            },
        )

    def opened(self, scope: tuple[str, str]) -> None:
        """A dependency's breaker opened. Each process that calls it says so, in one issue."""
        tenant, name = scope
        self._send(
            "error",
            f"dependency {name} is out of order{'' if tenant == '*' else f' for tenant {tenant}'}: steps wait for it",
            ["dependency", tenant, name],
            {"tenant": tenant, "dependency": name, "class": "breaker"},
        )

    def fault(self, error: BaseException, tenant: str) -> None:
        """A delivery broke agentq itself. What broke and where, by code alone: its message may quote a payload."""
        kind, place = type(error).__name__, _place_of(error)
        self._send(
            "error",
            f"a fault of agentq itself: {kind} in {place}; the relay carries the step again",
            ["fault", kind, place],
            {"tenant": tenant, "class": "fault"},
        )

    def relay_turns(self) -> None:
        """
        Check in with Sentry's monitor `agentq-relay`, once a minute from each relay.

        When the last relay stands still, nobody checks in, and Sentry says so by itself.
        """
        event: Any = {
            "type": "check_in",
            "check_in_id": uuid.uuid4().hex,
            "monitor_slug": "agentq-relay",
            "status": "ok",
            "monitor_config": {
                "schedule": {"type": "interval", "value": 1, "unit": "minute"},
                "checkin_margin": 2,
                "failure_issue_threshold": 1,
                "recovery_threshold": 1,
                "timezone": "UTC",
            },
        }
        try:
            self._client.capture_event(event)
        except Exception as error:
            log.debug("Sentry could not be told: %s", type(error).__name__)

    def anomaly(self, anomaly: Anomaly) -> None:
        """A session is not as usual: an issue for each agent and measure, with numbers and no words of anybody."""
        kind = anomaly.measure.partition(":")[0]
        numbers = f"{anomaly.value:g}, normal is {anomaly.low:g} to {anomaly.high:g}"
        self._send(
            "warning",
            f"{anomaly.agent}: {kind} {numbers} ({anomaly.rule}){', parked' if anomaly.parked else ''}",
            ["anomaly", anomaly.agent, kind],
            {
                "tenant": anomaly.tenant,
                "agent": anomaly.agent,
                "session": str(anomaly.session_id),
                "measure": kind,
                "rule": anomaly.rule,
                "class": "anomaly",
            },
        )

    def close(self) -> None:
        """Send what waits, for two seconds at most."""
        self._client.close(timeout=2.0)

    def _send(self, level: str, message: str, fingerprint: list[str], tags: dict[str, str]) -> None:
        try:
            event: Any = {"level": level, "message": message, "fingerprint": fingerprint, "tags": tags}
            self._client.capture_event(event | {"logger": "agentq", "platform": "python"})
        except Exception as error:
            log.debug("Sentry could not be told: %s", type(error).__name__)


def _place_of(error: BaseException) -> str:
    """The innermost function of agentq that the error came out of."""
    place = "?"
    for frame in walk_tb(error.__traceback__):
        module = str(frame[0].f_globals.get("__name__", ""))
        if module.split(".", maxsplit=1)[0] == "agentq":
            place = f"{module}.{frame[0].f_code.co_name}"
    return place


class Reporting:
    """Counts what an engine does, as another watch does, and reports what it buries."""

    def __init__(self, counts: Watch, reports: Reports) -> None:
        self._counts = counts
        self._reports = reports

    def claimed(self, claim: Granted) -> None:
        self._counts.claimed(claim)

    def carried(self, claim: Granted, settlement: Settlement, seconds: float) -> None:
        self._counts.carried(claim, settlement, seconds)
        if settlement.closing == "dead" and settlement.failure is not None:
            self._reports.buried(claim, settlement.failure)
        elif settlement.closing == "park" and (settlement.hold or {}).get("kind") == "breaker":
            self._reports.tripped(claim, settlement.hold or {})

    def ended(self, verdict: Verdict) -> None:
        self._counts.ended(verdict)


__all__ = ["Reporting", "Reports", "only_allowed"]
