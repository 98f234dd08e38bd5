"""This fleet: the Celery app, and the agents it serves. Importing a module registers its agents."""

from __future__ import annotations

from importlib.util import find_spec

from agentq.celery_app import app
from tasks import hello, support_desk

if find_spec("pydantic_ai"):  # the extra agentq[model]
    from tasks import code_runner, helpdesk, parcels, research, tea_room  # noqa: F401

__all__ = ["app", "hello", "support_desk"]
