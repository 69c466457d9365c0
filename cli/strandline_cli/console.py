"""What people see: one line per step, plain when nobody looks, coloured on a terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console as RichConsole

_MARKUP = re.compile(r"\[/?(?:bold|dim|green|yellow|red|cyan)\]")


class Console:
    """Writes to standard output. Lines appear whole and at once, also through a pipe."""

    def line(self, text: str = "") -> None:
        """One line; *text* may hold the styles of ``_MARKUP``, nothing else of rich's markup is understood."""
        if not sys.stdout.isatty():
            print(_MARKUP.sub("", text), flush=True)
            return
        self._rich.print(text, highlight=False, soft_wrap=True, emoji=False)

    def step(self, name: str, milliseconds: float, detail: str = "") -> None:
        """Something was done, and how long it took."""
        remark = f"  [dim]{detail}[/dim]" if detail else ""
        self.line(f"  [green]✓[/green] {name:<15} {milliseconds:>6.0f} ms{remark}")

    def warn(self, text: str) -> None:
        """Something that the reader should know."""
        self.line(f"  [yellow]![/yellow] {text}")

    def failure(self, text: str, log: Sequence[str], advice: Sequence[str]) -> None:
        """Something that ends the run: what happened, the end of the log, what to try."""
        self.line(f"\n[red]✗[/red] {text}")
        for entry in log:
            print(f"    {entry}", flush=True)
        for command in advice:
            self.line(f"  try: [bold]{command}[/bold]")

    def table(self, rows: Sequence[tuple[str, str]]) -> None:
        """Names and values. Nothing touches a value, so that terminals keep addresses clickable."""
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            self.line(f"  [dim]{name:<{width}}[/dim]  {value}")

    @cached_property
    def _rich(self) -> RichConsole:
        from rich.console import Console as RichConsole

        return RichConsole()
