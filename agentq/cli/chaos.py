"""Chaos: break a fleet by a seeded schedule, judge what it leaves, and tabulate former runs."""

from __future__ import annotations

import dataclasses
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agentq.cli.exits import FAILED, REFUSED, Problem
from agentq.cli.output import json_option, note, print_json, print_table
from agentq.settings import load

if TYPE_CHECKING:
    from agentq.chaos.run import Run
    from agentq.chaos.schedule import Schedule
    from agentq.chaos.screen import Screen
    from agentq.settings import Settings

_SEEDS = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?\Z")
_SEEDS_MAX = 1000
PLAIN_WIDTH = 140  # of a log, which nobody has told us


def _seeds(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> list[int]:
    if text is None:
        return [random.SystemRandom().randrange(1, 1_000_000)]
    match = _SEEDS.match(text)
    if match is None:
        raise click.BadParameter("want a whole number such as 7, or a range such as 1-10")
    first, last = int(match[1]), int(match[2] or match[1])
    if not first <= last < first + _SEEDS_MAX:
        raise click.BadParameter(f"want a range that ascends, of at most {_SEEDS_MAX} seeds")
    return list(range(first, last + 1))


@click.group(invoke_without_command=True, short_help="Break a fleet on purpose and check what it leaves.")
@click.option(
    "--profile",
    type=click.Choice(["short", "long"]),
    default="long",
    show_default=True,
    help="short: a minute at a quick pace. long: every fault, 400 sessions, default settings, several minutes.",
)
@click.option("--seed", "seeds", callback=_seeds, help="A number, or a range such as 1-10  [default: drawn]")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder of the reports  [data_dir/chaos]")
@click.option("--keep", is_flag=True, help="Keep the servers' data and the workers' logs beside the reports.")
@click.option("--dry-run", is_flag=True, help="Print the schedule and start nothing.")
@click.option("--quiet", is_flag=True, help="Say only the verdict, as where CI is set.")
@json_option
@click.pass_context
def chaos(
    ctx: click.Context,
    *,
    profile: str,
    seeds: list[int],
    out: Path | None,
    keep: bool,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Break a fleet by a seeded schedule and judge what it leaves; exit code 1 when something was lost or twice.

    It starts embedded servers and workers of its own, away from any other fleet, and takes them away at the end.
    The same seed gives the same schedule and the same sessions. Each run leaves a page and a JSON file.
    """
    if ctx.invoked_subcommand is not None:
        return
    from agentq.chaos import schedule

    profiled = schedule.PROFILES[profile]
    if dry_run:
        _show_schedules([schedule.make(profiled, seed) for seed in seeds], as_json=as_json)
        return
    folder = (out or load().data_dir / "chaos").absolute()
    runs = [_run(profile, seed, folder, keep=keep, quiet=quiet or as_json) for seed in seeds]
    _end(runs, folder, as_json=as_json)


@chaos.command(short_help="The same against a fleet that is not ours, from outside.")
@click.option("--url", required=True, help="Its Postgres, as the fleet's role.")
@click.option("--broker", required=True, help="Its Redis or Valkey.")
@click.option("--key-prefix", default="agentq:", show_default=True, help="What its keys in the broker begin with.")
@click.option("--service", "bind", required=True, help="HOST:PORT for the effects service; its workers must reach it.")
@click.option("--seed", "seeds", callback=_seeds, help="A number  [default: drawn]")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder of the reports  [data_dir/chaos]")
@click.option("--i-understand", "phrase", help='The phrase "break HOST:PORT", naming its Postgres.')
@click.option("--reason", required=True, help="Why, for the record of operators' actions.")
@click.option("--dry-run", is_flag=True, help="Print the schedule and touch nothing.")
@click.option("--quiet", is_flag=True, help="Say only the verdict, as where CI is set.")
@json_option
def staging(
    *,
    url: str,
    broker: str,
    key_prefix: str,
    bind: str,
    seeds: list[int],
    out: Path | None,
    phrase: str | None,
    reason: str,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Break a staging fleet with what is possible from outside: its connections, its broker's messages, its tools.

    Its workers must run with AGENTQ_AGENTS=...,agentq.chaos.agents and AGENTQ_CHAOS_SERVICE=HOST:PORT of the service
    that this command starts. Every session in that fleet is delayed, and those of its other tenants share the faults:
    keys of the broker below the prefix are deleted, and connections of the fleet's role are ended.
    """
    from agentq.broker.connection import is_redis
    from agentq.chaos import schedule
    from agentq.chaos.arena import where
    from agentq.cli.reach import knock

    if dry_run:
        _show_schedules([schedule.make(schedule.OUTSIDE, seed) for seed in seeds], as_json=as_json)
        return
    wanted = f"break {where(url)}"
    if phrase != wanted:
        raise Problem(f"this breaks the fleet at {where(url)}: say --i-understand {wanted!r} if you mean it", REFUSED)
    if not is_redis(broker):
        raise Problem("--broker wants a redis:// address: what is done to messages is done in Redis or Valkey", REFUSED)
    if not re.fullmatch(r"[^:]+:\d{1,5}", bind):
        raise Problem(f"--service wants HOST:PORT, not {bind!r}", REFUSED)
    knock(url)
    settings = load(None, database_url=url, broker_url=broker, key_prefix=key_prefix)
    folder = (out or settings.data_dir / "chaos").absolute()
    runs = [_run_outside(settings, seed, folder, bind=bind, reason=reason, quiet=quiet or as_json) for seed in seeds]
    _end(runs, folder, as_json=as_json)


@chaos.command(short_help="Former runs as a table.")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), required=False)
@json_option
def table(folder: Path | None, as_json: bool) -> None:
    """Tabulate the runs whose reports are in FOLDER  [data_dir/chaos]: a line for each, and recovery by fault."""
    found = folder or load().data_dir / "chaos"
    if as_json:
        from agentq.chaos.report import summary

        print_json(summary(found))
    else:
        _print_summary(found, None)


