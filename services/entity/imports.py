"""Imports: chunks of rows, applied in their order, each row decided once and counted once.

The rows of a chunk are ordinary writes of their own, remembered under the import's id and the number of their line, and
so are their refusals: a chunk that is sent again after a crash comes to what it came to. When all its rows have an
outcome, the chunk is recorded in the transaction that moves the import's offset: the account is the sum of recorded
chunks. While one chunk is recorded, the next one is applied.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from google.rpc import status_pb2

from services.entity import import_store, store, type_store
from services.entity.catalog import missing_type
from services.entity.decisions import Made
from services.entity.diffs import differences
from services.entity.import_finish import METHOD, Finisher, limits_of, wrong_offset
from services.entity.import_rows import Mode, Row, RowReader
from services.entity.import_store import Counts, ImportKey, Rejection, State, StoredImport, TakenChunk
from services.entity.limits import Confirmations
from services.entity.model import EntityKey, entity_name
from services.entity.mutations import Mutation
from services.entity.reads import current_head
from services.entity.revision_diffs import encode_change
from services.entity.writes import Draft, Writer, Writing, Written
from services.runtime.call import Namespace
from services.runtime.changelog import select_head
from services.runtime.database import Database
from services.runtime.errors import (
    AlreadyExists,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    invalid_field,
    refusal_of,
)
from services.runtime.rpc import status_of_error

MAX_AHEAD: Final = 20_000
"""Lines between the import's offset and a chunk that waits for its turn."""
MAX_WAITING: Final = 16
"""Chunks of one import that wait in a process."""
WAIT_SECONDS: Final = 8.0
LOOK_SECONDS: Final = 0.2
COMPARED_AT_ONCE: Final = 50
"""Entities of up to 256 KiB that a dry run compares with their rows."""
MAX_CHANGES_BYTES: Final = 2**20
SHOWN_MISSING: Final = 1000
_MAX_STATUS: Final = 1400
"""Bytes of a rejection: 2,000 of them fit one answer."""
_BLANK: Final = InvalidArgument("ROW_INVALID", "blank")


class Chunk(NamedTuple):
    """What one call brings. *offset* lines came before; *first_type* and *replaced_types* as in the proto."""

    import_id: str
    offset: int
    mode: Mode
    dry_run: bool
    raw: bytes
    only_type: str
    replaced_types: tuple[str, ...]
    finish: bool
    operation_id: str


class Told(NamedTuple):
    """What is told of one row: its outcome, or the status of its refusal.

    In a dry run an update has its ``changes``, serialized; None if there was no room for them.
    """

    line: int
    type: str
    id: str
    made: int = 0
    status: bytes = b""
    changes: Sequence[bytes] | None = ()


class Answer(NamedTuple):
    """The import after a call, what its chunk came to, the rows that are told of, the newest revision it saw."""

    state: StoredImport
    counts: Counts
    rows: Sequence[Told]
    revision: int


@dataclass(slots=True)
class _Run:
    """One import as this process serves it: how far it has applied and recorded without a break."""

    applied: int = 0
    recorded: int = 0
    under_way: set[int] = field(default_factory=set)
    calls: int = 0
    moved: asyncio.Condition = field(default_factory=asyncio.Condition)
    finishing: asyncio.Lock = field(default_factory=asyncio.Lock)


class Seen(NamedTuple):
    """An import and the namespace's revision; the names of some missing entities; and, if it is a dry run that is
    finished, whether the real one would need to be confirmed."""

    state: StoredImport
    revision: int
    missing: Sequence[str]
    needs_confirmation: bool


class _Known(NamedTuple):
    """What is stored about an import and one of its chunks."""

    state: StoredImport | None
    chunk: TakenChunk | None
    revision: int


