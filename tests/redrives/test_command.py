"""`agentq dlq redrive`: dry runs, progress, interruptions, refusals and edits as people meet them."""

from __future__ import annotations

import os
import signal
import stat
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentq.client import Terms
from agentq.step import StepRef
from agentq.store.dead_letters import DeadLetterStore, Selection
from agentq.verdicts import Failure
from tests.cli.conftest import Cli, Program, cli, program
from tests.cli.test_dlq import bury
from tests.support.hands import Hands
from tests.support.until import until

__all__ = ["cli", "program"]


def states(hands: Hands) -> dict[str, int]:
    rows = hands.rows("select state, count(*) from agentq.dead_letter group by state")
    return {row["state"]: row["count"] for row in rows}


def test_a_dry_run_changes_nothing(cli: Cli, hands: Hands) -> None:
    bury(hands, times=3)
    arguments = ("dlq", "redrive", "--tenant", hands.tenant, "--class", "permanent", "--dry-run")
    plan = cli.json(*arguments)
    assert (plan["letters"], plan["would_redrive"], plan["with_unknown_effects"]) == (3, 3, 0)
    told = cli.ok(*arguments, "--rate", "1/s", "--canary", "2")
    assert "3 match, 3 would be redriven" in told
    assert "about 3.0 s at 1/s" in told
    assert "2 first" in told
    assert states(hands) == {"open": 3}


def test_redriving(cli: Cli, hands: Hands) -> None:
    """
    By id or filter; twice is once; what is dealt with is said to be.
    """
    one, *_ = bury(hands, times=3)
    done = cli.json("dlq", "redrive", one[:10], "--reason", "mended")
    assert (done["state"], done["redriven"], done["refused"]) == ("done", 1, 0)
    assert "is redriving; nothing to redrive" in cli.ok("dlq", "redrive", one, "--reason", "mended")
    said = cli.ok("dlq", "redrive", "--tenant", hands.tenant, "--reason", "mended", "--rate", "100/s")
    assert said.startswith("2 letters are redriven")
    assert "no open letter" in cli.ok("dlq", "redrive", "--tenant", hands.tenant, "--reason", "mended")
    jobs = [job for job in cli.json("dlq", "redrives") if job["selection"].get("tenant") == hands.tenant]
    assert [(job["redriven"], job["letters"]) for job in jobs] == [(2, {"redriving": 2})]
    assert "mended" in cli.ok("dlq", "redrives")


def test_refusals_are_explained(cli: Cli, hands: Hands, admin: Any) -> None:
    """
    How many, which, and what to do; the exit code says that nothing was brought back.
    """
    [letter] = bury(hands)
    admin.execute("update agentq.dead_letter set generation = 3 where tenant = %s", (hands.tenant,))
    result = cli("dlq", "redrive", letter, "--reason", "x")
    assert result.exit_code == 1
    assert "raise --max-generation" in result.stderr
    assert letter[:8] in result.stderr


def test_ctrl_c_in_the_middle(program: Callable[..., Program], cli: Cli, hands: Hands) -> None:
    """
    It says how far it came, and the same command brings back the rest, each once.
    """
    bury(hands, times=12)
    arguments = ("dlq", "redrive", "--tenant", hands.tenant, "--reason", "x")
    running = program(*arguments, "--rate", "3/s")
    until(lambda: states(hands).get("redriving", 0) >= 2, 60, "a redrive that has begun")
    assert running.end(signal.SIGINT) == 130
    assert "the same command goes on from there" in running.output
    left = states(hands)
    assert 0 < left["open"] < 12
    assert "interrupted" in cli.ok("dlq", "redrives", "--limit", "1")
    done = cli.json(*arguments, "--rate", "1000/s")
    assert (done["redriven"], done["matched"]) == (12, 12)
    assert states(hands) == {"redriving": 12}


