"""The watch over anomalies: what runs away is found while it runs, each session teaches once, orders are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from agentq import Agent, Ask, Context, Done, Next, Sleep, effect
from agentq.agents.registry import Registry
from agentq.client import Client
from agentq.policies.anomalies import BaselineRules, Thresholds
from agentq.relay.anomalies import Anomaly, AnomalyWatch
from agentq.relay.notices import facts_of, mail_of
from agentq.store.anomalies import Anomalies
from agentq.store.approvals import Approvals
from agentq.testing import LocalFleet

LIMITS = Thresholds(runs_min=20, runs_few=10, window=20)
Local = Callable[..., LocalFleet]


class Walk(BaseModel):
    left: int = 3
    tool: str = "look"
    stop_at: int = -1
    stop: str = ""


@effect(idempotent=True)
def look(n: int) -> int:
    """The usual tool."""
    return n


@effect(idempotent=True)
def shout(n: int) -> int:
    """One that is never used."""
    return n


def define(registry: Registry) -> None:
    agent = Agent("walker", state=Walk, registry=registry)

    @agent.step(start=True)
    def go(state: Walk, ctx: Context) -> Next | Ask | Sleep | Done:
        ctx.call(shout if state.tool == "shout" else look, state.left)
        ctx.usage(input_tokens=100, cost_usd="0.001")
        state.left -= 1
        if state.left == state.stop_at and state.stop == "asks":
            return Ask("Go on?", then=go, state=state)
        if state.left == state.stop_at and state.stop == "sleeps":
            return Sleep("1h", then=go, state=state)
        return Next(go, state) if state.left else Done("there")


class Watched:
    """A watch whose words are kept, over one tenant's agent."""

    def __init__(self, client: Client, local: Local, registry: Registry, tenant: str, **more: Any) -> None:
        define(registry)
        self.said: list[Anomaly] = []
        self.tenant, self.client, self.fleet = tenant, client, local()
        self.store = Anomalies(client.sessions.store)
        self.watch = AnomalyWatch(self.store, BaselineRules(LIMITS), tell=[self.said.append], **more)

    def run(self, **given: Any) -> Any:
        session = self.client.start("walker", tenant=self.tenant, input=given)
        self.fleet.drain(session)
        return session

    def rounds(self) -> None:
        while self.watch.round():
            pass

    def teach(self, runs: int = 24, left: int = 3) -> None:
        for number in range(runs):
            self.run(left=left + number % 2)
        self.rounds()

    def carry(self, attempts: int) -> None:
        for _ in range(attempts):
            self.fleet.carry_next(self.tenant)
            self.rounds()

    def mine(self) -> list[Anomaly]:
        return [one for one in self.said if one.tenant == self.tenant]

    def runs(self) -> int:
        return sum(row.runs for row in self.store.baselines(self.tenant))


@pytest.fixture
def watched(client: Client, local: Local, registry: Registry, tenant: str) -> Watched:
    return Watched(client, local, registry, tenant)


def test_what_is_normal_is_learned_once_and_told_by_nobody(watched: Watched) -> None:
    """
    A session teaches when it has ended; its row goes with that, so a second round learns nothing.
    """
    watched.teach()
    assert watched.runs() == 24
    watched.rounds()
    assert watched.runs() == 24
    assert watched.mine() == []
    [row] = watched.store.baselines(watched.tenant)
    assert row.facts["measures"]["steps"]["top"] == 4


def test_a_session_at_ten_times_its_steps_is_found_while_it_runs(watched: Watched) -> None:
    """
    From the counters of a session that has not ended; once, also when it is seen again at its end.
    """
    watched.teach()
    session = watched.client.start("walker", tenant=watched.tenant, input={"left": 60})
    for _ in range(40):
        watched.fleet.carry_next(watched.tenant)
        watched.rounds()
        if watched.mine():
            break
    assert session.view().state == "running"
    found = next(one for one in watched.mine() if one.measure == "steps")
    assert str(found.session_id) == session.id
    assert found.running
    assert 8 <= found.value < 40
    assert found.high == pytest.approx(4, abs=0.1)
    watched.fleet.drain(session)
    watched.rounds()
    assert [one.measure for one in watched.mine()].count("steps") == 1
    [row] = [one for one in watched.store.ls(tenant=watched.tenant) if one.measure == "steps"]
    assert row.value == 60, "a later look raises what is known"
    assert watched.runs() == 24, "what stands out is not learned from"


