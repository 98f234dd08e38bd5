"""The registry: which agents, in which versions, this process has."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from agentq.errors import ConfigError, UnknownAgent

if TYPE_CHECKING:
    from agentq.agents.agent import Agent


class Registry:
    """Agents by name and version."""

    def __init__(self) -> None:
        self._agents: dict[str, dict[int, Agent[Any]]] = {}

    def add(self, agent: Agent[Any]) -> None:
        """
        Register an agent; the same module imported again replaces its own.

        Raises:
            ConfigError: another agent of that name and version is registered.
        """
        versions = self._agents.setdefault(agent.name, {})
        other = versions.get(agent.version)
        if other is not None and other.state.__qualname__ != agent.state.__qualname__:
            raise ConfigError(f"two agents are named {agent.pin}: {other.state!r} and {agent.state!r}")
        versions[agent.version] = agent

    def find(self, name: str, version: int | None = None) -> Agent[Any]:
        """
        The agent of that version, or of the newest.

        Raises:
            UnknownAgent: there is none; the message names those there are.
        """
        versions = self._agents.get(name)
        if not versions or (version is not None and version not in versions):
            raise UnknownAgent(name, version, tuple(self.pins()))
        return versions[max(versions) if version is None else version]

    def serving(self, name: str, version: int) -> Agent[Any]:
        """
        The agent that carries sessions of a version: that one, or the newest that can take it over.

        Raises:
            UnknownAgent: none here can.
        """
        versions = self._agents.get(name, {})
        if version not in versions:
            able = [found for found in versions.values() if version in found.takes_over]
            if able:
                return max(able, key=lambda agent: agent.version)
        return self.find(name, version)

    def serves(self) -> list[str]:
        """Every `name@version` whose sessions can go on in this process."""
        able = {f"{agent.name}@{version}" for agent in self.agents() for version in (agent.version, *agent.takes_over)}
        return sorted(able)

    def pins(self) -> list[str]:
        """Every agent as `name@version`."""
        return sorted(agent.pin for versions in self._agents.values() for agent in versions.values())

    def agents(self) -> list[Agent[Any]]:
        """Every registered agent."""
        return [agent for versions in self._agents.values() for agent in versions.values()]


default_registry = Registry()


def load_agents(modules: Iterable[str]) -> Registry:
    """
    Import the modules that define agents; the registry that they filled.

    Raises:
        ConfigError: a module cannot be found, or an agent lacks its first step.
    """
    for name in modules:
        if "" not in sys.path:
            sys.path.insert(0, "")  # agents live in the folder where the fleet is started
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and (name == error.name or name.startswith(error.name + ".")):
                raise ConfigError(f"AGENTQ_AGENTS names {name!r}, which cannot be imported from here") from error
            raise
    for agent in default_registry.agents():
        agent.first  # noqa: B018 - an agent without a beginning is refused at start, not at its first session
    return default_registry
