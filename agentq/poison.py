"""
Poison: messages that cannot be decoded or understood, kept by a thread of their own.

The consumer hands them over and goes on, whatever Postgres does. A flood is cut short: what does not
fit into the waiting room is counted and logged, and the queue flows.
"""

from __future__ import annotations

import logging
import queue
import threading

from agentq.broker.queues import tenant_of
from agentq.errors import StoreUnavailable
from agentq.store.dead_letters import DeadLetterStore, digest_of
from agentq.store.tokens import without_tokens

log = logging.getLogger("agentq.poison")

_WAITING_MAX = 256
_PAUSE_S = 0.5


class PoisonKeeper:
    """Keeps what nobody understood. Its thread begins with the first of them."""

    def __init__(self, letters: DeadLetterStore, body_max_bytes: int) -> None:
        self._letters = letters
        self._body_max = body_max_bytes
        self._waiting: queue.Queue[tuple[str, str, bytes, bytes, int]] = queue.Queue(_WAITING_MAX)
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self.dropped = 0

    def keep(self, queue_name: str, body: bytes, reason: str) -> None:
        """Keep it soon; returns at once."""
        body, reason = without_tokens(body), without_tokens(reason.encode("utf-8", "replace")).decode()
        log.error("poison in %s: %s (%s bytes)", queue_name, reason, len(body))
        try:
            self._waiting.put_nowait((queue_name, reason, digest_of(body), body[: self._body_max], len(body)))
        except queue.Full:
            self.dropped += 1
            log.error("too much poison waits for Postgres; %s were dropped so far", self.dropped)
            return
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="agentq-poison", daemon=True)
                self._thread.start()

    def close(self, timeout_s: float = 2.0) -> None:
        """Keep what waits, if Postgres takes it in time."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not (self._ending.is_set() and self._waiting.empty()):
            try:
                name, reason, digest, body, size = self._waiting.get(timeout=_PAUSE_S)
            except queue.Empty:
                continue
            while True:
                try:
                    self._letters.keep_poison(
                        queue=name, tenant=tenant_of(name), reason=reason, body=body, digest=digest, size=size
                    )
                    break
                except StoreUnavailable as error:
                    log.warning("poison waits for Postgres: %s", error)
                    if self._ending.wait(_PAUSE_S):
                        return
                except Exception:
                    log.exception("poison of %s could not be kept", name)
                    break