class Importer:
    """Takes imports."""

    def __init__(self, database: Database, writer: Writer, confirmations: Confirmations) -> None:
        self._database = database
        self._writer = writer
        self._confirmations = confirmations
        self._finisher = Finisher(database, writer, confirmations)
        self._runs: dict[ImportKey, _Run] = {}

    async def take(self, namespace: Namespace, actor: str, chunk: Chunk) -> Answer:
        """Apply, record and answer a chunk, and finish the import if it says so.

        Raises:
            Error: nothing of the chunk is recorded; rows that were applied are remembered.
        """
        key = ImportKey(namespace.id, namespace.epoch, chunk.import_id)
        reader = RowReader(namespace.id, chunk.mode, chunk.only_type, chunk.replaced_types)
        rows, lines = reader.read(chunk.raw, chunk.offset)
        run = self._runs.setdefault(key, _Run())
        run.calls += 1
        try:
            answer = await self._take(run, key, namespace, actor, chunk, rows, lines)
            if chunk.finish:
                async with run.finishing:
                    state = await self._finisher.finish(key, namespace, actor, chunk.offset + lines)
                answer = answer._replace(state=state)
            return answer
        finally:
            run.calls -= 1
            if not run.calls and self._runs.get(key) is run:
                del self._runs[key]

    async def look(self, namespace: Namespace, import_id: str) -> Seen:
        """An import as it is now.

        Raises:
            NotFound: there is no such import, or it was forgotten.
        """
        key = ImportKey(namespace.id, namespace.epoch, import_id)
        head_rows, rows, missing = await self._database.read(
            namespace.id,
            select_head(namespace.id),
            import_store.select_import(key),
            import_store.select_missing(key, SHOWN_MISSING),
        )
        state = import_store.import_of(rows)
        if state is None:
            raise NotFound("NOT_FOUND", f"there is no import {import_id}")
        names = [entity_name(namespace.id, EntityKey(type_id, entity_id)) for type_id, entity_id, _ in missing]
        needs_confirmation = await self._finisher.needs_confirmation(key, namespace, state)
        return Seen(state, current_head(namespace, head_rows).revision, names, needs_confirmation)

    async def rejections(self, namespace: Namespace, import_id: str, after_line: int, limit: int) -> list[Rejection]:
        """Up to *limit* rejections of lines after *after_line*."""
        key = ImportKey(namespace.id, namespace.epoch, import_id)
        (rows,) = await self._database.read(namespace.id, import_store.select_rejections(key, after_line, 2**62, limit))
        return [Rejection(*row) for row in rows]

    async def _take(
        self, run: _Run, key: ImportKey, namespace: Namespace, actor: str, chunk: Chunk, rows: list[Row], lines: int
    ) -> Answer:
        digest = hashlib.blake2b(f"{chunk.only_type}\n".encode() + chunk.raw, digest_size=16).digest()
        known = await self._known(key, namespace, actor, chunk)
        asked: list[Mutation | Error] = [_BLANK] * lines
        for row in rows:
            asked[row.line - chunk.offset - 1] = row.mutation
        draft: Draft | None = None
        if lines:
            known, draft = await self._await_turn(run, key, namespace, actor, chunk, known, asked)
        if known.chunk is not None and lines:
            return await self._as_recorded(key, namespace, actor, chunk, known, rows, asked, digest)
        if known.state is None and chunk.offset == 0:
            known = await self._begin(key, namespace, actor, chunk)
        if known.state is None or (not lines and known.state.next_offset != chunk.offset):
            raise wrong_offset(known.state.next_offset if known.state else 0)
        if chunk.operation_id:
            known = await self._confirm(key, namespace, actor, chunk)
        assert known.state is not None
        if not lines:
            return Answer(known.state, Counts(), (), known.revision)
        if known.state.state != State.RUNNING:
            raise FailedPrecondition("IMPORT_FINISHED", "the import takes no more chunks")
        run.under_way.add(chunk.offset)
        try:
            outcomes = await self._apply(namespace, actor, chunk, known.state, asked, draft)
            run.applied = max(run.applied, chunk.offset + lines)
            await _tell(run)
            told, counts, revision = _account(chunk, rows, outcomes)
            taken = TakenChunk(lines, digest, counts)
            state = await self._record(run, key, namespace, chunk, taken, rows, told)
            run.recorded = max(run.recorded, state.next_offset)
        finally:
            run.under_way.discard(chunk.offset)
            await _tell(run)
        if chunk.dry_run:
            told = await self._with_changes(namespace, rows, told)
        return Answer(state, counts, told, max(revision, known.revision))

    async def _known(self, key: ImportKey, namespace: Namespace, actor: str, chunk: Chunk) -> _Known:
        """What is stored; refuses a chunk that belongs to another import than its id says."""
        head_rows, rows, chunk_rows = await self._database.read(
            namespace.id,
            select_head(namespace.id),
            import_store.select_import(key),
            import_store.select_chunk(key, chunk.offset),
        )
        state = import_store.import_of(rows)
        if state is not None:
            if state.principal != actor:
                raise AlreadyExists("ALREADY_EXISTS", "somebody else has begun an import of that id")
            if (state.mode, state.dry_run) != (chunk.mode, chunk.dry_run):
                raise invalid_field("mode", "the import was begun in another mode; mode and dry_run stay as they were")
            if tuple(state.replaced_types) != chunk.replaced_types:
                raise invalid_field("replaced_types", "the import was begun with other types")
        return _Known(state, import_store.chunk_of(chunk_rows), current_head(namespace, head_rows).revision)

    async def _begin(self, key: ImportKey, namespace: Namespace, actor: str, chunk: Chunk) -> _Known:
        if chunk.replaced_types:
            types = type_store.select_types(namespace.id, dict.fromkeys(chunk.replaced_types, 0))
            (rows,) = await self._database.read(namespace.id, types)
            if unknown := set(chunk.replaced_types) - {row[0] for row in rows}:
                raise missing_type(min(unknown))
        begin = import_store.begin_import(key, actor, chunk.mode, chunk.dry_run, chunk.replaced_types)
        await self._database.write(namespace.id, begin)
        return await self._known(key, namespace, actor, chunk)

    async def _confirm(self, key: ImportKey, namespace: Namespace, actor: str, chunk: Chunk) -> _Known:
        """Keep what the call confirms: it holds for the whole import, however long that takes."""
        types = self._confirmations.confirmed(namespace, actor, chunk.operation_id)
        await self._database.write(namespace.id, import_store.confirm(key, sorted(types)))
        return await self._known(key, namespace, actor, chunk)

    async def _await_turn(
        self,
        run: _Run,
        key: ImportKey,
        namespace: Namespace,
        actor: str,
        chunk: Chunk,
        known: _Known,
        asked: Sequence[Mutation | Error],
    ) -> tuple[_Known, Draft | None]:
        """Wait until every chunk before this one is applied and nobody applies this one, or it is recorded.

        If there is time, a draft of what is *asked* is made meanwhile.
        """
        draft: Draft | None = None
        offset = chunk.offset
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            if known.state is not None:
                run.recorded = max(run.recorded, known.state.next_offset)
                run.applied = max(run.applied, run.recorded)
            if known.chunk is not None or (offset not in run.under_way and run.recorded <= offset <= run.applied):
                return known, draft
            out_of_reach = offset < run.recorded or offset - run.applied > MAX_AHEAD
            if out_of_reach or run.calls > MAX_WAITING or time.monotonic() > deadline:
                raise wrong_offset(run.recorded)
            if draft is None:
                writing = _writing(namespace, actor, chunk)
                draft = await self._writer.draft(writing, asked, first=offset)
                continue
            moved = await _moved(run)
            if not moved or known.state is None or offset < run.recorded:
                known = await self._known(key, namespace, actor, chunk)

    async def _as_recorded(
        self,
        key: ImportKey,
        namespace: Namespace,
        actor: str,
        chunk: Chunk,
        known: _Known,
        rows: list[Row],
        asked: Sequence[Mutation | Error],
        digest: bytes,
    ) -> Answer:
        """The answer of a chunk that was taken before."""
        assert known.state is not None
        assert known.chunk is not None
        lines = len(asked)
        if known.chunk.lines != lines:
            raise wrong_offset(known.state.next_offset)
        if known.chunk.digest != digest:
            raise _other_lines()
        if chunk.dry_run:
            told, _, _ = _account(chunk, rows, await self._apply(namespace, actor, chunk, known.state, asked, None))
            told = await self._with_changes(namespace, rows, told)
        else:
            (rejected,) = await self._database.read(
                namespace.id, import_store.select_rejections(key, chunk.offset, chunk.offset + lines, lines)
            )
            told = [Told(line, type_id, entity_id, status=status) for line, type_id, entity_id, status in rejected]
        return Answer(known.state, known.chunk.counts, told, known.revision)

    async def _apply(
        self,
        namespace: Namespace,
        actor: str,
        chunk: Chunk,
        state: StoredImport,
        asked: Sequence[Mutation | Error],
        draft: Draft | None,
    ) -> list[Written | BaseException]:
        """Write what is *asked*; what became of each line. An error there is what was asked: no row, or no good one."""
        writing = _writing(namespace, actor, chunk)._replace(limits=limits_of(namespace, chunk.import_id, state))
        outcomes = await self._writer.batch(writing, asked, first=chunk.offset, draft=draft)
        for item, outcome in zip(asked, outcomes, strict=True):
            if type(outcome) is not Written and outcome is not item:
                assert isinstance(outcome, BaseException)
                raise _other_lines() if _is_reused(outcome) else outcome
        return outcomes

    async def _with_changes(self, namespace: Namespace, rows: Sequence[Row], told: Sequence[Told]) -> list[Told]:
        """*told* with what each update would change, as far as there is room."""
        wanted = {item.line for item in told if item.made == Made.UPDATED}
        updates = [
            (row.line, row.mutation.key, row.mutation.content)
            for row in rows
            if row.line in wanted and isinstance(row.mutation, Mutation) and row.mutation.content is not None
        ]
        changes: dict[int, list[bytes]] = {}
        room = MAX_CHANGES_BYTES
        for start in range(0, len(updates), COMPARED_AT_ONCE):
            together = updates[start : start + COMPARED_AT_ONCE]
            keys = list({key: None for _, key, _ in together})
            (found,) = await self._database.read(namespace.id, store.select_entities(namespace.id, keys))
            stored = dict(map(store.entity_of, found))
            for line, key, content in together:
                encoded = [encode_change(change) for change in differences(stored[key].data, content)]
                room -= sum(map(len, encoded))
                if room < 0:
                    break
                changes[line] = encoded
            if room < 0:
                break
        return [item._replace(changes=changes.get(item.line)) if item.line in wanted else item for item in told]

    async def _record(
        self,
        run: _Run,
        key: ImportKey,
        namespace: Namespace,
        chunk: Chunk,
        taken: TakenChunk,
        rows: Sequence[Row],
        told: Sequence[Told],
    ) -> StoredImport:
        """Record a chunk behind all those before it."""
        deadline = time.monotonic() + WAIT_SECONDS
        while run.recorded < chunk.offset:
            if time.monotonic() > deadline:
                raise Unavailable("OVERLOADED", "the chunk before is not recorded yet; retry")
            await _moved(run)
        named = [row for row in rows if row.is_named] if chunk.mode == Mode.REPLACE_SET else []
        statements = import_store.record_chunk(
            key,
            chunk.offset,
            taken,
            [Rejection(row.line, row.type, row.id, row.status) for row in told if row.status],
            sum(not row.is_named for row in rows),
            [EntityKey(row.type, row.id) for row in named],
        )
        *_, state_rows, chunk_rows = await self._database.write(
            namespace.id, *statements, import_store.select_import(key), import_store.select_chunk(key, chunk.offset)
        )
        state, recorded = import_store.import_of(state_rows), import_store.chunk_of(chunk_rows)
        if state is None or recorded is None or recorded.digest != taken.digest:
            raise wrong_offset(state.next_offset if state is not None else 0)
        return state


