"""
The worker: what agentq adds to a Celery worker process.

A bootstep starts the runtime (heart, relay) once the pool is up and drains it on the way out. The
consumer keeps what it cannot decode and listens to the tenants' queues as the tenant table changes.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from contextlib import suppress
from functools import partial
from typing import Any

from celery import Celery, bootsteps
from celery.signals import worker_process_init, worker_process_shutdown, worker_shutdown, worker_shutting_down
from celery.worker import state
from celery.worker.consumer import Consumer as CeleryConsumer

from agentq.broker import transport
from agentq.broker.connection import is_amqp
from agentq.broker.envelope import STEP_TASK, SUBMIT_TASK
from agentq.broker.line import GONE_S
from agentq.broker.queues import (
    DELIVERIES_HEADER,
    DELIVERIES_MAX,
    QUARANTINE,
    SUBMIT,
    carries_wakes,
    declared,
    follows_tenants,
)
from agentq.settings import load

log = logging.getLogger("agentq.worker")

QUARANTINE_GROUP = "quarantine"


def install(app: Celery) -> None:
    """Put agentq's parts into every worker of this app."""
    app.steps["worker"].add(RuntimeStep)
    app.steps["consumer"].add(FollowTenants)
    app.steps["consumer"].add(WatchDeliveries)
    worker_process_init.connect(_start_child, weak=False)
    worker_process_shutdown.connect(_end, weak=False)
    worker_shutting_down.connect(_begin_drain, weak=False)
    worker_shutdown.connect(_end, weak=False)
    transport.on_damaged = _keep_damaged


def group_of(app: Celery) -> str:
    """A worker that listens to the quarantine queue is of that group, any other of the one that its settings name."""
    return QUARANTINE_GROUP if QUARANTINE in app.amqp.queues.consume_from else load().worker_group


def headroom(slots: int) -> int:
    """
    Threads beside the slots, so that a tenant below its share need not wait for another's step to end.

    None for a handful of slots: who asks for one thread wants one step at a time.
    """
    return slots // 4


def _is_threads(worker: Any) -> bool:
    return bool(worker.pool_cls.__module__.endswith("thread"))


class RuntimeStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Starts the runtime after the pool has forked, and ends it before the pool goes."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **_: Any) -> None:
        self.group = "default"
        self.slots = worker.concurrency or 0
        if _is_threads(worker) and worker.min_concurrency:
            # Before the pool is made. The slots that are divided among tenants stay what was asked for: these
            # threads are for whoever comes while all of those are held, and idle otherwise.
            worker.min_concurrency += headroom(self.slots)
            # What Celery takes its prefetch count from.
            worker.max_concurrency = worker.min_concurrency

    def start(self, worker: Any) -> None:
        from agentq.runtime import begin, runtime

        self.group = group_of(worker.app)
        forks = worker.pool_cls.__module__.endswith("prefork")
        if self.group == QUARANTINE_GROUP and not forks:
            log.warning("quarantine wants prefork, which survives its steps: `agentq worker --group quarantine`")
        begin(group=self.group, steps=not forks, relay=True, slots=0 if forks else self.slots)
        if forks:
            runtime().children = lambda: list(worker.pool.info.get("processes", ()))

    def stop(self, worker: Any) -> None:
        """
        Nothing yet: this step is stopped before the pool, whose steps still run and still need the lease.

        The runtime ends with the worker, when the pool has drained.
        """

    def terminate(self, worker: Any) -> None:
        _end()


