"""Redrives: each letter once, canaries first, left and taken up again, edited, refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from agentq import Agent
from agentq.agents.registry import Registry
from agentq.client import Client, Selection, Terms
from agentq.client.edits import edited
from agentq.errors import InvalidInput, InvalidState
from agentq.payload import decode
from agentq.relay.redrives import Driver, Progress
from agentq.testing import LocalFleet
from tests.redrives.conftest import Shop
from tests.support.hands import at_once


class Newer(BaseModel):
    """What version 2 of the shop works on."""

    id: int
    cents: int


Local = Callable[..., LocalFleet]


def test_a_redriven_session_goes_on_where_it_stopped(shop: Shop, local: Local) -> None:
    """
    From its checkpoint: what was done before is not done again, and it ends as if nothing had happened.
    """
    fleet = local()
    [letter] = shop.open_letters(fleet, 1)
    shop.down = False
    last = shop.redrive()
    assert (last.job.state, last.job.redriven, last.job.refused) == ("done", 1, 0)
    assert shop.letters("redriving")[0].letter_id == letter.letter_id
    shop.run(fleet)
    assert shop.client.get(shop.tenant, str(letter.session_id)).view().result == 100
    assert shop.reserved == [0]
    assert shop.paid == [(0, 100, "reserved 0")]
    assert shop.letters("resolved")[0].job_id == last.job.job_id


def test_one_that_dies_again_has_a_letter_of_its_own(shop: Shop, local: Local) -> None:
    """
    The generation grows, and those brought back too often are left for a person.
    """
    fleet = local()
    shop.open_letters(fleet, 1)
    for generation in (1, 2):
        assert shop.redrive(max_generation=2).job.redriven == 1
        shop.run(fleet)
        assert [letter.generation for letter in shop.letters("open")] == [generation]
        assert len(shop.letters("redriven")) == generation
    last = shop.redrive(max_generation=2)
    assert (last.job.redriven, last.job.refused) == (0, 1)
    assert shop.redrive(max_generation=3).job.redriven == 1


def test_a_job_takes_nothing_that_dies_after_it_began(shop: Shop, local: Local) -> None:
    """
    Or a redrive of what dies at once would never end.
    """
    fleet = local()
    shop.open_letters(fleet, 2)
    seen = []
    for progress in shop.client.dead_letters.redrive(
        Selection(tenant=shop.tenant), reason="again", terms=Terms(rate_per_s=1, max_generation=100)
    ):
        shop.run(fleet)  # each dies again before the next one is taken
        seen.append(progress.job.redriven)
        assert seen[-1] <= 2
    assert seen[-1] == 2


def test_two_people_at_once_redrive_each_letter_once(shop: Shop, local: Local, client: Client) -> None:
    """
    With the same command they share one job; with different ones, no letter is taken twice.
    """
    fleet = local()
    shop.open_letters(fleet, 30)
    shop.down = False

    def redrive(selection: Selection) -> Progress:
        *_, last = client.dead_letters.redrive(selection, reason="me too", terms=Terms(rate_per_s=1000))
        return last

    whole, steps = Selection(tenant=shop.tenant), Selection(tenant=shop.tenant, step="pay")
    results = at_once(*[lambda: redrive(whole)] * 2, *[lambda: redrive(steps)] * 2)
    jobs = {last.job.job_id: client.dead_letters.redrives.get(last.job.job_id) for last in results}
    assert sum(job.redriven for job in jobs.values()) == 30
    shop.run(fleet)
    assert sorted(order for order, _, _ in shop.paid) == list(range(30))
    assert {letter.generation for letter in shop.letters()} == {0}


def test_two_drivers_of_one_job_take_turns(shop: Shop, local: Local, client: Client) -> None:
    """
    Even where the turn is ignored: letters and the job's own counts stay right.
    """
    fleet = local()
    shop.open_letters(fleet, 40)
    redrives = client.dead_letters.redrives
    job, _ = redrives.begin(Selection(tenant=shop.tenant), Terms(), operator="a", reason="b")
    taken = at_once(*[lambda: [redrives.next(job.job_id, 3, canary=False) for _ in range(8)]] * 4)
    outcomes = [one.outcome for batches in taken for batch in batches for one in batch]
    assert outcomes.count("redriven") == 40
    assert redrives.get(job.job_id).redriven == 40


def test_whoever_comes_second_follows(shop: Shop, local: Local, client: Client) -> None:
    """
    The same command, given while another process drives it, only looks on.
    """
    fleet = local()
    shop.open_letters(fleet, 3)
    letters = client.dead_letters
    first = letters.redrive(Selection(tenant=shop.tenant), reason="one", terms=Terms(rate_per_s=1))
    assert next(first).job.redriven == 1
    second = letters.redrive(Selection(tenant=shop.tenant), reason="two", terms=Terms(rate_per_s=1))
    looked = next(second)
    assert (looked.driving, looked.job.redriven) == (False, 1)
    first.close()
    assert next(second).driving
    second.close()


def test_left_in_the_middle_and_taken_up_again(shop: Shop, local: Local, client: Client) -> None:
    """
    The same command goes on with the same job; what was done is not done again.
    """
    fleet = local()
    shop.open_letters(fleet, 5)
    shop.down = False
    letters, terms = client.dead_letters, Terms(rate_per_s=2)
    steps = letters.redrive(Selection(tenant=shop.tenant), reason="go", terms=terms)
    begun = next(steps).job
    steps.close()
    assert len(shop.letters("open")) == 4
    *_, last = letters.redrive(Selection(tenant=shop.tenant), reason="go", terms=Terms(rate_per_s=1000))
    assert (last.job.job_id, last.job.redriven, last.job.matched) == (begun.job_id, 5, 5)
    shop.run(fleet)
    assert sorted(order for order, _, _ in shop.paid) == list(range(5))


def test_the_rate_is_kept(shop: Shop, local: Local, client: Client) -> None:
    """
    Between two steps of a job there is as much time as its letters may take.
    """
    fleet = local()
    shop.open_letters(fleet, 12)
    redrives = client.dead_letters.redrives
    job, _ = redrives.begin(Selection(tenant=shop.tenant), Terms(rate_per_s=8), operator="a", reason="b")
    driver = Driver(redrives, job)
    waits: list[float] = []
    for _ in driver.steps(pause=waits.append):
        pass
    assert waits == [0.5, 0.5, 0.5]


def test_canaries_first(shop: Shop, local: Local) -> None:
    """
    The rest waits for them, and goes once they got past the step that had died.
    """
    fleet = local()
    shop.open_letters(fleet, 6)
    shop.down = False
    steps = shop.client.dead_letters.redrive(
        Selection(tenant=shop.tenant), reason="careful", terms=Terms(canary=2, rate_per_s=1000)
    )
    states = []
    for progress in steps:
        states.append(progress.job.state)
        if progress.waiting_for:
            assert len(shop.letters("redriving")) == 2
            shop.run(fleet)
    assert states[-1] == "done"
    assert "waiting" in states
    assert sum(letter.canary for letter in shop.letters()) == 2
    assert len(shop.letters("open")) == 0


def test_canaries_that_die_keep_the_rest(shop: Shop, local: Local) -> None:
    """
    Below the threshold nothing more is touched, and the job says why.
    """
    fleet = local()
    shop.open_letters(fleet, 8)
    shop.down, shop.refuses = False, {0, 1}
    terms = Terms(canary=4, threshold=0.75, rate_per_s=1000)
    *_, last = _driving(shop, fleet, terms)
    assert last.job.state == "stopped"
    assert "2 of 4 canaries died again" in str(last.job.note)
    assert sorted(letter.generation for letter in shop.letters("open")) == [0] * 4 + [1] * 2
    # The share that is asked for decides.
    shop.refuses = {4}
    *_, last = _driving(shop, fleet, Terms(canary=4, threshold=0.5, rate_per_s=1000))
    assert last.job.state == "done"


def test_canaries_that_do_not_come_back_in_time_stop_it(shop: Shop, local: Local) -> None:
    fleet = local()
    shop.open_letters(fleet, 3)
    terms = Terms(canary=1, canary_timeout_s=0.2, rate_per_s=1000)
    *_, last = shop.client.dead_letters.redrive(Selection(tenant=shop.tenant), reason="x", terms=terms)
    assert last.job.state == "stopped"
    assert "had not got past their step" in str(last.job.note)
    assert len(shop.letters("open")) == 2
    assert fleet is not None


def _driving(shop: Shop, fleet: LocalFleet, terms: Terms) -> list[Progress]:
    """Every step of a redrive, the fleet at work meanwhile."""
    found = []
    for progress in shop.client.dead_letters.redrive(Selection(tenant=shop.tenant), reason="x", terms=terms):
        found.append(progress)
        assert len(found) < 200, progress
        if progress.waiting_for:
            shop.run(fleet)
    return found


def test_effects_of_unknown_outcome_are_a_persons_matter(
    shop: Shop, local: Local, admin: psycopg.Connection[Any]
) -> None:
    """
    I5: refused until somebody says what was found on the other side; what was said is on record.
    """
    fleet = local()
    letters = shop.open_letters(fleet, 3)
    admin.execute(
        "update agentq.effect set state = 'unknown', result = null, failure = '{}' where tenant = %s",
        (shop.tenant,),
    )
    admin.execute("update agentq.dead_letter set effects_unknown = 1 where tenant = %s", (shop.tenant,))
    shop.down = False
    plan = shop.client.dead_letters.plan(Selection(tenant=shop.tenant))
    assert (plan.letters, plan.with_unknown_effects, plan.redrives) == (3, 3, 0)
    last = shop.redrive()
    assert (last.job.redriven, last.job.refused) == (0, 3)
    assert len(shop.letters("open")) == 3
    for letter, said in zip(letters, ("done", "not-done", "again"), strict=True):
        chosen = Selection(letters=(letter.letter_id,))
        terms = Terms(effects=said, from_step="look")  # type: ignore[arg-type]
        *_, last = shop.client.dead_letters.redrive(chosen, reason="I looked", terms=terms)
        assert last.job.redriven == 1, said
    shop.run(fleet)
    # Recalled where it was done, called again where it was not.
    assert sorted(shop.reserved) == [0, 1, 1, 2, 2]
    assert len(shop.paid) == 2
    assert len(shop.letters("open")) == 1  # null is no text, as the state's model wants it
    rows = admin.execute(
        "select detail ->> 'decided' from agentq.operator_action where tenant = %s and action = 'dlq effects'"
        " order by action_id",
        (shop.tenant,),
    ).fetchall()
    assert [row[0] for row in rows] == ["done", "not-done", "again"]


def test_editing_the_state(shop: Shop, local: Local, admin: psycopg.Connection[Any]) -> None:
    """
    Checked against the agent's model, used by the step, and kept: who, why, before, after.
    """
    fleet = local()
    [letter] = shop.open_letters(fleet, 1)
    shop.down = False
    *_, last = shop.client.dead_letters.redrive(
        Selection(letters=(letter.letter_id,)), reason="half price", change={"amount_cents": 50, "seen": ["a"]}
    )
    assert last.job.redriven == 1
    shop.run(fleet)
    assert shop.paid == [(0, 50, "reserved 0")]
    [(operator, reason, diff)] = admin.execute(
        "select operator, reason, detail -> 'diff' from agentq.operator_action"
        " where action = 'dlq edit' and target = %s",
        (str(letter.letter_id),),
    ).fetchall()
    assert reason == "half price"
    assert operator
    assert diff == [
        {"path": "amount_cents", "before": 100, "after": 50},
        {"path": "seen", "before": [], "after": ["a"]},
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"amount_cents": "much"}, "amount_cents"),
        ({"amuont_cents": 5}, "no amuont_cents"),
        ({"seen.3": "x"}, "nothing at seen.3"),
        ({"id.deep": 1}, "nothing"),
        ({"amount_cents": 100}, "changes nothing"),
        (lambda _: [1], "a mapping"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(shop: Shop, local: Local, change: Any, says: str) -> None:
    """
    Nothing is redriven, and the letter is as it was.
    """
    [letter] = shop.open_letters(local(), 1)
    with pytest.raises(InvalidInput, match=says):
        shop.client.dead_letters.edit(letter, change)
    *_, last = shop.client.dead_letters.redrive(Selection(letters=(letter.letter_id,)), reason="x", change=change)
    assert (last.job.redriven, last.job.refused) == (0, 1)
    assert shop.letters("open") == [letter]


def test_editing_the_state_of_an_older_version(shop: Shop, local: Local) -> None:
    """
    I10: where only newer code is at hand, the state is edited as it is, checked as that code would take it over.
    """
    [letter] = shop.open_letters(local(), 1)
    newer: Agent[Newer] = Agent("shop", state=Newer, version=2, registry=Registry())

    @newer.migrate(from_version=1)
    def rename(old: dict[str, Any]) -> dict[str, Any]:
        return {"id": old["id"], "cents": old["amount_cents"]}

    state, version = shop.client.dead_letters.letters.state_before(letter)
    assert version == 1
    after, diff = edited(newer, state, {"amount_cents": 5}, version=version, pinned=1)
    assert decode(after)["amount_cents"] == 5
    assert [one["path"] for one in diff] == ["amount_cents"]
    with pytest.raises(InvalidState):
        edited(newer, state, {"amount_cents": "much"}, version=version, pinned=1)
    # Its session runs under the new version already: what is stored is of that one too.
    after, _ = edited(newer, state, {"cents": 7}, version=1, pinned=2)
    assert decode(after) == {"id": 0, "cents": 7}


def test_from_an_earlier_step(shop: Shop, local: Local) -> None:
    """
    Its effects are recalled, not repeated; a step that never ran is refused.
    """
    fleet = local()
    [letter] = shop.open_letters(fleet, 1)
    shop.down = False
    assert shop.redrive(from_step="never").job.refused == 1
    assert shop.redrive(from_step="look").job.redriven == 1
    shop.run(fleet)
    assert shop.reserved == [0]
    assert shop.paid == [(0, 100, "reserved 0")]
    assert shop.letters("resolved")[0].letter_id == letter.letter_id


def test_a_session_that_went_on_otherwise(shop: Shop, local: Local, store: Any) -> None:
    """
    Replayed by hand meanwhile: its letter is resolved, and nothing is done twice.
    """
    fleet = local()
    [letter] = shop.open_letters(fleet, 1)
    with store.transaction("*") as connection:
        connection.execute(
            "select * from agentq.reopen_session(%s, %s, %s, gen_random_uuid(), 0, null, null, null)",
            (shop.tenant, letter.session_id, letter.step_id),
        )
    assert shop.redrive().job.redriven == 0
    assert shop.letters("resolved")[0].letter_id == letter.letter_id
    assert fleet is not None


def test_past_deadlines_need_a_new_one(shop: Shop, local: Local) -> None:
    fleet = local()
    shop.open_letters(fleet, 1, deadline="1h")
    fleet.clock.advance("2h")
    shop.down = False
    assert shop.redrive().job.refused == 1
    assert shop.redrive(deadline_s=600).job.redriven == 1


def test_a_bulk_redrive_needs_a_filter_and_a_reason(shop: Shop) -> None:
    letters = shop.client.dead_letters
    for selection, reason in ((Selection(), "x"), (Selection(state="open"), "x"), (Selection(step="pay"), " ")):
        with pytest.raises(InvalidInput):
            letters.redrive(selection, reason=reason)
        with pytest.raises(InvalidInput):
            letters.discard(selection, reason=reason)


def test_what_it_would_cost(shop: Shop, local: Local, admin: psycopg.Connection[Any]) -> None:
    """
    Going by sessions of that agent that ended well, less what these have spent already.
    """
    fleet = local()
    shop.open_letters(fleet, 2)
    plan = shop.client.dead_letters.plan(Selection(tenant=shop.tenant))
    assert (plan.letters, plan.expected_cost_micros) == (2, None)
    shop.down = False
    shop.client.start("shop", tenant=shop.tenant, input={"id": 9})
    shop.run(fleet)
    admin.execute("update agentq.checkpoint set cost_micros = 1000 where tenant = %s", (shop.tenant,))
    admin.execute("update agentq.dead_letter set cost_micros = 500 where tenant = %s", (shop.tenant,))
    plan = shop.client.dead_letters.plan(Selection(tenant=shop.tenant))
    assert plan.expected_cost_micros == 2 * (2000 - 500)


def test_a_plan_knows_who_never_ran_the_step(shop: Shop, local: Local) -> None:
    """
    What a redrive from another step would refuse, its dry run says beforehand.
    """
    shop.open_letters(local(), 2)
    for step, refused in (("look", 0), ("lok", 2)):
        plan = shop.client.dead_letters.plan(Selection(tenant=shop.tenant), Terms(from_step=step))
        assert (plan.without_step, plan.redrives) == (refused, 2 - refused)


def test_a_redrive_is_on_record(shop: Shop, local: Local, admin: psycopg.Connection[Any]) -> None:
    """
    I11: who, why and what, when it begins and when it ends.
    """
    shop.open_letters(local(), 1)
    job = shop.redrive().job
    rows = admin.execute(
        "select action, reason from agentq.operator_action where target = %s order by action_id", (str(job.job_id),)
    ).fetchall()
    assert rows == [("dlq redrive", "the till is open again"), ("dlq redrive done", "the till is open again")]


def test_asyncio_says_the_same(shop: Shop, local: Local) -> None:
    import asyncio

    from agentq.client.dead_letters import AsyncDeadLetters

    shop.open_letters(local(), 2)
    letters = AsyncDeadLetters(shop.client.dead_letters, asyncio.to_thread)
    chosen = Selection(tenant=shop.tenant)

    async def work() -> int:
        assert await letters.count(chosen) == len(await letters.ls(chosen)) == 2
        assert [group.letters for group in await letters.groups("cause", chosen)] == [2]
        assert (await letters.plan(chosen)).redrives == 2
        [first, _] = await letters.ls(chosen)
        assert await letters.get(shop.tenant, first.letter_id) == first
        assert await letters.discard(Selection(letters=(first.letter_id,)), reason="x") == 1
        return [step.job.redriven async for step in letters.redrive(chosen, reason="x")][-1]

    assert asyncio.run(work()) == 1
