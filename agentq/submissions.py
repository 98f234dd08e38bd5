"""Submissions: sessions asked for through the broker alone, and what could not be understood."""

from __future__ import annotations

import json
import logging
import threading
from typing import Any

from celery.exceptions import Reject

from agentq.agents.registry import Registry
from agentq.broker.publisher import Publisher
from agentq.broker.queues import SUBMIT_DEAD
from agentq.door import Door, trace_parent
from agentq.engine import InFlight
from agentq.errors import BrokerUnavailable, InvalidInput, SchemaMismatch, StoreUnavailable, TokenRefused
from agentq.payload import encode, storable
from agentq.settings import Settings
from agentq.step import valid_name
from agentq.store.ledger import Ledger
from agentq.store.operators import Operators
from agentq.store.pool import Store
from agentq.store.sessions import Sessions
from agentq.store.tokens import Tokens, without_tokens

log = logging.getLogger("agentq.submit")

_FIELDS = {
    "agent",
    "tenant",
    "input",
    "key",
    "version",
    "priority",
    "deadline",
    "concurrency_key",
    "on_conflict",
    "traceparent",
}
# Taken from the arguments before anything else sees them; Celery's clients may send it as a header of that name too.
TOKEN = "token"  # noqa: S105 (the name of an argument)
TOKEN_HEADER = "agentq_token"  # noqa: S105
_ADMIT_MAX = 50


class Submissions:
    """The broker-only door. A submission is acknowledged once Postgres has it, as a session or as refused."""

    def __init__(
        self, settings: Settings, registry: Registry, store: Store, publisher: Publisher, in_flight: InFlight
    ) -> None:
        self._door = Door(settings, registry)
        self._sessions = Sessions(store)
        self._ledger = Ledger(store)
        self._operators = Operators(store)
        self._tokens = Tokens(store)
        self._required = settings.submit_tokens == "required"
        self._publisher = publisher
        self._in_flight = in_flight
        self._max_bytes = settings.payload_max_bytes
        self._sealed = store.vault.on
        self._pause = threading.Event()

    def take(
        self, args: tuple[Any, ...], submission: dict[str, Any], token: Any = None, traceparent: Any = None
    ) -> None:
        """
        Start the session that was asked for; its key makes a repeat harmless. `token`, `traceparent`: its headers.

        The token is looked at and forgotten: no row, message, log line or error has it.

        While Postgres is away, or has another release's schema, the message is held, not acknowledged; a
        draining worker gives it back.
        """
        pause_s = 0.1
        token = submission.pop(TOKEN, token)
        if trace_parent(traceparent) is not None:  # a header that is none is nobody's fault, and is passed over
            submission.setdefault("traceparent", traceparent)
        while True:
            try:
                self._start(args, submission, token)
                return
            except InvalidInput as refusal:
                reason = str(refusal)
            except (StoreUnavailable, SchemaMismatch) as error:
                if self._in_flight.draining:
                    raise Reject(str(error), requeue=True) from error
                log.warning("a submission waits for Postgres: %s", error)
                self._pause.wait(pause_s)
                pause_s = min(pause_s * 2, 2.0)
                continue
            except Exception as error:
                # Nonsense of a shape that nobody thought of. Raised on, it would be acknowledged and lost.
                reason = f"{type(error).__name__}: {error}"
            if self.keep(_as_bytes(args, submission), reason, tenant=submission.get("tenant")):
                return
            if self._in_flight.draining:
                raise Reject(reason, requeue=True)
            self._pause.wait(pause_s)

    def give_up(self, args: tuple[Any, ...], submission: dict[str, Any], error: Exception) -> None:
        """Keep a submission that could not even be taken."""
        submission = {name: value for name, value in submission.items() if name != TOKEN}
        self.keep(_as_bytes(args, submission), f"{type(error).__name__}: {error}", tenant=submission.get("tenant"))

    def keep(self, body: bytes, reason: str, tenant: Any = None) -> bool:
        """
        Keep what was not understood: a row that decides, and a message in `agentq.submit.dead` for whoever watches.

        False: Postgres is away, and it is only in the broker.
        """
        body = without_tokens(body)
        reason = without_tokens(storable(reason).encode()).decode()[:4000]
        log.error("refused: %s", reason)
        kept = True
        number: int | None = None
        try:
            name = storable(tenant)[:200] if isinstance(tenant, str) else None
            number = self._operators.refuse_submission(tenant=name, reason=reason, body=body[: self._max_bytes])
        except (StoreUnavailable, SchemaMismatch) as error:
            kept = False
            log.error("a refused submission could not be stored: %s", error)
        try:
            facts: dict[str, Any] = {"submission": number, "reason": reason}
            if not self._sealed:  # else the row alone has it
                facts["body"] = body[:100_000].decode("utf-8", "replace")
            self._publisher.publish(SUBMIT_DEAD, [(facts, {"reason": reason[:200]})])
        except BrokerUnavailable as error:
            log.warning("a refused submission is only in Postgres: %s", error)
        return kept

    def _start(self, args: tuple[Any, ...], submission: dict[str, Any], token: Any) -> None:
        self._let_in(submission, token)
        if args:
            raise InvalidInput("a submission takes named arguments only: agent, tenant, input, key")
        if unknown := sorted(set(submission) - _FIELDS):
            raise InvalidInput(f"a submission has no {', '.join(unknown)} (it takes {', '.join(sorted(_FIELDS))})")
        if missing := sorted({"agent", "tenant", "key"} - {name for name, value in submission.items() if value}):
            # Without a key a redelivered submission would start a second session.
            raise InvalidInput(f"a submission needs {', '.join(missing)}")
        facts = dict(submission)
        new = self._door.check(facts.pop("agent"), input=facts.pop("input", {}), **facts)
        self._sessions.start([new], create_with=self._door.create_with)
        self._publisher.send(self._ledger.admit(new.tenant, _ADMIT_MAX))

    def _let_in(self, submission: dict[str, Any], token: Any) -> None:
        """
        Return when its token lets it in, or it needs none. Asked first: who is not let in learns nothing else.

        Raises:
            TokenRefused: it does not.
        """
        tenant, agent = submission.get("tenant"), submission.get("agent")
        if token is not None:
            if not (isinstance(token, str) and isinstance(tenant, str) and isinstance(agent, str)):
                raise TokenRefused("a token is a text, and goes with a tenant and an agent")
            self._tokens.admit(token, tenant=tenant, agent=agent)
        elif self._required or (tenant and self._tokens.guards(valid_name("tenant", tenant))):
            raise TokenRefused(
                f"it has no token: make one with `agentq token create` and send it as {TOKEN}= or as the header "
                f"{TOKEN_HEADER}"
            )


def _as_bytes(args: tuple[Any, ...], submission: dict[str, Any]) -> bytes:
    whole = {"args": list(args), "kwargs": submission}
    try:
        return encode(whole)
    except TypeError:  # half a surrogate pair somewhere: shown as an escape
        return json.dumps(whole, default=repr).encode("ascii")
