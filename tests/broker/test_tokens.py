"""Tokens of submissions: who is let in for which tenant, and that no trace of a token stays anywhere."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from agentq.agents.registry import load_agents
from agentq.broker.connection import connect
from agentq.broker.publisher import Publisher
from agentq.broker.queues import SUBMIT_DEAD
from agentq.client import Client
from agentq.engine import InFlight
from agentq.poison import PoisonKeeper
from agentq.settings import Settings
from agentq.store.dead_letters import DeadLetterStore
from agentq.store.pool import Store
from agentq.store.tokens import Tokens, without_tokens
from agentq.submissions import Submissions


class Door:
    """The broker-only door: what is said at it, and what is published."""

    def __init__(self, settings: Settings, store: Store, publisher: Publisher) -> None:
        self.published: list[tuple[str, Any, Any]] = []
        publisher.publish = lambda *facts: self.published.append(facts)  # type: ignore[method-assign, assignment]
        agents = load_agents(["tests.support.agents"])
        self.submissions = Submissions(settings, agents, store, publisher, InFlight())

    def submit(self, tenant: str, key: str = "k", *, header: Any = None, **more: Any) -> None:
        asked = {"agent": "count", "tenant": tenant, "key": key, "input": {}} | more
        self.submissions.take((), asked, token=header)


@pytest.fixture
def doors(settings: Settings, store: Store) -> Iterator[Any]:
    publisher = Publisher(lambda: connect(settings))
    yield lambda **change: Door(settings.model_copy(update=change), store, publisher)
    publisher.close()


@pytest.fixture
def door(doors: Any) -> Door:
    made: Door = doors()
    return made


def made(client: Client, *tenants: str, **more: Any) -> str:
    return client.tokens.create("a shop", tenants=tenants, reason="a test", **more).token


def sessions(admin: psycopg.Connection[Any], tenant: str) -> int:
    [(count,)] = admin.execute("select count(*) from agentq.session where tenant = %s", (tenant,)).fetchall()
    return int(count)


def reasons(admin: psycopg.Connection[Any], tenant: str) -> list[str]:
    rows = admin.execute(
        "select reason from agentq.refused_submission where tenant = %s order by submission_id", (tenant,)
    )
    return [row[0] for row in rows]


def test_a_token_lets_in_and_its_use_is_noted(
    door: Door, client: Client, tenant: str, admin: psycopg.Connection[Any]
) -> None:
    token = made(client, tenant)
    door.submit(tenant, "one", token=token)
    door.submit(tenant, "two", header=token)
    assert sessions(admin, tenant) == 2
    [row] = client.tokens.ls(tenant)
    assert row.used_at is not None


def test_a_token_is_for_its_tenants_alone(
    door: Door, client: Client, tenant: str, other_tenant: str, admin: psycopg.Connection[Any]
) -> None:
    """
    I8: with tenant A's token nothing is started for tenant B, whether or not B has tokens of its own.
    """
    token = made(client, tenant)
    door.submit(other_tenant, token=token)
    assert sessions(admin, other_tenant) == 0
    assert reasons(admin, other_tenant) == [f"its token 'a shop' is not for tenant {other_tenant!r}"]


def test_a_token_is_for_its_agents_alone(
    door: Door, client: Client, tenant: str, admin: psycopg.Connection[Any]
) -> None:
    token = made(client, tenant, agents=["wait"])
    door.submit(tenant, token=token)
    assert sessions(admin, tenant) == 0
    assert "not for agent 'count'" in reasons(admin, tenant)[0]


def test_who_has_no_good_token_stays_outside(
    door: Door, client: Client, tenant: str, admin: psycopg.Connection[Any]
) -> None:
    """
    None, a revoked one, an expired one, one with another secret, one of nobody, and things that are no token.
    """
    live, revoked, old = made(client, tenant), made(client, tenant), made(client, tenant)
    client.tokens.revoke(revoked.split("_")[1], reason="lost")
    admin.execute(
        "update agentq.api_token set expires_at = now() - interval '1 s' where token_id = %s", (old.split("_")[1],)
    )
    forged = live[:-1] + ("A" if live[-1] != "A" else "B")
    nobodys = f"agq_{'0' * 32}_{'A' * 43}"
    for token in (revoked, old, forged, nobodys, "", "agq_", "x" * 10_000, 7, ["agq_"], {"token": live}):
        door.submit(tenant, token=token)
    door.submit(tenant)
    assert sessions(admin, tenant) == 0
    assert len(reasons(admin, tenant)) == 11
    assert "it has no token" in reasons(admin, tenant)[-1]
    door.submit(tenant, token=live)
    assert sessions(admin, tenant) == 1


def test_a_tenant_without_tokens_needs_none_unless_they_are_required(
    doors: Any, client: Client, tenant: str, other_tenant: str, admin: psycopg.Connection[Any]
) -> None:
    doors().submit(tenant)
    assert sessions(admin, tenant) == 1
    doors(submit_tokens="required").submit(other_tenant)
    assert sessions(admin, other_tenant) == 0
    doors(submit_tokens="required").submit(other_tenant, token=made(client, other_tenant))
    assert sessions(admin, other_tenant) == 1


def test_no_trace_of_a_token_stays(
    door: Door,
    client: Client,
    tenant: str,
    other_tenant: str,
    admin: psycopg.Connection[Any],
    store: Store,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """
    Refused for whatever reason: the row, the message, the log have the rest of it. Also where it should not be.
    """
    caplog.set_level(logging.DEBUG)
    token = made(client, tenant)
    door.submit(other_tenant, token=token, input={"marker": 1})
    door.submit(tenant, token=token, agent="nobody", input={"note": f"my token is {token}"})
    door.submit(tenant, token=token, **{token: "misplaced"})
    door.submissions.give_up((), {"tenant": tenant, "token": token, "self": token}, TypeError(f"no {token}"))
    door.submissions.keep(f"garbage {token}".encode(), f"cannot be decoded: {token}")
    keeper = PoisonKeeper(DeadLetterStore(store), 1000)
    keeper.keep(f"agentq.t.{tenant}", f"garbage {token}".encode(), f"cannot be decoded: {token}")
    keeper.close()

    rows = admin.execute("select reason, encode(body, 'escape') from agentq.refused_submission").fetchall()
    rows += admin.execute("select reason, encode(body, 'escape') from agentq.poison_message").fetchall()
    everything = json.dumps([rows, door.published], default=str) + caplog.text
    assert len([facts for facts in door.published if facts[0] == SUBMIT_DEAD]) >= 5
    assert "[token]" in everything
    secret = token.rpartition("_")[2]
    assert token not in everything
    assert secret not in everything


def test_a_token_is_taken_out_of_anything() -> None:
    token = f"agq_{'a' * 32}_{'B-_' * 14}x"
    assert without_tokens(f'{{"token": "{token}"}} {token}!'.encode()) == b'{"token": "[token]"} [token]!'
    assert without_tokens(b"agq_ is no token") == b"agq_ is no token"


def test_digests_are_compared_whatever_is_found(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Whether or not there is such a token, the same comparison is made, in constant time.
    """
    from agentq.errors import TokenRefused
    from agentq.store import tokens

    compared: list[int] = []
    compare = tokens.hmac.compare_digest
    monkeypatch.setattr(
        tokens.hmac, "compare_digest", lambda one, other: (compared.append(len(other)), compare(one, other))[1]
    )
    for token in ("nonsense", f"agq_{'0' * 32}_{'A' * 43}"):
        with pytest.raises(TokenRefused):
            Tokens(store).admit(token, tenant="a", agent="b")
    assert compared == [32, 32]
