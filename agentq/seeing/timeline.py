"""The timeline: a session's attempts along its time, as an SVG picture that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from importlib.resources import files

from agentq.seeing.story import Act, Story, dollars, seconds_text
from agentq.store.traces import TraceRow

LANES_MAX = 1200
_WIDTH, _LABEL, _LANE, _TOP = 960, 190, 26, 34
# A pause longer than this share of all work is drawn short, with its length beside it.
_LONG_SHARE, _SHORT_SHARE = 0.2, 0.06

STYLE = files("agentq.seeing").joinpath("timeline.css").read_text("utf-8")

CLOSINGS = {
    "next": "ok", "end": "ok", "fail": "bad", "dead": "bad", "lost": "bad", "retry": "again", "release": "off",
    "repair": "again", "postpone": "off", "cancelled": "off", "park": "off",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scale:
    """Where a moment stands across the picture, with long pauses made short."""

    # (from, to, left, right), in order, without holes.
    pieces: tuple[tuple[float, float, float, float], ...]
    gaps: tuple[tuple[float, float, float], ...]  # left, right, seconds

    def x(self, at: float) -> float:
        for start, end, left, right in self.pieces:
            if at <= end:
                share = (at - start) / (end - start) if end > start else 0.0
                return left + (right - left) * min(max(share, 0.0), 1.0)
        return self.pieces[-1][3]


def scale_of(intervals: Sequence[tuple[float, float]], left: float, right: float) -> Scale:
    """A scale on which everything that happens has room, however long nothing does in between."""
    busy: list[list[float]] = []
    for start, end in sorted(intervals):
        if busy and start <= busy[-1][1]:
            busy[-1][1] = max(busy[-1][1], end)
        else:
            busy.append([start, end])
    worked = sum(end - start for start, end in busy) or 0.001
    spans: list[tuple[float, float, bool]] = []
    for number, (start, end) in enumerate(busy):
        if number:
            pause = start - busy[number - 1][1]
            spans.append((busy[number - 1][1], start, pause > max(worked * _LONG_SHARE, 1.0)))
        spans.append((start, end, False))
    weights = [worked * _SHORT_SHARE if long else max(end - start, worked * 0.004) for start, end, long in spans]
    unit = (right - left) / sum(weights)
    pieces, gaps, x = [], [], left
    for (start, end, long), weight in zip(spans, weights, strict=True):
        pieces.append((start, end, x, x + weight * unit))
        if long:
            gaps.append((x, x + weight * unit, end - start))
        x += weight * unit
    return Scale(tuple(pieces), tuple(gaps))


def shown(acts: Sequence[Act]) -> tuple[Sequence[Act], int]:
    """The attempts that a picture has room for: the first and the last; and how many are left out."""
    if len(acts) <= LANES_MAX:
        return acts, 0
    half = LANES_MAX // 2
    return [*acts[:half], *acts[-half:]], len(acts) - LANES_MAX


def anchor(row: TraceRow) -> str:
    """The name of an attempt's place on the page."""
    return f"a-{row.step_id.hex[-12:]}-{row.fence}"


def timeline(story: Story, link: Callable[[TraceRow], str] = lambda row: f"#{anchor(row)}") -> str:
    """The picture, for a page that has `STYLE`."""
    acts, left_out = shown(story.acts)
    if not acts:
        return '<p class="aq-none">no attempt has ended yet</p>'
    scale = scale_of([_interval(act.row) for act in acts], _LABEL, _WIDTH - 70)
    height = _TOP + _LANE * len(acts) + 26
    parts = [
        f'<svg class="aq-tl" viewBox="0 0 {_WIDTH} {height}" role="img" xmlns="http://www.w3.org/2000/svg" '
        f'aria-label="Timeline of {len(acts)} attempts"><title>Timeline of {len(acts)} attempts</title>'
    ]
    parts += _axis(scale, story, height)
    for number, act in enumerate(acts):
        parts += _lane(act, _TOP + number * _LANE, scale, link)
    if left_out:
        parts.append(
            f'<text class="dim" x="{_LABEL}" y="{height - 8}">{left_out} attempts in the middle left out</text>'
        )
    parts.append("</svg>")
    return "".join(parts)


