"""`agentq effect`."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from agentq.store.effects import Effects
from agentq.verdicts import Failure, Granted
from tests.cli.conftest import Cli
from tests.support.hands import Hands, at_once

LOST = Failure("unknown", "UnknownEffect", "the answer was lost")


@pytest.fixture
def lost(hands: Hands) -> Granted:
    """A step that ended dead, because nobody knows whether its payment happened."""
    claim = hands.begin()
    effects = Effects(hands.store)
    effects.claim(claim, "pay:1", name="pay", args_hash=b"a", durable=True)
    effects.settle(claim, "pay:1", "unknown", failure=LOST)
    hands.settle(claim, "dead", failure=LOST)
    return claim


def test_what_nobody_knows_is_listed(cli: Cli, hands: Hands, lost: Granted) -> None:
    """
    With who called it and why nobody knows; `show` gives the commands that settle it.
    """
    [row] = cli.json("effect", "ls", "--tenant", hands.tenant)
    assert (row["key"], row["name"], row["state"], row["session_state"]) == ("pay:1", "pay", "unknown", "failed")
    table = cli.ok("effect", "ls", "--tenant", hands.tenant)
    assert "the answer was lost" in table
    shown = cli("effect", "show", "pay:1", "--tenant", hands.tenant)
    assert f"agentq effect resolve 'pay:1' --tenant {hands.tenant} --done RESULT_JSON" in shown.stderr
    assert f"agentq dlq redrive {lost.ref.session_id}" in shown.stderr
    assert cli.json("effect", "ls", "--tenant", hands.tenant, "--state", "done") == []


def test_it_happened(cli: Cli, hands: Hands, lost: Granted, admin: psycopg.Connection[Any]) -> None:
    """
    A dry run changes nothing; told twice it is the same once, told otherwise afterwards it is refused.
    """
    resolve = ("effect", "resolve", "pay:1", "--tenant", hands.tenant)
    dry = cli.json(*resolve, "--done", '{"receipt": 7}', "--reason", "seen in the ledger", "--dry-run")
    assert (dry["outcome"], dry["state"]) == ("resolved", "unknown")
    said = cli(*resolve, "--done", '{"receipt": 7}', "--reason", "seen in the ledger")
    assert "effect pay:1 (pay) is done" in said.stdout
    assert f"agentq dlq redrive {lost.ref.session_id}" in said.stderr
    again = cli(*resolve, "--done", '{ "receipt":7 }', "--reason", "me too")
    assert "nothing changed" in again.stderr
    assert "known to be done" in cli.refused(2, *resolve, "--not-done", "--reason", "no")
    row = cli.json("effect", "show", "pay:1", "--tenant", hands.tenant)
    assert (row["state"], row["result"], row["resolved_by"]) == ("done", {"receipt": 7}, "tester")
    found = admin.execute(
        "select operator, target, reason, detail from agentq.operator_action where tenant = %s", (hands.tenant,)
    ).fetchall()
    assert found == [("tester", "pay:1", "seen in the ledger", {"before": "unknown", "after": "done"})]


def test_it_did_not_happen(cli: Cli, hands: Hands, lost: Granted) -> None:
    """
    I5: only then may the call go out again, under the same key.
    """
    cli.ok("effect", "resolve", "pay:1", "--tenant", hands.tenant, "--not-done", "--reason", "not in the ledger")
    step = hands.begin()
    found = Effects(hands.store).claim(step, "pay:1", name="pay", args_hash=b"a", durable=True)
    assert found.state == "again"


def test_of_two_people_one_decides(cli: Cli, hands: Hands, lost: Granted) -> None:
    """
    At the same moment, told two ways: one word counts, the other is refused, and says so.
    """
    from agentq.store.resolving import EffectDesk

    desk = EffectDesk(hands.store)
    tell = {"operator": "me", "reason": "x", "dry_run": False}
    answers = at_once(
        *[
            lambda result=result: desk.resolve(hands.tenant, "pay:1", result=result, **tell)[0]  # type: ignore[misc]
            for result in (b"1", None) * 4
        ]
    )
    assert answers.count("resolved") == 1
    assert set(answers) == {"resolved", "already", "settled"}


def test_a_call_that_is_out_now_is_not_told(cli: Cli, hands: Hands) -> None:
    """
    While its step runs nobody can know; once that has died, it is a person's to tell.
    """
    claim = hands.begin()
    Effects(hands.store).claim(claim, "pay:2", name="pay", args_hash=b"a", durable=True)
    resolve = ("effect", "resolve", "pay:2", "--tenant", hands.tenant, "--not-done", "--reason", "x")
    assert "being called now" in cli.refused(2, *resolve)
    hands.settle(claim, "dead", failure=LOST)
    assert "is not done" in cli.ok(*resolve)


@pytest.mark.parametrize(
    ("code", "arguments", "says"),
    [
        (4, ("show", "nothing-of-this-key"), "no effect"),
        (4, ("resolve", "nothing-of-this-key", "--not-done", "--reason", "x"), "no effect"),
        (2, ("resolve", "k", "--reason", "x"), "one of --done"),
        (2, ("resolve", "k", "--done", "1", "--not-done", "--reason", "x"), "one of --done"),
        (2, ("resolve", "k", "--done", "receipt", "--reason", "x"), "with its quotes"),
        (2, ("resolve", "k", "--not-done"), "--reason"),
        (2, ("resolve", "k", "--not-done", "--reason", " "), "--reason"),
        (2, ("ls", "--state", "lost"), "lost"),
        (4, ("ls", "--session", "ffffffff"), "no session"),
    ],
)
def test_bad_input_changes_nothing(cli: Cli, code: int, arguments: tuple[str, ...], says: str) -> None:
    """
    One line that says what was wrong, and the exit code of its kind.
    """
    assert says in cli.refused(code, "effect", *arguments)
