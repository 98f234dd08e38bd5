"""A lively fleet for pictures: three tenants, three agents, work that goes well, fails, waits and is paused."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

from pydantic import BaseModel

from agentq import Agent, Ask, Context, Done, Next, Permanent, Transient, effect
from agentq.agents.dependencies import rules_of
from agentq.agents.registry import Registry
from agentq.client import Client, Selection, Terms
from agentq.store.dependencies import FLEET, Breakers, Report
from agentq.testing import LocalFleet, Stuck
from tests.support.odd import stands_out

AGENTS = ("support-desk", "refunds", "research")
PRICES = {"gpt-5": (1.25, 10.0), "gpt-5-mini": (0.25, 2.0), "claude-sonnet-4-5": (3.0, 15.0)}

# With this seed the last step asks a person.
ASKS = next(seed for seed in range(1000) if 0.12 <= random.Random(seed * 7).random() < 0.16)
_ODD = (
    ("steps", 31, (4, 8), "31 steps, where 99 of 100 runs take 4 to 8"),
    ("cost", 412_000, (9_000, 46_000), "$0.4120, where 99 of 100 runs cost $0.0090 to $0.0460"),
    ("tokens", 118_400, (4_100, 19_500), "118,400 tokens, where 99 of 100 runs use 4,100 to 19,500"),
)
_OUT = {"kind": "transient", "type": "HTTPStatusError", "message": "503: the service is out of order"}


class Ticket(BaseModel):
    """What an agent knows."""

    text: str = ""
    order: str = ""
    seed: int = 0
    turns: int = 0
    notes: list[str] = []


@effect(idempotent=True)
def fetch_order(order: str) -> dict[str, Any]:
    """The shop's order."""
    return {"order": order, "total_cents": 4_900, "customer": "jane@example.com", "card": "4111111111111111"}


@effect(idempotent=True)
def search_web(query: str) -> list[str]:
    """Pages that mention it."""
    return [f"{query}: page {number}" for number in range(3)]


@effect(idempotent=True)
def issue_refund(order: str, cents: int) -> str:
    """The payment provider's receipt."""
    return f"receipt-{order}-{cents}"


def define(registry: Registry, tenants: tuple[str, ...]) -> None:
    """The agents."""
    for name in AGENTS:
        _agent(registry, name)


