"""Envelopes: a step's ids as a Celery message, made by hand because Celery's own path costs five times as much."""

from __future__ import annotations

import os
import socket
from typing import Any

from agentq.step import StepRef
from agentq.verdicts import Wake

STEP_TASK = "agentq.step"
SUBMIT_TASK = "agentq.submit"

_ORIGIN = f"{os.getpid()}@{socket.gethostname()}"
# Celery's embedded options: none is used, because retries, links and chords leave through the ledger.
_NO_OPTIONS: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def step_message(wake: Wake) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """
    Body, headers and properties of a protocol-2 task message that carries ids and nothing else.

    `kwargsrepr` is all that Flower shows of a task: tenant, session and step, never a payload.
    """
    ids = StepRef(wake.tenant, wake.session_id, wake.step_id, wake.epoch).as_message()
    task_id = f"{wake.step_id}.{wake.epoch}"
    headers = {
        "lang": "py",
        "task": STEP_TASK,
        "id": task_id,
        "root_id": str(wake.session_id),
        "parent_id": None,
        "group": None,
        "eta": None,
        "expires": None,
        "retries": 0,
        "timelimit": [None, None],
        "argsrepr": "()",
        "kwargsrepr": f"tenant={wake.tenant} step={wake.name} session={wake.session_id}",
        "origin": _ORIGIN,
        "ignore_result": True,
    }
    return ((), ids, _NO_OPTIONS), headers, {"correlation_id": task_id, "reply_to": ""}
