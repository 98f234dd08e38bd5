"""This fleet: the Celery app, and the agents it serves. Importing a module registers its agents."""

from __future__ import annotations

from agentq.celery_app import app
from tasks import hello, support_desk

__all__ = ["app", "hello", "support_desk"]