@pytest.mark.parametrize("stop", ["is parked", "asks", "sleeps"])
def test_who_stops_for_long_is_looked_at_where_it_stops(watched: Watched, stop: str) -> None:
    """
    At fourteen attempts, between the looks at eight and at sixteen: whoever decides how it goes on shall know.
    """
    watched.teach(left=8)
    session = watched.client.start("walker", tenant=watched.tenant, input={"left": 60, "stop_at": 46, "stop": stop})
    watched.carry(14)
    if stop == "is parked":
        assert watched.mine() == [], "usual when it was looked at"
        session.pause("lunch")
        watched.rounds()
    found = next(one for one in watched.mine() if one.measure == "steps")
    assert (found.value, found.running, str(found.session_id)) == (14, True, session.id)
    assert watched.watch.look_at_running() == 0, "once"


def test_a_tool_that_was_never_called_is_named(watched: Watched) -> None:
    watched.teach(40)
    session = watched.run(left=3, tool="shout")
    watched.rounds()
    [found] = watched.mine()
    assert (found.measure, found.rule, str(found.session_id)) == ("tool:shout", "new_tool", session.id)


def test_an_operators_order_parks_and_mutes(watched: Watched) -> None:
    """
    Flagged alone without an order; parked where one says so; silent where the most specific one says that.
    """
    watched.teach()
    watched.client.anomalies.order("park", tenant=watched.tenant, agent="walker", reason="they loop")
    watched.client.anomalies.order("mute", tenant=watched.tenant, agent="walker", measure="cost", reason="known")
    watched.client.anomalies.order("mute", tenant=watched.tenant, agent="walker", measure="tokens", reason="known")
    session = watched.client.start("walker", tenant=watched.tenant, input={"left": 60})
    for _ in range(20):
        watched.fleet.carry_next(watched.tenant)
        watched.rounds()
    view = session.view()
    assert view.state == "paused"
    assert [(one.measure, one.parked) for one in watched.mine()] == [("steps", True)]
    session.resume("let it")
    watched.carry(10)
    assert session.view().state == "running", "it is parked once"


def test_a_crash_before_the_commit_learns_nothing_and_loses_nothing(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        watched.run()
    with monkeypatch.context() as broken:
        broken.setattr(watched.store, "learn", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            watched.watch.learn_from_ended()
    assert watched.runs() == 0
    watched.rounds()
    assert watched.runs() == 3


def test_a_replayed_session_is_judged_and_teaches_nothing(watched: Watched) -> None:
    session = watched.run()
    watched.rounds()
    first = session.steps()[0]
    watched.client.recovery.replay(watched.tenant, session._uuid, reason="again", from_step=str(first.step_id))
    watched.fleet.drain(session)
    watched.rounds()
    assert watched.runs() == 1


def test_people_mute_and_their_names_are_kept(watched: Watched) -> None:
    watched.teach()
    watched.run(left=60)
    watched.rounds()
    anomalies = watched.client.anomalies
    row = anomalies.ls(tenant=watched.tenant)[0]
    assert anomalies.mute(str(row.anomaly_id), reason="known", dry_run=True)
    assert anomalies.get(str(row.anomaly_id)).state == "open"
    assert anomalies.mute(str(row.anomaly_id), reason="known")
    assert not anomalies.mute(str(row.anomaly_id), reason="known")
    assert row.anomaly_id not in {one.anomaly_id for one in anomalies.ls(tenant=watched.tenant)}
    assert anomalies.unmute(str(row.anomaly_id), reason="not so")
    done = [one.action for one in watched.client.operators.actions(tenant=watched.tenant)]
    assert done[:2] == ["anomaly unmute", "anomaly mute"]


def test_people_are_told_once_with_numbers_alone(client: Client, local: Local, registry: Registry, tenant: str) -> None:
    """
    A notice for each channel, written with the anomaly; not for what is muted.
    """
    watched = Watched(client, local, registry, tenant, channels=("webhook", "email"))
    watched.teach()
    client.anomalies.order("mute", tenant=tenant, measure="steps", reason="known")
    session = watched.run(left=60)
    watched.rounds()
    found = [one for one in Approvals(client.sessions.store).take_notices(500, lease_s=60) if one.tenant == tenant]
    measures = {one.measure for one in watched.mine()}
    assert "steps" not in measures
    assert {(one.channel, one.name) for one in found} == {(c, m) for c in ("webhook", "email") for m in measures}
    facts = facts_of(found[0], client.settings)
    assert (facts["kind"], facts["session"], facts["agent"]) == ("anomaly", session.id, "walker")
    mail = mail_of(found[0], client.settings.model_copy(update={"notify_email_from": "a@b.example"}), ["c@d.example"])
    assert "agentq anomaly show" in mail.get_content()
