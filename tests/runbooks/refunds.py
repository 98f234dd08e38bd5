"""An agent that pays refunds, and a payments service that fails as an incident wants it to."""

from __future__ import annotations

import uuid

from pydantic import BaseModel

from agentq import Agent, Context, Done, Next, Permanent, Transient, effect
from agentq.agents.registry import Registry
from agentq.client import Selection
from tests.runbooks.conftest import Scene


class ConnectError(Transient):
    """As an HTTP client's, when nobody answers."""


class Refund(BaseModel):
    order: str = ""
    amount_cents: int = 0
    note: str = ""


class Refunds:
    """Steps `look_up` and `pay`; what `pay` meets is decided here."""

    def __init__(self, scene: Scene | None, registry: Registry | None = None) -> None:
        self._scene = scene
        self.away = False
        self.fails_more = 0
        self.refused: set[str] = set()
        self.paid: list[str] = []
        self.looked_up: list[str] = []
        agent = Agent("refunds", state=Refund, registry=registry or (scene.registry if scene else None))

        @effect(idempotent=True)
        def fetch_order(order: str) -> str:
            self.looked_up.append(order)
            return f"order {order}"

        @agent.step(start=True)
        def look_up(state: Refund, ctx: Context) -> Next:
            state.note = ctx.call(fetch_order, state.order)
            ctx.usage(input_tokens=900, output_tokens=100, cost_usd="0.004")
            return Next(pay, state)

        @agent.step(retries=1)
        def pay(state: Refund) -> Done:
            if self.away or self.fails_more > 0:
                self.fails_more -= 1
                raise ConnectError("[Errno 111] Connection refused")
            if state.amount_cents <= 0 or state.order in self.refused:
                raise Permanent(f"payments refused order {state.order}: amount {state.amount_cents} is not positive")
            self.paid.append(state.order)
            return Done(f"{state.order} paid")

    @property
    def scene(self) -> Scene:
        assert self._scene is not None
        return self._scene

    def start(self, *orders: str, amount_cents: int = 1200) -> list[uuid.UUID]:
        """A session for each order, not carried yet."""
        return [
            uuid.UUID(
                self.scene.client.start(
                    "refunds", tenant=self.scene.tenant, input={"order": order, "amount_cents": amount_cents}
                ).id
            )
            for order in orders
        ]

    def letter(self, session: uuid.UUID) -> str:
        """The first digits of the session's newest dead letter."""
        return self.scene.client.dead_letters.ls(Selection(session=session, state=None))[0].letter_id.hex[:8]

    def cause(self, session: uuid.UUID) -> str:
        return self.scene.client.dead_letters.ls(Selection(session=session, state=None))[0].cause[:8]
