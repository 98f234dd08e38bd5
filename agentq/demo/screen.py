"""What people see: progress while it runs, the comparison at the end. Plain lines when nobody watches a terminal."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from agentq.demo.checks import Check
from agentq.demo.observe import Progress as TenantProgress

PLAIN_EVERY_S = 2.0
RATE_WINDOW_S = 3.0


class Screen:
    """Says lines, and keeps a bar per tenant below them in a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._seen: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        self._plain_due = 0.0
        self._bars: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("[bold]{task.description:<12}"),
            BarColumn(bar_width=36, complete_style="cyan", finished_style="green"),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def say(self, text: str, style: str = "") -> None:
        """One line."""
        self.console.print(Text(text, style), soft_wrap=True)  # a style given to print would colour the bars too

    def follow(self, tenants: list[TenantProgress], elapsed_s: float, note: str) -> None:
        """Show how far it is."""
        now = time.monotonic()
        steps = sum(tenant.steps for tenant in tenants)
        self._seen.append((now, steps))
        while now - self._seen[0][0] > RATE_WINDOW_S and len(self._seen) > 2:
            self._seen.popleft()
        then, before = self._seen[0]
        rate = f"{(steps - before) / max(now - then, 0.001):5.1f} steps/s"
        if not self.console.is_terminal:
            if now >= self._plain_due:
                self._plain_due = now + PLAIN_EVERY_S
                counts = "  ".join(f"{tenant.tenant} {tenant.ended}/{tenant.tickets}" for tenant in tenants)
                self.say(f"  {elapsed_s:5.1f} s  {counts}  {rate}  {note}".rstrip())
            return
        for tenant in tenants:
            bar = self._bars.get(tenant.tenant)
            if bar is None:
                bar = self._bars[tenant.tenant] = self._progress.add_task(tenant.tenant, total=None, note="")
            self._progress.update(bar, completed=tenant.ended, total=tenant.tickets)
        if self._bars:
            first, *others = self._bars.values()
            self._progress.update(first, note=f"{rate} {note}")
            for bar in others:
                self._progress.update(bar, note="")

    def verdict(self, checks: list[Check]) -> None:
        """Each check with its figures, and what was wrong."""
        for check in checks:
            mark, style = ("✓", "green") if check.ok else ("✗", "bold red")
            self.console.print(f"[{style}]{mark}[/] {escape(check.name)}", highlight=False, soft_wrap=True)
            self.console.print(f"    [dim]{escape(check.figures)}[/]", highlight=False, soft_wrap=True)
            for line in check.wrong:
                self.say(f"    {line}", "red")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
