"""Redrives, for people: what they would do, how far they are, and what was refused and why."""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agentq.cli.exits import FAILED, INTERRUPTED, REFUSED, Problem
from agentq.cli.output import json_option, note, plain, print_facts, print_json, print_table
from agentq.cli.reach import client
from agentq.cli.selecting import letters_named, rate, selecting, selection_of
from agentq.errors import InvalidInput

if TYPE_CHECKING:
    from agentq.client import Client, Selection, Terms
    from agentq.relay.redrives import Progress
    from agentq.store.dead_letters import Letter, Plan
    from agentq.store.redrives import Job

REFUSALS = {
    "generation": "were brought back too often; find the cause, or raise --max-generation",
    "unknown_effects": (
        "have effects of unknown outcome: look at the other side under the effects' keys (agentq dlq show ID), then "
        "redrive these with --effects done, not-done or again"
    ),
    "no_step": "ran no step of that name before they died",
    "deadline_over": "are past their deadline: give them a new one with --deadline",
    "parent_ended": "have a parent that was cancelled: bring that one back instead",
    "agent_refused": "are of an agent that their tenant may not use any more: agentq tenant set NAME --agent",
    "invalid_state": "have a state that the edit makes unfit for their agent's model",
}
_SHOWN_MAX = 5


@click.command(short_help="Bring dead letters back.")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@selecting
@click.option(
    "--canary", type=click.IntRange(0, 10_000), default=0, metavar="N", help="So many first; the rest if they do well."
)
@click.option("--threshold", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True,
              help="The share of canaries that must get past their step.")  # fmt: skip
@click.option("--canary-timeout", default="10m", show_default=True, metavar="TIME", help="How long to wait for them.")
@click.option(
    "--rate", "rate_", default="10/s", show_default=True, metavar="RATE", help="At most so fast: 2/s, 30/min."
)
@click.option("--max-generation", type=click.IntRange(1), default=3, show_default=True,
              help="Leave those that were brought back so often before.")  # fmt: skip
@click.option("--effects", type=click.Choice(["done", "not-done", "again"]),
              help="What you found about their effects of unknown outcome.")  # fmt: skip
@click.option("--from-step", metavar="STEP", help="Go on from this earlier step instead of the one that died.")
@click.option("--deadline", metavar="TIME", help="Give their sessions a new deadline, from now.")
@click.option("--set", "assignments", multiple=True, metavar="PATH=VALUE", help="Change the state they go on with.")
@click.option("--edit", is_flag=True, help="Change the state of one letter in $EDITOR.")
@click.option("--reason", help="Why; kept with your name. Needed unless --dry-run.")
@click.option("--dry-run", is_flag=True, help="Say how many, at what cost, with which effects open; change nothing.")
@json_option
def redrive(*, ids: tuple[str, ...], reason: str | None, dry_run: bool, edit: bool, assignments: tuple[str, ...],
            as_json: bool, **options: Any) -> None:  # fmt: skip
    """Bring dead letters back: each session goes on from its checkpoint, and effects already done are not repeated.

    Name them by ID, or by at least one option. Given twice, or by two people at once, each letter is brought back
    once. Ctrl-C leaves the rest; the same command again goes on from there.
    """
    terms = _terms(options)
    chosen = {name: options[name] for name in _CHOOSING}
    if not dry_run and not (reason or "").strip():
        raise click.UsageError("--reason must say why (or look first, with --dry-run)")
    if edit and (assignments or len(ids) != 1):
        raise click.UsageError("--edit takes exactly one ID, and no --set")
    with client(agents=edit or bool(assignments)) as connected:
        named = letters_named(connected, ids, chosen["tenant"]) if ids else ()
        selection = selection_of(**chosen, letters=tuple(letter for _, letter in named))
        if not selection.narrows:
            raise click.UsageError("name the letters: an ID, or --cause, --agent, --tenant, --step, --class, …")
        plan = connected.dead_letters.plan(selection, terms)
        change = _change(connected, edit, assignments, named, terms)
        if dry_run:
            _tell_plan(plan, terms, _sample_diff(connected, selection, change, terms), as_json)
            return
        # Times counted from now would make another job of the same command.
        key = json.dumps([sorted(ids), chosen], sort_keys=True)
        if not plan.letters and not connected.dead_letters.under_way(selection, terms, key):
            _tell_nothing(connected, named, as_json)
            return
        steps = connected.dead_letters.redrive(selection, reason=reason or "", terms=terms, change=change, key=key)
        _run(steps, as_json)


