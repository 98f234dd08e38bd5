"""Model agents: each request and each tool call a step, tools once, answers judged, failures told as they are."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

from agentq import Limits, ModelAgent, Permanent, ToolContext, Transient, UnknownEffect, idempotency_key, tool
from agentq.agents.model.history import drop_old_tool_results, sliding_window
from agentq.agents.model.toolbox import Toolbox
from agentq.agents.registry import Registry
from agentq.client import Client, Session
from agentq.errors import ConfigError, InvalidState, NotNow, RepairsExhausted
from agentq.payload import decode
from agentq.testing import LocalFleet
from tests.support.hands import Hands

Local = Callable[..., LocalFleet]
Said = list[ModelResponse | Callable[[list[ModelMessage], AgentInfo], ModelResponse] | Exception]


class Script:
    """A model that says one thing after another, and keeps what it was asked."""

    def __init__(self, *said: Any) -> None:
        self.said = list(said)
        self.asked: list[list[ModelMessage]] = []
        self.infos: list[AgentInfo] = []
        self.model = FunctionModel(self.answer, model_name="script")

    def answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        self.asked.append(list(messages))
        self.infos.append(info)
        said = self.said.pop(0)
        if isinstance(said, Exception):
            raise said
        return said if isinstance(said, ModelResponse) else ModelResponse([TextPart(said)])

    @property
    def told(self) -> list[ToolReturnPart]:
        """The tool returns that the latest request showed."""
        return [part for m in self.asked[-1] for part in m.parts if isinstance(part, ToolReturnPart)]


def calls(*wanted: tuple[str, Any], tokens: int = 0) -> ModelResponse:
    parts = [ToolCallPart(name, args, tool_call_id=f"c{n}-{name}") for n, (name, args) in enumerate(wanted)]
    return ModelResponse(parts, usage=RequestUsage(input_tokens=tokens, output_tokens=tokens))


def start(client: Client, tenant: str, prompt: str = "go", agent: str = "desk", **more: Any) -> Session:
    return client.start(agent, tenant=tenant, input={"prompt": prompt}, **more)


def names(session: Session) -> list[str]:
    return [step.name for step in session.steps()]


def test_a_text_answer_is_the_result(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    One request, one step; instructions, fixed and asked for, go with it and are not stored with the messages.
    """
    script = Script("forty-two")

    async def whose(ctx: ToolContext) -> str:
        return f"You work for {ctx.tenant}; they said {ctx.input.prompt!r}."

    ModelAgent("desk", model=script.model, instructions=["Be brief.", whose], registry=registry)
    session = start(client, tenant, "how many?")
    view = local().drain(session)
    assert view.result == "forty-two"
    assert names(session) == ["model"]
    assert script.infos[0].instructions == f"Be brief.\n\nYou work for {tenant}; they said 'how many?'."
    assert script.infos[0].model_settings["max_tokens"] == 4096
    assert script.infos[0].model_settings["max_retries"] == 0
    assert view.input_tokens > 0
    assert view.output_tokens > 0


