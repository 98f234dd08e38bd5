"""
The Celery application: two tasks, both doors, and each setting with its reason.

Celery carries wake-ups. It never retries, delays, chains or stores results here: each of those
loses or repeats messages on Redis, and the ledger does it instead.
"""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module
from typing import Any

from celery import Celery, Task, current_task
from celery.app.amqp import AMQP as CeleryAMQP
from celery.signals import setup_logging

from agentq.broker.connection import tls, transport_options
from agentq.broker.envelope import STEP_TASK, SUBMIT_TASK
from agentq.broker.listener import Listener
from agentq.broker.queues import QUARANTINE, SUBMIT, UNROUTED, declared
from agentq.broker.transport import BrokerConnection
from agentq.errors import InvalidInput
from agentq.settings import Settings, load
from agentq.step import StepRef
from agentq.submissions import TOKEN_HEADER
from agentq.verdicts import Carried
from agentq.worker import Consumer, install


def celery_settings(settings: Settings) -> dict[str, Any]:
    """Celery's configuration for these settings."""
    return {
        "broker_url": settings.broker_url,
        **_delivery(),
        **_workers(settings),
        **_broker(settings),
        **_messages(),
    }


def _delivery() -> dict[str, Any]:
    return {
        # A crash gives the message back. Only a hint: the relay would publish it again anyway.
        "task_acks_late": True,
        # Whatever a step does, its message is done with: the ledger decides about retries.
        "task_acks_on_failure": True,
        "task_acks_on_timeout": True,
        # Without these two a step that kills its process comes straight back, some 15 times a second.
        "task_reject_on_worker_lost": False,
        "task_retry_on_worker_lost": False,
        # Results are rows. A result backend would be a second truth, and an expensive one.
        "task_ignore_result": True,
        "result_backend": None,
        # A retry storm inside Celery's publisher would hold the caller; the outbox retries.
        "task_publish_retry_policy": {"max_retries": 1, "interval_start": 0, "interval_max": 0.2},
    }


def _workers(settings: Settings) -> dict[str, Any]:
    return {
        # Model calls and tools wait; threads wait cheaply. `async def` steps share one loop per process.
        "worker_pool": "threads",
        "worker_concurrency": settings.worker_threads,
        # One message per slot: what is hoarded here is missing elsewhere.
        "worker_prefetch_multiplier": 1,
        # Celery's rate limits hold messages in memory, where a crash loses them.
        "worker_disable_rate_limits": True,
        # Threads cannot be cancelled; the fence makes a second run harmless.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_soft_shutdown_timeout": settings.drain_s,
        # Only prefork children can be stopped from outside: the last bound on a step that hangs there.
        "task_time_limit": settings.step_timeout_s + 60,
        "worker_consumer": f"{Consumer.__module__}:{Consumer.__name__}",
        # Flower shows tasks only when workers tell.
        "worker_send_task_events": settings.task_events,
        "task_send_sent_event": False,
        "worker_hijack_root_logger": False,
    }


def _broker(settings: Settings) -> dict[str, Any]:
    return {
        "broker_transport_options": transport_options(settings),
        "broker_use_ssl": tls(settings) or False,
        # RabbitMQ only: a connection that is half open is noticed within a minute. Celery's default is four.
        "broker_heartbeat": 20,
        # The default gives up after 100 tries and leaves a worker that looks alive.
        "broker_connection_max_retries": None,
        "broker_connection_retry_on_startup": True,
        # A full Redis or a RabbitMQ consumer timeout must reconnect, not end the process.
        "broker_channel_error_retry": True,
        # Queues are named on purpose; a typo must not create one that nobody reads.
        "task_create_missing_queues": False,
        "task_default_queue": UNROUTED,
        "task_queues": [declared(SUBMIT)],
        "task_routes": {SUBMIT_TASK: {"queue": SUBMIT}},
    }


