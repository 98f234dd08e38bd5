"""`session trace`, `session cost` and `cost ls`."""

from __future__ import annotations

import csv
import io
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel

from agentq import Agent, Context, Done, Transient, effect
from agentq.agents.registry import Registry
from agentq.client import Client
from agentq.errors import Park
from agentq.testing import LocalFleet
from tests.cli.conftest import Cli
from tests.support.bad_run import SECRET, define

Local = Callable[..., LocalFleet]


class Money(BaseModel):
    """Nothing to know."""


@pytest.fixture
def bad(registry: Registry, client: Client, tenant: str, local: Local) -> str:
    """The id of a run that went wrong."""
    define(registry)
    session = client.start("desk", tenant=tenant, input={"text": "hello"})
    with pytest.raises(Exception, match="takes no coupon"):
        local().drain(session)
    return session.id


def test_the_timeline_in_the_terminal(cli: Cli, bad: str, tenant: str) -> None:
    """
    One line for each attempt and each thing it did; decisions and cost below.
    """
    said = cli.ok("session", "trace", bad)
    for text in ("read", "think #2", "model gpt-5", "Transient: overloaded", "send a coupon", "0.42", "$0.13", "child"):
        assert text in said, text
    assert SECRET not in said
    assert "6, 2 of them came to nothing" in said


def test_the_story_as_json(cli: Cli, bad: str) -> None:
    told = cli.json("session", "trace", bad)
    assert [attempt["closing"] for attempt in told["attempts"]] == ["next", "next", "retry", "next", "next", "dead"]
    assert told["attempts"][0]["events"][1]["input"][0]["content"].startswith("Mail from [email] with [key]")
    assert told["totals"]["cost_micros"] == 130_000
    assert SECRET not in str(told)


def test_the_page_is_written_to_a_file(cli: Cli, bad: str, tmp_path: Path) -> None:
    result = cli("session", "trace", bad, "--html", str(tmp_path / "run.html"))
    assert (result.exit_code, result.stdout) == (0, "")
    assert (tmp_path / "run.html").read_text("utf-8").startswith("<!doctype html>")
    assert "cannot be written" in cli.refused(1, "session", "trace", bad, "--html", str(tmp_path / "no" / "run.html"))


def test_bad_questions_are_refused(cli: Cli, bad: str, tmp_path: Path) -> None:
    cli.refused(2, "session", "trace", bad, "--json", "--html", str(tmp_path / "x.html"))
    cli.refused(2, "cost", "ls", "--json", "--csv")
    cli.refused(2, "cost", "ls", "--since", "yesterday")
    cli.refused(2, "cost", "ls", "--since", "-3d")
    cli.refused(2, "cost", "ls", "--tenant", "No Such Name")
    assert "no session" in cli.refused(4, "session", "trace", "0" * 32)
    assert "no session" in cli.refused(4, "session", "cost", "0" * 32)


def test_what_a_session_cost(cli: Cli, bad: str) -> None:
    said = cli.ok("session", "cost", bad)
    assert "gpt-5" in said
    assert "$0.13" in said
    told = cli.json("session", "cost", bad)
    assert told["total"]["cost_micros"] == sum(line["cost_micros"] for line in told["lines"]) == 130_000
    assert told["total"]["waste_micros"] == 30_000


@pytest.mark.parametrize("by", ["agent", "tenant", "day", "model"])
def test_sums_are_the_same_on_every_surface(cli: Cli, bad: str, tenant: str, client: Client, by: str) -> None:
    """
    By agent, tenant, day and model; as a table, CSV and JSON; and what checkpoints hold is the sum less the waste.
    """
    rows = cli.json("cost", "ls", "--by", by, "--tenant", tenant)
    assert sum(row["cost_micros"] for row in rows) == 130_000
    assert sum(row["waste_micros"] for row in rows) == 30_000
    table = csv.DictReader(io.StringIO(cli.ok("cost", "ls", "--by", by, "--tenant", tenant, "--csv")))
    assert sum(int(row["cost_micros"]) for row in table) == 130_000
    assert client.sessions.get(tenant, uuid.UUID(bad)).cost_micros == 100_000


