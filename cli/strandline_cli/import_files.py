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
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, cast

import orjson

CHUNK_LINES: Final = 2000
"""As many as a call takes."""
CHUNK_BYTES: Final = 2 * 2**20
"""So that a request stays below the edge's 4 MiB, whatever surrounds the lines."""
_BLOCK: Final = 2**20
_BOM: Final = b"\xef\xbb\xbf"


class ImportFileError(Exception):
    """The file as a whole cannot be imported; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some lines to send, *offset* of which came before.

    ``numbers``: where each is in the file, if not just there. ``raws``: by line (from 1), what the file has instead of
    a line that only says what is wrong with it.
    """

    offset: int
    lines: Sequence[bytes]
    numbers: Sequence[int] = ()
    raws: Mapping[int, bytes] = field(default_factory=dict)

    @property
    def end(self) -> int:
        return self.offset + len(self.lines)

    def number(self, line: int) -> int:
        """The line of the file that the import knows as *line* (from 1)."""
        return self.numbers[line - self.offset - 1] if self.numbers else line

    def content(self, line: int) -> dict[str, Any]:
        """What that line holds: ``{"data": ...}`` of a row; its text, ``{"raw": ...}``, if JSON cannot repeat it."""
        raw = self.raws.get(line, self.lines[line - self.offset - 1])
        try:
            row = json.loads(raw, object_pairs_hook=_unrepeated)
            if isinstance(row, dict) and isinstance(row.get("data"), dict):
                json.dumps(row["data"], ensure_ascii=False, allow_nan=False).encode()
                return {"data": row["data"]}
        except (ValueError, RecursionError):
            pass
        return {"raw": raw.decode(errors="replace")}

    def split(self, offset: int) -> tuple[Chunk, Chunk]:
        """What comes before *offset*, and the rest."""
        place = offset - self.offset
        head = Chunk(self.offset, self.lines[:place], self.numbers[:place], self.raws)
        return head, Chunk(offset, self.lines[place:], self.numbers[place:], self.raws)


class _Line(NamedTuple):
    """A line to send, and its number in the file (0: just where it is). ``raw``: as in ``Chunk.raws``."""

    content: bytes
    number: int = 0
    raw: bytes | None = None


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, unless a key comes twice: none could repeat that."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError
    return found


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
    return _chunks(map(_Line, _lines(file)))


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
    read: list[str] = []
    reader = csv.DictReader(_kept(text, read), strict=True)
    if id_column not in (reader.fieldnames or ()):
        raise ImportFileError(f"there is no column {id_column!r}; there are: {', '.join(reader.fieldnames or ())}")
    return _chunks(_csv_rows(text, read, reader, kind, id_column, column_kinds(schema)))


def _kept(text: Iterable[str], read: list[str]) -> Iterator[str]:
    """The lines of *text*, each of which is added to *read*."""
    for line in text:
        read.append(line)
        yield line


def _csv_rows(
    text: io.TextIOWrapper,
    read: list[str],
    reader: csv.DictReader[str],
    kind: str,
    id_column: str,
    kinds: Mapping[str, frozenset[str]],
) -> Iterator[_Line]:
    while True:
        read.clear()
        try:
            cells = next(reader)
        except StopIteration:
            text.detach()  # or the file under it is closed as soon as nobody needs the text
            return
        except csv.Error as failure:
            yield _unreadable(f"is no CSV: {failure}", reader.line_num, _record(read))
            continue
        if None in cells or None in cells.values():
            yield _unreadable("has more or fewer cells than the header", reader.line_num, _record(read))
            continue
        data = {
            name: typed(text, kinds.get(name, frozenset()))
            for name, text in cells.items()
            if text != "" and (name != id_column or name in kinds)
        }
        yield _Line(json.dumps({"type": kind, "id": cells[id_column], "data": data}).encode(), reader.line_num)


def _record(lines: Iterable[str]) -> bytes:
    """The text of one CSV record."""
    return "".join(lines).strip("\r\n").encode()


def _unreadable(problem: str, number: int, raw: bytes) -> _Line:
    return _Line(orjson.dumps({"error": problem}), number, raw)


def typed(text: str, kinds: frozenset[str]) -> Any:
    """A cell as the schema wants it; what does not fit stays a string, for the service to refuse with a pointer."""
    if "boolean" in kinds and text.lower() in ("true", "false", "1", "0", "yes", "no"):
        return text.lower() in ("true", "1", "yes")
    if kinds & {"integer", "number"}:
        try:
            number = int(text) if text.lstrip("-").isdigit() else float(text)
        except ValueError:
            return text
        return number if math.isfinite(number) else text
    return text


def column_kinds(schema: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """JSON types of the top-level properties of *schema*."""
    kinds = {}
    for name, rule in schema.get("properties", {}).items():
        declared = rule.get("type", ()) if isinstance(rule, Mapping) else ()
        kinds[name] = frozenset([declared] if isinstance(declared, str) else declared)
    return kinds


def _chunks(lines: Iterable[_Line]) -> Iterator[Chunk]:
    """*lines* in runs that fit one request."""
    offset, size = 0, 0
    run: list[_Line] = []
    for line in lines:
        length = len(line.content)
        if length > CHUNK_BYTES:
            problem = f"has {length:,} bytes, at most {CHUNK_BYTES:,} are read"
            line = _unreadable(problem, line.number, line.content)
        if run and (len(run) == CHUNK_LINES or size + len(line.content) > CHUNK_BYTES):
            yield _chunk(offset, run)
            offset, size = offset + len(run), 0
            run = []
        run.append(line)
        size += len(line.content) + 1
    if run:
        yield _chunk(offset, run)


def _chunk(offset: int, run: Sequence[_Line]) -> Chunk:
    contents, numbers, raws = zip(*run, strict=True)
    unreadable = {number: raw for number, raw in enumerate(raws, offset + 1) if raw is not None}
    return Chunk(offset, contents, numbers if numbers[0] else (), unreadable)
