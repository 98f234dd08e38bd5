"""The page: a session's story as one file of HTML that loads nothing and runs no script."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from html import escape
from importlib.resources import files
from typing import Any

from agentq.payload import readable
from agentq.seeing.story import Act, CostLine, StepLine, Story, dollars, seconds_text, waste_text
from agentq.seeing.timeline import CLOSINGS, STYLE, anchor, shown, timeline, told
from agentq.store.traces import DecisionRow, TraceRow

_FILES = files("agentq.seeing")
PAGE_STYLE = _FILES.joinpath("page.css").read_text("utf-8")

PARTS_STYLE = _FILES.joinpath("parts.css").read_text("utf-8")

# Of one value on the page: a thousand steps with large states must not make a page that no browser opens.
_SHOWN_MAX = 20_000

Also = Callable[[TraceRow], str]
"""What a page adds to an attempt."""

_STATE_TAGS = {"done": "ok", "failed": "bad", "cancelled": "off", "paused": "again", "running": "model"}


def page(story: Story) -> str:
    """The whole page. Everything that is not markup of ours is escaped; the policy forbids the rest."""
    session = story.session
    title = f"{session.agent} · {session.session_id}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{PAGE_STYLE}{PARTS_STYLE}{STYLE}</style></head>"
        f'<body class="aq-page"><main class="aq"><h1>{escape(session.agent)} {tag(session.state, _STATE_TAGS)}</h1>'
        f"{facts(story)}<h2>Timeline</h2>"
        f'<div class="aq-scroll">{timeline(story)}</div>'
        f"<h2>Cost</h2>{cost_table(story.cost)}{steps_table(story)}"
        f"{_section('Decisions', decisions(story.acts))}"
        f"{_section('Sessions in this trace', family(story))}"
        f"<h2>Attempts</h2>{attempts(story)}</main></body></html>"
    )


def facts(story: Story) -> str:
    """What is known of the session at a glance."""
    session = story.session
    took = (session.ended_at - session.created_at).total_seconds() if session.ended_at else None
    failure = session.failure or {}
    wasted = sum(act.row.wasted for act in story.acts)
    pairs: list[tuple[str, Any]] = [
        ("session", session.session_id),
        ("trace", story.trace_id if story.trace_id != session.session_id else None),
        ("tenant", session.tenant),
        ("agent", f"{session.agent}@{session.agent_version}"),
        ("key", session.key),
        ("started", session.created_at.strftime("%Y-%m-%d %H:%M:%S UTC")),
        ("took", seconds_text(took) if took is not None else None),
        ("steps", story.operations),
        ("attempts", f"{len(story.acts) + story.beyond.attempts}, of which {wasted} came to nothing"),
        (
            "tokens",
            f"{story.tokens_in:,} in, {story.tokens_out:,} out" if story.tokens_in or story.tokens_out else None,
        ),
        ("cost", _cost_text(story)),
        ("failure", f"{failure.get('type', '')}: {failure.get('message', '')}" if failure else None),
    ]
    rows = "".join(f"<dt>{name}</dt><dd>{escape(str(value))}</dd>" for name, value in pairs if value not in (None, ""))
    return f"<dl>{rows}</dl>"


def _cost_text(story: Story) -> str | None:
    if not story.cost_micros:
        return None
    waste = waste_text(story.waste_micros, story.repair_micros)
    return f"{dollars(story.cost_micros)}; came to nothing: {waste}" if waste else dollars(story.cost_micros)


def _section(title: str, body: str) -> str:
    return f"<h2>{title}</h2>{body}" if body else ""


def cost_table(lines: Iterable[CostLine]) -> str:
    """What used what."""
    rows = "".join(
        f"<tr><td>{escape(line.what)} <span class=why>{escape(line.kind)}</span></td>"
        f"<td class=n>{line.count:,}</td><td class=n>{line.recalled or ''}</td><td class=n>{line.tokens_in:,}</td>"
        f"<td class=n>{line.tokens_cached or ''}</td><td class=n>{line.tokens_out:,}{_reasoning(line)}</td>"
        f"<td class=n>{seconds_text(line.seconds)}</td><td class=n>{dollars(line.cost_micros)}</td>"
        f"<td class=n>{dollars(line.waste_micros) if line.waste_micros else ''}{_repairs(line)}</td></tr>"
        for line in lines
    )
    if not rows:
        return "<p class=why>nothing was used</p>"
    numbers = ("times", "recalled", "tokens in", "cached", "out", "took", "cost", "waste")
    head = "<tr><th scope=col>what" + "".join(f"<th scope=col class=n>{name}" for name in numbers)
    return f'<div class="aq-scroll"><table>{head}{rows}</table></div>'


def _repairs(line: CostLine | StepLine) -> str:
    return f" <span class=why>{dollars(line.repair_micros)} repairs</span>" if line.repair_micros else ""


def _reasoning(line: CostLine) -> str:
    return f" <span class=why>{line.tokens_reasoning:,} reasoning</span>" if line.tokens_reasoning else ""


def steps_table(story: Story) -> str:
    """Cost by step: how many steps of a name there were, and how many attempts they took."""
    rows = "".join(
        f"<tr><td>{escape(line.name)}<td class=n>{line.steps:,}<td class=n>{line.attempts:,}"
        f"<td class=n>{line.wasted or ''}<td class=n>{seconds_text(line.seconds)}<td class=n>{line.tokens_in:,}"
        f"<td class=n>{line.tokens_out:,}<td class=n>{dollars(line.cost_micros)}"
        f"<td class=n>{dollars(line.waste_micros) if line.waste_micros else ''}{_repairs(line)}"
        for line in story.steps
    )
    if not rows:
        return ""
    numbers = ("steps", "attempts", "came to nothing", "took", "tokens in", "out", "cost", "waste")
    head = "<tr><th>by step" + "".join(f"<th class=n>{name}" for name in numbers)
    return f'<div class="aq-scroll"><table>{head}{rows}</table></div>'


def decisions(acts: Iterable[Act]) -> str:
    """Every choice, in order."""
    return "".join(decision(made) for act in acts for made in act.decisions)


def decision(made: DecisionRow) -> str:
    """One choice: what was considered, what was picked and why."""
    sure = f" · confidence {made.confidence:.2f}" if made.confidence is not None else ""
    approver = f" · approved by {escape(made.approver)}" if made.approver else ""
    why = f"<p>{escape(made.why)}</p>" if made.why else ""
    limits = f"<p class=why>limits in force: {escape(_line(made.limits))}</p>" if made.limits else ""
    where = f"<span class=why>in {escape(made.step)}{sure}{approver}</span>"
    return (
        f"<details open><summary><b>{escape(made.picked)}</b> {where}</summary>{why}<p class=why>considered:</p>"
        f"{_options(readable(made.options))}{limits}</details>"
    )


def _options(options: Any) -> str:
    if isinstance(options, list):
        return "<ul>" + "".join(f"<li>{escape(_line(option))}</li>" for option in options) + "</ul>"
    return pre(options)


def family(story: Story, link: Callable[[Any], str] = str) -> str:
    """The sessions of the trace, when it has more than this one."""
    if len(story.family) < 2:
        return ""
    rows = "".join(
        f"<tr><td>{link(one.session_id)}<td>{escape(one.agent)}@{one.agent_version}"
        f"<td>{tag(one.state, _STATE_TAGS)}"
        f"<td>{'root' if one.parent_session is None else 'child'}"
        for one in story.family
    )
    head = "".join(f"<th scope=col>{name}" for name in ("session", "agent", "state", "is"))
    return f'<div class="aq-scroll"><table><tr>{head}{rows}</table></div>'


def attempts(story: Story, also: Also | None = None) -> str:
    """Each attempt, folded: what it began from, did, decided, changed and cost; and what the caller adds to each."""
    acts, left_out = shown(story.acts)
    note = f"<p class=why>{left_out} attempts in the middle are left out; --json has all</p>" if left_out else ""
    later = {act.row.step_id: act.row for act in acts}
    return note + "".join(attempt(act, later[act.row.step_id], also) for act in acts)


def attempt(act: Act, last: TraceRow, also: Also | None = None) -> str:
    """One attempt, folded."""
    row = act.row
    links = f'<p><a href="#{anchor(last)}">to the last attempt of this step</a></p>' if last is not row else ""
    leads = f"<p class=why>leads to {escape(row.leads_to)}</p>" if row.leads_to else ""
    why = f"<pre>{escape(_failure(row))}</pre>" if row.failure else ""
    where = f"worker {row.worker}" if row.worker else ""
    queued = (row.started_at - row.queued_at).total_seconds() if row.queued_at else 0.0
    when = (
        f"started {row.started_at.strftime('%H:%M:%S.%f')[:-3]} UTC after {seconds_text(max(queued, 0))} in the queue"
    )
    parts = [why, leads, links, f"<p class=why>{when}; {escape(where)}</p>"]
    parts += [also(row)] if also else []
    parts += [event(one) for one in act.events]
    parts += [decision(made) for made in act.decisions]
    parts.append(folded("began from", act.given))
    if act.changes:
        parts.append(f"<details><summary>changed {len(act.changes)} fields</summary>{diff(act.changes)}</details>")
    if act.result is not None:
        parts.append(folded("result", act.result))
    return (
        f'<details id="{anchor(row)}"{" open" if row.failure else ""}><summary>{tag(row.closing or "", CLOSINGS)} '
        f"<b>{escape(row.name)}</b> <span class=why>step {row.seq}, attempt {row.attempt} · {escape(told(row))}</span>"
        f"</summary>{''.join(parts)}</details>"
    )


def event(row: TraceRow) -> str:
    """Something that an attempt did, folded."""
    inner = [f"<pre>{escape(_failure(row))}</pre>"] if row.failure else []
    if row.detail:
        inner.append(f"<p class=why>{escape(_line(row.detail))}</p>")
    for name, data in (("input", row.input), ("output", row.output)):
        if data is not None:
            inner.append(f"<p class=why>{name}</p>{pre(readable(data))}")
    return f"<details><summary>{tag(row.kind)} {escape(told(row))}</summary>{''.join(inner)}</details>"


def folded(name: str, value: Any) -> str:
    """A value behind its name."""
    return f"<details><summary>{escape(name)}</summary>{pre(value)}</details>"


def diff(lines: Iterable[str]) -> str:
    """Changes, a line each."""
    kinds = {"+": "plus", "-": "minus"}
    return (
        "<pre>"
        + "\n".join(f'<span class="{kinds.get(line[:1], "")}">{escape(line)}</span>' for line in lines)
        + "</pre>"
    )


def pre(value: Any) -> str:
    """A value as it is, indented."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2, default=str)
    if len(text) > _SHOWN_MAX:
        text = f"{text[:_SHOWN_MAX]}…\n({len(text) - _SHOWN_MAX:,} more characters; --json has all)"
    return f"<pre>{escape(text)}</pre>"


def tag(text: str, kinds: dict[str, str] | None = None) -> str:
    """A word in its colour."""
    kind = (kinds or {}).get(text, text if text in ("model", "tool", "approval") else "")
    return f'<span class="tag {kind}">{escape(text)}</span>'


def _failure(row: TraceRow) -> str:
    failure = row.failure or {}
    where = f"\nin {failure['where']}" if failure.get("where") else ""
    return f"{failure.get('kind', '')} {failure.get('type', '')}: {failure.get('message', '')}{where}"


def _line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{name} {item if isinstance(item, str) else json.dumps(item, default=str)}" for name, item in value.items()
        )
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


__all__ = ["PAGE_STYLE", "PARTS_STYLE", "attempts", "cost_table", "decisions", "facts", "family", "page", "tag"]
