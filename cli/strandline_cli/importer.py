"""``strandline import``: a file of entities into a namespace, every row accounted for.

JSON lines ``{"type", "id", "data"}`` carry their type; CSV is read with the columns' JSON types taken from the type's
schema, and empty cells left out. ``.xz`` and ``.gz`` are read as they are. Rows are upserted in batches whose request
ids follow from the import's own id, so that a batch that is sent again is not written twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import gzip
import io
import json
import lzma
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from google.rpc import error_details_pb2
from strandline.entity.v1 import entity_pb2, entity_service_pb2
from strandline_client import Client

from strandline_cli.api import ApiError
from strandline_cli.platform import Running

BATCH_ROWS = 500
# Rows of a batch together, so that a request stays below the edge's 4 MiB.
BATCH_BYTES = 2 * 2**20
# More than a few batches under way only make the service's queue longer.
BATCHES_UNDER_WAY = 4


class ImportFileError(Exception):
    """The file as a whole cannot be imported; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the file; ``problem`` is set when it cannot even be sent."""

    number: int
    type: str
    id: str
    data_json: bytes
    problem: str = ""


@dataclass(slots=True)
class Account:
    """What became of the rows: read = accepted + rejected."""

    read: int = 0
    accepted: int = 0
    rejected: int = 0
    reasons: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Reason -> how many rows, and what was said of the first."""

    def reject(self, reason: str, text: str) -> None:
        self.rejected += 1
        count, first = self.reasons.get(reason, (0, text))
        self.reasons[reason] = (count + 1, first)


def open_text(path: Path, raw: IO[bytes]) -> IO[str]:
    """*raw* as UTF-8 text, unpacked if the name of *path* ends in .xz or .gz."""
    if path.suffix == ".xz":
        return cast(IO[str], lzma.open(raw, "rt", encoding="utf-8", newline=""))
    if path.suffix == ".gz":
        return cast(IO[str], gzip.open(raw, "rt", encoding="utf-8", newline=""))
    return io.TextIOWrapper(raw, encoding="utf-8", newline="")


def is_csv(path: Path) -> bool:
    return ".csv" in path.suffixes[-2:]