def _run(profile: str, seed: int, folder: Path, *, keep: bool, quiet: bool) -> Run:
    from agentq.chaos import schedule
    from agentq.chaos.play import play

    def act(screen: Screen) -> Run:
        screen.say(f"chaos {profile}, seed {seed}: starting servers and workers", "bold")
        return play(schedule.PROFILES[profile], seed, folder / f"run-{profile}-{seed}", screen, keep=keep)

    return _reported(act, folder, quiet=quiet)


def _run_outside(settings: Settings, seed: int, folder: Path, *, bind: str, reason: str, quiet: bool) -> Run:
    from agentq.chaos.play import play_outside

    def act(screen: Screen) -> Run:
        screen.say(f"chaos from outside, seed {seed}", "bold")
        return play_outside(settings, seed, folder / f"run-outside-{seed}", screen, bind=bind, reason=reason)

    return _reported(act, folder, quiet=quiet)


def _reported(act: Callable[[Screen], Run], folder: Path, *, quiet: bool) -> Run:
    """Run it, write its report, and say the verdict."""
    from rich.console import Console

    from agentq.chaos import report
    from agentq.chaos.screen import Screen
    from agentq.demo.surroundings import own_environment, terminable

    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    screen = Screen(console, quiet=quiet or bool(os.environ.get("CI")))
    try:
        with own_environment(), terminable():
            run = act(screen)
    finally:
        screen.rest()
    page = report.write(run, folder)
    screen.verdict(run)
    screen.say(f"report: {page}")
    return run


def _end(runs: list[Run], folder: Path, *, as_json: bool) -> None:
    """The answer, and the exit code."""
    if as_json:
        from agentq.chaos.report import facts

        found = [facts(run) for run in runs]
        print_json(found[0] if len(found) == 1 else found)
    elif len(runs) > 1:
        _print_summary(folder, [(run.schedule.profile.name, run.schedule.seed) for run in runs])
    if not all(run.ok for run in runs):
        raise click.exceptions.Exit(FAILED)


def _show_schedules(schedules: list[Schedule], *, as_json: bool) -> None:
    if as_json:
        found: list[dict[str, Any]] = [
            {"profile": each.profile.name, "seed": each.seed, "blows": [dataclasses.asdict(b) for b in each.blows]}
            for each in schedules
        ]
        print_json(found[0] if len(found) == 1 else found)
        return
    for each in schedules:
        note(f"{each.profile.name}, seed {each.seed}: {each.profile.sessions} sessions over {each.submit_s:.0f} s")
        rows = [(f"{b.at_s:.1f} s", b.name, f"{b.lasts_s:g} s" if b.lasts_s else "", b.worker + 1) for b in each.blows]
        print_table(("AT", "FAULT", "LASTS", "WORKER"), rows, empty="no blows")


def _print_summary(folder: Path, wanted: list[tuple[str, int]] | None) -> None:
    from agentq.chaos.report import KINDS, summary

    found = [each for each in summary(folder) if wanted is None or (each["profile"], each["seed"]) in wanted]
    if not found:
        raise Problem(f"no reports of chaos runs are in {folder}: `agentq chaos` writes them", REFUSED)
    kinds = [kind for kind in KINDS if any(each["counts"].get(kind) for each in found)]
    names = (
        ("SESSIONS", "sessions wanted"),
        ("EFFECTS", "effects done"),
        ("REPEATED CALLS", "calls repeated under their key"),
        ("PARKED", "parked as unknown"),
        ("BLOWS", "blows"),
        ("HIT", "blows that hit"),
    )
    print_table(
        ("PROFILE", "SEED", "TOOK", *(name for name, _ in names), *(kind.upper() for kind in kinds), "VERDICT"),
        [
            (
                each["profile"],
                each["seed"],
                f"{each['took_s']:.0f} s",
                *(each["figures"].get(figure, 0) for _, figure in names),
                *(each["counts"].get(kind, 0) for kind in kinds),
                "passed" if each["ok"] else "failed",
            )
            for each in found
        ],
        empty="",
    )
    click.echo()
    _print_recoveries(found)


def _print_recoveries(found: list[dict[str, Any]]) -> None:
    """By fault over all runs: the middle of the medians, and the worst p99; of all recoveries, and of those alone."""
    faults: dict[str, list[dict[str, Any]]] = {}
    for each in found:
        for recovery in each["recoveries"]:
            faults.setdefault(recovery["fault"], []).append(recovery)
    rows = [
        (
            fault,
            sum(each["blows"] for each in times),
            sum(each["hit"] for each in times),
            *_middle_and_worst(times, "moved", ""),
            sum(each["alone"] for each in times),
            *_middle_and_worst(times, "alone", "alone_"),
        )
        for fault, times in sorted(faults.items())
    ]
    print_table(
        ("FAULT", "BLOWS", "SESSIONS HIT", "P50", "WORST P99", "ALONE", "P50 ALONE", "WORST P99 ALONE"), rows, empty=""
    )


def _middle_and_worst(times: list[dict[str, Any]], count: str, prefix: str) -> tuple[str, str]:
    medians = sorted(each[f"{prefix}p50_s"] for each in times if each[count])
    tails = [each[f"{prefix}p99_s"] for each in times if each[count]]
    return (f"{medians[len(medians) // 2]:.2f} s", f"{max(tails):.2f} s") if medians else ("", "")
