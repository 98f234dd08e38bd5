"""Waste: retries, repairs and attempts that were cut off, the same on every surface, and the ledger's to the micro."""

from __future__ import annotations

import csv
import io
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai import ModelRetry
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from agentq import Agent, Context, Done, ModelAgent, Semantic, Transient, tool
from agentq.adapters.pydantic_ai import durable
from agentq.agents.registry import Registry
from agentq.client import Client, Session
from agentq.errors import RepairsExhausted
from agentq.policies.redaction import Redactor
from agentq.seeing.page import page
from agentq.seeing.story import tell
from agentq.store.budgets import Budgets
from agentq.store.pool import Store
from agentq.store.sessions import Sessions
from agentq.store.traces import Traces
from agentq.testing import LocalFleet
from tests.cli.conftest import Cli, cli
from tests.support.openai_server import OpenAIServer, Reply
from tests.support.until import until

__all__ = ["cli"]

Local = Callable[..., LocalFleet]
DAY = 86_400


class Nothing(BaseModel):
    """Nothing to know."""


@dataclass
class Surfaces:
    """Everywhere that a tenant's only session shows what it cost."""

    cli: Cli
    client: Client
    store: Store
    session: Session

    @property
    def tenant(self) -> str:
        return self.session.tenant

    def charged(self) -> int:
        return sum(row.charged_micros or 0 for row in self.client.budgets.ledger(self.tenant, self.session.id))

    def told(self) -> dict[str, tuple[int, int, int]]:
        """Cost, waste and the part of it that was for repairs, by surface."""
        figures = ("cost_micros", "waste_micros", "repair_micros")
        found: dict[str, tuple[int, int, int]] = {}

        def add(name: str, rows: Any) -> None:
            rows = list(rows)
            found[name] = tuple(sum(int(row[figure]) for row in rows) for figure in figures)  # type: ignore[assignment]

        cost = self.cli.json("session", "cost", self.session.id)
        add("session cost", [cost["total"]])
        add("session cost, its lines", cost["lines"])
        trace = self.cli.json("session", "trace", self.session.id)
        add("session trace", [trace["totals"]])
        add("session trace, its lines", trace["cost"])
        add("session trace, its steps", trace["steps"])
        for by in ("agent", "tenant", "day", "session", "model"):
            add(f"cost ls --by {by}", self.cli.json("cost", "ls", "--by", by, "--tenant", self.tenant))
            text = self.cli.ok("cost", "ls", "--by", by, "--tenant", self.tenant, "--csv")
            add(f"cost ls --by {by} --csv", csv.DictReader(io.StringIO(text)))
        tab = Traces(self.store).spends(("day", "agent", "tenant", "model"), seconds=7 * DAY, tenant=self.tenant)
        for by, rows in tab.items():
            add(f"the cost tab by {by}", [{figure: getattr(row, figure) for figure in figures} for row in rows])
        return found

    def all_say(self, cost: int, waste: int, repairs: int) -> None:
        assert self.charged() == cost
        assert self.client.budgets.check(self.tenant) == []
        told = self.told()
        assert told == dict.fromkeys(told, (cost, waste, repairs))

    def page(self) -> str:
        of = uuid.UUID(self.session.id)
        return page(tell(Sessions(self.store), Traces(self.store), self.tenant, of, Redactor().value))


@pytest.fixture
def surfaces(cli: Cli, client: Client, store: Store) -> Callable[[Session], Surfaces]:
    return lambda session: Surfaces(cli, client, store, session)


Shown = Callable[[Session], Surfaces]


def ask(ctx: Context, number: int, **facts: Any) -> None:
    """A call of exactly 1000 micros for each of its number."""
    with (
        ctx.trace("model", "one", provider="robot", **facts) as span,
        ctx.spend(model="robot:one", input_tokens=1000 * number, max_tokens=500) as call,
    ):
        call.used(input_tokens=500 * number, output_tokens=0)
        span.used(input_tokens=500 * number, cost_micros=call.cost_micros)


@pytest.fixture
def priced(client: Client) -> None:
    client.budgets.set_price("robot:one", input_usd="2", output_usd="8", reason="test")


