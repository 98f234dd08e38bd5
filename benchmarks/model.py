"""
`python -m benchmarks.model`: what a long conversation of a model agent costs, in time and in bytes.

One session of N turns, each a model request and a tool call, with an offline model that answers at once,
so that what is measured is agentq's own. Steps are carried one after another in this process, on real
servers. The bytes are those of the rows' contents; beside them stands what storing the whole history with
each model step would have written.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psycopg
from pydantic import BaseModel
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from rich.console import Console
from rich.table import Table

from agentq import Agent, Client, Compaction, Done, Limits, ModelAgent, Next, tool
from agentq.agents.registry import Registry
from agentq.policies.session_breaker import Breaker
from agentq.settings import load
from agentq.testing import LocalFleet
from benchmarks.fleet import servers

# A page of text comes back from each call, as of a search.
RESULT = "The parcel left the warehouse and has not been scanned since; the carrier looks into it. " * 4

BYTES = """
select (select sum(octet_length(body)) from agentq.message where session_id = %(id)s),
       (select coalesce(sum(octet_length(state)), 0) from agentq.checkpoint where session_id = %(id)s),
       (select coalesce(sum(octet_length(result)), 0) from agentq.effect where session_id = %(id)s),
       (select coalesce(sum(octet_length(args)), 0) from agentq.ledger_entry where session_id = %(id)s)
"""

HISTORY = "select seq, octet_length(body) from agentq.message where session_id = %(id)s order by seq"


class Count(BaseModel):
    """The state of the plain steps beside it."""

    n: int = 0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model", description=__doc__)
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--compact", type=int, default=0, help="make the history short above so many tokens; 0: never")
    parser.add_argument("--json", type=Path, default=Path("artifacts/bench-model.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agentq-bench-") as folder, servers(Path(folder) / "data") as env:
        os.environ.update(env)
        figures = measure(arguments.turns, arguments.compact)
    show(figures, Console())
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(figures, indent=2), "utf-8")


def measure(turns: int, compact: int = 0) -> dict[str, Any]:
    """One conversation and one chain of plain steps; what they took and stored."""
    registry = Registry()
    _agents(registry, turns, compact)
    with Client(load(), registry) as client, LocalFleet(client) as fleet:
        client.tenants.add("bench")
        conversation = client.start("talker", tenant="bench", input={"prompt": "Where is my parcel?"})
        times = _carry(fleet, conversation)
        plain = client.start("plain", tenant="bench", input={})
        times |= _carry(fleet, plain)
        with psycopg.connect(client.settings.database_url, autocommit=True) as connection:
            connection.execute("select set_config('agentq.tenant', 'bench', false)")
            [row] = connection.execute(BYTES, {"id": conversation.id}).fetchall()
            sizes = [int(size) for _, size in connection.execute(HISTORY, {"id": conversation.id}).fetchall()]
    return {
        "turns": turns,
        "ms": {name: _spread(taken) for name, taken in times.items()},
        "bytes": dict(zip(("messages", "states", "effects", "arguments"), map(int, row), strict=True)),
        "history_bytes": sum(sizes),
        # A model step that stored the whole history would write all that came before it, each time.
        "whole_histories_bytes": sum(sum(sizes[: number + 1]) for number in range(1, len(sizes), 2)),
    }


def _agents(registry: Registry, turns: int, compact: int) -> None:
    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        # From what it was told last: of a history that was made short the beginning is not shown.
        told = [str(part.content) for part in messages[-1].parts if isinstance(part, ToolReturnPart)]
        said = int(told[-1].partition(":")[0]) + 1 if told else 0
        if said == turns:
            return ModelResponse([TextPart("It arrives tomorrow.")])
        return ModelResponse([ToolCallPart("track", {"number": said}, tool_call_id=f"call_{said}")])

    @tool(idempotent=True)
    def track(number: int) -> str:
        """Where is it?"""
        return f"{number}: {RESULT}"

    ModelAgent(
        "talker", model=FunctionModel(answer, model_name="talker"), tools=[track], registry=registry,
        limits=Limits(model_calls=turns + 1), breaker=Breaker(acceleration=0),
        compaction=Compaction(above_tokens=compact) if compact else None,
    )  # fmt: skip
    plain = Agent("plain", state=Count, registry=registry)

    @plain.step(start=True)
    def step(state: Count) -> Next | Done:
        state.n += 1
        return Next(step, state) if state.n < turns else Done(state.n)


def _carry(fleet: LocalFleet, session: Any) -> dict[str, list[float]]:
    """Each step's time in this process, by its name."""
    times: dict[str, list[float]] = defaultdict(list)
    while not session.view().ended:
        name = next((step.name for step in session.steps() if step.state in ("ready", "queued")), "?")
        began = time.perf_counter()
        fleet.carry_next(session.tenant)
        times[name].append((time.perf_counter() - began) * 1000)
    return dict(times)


def _spread(taken: list[float]) -> dict[str, float]:
    tenth = max(len(taken) // 10, 1)
    return {
        "p50": round(statistics.median(taken), 2),
        "first_tenth": round(statistics.median(taken[:tenth]), 2),
        "last_tenth": round(statistics.median(taken[-tenth:]), 2),
    }


def show(figures: dict[str, Any], console: Console) -> None:
    """Two tables: time and bytes."""
    table = Table("step", "p50 ms", "first tenth", "last tenth", title=f"{figures['turns']} turns")
    for name, spread in figures["ms"].items():
        table.add_row(name, *(f"{spread[key]:.2f}" for key in ("p50", "first_tenth", "last_tenth")))
    console.print(table)
    steps = 2 * figures["turns"] + 1
    table = Table("stored", "bytes", "per step")
    total = sum(figures["bytes"].values())
    for name, size in [*figures["bytes"].items(), ("in all", total)]:
        table.add_row(name, f"{size:,}", f"{size / steps:,.0f}")
    whole = figures["whole_histories_bytes"]
    table.add_row("whole histories instead", f"{whole:,}", f"{whole / steps:,.0f}")
    console.print(table)


if __name__ == "__main__":
    main()
