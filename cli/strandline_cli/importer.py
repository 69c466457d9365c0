"""The sending side of ``strandline import``: chunks to the import service, a few under way, every row accounted for.

The account is the service's. Whatever breaks, the import can be resumed by its id: the service knows where to go on,
what became of the rows before, and counts a chunk once however often it is sent.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Final

from google.rpc import error_details_pb2
from strandline.entity.v1 import entity_pb2, history_service_pb2
from strandline.entity.v1 import import_service_pb2 as pb
from strandline_client import ApiError, Client
from strandline_client.json_data import json_of_value

from strandline_cli.import_files import Chunk, ImportFileError

# One is applied, one is recorded, two are on their way.
CHUNKS_UNDER_WAY: Final = 4
# How long to wait before a chunk that came too early is sent again.
_PAUSE_SECONDS: Final = 0.2

MODES: Final = {
    "insert": pb.Import.INSERT,
    "upsert": pb.Import.UPSERT,
    "replace-set": pb.Import.REPLACE_SET,
}


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to import how. ``kind`` is the type of rows that say none; ``confirm`` an operation id."""

    namespace: str
    import_id: str
    mode: str = "upsert"
    dry_run: bool = False
    kind: str = ""
    replaced_types: Sequence[str] = ()
    resume: bool = False
    confirm: str = ""


@dataclass(slots=True)
class Reasons:
    """Why rows were rejected: how many for each reason, and what was said of the first."""

    found: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, reason: str, text: str) -> None:
        count, first = self.found.get(reason, (0, text))
        self.found[reason] = (count + 1, first)