def test_parallel_calls_are_parallel_steps_and_one_call_is_the_next(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    Calls of one answer are branches and come back in their order; a call that comes alone needs no join.
    """
    script = Script(
        calls(("add", {"a": 1, "b": 2}), ("look_up", {"order": "A1"})), calls(("add", {"a": 5, "b": 5})), "x"
    )

    @tool(idempotent=True)
    def look_up(ctx: ToolContext, order: str) -> dict[str, Any]:
        """Find an order.

        Args:
            order: its number
        """
        return {"order": order, "for": ctx.tenant}

    async def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    ModelAgent("desk", model=script.model, tools=[look_up, add], registry=registry)
    session = start(client, tenant)
    assert local().drain(session).result == "x"
    assert sorted(names(session)[1:3]) == ["tool-add", "tool-look_up"]
    assert names(session)[3:] == ["model", "tool-add", "model"]
    assert [part.content for part in script.told] == [3, {"order": "A1", "for": tenant}, 10]
    shown = script.infos[0].function_tools[0]
    assert shown.description == "Find an order."
    assert shown.parameters_json_schema["properties"] == {"order": {"type": "string", "description": "its number"}}


def test_a_tool_is_called_once_however_often_its_step_runs(
    registry: Registry, client: Client, tenant: str, local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    I5: the attempt dies after the call; the next recalls its result. The key is not made from what the model said.
    """
    done: list[str] = []
    script = Script(calls(("pay", {"order": "A1"})), "paid")

    @tool
    def pay(order: str) -> str:
        """Pay."""
        done.append(idempotency_key())
        return f"receipt {len(done)}"

    ModelAgent("desk", model=script.model, tools=[pay], registry=registry)
    fleet, session = local(), start(client, tenant)
    broke = iter([True])

    def probe(point: str) -> None:
        if point == "effect_stored" and next(broke, False):
            raise Transient("the worker stumbles after the call")

    monkeypatch.setattr("agentq.engine.probe", probe)
    assert fleet.drain(session).result == "paid"
    assert len(done) == 1
    assert script.told[0].content == "receipt 1"
    assert "A1" not in done[0]


class Verdict(BaseModel):
    """What the desk decides."""

    refund: bool
    cents: int = 0


def test_a_typed_result_is_checked_and_fed_back(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    What does not fit comes back to the model with the reason; what fits ends the session.
    """
    script = Script(
        calls(("final_result", {"refund": "perhaps"})),
        "I think so",
        calls(("final_result", {"refund": True, "cents": 5})),
    )
    ModelAgent("desk", model=script.model, output=Verdict, registry=registry)
    session = start(client, tenant)
    assert local().drain(session).result == {"refund": True, "cents": 5}
    assert names(session) == ["model"] * 3
    assert "refund" in str(script.asked[1][-1])
    assert "final_result" in str(script.asked[2][-1])


@pytest.mark.parametrize("output", [int, list[str]])
def test_results_that_are_no_objects(
    registry: Registry, client: Client, tenant: str, local: Local, output: Any
) -> None:
    value: Any = 7 if output is int else ["a"]
    script = Script(calls(("final_result", {"answer": value})))
    ModelAgent("desk", model=script.model, output=output, registry=registry)
    assert local().drain(start(client, tenant)).result == value


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (calls(("nosuch", {})), "there is no tool 'nosuch'; there are: add"),
        (calls(("add", {"a": "x", "b": 1})), "the arguments of add do not fit: a:"),
        (calls(("add", '{"a": 1,')), "the arguments of add do not fit"),
        (calls(("add", "[1]")), "the arguments of add do not fit"),
        (ModelResponse([]), "empty"),
        (ModelResponse([TextPart("  ")]), "empty"),
        (ModelResponse([TextPart("and then")], finish_reason="length"), "cut off"),
    ],
)
def test_an_unusable_answer_is_fed_back_twice_and_then_dead(
    registry: Registry, client: Client, tenant: str, local: Local, bad: ModelResponse, told: str
) -> None:
    """
    Bounded repairs: two in a row, each its own step; after them the session is dead, and no attempt repeats it.
    """

    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    script = Script(*[bad] * 9)
    ModelAgent("desk", model=script.model, tools=[add], registry=registry)
    session = start(client, tenant)
    with pytest.raises(RepairsExhausted):
        local().drain(session)
    assert len(script.asked) == 3
    assert told in str(script.asked[1][-1].parts)
    failure = session.view().failure
    assert failure is not None
    assert failure["kind"] == "semantic"


def test_a_good_answer_forgives_the_bad_ones(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    bad, good = calls(("nosuch", {})), calls(("add", {"a": 1, "b": 1}))
    script = Script(bad, bad, good, bad, bad, "well")
    ModelAgent("desk", model=script.model, tools=[add], registry=registry)
    assert local().drain(start(client, tenant)).result == "well"


def test_valid_calls_go_out_beside_a_wrong_one(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    script = Script(calls(("add", {"a": 1, "b": 1}), ("nosuch", {})), "x")
    ModelAgent("desk", model=script.model, tools=[add], registry=registry)
    assert local().drain(start(client, tenant)).result == "x"
    assert [(part.content if n == 0 else part.outcome) for n, part in enumerate(script.told)] == [2, "retried"]


def test_the_fallback_model_gets_its_turn(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    After the repairs, and after an error that no retry mends; it sees what was said before.
    """
    first, second = Script("", "", ""), Script("from the second")
    ModelAgent("desk", model=first.model, fallbacks=[second.model], registry=registry)
    assert local().drain(start(client, tenant)).result == "from the second"
    assert len(first.asked) == 3
    assert isinstance(second.asked[0][0].parts[0], UserPromptPart)

    refused, third = Script(Permanent("no such model")), Script("from the third")
    ModelAgent("other", model=refused.model, fallbacks=[third.model], registry=registry)
    assert local().drain(start(client, tenant, agent="other")).result == "from the third"


def test_a_transient_failure_of_the_model_is_tried_again(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    script = Script(Transient("overloaded", retry_after_s=30), "better")
    ModelAgent("desk", model=script.model, registry=registry)
    session = start(client, tenant)
    assert local().drain(session).result == "better"
    assert session.steps()[0].attempt == 2


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("error", [Permanent("not your order"), Transient("down"), ValueError("odd")])
def test_a_tool_that_fails_is_told_as_failed(
    registry: Registry, client: Client, tenant: str, local: Local, error: Exception, is_async: bool
) -> None:
    """
    A failed call never looks like a done one: after its attempts the failure stands in the message, as a failure.
    """
    tried: list[int] = []

    def refund(order: str) -> str:
        """Refund."""
        tried.append(1)
        raise error

    async def refund_async(order: str) -> str:
        """Refund."""
        return refund(order)

    used = tool(name="refund", retries=2)(refund_async if is_async else refund)
    script = Script(calls(("refund", {"order": "A1"})), "sorry")
    ModelAgent("desk", model=script.model, tools=[used], registry=registry)
    assert local().drain(start(client, tenant)).result == "sorry"
    [part] = script.told
    assert part.outcome == "failed"
    assert str(error) in part.content
    assert len(tried) == {"Permanent": 1, "Transient": 3, "ValueError": 2}[type(error).__name__]


def test_a_tool_that_must_wait_is_no_failure(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    Held back, it comes back later: the model is told nothing, and no attempt is lost.
    """
    tried: list[int] = []

    @tool(idempotent=True, retries=0)
    def fetch() -> str:
        """Fetch."""
        tried.append(1)
        if len(tried) == 1:
            raise NotNow("the other side is away", delay_s=5)
        return "page"

    script = Script(calls(("fetch", {})), "read")
    ModelAgent("desk", model=script.model, tools=[fetch], registry=registry)
    assert local().drain(start(client, tenant)).result == "read"
    assert script.told[0].content == "page"
    assert len(tried) == 2


def test_a_branch_that_fails_leaves_its_neighbour_alone(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    def bad() -> str:
        """Fail."""
        raise Permanent("no")

    def good() -> str:
        """Work."""
        return "yes"

    script = Script(calls(("bad", {}), ("good", {})), "x")
    ModelAgent("desk", model=script.model, tools=[bad, good], registry=registry)
    local().drain(start(client, tenant))
    assert [part.outcome for part in script.told] == ["failed", "success"]


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_call_whose_outcome_is_unknown_is_not_left_to_the_model(
    registry: Registry, client: Client, tenant: str, local: Local, is_async: bool
) -> None:
    """
    Neither idempotent nor with a check: after a lost answer a person decides, not the model.
    """

    def pay() -> str:
        """Pay."""
        raise TimeoutError("no answer")

    async def pay_async() -> str:
        """Pay."""
        raise TimeoutError("no answer")

    script = Script(calls(("pay", {})), "never said")
    used = tool(name="pay", retries=0)(pay_async if is_async else pay)
    ModelAgent("desk", model=script.model, tools=[used], registry=registry)
    session = start(client, tenant)
    with pytest.raises(UnknownEffect):
        local().drain(session)
    assert len(script.asked) == 1
    assert (session.view().failure or {})["kind"] == "unknown"


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_tool_has_its_own_time(registry: Registry, client: Client, tenant: str, local: Local, is_async: bool) -> None:
    """
    A tool that hangs is given up after its timeout, and the model is told.
    """
    import asyncio

    over = threading.Event()

    @tool(name="slow", timeout=0.05, retries=0, idempotent=True)
    def slow() -> str:
        """Hang."""
        over.wait(20)
        return "late"

    @tool(name="slow", timeout=0.05, retries=0, idempotent=True)
    async def slow_async() -> str:
        """Hang."""
        await asyncio.sleep(20)
        return "late"

    script = Script(calls(("slow", {})), "gave up")
    ModelAgent("desk", model=script.model, tools=[slow_async if is_async else slow], registry=registry)
    assert local().drain(start(client, tenant)).result == "gave up"
    over.set()
    assert script.told[0].outcome == "failed"


def test_a_long_result_is_stored_whole_and_shown_in_part(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    The model sees the beginning and how to read on; the tool for that is shown only then.
    """
    text = "".join(f"line {n}\n" for n in range(5000))

    @tool(idempotent=True)
    def fetch() -> str:
        """Fetch."""
        return text

    script = Script(calls(("fetch", {})), calls(("read_result", {"call": "c0-fetch", "offset": 20_000})), "x")
    ModelAgent("desk", model=script.model, tools=[fetch], registry=registry, result_max_chars=1000)
    session = start(client, tenant)
    assert local().drain(session).result == "x"
    first, second = script.told
    assert first.content.startswith(text[:1000])
    assert len(first.content) < 1300
    assert second.content.startswith(text[20_000:20_100])
    assert [len(info.function_tools) for info in script.infos] == [1, 2, 2]
    kept = sum(len(body) for _, body, _ in client.ledger.messages(_ref(session)))
    assert kept < 15_000


def test_a_result_above_the_payload_limit_is_cut_and_stored(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    The call has happened: its result is stored as far as it goes, never refused afterwards.
    """

    @tool
    def fetch() -> str:
        """Fetch."""
        return "x" * 3_000_000

    script = Script(calls(("fetch", {})), "ok")
    ModelAgent("desk", model=script.model, tools=[fetch], registry=registry)
    assert local().drain(start(client, tenant)).result == "ok"


def test_what_a_step_stores_does_not_grow(
    registry: Registry, client: Client, tenant: str, local: Local, admin: Any
) -> None:
    """
    Each message is stored once, and a checkpoint holds no history.
    """

    def add(a: int) -> int:
        """Add."""
        return a

    script = Script(*[calls(("add", {"a": n})) for n in range(30)], "end")
    ModelAgent("desk", model=script.model, tools=[add], registry=registry)
    session = start(client, tenant)
    assert local().drain(session).result == "end"
    assert len(script.asked[-1]) == 61
    query = "select octet_length(state) from agentq.checkpoint where session_id = %s and state is not null"
    sizes = [row[0] for row in admin.execute(query, (session.id,)).fetchall()]
    assert max(sizes) < 2500
    rows = client.ledger.messages(_ref(session))
    assert [seq for seq, _, _ in rows] == list(range(1, len(rows) + 1))
    assert {by for _, _, by in rows} == {_writer()}
    assert max(len(body) for _, body, _ in rows) < 400


def test_a_history_that_cannot_be_read_is_permanent(
    registry: Registry, client: Client, tenant: str, local: Local, admin: Any
) -> None:
    """
    I10: not a semantic failure, which would be fed back to the model; the writer is named.
    """

    def add(a: int) -> int:
        """Add."""
        return a

    script = Script(calls(("add", {"a": 1})), "never said")
    ModelAgent("desk", model=script.model, tools=[add], registry=registry)
    fleet, session = local(), start(client, tenant)
    fleet.carry_next(tenant)
    admin.execute(
        "update agentq.message set body = %s, written_by = 'pydantic-ai/9.0' where session_id = %s and seq = 1",
        (b'{"kind":"request","parts":[{"part_kind":"from-the-future"}]}', session.id),
    )
    with pytest.raises(Permanent, match=r"message 1 .* pydantic-ai/9\.0"):
        fleet.drain(session)
    assert len(script.asked) == 1


def test_streamed_text_comes_as_events(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    Batched: many pieces of text are few events, and together they are the text.
    """

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> Any:
        for n in range(100):
            yield f"word{n} "

    ModelAgent("desk", model=FunctionModel(stream_function=stream), stream=True, registry=registry)
    session = start(client, tenant)
    result = local().drain(session).result
    texts = [event.data["text"] for event in session.events(5) if event.kind == "text"]
    assert "".join(texts).strip() == result
    assert 1 < len(texts) < 10


class Ticket(BaseModel):
    """An input of its own."""

    number: int
    text: str


def test_an_input_of_its_own(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    script = Script("ok")
    ModelAgent(
        "desk", model=script.model, input=Ticket, prompt=lambda t: f"#{t.number}: {t.text}",
        deps=lambda ctx: ctx.input.number, instructions=lambda ctx: f"deps {ctx.deps}", registry=registry,
    )  # fmt: skip
    session = client.start("desk", tenant=tenant, input=Ticket(number=7, text="broken"), key="k")
    assert client.start("desk", tenant=tenant, input={"text": "broken", "number": 7}, key="k").id == session.id
    with pytest.raises(InvalidState, match="number"):
        client.start("desk", tenant=tenant, input={"text": "x"})
    assert local().drain(session).result == "ok"
    assert script.asked[0][0].parts[0].content == "#7: broken"
    assert script.infos[0].instructions == "deps 7"


@pytest.mark.parametrize(
    "wrong",
    [
        {"tools": ["text"]},
        {"tools": [len]},
        {"input": Ticket},
        {"max_tokens": 0},
        {"tools": [tool(name="a b")(lambda: None)]},
    ],
)
def test_what_contradicts_itself_is_refused_at_once(registry: Registry, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ModelAgent("desk", model="test", registry=registry, **wrong)


def test_views_keep_calls_and_returns_together() -> None:
    """
    A shortened history shows no return without its call, and no call without its return.
    """
    history: list[ModelMessage] = [ModelRequest([UserPromptPart("go")])]
    for n in range(20):
        history.append(ModelResponse([ToolCallPart("t", {"n": n}, tool_call_id=str(n))]))
        history.append(ModelRequest([ToolReturnPart("t", "x" * 200, tool_call_id=str(n))]))
    for keep in (4, 5, 6, 7):
        shown = sliding_window(keep)(history)
        asked = [p.tool_call_id for m in shown for p in m.parts if isinstance(p, ToolCallPart)]
        told = [p.tool_call_id for m in shown for p in m.parts if isinstance(p, ToolReturnPart)]
        assert asked == told != []
        assert shown[0] is history[0]
    shorter = drop_old_tool_results(2)(history)
    lengths = [len(p.content) for m in shorter for p in m.parts if isinstance(p, ToolReturnPart)]
    assert lengths[-2:] == [200, 200]
    assert max(lengths[:-2]) < 80
    assert len(shorter) == len(history)


def test_agentq_itself_does_not_need_pydantic_ai() -> None:
    code = "import agentq, sys; agentq.tool, agentq.Limits, agentq.Client; assert 'pydantic_ai' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def _ref(session: Session) -> Any:
    import uuid

    from agentq.step import StepRef

    return StepRef(session.tenant, uuid.UUID(session.id), uuid.UUID(session.id))


def _writer() -> str:
    from agentq.agents.model.history import WRITER

    return WRITER


@pytest.fixture
def priced(client: Client) -> Iterator[str]:
    """The script's model with a price, which is the whole fleet's, and gone again afterwards."""
    client.budgets.set_price("function:script", input_usd="2", output_usd="8", reason="test")
    yield "function:script"
    client.budgets.remove_price("function:script", reason="test")


@pytest.mark.usefixtures("priced")
def test_a_choice_is_kept_with_what_there_was_to_choose_from(
    registry: Registry, client: Client, tenant: str, local: Local, hands: Hands
) -> None:
    """
    Each tool as it was described, the calls that were wanted, those that could not be made, the limits in force; and
    of the request its tokens by kind and the version of the price.
    """
    usage = RequestUsage(
        input_tokens=900,
        output_tokens=100,
        cache_read_tokens=64,
        cache_write_tokens=8,
        details={"reasoning_tokens": 40},
    )
    wanted = [ToolCallPart("add", {"a": 1, "b": 2}), ToolCallPart("add", {"a": 3, "b": 4}), ToolCallPart("destroy", {})]
    script = Script(ModelResponse([TextPart("Two sums are needed."), *wanted], usage=usage), "x")

    async def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    def unused() -> str:
        """Never called."""
        return ""

    limits = Limits(steps=30, cost_usd="0.40")
    ModelAgent("desk", model=script.model, tools=[add, unused], limits=limits, registry=registry)
    session = start(client, tenant)
    assert local().drain(session).result == "x"
    [made] = hands.rows("select * from agentq.decision where session_id = %s", session.id)
    options = decode(bytes(made["options"]))
    versions = {option["tool"]: option.pop("version", None) for option in options if option != "answer"}
    assert options == [{"tool": "add", "calls": 2}, {"tool": "unused"}, {"tool": "destroy", "refused": 1}, "answer"]
    assert versions["add"] != versions["unused"]
    assert len(versions["add"] or "") == 8
    assert versions["destroy"] is None
    assert (made["picked"], made["why"]) == ("add, add", "Two sums are needed.")
    assert made["limits"]["steps"] == "1 of 30"
    assert made["limits"]["cost_micros"].endswith(" of 400000")
    assert made["limits"]["model_calls"] == "1 of 100"
    detail = hands.rows(
        "select detail from agentq.trace where session_id = %s and kind = 'model' order by started_at", session.id
    )[0]["detail"]
    assert (detail["cached_tokens"], detail["cache_write_tokens"], detail["reasoning_tokens"]) == (64, 8, 40)
    assert detail["price_version"]
    [charged, _] = client.budgets.ledger(tenant, session.id)
    assert charged.price_version == detail["price_version"]


def test_another_description_is_another_version() -> None:
    """
    A model that chose badly may have been told something else than today.
    """

    def look(order: str) -> str:
        """Find an order."""
        return order

    def versions() -> str:
        [entry] = [entry for entry in Toolbox([look]) if entry.name == "look"]
        return str(entry.version)

    before = versions()
    assert versions() == before
    look.__doc__ = "Find an order, or say that there is none."
    assert versions() != before
