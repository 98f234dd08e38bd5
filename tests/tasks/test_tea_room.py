"""The tea room: a visit longer than what its model is shown, and a guest who comes again."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic_ai.messages import ToolCallPart, ToolReturnPart

from agentq.agents.model.history import COMPACTION, read, read_whole
from agentq.agents.registry import default_registry
from agentq.client import Client, Session
from agentq.settings import Settings
from agentq.step import StepRef
from agentq.testing import LocalFleet
from tasks.tea_room import VISITS, tea_room


@pytest.fixture
def here(settings: Settings) -> Iterator[LocalFleet]:
    """A fleet of the agents of `tasks`."""
    with Client(settings, default_registry) as client, LocalFleet(client) as fleet:
        yield fleet


def rows(fleet: LocalFleet, session: Session) -> list[tuple[int, bytes, str]]:
    ref = StepRef(session.tenant, uuid.UUID(session.id), uuid.UUID(session.id))
    return fleet.ledger.messages(ref)


def said(fleet: LocalFleet, session: Session) -> list[str]:
    """What the agent said, from the beginning."""
    history = read_whole(rows(fleet, session))
    parts = [part for message in history for part in message.parts]
    return [part.args_as_dict()["text"] for part in parts if isinstance(part, ToolCallPart) and part.tool_name == "say"]


def visit(fleet: LocalFleet, tenant: str, number: int) -> Session:
    session = fleet.client.start(tea_room.name, tenant=tenant, input=VISITS[number])
    result: Any = fleet.drain(session).result
    assert str(result).startswith("served")
    return session


def test_a_long_visit_and_a_second_one(here: LocalFleet, tenant: str) -> None:
    """
    Of what she said at the beginning nothing is shown any more when it matters, and it is known all the same; weeks
    later, in another session, too. Another guest has none of it.
    """
    first = visit(here, tenant, 0)
    names = [step.name for step in first.steps()]
    assert names.count("model") > 30
    assert names.count("compact") >= 2
    spoken = said(here, first)
    assert len(spoken) == len(VISITS[0]["lines"])  # type: ignore[arg-type]
    [answer] = [text for text in spoken if text.startswith("I remember")]
    assert "my doctor forbids me caffeine" in answer

    stored = rows(here, first)
    asked = next(
        number for number, (_, body, by) in enumerate(stored) if by != COMPACTION and b"with my doctor in mind" in body
    )
    shown = [str(part.content) for m in read(stored[:asked]) for part in m.parts if isinstance(part, ToolReturnPart)]
    assert not any("my doctor forbids" in text for text in shown)
    assert sum(len(body) for _, body, by in stored if by == COMPACTION) < sum(len(body) for _, body, _ in stored) / 4

    memories = {memory.key: memory for memory in here.client.memory.ls(tenant)}
    assert sorted(memories) == ["doctor", "usual"]
    assert {memory.namespace for memory in memories.values()} == {"guests/ada"}
    assert {str(memory.session_id) for memory in memories.values()} == {first.id}
    assert all(memory.expires_at is not None for memory in memories.values())

    again = visit(here, tenant, 1)
    assert any("rooibos with a slice of lemon" in text for text in said(here, again))
    stranger = visit(here, tenant, 2)
    assert not any("rooibos" in text for text in said(here, stranger))


def test_a_visit_survives_a_worker_at_every_compaction(here: LocalFleet, tenant: str, monkeypatch: Any) -> None:
    """
    Each compaction is begun twice, because its first attempt dies before it is settled: one record of each, and the
    same visit.
    """
    from agentq import Transient
    from agentq.agents.model.compaction import Shortening

    take, died = Shortening.take, []

    async def stumble(self: Shortening, force: Any = False) -> Any:
        done = await take(self, force)
        if self.ctx.attempt == 1:
            died.append(self.ctx.step_id)
            raise Transient("the worker stumbles")
        return done

    monkeypatch.setattr(Shortening, "take", stumble)
    session = visit(here, tenant, 0)
    records = [json.loads(body)["compaction"] for _, body, by in rows(here, session) if by == COMPACTION]
    assert 2 <= len(records) <= len(died) == len(set(died))
    assert any(text.startswith("I remember") for text in said(here, session))
