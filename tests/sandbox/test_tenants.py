"""Two tenants' tools in the sandbox at once: neither sees files, folders, processes or variables of the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from agentq import Agent, Context, Done, sandbox
from agentq.agents.registry import Registry
from agentq.agents.sandboxed import boxed
from agentq.client import Client
from agentq.errors import SandboxUnavailable
from agentq.sandbox import Backend, Bubblewrap, Landlock, Limits
from agentq.testing import LocalFleet
from tests.sandbox import tools
from tests.sandbox.tools import Mark
from tests.support.hands import at_once

BACKENDS: list[Backend] = [Bubblewrap(), Landlock()]


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def box(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each backend that works here, as the one that tools run in."""
    found: Backend = request.param
    if (why := found.unusable()) is not None:
        pytest.skip(f"NOT CHECKED HERE: {found.name}: {why}")
    sandbox.configure(found.name, "image")  # type: ignore[arg-type]
    try:
        boxed(tools.moved, Limits())(tools.Point(x=1, y=1))
        yield found
    except SandboxUnavailable as error:
        pytest.skip(f"NOT CHECKED HERE: this Python cannot be shown to {found.name}: {error}")
    finally:
        sandbox.configure("auto", "image")


@pytest.fixture
def agent(registry: Registry) -> Agent[Mark]:
    """An agent whose only tool runs in the sandbox."""
    agent = Agent("boxer", state=Mark, registry=registry)

    @agent.step(retries=0, timeout="60s")
    def work(state: Mark, ctx: Context) -> Done:
        return Done(ctx.call(tools.leave_and_look, state))

    return agent


def test_a_tenants_tool_sees_nothing_of_another_tenants(
    box: Backend, agent: Agent[Mark], client: Client, tenant: str, other_tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    I8: while B's tool holds a file, a variable, shared memory and arguments with its mark, A's looks everywhere.

    And once more when B's has ended: nothing of it is left. A tool finds its own mark, so it does look.
    """
    monkeypatch.setenv("AGENTQ_TENANT_SECRET", "mark-of-the-worker")

    def run(whose: str, name: str, turn: int, stays_s: float) -> dict[str, Any]:
        with LocalFleet(client) as fleet:
            given = {"word": f"mark-of-{whose}", "others": "mark-of-", "stays_s": stays_s}
            found = fleet.drain(client.start("boxer", tenant=name, input=given, key=f"{whose} {turn}")).result
            assert isinstance(found, dict), found
            return found

    for turn in range(5):
        theirs, ours = at_once(partial(run, "theirs", other_tenant, turn, 6.0), partial(run, "ours", tenant, turn, 0.0))
        assert isinstance(theirs, dict), theirs
        assert isinstance(ours, dict), ours
        if theirs["marked_at"] < ours["looked_at"] and ours["ended_at"] < theirs["ended_at"]:
            break
    else:
        pytest.fail("the two never ran at the same time")
    later = run("later", tenant, 0, 0.0)

    for found, whose in ((ours, "ours"), (theirs, "theirs"), (later, "later")):
        seen = {word for words in found["seen"].values() for word in words}
        assert seen == {f"mark-of-{whose}"}, json.dumps(found["seen"])
        assert {"file", "environment"} <= set(found["seen"])