def _messages() -> dict[str, Any]:
    return {
        "task_serializer": "json",
        "event_serializer": "json",
        "accept_content": ["json"],
        "enable_utc": True,
        "timezone": "UTC",
    }


class AMQP(CeleryAMQP):  # type: ignore[misc]
    """Celery's messaging on our connection."""

    Connection = BrokerConnection
    Consumer = Listener

    def Queues(self, *args: Any, **kwargs: Any) -> Any:
        """
        The fleet's queues. All are known, so that `-Q` may name them; a worker that names none reads
        submissions, and the tenants' queues as they come.
        """
        queues = super().Queues(*args, **kwargs)
        queues.add(declared(QUARANTINE))
        queues.select([SUBMIT])
        return queues


app = Celery("agentq", set_as_current=False, amqp=AMQP)
# A function, so that importing this module reads no environment and needs no server.
app.add_defaults(lambda: celery_settings(load().require_servers()))
install(app)


@app.task(name=STEP_TASK, acks_late=True, ignore_result=True)
def step(**ids: Any) -> str | None:
    """
    Celery's door to the engine. It decides nothing.

    Every verdict is acknowledged: retries leave through the ledger, and the relay finds whatever a
    crash left behind. What it returns is for people who read Flower, and kept nowhere: `retry transient desk@1`.
    """
    from agentq.runtime import runtime

    try:
        ref = StepRef.from_message(ids)
    except InvalidInput as error:
        # Forged or damaged: the ledger, not the message, knows which steps are due.
        queue = (current_task.request.delivery_info or {}).get("routing_key", "?")
        runtime().poison.keep(queue, json.dumps(ids, default=repr).encode(), str(error))
        return None
    verdict = runtime().carry(ref)
    return str(verdict) if isinstance(verdict, Carried) else type(verdict).__name__.lower()


class Submit(Task):  # type: ignore[misc]
    """Keeps a submission that failed before it came to the door, such as one with an argument named `self`."""

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Celery's word that it did not return; it was acknowledged, so this is the last moment to keep it."""
        from agentq.runtime import runtime

        runtime().submissions.give_up(tuple(args), kwargs, exc)


@app.task(name=SUBMIT_TASK, base=Submit, acks_late=True, ignore_result=True)
def submit(*args: Any, **submission: Any) -> None:
    """The broker-only door: starts a session, or keeps the submission with the reason why not."""
    from agentq.runtime import runtime

    # Beside the arguments, where neither Celery's log nor its events show it.
    request = current_task.request
    header = getattr(request, TOKEN_HEADER, None) or (request.headers or {}).get(TOKEN_HEADER)
    traceparent = getattr(request, "traceparent", None) or (request.headers or {}).get("traceparent")
    runtime().submissions.take(args, submission, token=header, traceparent=traceparent)


def _give_flower_its_tabs() -> None:
    """
    `celery -A tasks flower` shows agentq's tabs as `agentq flower` does.

    Flower has no hook for that; its command is imported before the application is. By name, because
    the face above must not be known here.
    """
    if "flower.command" in sys.modules and "flower" in sys.argv:
        import_module("agentq.flower.tabs").install()


_give_flower_its_tabs()


@setup_logging.connect
def _configure_logging(loglevel: Any = None, **_: Any) -> None:
    """Log to standard error in one line a record, broker passwords cut out."""
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(process)d %(name)s: %(message)s"))
    handler.addFilter(_hide_passwords)
    level = loglevel or load().log_level
    logging.basicConfig(level=level, handlers=[handler], force=True)
    if logging.getLogger().level >= logging.INFO:
        # Two lines for each step; what became of it is in the ledger.
        for name in ("celery.worker.strategy", "celery.app.trace"):
            logging.getLogger(name).setLevel(logging.WARNING)


_PASSWORD = re.compile(r"(://[^:/\s@]*:)[^@\s]+@")


def _hide_passwords(record: Any) -> bool:
    message = record.getMessage()
    if "://" in message:
        record.msg, record.args = _PASSWORD.sub(r"\1***@", message), ()
    return True
