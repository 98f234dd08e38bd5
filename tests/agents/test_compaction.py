"""Compaction: a long history is shown short, stored whole, and read again exactly as it was shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
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

from agentq import (
    Breaker,
    Compaction,
    Limits,
    ModelAgent,
    Permanent,
    Price,
    Transient,
    drop_old_tool_results,
    sliding_window,
    tool,
)
from agentq.agents.model.compaction import parted
from agentq.agents.model.history import COMPACTION, read, read_shown, read_whole
from agentq.agents.registry import Registry
from agentq.client import Client, Session
from agentq.errors import ConfigError
from agentq.testing import LocalFleet
from tests.agents.test_model import start
from tests.support.hands import Hands

Local = Callable[..., LocalFleet]
# Of requests with a limit of 1,500, as guessed here: the offline model counts words, and one more answer comes on top.
BOUND = 2200
PAGE = "A page of text that the tool found. " * 20


class Talker:
    """A model that calls a tool `turns` times, each with another number, and keeps what it was shown."""

    def __init__(self, turns: int) -> None:
        self.turns = turns
        self.count = 0
        self.shown: list[list[ModelMessage]] = []
        self.summaries: list[str] = []
        self.errors: list[Exception] = []
        self.model = FunctionModel(self.answer, model_name="talker")

    def answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if not info.function_tools:
            self.summaries.append(str(messages[0].parts[0].content))  # type: ignore[union-attr]
            if self.errors:
                raise self.errors.pop(0)
            return ModelResponse([TextPart(f"summary {len(self.summaries)}")])
        self.shown.append(list(messages))
        self.count += 1
        if self.count > self.turns:
            return ModelResponse([TextPart("done")])
        return ModelResponse([ToolCallPart("look", {"n": self.count}, tool_call_id=f"c{self.count}")])


@tool(idempotent=True)
def look(n: int) -> str:
    """Look."""
    return f"{n}: {PAGE}"


SHORT = Compaction(above_tokens=1500, by=(drop_old_tool_results(3), sliding_window(24)))


def talk(
    registry: Registry, client: Client, local: Local, tenant: str, turns: int = 20, **how: Any
) -> tuple[Talker, Session, LocalFleet]:
    """A long session, run to its end."""
    talker = Talker(turns)
    given: dict[str, Any] = {"breaker": Breaker(acceleration=0), "limits": Limits(model_calls=200, tool_calls=200)}
    ModelAgent("desk", model=talker.model, tools=[look], registry=registry, **given | how)
    fleet = local()
    session = start(client, tenant, "the very first words")
    assert fleet.drain(session).result == "done"
    return talker, session, fleet


def rows(hands: Hands, session: Session) -> list[tuple[int, bytes, str]]:
    found = hands.rows(
        "select seq, body, written_by from agentq.message where session_id = %s order by seq", session.id
    )
    return [(row["seq"], bytes(row["body"]), row["written_by"]) for row in found]


def tokens(messages: list[ModelMessage]) -> int:
    from agentq.agents.model.request import estimate_messages

    return estimate_messages(messages)


def test_a_long_history_is_shown_short_and_stored_whole(
    registry: Registry, client: Client, tenant: str, local: Local, hands: Hands
) -> None:
    """
    Compaction is a step of its own, between model steps; no request goes far beyond the limit, none parts a call
    from its return, and all messages are still there.
    """
    talker, session, _ = talk(registry, client, local, tenant, compaction=SHORT)
    names = [step.name for step in session.steps()]
    assert names.count("compact") >= 2
    assert all(names[n + 1] == "model" for n, name in enumerate(names) if name == "compact")
    assert max(map(tokens, talker.shown)) <= BOUND
    assert all(parted(messages) is None for messages in talker.shown)
    assert all("the very first words" in str(messages[0].parts[0]) for messages in talker.shown)
    stored = rows(hands, session)
    whole = read_whole(stored)
    returns = [p for m in whole for p in m.parts if isinstance(p, ToolReturnPart)]
    assert [part.content for part in returns] == [look(n) for n in range(1, 21)]
    records = [json.loads(body)["compaction"] for _, body, by in stored if by == COMPACTION]
    assert all(record["tokens"][1] < record["tokens"][0] for record in records)
    assert records[0]["by"] == ["drop_old_tool_results(3)"]
    assert records[-1]["by"][:2] == ["drop_old_tool_results(3)", "sliding_window(24)"]


def test_it_is_read_as_it_was_shown(
    registry: Registry, client: Client, tenant: str, local: Local, hands: Hands
) -> None:
    """
    At every turn the stored rows until then give the very messages that the model was shown, hooks not asked again.
    """
    asked: list[int] = []

    def latest(history: list[ModelMessage]) -> list[ModelMessage]:
        asked.append(len(history))
        return sliding_window(4)(history)

    compaction = Compaction(above_tokens=1500, by=latest)
    talker, session, _ = talk(registry, client, local, tenant, compaction=compaction)
    stored = rows(hands, session)
    steps = {step.step_id: step for step in session.steps()}
    answers = 0
    for number, (_, _, by) in enumerate(stored):
        if by == COMPACTION or not isinstance(read_whole(stored[number : number + 1])[0], ModelResponse):
            continue
        then = read(stored[:number])
        assert _plain(then) == _plain(talker.shown[answers])
        answers += 1
    assert answers == len(talker.shown) == 21
    assert len(asked) == sum(step.name == "compact" for step in steps.values())


def _plain(messages: list[ModelMessage]) -> list[Any]:
    def facts(part: Any) -> Any:
        return type(part).__name__, getattr(part, "content", None), getattr(part, "tool_call_id", None)

    return [[facts(part) for part in message.parts] for message in messages]


def test_bytes_grow_with_the_messages_alone(
    registry: Registry, client: Client, tenant: str, local: Local, hands: Hands
) -> None:
    """
    The second half of a long session stores no more than the first: records do not grow with it.
    """
    _, session, _ = talk(registry, client, local, tenant, turns=60, compaction=Compaction(above_tokens=1500))
    stored = [(len(body), by) for _, body, by in rows(hands, session)]
    half = len(stored) // 2
    first, second = (sum(size for size, _ in part) for part in (stored[:half], stored[half:]))
    assert second < first * 1.25
    records = [size for size, by in stored if by == COMPACTION]
    assert len(records) > 4
    assert records[-1] < records[1] * 1.5


def test_a_replay_shows_what_was_shown(registry: Registry, client: Client, tenant: str, local: Local) -> None:
    """
    From before a compaction the history is whole again; from after it, short as it was.
    """
    talker, session, fleet = talk(registry, client, local, tenant, compaction=Compaction(above_tokens=1500))
    steps = session.steps()
    first = next(n for n, step in enumerate(steps) if step.name == "compact")
    after, before = steps[first + 1], steps[first - 2]
    was_after = talker.shown[sum(step.name == "model" for step in steps[: first + 1]) - 1]
    was_before = talker.shown[sum(step.name == "model" for step in steps[: first - 2])]
    for step, was in ((after, was_after), (before, was_before)):
        talker.shown.clear()
        talker.count = 100  # it answers at once
        session.replay("again", from_step=str(step.step_id))
        assert fleet.drain(session).result == "done"
        assert _plain(talker.shown[0]) == _plain(was)


def test_a_model_sums_up_what_is_no_longer_shown(
    registry: Registry, client: Client, tenant: str, local: Local, hands: Hands
) -> None:
    """
    As a call of its own, counted and paid for; each summary is made of the one before and what left since, and only
    the latest is shown.
    """
    compaction = Compaction(above_tokens=1500, by=sliding_window(4), summary=True)
    talker, session, _ = talk(registry, client, local, tenant, compaction=compaction, price=Price(1, 1))
    made = len(talker.summaries)
    assert made >= 2
    assert "look returns: 1: A page" in talker.summaries[0]
    assert "Earlier: summary 1" in talker.summaries[1]
    assert "the very first words" not in talker.summaries[1]
    last = talker.shown[-1][0]
    told = [str(part.content) for part in last.parts if isinstance(part, UserPromptPart)]
    assert told[0] == "the very first words"
    assert [text.rpartition("\n")[2] for text in told[1:]] == [f"summary {made}"]
    calls = hands.rows("select from agentq.reservation where state = 'charged'")
    assert len(calls) == made + len(talker.shown)
    spans = hands.rows("select name from agentq.trace where session_id = %s and kind = 'compaction'", session.id)
    assert len(spans) == made
    assert read_shown(rows(hands, session)).summary == f"summary {made}"


@pytest.mark.parametrize("error", [Permanent("no"), Transient("slow")], ids=["permanent", "transient"])
def test_without_its_summary_a_session_goes_on(
    registry: Registry, client: Client, tenant: str, local: Local, error: Exception
) -> None:
    """
    A summary is worth no session: where the model gives none, also in the last attempt, the history is made short
    without.
    """
    talker = Talker(20)
    talker.errors = [error] * 100
    ModelAgent(
        "desk", model=talker.model, tools=[look], registry=registry, breaker=Breaker(acceleration=0), retries=1,
        compaction=Compaction(above_tokens=1500, by=sliding_window(4), summary=True),
    )  # fmt: skip
    session = start(client, tenant)
    assert local().drain(session).result == "done"
    tries = {step.attempt for step in session.steps() if step.name == "compact"}
    assert tries == {2 if isinstance(error, Transient) else 1}
    assert max(map(tokens, talker.shown)) <= BOUND


def test_a_hook_that_parts_a_call_from_its_return_is_refused(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    The session dies with the hook's name, instead of at the provider with a riddle.
    """

    def careless(history: list[ModelMessage]) -> list[ModelMessage]:
        return [history[0], *history[2:]]

    with pytest.raises(Permanent, match=r"careless.*without its call"):
        talk(registry, client, local, tenant, compaction=Compaction(above_tokens=500, by=careless))