class Import:
    """One run.

    *rejects* and *changes* take JSON lines about rows that were rejected, and that a dry run would change; *progress*
    is told of each state of the import.
    """

    def __init__(
        self,
        client: Client,
        order: Order,
        *,
        rejects: IO[str] | None,
        changes: IO[str] | None,
        progress: Callable[[pb.Import], None],
    ) -> None:
        self._client = client
        self._order = order
        self._rejects = rejects
        self._changes = changes
        self._progress = progress
        self._first_under_way: dict[int, None] = {}
        self._confirm = order.confirm
        self._newest = pb.Import()
        self.reasons = Reasons()

    async def run(self, chunks: Iterator[Chunk]) -> pb.Import:
        """Send all *chunks*, and finish; the import as it is then.

        Raises:
            ApiError: a chunk was refused as a whole, or could not be sent for longer than the client retries.
            ImportFileError: the file is not the one that the import was begun with.
        """
        if self._order.resume:
            chunks = await self._go_on(chunks)
        offset = self._newest.next_offset
        under_way: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:
            for chunk in chunks:
                if len(under_way) == CHUNKS_UNDER_WAY:
                    _, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                self._first_under_way[chunk.offset] = None
                under_way.add(group.create_task(self._send(chunk)))
                offset = chunk.end
                if self._confirm:
                    # What it confirms must be known before the next ones are decided.
                    await asyncio.wait(under_way)
        return await self._finish(offset)

    async def _go_on(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """What is left of *chunks*; what was rejected before is told again.

        All of them are, if the import was broken off before its first chunk arrived.
        """
        try:
            state = await self._client.get_import(self._order.namespace, self._order.import_id)
        except ApiError as failure:
            if failure.reason != "NOT_FOUND":
                raise
            return chunks
        self._take(state)
        before, after = _split(chunks, state.next_offset)
        chunk = Chunk(0, ())
        async for row in self._client.import_rejections(self._order.namespace, self._order.import_id):
            while row.line > chunk.end:
                chunk = _next(before, state)
            self._tell(chunk, row)
        while chunk.end < state.next_offset:
            chunk = _next(before, state)
        return after

    async def _send(self, chunk: Chunk) -> None:
        request = self._request(chunk.offset, b"\n".join(chunk.lines) + b"\n")
        while True:
            try:
                answer = await self._client.import_entities(self._order.namespace, request)
                break
            except ApiError as failure:
                # Chunks overtake each other; only the first one has nothing to wait for.
                is_first = next(iter(self._first_under_way)) == chunk.offset
                if failure.reason != "IMPORT_OFFSET" or is_first:
                    raise
                await asyncio.sleep(_PAUSE_SECONDS)
        del self._first_under_way[chunk.offset]
        for row in answer.rows:
            self._tell(chunk, row)
        self._take(answer.progress)

    async def _finish(self, offset: int) -> pb.Import:
        request = self._request(offset, b"")
        request.finish = True
        while self._newest.state != pb.Import.FINISHED:
            answer = await self._client.import_entities(self._order.namespace, request)
            request.confirm_operation_id = ""
            self._take(answer.progress)
        done = await self._client.get_import(self._order.namespace, self._order.import_id)
        for name in done.missing_names if done.dry_run else ():
            _, _, _, type_id, _, entity_id = name.split("/")
            self._write_change({"line": None, "type": type_id, "id": entity_id, "outcome": "DELETED", "changes": []})
        return done

    def _request(self, offset: int, rows: bytes) -> pb.ImportEntitiesRequest:
        confirm, self._confirm = self._confirm, ""
        return pb.ImportEntitiesRequest(
            import_id=self._order.import_id,
            offset=offset,
            mode=MODES[self._order.mode],
            dry_run=self._order.dry_run,
            rows=rows,
            type=self._order.kind,
            replaced_types=self._order.replaced_types,
            confirm_operation_id=confirm,
        )

    def _take(self, state: pb.Import) -> None:
        if (state.next_offset, state.state) >= (self._newest.next_offset, self._newest.state):
            self._newest = state
            self._progress(state)

    def _tell(self, chunk: Chunk, row: pb.ImportRow) -> None:
        number = chunk.number(row.line)
        if row.status.code:
            reason, text = reason_and_text(row)
            self.reasons.add(reason, f"line {number}: {text}")
            if self._rejects is not None:
                record = {"line": number, "type": row.type, "id": row.id, "reason": reason, "message": text}
                self._rejects.write(json.dumps(record | chunk.content(row.line), ensure_ascii=False) + "\n")
        else:
            outcome = entity_pb2.Mutation.Outcome.Name(row.outcome)
            changes = None if row.changes_omitted else list(map(_change, row.changes))
            self._write_change({"line": number, "type": row.type, "id": row.id, "outcome": outcome, "changes": changes})

    def _write_change(self, record: dict[str, Any]) -> None:
        if self._changes is not None:
            self._changes.write(json.dumps(record, ensure_ascii=False) + "\n")


def _change(change: history_service_pb2.FieldChange) -> dict[str, Any]:
    """*change* as JSON: what was not there, or is not there any more, is left out."""
    sides = [(side, getattr(change, side)) for side in ("before", "after") if change.HasField(side)]
    return {"pointer": change.pointer, **{side: json_of_value(value) for side, value in sides}}


def reason_and_text(row: pb.ImportRow) -> tuple[str, str]:
    """Why a row was refused: the stable reason, and its words with each violation's pointer."""
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in row.status.details:
        detail.Unpack(info)
        detail.Unpack(request)
    violations = "; ".join(f"{violation.field}: {violation.description}" for violation in request.field_violations)
    return info.reason or "INTERNAL", violations or row.status.message


def _split(chunks: Iterator[Chunk], offset: int) -> tuple[Iterator[Chunk], Iterator[Chunk]]:
    """*chunks* before *offset*, to be taken first, and from there on."""
    rest: list[Chunk] = []

    def before() -> Iterator[Chunk]:
        for chunk in chunks:
            if chunk.offset >= offset:
                rest.append(chunk)
                return
            if chunk.end > offset:
                head, tail = chunk.split(offset)
                rest.append(tail)
                yield head
                return
            yield chunk

    def after() -> Iterator[Chunk]:
        yield from rest
        yield from chunks

    return before(), after()


def _next(chunks: Iterator[Chunk], state: pb.Import) -> Chunk:
    for chunk in chunks:
        return chunk
    raise ImportFileError(f"the import has taken {state.next_offset:,} lines already, the file has fewer")