@click.command(short_help="List redrives and how far they are.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="The newest so many.")
@json_option
def redrives(limit: int, as_json: bool) -> None:
    """List the newest redrives: who began them, how far they are, what became of their letters."""
    with client() as connected:
        store = connected.dead_letters.redrives
        found = [(job, store.outcomes(job.job_id)) for job in store.recent(limit)]
    if as_json:
        print_json([plain(job) | {"letters": outcomes} for job, outcomes in found])
        return
    print_table(
        ("REDRIVE", "BEGUN", "BY", "STATE", "MATCHED", "REDRIVEN", "REFUSED", "GOING", "WELL", "DIED AGAIN", "NOTE"),
        (
            (
                job.job_id.hex[:8],
                job.created_at,
                f"policy {job.policy}" if job.policy else job.operator,
                state_of(job),
                job.matched,
                job.redriven,
                job.refused,
                outcomes.get("redriving", 0),
                outcomes.get("resolved", 0),
                outcomes.get("redriven", 0),
                job.note or job.reason,
            )
            for job, outcomes in found
        ),
        empty="nothing was redriven yet",
    )


@click.command(short_help="End a redrive before it is through.")
@click.argument("id_", metavar="ID")
@click.option("--reason", required=True, help="Why; kept with your name.")
@click.option("--dry-run", is_flag=True, help="Say how far it is, change nothing.")
@json_option
def stop(id_: str, reason: str, dry_run: bool, as_json: bool) -> None:
    """End a redrive, whoever drives it. What it has brought back goes on; the rest stays dead.

    ID is the beginning of the id that `dlq redrives` shows.
    """
    with client() as connected:
        job = connected.dead_letters.job(id_)
        if not dry_run:
            job = connected.dead_letters.stop(job, reason=reason)
    if as_json:
        print_json(plain(job) | {"dry_run": dry_run})
        return
    how = "would be stopped" if dry_run else "is stopped"
    click.echo(f"redrive {job.job_id.hex[:8]} {how}: {job.redriven:,} of {job.matched:,} are redriven")


@click.command(short_help="Go on with a redrive that was interrupted.")
@click.argument("id_", metavar="ID")
@click.option("--reason", required=True, help="Why; kept with your name.")
@click.option("--dry-run", is_flag=True, help="Say how far it is, change nothing.")
@json_option
def resume(id_: str, reason: str, dry_run: bool, as_json: bool) -> None:
    """Go on with a redrive that nobody drives any more, on its own terms, from its first letter that is still dead."""
    with client() as connected:
        job = connected.dead_letters.job(id_)
        if not dry_run:
            _run(connected.dead_letters.resume(job, reason=reason), as_json)
            return
    if as_json:
        print_json(plain(job) | {"dry_run": True})
        return
    click.echo(f"redrive {job.job_id.hex[:8]} is {state_of(job)}: {job.redriven:,} of {job.matched:,} are redriven")


def state_of(job: Job) -> str:
    """A job's state as people read it."""
    return "interrupted" if job.abandoned else job.state


_CHOOSING = ("cause", "agent", "tenant", "step", "kind", "dependency", "generation", "since", "age")


def _terms(options: dict[str, Any]) -> Terms:
    from agentq.agents.returns import seconds
    from agentq.client import Terms

    return Terms(
        canary=options["canary"],
        threshold=options["threshold"],
        canary_timeout_s=seconds(options["canary_timeout"]),
        rate_per_s=rate(options["rate_"]),
        max_generation=options["max_generation"],
        effects=options["effects"],
        from_step=options["from_step"],
        deadline_s=seconds(options["deadline"]) if options["deadline"] is not None else None,
    )


def _change(connected: Client, edit: bool, assignments: tuple[str, ...], named: Any, terms: Terms) -> Any:
    from agentq.client.edits import parse_assignments

    if assignments:
        return parse_assignments(assignments)
    if not edit:
        return None
    [(tenant, letter_id)] = named
    return _edited(connected, connected.dead_letters.get(tenant, letter_id), terms)


def _edited(connected: Client, letter: Letter, terms: Terms) -> Any:
    """What the person's editor made of the state; asked again as long as it does not fit."""
    from agentq.payload import decode

    state = decode(connected.dead_letters.letters.state_before(letter, terms.from_step)[0])
    text = json.dumps(state, indent=2, ensure_ascii=False) + "\n"
    while True:
        answer = click.edit(text, extension=".json")
        if answer is None:
            raise Problem("the editor was left without saving; nothing was redriven", REFUSED)
        text = answer
        try:
            change = partial(_replaced, json.loads(text))
            connected.dead_letters.edit(letter, change, from_step=terms.from_step)
        except (ValueError, InvalidInput) as error:
            kept = _keep(text)
            if not sys.stdin.isatty():
                raise Problem(f"{error}; nothing was redriven, your text is in {kept}", REFUSED) from None
            note(f"{error}\nyour text is kept in {kept}")
            if not click.confirm("edit it again?", err=True):
                raise click.exceptions.Exit(REFUSED) from None
            continue
        return change


def _replaced(wanted: Any, _: Any) -> Any:
    return wanted


def _keep(text: str) -> Path:
    with tempfile.NamedTemporaryFile(
        "w", suffix=".json", prefix="agentq-edit-", delete=False, encoding="utf-8"
    ) as file:
        file.write(text)
    return Path(file.name)


def _sample_diff(connected: Client, selection: Selection, change: Any, terms: Terms) -> list[dict[str, Any]]:
    """What the edit would change in the newest of them."""
    if change is None or not (found := connected.dead_letters.ls(selection, limit=1)):
        return []
    return connected.dead_letters.edit(found[0], change, from_step=terms.from_step)[1]


def _tell_plan(plan: Plan, terms: Terms, diff: list[dict[str, Any]], as_json: bool) -> None:
    expected = plan.expected_cost_micros
    if as_json:
        facts: dict[str, Any] = {
            "letters": plan.letters,
            "would_redrive": brought_back(plan, terms),
            "too_often": plan.too_often,
            "without_step": plan.without_step,
            "dry_run": True,
        }
        facts |= {"with_pending_effects": plan.with_pending_effects, "with_unknown_effects": plan.with_unknown_effects}
        facts |= {"expected_cost_usd": None if expected is None else expected / 1_000_000, "agents": plain(plan.agents)}
        print_json(facts | {"diff": diff})
        return
    print_facts(plan_facts(plan, terms))
    for one in diff:
        click.echo(f"would set {one['path']}: {json.dumps(one['before'])} → {json.dumps(one['after'])}")


def brought_back(plan: Plan, terms: Terms) -> int:
    """How many letters a redrive on these terms would bring back."""
    return plan.redrives if terms.effects is None else max(plan.letters - plan.too_often - plan.without_step, 0)


def plan_facts(plan: Plan, terms: Terms) -> tuple[tuple[str, str | None], ...]:
    """What a redrive would do, as people read it: name and words, None where there is nothing to say."""
    redrives = brought_back(plan, terms)
    seconds = redrives / terms.rate_per_s
    unknown = f"{plan.with_unknown_effects:,} letters" if plan.with_unknown_effects else None
    if unknown and terms.effects is None:
        unknown += ", refused unless --effects says what you found"
    return (
        ("letters", f"{plan.letters:,} match, {redrives:,} would be redriven"),
        ("too often", f"{plan.too_often:,}, refused" if plan.too_often else None),
        ("no such step", f"{plan.without_step:,} ran no {terms.from_step}, refused" if plan.without_step else None),
        ("pending effects", f"{plan.with_pending_effects:,} letters" if plan.with_pending_effects else None),
        ("unknown effects", unknown),
        ("expected cost", _expected(plan)),
        ("takes", f"about {_span(seconds)} at {terms.rate_per_s:g}/s" if seconds >= 1 else None),
        ("canaries", f"{terms.canary} first" if terms.canary else None),
    )


def _expected(plan: Plan) -> str:
    if plan.expected_cost_micros is None:
        return "not known: no session of these agents has ended well in the last 30 days"
    told = f"${plan.expected_cost_micros / 1_000_000:.4f}, going by sessions that ended well"
    unknown = [agent.agent for agent in plan.agents if agent.usual_micros is None]
    return f"{told}; nothing is known of {', '.join(unknown)}" if unknown else told


def _tell_nothing(connected: Client, named: Any, as_json: bool) -> None:
    states = [(letter, connected.dead_letters.get(tenant, letter).state) for tenant, letter in named]
    if as_json:
        print_json({"redriven": 0, "refused": 0, "letters": {str(letter): state for letter, state in states}})
    elif states:
        for letter, state in states:
            click.echo(f"letter {letter.hex[:8]} is {state}; nothing to redrive")
    else:
        click.echo("no open letter matches; nothing to redrive")


def _run(steps: Generator[Progress], as_json: bool) -> None:
    outcomes: Counter[str] = Counter()
    refusals: list[tuple[Any, str, str]] = []
    job: Job | None = None
    try:
        with _bar(quiet=as_json) as tell:
            for progress in steps:
                job = progress.job
                outcomes.update(progress.outcomes)
                refusals += progress.refusals[: 1000 - len(refusals)]
                tell(progress)
    except KeyboardInterrupt:
        steps.close()
        done = f"{job.redriven:,} of {job.matched:,}" if job else "none"
        note(f"interrupted: {done} are redriven; the same command goes on from there")
        raise click.exceptions.Exit(INTERRUPTED) from None
    assert job is not None
    _tell_end(job, outcomes, refusals, as_json)


def _tell_end(job: Job, outcomes: Counter[str], refusals: list[tuple[Any, str, str]], as_json: bool) -> None:
    failed = job.state == "stopped" or (job.refused > 0 and not job.redriven)
    if as_json:
        facts: dict[str, Any] = {"redrive": str(job.job_id), "state": job.state, "matched": job.matched}
        facts |= {"redriven": job.redriven, "refused": job.refused, "note": job.note, "outcomes": dict(outcomes)}
        told = [{"letter": str(letter), "outcome": outcome, "why": why} for letter, outcome, why in refusals]
        print_json(facts | {"refusals": told, "dry_run": False})
    else:
        if job.note:
            click.echo(job.note)
        click.echo(f"{job.redriven:,} letters are redriven (redrive {job.job_id.hex[:8]})")
        for outcome, text in REFUSALS.items():
            if count := outcomes.get(outcome, 0):
                some = [(letter, why) for letter, found, why in refusals if found == outcome][:_SHOWN_MAX]
                names = ", ".join(letter.hex[:8] for letter, _ in some) + (", …" if count > len(some) else "")
                note(f"{count:,} {text} ({names})")
                for why in sorted({why for _, why in some if why}):
                    note(f"    {why}")
        if others := outcomes.get("taken", 0) + outcomes.get("moved", 0):
            note(f"{others:,} were dealt with by somebody else meanwhile")
    if failed:
        raise click.exceptions.Exit(FAILED)


@contextmanager
def _bar(*, quiet: bool) -> Iterator[Any]:
    """Tells how far a redrive is: a bar in a terminal, a line for each change of state elsewhere."""
    if quiet:
        yield lambda _: None
    elif not sys.stderr.isatty():
        said = ""

        def tell(progress: Progress) -> None:
            nonlocal said
            text = f"waiting for {progress.waiting_for}" if progress.waiting_for else ""
            if text and text != said:
                note(text)
                said = text

        yield tell
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bars(*columns, console=Console(stderr=True)) as bars:
            task = bars.add_task("redriving", total=None)

            def show(progress: Progress) -> None:
                job = progress.job
                what = f"waiting for {progress.waiting_for}" if progress.waiting_for else "redriving"
                bars.update(task, description=what, total=job.matched, completed=job.redriven + job.refused)

            yield show


def _span(seconds: float) -> str:
    from agentq.cli.output import span

    return span(seconds)
