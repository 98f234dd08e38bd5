"""ctx.memory: committed with its step or not at all, read by it at once, written once whatever is repeated."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from pydantic import BaseModel

from agentq import (
    Agent,
    AsyncContext,
    Context,
    Done,
    Embedder,
    InvalidInput,
    MemoryConflict,
    MemoryTooLarge,
    ModelAgent,
    Next,
    Permanent,
    ToolContext,
    Transient,
    UnknownPrice,
    chunks,
    effect,
    memory_tools,
    tool,
)
from agentq.agents.embedding import load_embedder
from agentq.agents.registry import Registry
from agentq.client import Client
from agentq.errors import ConfigError
from agentq.settings import Settings
from agentq.store.budgets import Budgets
from agentq.testing import LocalFleet
from tests.agents.test_model import Script, calls
from tests.store.test_memory import WHO, senses  # noqa: F401

Local = Callable[..., LocalFleet]


class Empty(BaseModel):
    """No state to speak of."""


def one_step(registry: Registry, work: Callable[[Context], Any], **how: Any) -> None:
    """An agent of one step."""
    agent = Agent("keeper", state=Empty, registry=registry)

    @agent.step(**how)
    def keep(state: Empty, ctx: Context) -> Done:
        return Done(work(ctx))


def run(client: Client, local: Local, tenant: str, agent: str = "keeper") -> Any:
    return local().drain(client.start(agent, tenant=tenant, input={})).result


def test_a_step_reads_what_it_wrote_and_nobody_else_does(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    Got, listed and searched at once, in its newest version; outside, only once the step is settled.
    """
    client.memory.put(tenant, "shop", "old", "oolong from before")
    client.memory.put(tenant, "shop", "tea", "first oolong")

    def work(ctx: Context) -> Any:
        kept = ctx.memory.put("shop", "tea", "second oolong", ttl="1d")
        assert (kept.version, kept.value, kept.session_id) == (2, "second oolong", ctx._attempt.claim.ref.session_id)
        assert ctx.memory.put("shop", "tea", "third oolong", if_version=2).version == 3
        assert ctx.memory.delete("shop", "old") is True
        assert ctx.memory.delete("shop", "never") is False
        assert ctx.memory.get("shop", "old") is None
        assert ctx.memory.get("shop", "tea").value == "third oolong"  # type: ignore[union-attr]
        assert [memory.value for memory in ctx.memory.list("shop")] == ["third oolong"]
        assert [memory.value for memory in ctx.memory.search("shop", "oolong")] == ["third oolong"]
        assert ctx.memory.search((), "first") == []
        outside = {memory.key: memory.version for memory in client.memory.ls(tenant)}
        assert outside == {"old": 1, "tea": 1}
        return "kept"

    one_step(registry, work)
    assert run(client, local, tenant) == "kept"
    assert {memory.key: memory.version for memory in client.memory.ls(tenant)} == {"tea": 3}
    versions = client.memory.versions(tenant, "shop", "tea")
    assert [(row.value, row.agent, row.written_by) for row in versions][:2] == [
        ("third oolong", "keeper", "keep"),
        ("second oolong", "keeper", "keep"),
    ]


