"""Encryption at rest, from end to end: sessions work as ever, and no table holds a word of their payloads."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from agentq import Agent, Ask, Branch, Child, Context, Done, Next, Permanent, Semantic, Spawn, Transient, effect
from agentq.agents.registry import Registry
from agentq.client import Client, Selection, Session
from agentq.errors import KeyUnavailable, StoreUnavailable
from agentq.seeing.story import tell
from agentq.settings import Settings
from agentq.store.dead_letters import DeadLetterStore
from agentq.store.providers import LocalKeys, new_key
from agentq.store.traces import Traces
from agentq.store.vault import Vault
from agentq.testing import LocalFleet, Stuck
from agentq.verdicts import Deferred

pytestmark = pytest.mark.usefixtures("no_keys_left")

MARK = "zebra-quartz"


class Case(BaseModel):
    text: str = ""
    notes: list[str] = []
    broken: bool = True
    long: str = ""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"encryption_keys": new_key()})


@pytest.fixture
def fleet(client: Client, everything: None) -> Iterator[LocalFleet]:
    with LocalFleet(client) as fleet:
        yield fleet


@pytest.fixture
def everything(registry: Registry) -> None:
    """An agent that puts what it is given everywhere that it can."""
    agent = Agent("case", state=Case, registry=registry)
    seen: list[str] = []

    @effect(idempotent=True)
    def look_up(text: str) -> dict[str, str]:
        return {"answer": f"{text} answered"}

    @effect(idempotent=True)
    def refuse(text: str) -> None:
        raise Transient(f"busy with {text}")

    @effect(irreversible=True, idempotent=True)
    def pay(text: str, cents: int) -> str:
        return f"paid {cents} for {text}"

    @agent.step(start=True, retries=3, repairs=2)
    def begin(state: Case, ctx: Context) -> Next:
        ctx.progress(f"at work on {state.text}", about=state.text)
        if "retried" not in seen:
            seen.append("retried")
            raise Transient(f"no line for {state.text}")
        if ctx.repair is None:
            raise Semantic(f"{state.text} is not an answer")
        assert MARK in ctx.repair.feedback
        with ctx.trace("tool", "search", input={"q": state.text}, asked=state.text, model="m") as span:
            span.output = f"found {state.text}"
        ctx.decide([state.text, "other"], state.text, f"because of {state.text}")
        state.notes.append(ctx.call(look_up, state.text)["answer"])
        with contextlib.suppress(Transient):
            ctx.call(refuse, state.text)
        state.long = state.text * 300  # large enough for deltas
        ctx.messages.append({"user": state.text})
        ctx.messages.append({"assistant": state.text})
        return Next(more, state, args={"hint": state.text})

    @agent.step
    def more(state: Case, ctx: Context, hint: str) -> Spawn:
        assert MARK in hint
        assert len(ctx.messages) == 2
        state.notes.append(f"more {hint}")
        ctx.memory.put("notes", "first", {"said": hint})
        branches = [Branch(arm, args={"part": hint}), Branch(arm, args={"part": hint + "!"})]
        return Spawn([*branches, Child("child", {"text": hint})], then=join, state=state, args={"kept": hint})

    @agent.step
    def arm(state: Case, part: str) -> Done:
        return Done({"part": part, "of": state.text})

    @agent.step
    def join(state: Case, ctx: Context, kept: str) -> Ask:
        assert [MARK in str(result.value) for result in ctx.results] == [True] * 3
        state.notes.append(kept)
        return Ask(f"Go on with {state.text}?", then=asked, state=state, args={"note": kept}, details={"d": state.text})

    @agent.step
    def asked(state: Case, ctx: Context, note: str) -> Next:
        state.notes.append(note)
        return Next(finish, state)

    @agent.step(retries=0)
    def finish(state: Case, ctx: Context) -> Done:
        assert ctx.memory.get("notes", "first").value == {"said": state.text}
        paid = ctx.call(pay, state.text, 100)
        if state.broken:
            raise Permanent(f"{state.text} is broken")
        return Done({"result": state.text, "paid": paid, "notes": state.notes, "history": list(ctx.messages)})

    child = Agent("child", state=Case, registry=registry)

    @child.step(start=True)
    def only(state: Case) -> Done:
        return Done(f"child of {state.text}")


def run(fleet: LocalFleet, session: Session) -> Any:
    """Run it, and grant with an edit whatever it asks."""
    client = fleet.client
    for _ in range(5):
        try:
            return fleet.drain(session)
        except Permanent:
            return session.view()
        except Stuck:
            for found in client.approvals.ls(tenant=session.tenant, state="open"):
                view = client.approvals.get(str(found.approval_id), tenant=session.tenant)
                assert MARK in view.question + str(view.args)
                edits = {"note": f"{MARK} edited"} if "note" in view.args else {}
                client.approvals.grant(view.id, tenant=session.tenant, edits=edits, reason="fine")
    raise AssertionError("it never ends")


def story(client: Client, session: Session) -> Any:
    """All that is told of a session."""
    traces = Traces(client._store)
    return tell(client.sessions, traces, session.tenant, uuid.UUID(session.id), lambda _, value: value)


def found_in(admin: psycopg.Connection[Any], mark: str) -> list[str]:
    """The tables and columns in whose rows a word stands, in whatever form they hold it."""
    columns = admin.execute(
        "select table_name, column_name from information_schema.columns where table_schema = 'agentq'"
    ).fetchall()
    hexed = mark.encode().hex()
    found = []
    for table, column in columns:
        # Of all tenants: what names none may hold it too.
        query = f'select count(*) from agentq.{table} t where t."{column}"::text like any (array[%s, %s])'
        [(count,)] = admin.execute(query, (f"%{mark}%", f"%{hexed}%")).fetchall()
        if count:
            found.append(f"{table}.{column}")
    return found


def test_no_table_holds_a_word_of_a_payload(
    fleet: LocalFleet, client: Client, tenant: str, admin: psycopg.Connection[Any]
) -> None:
    """
    Inputs, states, changes, arguments, results, messages, progress, effects, traces, decisions, questions, edits,
    failures, letters, poison, refused submissions, replays and forks: all of it works, and all of it is sealed.
    """
    mark = f"{MARK}-{uuid.uuid4().hex[:8]}"
    session = client.start("case", tenant=tenant, input={"text": mark}, key="k1")
    view = run(fleet, session)
    assert view.state == "failed"
    assert mark in view.failure["message"]
    [letter] = client.dead_letters.ls(Selection(tenant=tenant))
    assert mark in letter.failure["message"]
    assert mark not in letter.cause_text
    assert client.start("case", tenant=tenant, input={"text": mark}, key="k1").id == session.id

    fork = session.fork("again", from_step="finish", change={"broken": False, "notes": [f"{mark} of the fork"]})
    assert mark in run(fleet, fork).result["notes"][0]
    assert len(run(fleet, fork).result["history"]) == 2
    for _ in client.dead_letters.redrive(Selection(tenant=tenant), reason="mended", change={"broken": False}):
        pass
    result = run(fleet, session).result
    assert result["result"] == mark
    assert f"{MARK} edited" in result["notes"]
    session.replay("once more", from_step="finish", change={"notes": [f"{mark} replayed"]})
    assert run(fleet, session).result["notes"] == [f"{mark} replayed"]

    letters = DeadLetterStore(client._store)
    letters.keep_poison(queue=f"agentq.t.{tenant}", tenant=tenant, reason="not JSON", body=mark.encode())
    client.operators.refuse_submission(tenant=tenant, reason="no agent", body=mark.encode())
    assert letters.poison(tenant=tenant)[0].body == mark.encode()
    assert client.operators.refused_submissions(1)[0][4] == mark.encode()

    assert [found.key for found in client.memory.search(tenant, "notes", mark)] == ["first"]
    everything = " ".join(str(row) for row in client.operators.actions(tenant=tenant))
    assert mark in everything  # what was edited is in the record, for whoever has the keys
    assert found_in(admin, mark) == []
    # And the search would have found it.
    admin.execute("update agentq.session set input = %s where session_id = %s", (mark.encode(), session.id))
    admin.execute("update agentq.approval set question = %s where session_id = %s", (mark, session.id))
    assert set(found_in(admin, mark)) == {"approval.question", "session.input"}


def test_what_people_see_is_in_plain(fleet: LocalFleet, client: Client, tenant: str) -> None:
    session = client.start("case", tenant=tenant, input={"text": MARK})
    run(fleet, session)
    told = str(story(client, session))
    assert told.count(MARK) > 10
    assert "encrypted" not in told
    kinds = [event.kind for event in session.events(timeout=30)]
    assert kinds
    assert any(MARK in str(event) for event in session.events(timeout=30))


def test_switched_on_later(registry: Registry, everything: None, settings: Settings, tenant: str) -> None:
    """
    A session that began in plain goes on encrypted, and is read whole.
    """
    plain = settings.model_copy(update={"encryption_keys": ""})
    with Client(plain, registry) as client, LocalFleet(client) as fleet:
        session = client.start("case", tenant=tenant, input={"text": MARK, "broken": False})
        for _ in range(5):
            fleet.carry_next(tenant)
    with Client(settings, registry) as client, LocalFleet(client) as fleet:
        result = run(fleet, client.get(tenant, session.id)).result
        assert result["result"] == MARK
        assert len(result["history"]) == 2


def test_what_lay_in_plain_is_sealed_afterwards(
    registry: Registry, everything: None, settings: Settings, tenant: str, admin: psycopg.Connection[Any]
) -> None:
    """
    And what an older key sealed, under the newer one; all of it reads as before.
    """
    mark = f"{MARK}-{uuid.uuid4().hex[:8]}"
    with Client(settings.model_copy(update={"encryption_keys": ""}), registry) as client, LocalFleet(client) as fleet:
        session = client.start("case", tenant=tenant, input={"text": mark, "broken": False})
        assert run(fleet, session).state == "done"
        before = repr(
            tell(client.sessions, Traces(client._store), tenant, uuid.UUID(session.id), lambda _, value: value)
        )
    assert {"session.input", "checkpoint.state", "message.body"} <= set(found_in(admin, mark))
    with Client(settings, registry) as client:
        would = client.keys.reseal(tenant, reason="a test", dry_run=True)
        assert set(found_in(admin, mark)) >= {"session.input"}
        assert client.keys.reseal(tenant, reason="a test") == would
        assert would.total > 30
        assert would.unreadable == 0
        # What says of itself that it stays: failures' messages and what was noted of traces.
        left = {name for name in found_in(admin, mark) if not name.startswith("trace_")}
        assert left <= {"ledger_entry.failures", "ledger_entry.failure", "ledger_entry.repair", "effect.failure",
                        "trace.detail", "trace.failure"}  # fmt: skip
        assert client.keys.reseal(tenant, reason="a test").total == 0
        assert client.keys.rotate(tenant, reason="a test") == 2
        assert client.keys.reseal(tenant, reason="a test").total == would.total
        after = repr(
            tell(client.sessions, Traces(client._store), tenant, uuid.UUID(session.id), lambda _, value: value)
        )
        assert after == before
        assert client.get(tenant, session.id).view().result["result"] == mark
        assert [found.key for found in client.memory.search(tenant, "notes", MARK)] == ["first"]


class Kms(LocalKeys):
    """A provider that can be away."""

    away = False

    def wrap(self, key: bytes, context: bytes) -> bytes:
        if self.away:
            raise KeyUnavailable("the KMS does not answer")
        return super().wrap(key, context)

    def unwrap(self, wrapped: bytes, key_id: str, context: bytes) -> bytes:
        if self.away:
            raise KeyUnavailable("the KMS does not answer")
        return super().unwrap(wrapped, key_id, context)


def test_a_provider_that_is_away_buries_nothing(
    registry: Registry, everything: None, settings: Settings, tenant: str
) -> None:
    """
    Steps wait for it as they do for an absent Postgres: no attempt is lost, and the claim is given back.
    """
    kms = Kms([bytes(32)])
    with Client(settings, registry) as client, LocalFleet(client) as fleet:
        for store in (client._store, fleet.store):
            store.vault = Vault(store, kms)
        session = client.start("case", tenant=tenant, input={"text": MARK, "broken": False})
        kms.away = True
        fleet.store.vault.forget()
        assert isinstance(fleet.carry_next(tenant), Deferred)
        client._store.vault.forget()
        with pytest.raises(StoreUnavailable, match="KMS"):
            client.start("case", tenant=tenant, input={"text": MARK})
        kms.away = False
        for doubt in fleet.in_flight.doubts():
            fleet.ledger.disown(doubt.ref, doubt.token)
        assert run(fleet, session).state == "done"
        assert client.dead_letters.count(Selection(tenant=tenant, state=None)) == 0


def test_a_payload_that_was_altered_is_a_dead_letter(
    fleet: LocalFleet, client: Client, tenant: str, admin: psycopg.Connection[Any]
) -> None:
    """
    Its step is not run on it, and is not tried again; people are told which payload, and not what was in it.
    """
    first = client.start("case", tenant=tenant, input={"text": MARK})
    second = client.start("case", tenant=tenant, input={"text": "other"})
    admin.execute(
        "update agentq.session set input = (select input from agentq.session where session_id = %s)"
        " where session_id = %s",
        (first.id, second.id),
    )
    fleet.drain(second)
    assert (second.view().failure or {})["type"] == "PayloadUnreadable"
    [letter] = client.dead_letters.ls(Selection(tenant=tenant))
    assert "belongs to another place" in letter.failure["message"]
    assert letter.attempt == 1
