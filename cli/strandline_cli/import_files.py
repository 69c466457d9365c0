"""Files of entities as chunks of JSON lines ``{"type", "id", "data"}``, in the order of the file.

JSON lines go on as they are: they are cut, not parsed. CSV is read with the columns' JSON types taken from the type's
schema, and empty cells left out. ``.xz`` and ``.gz`` are unpacked on the way.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, cast

import orjson

CHUNK_LINES: Final = 1000
CHUNK_BYTES: Final = 2 * 2**20
"""So that a request stays below the edge's 4 MiB, whatever surrounds the lines."""
_BLOCK: Final = 2**20
_BOM: Final = b"\xef\xbb\xbf"


class ImportFileError(Exception):
    """The file as a whole cannot be imported; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some lines to send, *offset* of which came before. ``numbers``: where each is in the file, if not just there."""

    offset: int
    lines: Sequence[bytes]
    numbers: Sequence[int] = ()

    @property
    def end(self) -> int:
        return self.offset + len(self.lines)

    def number(self, line: int) -> int:
        """The line of the file that the import knows as *line* (from 1)."""
        return self.numbers[line - self.offset - 1] if self.numbers else line

    def row(self, line: int) -> Any:
        """What is on that line; None if it is no JSON."""
        try:
            return json.loads(self.lines[line - self.offset - 1])
        except ValueError:
            return None

    def split(self, offset: int) -> tuple[Chunk, Chunk]:
        """What comes before *offset*, and the rest."""
        place = offset - self.offset
        head = Chunk(self.offset, self.lines[:place], self.numbers[:place])
        return head, Chunk(offset, self.lines[place:], self.numbers[place:])


def is_csv(path: Path) -> bool:
    return ".csv" in path.suffixes[-2:]


def unpacked(path: Path, raw: IO[bytes]) -> IO[bytes]:
    """*raw*, unpacked if the name of *path* ends in .xz or .gz."""
    if path.suffix == ".xz":
        return cast(IO[bytes], lzma.open(raw))
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(raw))
    return raw


def json_line_chunks(file: IO[bytes]) -> Iterator[Chunk]:
    """The lines of a file of JSON lines in runs that fit one request."""
    return _chunks((line, 0) for line in _lines(file))


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    rest = b""
    first = True
    while block := file.read(_BLOCK):
        if first:
            block, first = block.removeprefix(_BOM), False
        *whole, rest = (rest + block).split(b"\n")
        yield from whole
    if rest:
        yield rest


def csv_chunks(file: IO[bytes], kind: str, id_column: str, schema: Mapping[str, Any]) -> Iterator[Chunk]:
    """The records of a CSV file with a header line, as rows of the type *kind*.

    The column of the id is part of the data only if *schema* names it.

    Raises:
        ImportFileError: there is no such column.
    """
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    reader = csv.DictReader(text, strict=True)
    if id_column not in (reader.fieldnames or ()):
        raise ImportFileError(f"there is no column {id_column!r}; there are: {', '.join(reader.fieldnames or ())}")
    return _chunks(_csv_rows(text, reader, kind, id_column, column_kinds(schema)))


def _csv_rows(
    text: io.TextIOWrapper,
    reader: csv.DictReader[str],
    kind: str,
    id_column: str,
    kinds: Mapping[str, frozenset[str]],
) -> Iterator[tuple[bytes, int]]:
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            text.detach()  # or the file under it is closed as soon as nobody needs the text
            return
        except csv.Error as failure:
            yield orjson.dumps({"error": f"is no CSV: {failure}"}), reader.line_num
            continue
        if None in cells or None in cells.values():
            yield orjson.dumps({"error": "has more or fewer cells than the header"}), reader.line_num
            continue
        data = {
            name: typed(text, kinds.get(name, frozenset()))
            for name, text in cells.items()
            if text != "" and (name != id_column or name in kinds)
        }
        yield json.dumps({"type": kind, "id": cells[id_column], "data": data}).encode(), reader.line_num


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


def _chunks(numbered: Iterable[tuple[bytes, int]]) -> Iterator[Chunk]:
    """Lines with their numbers in the file (0: just where they are) in runs that fit one request."""
    offset, size = 0, 0
    lines: list[bytes] = []
    numbers: list[int] = []
    for line, number in numbered:
        if len(line) > CHUNK_BYTES:
            line = orjson.dumps({"error": f"has {len(line):,} bytes, at most {CHUNK_BYTES:,} are read"})
        if lines and (len(lines) == CHUNK_LINES or size + len(line) > CHUNK_BYTES):
            yield Chunk(offset, lines, numbers if numbers[0] else ())
            offset, size = offset + len(lines), 0
            lines, numbers = [], []
        lines.append(line)
        numbers.append(number)
        size += len(line) + 1
    if lines:
        yield Chunk(offset, lines, numbers if numbers[0] else ())
