"""The report: one page that needs nothing else, with faults over sessions as a picture, and the same as JSON."""

from __future__ import annotations

import dataclasses
import html
import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from agentq.chaos.judge import KINDS, counts
from agentq.chaos.record import Request
from agentq.chaos.run import Run
from agentq.chaos.schedule import FAULTS
from agentq.embedded.files import explained, write_private

WIDTH, LEFT, ROW, BAR = 1180.0, 190.0, 5.0, 15.0

_COLOURS = {
    "processes": "#d1495b",
    "broker": "#edae49",
    "postgres": "#00798c",
    "network": "#7a5195",
    "tools": "#66a182",
    "poison": "#2e4057",
}
_FATES = {"answered": "#5b8def", "cut": "#d1495b", "refused": "#edae49", "lost": "#e07a1f", "hung": "#8d5524"}
_OTHER_FATE = "#9a6fb0"

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #66707e; --line: #d9dee5; --back: #fff; --bad: #b3261e;
  --good: #2e7d4f }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #98a2b0; --line: #333c48; --back: #14181e;
  --bad: #ff8a80; --good: #7bd8a0 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); max-width: 1220px;
  margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
p.verdict { font-size: 1.15rem; font-weight: 600 } .bad { color: var(--bad) } .good { color: var(--good) }
table { border-collapse: collapse; font-size: .9rem } th { text-align: left; color: var(--soft); font-weight: 500 }
td, th { padding: .2rem 1rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
td.n { text-align: right; font-variant-numeric: tabular-nums } .soft { color: var(--soft) }
figure { margin: 0; overflow-x: auto } svg text { font: 11px system-ui, sans-serif; fill: var(--ink) }
svg .soft { fill: var(--soft) } svg .grid { stroke: var(--line) }
.cols { display: flex; flex-wrap: wrap; gap: 0 3rem }
"""


def facts(run: Run) -> dict[str, Any]:
    """The whole run for programs; two runs of one seed have the same `schedule`."""
    judgement = run.judgement
    return {
        "profile": run.schedule.profile.name,
        "seed": run.schedule.seed,
        "ok": run.ok,
        "took_s": run.took_s,
        "began": run.began,
        "schedule": [dataclasses.asdict(blow) for blow in run.schedule.blows],
        "counts": counts(judgement.violations),
        "figures": judgement.figures,
        "recoveries": [dataclasses.asdict(each) for each in run.recoveries],
        "violations": [dataclasses.asdict(each) for each in judgement.violations],
        "blows": [dataclasses.asdict(hit) for hit in run.history.hits],
    }


def write(run: Run, folder: Path) -> Path:
    """
    Write both files; the page's path.

    Raises:
        ConfigError: the folder cannot be written.
    """
    name = f"chaos-{run.schedule.profile.name}-{run.schedule.seed}"
    page = folder / f"{name}.html"
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_private(folder / f"{name}.json", json.dumps(facts(run), indent=1) + "\n")
        write_private(page, document(run))
    return page


def document(run: Run) -> str:
    """The page."""
    title = f"chaos {run.schedule.profile.name}, seed {run.schedule.seed}"
    found = ", ".join(f"{n} {kind}" for kind, n in counts(run.judgement.violations).items() if n)
    verdict = f"<p class='verdict bad'>Failed: {html.escape(found)}</p>"
    if run.ok:
        verdict = "<p class='verdict good'>Passed: nothing lost, nothing twice, and every fault hit</p>"
    command = f"agentq chaos --profile {run.schedule.profile.name} --seed {run.schedule.seed}"
    return "\n".join(
        [
            "<!doctype html><html lang='en'><meta charset='utf-8'>",
            "<meta name='viewport' content='width=device-width'>",
            f"<title>{html.escape(title)}</title><style>{_STYLE}</style>",
            f"<h1>{html.escape(title)}</h1>{verdict}",
            f"<p class='soft'>{run.took_s:.0f} s. The same schedule again: <code>{html.escape(command)}</code></p>",
            _violations(run),
            "<h2>Faults over sessions</h2>",
            f"<figure>{picture(run)}</figure>",
            _legend(),
            "<div class='cols'><section><h2>Recovery</h2>",
            "<p class='soft'>From the end of the cause, or from the blow where the fleet could go on,<br>to the next"
            " request of each session that had a call in flight. Alone: no other blow fell or was fresh meanwhile.</p>",
            _recoveries(run),
            "</section><section><h2>What was at stake</h2>",
            _table(("", ""), [(name, str(value)) for name, value in run.judgement.figures.items()], numbers={1}),
            "</section></div><h2>Blows and their evidence</h2>",
            _blows(run),
            "</html>",
        ]
    )


def picture(run: Run) -> str:
    """Blows as bars above, sessions as rows of calls below, on one time axis."""
    hits, sessions = run.history.hits, _by_session(run.history.requests)
    end = max([run.began + run.took_s, *(hit.healed for hit in hits)])
    scale = (WIDTH - LEFT - 10) / max(end - run.began, 1.0)

    def x(at: float) -> float:
        return round(LEFT + (at - run.began) * scale, 1)

    faults = list(dict.fromkeys(hit.fault for hit in sorted(hits, key=lambda hit: (_family(hit.fault), hit.fault))))
    top = len(faults) * BAR + 26
    height = top + len(sessions) * ROW + 10
    parts = [f"<svg viewBox='0 0 {WIDTH:g} {height:g}' width='{WIDTH:g}' height='{height:g}' role='img'>"]
    parts += _axis(run.took_s, x, run.began, height)
    for hit in hits:
        y = 18 + faults.index(hit.fault) * BAR
        left, wide = x(hit.began), max(x(hit.healed) - x(hit.began), 2.0)
        colour = _COLOURS[_family(hit.fault)]
        note = html.escape(f"{hit.name}: {hit.missed or ', '.join(f'{k} {v}' for k, v in hit.evidence.items())}")
        look = f"fill='{colour}'" if not hit.missed else f"fill='none' stroke='{colour}' stroke-dasharray='2'"
        parts.append(f"<rect x='{left}' y='{y}' width='{wide}' height='10' {look}><title>{note}</title></rect>")
        parts.append(
            f"<rect x='{left}' y='{top}' width='{wide}' height='{height - top}' fill='{colour}' opacity='.08'/>"
        )
    parts += [
        f"<text x='{LEFT - 8:g}' y='{26.5 + n * BAR:g}' text-anchor='end'>{html.escape(fault)}</text>"
        for n, fault in enumerate(faults)
    ]
    parts.append(
        f"<text x='{LEFT - 8:g}' y='{top + 12:g}' text-anchor='end' class='soft'>{len(sessions)} sessions</text>"
    )
    bad = {violation.session for violation in run.judgement.violations}
    for n, (session, requests) in enumerate(sessions):
        parts += _row(session, requests, top + n * ROW, x, end, bad=session in bad)
    parts.append("</svg>")
    return "\n".join(parts)


def _row(session: str, requests: Sequence[Request], y: float, x: Any, end: float, *, bad: bool) -> list[str]:
    first, last = requests[0].at, max(request.until or request.at for request in requests)
    found = [
        f"<line x1='{x(first)}' x2='{x(last)}' y1='{y + 2:g}' y2='{y + 2:g}' stroke='#8894a5' stroke-width='.6'/>",
    ]
    if bad:
        found.append(f"<text x='{LEFT - 8:g}' y='{y + 5:g}' text-anchor='end'>✗ {html.escape(session)}</text>")
    for request in requests:
        left, wide = x(request.at), max(x(request.until or end) - x(request.at), 1.0)
        colour = _FATES.get(request.fate, _OTHER_FATE)
        found.append(f"<rect x='{left}' y='{y:g}' width='{wide:.1f}' height='{ROW - 1:g}' fill='{colour}'/>")
    return found


def _axis(took_s: float, x: Any, began: float, height: float) -> list[str]:
    step = next(step for step in (5, 10, 20, 30, 60, 120, 300, 600, 3600) if took_s / step <= 14)
    found = []
    for at in range(0, int(took_s) + 1, step):
        found.append(f"<line class='grid' x1='{x(began + at)}' x2='{x(began + at)}' y1='14' y2='{height:g}'/>")
        found.append(f"<text class='soft' x='{x(began + at)}' y='10' text-anchor='middle'>{at} s</text>")
    return found


def _legend() -> str:
    marks = [*_COLOURS.items(), *((f"call {fate}", colour) for fate, colour in _FATES.items())]
    marks.append(("call answered with garbage, or open", _OTHER_FATE))
    items = " ".join(f"<span style='color:{colour}'>■</span> {html.escape(name)}&ensp;" for name, colour in marks)
    return f"<p class='soft'>{items}</p>"


def _violations(run: Run) -> str:
    if run.ok:
        return ""
    rows = [(each.kind, each.session, each.what) for each in run.judgement.violations]
    return "<h2>Violations</h2>" + _table(("kind", "session", "what"), rows)


def _recoveries(run: Run) -> str:
    rows = [
        (
            each.fault,
            *map(str, (each.blows, each.hit, each.moved)),
            *_seconds(each.moved, each.p50_s, each.p99_s),
            str(each.alone),
            *_seconds(each.alone, each.alone_p50_s, each.alone_p99_s),
        )
        for each in run.recoveries
    ]
    heads = ("fault", "blows", "sessions hit", "moved", "p50", "p99", "alone", "p50", "p99")
    return _table(heads, rows, numbers=range(1, 9))


def _seconds(count: int, *times: float) -> tuple[str, ...]:
    return tuple(f"{time_s:.2f} s" if count else "" for time_s in times)


def _blows(run: Run) -> str:
    rows = [
        (
            f"{hit.began - run.began:.1f} s",
            hit.name,
            f"{hit.healed - hit.began:.1f} s",
            str(len(hit.sessions)),
            hit.missed or ", ".join(f"{name} {value}" for name, value in hit.evidence.items()),
        )
        for hit in run.history.hits
    ]
    return _table(("at", "fault", "lasted", "sessions hit", "evidence"), rows, numbers={0, 2, 3})


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> str:
    head = "".join(f"<th>{html.escape(each)}</th>" for each in heads)
    body = "".join(
        "<tr>"
        + "".join(f"<td{' class=n' if n in numbers else ''}>{html.escape(cell)}</td>" for n, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _by_session(requests: Sequence[Request]) -> list[tuple[str, list[Request]]]:
    found: dict[str, list[Request]] = defaultdict(list)
    for request in requests:
        found[request.session].append(request)
    return sorted(found.items(), key=lambda item: item[1][0].at)


def _family(fault: str) -> str:
    return FAULTS[fault].family


def summary(folder: Path) -> list[dict[str, Any]]:
    """The runs whose JSON lies in the folder, by profile and seed."""
    found = []
    for path in folder.glob("chaos-*.json"):
        try:
            known = json.loads(path.read_text("utf-8"))
            found.append({name: known[name] for name in ("profile", "seed", "ok", "took_s", "counts", "figures",
                                                         "recoveries", "violations")})  # fmt: skip
        except (ValueError, KeyError, TypeError):
            continue  # not one of ours
    return sorted(found, key=lambda each: (each["profile"], each["seed"]))


__all__ = ["KINDS", "document", "facts", "picture", "summary", "write"]
