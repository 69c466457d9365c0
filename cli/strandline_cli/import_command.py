"""``strandline import`` as people see it: how to resume it, a bar with rate and time left, then the account."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import strandline_client
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from strandline.entity.v1 import import_service_pb2 as pb

from strandline_cli import import_files
from strandline_cli.api import ApiError
from strandline_cli.import_files import Chunk, ImportFileError
from strandline_cli.importer import Import, Order, Reasons
from strandline_cli.platform import Running
from strandline_cli.words import counted

SHOWN_MISSING = 5
_FAILURES = (ImportFileError, ApiError, strandline_client.ApiError, OSError, EOFError, UnicodeDecodeError)
# Codes of what can be over the next time. The others say no to the import as it is.
_PASSING = {
    "ABORTED",
    "CANCELLED",
    "DEADLINE_EXCEEDED",
    "INTERNAL",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
    "UNKNOWN",
}


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where rows come from, and where to write about them. ``id_column`` is the CSV column that holds the id."""

    source: Path
    id_column: str | None = None
    rejects: Path | None = None
    changes: Path | None = None


def run_import(running: Running, order: Order, files: Files) -> int:
    """Import a file and say what became of it; the exit code."""
    console = Console()
    print(f"Import {order.import_id} of {files.source} into {order.namespace}", flush=True)
    done: tuple[pb.Import, Reasons] | None = None
    began = time.monotonic()
    try:
        with _bar(console, files.source.stat().st_size) as moved:
            done = asyncio.run(_import_file(running, order, files, moved))
    except* _FAILURES as failures:
        tell_failure(_first(failures), order, files.source)
    if done is None:
        return 1
    state, reasons = done
    tell(state, reasons, time.monotonic() - began, files)
    return 1 if state.account.rejected else 0


async def _import_file(
    running: Running, order: Order, files: Files, moved: Callable[[pb.Import, int], None]
) -> tuple[pb.Import, Reasons]:
    with (
        files.source.open("rb") as raw,
        import_files.unpacked(files.source, raw) as file,
        opened(files.rejects) as rejects,
        opened(files.changes) as changes,
    ):
        chunks = _chunks(running, order, files, file)
        async with running.client() as client:
            run = Import(
                client, order, rejects=rejects, changes=changes, progress=lambda state: moved(state, raw.tell())
            )
            return await run.run(chunks), run.reasons


def _chunks(running: Running, order: Order, files: Files, file: IO[bytes]) -> Iterator[Chunk]:
    """The rows of the file in whichever format it has."""
    if not import_files.is_csv(files.source):
        return import_files.json_line_chunks(file)
    if not order.kind or files.id_column is None:
        raise ImportFileError("CSV says neither type nor id: --type TYPE --id COLUMN")
    try:
        schema = running.api().call("GET", f"/v1/namespaces/{order.namespace}/types/{order.kind}")["schema"]
    except ApiError as failure:
        raise ImportFileError(f"the type {order.kind} of {order.namespace} cannot be read: {failure}") from failure
    return import_files.csv_chunks(file, order.kind, files.id_column, schema)


@contextlib.contextmanager
def _bar(console: Console, size: int) -> Iterator[Callable[[pb.Import, int], None]]:
    """A bar over *size* bytes; yields what to call when the import has moved, with the bytes read by then."""
    began = time.monotonic()
    columns = (
        TextColumn("{task.fields[rows]:>9,} rows"),
        BarColumn(),
        TextColumn("{task.fields[rate]:>7,}/s"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=size, rows=0, rate=0)
        first: int | None = None

        def moved(state: pb.Import, bytes_read: int) -> None:
            nonlocal first
            rows = state.account.read
            first = rows if first is None else first
            rate = int((rows - first) / max(time.monotonic() - began, 0.001))
            doing = ""
            if state.state == pb.Import.COMPARING:
                doing = f"{state.compared:,} compared, {state.missing:,} missing"
            elif state.state == pb.Import.DELETING:
                doing = f"{state.account.deleted:,} of {state.missing:,} deleted"
            bar.update(task, completed=bytes_read, rows=rows, rate=rate, description=doing)

        yield moved


def tell(state: pb.Import, reasons: Reasons, seconds: float, files: Files) -> None:
    """Every row accounted for."""
    account = state.account
    would = " (dry run: nothing was changed)" if state.dry_run else ""
    print(
        f"{counted(account.read, 'row')} read = {account.inserted:,} inserted + {account.updated:,} updated + "
        f"{account.unchanged:,} unchanged + {account.rejected:,} rejected{would}"
    )
    if state.mode == pb.Import.REPLACE_SET:
        said = "would be deleted" if state.dry_run else f"were missing, {account.deleted:,} deleted"
        print(f"{state.missing:,} of {counted(state.compared, 'entity', 'entities')} {said}")
        if state.needs_confirmation:
            print("That would be refused until it is confirmed: it is most of what is there, or all of a type")
        if state.dry_run and state.missing_names:
            print("".join(f"  {name}\n" for name in state.missing_names[:SHOWN_MISSING]), end="")
    print(f"{seconds:.1f} s, {account.read / seconds:,.0f} rows/s")
    for reason, (count, first) in sorted(reasons.found.items()):
        print(f"  {count:>9,} {reason}, first in {first}")
    if account.rejected:
        print(f"Rejected rows: {files.rejects}" if files.rejects else "To keep the rejected rows: --rejects FILE")


def tell_failure(failure: BaseException, order: Order, source: Path) -> None:
    """What went wrong, and how to go on."""
    if isinstance(failure, OSError) and failure.filename is not None:
        print(f"{failure.filename}: {failure.strerror}", file=sys.stderr)
    else:
        print(f"{source}: {failure}", file=sys.stderr)
    if not isinstance(failure, strandline_client.ApiError):
        return
    command = f"the same command with --import-id {shlex.quote(order.import_id)} --resume"
    if failure.reason == "MASS_CHANGE_REFUSED":
        print(f"If you mean it: {command} --confirm {failure.metadata['operation_id']}", file=sys.stderr)
    elif failure.reason == "REQUEST_ID_REUSED":
        print(f"{order.import_id} was begun with another file, or with other contents of it", file=sys.stderr)
    elif failure.reason == "IMPORT_INCOMPLETE":
        print("Nothing was deleted. Import the mended file anew, without --import-id", file=sys.stderr)
    elif failure.code in _PASSING or failure.reason == "IMPORT_OFFSET":
        print(f"Nothing is lost or counted twice. To go on: {command}", file=sys.stderr)


def opened(path: Path | None) -> contextlib.AbstractContextManager[IO[str] | None]:
    """*path* opened for writing text, if there is one."""
    return path.open("w", encoding="utf-8") if path else contextlib.nullcontext()


def _first(failures: BaseExceptionGroup[Any]) -> BaseException:
    """The first failure that is not itself a group."""
    failure: BaseException = failures
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure
