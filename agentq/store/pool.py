"""The pool: Postgres connections, held only within short transactions that name their tenant."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg import errors
from psycopg.rows import tuple_row
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from agentq.errors import SchemaMismatch, StoreUnavailable
from agentq.store.vault import KeyProvider, Vault

log = logging.getLogger("agentq.store")

T = TypeVar("T")
Row = tuple[Any, ...]
Connection = psycopg.Connection[Row]

ALL_TENANTS = "*"

# A dead peer is noticed within about ten seconds, not after the kernel's two hours.
_NETWORK = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}


class Store:
    """
    Postgres as the rest of agentq sees it. Driver exceptions stop here.

    Safe to share between threads; not across a fork.
    """

    def __init__(
        self,
        url: str,
        *,
        size: int = 16,
        name: str = "agentq",
        statement_timeout_s: float = 30.0,
        keys: KeyProvider | None = None,
    ) -> None:
        self.url = url
        self.vault = Vault(self, keys)
        self.connect_arguments: dict[str, Any] = {
            **_NETWORK,
            "autocommit": True,
            "prepare_threshold": 1,  # a handful of statements, each run thousands of times
            "application_name": name[:60],
            "options": f"-c statement_timeout={int(statement_timeout_s * 1000)} "
            # A stopped process must not keep row locks for ever.
            "-c idle_in_transaction_session_timeout=60000",
        }
        self._size = size
        self._name = name
        self._pool = self._open()

    def _open(self) -> ConnectionPool[Connection]:
        return ConnectionPool(
            self.url,
            kwargs=dict(self.connect_arguments),
            min_size=1,
            max_size=self._size,
            timeout=10.0,
            max_idle=120.0,
            reconnect_timeout=0.0,
            name=self._name,
            open=True,
        )

    def close(self) -> None:
        """Give the connections back; what still runs on them fails."""
        self._pool.close(timeout=2.0)

    def renew(self) -> None:
        """
        Use new connections from now on, so that they see changed settings.

        A pool of their own: one that is drained may still be opening some with the old settings.
        """
        old, self._pool = self._pool, self._open()
        old.close(timeout=5.0)

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """
        A connection for one transaction.

        Raises:
            StoreUnavailable: Postgres is away, or the connection broke within the block.
        """
        try:
            with driver_errors(), self._pool.connection() as connection:
                yield connection
        except (PoolTimeout, PoolClosed) as error:
            raise StoreUnavailable(f"no Postgres connection: {error}") from error

    @contextmanager
    def transaction(self, tenant: str) -> Iterator[Connection]:
        """A transaction that sees the rows of one tenant (or of `ALL_TENANTS`) and commits at the end."""
        with self.connection() as connection, connection.transaction():
            name_tenant(connection, tenant)
            yield connection

    @contextmanager
    def snapshot(self, tenant: str) -> Iterator[Connection]:
        """A transaction to read in, whose statements all see the rows of one moment."""
        with self.connection() as connection, schema_errors(), connection.transaction():
            connection.execute("set transaction isolation level repeatable read, read only")
            name_tenant(connection, tenant)
            yield connection

    def query(self, sql: str, parameters: dict[str, Any]) -> list[Row]:
        """One statement in its own transaction: a function that names its tenant itself."""
        with self.connection() as connection, schema_errors():
            return run(connection, sql, parameters)

    def query_as(self, tenant: str, sql: str, parameters: dict[str, Any]) -> list[Row]:
        """One statement that sees one tenant's rows."""
        with self.transaction(tenant) as connection, schema_errors():
            return run(connection, sql, parameters)


@contextmanager
def driver_errors() -> Iterator[None]:
    """
    The driver's errors that mean that Postgres is away, or became a replica, as ours.

    Raises:
        StoreUnavailable: one of them was raised within the block.
    """
    try:
        yield
    except (PoolTimeout, PoolClosed, psycopg.errors.ProgramLimitExceeded):
        raise  # the last one: too large for Postgres, now and always
    except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.ReadOnlySqlTransaction) as error:
        raise StoreUnavailable(_first_line(error)) from error


@contextmanager
def schema_errors() -> Iterator[None]:
    """A schema that this release cannot use is the operator's to mend, and says so."""
    try:
        yield
    except (
        errors.UndefinedTable,
        errors.UndefinedFunction,
        errors.UndefinedColumn,
        errors.InvalidSchemaName,
        errors.InsufficientPrivilege,
    ) as error:
        raise SchemaMismatch(
            f"the schema is missing or not this release's ({_first_line(error)}): run `agentq db upgrade`"
        ) from error


def name_tenant(connection: Connection, tenant: str) -> None:
    """Tell row security whose rows this transaction may see."""
    connection.execute("select set_config('agentq.tenant', %s, true)", (tenant,))


def run(connection: Connection, sql: str, parameters: dict[str, Any]) -> list[Row]:
    """Execute and fetch; binary both ways, so payloads are not written as hexadecimal."""
    # The caller's connection may have a row factory of its own.
    with connection.cursor(binary=True, row_factory=tuple_row) as cursor:
        cursor.execute(sql.encode(), parameters)
        # Not `description`: it builds an object for every column.
        return cursor.fetchall() if cursor.pgresult is not None and cursor.pgresult.nfields else []


def persist(action: Callable[[], T], *, patience_s: float, what: str, give_up: Callable[[], bool] | None = None) -> T:
    """
    Repeat an idempotent write while Postgres is away, or has another release's schema, with growing pauses.

    Deadlocks and dropped connections are tried again at once, an outage for `patience_s` seconds.

    Raises:
        StoreUnavailable, SchemaMismatch: the patience ran out, or `give_up` said so.
    """
    deadline = time.monotonic() + patience_s
    pause_s = 0.02
    while True:
        try:
            return action()
        except (StoreUnavailable, SchemaMismatch) as error:
            # The other schema is there for as long as a deploy takes: nothing that was done is given up for it.
            if time.monotonic() + pause_s > deadline or (give_up is not None and give_up()):
                raise
            log.warning("%s waits for Postgres: %s", what, error)
            time.sleep(pause_s * (0.5 + random.random()))
            pause_s = min(pause_s * 2, 1.0)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
