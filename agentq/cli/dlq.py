"""Dead letters, for people: listed, shown, discarded, exported, watched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agentq.cli import policy, redrive
from agentq.cli.exits import INTERRUPTED
from agentq.cli.output import (
    heading,
    json_option,
    note,
    plain,
    print_facts,
    print_json,
    print_json_line,
    print_table,
    reason_of,
    when,
)
from agentq.cli.reach import client
from agentq.cli.selecting import STATES, letters_named, selecting, selection_of

if TYPE_CHECKING:
    from agentq.client import Client, Selection
    from agentq.store.dead_letters import Letter, LetterGroup, Poison

_state_option = click.option(
    "--state", type=click.Choice([*STATES, "all"]), default="open", show_default=True, help="In this state."
)


@click.group()
def dlq() -> None:
    """Dead letters: ls, show, redrive, redrives, stop, resume, discard, export, watch, policy. An ID may be short."""


@dlq.command()
@selecting
@_state_option
@click.option(
    "--by", type=click.Choice(["cause", "agent", "tenant", "step", "class", "dependency"]), help="Count them in groups."
)
@click.option("--poison", is_flag=True, help="Messages that could not be understood, instead of letters.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="So many at most.")
@json_option
def ls(*, state: str, by: Any, poison: bool, limit: int, as_json: bool, **chosen: Any) -> None:
    """List the newest dead letters, or the largest groups of them."""
    selection = selection_of(**chosen, state=None if state == "all" else state)
    with client() as connected:
        letters = connected.dead_letters
        if poison:
            _print_poison(letters.poison(tenant=chosen["tenant"], limit=limit), as_json)
        elif by:
            _print_groups(by, letters.groups(by, selection, limit=limit), as_json)
        else:
            found = letters.ls(selection, limit=limit)
            _print_letters(found, as_json)
            if len(found) == limit and not as_json:
                note(f"{limit} of {letters.count(selection):,}; --by cause counts them, --limit shows more")


@dlq.command(short_help="Show one dead letter, and what to do.")
@click.argument("id_", metavar="ID")
@click.option("--tenant", help="Of this tenant; needed only when ids are alike.")
@click.option("--with-state", is_flag=True, help="Also the state from which the step began: it may hold personal data.")
@json_option
def show(id_: str, tenant: str | None, with_state: bool, as_json: bool) -> None:
    """Show one dead letter: its cause, every attempt, what its session has cost and done outside, and what to do.

    ID is the beginning of the letter's id, or of its session's.
    """
    from agentq.client.dead_letters import as_facts
    from agentq.payload import decode

    with client() as connected:
        [(owner, letter_id)] = letters_named(connected, (id_,), tenant)
        store = connected.dead_letters.letters
        letter = store.get(owner, letter_id)
        effects = [dict(zip(EFFECT_FACTS, row, strict=True)) for row in store.open_effects(letter)]
        state = decode(store.state_before(letter)[0]) if with_state else None
    advice = advice_on(letter, effects)
    if as_json:
        facts = as_facts(letter) | {"effects": plain(effects), "advice": advice}
        print_json(facts | ({"state_before": state} if with_state else {}))
        return
    _show_facts(letter)
    heading("Attempts")
    print_table(
        ("ATTEMPT", "AT", "CLASS", "WHERE", "WHY"),
        (
            (one.get("attempt"), _clock(one.get("at")), one.get("kind"), one.get("where"), reason_of(one))
            for one in letter.attempts
        ),
        empty="none is known",
    )
    if effects:
        heading("Effects that are not settled")
        print_table(
            ("EFFECT", "STATE", "CALLS", "CLAIMED", "KEY", "WHY"),
            (
                (one["name"], one["state"], one["calls"], one["claimed_at"], one["key"], reason_of(one["failure"]))
                for one in effects
            ),
            empty="none",
        )
    if with_state:
        heading("State")
        click.echo(json.dumps(state, indent=2, ensure_ascii=False))
    for line in advice:
        click.secho(f"\n→ {line}", fg="yellow")


@dlq.command(short_help="Put dead letters away for good.")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@selecting
@click.option("--reason", required=True, help="Why; kept with your name.")
@click.option("--dry-run", is_flag=True, help="Say how many, change nothing.")
@json_option
def discard(*, ids: tuple[str, ...], reason: str, dry_run: bool, as_json: bool, **chosen: Any) -> None:
    """Discard dead letters: nothing brings them back by itself any more. Their rows and sessions stay to be looked at.

    Name them by ID, or by at least one option.
    """

    if not reason.strip():
        raise click.UsageError("--reason must say something")
    with client() as connected:
        named = letters_named(connected, ids, chosen["tenant"]) if ids else ()
        selection: Selection = selection_of(**chosen, letters=tuple(letter for _, letter in named))
        if not selection.narrows:
            raise click.UsageError("name the letters: an ID, or --cause, --agent, --tenant, --step, --class, …")
        letters = connected.dead_letters
        count = letters.count(selection) if dry_run else letters.discard(selection, reason=reason)
    if as_json:
        print_json({"discarded": count, "dry_run": dry_run})
    else:
        click.echo(f"{count:,} letters {'would be' if dry_run else 'are'} discarded")


@dlq.command(short_help="Write dead letters as JSON lines.")
@selecting
@click.option("--state", type=click.Choice([*STATES, "all"]), default="all", show_default=True, help="In this state.")
@click.option("--with-state", is_flag=True, help="Also the state each began from: it may hold personal data.")
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Into this file.  [default: standard output]",
)
def export(*, state: str, with_state: bool, output: Path | None, **chosen: Any) -> None:
    """Write dead letters as JSON lines, oldest first: a dataset for finding causes and for testing repairs.

    Streamed, so any number of them takes little memory. Payloads are left out unless --with-state is given.
    """
    selection = selection_of(**chosen, state=None if state == "all" else state)
    count = 0
    with client() as connected, click.open_file(str(output) if output else "-", "w", encoding="utf-8") as file:
        for facts in connected.dead_letters.export(selection, with_state=with_state):
            file.write(json.dumps(plain(facts), ensure_ascii=False) + "\n")
            count += 1
    if output:
        note(f"{count:,} letters are in {output}")


@dlq.command(short_help="Tell of dead letters as they come.")
@selecting
@click.option("--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Stop after this.")
@json_option
def watch(*, timeout: float | None, as_json: bool, **chosen: Any) -> None:
    """Tell of each dead letter as it comes, from now on, one a line."""
    selection = selection_of(**chosen)
    with client() as connected:
        _watch(connected, selection, timeout, as_json)


def _watch(connected: Client, selection: Selection, timeout: float | None, as_json: bool) -> None:
    from agentq.client.dead_letters import as_facts

    try:
        letters = connected.dead_letters.watch(selection, timeout=timeout)
        note("watching for dead letters; Ctrl-C ends it")
        for letter in letters:
            if as_json:
                print_json_line(as_facts(letter))
                continue
            at = letter.died_at.astimezone().strftime("%H:%M:%S")
            where = f"{letter.tenant} {letter.agent}@{letter.agent_version}.{letter.step}"
            click.echo(
                f"{at}  {letter.letter_id.hex[:8]}  {where}  {letter.kind}  {letter.cause[:8]}  {letter.cause_text}"
            )
    except KeyboardInterrupt:
        raise click.exceptions.Exit(INTERRUPTED) from None


EFFECT_FACTS = ("key", "name", "state", "calls", "claimed_at", "settled_at", "failure")


def _print_letters(letters: list[Letter], as_json: bool) -> None:
    if as_json:
        from agentq.client.dead_letters import as_facts

        print_json([as_facts(letter) for letter in letters])
        return
    print_table(
        ("LETTER", "DIED", "TENANT", "AGENT", "STEP", "CLASS", "CAUSE", "GEN", "COST", "STATE", "WHY"),
        (
            (
                letter.letter_id.hex[:8],
                letter.died_at,
                letter.tenant,
                f"{letter.agent}@{letter.agent_version}",
                letter.step,
                letter.kind,
                letter.cause[:8],
                letter.generation,
                _dollars(letter.cost_micros),
                letter.state,
                letter.cause_text,
            )
            for letter in letters
        ),
        empty="no dead letter matches",
    )


def _print_groups(by: str, groups: list[LetterGroup], as_json: bool) -> None:
    if as_json:
        print_json([{"by": by} | plain(group) for group in groups])
        return
    print_table(
        (by.upper(), "LETTERS", "TENANTS", "CAUSES", "FIRST", "NEWEST", "COST", "UNKNOWN EFFECTS", "WHY"),
        (
            (
                group.key[:8] if by == "cause" else group.key or "none named",
                group.letters,
                group.tenants,
                group.causes,
                group.first_at,
                group.last_at,
                _dollars(group.cost_micros),
                group.with_unknown_effects or "",
                group.sample if group.causes == 1 else f"{group.sample}, and {group.causes - 1} more causes",
            )
            for group in groups
        ),
        empty="no dead letter matches",
    )


def _print_poison(found: list[Poison], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    print_table(
        ("#", "LAST", "QUEUE", "TIMES", "BYTES", "WHY", "BEGINS"),
        (
            (one.poison_id, one.last_at, one.queue, one.times, one.size_bytes, one.reason, _beginning(one.body))
            for one in found
        ),
        empty="every message was understood",
    )


def _show_facts(letter: Letter) -> None:
    print_facts(
        (
            ("letter", letter.letter_id),
            ("state", letter.state),
            ("tenant", letter.tenant),
            ("session", letter.session_id),
            ("agent", f"{letter.agent}@{letter.agent_version}"),
            ("step", f"{letter.step} (#{letter.seq})"),
            ("died", when(letter.died_at)),
            ("class", letter.kind),
            ("cause", f"{letter.cause}  {letter.cause_text}"),
            ("dependency", letter.dependency),
            ("failure", reason_of(letter.failure)),
            ("where", letter.failure.get("where")),
            ("generation", letter.generation or None),
            ("its worker died", f"{letter.crashes}×" if letter.crashes else None),
            ("cost so far", _dollars(letter.cost_micros)),
            ("began from", letter.state_from or "the session's input"),
            ("redrive", letter.job_id),
            ("changed by", letter.changed_by),
            ("note", letter.note),
        )
    )


def advice_on(letter: Letter, effects: list[dict[str, Any]]) -> list[str]:
    """What a person may do about this letter."""
    short = letter.letter_id.hex[:8]
    if letter.state != "open":
        return [_SETTLED[letter.state].format(session=letter.session_id)]
    if unknown := [effect["name"] for effect in effects if effect["state"] == "unknown"]:
        return [
            f"whether {', '.join(unknown)} happened is not known: look at the other side under the effect's key, then "
            f"agentq dlq redrive {short} --effects done|not-done --reason …"
        ]
    advice = [_BY_KIND.get(letter.kind, _BY_KIND[""]).format(cause=letter.cause[:8], short=short)]
    if letter.generation:
        advice.append(f"it was brought back {letter.generation}× before: find the cause before you do it again")
    return advice


_SETTLED = {
    "redriving": "its session runs again: agentq session show {session}",
    "redriven": "it was brought back and ended badly again, which has a letter of its own: agentq dlq ls",
    "discarded": "it was discarded; its session can still be replayed",
    "resolved": "there is nothing left to do",
}
_BY_KIND = {
    "": "mend its cause, then bring all of that cause back: agentq dlq redrive --cause {cause} --canary 3 --reason …",
    "transient": "is the other side well again? agentq dlq redrive --cause {cause} --canary 5 --rate 2/s --reason …",
    "timeout": "raise the step's timeout or bound the call in it, then agentq dlq redrive --cause {cause} --reason …",
    "permanent": (
        "no retry would have helped: mend the code and deploy it, or mend the state "
        "(agentq dlq redrive {short} --edit --reason …); or agentq dlq discard {short} --reason …"
    ),
    "worker_lost": (
        "it killed its workers, at last alone in quarantine: look at memory and native code of that step before "
        "anything brings it back"
    ),
}


def _dollars(micros: int) -> str | None:
    return f"${micros / 1_000_000:.4f}" if micros else None


def _clock(text: str | None) -> str:
    from datetime import datetime

    return when(datetime.fromisoformat(text)) if text else ""


def _beginning(body: bytes) -> str:
    text = body[:60].decode("utf-8", "replace")
    return text if len(body) <= 60 else f"{text}…"


dlq.add_command(redrive.redrive)
dlq.add_command(redrive.redrives)
dlq.add_command(redrive.stop)
dlq.add_command(redrive.resume)
dlq.add_command(policy.policy)
