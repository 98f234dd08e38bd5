"""The isolation walk: whatever is asked of the client in tenant A's name, nothing of B is in the answer."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from agentq.agents.registry import Registry
from agentq.client import Client, Selection, Terms
from agentq.errors import AgentqError
from agentq.settings import Settings
from agentq.step import StepRef
from agentq.store.pool import Store
from agentq.store.traces import Traces
from tests.conftest import new_tenant
from tests.store.test_schema import fill
from tests.support.hands import Hands

# What of a client is walked: all that answers questions. Another attribute that does must be added.
PARTS = (
    "sessions", "ledger", "operators", "tenants", "recovery", "approvals", "effects", "dependencies", "dead_letters",
    "rates", "budgets", "memory", "keys", "tokens", "anomalies",
)  # fmt: skip
# Questions that name no tenant and answer for the whole fleet: an operator's, not a tenant's.
CHANGES = frozenset({"reason", "verdict", "failure", "operator", "by", "write", "value", "if_version"})


@pytest.fixture
def theirs(store: Store, admin: psycopg.Connection[Any]) -> Iterator[Hands]:
    """Tenant B, with a row in every table."""
    hands = Hands(store, new_tenant(admin))
    fill(hands)
    yield hands
    hands.close()


@pytest.fixture
def walker(settings: Settings, registry: Registry) -> Iterator[Client]:
    with Client(settings, registry) as client:
        yield client


def questions(client: Client) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every public method that takes a tenant and changes nothing."""
    parts = [("client", client), *((name, getattr(client, name)) for name in PARTS)]
    parts.append(("traces", Traces(client._store)))
    for part, thing in parts:
        for name, method in inspect.getmembers(thing, callable):
            if name.startswith("_") or inspect.isclass(method) or not inspect.ismethod(method):
                continue
            names = set(inspect.signature(method).parameters)
            if names & {"tenant", "ref", "selection", "prefix"} and not names & CHANGES and name not in WRITES:
                yield f"{part}.{name}", method


# They take a tenant and change something without saying why.
WRITES = frozenset(
    {"start", "start_many", "admit", "republish", "claim", "disown", "add_event", "cancel", "settle", "charge_late",
     "drive", "redrive", "reopen", "fork", "start_session", "watch", "put_in_effect", "forget", "events", "follow",
     "refuse_submission"}
)  # fmt: skip


def arguments(method: Callable[..., Any], ours: str, theirs: dict[str, Any]) -> dict[str, Any]:
    """What a curious tenant would ask: its own name, and ids that are another's."""
    given: dict[str, Any] = {}
    for name, parameter in inspect.signature(method).parameters.items():
        if name == "tenant":
            given[name] = ours
        elif name == "selection":
            given[name] = Selection(tenant=ours, state=None)
        elif name in theirs and (name != "text" or parameter.default is inspect.Parameter.empty):
            wants_text = str(parameter.annotation).startswith("str")
            wants_id = str(parameter.annotation).startswith("uuid")
            value = theirs[name]
            given[name] = str(value) if wants_text else uuid.UUID(str(value)) if wants_id else value
        elif parameter.default is inspect.Parameter.empty and parameter.kind not in (
            inspect.Parameter.VAR_KEYWORD,
            inspect.Parameter.VAR_POSITIONAL,
        ):
            raise LookupError(f"the walk does not know what to give for {name} of {method}")
    return given


def test_every_part_of_the_client_is_walked(walker: Client) -> None:
    """
    A part that is added is walked, or fails here.
    """
    parts = {name for name, value in vars(walker).items() if not name.startswith("_") and hasattr(value, "__dict__")}
    assert parts - {"settings", "registry"} == set(PARTS)


def ids_of(theirs: Hands, ours: str) -> dict[str, Any]:
    [session] = [row["session_id"] for row in theirs.rows("select session_id from agentq.session")][:1]
    step = theirs.rows("select step_id from agentq.ledger_entry")[0]["step_id"]
    approval = theirs.rows("select approval_id from agentq.approval")[0]["approval_id"]
    letter = theirs.rows("select letter_id from agentq.dead_letter")[0]["letter_id"]
    since = theirs.rows("select min(created_at) as at from agentq.session")[0]["at"]
    return {
        "session_id": session, "session": session, "session_ids": [session], "sessions": [session], "step_id": step,
        "approval_id": str(approval), "approval": approval, "letter_id": letter, "letter": str(letter)[:8],
        "ref": StepRef(ours, session, step), "key": "k", "effect_key": "k", "prefix": str(session), "after": 0,
        "since": since, "namespace": "shop", "query": "oolong", "limit": 100, "language": "simple", "from_step": "0",
        "states": ["pending", "done", "unknown", "failed"], "most": 10, "by": "cause", "max_generation": 9,
        "with_state": True, "seconds": 86400, "id_": str(session), "name": ours, "agent": "robot", "model": "m",
        "scope": "tenant", "subject": "", "period": "day", "provider": "test", "input_tokens": 1, "tool": "pay",
        "terms": Terms(), "text": str(theirs.rows("select anomaly_id from agentq.anomaly")[0]["anomaly_id"]),
    }  # fmt: skip


def test_no_question_of_a_tenant_is_answered_with_anothers_rows(
    walker: Client, theirs: Hands, tenant: str, store: Store
) -> None:
    """
    I8: every public question of the client is asked in A's name about B's sessions, steps, effects, approvals,
    letters, memories and keys. A new question is walked by itself, or fails here until the walk knows its arguments.
    """
    known = ids_of(theirs, tenant)
    secrets = {str(value) for row in _ids(theirs) for value in row} | {theirs.tenant}
    asked, leaked = [], []
    for name, method in questions(walker):
        try:
            found = method(**arguments(method, tenant, known))
            found = list(found) if isinstance(found, Iterator) else found
        except AgentqError:
            asked.append(name)
            continue
        asked.append(name)
        if any(secret in repr(found) for secret in secrets):
            leaked.append(name)
    assert not leaked, leaked
    assert len(asked) > 35, sorted(asked)


def test_the_walk_would_notice(walker: Client, theirs: Hands, tenant: str) -> None:
    """
    The same questions in B's own name are answered: the walk looks where there is something to see.
    """
    known = ids_of(theirs, theirs.tenant)
    secrets = {str(value) for row in _ids(theirs) for value in row} | {theirs.tenant}
    seen = []
    for name, method in questions(walker):
        try:
            found = method(**arguments(method, theirs.tenant, known))
            found = list(found) if isinstance(found, Iterator) else found
        except AgentqError:
            continue
        if any(secret in repr(found) for secret in secrets):
            seen.append(name)
    assert len(seen) > 15, sorted(seen)


def _ids(theirs: Hands) -> list[tuple[uuid.UUID, ...]]:
    sessions = [(row["session_id"],) for row in theirs.rows("select session_id from agentq.session")]
    steps = [(row["step_id"],) for row in theirs.rows("select step_id from agentq.ledger_entry")]
    letters = [(row["letter_id"],) for row in theirs.rows("select letter_id from agentq.dead_letter")]
    return [*sessions, *steps, *letters]
