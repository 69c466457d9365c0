"""``strandline import``: a file of entities into a namespace, every row accounted for.

JSON lines ``{"type", "id", "data"}`` carry their type; CSV is read with the columns' JSON types taken from the type's
schema, and empty cells left out. ``.xz`` and ``.gz`` are read as they are. Rows are upserted in batches whose request
ids follow from the import's own id, so that a batch that is sent again is not written twice.
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import json
import lzma
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from strandline.entity.v1 import entity_pb2, entity_service_pb2
from strandline_client import Client

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
    reasons: dict[str, int] = field(default_factory=dict)

    def reject(self, reason: str) -> None:
        self.rejected += 1
        self.reasons[reason] = self.reasons.get(reason, 0) + 1


def open_text(path: Path) -> IO[str]:
    """*path* as UTF-8 text, unpacked if its name ends in .xz or .gz."""
    if path.suffix == ".xz":
        return cast(IO[str], lzma.open(path, "rt", encoding="utf-8", newline=""))
    if path.suffix == ".gz":
        return cast(IO[str], gzip.open(path, "rt", encoding="utf-8", newline=""))
    return path.open(encoding="utf-8", newline="")


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
    """Rows of a CSV file with a header line; *kinds_of_columns* are the JSON types that the schema allows."""
    reader = csv.DictReader(lines, strict=True)
    if id_column not in (reader.fieldnames or ()):
        raise ImportFileError(f"there is no column {id_column!r}; there are: {', '.join(reader.fieldnames or ())}")
    for cells in reader:
        number = reader.line_num
        if None in cells or None in cells.values():
            yield Row(number, kind, "", b"", problem="has more or fewer cells than the header")
            continue
        data = {
            name: typed(text, kinds_of_columns.get(name, frozenset())) for name, text in cells.items() if text != ""
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
            grpc.aio.AioRpcError: the whole of a batch was refused (no access, no such namespace) or could not be
                sent for longer than the client retries.
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
        self.account.reject(reason)
        self._rejected(row, reason, text)
