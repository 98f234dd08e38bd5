"""The producers: submit what the plan says when it says so, and keep a record of what was accepted."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from agentq.chaos.plan import Wanted
from agentq.client import Client
from agentq.errors import StoreUnavailable

log = logging.getLogger("agentq.chaos")

AGAIN_AFTER_S = 0.3
THREADS = 8


@dataclass(frozen=True)
class Accepted:
    """A submission that returned: from here on the session must not be lost."""

    key: str
    tenant: str
    session_id: str
    at: float
    created: bool
    tries: int


class Producers:
    """Submits in the background, with patience: the same key again until it is taken."""

    def __init__(self, client: Client, wanted: Sequence[Wanted]) -> None:
        self.accepted: list[Accepted] = []
        self._client = client
        self._wanted = sorted(wanted, key=lambda each: each.at_s)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agentq-chaos-producer", daemon=True)

    def start(self) -> None:
        """Begin to count."""
        self._thread.start()

    @property
    def at_work(self) -> bool:
        """Whether something is still to be submitted."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Submit nothing more."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=30.0)

    def _run(self) -> None:
        began = time.monotonic()
        with ThreadPoolExecutor(THREADS, thread_name_prefix="agentq-chaos-producer") as pool:
            for wanted in self._wanted:
                if self._stop.wait(max(0.0, began + wanted.at_s - time.monotonic())):
                    return
                for _ in range(2 if wanted.twice else 1):  # side by side: one of them creates it
                    pool.submit(self._submit, wanted)

    def _submit(self, wanted: Wanted) -> None:
        tries = 0
        while not self._stop.is_set():
            tries += 1
            try:
                session = self._client.start(wanted.agent, tenant=wanted.tenant, input=wanted.input, key=wanted.key)
            except StoreUnavailable:
                self._stop.wait(AGAIN_AFTER_S)
                continue
            except Exception:
                log.exception("%s was not taken", wanted.key)
                return
            self.accepted.append(Accepted(wanted.key, wanted.tenant, session.id, time.time(), session.created, tries))
            return
