"""A run that went wrong: a wrong tool, a repeated request, a cost that grew, a child; to be looked at."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from agentq import Agent, Child, Context, Done, Next, Permanent, Spawn, Transient, effect
from agentq.agents.registry import Registry

EVIL = "<script>alert(1)</script>"
SECRET = "sk-" + "proj-abcdefghijklmnopqrstuvwx"


class Ticket(BaseModel):
    """What the desk knows."""

    text: str = ""
    loops: int = 0
    notes: list[str] = []


class Part(BaseModel):
    n: int = 0


@effect(idempotent=True)
def look_up(order: str) -> dict[str, Any]:
    """Finds an order; knows a card number that nobody should see."""
    return {"order": order, "card": "4111 1111 1111 1111", "note": EVIL}


@effect(idempotent=True)
def send_coupon(order: str) -> str:
    """The wrong tool."""
    raise Permanent(f"order {order} takes no coupon")


def define(registry: Registry) -> None:
    """The agents `desk` and `part`, in a registry of a test."""
    part = Agent("part", state=Part, registry=registry)

    @part.step(start=True)
    def count(state: Part, ctx: Context) -> Done:
        return Done(state.n)

    desk = Agent("desk", state=Ticket, registry=registry)

    def ask(ctx: Context, prompt: str, answer: str, cents: int) -> str:
        with ctx.trace("model", "gpt-5", input=[{"role": "user", "content": prompt}], provider="openai") as span:
            span.output = answer
            span.used(input_tokens=100 * cents, output_tokens=10 * cents, cost_usd=f"0.0{cents}", cached_tokens=64)
        ctx.usage(input_tokens=100 * cents, output_tokens=10 * cents, cost_usd=f"0.0{cents}")
        return answer

    @desk.step(start=True)
    def read(state: Ticket, ctx: Context) -> Next:
        ctx.call(look_up, "A1")
        ask(ctx, f"Mail from jane@example.com with {SECRET}: {state.text}", "look again", 1)
        state.notes.append(f"seen {EVIL}")
        return Next(think, state)

    @desk.step(retries=2)
    def think(state: Ticket, ctx: Context) -> Next | Spawn:
        answer = ask(ctx, "What now?", "send a coupon", 2 + state.loops)
        if ctx.attempt == 1 and state.loops == 1:
            raise Transient(f"overloaded, key {SECRET}")
        ctx.decide(
            ["refund", {"tool": "send_coupon", "args": [EVIL]}], answer, f"the customer wants {EVIL}", 0.42,
            limits={"steps_max": 30},
        )  # fmt: skip
        state.loops += 1
        if state.loops < 3:
            return Next(think, state)
        return Spawn([Child("part", {"n": 7})], then=act, state=state)

    @desk.step(retries=0)
    def act(state: Ticket, ctx: Context) -> Done:
        ctx.call(send_coupon, "A1")
        return Done("sent")
