"""What every table is made of: the metadata, names, times and closed sets of states."""

from __future__ import annotations

from sqlalchemy import Column, DateTime, MetaData, text

SCHEMA = "agentq"

metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "pk": "%(table_name)s_pk",
        "ix": "%(table_name)s_%(column_0_name)s",
        "uq": "%(table_name)s_%(column_0_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s",
        "fk": "%(table_name)s_%(column_0_name)s_fk",
    },
)

NAME = "~ '^[a-z0-9][a-z0-9_-]{0,62}$'"
NOW = text("agentq.now()")


def one_of(column: str, values: tuple[str, ...]) -> str:
    """The condition that a column holds one of the values."""
    return f"{column} in ({', '.join(repr(value) for value in values)})"


def time(name: str, *, nullable: bool = True, now: bool = False) -> Column[object]:
    """A moment on the database's clock; `now` fills it when the row is written."""
    return Column(name, DateTime(timezone=True), nullable=nullable, server_default=NOW if now else None)
