"""An agent whose steps die as a test likes, and its letters."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from agentq import Agent, Context, Done, Next, Permanent, effect
from agentq.agents.registry import Registry
from agentq.client import Client, Selection, Terms
from agentq.relay.redrives import Progress
from agentq.store.dead_letters import Letter
from agentq.testing import LocalFleet


class Order(BaseModel):
    """What the agent works on."""

    id: int = 0
    amount_cents: int = 100
    note: str = ""
    seen: list[str] = []


class Shop:
    """The other side: refuses to be paid while it is down, and counts what it was asked for."""

    def __init__(self, client: Client, registry: Registry, tenant: str) -> None:
        self.client = client
        self.tenant = tenant
        self.down = True
        self.refuses: set[int] = set()
        self.reserved: list[int] = []
        self.paid: list[tuple[int, int, str]] = []
        agent = Agent("shop", state=Order, registry=registry)

        @effect(idempotent=True)
        def reserve(order: int) -> str:
            self.reserved.append(order)
            return f"reserved {order}"

        @agent.step(start=True)
        def look(state: Order, ctx: Context) -> Next:
            state.note = ctx.call(reserve, state.id)
            return Next(pay, state)

        @agent.step(retries=0)
        def pay(state: Order) -> Done:
            if self.down or state.id in self.refuses:
                raise Permanent(f"order {state.id} cannot be paid: the till is closed")
            self.paid.append((state.id, state.amount_cents, state.note))
            return Done(state.amount_cents)

    def open_letters(self, fleet: LocalFleet, count: int, **more: Any) -> list[Letter]:
        """That many sessions, each died while paying."""
        for number in range(count):
            self.client.start("shop", tenant=self.tenant, input={"id": number}, **more)
        self.run(fleet)
        letters = self.letters("open")
        assert len(letters) == count
        return letters

    def letters(self, state: Any = None) -> list[Letter]:
        found = self.client.dead_letters.ls(Selection(tenant=self.tenant, state=state), limit=1000)
        return sorted(found, key=lambda letter: (letter.died_at, letter.letter_id))

    def run(self, fleet: LocalFleet) -> None:
        """Everything that is due."""
        while fleet.carry_next(self.tenant) is not None:
            pass

    def redrive(self, **terms: Any) -> Progress:
        """All of them, to the end."""
        *_, last = self.client.dead_letters.redrive(
            Selection(tenant=self.tenant), reason="the till is open again", terms=Terms(rate_per_s=1000, **terms)
        )
        return last


@pytest.fixture
def shop(client: Client, registry: Registry, tenant: str) -> Shop:
    """A shop that is down."""
    return Shop(client, registry, tenant)