def read_json_lines(lines: IO[str], only_type: str | None) -> Iterator[Row]:
    """Rows of ``{"type", "id", "data"}``; *only_type* stands in for a missing type and must not contradict one."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            kind, identifier, data = row.get("type", only_type), row["id"], row["data"]
        except (ValueError, KeyError, AttributeError, TypeError):
            yield Row(number, "", "", b"", problem='is no JSON object {"type", "id", "data"}')
            continue
        if not isinstance(kind, str) or not isinstance(identifier, str) or not isinstance(data, dict):
            yield Row(number, "", "", b"", problem="type and id must be strings, data an object")
        elif only_type is not None and kind != only_type:
            yield Row(number, kind, identifier, b"", problem=f"is of type {kind}, not {only_type}")
        else:
            yield Row(number, kind, identifier, json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode())


def read_csv(
    lines: IO[str], kind: str, id_column: str, kinds_of_columns: Mapping[str, frozenset[str]]
) -> Iterator[Row]:
    """Rows of a CSV file with a header line; *kinds_of_columns* are the JSON types that the schema allows.

    The column of the id is part of the data only if the schema names it.
    """
    reader = csv.DictReader(lines, strict=True)
    if id_column not in (reader.fieldnames or ()):
        raise ImportFileError(f"there is no column {id_column!r}; there are: {', '.join(reader.fieldnames or ())}")
    for cells in reader:
        number = reader.line_num
        if None in cells or None in cells.values():
            yield Row(number, kind, "", b"", problem="has more or fewer cells than the header")
            continue
        data = {
            name: typed(text, kinds_of_columns.get(name, frozenset()))
            for name, text in cells.items()
            if text != "" and (name != id_column or name in kinds_of_columns)
        }
        yield Row(number, kind, cells[id_column], json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode())


def typed(text: str, kinds: frozenset[str]) -> Any:
    """A cell as the schema wants it; what does not fit stays a string, for the service to refuse with a pointer."""
    if "boolean" in kinds and text.lower() in ("true", "false", "1", "0", "yes", "no"):
        return text.lower() in ("true", "1", "yes")
    if kinds & {"integer", "number"}:
        try:
            return int(text) if text.lstrip("-").isdigit() else float(text)
        except ValueError:
            return text
    return text


def column_kinds(schema: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """JSON types of the top-level properties of *schema*."""
    kinds = {}
    for name, rule in schema.get("properties", {}).items():
        declared = rule.get("type", ()) if isinstance(rule, Mapping) else ()
        kinds[name] = frozenset([declared] if isinstance(declared, str) else declared)
    return kinds


def batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """*rows* in runs that fit one request."""
    batch: list[Row] = []
    size = 0
    for row in rows:
        if batch and (len(batch) == BATCH_ROWS or size + len(row.data_json) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += len(row.data_json)
    if batch:
        yield batch


class Import:
    """One run. ``rejected`` is called with each row that was not taken, and why."""

    def __init__(
        self, client: Client, namespace: str, rejected: Callable[[Row, str, str], None], progress: Callable[[int], None]
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._rejected = rejected
        self._progress = progress
        self._id = uuid.uuid4().hex
        self.account = Account()

    async def run(self, rows: Iterator[Row]) -> Account:
        """Send all *rows*, a few batches at a time.

        Raises:
            strandline_client.ApiError: the whole of a batch was refused (no access, no such namespace), or could not
                be sent for longer than the client retries.
        """
        under_way: dict[asyncio.Task[None], set[tuple[str, str]]] = {}
        async with asyncio.TaskGroup() as group:
            for number, batch in enumerate(batches(rows)):
                names = {(row.type, row.id) for row in batch}
                # A row that names an entity again must not overtake the earlier one.
                while len(under_way) >= BATCHES_UNDER_WAY or any(
                    not names.isdisjoint(others) for others in under_way.values()
                ):
                    done, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        del under_way[task]
                under_way[group.create_task(self._send(number, batch))] = names
        return self.account

    async def _send(self, number: int, batch: list[Row]) -> None:
        sendable = [row for row in batch if not row.problem]
        for row in batch:
            if row.problem:
                self._reject(row, "ROW_INVALID", row.problem)
        if sendable:
            answer = await self._client.batch_write(
                self._namespace, [self._mutation(row) for row in sendable], request_id=f"{self._id}-{number}"
            )
            self._settle(sendable, answer)
        self.account.read += len(batch)
        self._progress(len(batch))

    def _mutation(self, row: Row) -> entity_pb2.Mutation:
        name = f"namespaces/{self._namespace}/types/{row.type}/entities/{row.id}"
        update = entity_pb2.UpdateMutation(name=name, data_json=row.data_json, update_mask=["*"], allow_missing=True)
        return entity_pb2.Mutation(update=update)

    def _settle(self, rows: list[Row], answer: entity_service_pb2.BatchWriteResponse) -> None:
        for row, result in zip(rows, answer.results, strict=True):
            if result.status.code:
                self._reject(row, *reason_and_text(result))
            else:
                self.account.accepted += 1

    def _reject(self, row: Row, reason: str, text: str) -> None:
        self.account.reject(reason, f"line {row.number}: {text}")
        self._rejected(row, reason, text)


def reason_and_text(result: entity_service_pb2.BatchWriteResponse.Result) -> tuple[str, str]:
    """Why a row was refused: the stable reason, and its words with each violation's pointer."""
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in result.status.details:
        detail.Unpack(info)
        detail.Unpack(request)
    violations = "; ".join(f"{violation.field}: {violation.description}" for violation in request.field_violations)
    return info.reason or "INTERNAL", violations or result.status.message


def rows_of(
    path: Path, lines: IO[str], kind: str | None, id_column: str | None, running: Running, namespace: str
) -> Iterator[Row]:
    """The rows of *path* in whichever format it has.

    Raises:
        ImportFileError: CSV without the options it needs, or of a type that does not exist.
    """
    if not is_csv(path):
        return read_json_lines(lines, kind)
    if kind is None or id_column is None:
        raise ImportFileError("CSV says neither type nor id: --type TYPE --id COLUMN")
    try:
        schema = running.api().call("GET", f"/v1/namespaces/{namespace}/types/{kind}")["schema"]
    except ApiError as failure:
        raise ImportFileError(f"the type {kind} of {namespace} cannot be read: {failure}") from failure
    return read_csv(lines, kind, id_column, column_kinds(schema))


async def import_file(
    running: Running,
    namespace: str,
    path: Path,
    *,
    kind: str | None,
    id_column: str | None,
    rejects: Path | None,
    progress: Callable[[int, int], None],
) -> Account:
    """Import *path*; *progress* is told of rows done and bytes of the file read so far.

    Rejected rows are written to *rejects* as JSON lines {"line", "type", "id", "reason", "message", "data"}.

    Raises:
        ImportFileError: the file cannot be imported at all.
        ApiError: the platform refused everything, for example for want of access.
    """
    with (
        path.open("rb") as raw,
        open_text(path, raw) as lines,
        rejects.open("w", encoding="utf-8") if rejects else contextlib.nullcontext() as output,
    ):

        def rejected(row: Row, reason: str, message: str) -> None:
            if output is not None:
                data = json.loads(row.data_json) if row.data_json else None
                record = {"line": row.number, "type": row.type, "id": row.id, "reason": reason, "message": message}
                output.write(json.dumps(record | {"data": data}, ensure_ascii=False) + "\n")

        rows = rows_of(path, lines, kind, id_column, running, namespace)
        async with running.client() as client:
            return await Import(client, namespace, rejected, lambda count: progress(count, raw.tell())).run(rows)
