"""Walks over the whole command line: every write leaves an audit row, and no command reaches another tenant's rows."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest

from agentq.cli import main
from agentq.step import new_id
from agentq.store.dead_letters import Selection
from agentq.store.effects import Effects
from agentq.store.pool import Store
from agentq.store.redrives import Redrives, Terms
from agentq.verdicts import Extras, Failure
from tests.cli.conftest import Cli
from tests.conftest import new_tenant
from tests.store.test_schema import fill
from tests.support.hands import Hands, new_ask, step

pytestmark = pytest.mark.usefixtures("no_keys_left")

WHY = "the walk's own reason"


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command with its whole name."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        elif command is not None:
            yield " ".join((*path, name)), command


def options(command: click.Command) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


ALL = dict(commands())


class World:
    """A tenant with a row in every table, and the ids that a person would type."""

    def __init__(self, cli: Cli, hands: Hands, folder: Path) -> None:
        self.cli, self.hands, self.tenant, self.folder = cli, hands, hands.tenant, folder
        fill(hands)
        live, dead = (
            hands.rows("select session_id from agentq.session where state = %s", state)[0]["session_id"]
            for state in ("running", "failed")
        )
        self.live, self.dead = str(live), str(dead)
        self.letter = str(hands.rows("select letter_id from agentq.dead_letter")[0]["letter_id"])
        self.approval = str(hands.rows("select approval_id from agentq.approval")[0]["approval_id"])
        self.anomaly = str(hands.rows("select anomaly_id from agentq.anomaly")[0]["anomaly_id"])
        steps = hands.rows("select step_id from agentq.ledger_entry")
        self.ids = {self.tenant, self.live, self.dead, self.letter, self.approval, self.anomaly}
        self.ids |= {str(row["step_id"]) for row in steps}
        self.name = f"t-{uuid.uuid4().hex[:8]}"

    def done(self, *arguments: str) -> World:
        """The same after a command that prepares."""
        self.cli.ok(*arguments, "--reason", "to prepare")
        return self

    def keyed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cli.ok("keys", "generate", str(self.folder / "keys"))
        monkeypatch.setenv("AGENTQ_ENCRYPTION_KEY_FILE", str(self.folder / "keys"))

    def question(self) -> str:
        """An approval that a step waits for."""
        waiting = step("answer", approval=new_id())
        asked = new_ask(waiting)
        self.hands.settle(self.hands.begin(), "next", steps=(waiting,), extras=Extras(), asks=(asked,))
        return str(asked.approval_id)

    def left_redrive(self) -> str:
        """A redrive of one letter that nobody drives."""
        redrives = Redrives(self.hands.store)
        job, _ = redrives.begin(Selection(tenant=self.tenant), Terms(), operator="walker", reason="to prepare")
        return str(job.job_id)

    def unknown_effect(self) -> str:
        claim = self.hands.begin()
        effects, lost = Effects(self.hands.store), Failure("unknown", "UnknownEffect", "the answer was lost")
        effects.claim(claim, "pay:1", name="pay", args_hash=b"a", durable=True)
        effects.settle(claim, "pay:1", "unknown", failure=lost)
        self.hands.settle(claim, "dead", failure=lost)
        return "pay:1"


@pytest.fixture
def world(cli: Cli, hands: Hands, tmp_path: Path) -> World:
    return World(cli, hands, tmp_path)


def of(*words: str) -> Callable[[World], list[str]]:
    """Arguments in which `{x}` is the world's."""
    return lambda world: [word.format_map(vars(world)) for word in words]


def after(prepare: tuple[str, ...], *words: str) -> Callable[[World], list[str]]:
    def arguments(world: World) -> list[str]:
        world.done(*of(*prepare)(world))
        return of(*words)(world)

    return arguments


def token(world: World) -> list[str]:
    return [world.cli.json("token", "create", "a shop", "--tenant", world.tenant, "--reason", "to prepare")["id"]]


def erasable(world: World) -> list[str]:
    world.done("tenant", "set", world.tenant, "--state", "paused")
    return [world.tenant, "--yes"]


# How each command that changes something is called so that it does.
WRITES: dict[str, Callable[[World], list[str]]] = {
    "session cancel": of("{live}", "--tenant", "{tenant}"),
    "session kill": of("{live}", "--tenant", "{tenant}"),
    "session pause": of("{live}", "--tenant", "{tenant}"),
    "session resume": after(("session", "pause", "{live}"), "{live}", "--tenant", "{tenant}"),
    "session replay": of("{dead}", "--tenant", "{tenant}"),
    "session fork": of("{dead}", "--tenant", "{tenant}", "--from-step", "0"),
    "approval grant": lambda world: [world.question(), "--tenant", world.tenant],
    "approval deny": lambda world: [world.question(), "--tenant", world.tenant],
    "dlq discard": of("{letter}", "--tenant", "{tenant}"),
    "dlq redrive": of("{letter}", "--tenant", "{tenant}"),
    "dlq stop": lambda world: [world.left_redrive()],
    "dlq resume": lambda world: [world.left_redrive()],
    "dlq policy set": of("{name}", "--tenant", "{tenant}", "--off"),
    "dlq policy rm": after(("dlq", "policy", "set", "{name}", "--tenant", "{tenant}", "--off"), "{name}"),
    "effect resolve": lambda world: [world.unknown_effect(), "--tenant", world.tenant, "--not-done"],
    "anomaly mute": of("{anomaly}", "--tenant", "{tenant}"),
    "anomaly unmute": after(("anomaly", "mute", "{anomaly}"), "{anomaly}", "--tenant", "{tenant}"),
    "anomaly set": of("--tenant", "{tenant}", "--agent", "robot", "--action", "park"),
    "dependency open": of("stripe", "--tenant", "{tenant}", "--for", "1m"),
    "dependency shut": of("stripe", "--tenant", "{tenant}", "--for", "1m"),
    "dependency auto": after(
        ("dependency", "open", "stripe", "--tenant", "{tenant}"), "stripe", "--tenant", "{tenant}"
    ),
    "tenant add": of("{name}"),
    "tenant set": of("{tenant}", "--weight", "2"),
    "tenant erase": erasable,
    "memory put": of("shop", "milk", '"oat"', "--tenant", "{tenant}"),
    "memory delete": of("shop", "tea", "--tenant", "{tenant}"),
    "memory reindex": of("--tenant", "{tenant}"),
    "budget set": of("{tenant}", "--cost", "1"),
    "budget price": of("walk:{name}", "--input", "1", "--output", "1"),
    "rate set": of("walk", "--tenant", "{tenant}", "--requests", "5"),
    "queue place": of(),
    "token create": of("a shop", "--tenant", "{tenant}"),
    "token revoke": token,
    "keys rotate": of("--tenant", "{tenant}"),
    "keys reseal": of("--tenant", "{tenant}"),
    "keys rewrap": of("--tenant", "{tenant}"),
}

# They write nothing where nothing is to be done, or to a fleet that is not this one; tested where they are at home.
ELSEWHERE = {"db upgrade", "chaos staging"}
# They read, or make files and sessions of their own.
NO_REASON = {
    "up", "demo", "worker", "flower", "start", "init", "doctor", "keys generate", "db check", "dlq export", "dlq watch",
}  # fmt: skip


def test_every_command_that_writes_is_walked() -> None:
    """
    A command that asks for a reason, or has a dry run, is in the table above; and each of them has both.
    """
    asking = {name for name, command in ALL.items() if options(command) & {"--reason", "--dry-run", "--yes"}}
    assert asking - NO_REASON - ELSEWHERE == set(WRITES)
    assert {name for name in WRITES if not {"--reason", "--dry-run"} <= options(ALL[name])} == set()
    reading = {"ls", "show", "trace", "cost", "inspect", "tail", "redrives", "baseline", "orders", "search", "alerts",
               "check", "ledger", "table"}  # fmt: skip
    others = {name for name in set(ALL) - set(WRITES) - ELSEWHERE - NO_REASON if name.split()[-1] not in reading}
    assert others == set(), "it reads, or it belongs into the table above"


def actions(admin: psycopg.Connection[Any]) -> int:
    [(count,)] = admin.execute(
        "select count(*) from agentq.operator_action where operator = 'tester' and reason = %s", (WHY,)
    ).fetchall()
    return int(count)


@pytest.mark.parametrize("name", WRITES)
def test_every_write_leaves_an_audit_row(
    world: World, admin: psycopg.Connection[Any], name: str, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    """
    I11: who, what and why, in the table that the fleet cannot alter. A dry run says what would be, and leaves nothing.
    """
    if name.startswith("keys"):
        world.keyed(monkeypatch)
        world.done("keys", "rotate", "--tenant", world.tenant)
    if name == "queue place":
        moved(world, admin)
    arguments = [*name.split(), *WRITES[name](world), "--reason", WHY]
    before, rows = actions(admin), world.hands.everything()
    world.cli.ok(*arguments, "--dry-run")
    assert actions(admin) == before
    assert world.hands.everything() == rows
    world.cli.ok(*arguments)
    assert actions(admin) > before, name


def moved(world: World, admin: psycopg.Connection[Any]) -> None:
    """Placed as other settings would have it."""
    admin.execute(
        "update agentq.tenant set placed_at = now(), shard = 3, placement = 'auto', worker_group = %s where name = %s",
        (world.name, world.tenant),
    )


# ── isolation ────────────────────────────────────────────────────────────────

# What they answer is the whole fleet's, and an operator's; they take no tenant.
OF_THE_FLEET = {
    "anomaly orders", "audit ls", "budget alerts", "budget check", "budget price", "budget show", "chaos table",
    "dependency ls", "dependency show", "dlq policy ls", "dlq policy rm", "dlq redrives", "dlq resume",
    "dlq stop", "fleet ls", "queue place",
    "rate ls", "submission ls", "tenant ls", "token revoke",
}  # fmt: skip
# They name their own tenant first, and no row of it.
OF_A_NAME = {"tenant add", "tenant set", "tenant erase", "budget set", "token create"}


def asked_of_another(name: str, theirs: World, ours: str) -> list[str]:
    """The command in our name, about what is theirs."""
    kind = name.partition(" ")[0]
    ids = {
        "session": theirs.live, "approval": theirs.approval, "dlq": theirs.letter, "anomaly": theirs.anomaly,
    }  # fmt: skip
    words = {
        "id_": ids.get(kind, theirs.live), "ids": ids.get(kind, ""), "session": theirs.dead,
        "key": "tea" if name.startswith("memory") else "k", "namespace": "shop", "query": "oolong", "value": '"mine"',
        "provider": "walk", "name": "stripe", "agent": "count",
    }  # fmt: skip
    given: list[str] = []
    for parameter in ALL[name].params:
        if isinstance(parameter, click.Argument) and parameter.name != "folder":
            given.append(words[str(parameter.name)])
    more = {
        "session fork": ["--from-step", "0"], "effect resolve": ["--not-done"],
        "anomaly set": ["--agent", "robot", "--action", "park"], "rate set": ["--requests", "5"],
        "session tail": ["--timeout", "1"], "dlq policy set": ["--off"], "dlq export": ["--with-state"],
        "dlq watch": ["--timeout", "1"],
    }  # fmt: skip
    given += more.get(name, [])
    if "--reason" in options(ALL[name]):
        given += ["--reason", WHY]
    if "--yes" in options(ALL[name]):
        given += ["--yes"]
    return [*name.split(), *given, "--tenant", ours]


WALKED = sorted(
    name
    for name, command in ALL.items()
    if "--tenant" in options(command) and name not in OF_THE_FLEET | OF_A_NAME and not name.startswith("keys r")
)


def test_every_command_is_walked_or_named() -> None:
    """
    A new command is walked by itself, as soon as it takes a tenant.
    """
    rest = set(ALL) - set(WALKED) - OF_THE_FLEET - OF_A_NAME - ELSEWHERE - NO_REASON
    assert {name for name in rest if not name.startswith("keys r")} == set()
    assert len(WALKED) > 40


@pytest.fixture
def theirs(cli: Cli, store: Store, admin: psycopg.Connection[Any], tmp_path: Path) -> Iterator[World]:
    """Tenant B, with a row in every table."""
    hands = Hands(store, new_tenant(admin))
    yield World(cli, hands, tmp_path)
    hands.close()


def test_no_command_of_one_tenant_shows_or_changes_anothers(cli: Cli, theirs: World, tenant: str) -> None:
    """
    I8: every command that takes a tenant, reading and writing, is given A's name and B's ids. What it prints, unless
    it refuses the id that it was given, has nothing of B; and of B not a row has changed.
    """
    rows = theirs.hands.everything()
    leaked, failed = [], []
    for name in WALKED:
        result = cli(*asked_of_another(name, theirs, tenant))
        if result.exit_code not in (0, 1, 2, 3, 4, 5, 6) or "Traceback" in result.output:
            failed.append((name, result.exit_code, result.output))
        if result.exit_code == 0 and any(secret in result.stdout for secret in theirs.ids | {"oolong"}):
            leaked.append((name, result.stdout))
        if theirs.hands.everything() != rows:
            leaked.append((name, "it changed something"))
            rows = theirs.hands.everything()
    assert failed == []
    assert leaked == []


def test_the_walk_would_notice(cli: Cli, theirs: World) -> None:
    """
    The same in B's own name finds what it asks for.
    """
    reading = [name for name in WALKED if name not in WRITES and name not in NO_REASON]
    seen = [
        name
        for name in reading
        if any(
            secret in cli(*asked_of_another(name, theirs, theirs.tenant)).stdout
            for secret in theirs.ids - {theirs.tenant} | {"oolong", "robot"}
        )
    ]
    assert len(seen) > 15, sorted(set(reading) - set(seen))
