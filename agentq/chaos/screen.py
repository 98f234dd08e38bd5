"""What people see of a run: each blow with its evidence, and how far it is. Few plain lines where nobody watches."""

from __future__ import annotations

import logging
import time

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from agentq.chaos.judge import counts
from agentq.chaos.run import Run
from agentq.chaos.strike import Hit

PLAIN_EVERY_S = 10.0
SHOWN = 12

log = logging.getLogger("agentq.chaos")


class Screen:
    """Says lines; a terminal also gets a status line that moves."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet
        self._status: Status | None = None
        self._plain_due = 0.0

    def say(self, text: str, style: str = "") -> None:
        """One line, unless quiet is wanted."""
        if not self.quiet:
            self.console.print(
                f"[{style}]{escape(text)}[/]" if style else escape(text), highlight=False, soft_wrap=True
            )

    def aside(self, text: str) -> None:
        """What the supervisor says: expected here, so only in the log."""
        log.info("%s", text)

    def follow(self, at_s: float, *, ended: int, total: int, hits: int) -> None:
        """How far the run is."""
        text = f"{at_s:5.0f} s  {ended} of {total} sessions ended, {hits} blows fell"
        if self.quiet:
            return
        if not self.console.is_terminal:
            if time.monotonic() >= self._plain_due:
                self._plain_due = time.monotonic() + PLAIN_EVERY_S
                self.say(text)
            return
        if self._status is None:
            self._status = self.console.status(text)
            self._status.start()
        self._status.update(text)

    def blow(self, hit: Hit, at_s: float) -> None:
        """A blow has fallen."""
        if hit.missed:
            self.say(f"{at_s:6.1f} s  {hit.name}: hit nothing ({hit.missed})", "yellow")
            return
        facts = ", ".join(f"{name} {value}" for name, value in hit.evidence.items())
        self.say(f"{at_s:6.1f} s  {hit.name}: {facts}")

    def rest(self) -> None:
        """Take the moving line away."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def verdict(self, run: Run) -> None:
        """The figures, the recoveries, and every violation."""
        self.rest()
        judgement = run.judgement
        heads = ("fault", "blows", "sessions hit", "moved again", "p50", "p99", "alone", "p50", "p99")
        table = Table(*heads, box=None, pad_edge=False)
        for each in run.recoveries:
            figures = (str(each.blows), str(each.hit), str(each.moved))
            times = (f"{each.p50_s:.2f} s", f"{each.p99_s:.2f} s")
            alone = (str(each.alone), f"{each.alone_p50_s:.2f} s", f"{each.alone_p99_s:.2f} s") if each.alone else ()
            table.add_row(each.fault, *figures, *times, *alone)
        if not self.quiet:
            self.console.print(table)
            for name, value in judgement.figures.items():
                self.say(f"  {value:>6}  {name}")
        for violation in judgement.violations[:SHOWN]:
            self.console.print(
                f"[red]✗[/] {escape(f'{violation.kind}: {violation.session}: {violation.what}')}",
                highlight=False,
                soft_wrap=True,
            )
        if len(judgement.violations) > SHOWN:
            self.say(f"  and {len(judgement.violations) - SHOWN} more, in the report")
        found = ", ".join(f"{n} {kind}" for kind, n in counts(judgement.violations).items() if n)
        what = found or "nothing lost, nothing twice"
        mark = "[green]✓[/]" if run.ok else "[bold red]✗[/]"
        name = f"chaos {run.schedule.profile.name}, seed {run.schedule.seed}, {run.took_s:.0f} s"
        self.console.print(f"{mark} {escape(f'{name}: {what}')}", highlight=False)