def _interval(row: TraceRow) -> tuple[float, float]:
    begin = min(row.queued_at, row.started_at) if row.queued_at else row.started_at
    return begin.timestamp(), row.ended_at.timestamp()


def _axis(scale: Scale, story: Story, height: int) -> list[str]:
    zero = story.session.created_at.timestamp()
    marks, last = [], -1e9
    for start, end, left, right in scale.pieces:
        for at, x in ((start, left), (end, right)):
            if x - last >= 60:
                last = x
                ago = f"+{seconds_text(max(at - zero, 0))}"
                marks.append(
                    f'<line class="rule" x1="{x:.1f}" y1="22" x2="{x:.1f}" y2="{height - 22}"/>'
                    f'<text class="dim" x="{x:.1f}" y="16" text-anchor="middle">{ago}</text>'
                )
    for left, right, seconds in scale.gaps:
        marks.append(
            f'<rect class="gap" x="{left:.1f}" y="24" width="{right - left:.1f}" height="{height - 48}"/>'
            f'<text class="dim" x="{(left + right) / 2:.1f}" y="{height - 8}" text-anchor="middle">'
            f"{seconds_text(seconds)}</text>"
        )
    return marks


def _lane(act: Act, top: int, scale: Scale, link: Callable[[TraceRow], str]) -> list[str]:
    row = act.row
    began, ended = scale.x(row.started_at.timestamp()), scale.x(row.ended_at.timestamp())
    tries = f" · {row.attempt}" if row.attempt > 1 else ""
    label = f"{row.seq}{f'.{row.branch}' if row.branch is not None else ''} {row.name}"
    label = f"{label[:26]}…" if len(label) > 27 else label
    note = dollars(row.cost_micros) if row.cost_micros else seconds_text(row.took_s)
    parts = [
        f'<a href="{escape(link(row), quote=True)}"><text x="4" y="{top + 14}">{escape(label)}'
        f'<tspan class="dim">{tries}</tspan></text>'
    ]
    if row.queued_at is not None and row.queued_at < row.started_at:
        queued = scale.x(row.queued_at.timestamp())
        parts.append(f'<line class="wait" x1="{queued:.1f}" y1="{top + 9}" x2="{began:.1f}" y2="{top + 9}"/>')
    kind = CLOSINGS.get(row.closing or "", "now")
    parts.append(_bar(began, ended, y=top + 4, height=10, kind=kind, title=told(row)))
    for event in act.events:
        kind = event.kind if event.kind in ("model", "tool", "approval") else "other"
        left, right = scale.x(event.started_at.timestamp()), scale.x(event.ended_at.timestamp())
        kind = "bad" if event.failure else kind
        parts.append(_bar(left, right, y=top + 15, height=6, kind=kind, title=told(event)))
    parts.append(f'</a><text class="dim" x="{_WIDTH - 64}" y="{top + 14}">{note}</text>')
    return parts


def _bar(left: float, right: float, *, y: float, height: float, kind: str, title: str) -> str:
    return (
        f'<rect class="{kind}" x="{left:.1f}" y="{y:g}" width="{max(right - left, 2):.1f}" height="{height:g}" rx="2">'
        f"<title>{escape(title)}</title></rect>"
    )


def told(row: TraceRow) -> str:
    """A row in one line: what it was, how long it took, what it used, why it failed."""
    parts = [f"{row.kind} {row.name}: {row.closing}" if row.closing else f"{row.kind} {row.name}"]
    parts += ["repair"] if row.mends and not row.closing else []
    parts.append(seconds_text(row.took_s))
    if row.tokens_in or row.tokens_out:
        parts.append(f"{row.tokens_in} tokens in, {row.tokens_out} out")
    if row.cost_micros:
        parts.append(dollars(row.cost_micros))
    if row.failure:
        parts.append(f"{row.failure.get('type', '')}: {row.failure.get('message', '')}"[:200])
    # A picture with control characters of somebody's data in it is no well-formed XML.
    return "".join(mark if mark.isprintable() else " " for mark in ", ".join(parts))


def clock(moment: datetime) -> str:
    """A time of day, to the millisecond, in UTC."""
    return moment.astimezone(tz=None).strftime("%H:%M:%S.%f")[:-3]


__all__ = ["CLOSINGS", "LANES_MAX", "STYLE", "Scale", "anchor", "clock", "scale_of", "shown", "timeline", "told"]
