"""Model agents over HTTP, with the OpenAI client, against a server that misbehaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from agentq import ModelAgent, tool
from agentq.agents.registry import Registry
from agentq.client import Client
from agentq.policies.rates import Gate
from agentq.store.pool import Store
from agentq.store.rates import StoredRates
from agentq.testing import LocalFleet
from tests.support.openai_server import OpenAIServer, Reply, error

Local = Callable[..., LocalFleet]


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as server:
        yield server


@tool(idempotent=True)
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Sum(BaseModel):
    """The result."""

    total: int


def run(
    server: OpenAIServer, registry: Registry, client: Client, tenant: str, local: Local, *replies: Reply, **more: Any
) -> tuple[Any, Exception | None]:
    """A session against these replies: how it stands afterwards, and of what it died."""
    server.replies = list(replies)
    # A name of its own: what one test's server does must not hold back another's requests.
    ModelAgent("desk", model=server.model(), tools=[add], needs=f"openai-{tenant}", registry=registry, **more)
    session = client.start("desk", tenant=tenant, input={"prompt": "1 + 2?"})
    try:
        local().drain(session)
    except Exception as died:
        return session, died
    return session, None


def test_a_request_as_the_provider_sees_it(
    server: OpenAIServer, registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    Tools, instructions and max_tokens go out; calls come back in the order asked for; usage is counted.
    """
    session, died = run(
        server, registry, client, tenant, local,
        Reply(calls=[("add", {"a": 1, "b": 2}), ("add", {"a": 3, "b": 4})]), Reply("3 and 7"),
        instructions="Count.", max_tokens=300,
    )  # fmt: skip
    assert died is None
    view = session.view()
    assert view.result == "3 and 7"
    assert (view.input_tokens, view.output_tokens) == (100, 20)
    first, second = server.requests
    assert first["max_completion_tokens"] == 300
    assert first["tools"][0]["function"]["name"] == "add"
    assert [m["role"] for m in second["messages"]] == ["system", "user", "assistant", "tool", "tool"]
    assert [m["content"] for m in second["messages"][-2:]] == ["3", "7"]


