"""
A customer was paid back twice: a tool that promised to be idempotent is not, and its answer was lost once. The
outcome of two more payments is not known, and their sessions wait for somebody to look.
"""

from __future__ import annotations

import uuid

from pydantic import BaseModel

from agentq import Agent, Context, Done, effect
from tests.runbooks.conftest import Scene
from tests.runbooks.reading import Words


class Order(BaseModel):
    order: str = ""
    careful: bool = False


paid: list[str] = []


def pay(order: str) -> str:
    """The payments service: pays each time it is asked, and loses the first answer about each order."""
    paid.append(order)
    if paid.count(order) == 1:
        raise TimeoutError("no answer from payments")
    return f"receipt {order}-{paid.count(order)}"


@effect(idempotent=True)  # it is not: payments was never given the key
def pay_back(order: str) -> str:
    return pay(order)


@effect
def pay_out(order: str) -> str:
    return pay(order)


def stage(scene: Scene) -> Words:
    paid.clear()
    agent = Agent("cashier", state=Order, registry=scene.registry)

    @agent.step(retries=2)
    def settle(state: Order, ctx: Context) -> Done:
        return Done(ctx.call(pay_out if state.careful else pay_back, state.order))

    twice, happened, lost = (
        scene.client.start("cashier", tenant=scene.tenant, input={"order": order, "careful": careful})
        for order, careful in (("A1", False), ("B1", True), ("B2", True))
    )
    scene.carry()
    scene.keep_carrying()

    def key(session: str, state: str) -> str:
        [row] = scene.client.effects.ls([state], session=uuid.UUID(session))
        return row.key

    return {
        "SESSION": twice.id,
        "KEY": key(twice.id, "done"),
        "PARKED": happened.id,
        "UNSURE": key(happened.id, "unknown"),
        "WAITING": lost.id,
        "MISSING": key(lost.id, "unknown"),
    }
