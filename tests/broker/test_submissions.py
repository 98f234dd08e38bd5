"""Submissions in this process: whatever is asked is started or kept, whatever Postgres does meanwhile."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from celery.exceptions import Reject

from agentq.agents.registry import load_agents
from agentq.broker.connection import connect
from agentq.broker.publisher import Publisher
from agentq.engine import InFlight
from agentq.errors import StoreUnavailable
from agentq.settings import Settings
from agentq.store.pool import Store
from agentq.submissions import Submissions


class Door:
    """The broker-only door, and what it needs."""

    def __init__(self, settings: Settings, store: Store, publisher: Publisher) -> None:
        self.in_flight = InFlight()
        agents = load_agents(["tests.support.agents"])
        self.submissions = Submissions(settings, agents, store, publisher, self.in_flight)


@pytest.fixture
def door(settings: Settings, store: Store) -> Iterator[Door]:
    publisher = Publisher(lambda: connect(settings))
    yield Door(settings, store, publisher)
    publisher.close()


def count(admin: psycopg.Connection[Any], tenant: str) -> int:
    row = admin.execute("select count(*) from agentq.session where tenant = %s", (tenant,)).fetchone()
    assert row is not None
    return int(row[0])


def test_an_error_that_nobody_thought_of_is_kept(
    door: Door, admin: psycopg.Connection[Any], tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Raised on, it would be acknowledged and lost.
    """

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OverflowError("nobody thought of this")

    monkeypatch.setattr(door.submissions._door, "check", fail)
    door.submissions.take((), {"agent": "count", "tenant": tenant, "key": "k"})
    row = admin.execute(
        "select reason from agentq.refused_submission where tenant = %s order by submission_id desc", (tenant,)
    ).fetchone()
    assert row == ("OverflowError: nobody thought of this",)


def test_a_postgres_that_is_away_holds_the_submission(
    door: Door, admin: psycopg.Connection[Any], tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    It is neither acknowledged nor kept as refused: it waits, and starts when Postgres is back.
    """
    start, failures = door.submissions._sessions.start, iter(range(2))

    def away(*args: Any, **kwargs: Any) -> Any:
        if next(failures, None) is not None:
            raise StoreUnavailable("away")
        return start(*args, **kwargs)

    monkeypatch.setattr(door.submissions._sessions, "start", away)
    door.submissions.take((), {"agent": "count", "tenant": tenant, "key": "k", "input": {}})
    assert count(admin, tenant) == 1


def test_a_submission_keeps_its_producers_trace(door: Door, admin: psycopg.Connection[Any], tenant: str) -> None:
    """
    The header of a Celery client that is traced; one that is none changes nothing.
    """
    facts = {"agent": "count", "tenant": tenant, "input": {}}
    door.submissions.take((), facts | {"key": "a"}, traceparent=f"00-{5:032x}-{6:016x}-01")
    door.submissions.take((), facts | {"key": "b"}, traceparent="rubbish")
    found = admin.execute(
        "select key, trace_id, trace_parent from agentq.session where tenant = %s order by key", (tenant,)
    ).fetchall()
    assert found == [("a", uuid.UUID(int=5), 6), ("b", None, None)]


def test_another_releases_schema_holds_the_submission(
    door: Door, admin: psycopg.Connection[Any], tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A worker that was deployed before its schema refuses nothing for it.
    """
    start, calls = door.submissions._sessions.start, iter(["missing"])

    def deployed_in_between(*args: Any, **kwargs: Any) -> Any:
        if next(calls, None) is None:
            return start(*args, **kwargs)
        admin.execute("alter function agentq.start_session rename to start_session_of_later")
        try:
            return start(*args, **kwargs)
        finally:
            admin.execute("alter function agentq.start_session_of_later rename to start_session")

    monkeypatch.setattr(door.submissions._sessions, "start", deployed_in_between)
    door.submissions.take((), {"agent": "count", "tenant": tenant, "key": "k", "input": {}})
    assert count(admin, tenant) == 1


def test_a_draining_worker_gives_the_submission_back(
    door: Door, admin: psycopg.Connection[Any], tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The message returns to its queue, for a worker that stays.
    """

    def away(*args: Any, **kwargs: Any) -> Any:
        raise StoreUnavailable("away")

    monkeypatch.setattr(door.submissions._sessions, "start", away)
    monkeypatch.setattr(door.submissions._operators, "refuse_submission", away)
    threading.Timer(0.2, lambda: setattr(door.in_flight, "draining", True)).start()
    with pytest.raises(Reject) as raised:
        door.submissions.take((), {"agent": "count", "tenant": tenant, "key": "k"})
    assert raised.value.requeue
    assert count(admin, tenant) == 0
