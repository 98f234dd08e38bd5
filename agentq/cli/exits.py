"""Exit codes: what scripts learn from agentq's commands, and how errors become them."""

from __future__ import annotations

import os
import sys
import traceback
from typing import IO, Any

import click

from agentq.errors import (
    AgentqError,
    BrokerUnavailable,
    ConfigError,
    InvalidInput,
    MemoryConflict,
    NoSuchAnomaly,
    NoSuchEffect,
    NoSuchMemory,
    SchemaMismatch,
    StoreUnavailable,
    UnknownAgent,
    UnknownApproval,
    UnknownSession,
    UnknownTenant,
)

OK, FAILED, REFUSED, UNAVAILABLE, NOT_FOUND, INTERRUPTED = 0, 1, 2, 3, 4, 130

HELP = """\b
Exit codes:
    0  done
    1  what was asked for failed, or a check did not hold
    2  wrong usage, refused input or wrong settings; nothing was changed
    3  Postgres or the broker is not there
    4  no such session, approval, effect, memory, tenant or agent
  130  interrupted
"""

# The first that fits decides.
_CODES: tuple[tuple[type[AgentqError], int], ...] = (
    (UnknownSession, NOT_FOUND),
    (UnknownTenant, NOT_FOUND),
    (UnknownAgent, NOT_FOUND),
    (UnknownApproval, NOT_FOUND),
    (NoSuchAnomaly, NOT_FOUND),
    (NoSuchEffect, NOT_FOUND),
    (NoSuchMemory, NOT_FOUND),
    (InvalidInput, REFUSED),
    (MemoryConflict, REFUSED),
    (SchemaMismatch, UNAVAILABLE),
    (ConfigError, REFUSED),
    (StoreUnavailable, UNAVAILABLE),
    (BrokerUnavailable, UNAVAILABLE),
)

# SQLSTATEs of a schema that is missing or older than this release, and of a role that was granted nothing.
_NO_SCHEMA = {"42P01", "3F000", "42883", "42703"}
_NO_GRANT = "42501"


class Problem(click.ClickException):
    """An error in one line on standard error, and an exit code."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        vars(self)["exit_code"] = exit_code  # click declares one for the whole class

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"agentq: {_one_line(self.message)}", file=file or sys.stderr)


def code_of(error: AgentqError) -> int:
    """The exit code for an error of agentq's own."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)


def explained(error: BaseException) -> Problem:
    """Any error as people should meet it."""
    if isinstance(error, AgentqError):
        return Problem(str(error) or type(error).__name__, code_of(error))
    state = getattr(error, "sqlstate", None)
    if state in _NO_SCHEMA:
        return Problem("the database has no schema of this release: run `agentq db upgrade`", UNAVAILABLE)
    if state == _NO_GRANT:
        return Problem(
            f"{_one_line(str(error))}: run `agentq db upgrade` as the owner; it grants the fleet's role its rights",
            UNAVAILABLE,
        )
    hint = "" if debugging() else " (AGENTQ_LOG_LEVEL=DEBUG shows where)"
    return Problem(f"unexpected {type(error).__name__}: {error}{hint}", FAILED)


def debugging() -> bool:
    """Whether tracebacks are wanted."""
    return os.environ.get("AGENTQ_LOG_LEVEL", "").upper() == "DEBUG"


class Guarded(click.Group):
    """The root group: the one place where errors become messages and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)  # in the order of use, not of the alphabet

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            click.echo("agentq: interrupted", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None
        except Exception as error:
            if debugging():
                traceback.print_exc()
            raise explained(error) from error


def _one_line(text: str) -> str:
    return " ".join(text.split())
