"""Databases of their own on the run's Postgres, each a copy of one that was migrated once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from agentq.embedded import Stack
from agentq.store import migrate

_TEMPLATE = "template_agentq"


@dataclass(frozen=True)
class Database:
    """One of them, and how to reach it: as the fleet, as the owner, and as the one who may do everything."""

    stack: Stack
    name: str

    @property
    def url(self) -> str:
        return self.stack.postgres._url("agentq_fleet", self.name)

    @property
    def admin_url(self) -> str:
        return self.stack.postgres._url("agentq_owner", self.name)

    def superuser(self) -> psycopg.Connection[Any]:
        return self.stack.postgres._connect(self.name)


class Databases:
    """Makes them: a copy takes a tenth of what another cluster and all migrations would."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._count = itertools.count(1)
        self._run(f"create database {_TEMPLATE} owner agentq_owner")
        template = Database(stack, _TEMPLATE)
        with template.superuser() as superuser:
            superuser.execute("create extension if not exists vector")
        migrate.upgrade(template.admin_url, fleet_role="agentq_fleet")

    @contextmanager
    def one(self) -> Iterator[Database]:
        """A database that nobody else uses; it is gone when the block ends."""
        database = Database(self._stack, f"copy_{next(self._count)}")
        self._run(f"create database {database.name} template {_TEMPLATE} owner agentq_owner")
        try:
            yield database
        finally:
            self._run(f"drop database {database.name} with (force)")

    def _run(self, statement: str) -> None:
        with self._stack.postgres._connect("postgres") as superuser:
            superuser.execute(statement.encode())
