"""What people see: one line per step, coloured on a terminal, plain everywhere else."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress

# A handful of styles by hand: the supervisor lives long, and rich would cost it 0.1 s and 6 MB for these.
_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_TAG = re.compile(rf"\[(/?)({'|'.join(_STYLES)})\]")


class Console:
    """Writes to standard output. Lines appear whole and at once, also through a pipe."""

    def __init__(self) -> None:
        self._coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def line(self, text: str = "") -> None:
        """One line; ``[green]text[/green]`` and the like are styles."""
        self._print(_TAG.sub(self._escape, text))

    def step(self, name: str, milliseconds: float, detail: str = "") -> None:
        """Something was done, and how long it took."""
        remark = f"  [dim]{detail}[/dim]" if detail else ""
        self.line(f"  [green]✓[/green] {name:<15} {milliseconds:>6.0f} ms{remark}")

    def warn(self, text: str) -> None:
        """Something that the reader should know."""
        self.line(f"  [yellow]![/yellow] {text}")

    def failure(self, text: str, log: Sequence[str] = (), advice: Sequence[str] = ()) -> None:
        """Something that ends the run: what happened, the end of the log, what to try."""
        self.line(f"\n[red]✗[/red] {text}")
        for entry in log:
            self._print(f"    {entry}")  # as it is: a log may hold anything
        for command in advice:
            self.line(f"  try: [bold]{command}[/bold]")

    def table(self, rows: Sequence[tuple[str, str]]) -> None:
        """Names and values. Nothing touches a value, so that terminals keep addresses clickable."""
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            self.line(f"  [dim]{name:<{width}}[/dim]  {value}")

    def _escape(self, tag: re.Match[str]) -> str:
        if not self._coloured:
            return ""
        return "\x1b[0m" if tag[1] else f"\x1b[{_STYLES[tag[2]]}m"

    def _print(self, text: str) -> None:
        # A closed terminal or pipe is no reason to end the platform, nor to stop in the middle of its drain.
        with suppress(OSError):
            print(text, flush=True)
