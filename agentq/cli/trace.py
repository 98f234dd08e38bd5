"""What a session did and what it cost: `session trace`, `session cost` and `cost ls`."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agentq.cli.advice import advise, effect_facts, hold_of, on_hold
from agentq.cli.exits import FAILED, Problem
from agentq.cli.output import heading, json_option, note, plain, print_facts, print_json, print_table, reason_of, when
from agentq.cli.reach import client, resolve

if TYPE_CHECKING:
    from agentq.client import Client
    from agentq.seeing.story import Act, Story
    from agentq.store.traces import SpendRow, TraceRow

_BAR = 28
_tenant_option = click.option("--tenant", help="Of this tenant; needed only when ids are alike.")


def _tell(connected: Client, id_: str, tenant: str | None) -> Story:
    from agentq.seeing.story import tell
    from agentq.seeing.tracing import redactor_of
    from agentq.store.traces import Traces

    owner, session_id = resolve(connected, id_, tenant)
    redactor = redactor_of(connected.settings)
    return tell(connected.sessions, Traces(connected.sessions.store), owner, session_id, redactor.value)


@click.command(short_help="Show what a session did, attempt by attempt.")
@click.argument("id_", metavar="ID")
@_tenant_option
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write one page that needs no server.",
)
@json_option
def trace(id_: str, tenant: str | None, html: Path | None, as_json: bool) -> None:
    """
    Show what a session did: each attempt, what it asked and called, what it decided, used and cost.

    Inputs and outputs are redacted. With --html they are in the page, folded; with --json all of them.
    """
    if html is not None and as_json:
        raise click.UsageError("--html and --json are two different answers: ask for one")
    with client() as connected:
        story = _tell(connected, id_, tenant)
        row, key = story.session, (story.session.tenant, story.session.session_id)
        hold = hold_of(connected, row)
        effects = [effect_facts(effect) for effect in connected.sessions.effects(*key)]
        advice = [*on_hold(row, hold), *advise(row, connected.sessions.steps(*key), effects)]
    if html is not None:
        from agentq.seeing.page import page

        try:
            html.write_text(page(story), "utf-8")
        except OSError as error:
            raise Problem(f"{html} cannot be written: {error.strerror}", FAILED) from None
        note(f"written to {html}")
    elif as_json:
        print_json(as_plain(story) | {"hold": hold, "advice": advice})
    else:
        show(story, hold)
        for line in advice:
            note(line)


@click.command(short_help="Show what a session used and cost.")
@click.argument("id_", metavar="ID")
@_tenant_option
@json_option
def cost(id_: str, tenant: str | None, as_json: bool) -> None:
    """Show what a session used by model, tool and step, and how much of it came to nothing."""
    with client() as connected:
        story = _tell(connected, id_, tenant)
    if as_json:
        total: dict[str, float] = {
            "tokens_in": story.tokens_in,
            "tokens_out": story.tokens_out,
            "cost_micros": story.cost_micros,
        }
        total |= {"tokens_cached": sum(line.tokens_cached for line in story.cost)}
        total |= {"tokens_reasoning": sum(line.tokens_reasoning for line in story.cost)}
        total |= {f"{kind}_s": story.seconds_of(kind) for kind in ("model", "tool", "sandbox")}
        total |= {"waste_micros": story.waste_micros, "repair_micros": story.repair_micros, "repairs": story.repairs}
        total |= {"cost_usd": story.cost_micros / 1_000_000}
        print_json({"session_id": story.session.session_id, "total": total, "lines": plain(story.cost)})
        return
    _show_cost(story)


@click.group(name="cost")
def cost_group() -> None:
    """Cost: ls."""


@cost_group.command()
@click.option(
    "--by",
    type=click.Choice(["agent", "tenant", "day", "session", "model", "tool"]),
    default="agent",
    show_default=True,
    help="Sum up by this.",
)
@click.option("--tenant", help="Only this tenant's.")
@click.option("--agent", help="Only this agent's.")
@click.option("--since", default="30d", show_default=True, help="Used within this time: 90m, 24h, 7d.")
@click.option(
    "--limit",
    type=click.IntRange(1, 100_000),
    default=100,
    show_default=True,
    help="By session: so many, and the others in one line.",
)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, and nothing else.")
@json_option
def ls(*, by: str, tenant: str | None, agent: str | None, since: str, limit: int, as_csv: bool, as_json: bool) -> None:
    """
    Sum up what was used and what it cost, the dearest first; days in UTC.

    More than an hour begins with a whole hour, more than two days with a whole day.
    Waste is what was paid for attempts that came to nothing, and for repairs: calls that asked a model again for
    what it wrote wrong. REPAIRS is the part of the waste that they cost. By tool it is the calls, those in the
    sandbox too, and the time that they took; what was recalled was not called.
    """
    from agentq.agents.returns import seconds
    from agentq.step import valid_name
    from agentq.store.traces import Traces

    for kind, name in (("tenant", tenant), ("agent", agent)):
        if name is not None:
            valid_name(kind, name)
    if as_csv and as_json:
        raise click.UsageError("--csv and --json are two different answers: ask for one")
    try:
        window_s = seconds(since)
    except Exception as error:
        raise click.UsageError(f"--since: {error}") from None
    if window_s <= 0:
        raise click.UsageError("--since must be longer than nothing")
    with client() as connected:
        rows = Traces(connected.sessions.store).spend(by, seconds=window_s, tenant=tenant, agent=agent, limit=limit)
    if by == "day":
        rows = sorted(rows, key=lambda row: row.of)
    if as_json:
        print_json([plain(row) | {"cost_usd": row.cost_micros / 1_000_000} for row in rows])
    elif as_csv:
        _print_csv(by, rows)
    else:
        _print_spend(by, rows)


_COLUMNS = (
    "count", "sessions", "tokens_in", "tokens_out", "cost_micros", "waste_micros", "tokens_cached", "seconds",
    "recalled", "seconds_sandbox", "repairs", "repair_micros",
)  # fmt: skip


def _print_csv(by: str, rows: list[SpendRow]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([by, *_COLUMNS])
    for row in rows:
        # A spreadsheet must not take a name for a formula.
        name = f"'{row.of}" if row.of[:1] in "=+-@" else row.of
        writer.writerow([name, *(getattr(row, column) for column in _COLUMNS)])


def _print_spend(by: str, rows: list[SpendRow]) -> None:
    from agentq.seeing.story import dollars, seconds_text

    if by == "tool":
        print_table(
            ("TOOL", "CALLS", "RECALLED", "TOOK", "IN SANDBOX", "SESSIONS"),
            (
                (
                    row.of, f"{row.count:,}", row.recalled or "", seconds_text(row.seconds),
                    seconds_text(row.seconds_sandbox) if row.seconds_sandbox else "", row.sessions,
                )
                for row in rows
            ),
            empty="no tool was called in that time",
        )  # fmt: skip
        return
    top = max((row.cost_micros for row in rows), default=0)
    repaired = any(row.repair_micros for row in rows)  # a column that would be empty stays away
    print_table(
        (
            by.upper(),
            "COST",
            "WASTE",
            *(("REPAIRS",) if repaired else ()),
            "",
            "TOKENS IN",
            *(("CACHED",) if by == "model" else ()),
            "OUT",
            "REQUESTS" if by == "model" else "ATTEMPTS",
            "SESSIONS",
        ),
        (
            (
                row.of,
                dollars(row.cost_micros),
                dollars(row.waste_micros) if row.waste_micros else "",
                *((dollars(row.repair_micros) if row.repair_micros else "",) if repaired else ()),
                "█" * round(20 * row.cost_micros / top) if top else "",
                f"{row.tokens_in:,}",
                *((f"{row.tokens_cached:,}",) if by == "model" else ()),
                f"{row.tokens_out:,}",
                f"{row.count:,}",
                f"{row.sessions:,}",
            )
            for row in rows
        ),
        empty="nothing was used in that time",
    )
    if len(rows) > 1:
        print_facts((("together", dollars(sum(row.cost_micros for row in rows))),))


# ── a session's story ────────────────────────────────────────────────────────


def show(story: Story, hold: dict[str, Any] | None = None) -> None:
    """The story in the terminal."""
    from agentq.seeing.story import dollars, waste_text

    session = story.session
    wasted = sum(act.row.wasted for act in story.acts)
    attempts = len(story.acts) + story.beyond.attempts
    print_facts(
        (
            ("session", session.session_id),
            ("trace", story.trace_id if story.trace_id != session.session_id else None),
            ("agent", f"{session.agent}@{session.agent_version}"),
            ("tenant", session.tenant),
            ("state", session.state),
            ("held", f"{hold.get('kind')}: {hold.get('reason')}" if hold else None),
            ("key", session.key),
            ("started", when(session.created_at)),
            ("steps", story.operations),
            ("attempts", f"{attempts}, {wasted} of them came to nothing" if wasted else attempts),
            (
                "tokens",
                f"{story.tokens_in} in, {story.tokens_out} out" if story.tokens_in or story.tokens_out else None,
            ),
            ("cost", dollars(story.cost_micros) if story.cost_micros else None),
            ("waste", waste_text(story.waste_micros, story.repair_micros)),
            ("failure", reason_of(session.failure)),
        )
    )
    heading("Timeline")
    print_table(("AT", "WHAT", "", "TOOK", "TOKENS", "COST", "NOTE"), _lines(story), empty="no attempt has ended yet")
    if story.beyond.attempts:
        note(f"{story.beyond.attempts:,} attempts in the middle are not shown; the sums have them")
    for step in story.waiting:
        click.echo(f"… {step.name} is {step.state}{f', due {when(step.due_at)}' if step.state == 'ready' else ''}")
    for child in story.children:
        click.echo(f"→ child {child.session_id} ({child.agent}@{child.agent_version}) is {child.state}")
    _show_decisions(story)
    if story.cost_micros:
        _show_cost(story)


def _lines(story: Story) -> list[tuple[Any, ...]]:
    from agentq.seeing.timeline import scale_of

    if not story.acts:
        return []
    zero = story.session.created_at
    scale = scale_of([(act.row.started_at.timestamp(), act.row.ended_at.timestamp()) for act in story.acts], 0, _BAR)
    rows: list[tuple[Any, ...]] = []
    for act in story.acts:
        for row in (act.row, *act.events):
            left, right = scale.x(row.started_at.timestamp()), scale.x(row.ended_at.timestamp())
            bar = " " * int(left) + ("█" if row.ordinal == 0 else "▪") * max(round(right - left), 1)
            rows.append(_line(row, (row.started_at - zero).total_seconds(), bar[:_BAR]))
    return rows


def _line(row: TraceRow, at_s: float, bar: str) -> tuple[Any, ...]:
    from agentq.seeing.story import dollars, seconds_text

    what = (
        f"{row.name}{f' #{row.attempt}' if row.attempt > 1 else ''}" if row.ordinal == 0 else f"  {row.kind} {row.name}"
    )
    notes = [
        f"{row.closing}{f' {row.leads_to}' if row.leads_to else ''}" if row.closing else "",
        reason_of(row.failure),
    ]
    notes.append(str((row.detail or {}).get("outcome", "")))
    notes.append("repair" if row.mends and not row.closing else "")
    tokens = f"{row.tokens_in}+{row.tokens_out}" if row.tokens_in or row.tokens_out else ""
    return (
        f"+{seconds_text(max(at_s, 0.0))}",
        what,
        bar,
        seconds_text(row.took_s),
        tokens,
        dollars(row.cost_micros) if row.cost_micros else "",
        "; ".join(filter(None, notes)),
    )


def _show_decisions(story: Story) -> None:
    from agentq.payload import decode
    from agentq.seeing.story import short

    made = [decision for act in story.acts for decision in act.decisions]
    if not made:
        return
    heading("Decisions")
    options = [found if isinstance(found := decode(one.options), list) else [] for one in made]
    instead = [", ".join(short(alternative, 40) for alternative in _alternatives(of)) for of in options]
    # Columns that would be empty stay away.
    approved, named = any(one.approver for one in made), any(instead)
    print_table(
        ("STEP", "PICKED", "OF", "SURE", *(["BY"] if approved else []), "WHY", *(["RATHER THAN"] if named else [])),
        (
            (
                one.step,
                short(one.picked, 40),
                len(of) or "",
                f"{one.confidence:.2f}" if one.confidence is not None else "",
                *([one.approver or ""] if approved else []),
                one.why,
                *([rather] if named else []),
            )
            for one, of, rather in zip(made, options, instead, strict=True)
        ),
        empty="none",
    )


def _alternatives(options: list[Any]) -> list[str]:
    """What a model named among the options, in its own words."""
    return [str(one["alternative"]) for one in options if isinstance(one, dict) and "alternative" in one]


def _show_cost(story: Story) -> None:
    from agentq.seeing.story import dollars, seconds_text, waste_text

    heading("Cost")
    # Columns that would be empty stay away: a terminal is narrow.
    recalled, cached = any(line.recalled for line in story.cost), any(line.tokens_cached for line in story.cost)
    repaired = any(line.repair_micros for line in story.cost)
    print_table(
        (
            "WHAT", "KIND", "TIMES", *(["RECALLED"] if recalled else []), "TOKENS IN", *(["CACHED"] if cached else []),
            "OUT", "TOOK", "COST", "WASTE", *(["REPAIRS"] if repaired else []),
        ),
        (
            (
                line.what, line.kind, line.count, *([line.recalled or ""] if recalled else []), f"{line.tokens_in:,}",
                *([f"{line.tokens_cached:,}" if line.tokens_cached else ""] if cached else []), f"{line.tokens_out:,}",
                seconds_text(line.seconds), dollars(line.cost_micros),
                dollars(line.waste_micros) if line.waste_micros else "",
                *([dollars(line.repair_micros) if line.repair_micros else ""] if repaired else []),
            )
            for line in story.cost
        ),
        empty="nothing was used",
    )  # fmt: skip
    print_facts(
        (
            ("together", dollars(story.cost_micros)),
            ("waste", waste_text(story.waste_micros, story.repair_micros)),
        )
    )


def as_plain(story: Story) -> dict[str, Any]:
    """The story in types that JSON has; stored JSON as JSON."""
    return {
        # What it was given and came to stands, redacted, with its attempts.
        "session": {name: value for name, value in plain(story.session).items() if name not in ("input", "result")},
        "trace_id": str(story.trace_id),
        "totals": {
            "tokens_in": story.tokens_in,
            "tokens_out": story.tokens_out,
            "cost_micros": story.cost_micros,
            "waste_micros": story.waste_micros,
            "repair_micros": story.repair_micros,
            "repairs": story.repairs,
            "steps": story.operations,
            "attempts": len(story.acts) + story.beyond.attempts,
            "attempts_not_shown": story.beyond.attempts,
        },
        "attempts": [_plain_act(act) for act in story.acts],
        "waiting": plain(story.waiting),
        "sessions": plain(story.family),
        "cost": plain(story.cost),
        "steps": plain(story.steps),
    }


def _plain_act(act: Act) -> dict[str, Any]:
    return _decoded(plain(act.row)) | {
        "given": act.given,
        "made": act.made,
        "result": act.result,
        "changes": list(act.changes),
        "events": [_decoded(plain(event)) for event in act.events],
        "decisions": [_decoded(plain(decision)) for decision in act.decisions],
    }


def _decoded(row: dict[str, Any]) -> dict[str, Any]:
    from agentq.payload import decode

    return row | {name: decode(row[name].encode()) for name in ("input", "output", "options") if row.get(name)}
