"""The producers: submit what the plan says when it says so, and keep a record of what was accepted."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import redis
from celery import Celery
from kombu.exceptions import KombuError

from agentq.broker.envelope import SUBMIT_TASK
from agentq.broker.queues import SUBMIT
from agentq.chaos.plan import Wanted
from agentq.client import Client
from agentq.errors import StoreUnavailable

log = logging.getLogger("agentq.chaos")

AGAIN_AFTER_S = 0.3
THREADS = 16
RESERVE_EVERY_S = 0.7
SEND_AGAIN_AFTER_S = 4.0
BROKER_ERRORS = (OSError, KombuError, redis.RedisError)


def _foreign(client: Client) -> Celery:
    """A Celery application that knows nothing of agentq but a task's name and a queue's."""
    app = Celery("chaos producer", broker=client.settings.broker_url, set_as_current=False)
    app.conf.update(
        task_ignore_result=True,
        task_create_missing_queues=True,
        broker_transport_options={
            "global_keyprefix": client.settings.key_prefix,
            "socket_timeout": 5,
            "socket_connect_timeout": 3,
            "priority_steps": [0],
        },
    )
    return app


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
    """
    Submits in the background, with patience: the same key again until it is taken.

    The reserve is for blows that come late: while they are `needed`, there is something to hit.
    """

    def __init__(
        self, client: Client, wanted: Sequence[Wanted], *, reserve: Sequence[Wanted] = (), needed: Callable[[], bool]
    ) -> None:
        self.accepted: list[Accepted] = []
        self.submitted: list[Wanted] = []
        self._reserve = reserve
        self._needed = needed
        self._client = client
        self._wanted = sorted(wanted, key=lambda each: each.at_s)
        self._celery = _foreign(client)
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
                self._take(wanted, pool)
            for wanted in self._reserve:
                if not self._needed() or self._stop.wait(RESERVE_EVERY_S):
                    return
                self._take(wanted, pool)

    def _take(self, wanted: Wanted, pool: ThreadPoolExecutor) -> None:
        self.submitted.append(wanted)
        for door in wanted.doors:  # side by side: one of them creates it
            pool.submit(self._submit if door == "client" else self._send, wanted)

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

    def _send(self, wanted: Wanted) -> None:
        """Send it as any Celery client would; accepted is what can be seen, so it is sent again until it is."""
        tries = 0
        while not self._stop.is_set():
            tries += 1
            with contextlib.suppress(*BROKER_ERRORS):
                self._celery.send_task(
                    SUBMIT_TASK,
                    kwargs={
                        "agent": wanted.agent, "tenant": wanted.tenant, "input": wanted.input, "key": wanted.key,
                    },
                    queue=SUBMIT,
                    retry=False,
                )  # fmt: skip
            deadline = time.monotonic() + SEND_AGAIN_AFTER_S
            while time.monotonic() < deadline and not self._stop.wait(AGAIN_AFTER_S):
                with contextlib.suppress(StoreUnavailable):
                    for row in self._client.list(tenant=wanted.tenant, key=wanted.key, limit=2):
                        self.accepted.append(
                            Accepted(wanted.key, wanted.tenant, str(row.session_id), time.time(), False, tries)
                        )
                        return