def test_streaming_over_http(
    server: OpenAIServer, registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    session, died = run(
        server, registry, client, tenant, local,
        Reply(calls=[("add", {"a": 1, "b": 2})]), Reply("it is three"), stream=True,
    )  # fmt: skip
    assert died is None
    assert session.view().result == "it is three"
    assert "".join(e.data["text"] for e in session.events(5) if e.kind == "text").strip() == "it is three"
    assert session.view().input_tokens == 100


@pytest.mark.parametrize(
    "bad",
    [
        error(429, "rate_limit_exceeded", retry_after="7"),
        error(500, "server_error"),
        error(503, "overloaded"),
        Reply(hang=True),
        Reply(raw=b"<html>bad gateway</html>", status=502),
    ],
    ids=["429", "500", "503", "hang", "html"],
)
def test_what_passes_is_tried_again_once_per_attempt(
    server: OpenAIServer, registry: Registry, client: Client, tenant: str, local: Local, bad: Reply
) -> None:
    """
    One request per attempt: the SDK's own retries are off. Retry-After is waited for on the database's clock.
    """
    session, died = run(server, registry, client, tenant, local, bad, Reply("3"), timeout=0.5)
    assert died is None
    assert session.view().result == "3"
    assert len(server.requests) == 2
    [step] = session.steps()
    assert step.attempt == 2
    if bad.status == 429:
        assert (step.settled_at - session.view().created_at).total_seconds() > 6.9


@pytest.mark.parametrize(
    "bad",
    [error(429, "insufficient_quota"), error(401, "invalid_api_key"), error(404, "model_not_found")],
    ids=["quota", "key", "model"],
)
def test_what_does_not_pass_is_dead_at_once(
    server: OpenAIServer, registry: Registry, client: Client, tenant: str, local: Local, bad: Reply
) -> None:
    session, died = run(server, registry, client, tenant, local, bad, Reply("3"))
    assert died is not None
    assert len(server.requests) == 1
    assert session.view().failure["kind"] == "permanent"
    assert "sk-test-secret" not in str(session.view().failure)


@pytest.mark.parametrize(
    "bad",
    [
        Reply(calls=[("ad", {"a": 1, "b": 2})]),
        Reply(calls=[("add", {"a": "one"})]),
        Reply(calls=[("add", '{"a": 1, "b":')]),
        Reply(calls=[("final_result", {"total": "many"})]),
        Reply(""),
        Reply("The total is three."),
        Reply('{"total": 3', finish="length"),
    ],
    ids=["tool name", "arguments", "json", "schema", "empty", "prose", "length"],
)
def test_a_wrong_answer_is_repaired(
    server: OpenAIServer, registry: Registry, client: Client, tenant: str, local: Local, bad: Reply
) -> None:
    """
    The feedback goes out in a form that the provider takes, and the next answer counts.
    """
    session, died = run(
        server, registry, client, tenant, local, bad, Reply(calls=[("final_result", {"total": 3})]), output=Sum
    )
    assert died is None
    assert session.view().result == {"total": 3}
    assert len(server.requests) == 2
    assert len(server.requests[1]["messages"]) > len(server.requests[0]["messages"])


@pytest.mark.parametrize("raw", [b"{", b'{"choices": []}'], ids=["cut off", "no choices"])
def test_a_body_that_is_no_completion(
    server: OpenAIServer, registry: Registry, client: Client, tenant: str, local: Local, raw: bytes
) -> None:
    """
    With status 200: the provider's fault, not the program's, so it is asked again.
    """
    session, died = run(server, registry, client, tenant, local, Reply(raw=raw), Reply("3"))
    assert died is None
    assert session.view().result == "3"


def test_a_history_too_long_for_the_model_is_shown_shorter(
    server: OpenAIServer, registry: Registry, client: Client, tenant: str, local: Local
) -> None:
    """
    Old tool results are left out of what is sent, not of what is stored; what stays too long is dead.
    """
    too_long = error(400, "context_length_exceeded", "This model's maximum context length is 8 tokens.")

    @tool(idempotent=True)
    def fetch(n: int) -> str:
        """Fetch."""
        return f"page {n} " * 100

    server.replies = [*[Reply(calls=[("fetch", {"n": n})]) for n in range(12)], too_long, Reply("read")]
    ModelAgent("reader", model=server.model(), tools=[fetch], needs=f"openai-{tenant}", registry=registry)
    session = client.start("reader", tenant=tenant, input={"prompt": "read all"})
    assert local().drain(session).result == "read"
    refused, shorter = server.requests[-2:]
    assert len(str(shorter)) < 0.8 * len(str(refused))
    assert len(shorter["messages"]) == len(refused["messages"])
    assert "page 11" in str(shorter)
    assert "page 0" not in str(shorter["messages"])

    session, died = run(server, registry, client, tenant, local, *[too_long] * 9)
    assert died is not None
    assert len(server.requests) - 14 <= 4


def limits_of(client: Client, place: str) -> list[tuple[int | None, int | None]]:
    return [(row.learned_requests, row.learned_tokens) for row in client.rates.ls() if row.provider == place]


@pytest.mark.parametrize("stream", [False, True])
def test_what_an_answer_says_of_its_limits_holds_for_the_fleet(
    server: OpenAIServer, registry: Registry, client: Client, tenant: str, local: Local, stream: bool
) -> None:
    """
    Pydantic AI hands no headers on: they are heard at its HTTP client. The limit is the model's, and when nothing
    remains of it, the next request waits for its reset; another model of the provider does not.
    """
    model = f"gpt-5-{tenant}"
    client.budgets.set_price(f"openai:{model}", input_usd=1, output_usd=1, reason="a test")
    told = {
        "x-ratelimit-limit-requests": "4321", "x-ratelimit-limit-tokens": "9876543",
        "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s",
    }  # fmt: skip
    server.replies = [Reply(calls=[("add", {"a": 1, "b": 2})], headers=told), Reply("3")]
    needs = f"openai-{tenant}"
    ModelAgent("desk", model=server.model(model), tools=[add], needs=needs, registry=registry, stream=stream)
    session, fleet = client.start("desk", tenant=tenant, input={"prompt": "1 + 2?"}), local()
    assert fleet.drain(session).result.strip() == "3"
    assert limits_of(client, f"openai:{model}") == [(4321, 9_876_543)]
    assert fleet.clock.offset_s > 300  # the second request waited for the reset
    assert len(server.requests) == 2
    gate = Gate(StoredRates(client._store))
    assert gate.admit(tenant, "openai", 1, model=f"{model}-mini").wait_s == 0


def test_a_refusal_of_a_model_closes_that_model(
    server: OpenAIServer, registry: Registry, client: Client, tenant: str, local: Local, store: Store
) -> None:
    """
    Retry-After of a real answer: every worker's next call of the model waits, not only the step that was refused.
    """
    model = f"gpt-5-{tenant}"
    client.budgets.set_price(f"openai:{model}", input_usd=1, output_usd=1, reason="a test")
    server.replies = [error(429, "rate_limit_exceeded", retry_after="90")]
    ModelAgent("desk", model=server.model(model), needs=f"openai-{tenant}", registry=registry)
    session, fleet = client.start("desk", tenant=tenant, input={"prompt": "hello"}), local()
    fleet.carry_next(tenant)
    assert session.view().state == "running"
    elsewhere = Gate(StoredRates(store))
    assert 80 < elsewhere.admit(tenant, "openai", 1, model=model).wait_s <= 90
    assert elsewhere.admit(tenant, "openai", 1, model=f"{model}-mini").wait_s == 0