# ── repairs ──────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("priced")
def test_retries_and_repairs_of_both_kinds_are_waste(
    registry: Registry, client: Client, tenant: str, local: Local, surfaces: Shown
) -> None:
    """
    A failed attempt; one whose answer was repaired by the next; and within the last one a call that was one.
    """
    agent = Agent("writer", state=Nothing, registry=registry)
    tries: list[int] = []

    @agent.step(start=True, retries=2, repairs=2)
    def write(state: Nothing, ctx: Context) -> Done:
        tries.append(1)
        ask(ctx, 10 ** (len(tries) - 1))
        if len(tries) == 1:
            raise Transient("overloaded")
        if len(tries) == 2:
            raise Semantic("no such colour")
        ask(ctx, 1000, repair=True)
        ask(ctx, 10_000, repair=False)
        return Done("blue")

    session = client.start("writer", tenant=tenant, input={})
    local().drain(session)
    shown = surfaces(session)
    shown.all_say(11_111_000, 1_011_000, 1_010_000)

    trace = shown.cli.ok("session", "trace", session.id)
    assert "$1.01 of it for repairs" in trace
    assert [line.rstrip().endswith("repair") for line in trace.splitlines() if "model one" in line].count(True) == 1
    assert "REPAIRS" in shown.cli.ok("session", "cost", session.id)
    assert "REPAIRS" in shown.cli.ok("cost", "ls", "--by", "model", "--tenant", tenant)
    made = shown.page()
    assert "$1.01 of it for repairs" in made
    assert "model one: repair" in made or "model one, repair" in made
    assert "$1.01 repairs" in made


@pytest.mark.usefixtures("priced")
def test_without_repairs_nobody_speaks_of_them(
    registry: Registry, client: Client, tenant: str, local: Local, surfaces: Shown
) -> None:
    agent = Agent("writer", state=Nothing, registry=registry)

    @agent.step(start=True)
    def write(state: Nothing, ctx: Context) -> Done:
        ask(ctx, 1)
        return Done("blue")

    session = client.start("writer", tenant=tenant, input={})
    local().drain(session)
    shown = surfaces(session)
    shown.all_say(1000, 0, 0)
    said = [shown.cli.ok("session", "trace", session.id), shown.cli.ok("cost", "ls", "--tenant", tenant), shown.page()]
    assert not any("repair" in text.lower() for text in said)


@tool(idempotent=True)
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


UNKNOWN = Reply(calls=[("nosuch", {})])
ADD = Reply(calls=[("add", {"a": 1, "b": 2})])
BOTH = Reply(calls=[("add", {"a": 1, "b": 2}), ("nosuch", {})])


def repairs_of(admin: Any, session: Session) -> list[bool]:
    query = "select detail -> 'repair' is not null from agentq.trace where session_id = %s and kind = 'model'"
    return [row[0] for row in admin.execute(query + " order by started_at", (session.id,)).fetchall()]


@pytest.mark.parametrize(
    ("replies", "repairs"),
    [
        ([UNKNOWN, ADD, Reply("3")], [False, True, False]),
        ([Reply(""), UNKNOWN, Reply("3")], [False, True, True]),
        ([BOTH, Reply("3")], [False, False]),
        ([ADD, Reply("and", finish="length"), Reply("3")], [False, False, True]),
        ([ADD, Reply("3")], [False, False]),
    ],
    ids=["once", "twice", "beside a good call", "cut off", "never"],
)
def test_what_a_model_is_asked_again_is_waste(
    registry: Registry, client: Client, tenant: str, local: Local, surfaces: Shown, admin: Any,
    replies: list[Reply], repairs: list[bool],
) -> None:  # fmt: skip
    """
    The request that mends an answer of which nothing could be used; one with a call that could be is none.
    """
    with OpenAIServer(*replies) as server:
        ModelAgent("desk", model=server.model(), tools=[add], needs=f"openai-{tenant}", registry=registry)
        session = client.start("desk", tenant=tenant, input={"prompt": "1 + 2?"})
        assert local().drain(session).result == "3"
    assert repairs_of(admin, session) == repairs
    shown = surfaces(session)
    each = shown.charged() // len(replies)
    assert each > 0
    shown.all_say(each * len(replies), each * sum(repairs), each * sum(repairs))


def test_repairs_that_led_nowhere_are_waste_too(
    registry: Registry, client: Client, tenant: str, local: Local, surfaces: Shown, admin: Any
) -> None:
    """
    With the last one the session dies; another model that mends what the first one wrote is a repair as well.
    """
    with OpenAIServer(*[Reply("")] * 2) as first, OpenAIServer(*[Reply("")] * 2) as second:
        ModelAgent(
            "desk", model=first.model(), fallbacks=[second.model()], repairs=1, needs=f"openai-{tenant}",
            registry=registry,
        )  # fmt: skip
        session = client.start("desk", tenant=tenant, input={"prompt": "go"})
        with pytest.raises(RepairsExhausted):
            local().drain(session)
    assert repairs_of(admin, session) == [False, True, True, True]
    shown = surfaces(session)
    each = shown.charged() // 4
    shown.all_say(4 * each, 3 * each, 3 * each)


def test_what_pydantic_ai_asks_again_is_a_repair(
    registry: Registry, client: Client, tenant: str, local: Local, admin: Any
) -> None:
    """
    A request that tells the model what was wrong and nothing else.
    """
    answers = iter(["red", "no", "blue"])

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse([TextPart(next(answers))])

    existing = PydanticAgent(FunctionModel(answer, model_name="painter"), retries=3)

    @existing.output_validator
    def check(said: str) -> str:
        if said != "blue":
            raise ModelRetry("that is no colour of ours")
        return said

    client.budgets.set_price("function:painter", input_usd="2", output_usd="8", reason="test")
    durable(existing, name="painter", registry=registry)
    session = client.start("painter", tenant=tenant, input={"prompt": "paint"})
    assert local().drain(session).result == "blue"
    assert repairs_of(admin, session) == [False, True, True]


