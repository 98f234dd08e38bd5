"""
The embedded servers: real PostgreSQL and Valkey from wheels, and the programs that run on them.

`Stack` is the two servers with one data folder; `Fleet` is a stack (or servers of one's own) with its
workers and Flower, kept running; `up` is a fleet in the foreground until Ctrl-C.
"""

from __future__ import annotations

from agentq.embedded.fleet import Fleet, up
from agentq.embedded.postgres import Postgres
from agentq.embedded.server import Server
from agentq.embedded.stack import Stack
from agentq.embedded.supervisor import Child, Supervisor
from agentq.embedded.valkey import Valkey

__all__ = ["Child", "Fleet", "Postgres", "Server", "Stack", "Supervisor", "Valkey", "up"]
