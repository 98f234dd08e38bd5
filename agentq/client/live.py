"""Live sessions against the code that is here: which of them it could not carry on."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agentq.agents.registry import Registry
from agentq.errors import InvalidInput, Permanent
from agentq.payload import decode, fold
from agentq.store import sealing
from agentq.store.pool import ALL_TENANTS, Row, Store
from agentq.store.queries import load

SQL = load("live")

_PAGE = 200
_ZERO = uuid.UUID(int=0)


@dataclass(frozen=True, slots=True)
class Stranded:
    """A step that waits to run, and why this code could not run it."""

    tenant: str
    session_id: uuid.UUID
    step_id: uuid.UUID
    step: str
    agent: str
    agent_version: int
    why: str


class LiveCheck:
    """Replays what lives on the agents of a registry, changing nothing."""

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store = store
        self._registry = registry
        self.steps = 0

    def stranded(self, agent: str | None = None) -> Iterator[Stranded]:
        """
        Every step that is still to run and that no agent here could: its version is not served, or its
        state, its arguments or its history cannot be read.
        """
        heard: tuple[str, uuid.UUID] | None = None
        wrong: str | None = None
        for row in self._pages(agent):
            self.steps += 1
            tenant, session, step_id, name, agent_name, version, *_ = row
            why = self._step(row)
            if why is None:
                if heard != (tenant, session):
                    heard, wrong = (tenant, session), self._history(row)
                why = wrong
            if why is not None:
                yield Stranded(tenant, session, step_id, name, agent_name, version, why)

    def _pages(self, agent: str | None) -> Iterator[Row]:
        tenant, session, step = "", _ZERO, _ZERO
        while True:
            rows = self._store.query_as(
                ALL_TENANTS,
                SQL["live_steps"],
                {"agent": agent, "tenant": tenant, "session": session, "step": step, "max": _PAGE},
            )
            yield from rows
            if len(rows) < _PAGE:
                return
            tenant, session, step = rows[-1][:3]

    def _step(self, row: Row) -> str | None:
        tenant, session, _, name, agent_name, version, state_version, states, given, args, at, path = row
        vault = self._store.vault
        try:
            agent = self._registry.serving(agent_name, version)
            step = agent.find(agent.renamed(name, state_version))
            if states is not None:
                state = fold(sealing.open_states(vault, tenant, session, states, at=at))
            else:
                state = vault.open(tenant, sealing.input_of(session), given)
            agent.read(state, state_version)
            given_args = vault.open(tenant, sealing.args_at(session, path), args)
            step.bind(decode(given_args) if given_args is not None else {})
        except (Permanent, InvalidInput) as error:
            return str(error)
        return None

    def _history(self, row: Row) -> str | None:
        tenant, session, _, _, agent_name, version, *_ = row
        reads: Any = self._registry.serving(agent_name, version).read_history
        if reads is None:
            return None
        try:
            rows = self._store.query_as(tenant, SQL["history"], {"tenant": tenant, "session": session})
            messages = [(seq, body, by, step) for seq, body, by, step in rows]
            reads(sealing.open_messages(self._store.vault, tenant, session, messages))
        except Permanent as error:
            return str(error)
        return None