class FollowTenants(bootsteps.StartStopStep):  # type: ignore[misc]
    """
    Keeps the consumer's queues equal to the tenant table.

    The relay tells the wanted queues each second, so a tenant added while this worker was starting or
    reconnecting is not missed, as a broadcast would be. A queue that is deleted under it is made again alone.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        from agentq.runtime import runtime

        if group_of(consumer.app) not in ("default", QUARANTINE_GROUP) and consumer.task_consumer is not None:
            # Submissions are of every tenant: workers of a group are not to see those of others.
            consumer.cancel_task_queue(SUBMIT)
        if consumer.task_consumer is not None:
            consumer.task_consumer.on_lost = partial(self._lost, consumer)
        if group_of(consumer.app) != QUARANTINE_GROUP:
            runtime().on_tenants = lambda queues: consumer.call_soon(self._reconcile, consumer, queues)

    def stop(self, consumer: Any) -> None:
        from agentq.runtime import runtime

        runtime().on_tenants = None

    @staticmethod
    def _reconcile(consumer: Any, queues: list[str]) -> None:
        if consumer.task_consumer is None:
            return  # reconnecting; the next round finds it
        wanted = set(queues)
        listening = {name for name in consumer.app.amqp.queues.consume_from if follows_tenants(name)}
        for queue in sorted(wanted - listening):
            consumer.app.amqp.queues.add(declared(queue))
            consumer.add_task_queue(queue)
        for queue in sorted(listening - wanted):
            consumer.cancel_task_queue(queue)

    @classmethod
    def _lost(cls, consumer: Any, queue: str) -> None:
        log.warning("the broker ended listening to %s, which was deleted: it is declared and listened to anew", queue)
        # Not at once: other workers may not have been told yet (see GONE_S). And not in the timer: it would swallow
        # what RabbitMQ objects to.
        again = partial(consumer.call_soon, cls._listen_again, consumer, queue)
        if consumer.hub is not None:
            consumer.hub.call_soon(consumer.hub.call_later, GONE_S, again)
        else:
            again()

    @staticmethod
    def _listen_again(consumer: Any, queue: str) -> None:
        if consumer.task_consumer is not None and queue in consumer.app.amqp.queues.consume_from:
            consumer.add_task_queue(queue)


class WatchDeliveries(bootsteps.StartStopStep):  # type: ignore[misc]
    """Tells the watchdog what it watches. The consumer stays the same through every reconnection."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        from agentq.runtime import watch

        watch(Watched(consumer))

    def stop(self, consumer: Any) -> None:
        """Nothing: a consumer that cannot reconnect is watched most of all."""


