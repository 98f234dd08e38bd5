"""
The embedded servers: real PostgreSQL and Valkey from wheels.
"""

from __future__ import annotations

from agentq.embedded.postgres import Postgres
from agentq.embedded.server import Server
from agentq.embedded.stack import Stack
from agentq.embedded.valkey import Valkey

__all__ = ["Postgres", "Server", "Stack", "Valkey"]
