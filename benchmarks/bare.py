"""Bare Celery: each task sends the next with `apply_async`; no database, nothing survives."""

from __future__ import annotations

import os
import time
from typing import Any

import redis
from celery import Celery

from agentq.celery_app import celery_settings
from agentq.settings import load

settings = load()
app = Celery("bare")
# The same broker options, pool and acknowledgement as agentq's own workers.
app.conf.update(
    celery_settings(settings)
    | {"worker_consumer": "celery.worker.consumer:Consumer", "task_routes": {}, "task_queues": None}
    | {"task_create_missing_queues": True, "task_default_queue": "bare"}
    # Off is Celery's default; agentq's workers send them, for Flower.
    | {"worker_send_task_events": os.environ.get("BENCH_EVENTS") == "1"}
)
done = redis.Redis.from_url(settings.broker_url)


@app.task(name="bare.hop", ignore_result=True)
def hop(left: int, pad: str, run: str) -> None:
    """Do nothing, then send the next."""
    if left > 1:
        hop.apply_async((left - 1, pad, run))
    else:
        done.rpush(run, time.time())


@app.task(name="bare.ping", ignore_result=True)
def ping(**_: Any) -> None:
    """Answer, to show that the workers are ready."""
    done.rpush("bare.ready", 1)
