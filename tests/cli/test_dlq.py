"""`agentq dlq`: looking at dead letters, and putting them away."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from agentq.store.dead_letters import DeadLetterStore
from agentq.verdicts import Failure
from tests.cli.conftest import Cli, Program
from tests.support.hands import Hands
from tests.support.until import until

DECLINED = Failure("permanent", "CardDeclined", "card 4242 of cus_93 has no funds", where="pay.py:12 charge")
AWAY = Failure("transient", "ConnectError", "[Errno 111] Connection refused")


def bury(hands: Hands, failure: Failure = DECLINED, times: int = 1) -> list[str]:
    """That many letters; their ids."""
    before = {row["letter_id"] for row in hands.rows("select letter_id from agentq.dead_letter")}
    for _ in range(times):
        hands.settle(hands.begin(), "dead", failure=failure)
    rows = hands.rows("select letter_id from agentq.dead_letter order by died_at")
    return [str(row["letter_id"]) for row in rows if row["letter_id"] not in before]


def test_listing(cli: Cli, hands: Hands) -> None:
    """
    The newest first; each filter narrows, and groups count.
    """
    old = bury(hands, times=2)
    new = bury(hands, AWAY)
    tenant = ("--tenant", hands.tenant)
    rows = cli.json("dlq", "ls", *tenant)
    assert [row["id"] for row in rows] == [*new, *reversed(old)]
    assert {row["state"] for row in rows} == {"open"}
    cause = rows[-1]["cause"]
    for filters, count in (
        (("--cause", cause[:5]), 2), (("--cause", cause.upper()), 2), (("--class", "transient"), 1),
        (("--agent", "robot"), 3), (("--agent", "robot@1"), 3), (("--agent", "robot@2"), 0), (("--step", "first"), 3),
        (("--generation", "0"), 3), (("--generation", "1"), 0), (("--since", "1h"), 3), (("--age", "1h"), 0),
        (("--since", "2001-01-01"), 3), (("--since", "2101-01-01T10:00"), 0), (("--state", "resolved"), 0),
        (("--state", "all"), 3), (("--limit", "2"), 2),
    ):  # fmt: skip
        assert len(cli.json("dlq", "ls", *tenant, *filters)) == count, filters
    table = cli.ok("dlq", "ls", *tenant)
    assert "CardDeclined in robot.first: card <id> of <id> has no funds" in table
    assert old[0][:8] in table
    groups = cli.json("dlq", "ls", "--by", "cause", *tenant)
    assert [(group["key"] == cause, group["letters"]) for group in groups] == [(True, 2), (False, 1)]
    for by, keys in (("class", ["permanent", "transient"]), ("agent", ["robot@1"]), ("tenant", [hands.tenant]),
                     ("step", ["robot.first"]), ("dependency", [""])):  # fmt: skip
        assert [group["key"] for group in cli.json("dlq", "ls", "--by", by, *tenant)] == keys
    assert "2 more" not in cli.ok("dlq", "ls", "--by", "class", *tenant)
    assert "none named" in cli.ok("dlq", "ls", "--by", "dependency", *tenant)


def test_showing(cli: Cli, hands: Hands) -> None:
    """
    By the beginning of its id or of its session's; its state only when asked for.
    """
    [letter] = bury(hands)
    shown = cli.json("dlq", "show", letter[:13])
    assert (shown["id"], shown["about"]) == (letter, "CardDeclined in robot.first: card <id> of <id> has no funds")
    assert shown["failure"]["message"] == DECLINED.message
    assert [one["attempt"] for one in shown["attempts"]] == [1]
    assert cli.json("dlq", "show", shown["session"])["id"] == letter
    assert "state_before" not in shown
    assert cli.json("dlq", "show", letter, "--with-state")["state_before"] == {"n": 0}
    told = cli.ok("dlq", "show", letter)
    assert "pay.py:12 charge" in told
    assert f"agentq dlq redrive {letter[:8]} --edit" in told


def test_discarding(cli: Cli, hands: Hands, admin: psycopg.Connection[Any]) -> None:
    """
    A dry run counts; then they are out of the way, kept, and on record.
    """
    letters = bury(hands, times=3)
    arguments = ("dlq", "discard", "--tenant", hands.tenant, "--class", "permanent", "--reason", "test data")
    assert cli.json(*arguments, "--dry-run") == {"discarded": 3, "dry_run": True}
    assert len(cli.json("dlq", "ls", "--tenant", hands.tenant)) == 3
    assert cli.json("dlq", "discard", letters[0], "--reason", "noise")["discarded"] == 1
    assert cli.json(*arguments) == {"discarded": 2, "dry_run": False}
    assert cli.json(*arguments)["discarded"] == 0, "the second time there is nothing to put on record"
    assert cli.json("dlq", "ls", "--tenant", hands.tenant) == []
    [row] = cli.json("dlq", "ls", "--tenant", hands.tenant, "--state", "discarded", "--limit", "1")
    assert (row["changed_by"], row["note"]) == ("tester", "test data")
    found = admin.execute(
        "select operator, reason from agentq.operator_action where action = 'dlq discard' and detail::text like %s",
        (f"%{hands.tenant}%",),
    ).fetchall()
    assert found == [("tester", "test data")]


def test_exporting(cli: Cli, hands: Hands, tmp_path: Path) -> None:
    """
    JSON lines, oldest first; with the states only when asked for.
    """
    letters = bury(hands, times=3)
    lines = [json.loads(line) for line in cli.ok("dlq", "export", "--tenant", hands.tenant).splitlines()]
    assert [line["id"] for line in lines] == letters
    assert all("state_before" not in line and line["failure"]["message"] == DECLINED.message for line in lines)
    cli.ok("dlq", "export", "--tenant", hands.tenant, "--with-state", "--output", str(tmp_path / "x.jsonl"))
    whole = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text("utf-8").splitlines()]
    assert [line["state_before"] for line in whole] == [{"n": 0}] * 3


def test_watching(program: Callable[..., Program], hands: Hands) -> None:
    """
    New ones as they come, not those there were; Ctrl-C ends it.
    """
    [old] = bury(hands)
    watching = program("dlq", "watch", "--tenant", hands.tenant)
    until(lambda: watching.says("watching for"), 60, "that it watches")
    [new] = bury(hands, AWAY)
    until(lambda: watching.says(new[:8]), 20, "a letter that is told of")
    assert old[:8] not in watching.output
    assert "ConnectError in robot.first" in watching.output
    assert watching.end(2) == 130


def test_poison(cli: Cli, hands: Hands) -> None:
    """
    What nobody understood: counted when it comes again, cut when it is long.
    """
    store = DeadLetterStore(hands.store)
    queue = f"agentq.t.{hands.tenant}"
    for body in (b"\xff\x00garbage", b"\xff\x00garbage", b"x" * 100_000):
        store.keep_poison(queue=queue, tenant=hands.tenant, reason="is no message", body=body)
    long, twice = cli.json("dlq", "ls", "--poison", "--tenant", hands.tenant)
    assert (long["size_bytes"], len(long["body"])) == (100_000, 64 * 1024)
    assert (twice["times"], twice["queue"], twice["reason"]) == (2, queue, "is no message")
    assert "garbage" in cli.ok("dlq", "ls", "--poison", "--tenant", hands.tenant)


def test_of_a_flood_of_garbage_the_newest_is_kept(hands: Hands) -> None:
    store = DeadLetterStore(hands.store)
    for number in range(1250):
        store.keep_poison(queue="q", tenant=hands.tenant, reason="r", body=str(number).encode())
    kept = store.poison(tenant=hands.tenant, limit=2000)
    assert 1000 <= len(kept) < 1150
    assert kept[0].body == b"1249"


@pytest.mark.parametrize(
    ("code", "arguments", "says"),
    [
        (2, ("ls", "--cause", "xyz"), "no cause"),
        (2, ("ls", "--agent", "Not!"), "a-z"),
        (2, ("ls", "--agent", "a@b"), "NAME@VERSION"),
        (2, ("ls", "--class", "odd"), "no class"),
        (2, ("ls", "--since", "soon"), "--since"),
        (2, ("ls", "--since", "2026-99-99"), "--since"),
        (2, ("ls", "--state", "gone"), "gone"),
        (2, ("show", "xyz"), "hexadecimal"),
        (4, ("show", "0123456789abcdef"), "no dead letter"),
        (2, ("discard", "--reason", "x"), "name the letters"),
        (2, ("discard", "--class", "permanent"), "--reason"),
        (2, ("discard", "--class", "permanent", "--reason", " "), "--reason"),
        (4, ("discard", "0123456789abcdef", "--reason", "x"), "no dead letter"),
        (2, ("redrive", "--reason", "x"), "name the letters"),
        (2, ("redrive", "--class", "permanent"), "--reason"),
        (2, ("redrive", "--class", "permanent", "--reason", "x", "--rate", "fast"), "--rate"),
        (2, ("redrive", "--class", "permanent", "--reason", "x", "--rate", "0/s"), "--rate"),
        (2, ("redrive", "--class", "permanent", "--reason", "x", "--edit"), "exactly one"),
        (2, ("redrive", "--class", "permanent", "--reason", "x", "--threshold", "0"), "--threshold"),
        (2, ("redrive", "--class", "permanent", "--reason", "x", "--canary-timeout", "x"), "duration"),
        (2, ("redrive", "--class", "permanent", "--reason", "x", "--set", "no"), "path=value"),
        (2, ("redrive", "--class", "permanent", "--reason", "x", "--from-step", "Not!"), "a-z"),
        (2, ("policy", "set", "p", "--reason", "x"), "name what"),
        (2, ("policy", "set", "Not!", "--class", "transient", "--reason", "x"), "a-z"),
        (2, ("policy", "set", "p", "--class", "transient"), "--reason"),
        (4, ("policy", "rm", "nobody-has-this", "--reason", "x"), "no policy"),
    ],
)
def test_mistakes(cli: Cli, code: int, arguments: tuple[str, ...], says: str) -> None:
    """
    One line that says what is wrong, and nothing changed.
    """
    assert says in cli.refused(code, "dlq", *arguments)
