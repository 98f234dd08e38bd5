"""Reaching the fleet: settings and a client, or a message that says what to do."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from agentq.cli.exits import NOT_FOUND, UNAVAILABLE, Problem
from agentq.errors import ConfigError, InvalidInput, StoreUnavailable, UnknownTenant
from agentq.settings import Settings, load
from agentq.step import valid_name

if TYPE_CHECKING:
    from agentq.agents.registry import Registry
    from agentq.client import Client


def servers() -> Settings:
    """
    Settings that name both servers.

    Raises:
        ConfigError: the settings are wrong.
        Problem: they name no servers, and none are running here.
    """
    settings = load()
    try:
        return settings.require_servers()
    except ConfigError as error:
        raise Problem(str(error), UNAVAILABLE) from None


@contextmanager
def client(*, agents: bool = False) -> Iterator[Client]:
    """
    A client, connected. Agents are imported only where they are needed.

    Raises:
        StoreUnavailable: Postgres does not answer; asked once, so that the answer comes at once and says why.
        UnknownTenant: the command was given a --tenant that nobody added.
    """
    from agentq.agents.registry import Registry
    from agentq.client import Client

    settings = servers()
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)  # its warnings would repeat our message
    knock(settings.database_url)
    registry = import_agents(settings) if agents else Registry()
    with Client(settings, registry) as connected:
        _require_tenant(connected)
        yield connected


def _require_tenant(connected: Client) -> None:
    """
    Refuse a --tenant that nobody added: what is mistyped would look like a tenant with nothing to show.

    Only `start` may go on, because a fleet may create its tenants as they come.
    """
    context = click.get_current_context(silent=True)
    if context is None or context.info_name == "start":
        return
    tenant = context.params.get("tenant")
    if isinstance(tenant, str) and tenant != "*" and not connected.tenants.has(valid_name("tenant", tenant)):
        raise UnknownTenant(tenant)


def knock(url: str) -> None:
    """
    Connect to Postgres and leave.

    Raises:
        StoreUnavailable: with the reason that Postgres or the network gave.
    """
    import psycopg

    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError as error:
        why = (str(error).strip().splitlines() or ["no answer"])[-1]
        raise StoreUnavailable(
            f"Postgres at {where(url)} cannot be used: {why}; start it, or mend AGENTQ_DATABASE_URL"
        ) from None
    except psycopg.ProgrammingError as error:
        raise ConfigError(f"AGENTQ_DATABASE_URL is not a Postgres URL: {type(error).__name__}") from None


def import_agents(settings: Settings) -> Registry:
    """
    The agents that the settings name.

    Raises:
        ConfigError: none are named, or a module cannot be imported; the message says which line failed.
    """
    from agentq.agents.registry import load_agents

    if not settings.agents:
        raise ConfigError(
            "no agents are named: set AGENTQ_AGENTS=tasks (or `agents` in config/agentq.toml) to the module that "
            "defines them; `agentq init` lays out a project that has both"
        )
    try:
        registry = load_agents(settings.agents)
    except (ConfigError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise ConfigError(f"the agents in {', '.join(settings.agents)} cannot be imported: {_at(error)}") from error
    if not registry.agents():
        raise ConfigError(f"{', '.join(settings.agents)} defines no agent: construct an agentq.Agent there")
    return registry


def resolve(client: Client, text: str, tenant: str | None) -> tuple[str, uuid.UUID]:
    """
    The session whose id begins so.

    Raises:
        Problem: there is none.
        InvalidInput: there are several, or it is no beginning of an id.
    """
    found = client.sessions.find(text, tenant)
    if not found:
        raise Problem(f"no session{f' of tenant {tenant}' if tenant else ''} begins with {text}", NOT_FOUND)
    if len(found) > 1:
        some = ", ".join(str(session_id) for _, session_id in found)
        raise InvalidInput(f"several sessions begin with {text}: {some}; give more digits, or --tenant")
    return found[0]


def where(url: str) -> str:
    """Host and port of a URL: no password."""
    try:
        parts = urlsplit(url)
        return f"{parts.hostname or 'local socket'}{f':{parts.port}' if parts.port else ''}"
    except ValueError:
        return "an address that is no URL"


def _at(error: Exception) -> str:
    """An exception with the innermost line of it, in one line."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