def test_nothing_used_says_so(cli: Cli, tenant: str) -> None:
    result = cli("cost", "ls", "--tenant", tenant)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "nothing was used" in result.stderr


def test_a_recalled_call_is_none(cli: Cli, registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """What a later attempt found recorded was not called again, nor did it take a tool's time; it is shown apart."""
    agent = Agent("caller", state=Money, registry=registry)

    @effect(idempotent=True)
    def weigh(parcel: str) -> int:
        return len(parcel)

    @agent.step(start=True, retries=2)
    def send(state: Money, ctx: Context) -> Done:
        ctx.call(weigh, "A1")
        if ctx.attempt < 3:
            raise Transient("not yet")
        return Done("ok")

    session = client.start("caller", tenant=tenant, input={})
    local().drain(session)
    [line] = [line for line in cli.json("session", "cost", session.id)["lines"] if line["kind"] == "tool"]
    assert (line["count"], line["recalled"]) == (1, 2)
    [row] = cli.json("cost", "ls", "--by", "tool", "--tenant", tenant)
    assert (row["count"], row["recalled"], row["seconds"]) == (1, 2, pytest.approx(line["seconds"], abs=1e-3))
    assert "RECALLED" in cli.ok("cost", "ls", "--by", "tool", "--tenant", tenant)


def test_traces_and_budgets_tell_the_same_sums(
    cli: Cli, registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    I6: what the budget's ledger charged, in a failed attempt too, is what traces show and cost sums up.
    """
    agent = Agent("spender", state=Money, registry=registry)
    client.budgets.set_price("robot:one", input_usd="2", output_usd="8", reason="test")

    @agent.step(start=True, retries=2)
    def ask(state: Money, ctx: Context) -> Done:
        with (
            ctx.trace("model", "one", provider="robot") as span,
            ctx.spend(model="robot:one", input_tokens=1000, max_tokens=500) as call,
        ):
            call.used(input_tokens=900, output_tokens=100)
            span.used(input_tokens=900, output_tokens=100, cost_micros=2600)
        if ctx.attempt < 3:
            raise Transient("not yet")
        return Done("ok")

    session = client.start("spender", tenant=tenant, input={})
    local().drain(session)
    charged = sum(row.charged_micros or 0 for row in client.budgets.ledger(tenant, session.id))
    assert charged == 3 * 2600
    told = cli.json("session", "trace", session.id)
    assert (told["totals"]["cost_micros"], told["totals"]["waste_micros"]) == (charged, 2 * 2600)
    assert sum(line["cost_micros"] for line in cli.json("session", "cost", session.id)["lines"]) == charged
    for by in ("agent", "tenant", "day", "model"):
        assert sum(row["cost_micros"] for row in cli.json("cost", "ls", "--by", by, "--tenant", tenant)) == charged, by


def test_a_trace_says_why_it_stands_still_and_what_to_do_next(
    cli: Cli, registry: Registry, client: Client, tenant: str, local: Local, bad: str
) -> None:
    """
    Who looks at a run that went wrong needs no second page for the next command.
    """
    agent = Agent("circles", state=Money, registry=registry)

    @agent.step(start=True)
    def go(state: Money, ctx: Context) -> Done:
        raise Park("breaker", "stale: the same call again", {"rule": "stale"})

    session = client.start("circles", tenant=tenant, input={}, key="ticket-9001")
    local().carry_next(tenant)
    result = cli("session", "trace", session.id)
    assert "breaker: stale: the same call again" in result.stdout
    assert "ticket-9001" in result.stdout
    assert f"agentq session resume {session.id}" in result.stderr
    failed = cli("session", "trace", bad)
    assert f"agentq session replay {bad}" in failed.stderr
    assert cli.json("session", "trace", bad)["advice"]
