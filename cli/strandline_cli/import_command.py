"""``strandline import`` as people see it: a bar with rate and time left, then the account."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import strandline_client
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from strandline_cli.api import ApiError
from strandline_cli.importer import Account, ImportFileError, import_file
from strandline_cli.platform import Running


def run_import(
    running: Running, namespace: str, file: Path, *, kind: str | None, id_column: str | None, rejects: Path | None
) -> int:
    """Import *file* and say what became of it; the exit code."""
    console = Console()
    began = time.monotonic()
    columns = (TextColumn("{task.fields[rows]:>9,} rows"), BarColumn(), TextColumn("{task.fields[rate]:>7,}/s"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("import", total=file.stat().st_size, rows=0, rate=0)
        rows = 0

        def progress(count: int, bytes_read: int) -> None:
            nonlocal rows
            rows += count
            bar.update(task, completed=bytes_read, rows=rows, rate=int(rows / (time.monotonic() - began)))

        work = import_file(running, namespace, file, kind=kind, id_column=id_column, rejects=rejects, progress=progress)
        account = None
        try:
            account = asyncio.run(work)
        except* (ImportFileError, ApiError, strandline_client.ApiError, OSError, UnicodeDecodeError) as failures:
            print(f"{file}: {failures.exceptions[0]}", file=sys.stderr)
    if account is None:
        return 1
    tell(account, time.monotonic() - began, rejects)
    return 1 if account.rejected else 0


def tell(account: Account, seconds: float, rejects: Path | None) -> None:
    """Every row accounted for."""
    print(f"{account.read:,} rows read = {account.accepted:,} accepted + {account.rejected:,} rejected")
    print(f"{seconds:.1f} s, {account.read / seconds:,.0f} rows/s")
    for reason, (count, first) in sorted(account.reasons.items()):
        print(f"  {count:>9,} {reason}, first in {first}")
    if account.rejected:
        print(f"Rejected rows: {rejects}" if rejects else "To keep the rejected rows: --rejects FILE")