def _ask(ctx: Context, draw: random.Random, prompt: str, answer: str) -> str:
    model = draw.choice(list(PRICES))
    tokens_in, tokens_out = draw.randint(300, 6_000), draw.randint(40, 700)
    price_in, price_out = PRICES[model]
    micros = int(tokens_in * price_in + tokens_out * price_out)
    cost = f"{micros / 1_000_000:.6f}"
    with ctx.trace("model", model, input=[{"role": "user", "content": prompt}], provider="openai", model=model) as span:
        span.output = answer
        span.used(input_tokens=tokens_in, output_tokens=tokens_out, cost_usd=cost, cached_tokens=tokens_in // 3)
    ctx.usage(input_tokens=tokens_in, output_tokens=tokens_out, cost_usd=cost)
    return answer


def _agent(registry: Registry, name: str) -> None:
    agent = Agent(name, state=Ticket, registry=registry)

    @agent.step(start=True)
    def read(state: Ticket, ctx: Context) -> Next:
        draw = random.Random(state.seed)
        ctx.call(fetch_order, state.order)
        _ask(ctx, draw, f"Classify this mail: {state.text}", "refund request")
        state.notes.append("asked for a refund")
        return Next(think, state)

    @agent.step(retries=2)
    def think(state: Ticket, ctx: Context) -> Next:
        draw = random.Random(state.seed * 31 + state.turns + ctx.attempt)
        if draw.random() < 0.15:
            _ask(ctx, draw, "What now?", "")
            raise Transient("the provider answered 529: overloaded", retry_after_s=0.0)
        ctx.call(search_web, f"policy {state.order}")
        picked = draw.choice(["refund", "ask for a photo", "hand over to a person"])
        _ask(ctx, draw, "What now?", picked)
        ctx.decide(
            ["refund", "ask for a photo", "hand over to a person"], picked,
            "the order is younger than 30 days and was paid by card", round(0.55 + draw.random() * 0.4, 2),
            limits={"cost_usd": "0.40", "steps_max": 30},
        )  # fmt: skip
        state.turns += 1
        state.notes.append(f"turn {state.turns}: {picked}")
        return Next(think if state.turns < draw.randint(1, 4) else act, state)

    @agent.step(retries=1)
    def act(state: Ticket, ctx: Context) -> Done | Ask:
        draw = random.Random(state.seed * 7)
        kind = draw.random()
        if kind < 0.08:
            raise Permanent("the payment provider refuses: the card is closed")
        if kind < 0.12:
            raise ValueError("the model's answer is no JSON: Expecting value at line 1")
        if kind < 0.16:
            facts = {"customer since": "2021", "order": state.order, "reason": "headphones broke after 12 days"}
            question = f"Refund order {state.order}, 49.00 EUR?"
            return Ask(question, within="3d", then=pay, state=state, args={"cents": 4_900}, details=facts)
        ctx.call(issue_refund, state.order, 4_900)
        return Done({"refunded": state.order})

    @agent.step
    def pay(state: Ticket, ctx: Context, cents: int) -> Done:
        ctx.call(issue_refund, state.order, cents)
        return Done({"refunded": state.order})


def furnish(client: Client, fleet: LocalFleet, started: list[Any]) -> None:
    """What a list of sessions alone does not bring: a redrive, anomalies, budgets, a breaker, an approval, a pause."""
    failed = [session for session in started if session.view().state == "failed"]
    _redrive(client, fleet, failed)
    for session, (measure, value, normal, why) in zip(started[-len(_ODD) :], _ODD, strict=False):
        stands_out(client, session, measure, why, value=value, normal=normal)
    for number, tenant in enumerate(sorted({session.tenant for session in started})):
        client.budgets.set(tenant, period="day", cost_usd=str(5 + number), reason="what was agreed")
    breakers = Breakers(client.sessions.store, rules_of(client.settings).as_json())
    breakers.report([Report((FLEET, "stripe"), bad=20, failure=_OUT), Report((FLEET, "openai"), ok=40)])
    waits = client.start("refunds", tenant=started[0].tenant, input={"order": "A77", "seed": ASKS}, key="ticket-7777")
    with suppress(Stuck, Exception):
        fleet.drain(waits)
    paused = client.start("research", tenant=started[0].tenant, input={"order": "A78", "seed": 3}, key="ticket-7778")
    fleet.carry_next(paused.tenant)
    client.recovery.pause(paused.tenant, paused.id, reason="the customer is on the phone")


def _redrive(client: Client, fleet: LocalFleet, failed: list[Any]) -> None:
    """A canary of one cause that dies again, because nothing was mended."""
    letters = client.dead_letters.ls(Selection(session=failed[0]._uuid, state=None)) if failed else []
    if not letters:
        return
    chosen = Selection(cause=letters[0].cause[:12])
    for progress in client.dead_letters.redrive(chosen, reason="is the card open again?", terms=Terms(canary=2)):
        if progress.waiting_for:
            for one in client.dead_letters.ls(Selection(job=progress.job.job_id, state="redriving")):
                with suppress(Stuck, Exception):
                    fleet.drain(client.get(one.tenant, str(one.session_id)))


def play(client: Client, fleet: LocalFleet, tenants: tuple[str, ...], sessions: int, *, days: int = 0) -> list[Any]:
    """Start them and let each come as far as it comes; spread over so many days before today."""
    draw = random.Random(20)
    started = []
    for number in range(sessions):
        if days and number % max(sessions // (4 * days), 1) == 0:
            fleet.clock._set(-86_400.0 * days * (1 - number / sessions))
        tenant, agent = draw.choice(tenants), draw.choice(AGENTS)
        given = {"text": "My headphones broke, refund please", "order": f"A{1000 + number}", "seed": number}
        session = client.start(agent, tenant=tenant, input=given, key=f"ticket-{8000 + number}")
        started.append(session)
        with suppress(Stuck, Exception):
            fleet.drain(session)
    fleet.clock.reset()
    return started
