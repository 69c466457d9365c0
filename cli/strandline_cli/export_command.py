"""``strandline export`` as people see it: a bar with rate and time left, then what was written."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import strandline_client
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from strandline_cli.api import ApiError
from strandline_cli.exporter import Export, Files, Journal, NothingToResume
from strandline_cli.platform import Running
from strandline_cli.words import counted


def run_export(
    running: Running, namespace: str, file: Path, *, types: Sequence[str], revision: int, resume: bool
) -> int:
    """Export *namespace* and say what was written; the exit code."""
    files = Files(file)
    try:
        if resume:
            journal = Journal.load(files, namespace, types, revision)
        else:
            files.begin_anew()
            journal = Journal(namespace=namespace, types=sorted(set(types)), revision=revision)
    except (NothingToResume, OSError) as failure:
        print(f"{file}: {failure}", file=sys.stderr)
        return 1
    before, total = journal.count, expected(running, namespace, journal.types)
    began = time.monotonic()
    columns = (TextColumn("{task.completed:>9,.0f} rows"), BarColumn(), TextColumn("{task.fields[rate]:>7,}/s"))
    done = None
    broken_by: BaseException | None = None
    with Progress(*columns, TimeRemainingColumn(), console=Console(), transient=True) as bar:
        task = bar.add_task("export", total=total, completed=before, rate=0)

        def progress(journal: Journal) -> None:
            bar.update(task, completed=journal.count, rate=int((journal.count - before) / (time.monotonic() - began)))

        try:
            done = asyncio.run(write(running, files, journal, progress))
        except* (ApiError, strandline_client.ApiError, OSError) as failures:
            broken_by = failures.exceptions[0]
            print(f"{file}: {broken_by}", file=sys.stderr)
    if done is None:
        print(advice(files, broken_by), file=sys.stderr)
        return 1
    tell(done, files, done.count - before, time.monotonic() - began)
    return 0


def expected(running: Running, namespace: str, types: Sequence[str]) -> int | None:
    """How many entities there are now, of *types* (empty: all): about as many as will come. None if nobody says."""
    try:
        usage = running.api().call("GET", f"/v1/namespaces/{namespace}/usage")
    except (ApiError, OSError):
        return None  # the export itself waits for a service that restarts, and says what is wrong
    of_types = {row["type"]: int(row["entities"]) for row in usage["types"]}
    return sum(count for type_id, count in of_types.items() if not types or type_id in types)


async def write(running: Running, files: Files, journal: Journal, progress: Callable[[Journal], None]) -> Journal:
    async with running.client() as client:
        return await Export(client, files, journal, progress).run()


def advice(files: Files, failure: BaseException | None) -> str:
    """What to do after an export that *failure* broke off."""
    reason = failure.reason if isinstance(failure, strandline_client.ApiError) else ""
    if reason == "PAGE_TOKEN_INVALID":
        return "The namespace is another one than it was: it was deleted and made anew. Begin anew, without --resume."
    if reason in ("COMPACTED", "NOT_FOUND"):
        return "It cannot go on. Begin anew, without --resume." if files.journal.exists() else "Nothing was written."
    if files.journal.exists():
        return "What was written so far is kept. Go on with the same command and --resume, or begin anew without it."
    return "Nothing was written."


def tell(done: Journal, files: Files, rows: int, seconds: float) -> None:
    """What was written, and the sums by which it can be compared."""
    print(
        f"{counted(done.count, 'entity', 'entities')} of {done.namespace} at revision {done.revision}: {files.target}"
    )
    print(f"{seconds:.1f} s, {rows / seconds:,.0f} rows/s, {files.target.stat().st_size:,} bytes; types: {files.types}")
    print(f"snapshot {done.snapshot}")
    print(f"content  {done.content}")
