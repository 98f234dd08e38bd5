"""Joining the caller's transaction: the psycopg connection beneath whatever the caller has."""

from __future__ import annotations

from typing import Any

from agentq.errors import InvalidInput
from agentq.store.pool import Connection


def driver_connection(connection: Any) -> Connection:
    """
    The psycopg connection beneath what the caller has.

    Raises:
        InvalidInput: there is none.
    """
    import psycopg

    found = connection
    if hasattr(found, "get_bind") and hasattr(found, "connection"):  # SQLAlchemy Session
        found = found.connection()
    if hasattr(found, "connection") and not isinstance(found, psycopg.Connection):  # SQLAlchemy Connection
        if hasattr(found, "in_transaction") and not found.in_transaction():
            found.begin()  # or its commit would do nothing: it does not see what runs on the driver's connection
        found = getattr(found.connection, "driver_connection", None)
    if not isinstance(found, psycopg.Connection):
        raise InvalidInput(
            f"connection= takes a psycopg connection, or a SQLAlchemy connection or session on the psycopg driver, "
            f"not {type(connection).__module__}.{type(connection).__qualname__}"
        )
    return found


async def async_driver_connection(connection: Any) -> Any:
    """
    The psycopg `AsyncConnection` beneath what the caller has.

    Raises:
        InvalidInput: there is none.
    """
    import psycopg

    found = connection
    if hasattr(found, "get_bind") and hasattr(found, "connection"):  # SQLAlchemy AsyncSession
        found = await found.connection()
    if hasattr(found, "get_raw_connection"):  # SQLAlchemy AsyncConnection
        if not found.in_transaction():
            await found.begin()  # or its commit would do nothing: it does not see what runs beneath it
        found = getattr(await found.get_raw_connection(), "driver_connection", None)
    if not isinstance(found, psycopg.AsyncConnection):
        raise InvalidInput(
            "connection= takes a psycopg AsyncConnection, or SQLAlchemy's AsyncConnection or AsyncSession on the "
            f"psycopg driver, not {type(connection).__module__}.{type(connection).__qualname__}"
        )
    return found
