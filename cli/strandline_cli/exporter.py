"""``strandline export``: everything in a namespace at one revision, into files that ``strandline import`` reads.

While it is under way the rows are in ``FILE.partial`` and the journal ``FILE.journal`` says how far: up to there the
file is whole and on disk, and the rest of it is cut off when the export goes on. ``FILE`` itself appears when it is
complete. A compressed file is a sequence of compressed pages, which every reader of .gz and .xz takes as one.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import lzma
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Self

import orjson
from strandline.entity.v1 import entity_pb2, history_service_pb2
from strandline_client import Client
from strandline_client.json_data import json_of

from strandline_cli.type_files import write_types

_MODULUS = 2**256


class NothingToResume(Exception):
    """There is no journal, or it is of another export; the message says which."""


@dataclass(frozen=True)
class Files:
    """Where an export to *target* keeps what."""

    target: Path

    @property
    def partial(self) -> Path:
        return self._beside(".partial")

    @property
    def journal(self) -> Path:
        return self._beside(".journal")

    @property
    def types(self) -> Path:
        return self._beside(".types")

    def begin_anew(self) -> None:
        """Forget an export that was under way."""
        self.journal.unlink(missing_ok=True)
        self.partial.unlink(missing_ok=True)

    def _beside(self, suffix: str) -> Path:
        return self.target.with_name(self.target.name + suffix)


@dataclass(kw_only=True)
class Journal:
    """How far an export is: *token* goes on behind the first *size* bytes of the file, which hold *count* rows.

    Nothing is left to read when it is *complete*. *snapshot* is the sum that a feed's ``SnapshotDone`` has for the same
    entities. *content* is the same sum over the rows as they are written: it is equal for equal entities, wherever and
    whenever they were written.
    """

    namespace: str
    types: list[str]
    revision: int = 0
    epoch: str = ""
    token: str = ""
    complete: bool = False
    size: int = 0
    count: int = 0
    snapshot: str = f"{0:064x}"
    content: str = f"{0:064x}"

    @classmethod
    def load(cls, files: Files, namespace: str, types: Sequence[str], revision: int) -> Self:
        """The journal of the export that is under way to *files*.

        Raises:
            NothingToResume: there is none, or it is of something else.
        """
        name = files.journal.name
        try:
            found = cls(**orjson.loads(files.journal.read_bytes()))
        except FileNotFoundError:
            raise NothingToResume(f"there is no {name}: nothing to resume") from None
        except (ValueError, TypeError):
            raise NothingToResume(f"{name} is no journal of an export: begin anew, without --resume") from None
        asked = (namespace, sorted(set(types)), revision or found.revision)
        if (found.namespace, found.types, found.revision) != asked:
            of_types = ", ".join(found.types) or "all"
            raise NothingToResume(f"{name} is of {found.namespace} at revision {found.revision}, types: {of_types}")
        written = files.target if found.complete and not files.partial.exists() else files.partial
        if not written.exists() or written.stat().st_size < found.size:
            raise NothingToResume(f"{written.name} is shorter than {name} says: begin anew, without --resume")
        return found

    def save(self, path: Path) -> None:
        """Replace what is in *path*, as a whole."""
        new = path.with_name(path.name + ".new")
        with new.open("wb") as file:
            file.write(orjson.dumps(asdict(self)))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)

    def take(self, entities: Iterable[entity_pb2.Entity]) -> bytes:
        """Count *entities*; their rows."""
        lines = []
        snapshot, content = int(self.snapshot, 16), int(self.content, 16)
        for entity in entities:
            row = {"data": json_of(entity.data), "id": entity.name.rsplit("/", 1)[1], "type": entity.type}
            line = orjson.dumps(row, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)
            lines.append(line)
            snapshot += int.from_bytes(hashlib.sha256(f"{entity.name} {entity.revision}".encode()).digest())
            content += int.from_bytes(hashlib.sha256(line).digest())
        self.count += len(lines)
        self.snapshot, self.content = f"{snapshot % _MODULUS:064x}", f"{content % _MODULUS:064x}"
        return b"".join(lines)


class Export:
    """One run; *progress* is told of the journal after each page."""

    def __init__(self, client: Client, files: Files, journal: Journal, progress: Callable[[Journal], None]) -> None:
        self._client = client
        self._files = files
        self._journal = journal
        self._progress = progress
        self._compress = compressor(files.target)
        # The types read so far, until all are written; from then on the journal is kept.
        self._types: list[entity_pb2.EntityType] | None = None if journal.token else []

    async def run(self) -> Journal:
        """Go on from the journal to the end; ``FILE`` is complete then.

        Raises:
            ExceptionGroup: of ``strandline_client.ApiError``, the platform refused, or did not answer for longer than
                the client retries; or of ``OSError``.
        """
        if not self._journal.complete:
            await self._fill()
        if self._files.partial.exists():  # it does not, if only the last line here was missed
            self._files.partial.replace(self._files.target)
        self._files.journal.unlink()
        return self._journal

    async def _fill(self) -> None:
        with self._files.partial.open("ab") as partial:
            partial.truncate(self._journal.size)
            async with asyncio.TaskGroup() as group:
                following = group.create_task(self._fetch(self._journal.token))
                while True:
                    page = await following
                    self._journal.revision, self._journal.epoch = page.revision, page.epoch
                    if page.next_page_token:
                        # The service reads the next page while this one is written.
                        following = group.create_task(self._fetch(page.next_page_token))
                        await asyncio.sleep(0)
                    self._write(page, partial)
                    if not page.next_page_token:
                        break

    async def _fetch(self, token: str) -> history_service_pb2.ExportEntitiesResponse:
        journal = self._journal
        return await self._client.export_page(
            journal.namespace, types=journal.types, revision=journal.revision, page_token=token
        )

    def _write(self, page: history_service_pb2.ExportEntitiesResponse, partial: BinaryIO) -> None:
        if self._types is not None:
            self._types += page.types
            if page.entities or not page.next_page_token:
                write_types(self._files.types, self._types)
                self._types = None
        if page.entities:
            partial.write(self._compress(self._journal.take(page.entities)))
            partial.flush()
            os.fsync(partial.fileno())
        self._journal.size, self._journal.token = partial.tell(), page.next_page_token
        self._journal.complete = not page.next_page_token
        if self._types is None:
            self._journal.save(self._files.journal)
        self._progress(self._journal)


def compressor(target: Path) -> Callable[[bytes], bytes]:
    """What makes one page of the file: by the end of its name."""
    if target.suffix == ".xz":
        return lzma.compress
    if target.suffix == ".gz":
        return lambda raw: gzip.compress(raw, compresslevel=6, mtime=0)
    return lambda raw: raw
