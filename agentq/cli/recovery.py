"""What people do to sessions: `session inspect`, `pause`, `resume`, `cancel`, `kill`, `replay` and `fork`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agentq.cli.exits import FAILED, Problem
from agentq.cli.output import heading, json_option, note, plain, print_facts, print_json, print_table, span, when
from agentq.cli.reach import client, resolve

if TYPE_CHECKING:
    from agentq.client import Client
    from agentq.client.inspection import Inspection, Waits
    from agentq.client.recovery import Plan
    from agentq.store.recovery import Chosen
    from agentq.store.sessions import SessionRow

F = TypeVar("F", bound=Callable[..., Any])
Act = Callable[["Client", str, Any], str]


@dataclass(frozen=True, slots=True)
class _Verb:
    """A command on one or many: what it is called, the states that it changes, and what they are afterwards."""

    name: str
    past: str
    states: tuple[str, ...]
    after: str
    running: str
    act: Act


_tenant_option = click.option("--tenant", help="Of this tenant; needed with an ID only when ids are alike.")
_reason_option = click.option("--reason", help="Why; kept with your name. Needed unless --dry-run.")
_dry_run = click.option("--dry-run", is_flag=True, help="Say what would happen, change nothing.")


def _one_or_many(states: tuple[str, ...]) -> Callable[[F], F]:
    """An ID, or a filter with the states that the command can change."""

    def add(function: F) -> F:
        for option in reversed(
            (
                click.argument("id_", metavar="[ID]", required=False),
                _tenant_option,
                click.option("--agent", help="All of this agent's instead of one ID."),
                click.option("--state", type=click.Choice(states), help="Only those in this state."),
                click.option("--older", metavar="TIME", help="Only those started at least so long ago: 10m, 2h, 3d."),
                click.option("--yes", is_flag=True, help="With a filter: do not ask first."),
                _reason_option,
                _dry_run,
                json_option,
            )
        ):
            function = option(function)
        return function

    return add


@click.command(short_help="Say where a session stands, what it waits for, and why.")
@click.argument("id_", metavar="ID")
@click.option("--tenant", help="Of this tenant; needed only when ids are alike.")
@json_option
def inspect(id_: str, tenant: str | None, as_json: bool) -> None:
    """
    Say where a session stands: its state at the last checkpoint, what each step waits for (a slot, a backoff, a
    timer, a person, its branches, a worker, a breaker), who works on it since when, and the command that comes next.
    """
    with client() as connected:
        owner, session_id = resolve(connected, id_, tenant)
        found = connected.recovery.inspect(owner, session_id)
    if as_json:
        print_json(found)
        return
    _show(found)


@click.command(short_help="Hold a session: what runs finishes, nothing follows.")
@_one_or_many(("running",))
def pause(**options: Any) -> None:
    """Hold one session and its children, or all that a filter names. What runs now finishes; nothing follows."""
    act: Act = lambda c, t, i: c.recovery.pause(t, i, reason=options["reason"])  # noqa: E731
    _each(_Verb("pause", "paused", ("running",), "paused", "would finish", act), **options)


@click.command(short_help="Let a paused session go on.")
@_one_or_many(("paused",))
@click.option("--held-by", help="With a filter: only those paused so: operator, breaker, limit, …")
def resume(held_by: str | None, **options: Any) -> None:
    """Let one paused session and its children go on, or all that a filter names."""
    act: Act = lambda c, t, i: c.recovery.resume(t, i, reason=options["reason"])  # noqa: E731
    _each(_Verb("resume", "resumed", ("paused",), "running", "go on", act), held_by=held_by, **options)


@click.command(short_help="End a session; running steps stop at their next check.")
@_one_or_many(("running", "paused"))
def cancel(**options: Any) -> None:
    """
    End one session and its children, or all that a filter names.

    Running steps stop at their next check; what they return is thrown away.
    """
    act: Act = lambda c, t, i: c.cancel(t, str(i), reason=options["reason"])  # noqa: E731
    _each(_Verb("cancel", "cancelled", ("running", "paused"), "cancelled", "would stop", act), **options)


@click.command(short_help="End a runaway now: whatever still runs has lost its fence.")
@_one_or_many(("running", "paused"))
def kill(**options: Any) -> None:
    """
    End a runaway now: one session and its children, or all that a filter names.

    Unlike `cancel` it does not wait for the running steps: they have lost their fence, their slots are free at once,
    they can claim no further effect, and whatever they return is thrown away. A call that is out cannot be called back.
    """
    act: Act = lambda c, t, i: c.recovery.kill(t, i, reason=options["reason"])[0]  # noqa: E731
    _each(_Verb("kill", "killed", ("running", "paused"), "cancelled", "would lose their fence", act), **options)


_from_step = click.option(
    "--from-step", metavar="N", help="The step to go back to: its number in `session show` (3, or 3.1), name or id."
)
_changes = (
    click.option("--set", "assignments", multiple=True, metavar="PATH=VALUE", help="Change the state it begins with."),
    click.option("--edit", is_flag=True, help="Change that state in $EDITOR."),
)
_deadline = click.option("--deadline", metavar="TIME", help="A new deadline from now (30m, 2h); 0 takes it away.")


@click.command(short_help="Let the same session go on from an earlier step.")
@click.argument("id_", metavar="ID")
@click.option("--tenant", help="Of this tenant; needed only when ids are alike.")
@_from_step
@_changes[0]
@_changes[1]
@_deadline
@_reason_option
@_dry_run
@json_option
def replay(id_: str, tenant: str | None, reason: str | None, dry_run: bool, as_json: bool, **options: Any) -> None:
    """
    Let the same session go on from a step, in a new generation; without --from-step, from where it stopped.

    What came after the step stays readable and counts no more. Effects that are recorded are recalled, not repeated;
    where a step now calls with other arguments what is recorded, it ends with an error that says to fork.
    """
    reason = _why(reason, dry_run)
    with client(agents=_edits(options)) as connected:
        owner, session_id = resolve(connected, id_, tenant)
        change = _change(connected, owner, session_id, options)
        plan = connected.recovery.plan(owner, session_id, from_step=options["from_step"], change=change)
        if dry_run:
            _tell_plan("would go on", plan, as_json)
            return
        found = connected.recovery.replay(
            owner, session_id, reason=reason, from_step=options["from_step"], change=change,
            deadline=_time(options["deadline"]),
        )  # fmt: skip
    if as_json:
        print_json({"tenant": owner, "id": session_id, "dry_run": False} | plain(found) | {"changes": plan.changes})
        return
    _tell_changes(plan)
    others = f", and {len(found.sessions) - 1} sessions with it" if len(found.sessions) > 1 else ""
    click.echo(f"session {session_id} goes on in generation {found.generation}{_at(plan)}{others}")


@click.command(short_help="Begin a new session at a step of another.")
@click.argument("id_", metavar="ID")
@click.option("--tenant", help="Of this tenant; needed only when ids are alike.")
@_from_step
@_changes[0]
@_changes[1]
@click.option("--dry-effects", is_flag=True, help="Only recall recorded effects; a call without a record ends it.")
@_deadline
@_reason_option
@_dry_run
@json_option
def fork(
    id_: str, tenant: str | None, *, dry_effects: bool, reason: str | None, dry_run: bool, as_json: bool, **options: Any
) -> None:
    """
    Begin a new session at a step of another: with its state, its history until then, and effect keys of its own.

    The other session is left alone. Its effects are not recalled but made anew, unless --dry-effects is given.
    """
    reason = _why(reason, dry_run)
    if options["from_step"] is None:
        raise click.UsageError("--from-step must name the step to begin at")
    with client(agents=_edits(options)) as connected:
        owner, session_id = resolve(connected, id_, tenant)
        change = _change(connected, owner, session_id, options)
        plan = connected.recovery.plan(owner, session_id, from_step=options["from_step"], change=change)
        if dry_run:
            _tell_plan("a new session would begin", plan, as_json)
            return
        made = connected.recovery.fork(
            owner, session_id, reason=reason, from_step=options["from_step"], change=change, dry_effects=dry_effects,
            deadline=_time(options["deadline"]),
        )  # fmt: skip
    if as_json:
        facts = {"tenant": owner, "id": made, "forked_from": session_id, "dry_effects": dry_effects, "dry_run": False}
        print_json(facts | {"changes": plan.changes})
        return
    _tell_changes(plan)
    click.echo(f"session {made} has begun{_at(plan)} of session {session_id}; follow it: agentq session tail {made}")


# ── one or many ──────────────────────────────────────────────────────────────


def _each(verb: _Verb, *, id_: str | None, reason: str | None, **options: Any) -> None:
    _why(reason, options["dry_run"])
    named = [name for name in ("agent", "state", "older") if options[name] is not None]
    if id_ is not None and named:
        raise click.UsageError(f"give an ID or --{named[0]}, not both")
    if id_ is None and not named and options["tenant"] is None:
        raise click.UsageError(f"name a session, or say which to {verb.name}: --tenant, --agent, --state, --older")
    with client() as connected:
        if id_ is not None:
            _to_one(connected, verb, id_, options)
        else:
            _to_many(connected, verb, _chosen(verb.states, options), options)


def _to_one(connected: Client, verb: _Verb, id_: str, options: dict[str, Any]) -> None:
    owner, session_id = resolve(connected, id_, options["tenant"])
    before = connected.sessions.get(owner, session_id)
    if options["dry_run"]:
        _tell_would(connected, verb, before, options["as_json"])
        return
    state = before.state
    if state in verb.states or verb.name == "kill":  # which also fences what still runs of a session that has ended
        state = verb.act(connected, owner, session_id)
    if options["as_json"]:
        print_json({"tenant": owner, "id": session_id, "state": state, "dry_run": False})
    elif state == verb.after:
        click.echo(f"session {session_id} is {verb.past}")
    if state != verb.after:
        ended = "had ended before, as" if state in ("done", "failed", "cancelled") else "is"
        raise Problem(f"session {session_id} {ended} {state}; nothing was changed", FAILED)


def _tell_would(connected: Client, verb: _Verb, row: SessionRow, as_json: bool) -> None:
    children = connected.sessions.children(row.tenant, row.session_id)
    running = [s.name for s in connected.sessions.steps(row.tenant, row.session_id) if s.state == "running"]
    would = row.state in verb.states
    if as_json:
        facts = {"tenant": row.tenant, "id": row.session_id, "state": row.state, "dry_run": True}
        print_json(facts | {f"would_{verb.name}": would, "children": children, "running_steps": running})
        return
    if not would:
        ended = "has ended as" if row.state in ("done", "failed", "cancelled") else "is"
        click.echo(f"session {row.session_id} {ended} {row.state}; nothing would change")
        return
    what = f", its running steps ({', '.join(running)}) {verb.running}" if running else ""
    more = f", {len(children)} child sessions with it" if children else ""
    click.echo(f"session {row.session_id} ({row.agent}, {row.tenant}) would be {verb.past}{what}{more}")


def _chosen(states: tuple[str, ...], options: dict[str, Any]) -> Chosen:
    from agentq.agents.returns import seconds
    from agentq.step import valid_name
    from agentq.store.recovery import Chosen

    for kind in ("tenant", "agent"):
        if options[kind] is not None:
            valid_name(kind, options[kind])
    older_s = seconds(options["older"]) if options["older"] is not None else None
    chosen = (options["state"],) if options["state"] is not None else states
    return Chosen(chosen, options["tenant"], options["agent"], older_s, options.get("held_by"))


def _to_many(connected: Client, verb: _Verb, chosen: Chosen, options: dict[str, Any]) -> None:
    count, as_json, dry_run = connected.recovery.count(chosen), options["as_json"], options["dry_run"]
    if dry_run or not count:
        if as_json:
            print_json({"matched": count, "changed": 0, "dry_run": dry_run})
        else:
            click.echo(f"{count:,} sessions would be {verb.past}" if dry_run else "no session matches")
        return
    if not options["yes"]:
        if as_json:
            raise click.UsageError(f"{count:,} sessions match: give --yes to {verb.name} them, or look with --dry-run")
        click.confirm(f"{count:,} sessions match. {verb.name.capitalize()} them?", abort=True, err=True)
    ends: Counter[str] = Counter()
    for number, (tenant, session_id, _, _) in enumerate(connected.recovery.select(chosen), 1):
        ends[verb.act(connected, tenant, session_id)] += 1
        if number % 500 == 0:
            note(f"{number:,} of {count:,}")
    changed = ends[verb.after]
    if as_json:
        print_json({"matched": count, "changed": changed, "states": dict(ends), "dry_run": False})
        return
    left = sum(ends.values()) - changed
    click.echo(f"{changed:,} sessions are {verb.past}" + (f", {left:,} had ended meanwhile" if left else ""))


# ── replays and forks ────────────────────────────────────────────────────────


def _why(reason: str | None, dry_run: bool) -> str:
    if not dry_run and not (reason or "").strip():
        raise click.UsageError("--reason must say why (or look first, with --dry-run)")
    return reason or ""


def _time(text: str | None) -> float | None:
    from agentq.agents.returns import seconds

    return None if text is None else 0.0 if text == "0" else seconds(text)


def _edits(options: dict[str, Any]) -> bool:
    if options["edit"] and options["assignments"]:
        raise click.UsageError("give --edit or --set, not both")
    return bool(options["edit"] or options["assignments"])


def _change(connected: Client, tenant: str, session_id: Any, options: dict[str, Any]) -> Any:
    from agentq.client.edits import parse_assignments
    from agentq.payload import decode

    if options["assignments"]:
        return parse_assignments(options["assignments"])
    if not options["edit"]:
        return None
    place = connected.recovery.plan(tenant, session_id, from_step=options["from_step"]).step
    if place is None:
        raise click.UsageError("--edit needs the step that is to begin with the state: give --from-step")
    state = decode(connected.recovery.store.state_before(tenant, session_id, place.step_id))
    answer = click.edit(json.dumps(state, indent=2, ensure_ascii=False) + "\n", extension=".json")
    if answer is None:
        raise Problem("the editor was left without saving; nothing was changed", FAILED)
    try:
        wanted = json.loads(answer)
    except ValueError as error:
        raise click.UsageError(f"what the editor saved is no JSON ({error}); nothing was changed") from None
    return lambda _: wanted


def _at(plan: Plan) -> str:
    return f" at step {plan.step.number} ({plan.step.name})" if plan.step else " where it stopped"


def _tell_plan(what: str, plan: Plan, as_json: bool) -> None:
    if as_json:
        facts = {name: value for name, value in plain(plan).items() if name != "state"}
        print_json({"dry_run": True} | facts)
        return
    click.echo(f"{what}{_at(plan)}; it has been reopened {plan.generation} times")
    if plan.step is not None:
        click.echo(
            f"from there on {plan.recorded} steps are recorded and {plan.running} run; "
            f"{plan.effects_recalled} effects are recorded"
        )
    if plan.effects_open:
        click.secho(
            f"{plan.effects_open} effects may or may not have happened: look at the other side first", fg="yellow"
        )
    _tell_changes(plan)


def _tell_changes(plan: Plan) -> None:
    for one in plan.changes:
        click.echo(f"  {one['path']}: {json.dumps(one['before'])} → {json.dumps(one['after'])}")


# ── inspecting ───────────────────────────────────────────────────────────────


def _show(found: Inspection) -> None:
    state = json.dumps(plain(found.state_now), ensure_ascii=False)
    print_facts(
        (
            ("session", found.session_id),
            ("tenant", found.tenant),
            ("agent", found.agent),
            ("state", found.state),
            ("why", found.why),
            ("since", when(found.since)),
            ("deadline", when(found.deadline_at)),
            ("generation", found.generation or None),
            ("parent", found.parent_session),
            ("forked from", found.forked_from),
            ("effects", "recorded ones only (--dry-effects)" if found.dry_effects else None),
            ("last state", state if len(state) <= 400 else f"{state[:400]}… ({len(state):,} characters)"),
            ("written by", found.state_of or "its input"),
        )
    )
    if found.steps:
        heading("Waits for")
        print_table(
            ("STEP", "STATE", "FOR", "SINCE", "UNTIL", "WORKER", "WHY"),
            (_waits(step) for step in found.steps),
            empty="nothing",
        )
    for effect in found.unknown_effects:
        click.secho(f"\nwhether {effect} happened is not known: look at the other side", fg="yellow")
    if found.next_command:
        click.secho(f"\n→ {found.next_command}", fg="yellow")


def _waits(step: Waits) -> tuple[Any, ...]:
    worker = ""
    if step.worker is not None:
        worker = f"{step.worker['host']}:{step.worker['pid']}, {span(step.worker['last_heard_s'])} ago"
    return (step.step, step.state, step.waits_for, when(step.since), when(step.until), worker, step.why)