# ── attempts that are cut off ────────────────────────────────────────────────


class Cut:
    """A session in the middle of its second call, whose fence is taken meanwhile; then the call returns."""

    def __init__(self, registry: Registry, client: Client, tenant: str, fleet: Callable[[], LocalFleet]) -> None:
        self.client = client
        self.out, self.over = threading.Event(), threading.Event()
        agent = Agent("caller", state=Nothing, registry=registry)

        @agent.step(start=True, retries=2, timeout="60s")
        def call(state: Nothing, ctx: Context) -> Done:
            if self.out.is_set():
                return Done("again")
            with ctx.spend(model="robot:one", input_tokens=1000, max_tokens=500) as first:
                first.used(input_tokens=500, output_tokens=0)
            # Before the second is reserved, the first is settled ahead of the step.
            with ctx.spend(model="robot:one", input_tokens=1000, max_tokens=500) as second:
                self.out.set()
                assert self.over.wait(60)
                second.used(input_tokens=3000, output_tokens=0)
            return Done("late")

        self.session = client.start("caller", tenant=tenant, input={})
        self.fleet = fleet()
        self._thread = threading.Thread(target=self.fleet.carry_next, args=(tenant,), daemon=True)
        self._thread.start()
        assert self.out.wait(30)

    def cut(self, how: str) -> None:
        match how:
            case "kill":
                assert self.session.kill("it runs away") == "cancelled"
            case "replay":
                self.session.replay("once more", from_step="call")
            case "disown":
                [attempt] = self.fleet.in_flight.attempts()
                assert self.fleet.ledger.disown(attempt.claim.ref, attempt.claim.token) is not None

    def answer(self) -> None:
        self.over.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("guessed", [False, True], ids=["its own word", "after the relay's"])
@pytest.mark.parametrize("how", ["kill", "replay", "disown"])
def test_what_an_attempt_spends_that_was_cut_off_is_in_every_sum(
    registry: Registry, client: Client, tenant: str, local: Local, surfaces: Shown, store: Store, admin: Any,
    how: str, guessed: bool,
) -> None:  # fmt: skip
    """
    I6, I11: killed, replayed or disowned in the middle of a call that returns afterwards: its row is there at once,
    with what was charged by then, and takes what is charged later.
    """
    cut = Cut(registry, client, tenant, local)
    cut.cut(how)
    shown = surfaces(cut.session)
    rows = admin.execute(
        "select closing, worker is not null, cost_micros, failure ->> 'type' from agentq.trace"
        " where session_id = %s and kind = 'attempt'", (cut.session.id,),
    ).fetchall()  # fmt: skip
    why = {"kill": "SessionKilled", "replay": "StepReplaced", "disown": None}[how]
    assert rows == [("release" if how == "disown" else "cancelled", True, 1000, why)]
    shown.all_say(1000, 1000, 0)
    if guessed:
        Budgets(store).settle_leaked(1000)
        assert shown.charged() > 1000
        shown.all_say(shown.charged(), shown.charged(), 0)
    cut.answer()
    shown.all_say(7000, 7000, 0)
    if how != "kill":
        assert cut.fleet.drain(cut.session).result == "again"
        shown.all_say(7000, 7000, 0)
    assert "cancelled" in shown.cli.ok("session", "trace", cut.session.id) or how == "disown"


def test_a_killed_request_of_a_model_is_in_every_sum(
    registry: Registry, client: Client, tenant: str, local: Local, surfaces: Shown
) -> None:
    """
    I6: the model answers a session that is no more; nothing of it counts but what it cost.
    """
    out, over = threading.Event(), threading.Event()

    def answer(request: Any) -> Reply:
        out.set()
        assert over.wait(60)
        return Reply("too late", tokens=(5000, 700))

    with OpenAIServer(answer=answer) as server:
        ModelAgent("desk", model=server.model(), needs=f"openai-{tenant}", registry=registry)
        session = client.start("desk", tenant=tenant, input={"prompt": "go"})
        fleet = local()
        thread = threading.Thread(target=fleet.carry_next, args=(tenant,), daemon=True)
        thread.start()
        assert out.wait(30)
        assert session.kill("enough") == "cancelled"
        over.set()
        thread.join(60)
        assert not thread.is_alive()
    shown = surfaces(session)
    until(lambda: Budgets(fleet.store).settle_leaked(1000) == 0, 10, "nothing is held")
    assert shown.charged() > 0
    shown.all_say(shown.charged(), shown.charged(), 0)
    assert session.view().state == "cancelled"