class Watched:
    """Celery's consumer as the watchdog sees it, from another thread."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer

    def queues(self) -> list[str]:
        return list(self._consumer.app.amqp.queues.consume_from)

    def is_full(self) -> bool:
        return bool(len(state.reserved_requests) >= self._consumer.pool.num_processes)

    def slots(self) -> int:
        return int(self._consumer.pool.num_processes)

    def restart(self) -> None:
        """End the connection from within the loop, and from outside where the loop itself hangs in a read."""
        consumer = self._consumer
        if consumer.hub is not None:
            consumer.hub.call_soon(self._break)
        for channel in getattr(getattr(consumer.connection, "transport", None), "channels", None) or ():
            with suppress(Exception):
                channel.client.connection._sock.shutdown(socket.SHUT_RDWR)
        with suppress(Exception):  # RabbitMQ: one connection for all channels
            consumer.connection._connection.transport.sock.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _break() -> None:
        raise ConnectionResetError("the watchdog ended a connection over which nothing came")


class Consumer(CeleryConsumer):  # type: ignore[misc]
    """
    Celery's consumer, except that a message it cannot understand is kept with the reason.

    On RabbitMQ a wake-up is acknowledged when its step begins, not when it ends. The ledger protects the step
    from there, so a lost connection repeats no step that runs, and RabbitMQ's time for an acknowledgement
    (`consumer_timeout`, half an hour) bounds none.
    """

    class Blueprint(CeleryConsumer.Blueprint):  # type: ignore[misc]
        """Celery's steps, without the 28 queues that it keeps on RabbitMQ for delays: timers are rows here."""

        default_steps = [step for step in CeleryConsumer.Blueprint.default_steps if "delayed_delivery" not in step]  # noqa: RUF012

    # RabbitMQ counts what is not acknowledged for each queue, not for the worker: what came ahead of a free
    # thread waits in this process, where no other can have it, until the relay sends it again.
    AHEAD = 4

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._counts_queues = is_amqp(load().broker_url)
        if self._counts_queues:
            self.initial_prefetch_count = self.AHEAD
            self.app.tasks[STEP_TASK].acks_late = False

    @property
    def max_prefetch_count(self) -> int:
        """What a lost connection begins with again."""
        return self.AHEAD if self._counts_queues else int(super().max_prefetch_count)

    # Flower does not mind a tenth of a second, and a message for each event costs as much as a step.
    EVENTS_EVERY_S = 0.1
    EVENTS_MAX = 500
    _events_due = False

    def on_send_event_buffered(self) -> None:
        """Send buffered task events together, a few times a second."""
        if self.hub is None:
            super().on_send_event_buffered()
        elif not self._events_due:
            self._events_due = True
            self.event_dispatcher.buffer_limit = self.EVENTS_MAX
            # Called from pool threads too: only `call_soon` may be.
            self.hub.call_soon(self.hub.call_later, self.EVENTS_EVERY_S, self._send_events)

    def _send_events(self) -> None:
        self._events_due = False
        if self.event_dispatcher is not None:
            self.event_dispatcher.flush()

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Any:
        """Celery's handler, behind a look at what a submission carries: Celery would decode it only in the pool."""
        handle = super().create_task_handler(*args, **kwargs)

        def handler(message: Any) -> Any:
            self._delivered()
            if (message.headers or {}).get("task") == SUBMIT_TASK:
                if not self._is_readable(message) or self._came_too_often(message):
                    return None
                _hide_arguments(message)
            return handle(message)

        return handler

    @staticmethod
    def _delivered() -> None:
        from agentq.runtime import runtime

        runtime().in_flight.delivered = time.monotonic()

    def _is_readable(self, message: Any) -> bool:
        try:
            args, kwargs, _ = message.decode()
            if not isinstance(args, list | tuple) or not isinstance(kwargs, dict):
                raise TypeError("the body is not [args, kwargs, options]")
        except Exception as error:
            self.on_decode_error(message, error)
            return False
        return True

    def _came_too_often(self, message: Any) -> bool:
        """
        Whether a submission was delivered so often that it must be what ends its workers; it is kept then.

        Only RabbitMQ counts. While Postgres is away it is carried all the same, and held as any other.
        """
        count = message.headers.get(DELIVERIES_HEADER)
        if not isinstance(count, int) or count < DELIVERIES_MAX:
            return False
        from agentq.runtime import runtime

        if not runtime().submissions.keep(_raw(message), f"a submission was delivered {count} times and never ended"):
            return False
        message.ack_log_error(log, self.connection_errors)
        return True

    # Celery's own versions of these four print the whole body to the log, prompts and all, and drop it.

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        self._keep(message, f"cannot be decoded: {exc}")

    def on_unknown_message(self, _body: Any, message: Any) -> None:
        self._keep(message, "is not a Celery task message")

    def on_unknown_task(self, _body: Any, message: Any, exc: Exception) -> None:
        self._keep(message, f"names a task that this fleet does not have: {exc}")

    def on_invalid_task(self, _body: Any, message: Any, exc: Exception) -> None:
        self._keep(message, f"has arguments that the task does not take: {exc}")

    def _keep(self, message: Any, reason: str) -> None:
        from agentq.runtime import runtime

        raw = _raw(message)
        queue = (message.delivery_info or {}).get("routing_key", "?")
        if carries_wakes(queue):
            runtime().poison.keep(queue, raw, f"a message {reason}")
        else:
            runtime().submissions.keep(raw, f"a message in {queue} {reason}")
        message.ack_log_error(log, self.connection_errors)


def _raw(message: Any) -> bytes:
    return message.body if isinstance(message.body, bytes) else str(message.body).encode("utf-8", "replace")


def _hide_arguments(message: Any) -> None:
    """What Flower and the log show of a submission is whose it is; Celery's clients put all of its arguments there."""
    _, asked, _ = message.decode()
    shown = (f"{name}={asked[name]}"[:80] for name in ("tenant", "agent", "key") if isinstance(asked.get(name), str))
    message.headers |= {"argsrepr": "()", "kwargsrepr": " ".join(shown)}


def _keep_damaged(queue: str, raw: bytes) -> None:
    """An entry that is no message at all: kept like a refused submission, whatever queue it was in."""
    from agentq.runtime import runtime

    if carries_wakes(queue):
        runtime().poison.keep(queue, raw, "an entry is no message")
    else:
        runtime().submissions.keep(raw, f"an entry of {queue} is no message")


def _start_child(**_: Any) -> None:
    """A prefork child: its own lease and lock, so that its death is seen although the parent lives."""
    from celery import current_app

    from agentq.runtime import begin

    begin(group=group_of(current_app._get_current_object()), steps=True, relay=False, slots=1)


def _end(**_: Any) -> None:
    """The pool has drained, or this child leaves it: say goodbye."""
    from agentq.runtime import end

    end()


def _begin_drain(**_: Any) -> None:
    """SIGTERM: claim nothing more, let running steps end within the grace, hand the rest back."""
    from agentq.runtime import drain

    threading.Thread(target=drain, args=(os.getpid(),), name="agentq-drain", daemon=True).start()