def _writing(namespace: Namespace, actor: str, chunk: Chunk) -> Writing:
    """How rows are written, but for their limits."""
    return Writing(namespace, actor, METHOD, chunk.import_id, chunk.dry_run, remembers_refusals=True)


def _account(
    chunk: Chunk, rows: Sequence[Row], outcomes: Sequence[Written | BaseException]
) -> tuple[list[Told], Counts, int]:
    """What is to be told of *rows*, the counts, and the newest revision.

    Told are those that are rejected, and in a dry run those that would do anything.
    """
    told: list[Told] = []
    numbers = dict.fromkeys((Made.CREATED, Made.UPDATED, Made.UNCHANGED), 0)
    revision = 0
    for row in rows:
        outcome = outcomes[row.line - chunk.offset - 1]
        if isinstance(outcome, Written):
            revision = max(revision, outcome.revision)
            if not outcome.refusal:
                made = Made(outcome.outcomes[0].made)
                numbers[made] += 1
                if chunk.dry_run and made != Made.UNCHANGED:
                    told.append(Told(row.line, row.type, row.id, made))
                continue
            status = status_pb2.Status.FromString(outcome.refusal)
        else:
            assert isinstance(row.mutation, Error)
            status = status_of_error(row.mutation)
        told.append(Told(row.line, row.type, row.id, status=_short(status)))
    inserted, updated, unchanged = numbers.values()
    return told, Counts(inserted, updated, unchanged, len(rows) - inserted - updated - unchanged), revision


async def _moved(run: _Run) -> bool:
    """Wait until the import moves in this process; not for long, because it may move in another one."""
    try:
        async with asyncio.timeout(LOOK_SECONDS), run.moved:
            await run.moved.wait()
    except TimeoutError:
        return False
    return True


async def _tell(run: _Run) -> None:
    async with run.moved:
        run.moved.notify_all()


def _other_lines() -> InvalidArgument:
    return refusal_of("rows", "REQUEST_ID_REUSED", "the import has other lines at that offset", field="rows")


def _is_reused(failure: BaseException) -> bool:
    """Whether a line was applied before, as another row, and its chunk was not counted then."""
    return isinstance(failure, InvalidArgument) and failure.reason == "REQUEST_ID_REUSED"


def _short(status: status_pb2.Status) -> bytes:
    """A refusal that takes little room: with its reason, and as many of its violations as fit."""
    serialized: bytes = status.SerializeToString()
    if len(serialized) > _MAX_STATUS:
        del status.details[1:]
        status.message = status.message[: _MAX_STATUS // 4]
        serialized = status.SerializeToString()
    return serialized