def test_an_attempt_that_fails_leaves_no_memory(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    I2: three attempts wrote, one was settled; its memory says which it was.
    """

    def work(ctx: Context) -> Any:
        ctx.memory.put("shop", "tea", ctx.attempt)
        assert client.memory.get(tenant, "shop", "tea") is None
        if ctx.attempt < 3:
            raise Transient("after the write")

    one_step(registry, work, retries=3)
    run(client, local, tenant)
    [only] = client.memory.versions(tenant, "shop", "tea")
    assert (only.version, only.value, only.attempt) == (1, 3, 3)


def test_who_acted_on_an_old_memory_runs_again(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    Somebody writes between the step's look and its settlement: nothing of the step is committed, it runs again and
    sees the other's value.
    """
    client.memory.put(tenant, "shop", "count", 10)
    seen: list[int] = []

    def work(ctx: Context) -> Any:
        found = ctx.memory.get("shop", "count")
        assert found is not None
        seen.append(found.value)
        ctx.memory.put("shop", "count", found.value + 1, if_version=found.version)
        if ctx.attempt == 1:
            client.memory.put(tenant, "shop", "count", 20)
        return found.value

    one_step(registry, work, retries=2)
    assert run(client, local, tenant) == 20
    assert seen == [10, 20]
    assert client.memory.get(tenant, "shop", "count").value == 21  # type: ignore[union-attr]


def test_a_conflict_undoes_the_steps_own_writes(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    What a step wrote to the same Postgres in `ctx.transaction()` is of the first attempt's view, and goes with it.
    """
    client.memory.put(tenant, "shop", "count", 1)

    def work(ctx: Context) -> Any:
        found = ctx.memory.get("shop", "count")
        assert found is not None
        ctx.memory.put("shop", "count", found.value + 1, if_version=found.version)
        with ctx.transaction() as connection:
            connection.execute(
                "insert into agentq.operator_action (operator, tenant, action, target, reason)"
                " values ('step', %s, 'seen', %s, 'a test')",
                (tenant, str(found.value)),
            )
        if ctx.attempt == 1:
            client.memory.put(tenant, "shop", "count", 20)

    one_step(registry, work, retries=2)
    run(client, local, tenant)
    assert client.memory.get(tenant, "shop", "count").value == 21  # type: ignore[union-attr]
    assert [row.target for row in client.operators.actions(tenant=tenant, operator="step")] == ["20"]


def test_a_conflict_that_shows_at_once_may_be_caught(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    It says what is there, so that the step can look and write again.
    """
    client.memory.put(tenant, "shop", "tea", 1)

    def work(ctx: Context) -> Any:
        with pytest.raises(MemoryConflict) as raised:
            ctx.memory.put("shop", "tea", 2, if_version=0)
        assert (raised.value.expected, raised.value.found) == (0, 1)
        ctx.memory.put("shop", "tea", 2, if_version=raised.value.found)

    one_step(registry, work, retries=0)
    run(client, local, tenant)
    assert client.memory.get(tenant, "shop", "tea").version == 2  # type: ignore[union-attr]


def test_a_replay_does_not_write_twice(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    The replayed step, direct or within an effect, writes from the same places: its memories are there already, also
    when somebody has written newer ones since.
    """
    agent = Agent("keeper", state=Empty, registry=registry)
    ran: list[str] = []

    @agent.step(start=True)
    def keep(state: Empty, ctx: Context) -> Next:
        ran.append("keep")
        ctx.memory.put("shop", "tea", "direct")
        ctx.memory.delete("shop", "old")

        @effect(idempotent=True)
        def note() -> None:
            ctx.memory.put("shop", "note", "within")

        ctx.call(note)
        return Next(end)

    @agent.step
    def end(state: Empty, ctx: Context) -> Done:
        return Done()

    client.memory.put(tenant, "shop", "old", 1)
    fleet = local()
    session = client.start("keeper", tenant=tenant, input={})
    fleet.drain(session)
    client.memory.put(tenant, "shop", "tea", "newer")
    client.memory.put(tenant, "shop", "old", "back")
    session.replay("again", from_step="keep")
    fleet.drain(session)
    assert ran == ["keep", "keep"]
    assert [row.value for row in client.memory.versions(tenant, "shop", "tea")] == ["newer", "direct"]
    assert [row.value for row in client.memory.versions(tenant, "shop", "note")] == ["within"]
    assert client.memory.get(tenant, "shop", "old") is not None


def test_a_dry_run_writes_nothing(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    A fork that only recalls reads what it would have written, and leaves the memory as it is.
    """
    one_step(registry, lambda ctx: ctx.memory.put("shop", ctx.session_id, 1) and len(ctx.memory.list("shop")))
    fleet = local()
    session = client.start("keeper", tenant=tenant, input={})
    assert fleet.drain(session).result == 1
    fork = session.fork("look", from_step="keep", dry_effects=True)
    assert fleet.drain(fork).result == 2
    assert len(client.memory.ls(tenant, "shop")) == 1


def test_an_effects_memory_is_written_with_the_effect(
    registry: Registry, client: Client, tenant: str, local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The attempt dies after the effect is recorded: the next one recalls it instead of calling it, and the memory is
    there. It dies before that: it is called again, and writes the same version.
    """
    called: list[int] = []

    @effect(idempotent=True)
    def note(ctx: Context) -> str:
        called.append(ctx.attempt)
        ctx.memory.put("shop", "a", "noted")
        return f"version {ctx.memory.put('shop', 'b', 'noted', if_version=0).version}"

    def work(ctx: Context) -> Any:
        held = ctx
        return ctx.call(effect(idempotent=True)(lambda: note(held)))

    died: list[str] = []

    def probe(point: str) -> None:
        if point in ("effect_called", "effect_stored") and point not in died:
            died.append(point)
            raise Transient(point)

    monkeypatch.setattr("agentq.engine.probe", probe)
    one_step(registry, work, retries=5)
    assert run(client, local, tenant) == "version 1"
    assert (died, called) == (["effect_called", "effect_stored"], [1, 2])
    for key in ("a", "b"):
        [only] = client.memory.versions(tenant, "shop", key)
        assert (only.version, only.attempt) == (1, 1)


def test_the_twin_for_asyncio(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    The same, awaited; writes side by side have their places in the order of the code.
    """
    agent = Agent("keeper", state=Empty, registry=registry)

    @agent.step
    async def keep(state: Empty, ctx: AsyncContext) -> Done:
        await asyncio.gather(*[ctx.memory.put(("shop", "a"), f"k{n}", n) for n in range(5)])
        assert (await ctx.memory.get("shop/a", "k3")).value == 3  # type: ignore[union-attr]
        assert await ctx.memory.delete("shop/a", "k4")
        assert len(await ctx.memory.list("shop")) == 4
        assert [m.key for m in await ctx.memory.search("shop", "k2")] == ["k2"]
        return Done([write.op for write in ctx.memory._memory.writes()])

    places = run(client, local, tenant)
    assert sorted(place.rpartition(":")[2] for place in places) == ["m1", "m2", "m3", "m4", "m5", "m6"]
    assert client.memory.namespaces(tenant) == [("shop/a", 4)]


@pytest.mark.parametrize(
    "call",
    [
        lambda memory: memory.put("", "k", 1),
        lambda memory: memory.put("a//b", "k", 1),
        lambda memory: memory.put(("a/b",), "k", 1),
        lambda memory: memory.put(("a", 7), "k", 1),
        lambda memory: memory.put(" a", "k", 1),
        lambda memory: memory.put("a\nb", "k", 1),
        lambda memory: memory.put("/".join("abcdefghi"), "k", 1),
        lambda memory: memory.put("x" * 401, "k", 1),
        lambda memory: memory.put("a", "", 1),
        lambda memory: memory.put("a", "k" * 201, 1),
        lambda memory: memory.put("a", "k\0", 1),
        lambda memory: memory.put("a", "k", None),
        lambda memory: memory.put("a", "k", {"b": 1}, index=["c"]),
        lambda memory: memory.put("a", "k", "text", index=["c"]),
        lambda memory: memory.put("a", "k", 1, ttl=0),
        lambda memory: memory.put("a", "k", 1, ttl="1000000d"),
        lambda memory: memory.put("a", "k", 1, if_version=-1),
        lambda memory: memory.put("a", "k", 1, if_version=True),
        lambda memory: memory.search("a", "q", limit=0),
        lambda memory: memory.list("a", limit=1001),
    ],
)
def test_bad_input_is_refused(
    registry: Registry, client: Client, tenant: str, local: Local, call: Callable[[Any], Any]
) -> None:
    """
    In words that say what is wrong, and nothing is written.
    """

    def work(ctx: Context) -> Any:
        with pytest.raises((InvalidInput, ConfigError)):
            call(ctx.memory)

    one_step(registry, work, retries=0)
    run(client, local, tenant)
    assert client.memory.ls(tenant) == []


def test_what_is_too_large_is_refused_with_a_way_out(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    The error names the setting and `chunks`, whose parts fit and lose nothing.
    """
    text = "\n\n".join(f"Paragraph {n}. " + "word " * 100 for n in range(200))

    def work(ctx: Context) -> Any:
        with pytest.raises(MemoryTooLarge, match=r"AGENTQ_MEMORY_MAX_BYTES.*chunks"):
            ctx.memory.put("docs", "all", text)
        parts = chunks(text, 2000)
        assert all(len(part) <= 2000 for part in parts)
        assert "".join(parts).replace(" ", "").replace("\n", "") == text.replace(" ", "").replace("\n", "")
        for number, part in enumerate(parts[:100]):
            ctx.memory.put("docs", f"part-{number}", part)
        for number in range(100 - min(len(parts), 100)):
            ctx.memory.put("docs", f"more-{number}", "x")
        with pytest.raises(InvalidInput, match="at most"):
            ctx.memory.put("docs", "one more", "x")
        return len(parts)

    one_step(registry, work, retries=0)
    assert run(client, local, tenant) > 40


# ── by meaning ───────────────────────────────────────────────────────────────


@pytest.fixture
def knowing(stack: Any, settings: Settings, registry: Registry) -> Iterator[Callable[[str], Client]]:
    """Makes a client whose settings, and those of its fleet, name an embedder."""
    with ExitStack() as opened:

        def make(name: str) -> Client:
            chosen = settings.model_copy(update={"memory_embedder": f"tests.support.embedders:{name}"})
            return opened.enter_context(Client(chosen, registry))

        yield make


def test_a_step_finds_by_meaning_and_its_budget_pays(
    registry: Registry, tenant: str, knowing: Callable[[str], Client]
) -> None:
    """
    Each call of the embedder is reserved and charged like a model's; what is not committed is found by meaning too.
    """
    client = knowing("priced")
    client.budgets.set_price("test:senses", input_usd="1", output_usd="0", reason="a test")
    client.memory.put(tenant, "c", "a", "prefers oolong")

    def work(ctx: Context) -> Any:
        ctx.memory.put("c", "b", "owns a vehicle")
        drive, tea = ctx.memory.search("c", "drive"), ctx.memory.search("c", "tea")
        assert (drive[0].found_by, tea[0].found_by) == ("meaning", "meaning")
        return [drive[0].key, tea[0].key]

    one_step(registry, work, retries=0)
    session = client.start("keeper", tenant=tenant, input={})
    with LocalFleet(client) as fleet:
        assert fleet.drain(session).result == ["b", "a"]
        rows = Budgets(fleet.store).ledger(tenant, uuid.UUID(session.id))
    assert [(row.model, row.state) for row in rows] == [("senses", "charged")] * 3
    assert session.view().cost_usd > 0
    assert client.memory.search(tenant, "c", "drive")[0].found_by == "meaning"
    assert client.memory.search(tenant, "c", "drive", words=True) == []


def test_an_embedder_without_a_price_is_not_asked(
    registry: Registry, tenant: str, knowing: Callable[[str], Client]
) -> None:
    """
    As any model whose price nobody knows: the write is refused, not free.
    """
    client = knowing("unpriced")
    one_step(registry, lambda ctx: ctx.memory.put("c", "a", "tea"), retries=0)
    with LocalFleet(client) as fleet, pytest.raises(UnknownPrice):
        fleet.drain(client.start("keeper", tenant=tenant, input={}))
    assert client.memory.ls(tenant) == []


@pytest.mark.parametrize("name", ["nothing", "tests.support.nothing:free", "tests.support.embedders:no_embedder"])
def test_a_wrong_embedder_is_said_at_once(name: str) -> None:
    with pytest.raises(ConfigError, match="memory_embedder"):
        load_embedder(name)


@pytest.mark.parametrize(
    "vectors", [[], [[]], [[0.0, 0.0]], [[float("nan")]], [["a"]], [[1.0], [2.0]], None, [[1.0] * 2001]]
)
def test_what_is_no_vector_is_refused(vectors: Any) -> None:
    with pytest.raises(Permanent, match="wrong"):
        Embedder("wrong", lambda texts, kind: vectors).embed("text", "query")


def test_pydantic_ais_embedders_are_used() -> None:
    """
    Any that it knows, on the process's loop.
    """
    from pydantic_ai.embeddings import TestEmbeddingModel

    embedder = Embedder.of(TestEmbeddingModel())
    vector = embedder.embed("text", "document")
    assert (embedder.model, embedder.mark(vector), len(vector)) == ("test:test", "test:test@8", 8)


# ── tools for models ─────────────────────────────────────────────────────────


class Visit(BaseModel):
    """Who writes, and what."""

    customer: str
    prompt: str


def test_a_model_remembers_and_another_session_recalls(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    Under the customer that the code knows; a later fact of the same topic replaces the one before; another customer
    has none of it.
    """
    script = Script(
        calls(("remember", {"topic": "Favourite Tea!", "fact": "Ada drinks oolong, never black tea."})),
        calls(("remember", {"topic": "favourite tea", "fact": "Ada drinks rooibos now."})),
        "noted",
        calls(("recall", {"question": "which tea does she drink"})),
        "rooibos",
        calls(("recall", {"question": "which tea does she drink"})),
        "who knows",
    )
    tools = memory_tools(lambda ctx: ("customers", ctx.input.customer))
    ModelAgent("desk", model=script.model, input=Visit, tools=tools, registry=registry)
    fleet = local()

    def visit(customer: str) -> Any:
        return fleet.drain(client.start("desk", tenant=tenant, input={"customer": customer, "prompt": "hello"})).result

    assert visit("ada") == "noted"
    assert [part.content for part in script.told] == [
        "Remembered.",
        "Remembered, in place of what was known of this topic.",
    ]
    assert visit("ada") == "rooibos"
    told = script.told[0].content
    assert [fact["fact"] for fact in told["facts"]] == ["Ada drinks rooibos now."]
    assert "not instructions" in told["note"]
    assert visit("bob") == "who knows"
    assert "facts" not in script.told[0].content
    [memory] = client.memory.ls(tenant)
    assert (memory.namespace, memory.key, memory.version) == ("customers/ada", "favourite-tea", 2)
    assert (memory.agent, memory.written_by) == ("desk", "tool-remember")


def test_a_tool_may_keep_what_it_likes(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    `ctx.memory` of a tool is the tenant's; for an `async def` tool it is awaited.
    """

    @tool(idempotent=True)
    async def note(ctx: ToolContext, text: str) -> int:
        """Note."""
        return (await ctx.memory.put("notes", "latest", text)).version

    @tool(idempotent=True)
    def count(ctx: ToolContext) -> int:
        """Count."""
        return len(ctx.memory.list("notes"))

    script = Script(calls(("note", {"text": "one"})), calls(("count", {})), "done")
    ModelAgent("desk", model=script.model, tools=[note, count], registry=registry)
    local().drain(client.start("desk", tenant=tenant, input={"prompt": "go"}))
    assert [part.content for part in script.told] == [1, 1]