def test_what_cannot_be_made_short_is_not_tried_for_ever(
    registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    A first request above the limit stays; the next try is due when the history has grown by a quarter.
    """
    talker = Talker(8)
    ModelAgent(
        "desk", model=talker.model, tools=[look], registry=registry, breaker=Breaker(acceleration=0),
        compaction=Compaction(above_tokens=500),
    )  # fmt: skip
    session = start(client, tenant, "many words " * 2000)
    assert local().drain(session).result == "done"
    assert [step.name for step in session.steps()].count("compact") <= 3


def test_views_and_hooks_are_checked_at_once() -> None:
    for wrong in ({"above_tokens": 1}, {"summary_tokens": 1}, {"by": ()}, {"by": (1,)}):
        with pytest.raises(ConfigError):
            Compaction(**wrong)  # type: ignore[arg-type]


def test_a_request_keeps_its_own_words_when_its_results_are_dropped() -> None:
    """
    Parts that follow tool returns stay; what a hook changes is stored as it is shown, the rest by its number.
    """
    history: list[ModelMessage] = [ModelRequest([UserPromptPart("go")])]
    for n in range(4):
        history.append(ModelResponse([ToolCallPart("t", {"n": n}, tool_call_id=str(n))]))
        history.append(ModelRequest([ToolReturnPart("t", "x" * 200, tool_call_id=str(n)), UserPromptPart(f"note {n}")]))
    from agentq.agents.model.history import packed, to_store

    stored = [(n + 1, json.dumps(to_store(m)).encode(), "me") for n, m in enumerate(history)]
    shown = read_shown(stored)
    sources = shown.sources_of(drop_old_tool_results(1)(shown.history))
    shows = packed(sources)
    assert [show if isinstance(show, list) else "new" for show in shows] == [
        [1, 2], "new", [4, 4], "new", [6, 6], "new", [8, 9],
    ]  # fmt: skip
    record = json.dumps({"compaction": {"shows": shows}}).encode()
    again = read_shown([*stored, (10, record, COMPACTION)])
    assert [len(str(p.content)) < 100 for m in again.history for p in m.parts if isinstance(p, ToolReturnPart)] == [
        True, True, True, False,
    ]  # fmt: skip
    assert [p.content for m in again.history for p in m.parts if isinstance(p, UserPromptPart)] == [
        "go", "note 0", "note 1", "note 2", "note 3",
    ]  # fmt: skip
    assert not again.counted
    with pytest.raises(Permanent, match="cannot be read"):
        read([*stored, (10, b'{"compaction": {"shows": [[1, "x"]]}}', COMPACTION)])


def test_parallel_calls_stay_together(
    registry: Registry, client: Client, tenant: str, local: Local, hands: Hands
) -> None:
    """
    Each of an answer's calls appends its own return; they are one message, kept or dropped as one.
    """
    turns, shown = 12, []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        shown.append(list(messages))
        if len(shown) > turns:
            return ModelResponse([TextPart("done")])
        ids = [f"c{len(shown)}-{n}" for n in range(3)]
        numbers = range(3 * len(shown), 3 * len(shown) + 3)
        return ModelResponse(
            [ToolCallPart("look", {"n": n}, tool_call_id=call) for n, call in zip(numbers, ids, strict=True)]
        )

    ModelAgent(
        "desk", model=FunctionModel(answer, model_name="many"), tools=[look], registry=registry,
        compaction=Compaction(above_tokens=2000, by=(drop_old_tool_results(4), sliding_window(6))),
        breaker=Breaker(acceleration=0), limits=Limits(model_calls=50, tool_calls=100),
    )  # fmt: skip
    session = start(client, tenant)
    assert local().drain(session).result == "done"
    assert [step.name for step in session.steps()].count("compact") >= 2
    assert all(parted(messages) is None for messages in shown)
    whole = read_whole(rows(hands, session))
    assert sum(isinstance(p, ToolReturnPart) for m in whole for p in m.parts) == 3 * turns
    kept = [sum(isinstance(part, ToolReturnPart) for part in message.parts) for message in shown[-1]]
    assert set(kept) <= {0, 3}