def test_a_redrive_that_was_killed_is_taken_over(
    program: Callable[..., Program], cli: Cli, hands: Hands, admin: Any
) -> None:
    """
    Nobody gave the turn back; it runs out by itself.
    """
    bury(hands, times=6)
    arguments = ("dlq", "redrive", "--tenant", hands.tenant, "--reason", "x")
    running = program(*arguments, "--rate", "1/s")
    until(lambda: states(hands).get("redriving", 0) >= 1, 60, "a redrive that has begun")
    running.kill()
    admin.execute(
        "update agentq.redrive_job set driver_until = now() where selection ->> 'tenant' = %s", (hands.tenant,)
    )
    assert cli.json(*arguments, "--rate", "1000/s")["redriven"] == 6


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes $EDITOR a program that writes this text into the file it is given."""

    def use(text: str) -> None:
        script = tmp_path / "editor"
        script.write_text(f"#!/bin/sh\ncat > \"$1\" <<'END'\n{text}\nEND\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("EDITOR", str(script))
        monkeypatch.setenv("VISUAL", str(script))

    return use


def counted(client: Any, hands: Hands) -> str:
    """A letter of the agent `count`, which the command line knows."""
    session = client.start("count", tenant=hands.tenant, input={"n": 1})
    [step] = session.steps()
    claim = hands.claim(StepRef(hands.tenant, uuid.UUID(session.id), step.step_id), serves=["count@1"])
    hands.settle(claim, "dead", failure=Failure("permanent", "X", "y"))
    [letter] = DeadLetterStore(hands.store).ls(Selection(tenant=hands.tenant))
    return str(letter.letter_id)


@pytest.fixture
def count_client(settings: Any) -> Any:
    from agentq.client import Client
    from tests.support import agents

    assert agents.count
    with Client(settings) as client:
        yield client


def test_editing_in_an_editor(
    cli: Cli, hands: Hands, editor: Callable[[str], None], count_client: Any, admin: Any
) -> None:
    """
    What does not fit is refused and the text kept; what fits goes along.
    """
    letter = counted(count_client, hands)
    for text, says in (("{", "text is in"), ('{"n": "many"}', "n:"), ('{"n": 1, "untli": 2}', "untli")):
        editor(text)
        told = cli.refused(2, "dlq", "redrive", letter, "--edit", "--reason", "x")
        assert says in told
        kept = Path(told.rsplit(" ", 1)[-1].strip())
        assert kept.read_text("utf-8").strip() == text
        assert stat.S_IMODE(os.stat(kept).st_mode) == 0o600
        kept.unlink()
    assert states(hands) == {"open": 1}
    editor('{"n": 2, "until": 3}')
    assert cli.json("dlq", "redrive", letter, "--edit", "--reason", "too few")["redriven"] == 1
    [row] = admin.execute(
        "select detail -> 'diff' from agentq.operator_action where action = 'dlq edit' and target = %s", (letter,)
    ).fetchall()
    assert row[0] == [{"path": "n", "before": 1, "after": 2}]


def test_setting_values(cli: Cli, hands: Hands, count_client: Any) -> None:
    letter = counted(count_client, hands)
    told = cli.ok("dlq", "redrive", letter, "--set", "n=2", "--dry-run")
    assert "would set n: 1 → 2" in told
    assert "no nn" in cli.refused(2, "dlq", "redrive", letter, "--set", "nn=2", "--dry-run")
    assert cli.json("dlq", "redrive", letter, "--set", "n=2", "--reason", "x")["redriven"] == 1


def test_policies(cli: Cli, hands: Hands) -> None:
    """
    Set, listed, replaced, taken away; each on record, a dry run not.
    """
    name = f"{hands.tenant}-p"
    arguments = (
        "dlq",
        "policy",
        "set",
        name,
        "--tenant",
        hands.tenant,
        "--class",
        "transient",
        "--off",
        "--reason",
        "x",
    )
    bury(hands)
    assert cli.json(*arguments, "--dry-run")["dry_run"]
    assert name not in cli.ok("dlq", "policy", "ls")
    assert cli.json(*arguments, "--quiet", "5m", "--rate", "30/min")["letters_now"] == 0
    [row] = [row for row in cli.json("dlq", "policy", "ls") if row["name"] == name]
    assert (row["quiet_s"], row["rate_per_s"], row["enabled"]) == (300, 0.5, False)
    assert "class=transient" in cli.ok("dlq", "policy", "ls")
    cli.ok("dlq", "policy", "rm", name, "--reason", "x", "--dry-run")
    cli.ok("dlq", "policy", "rm", name, "--reason", "x")
    assert name not in cli.ok("dlq", "policy", "ls")


def test_a_redrive_is_stopped_and_gone_on_with(cli: Cli, hands: Hands, client: Any) -> None:
    """
    By the id that `redrives` shows: stopped for good, or gone on with after it was left; each with a reason, on record.
    """
    bury(hands, times=3)

    def left(key: str) -> str:
        chosen, terms = Selection(tenant=hands.tenant), Terms(rate_per_s=2)
        steps = client.dead_letters.redrive(chosen, reason="mended", terms=terms, key=f"{hands.tenant} {key}")
        job = next(steps).job
        steps.close()
        return str(job.job_id)

    first, second = left("one"), left("two")
    assert cli.json("dlq", "stop", first[:12], "--reason", "x", "--dry-run")["ended_at"] is None
    assert "is stopped: 1 of 3" in cli.ok("dlq", "stop", first[:12], "--reason", "too many")
    assert "has ended" in cli.refused(2, "dlq", "stop", first, "--reason", "again")
    assert "has ended" in cli.refused(2, "dlq", "resume", first, "--reason", "again")
    assert "is interrupted: 1 of 2" in cli.ok("dlq", "resume", second, "--reason", "x", "--dry-run")
    done = cli.json("dlq", "resume", second[:12], "--reason", "the laptop was shut")
    assert (done["state"], done["redriven"]) == ("done", 2)
    assert "no redrive begins" in cli.refused(2, "dlq", "stop", "00000000-0000", "--reason", "x")
    query = "select action from agentq.operator_action where target = %s order by at"
    acted = [row["action"] for row in hands.rows(query.replace("%s", f"'{first}'"))]
    assert "dlq stop" in acted
    assert states(hands) == {"redriving": 3}
