"""``ImportService``: parse, one chunk or one read, render."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from google.rpc import status_pb2
from strandline.entity.v1 import import_service_pb2 as pb
from strandline.entity.v1.history_service_pb2 import FieldChange

from services.entity.calls import namespace_of_call
from services.entity.import_rows import Mode
from services.entity.import_store import Counts, Rejection, StoredImport
from services.entity.imports import Chunk, Importer, Told
from services.entity.model import MAX_ANSWER_BYTES, parse_namespace
from services.runtime.call import Call, Namespace
from services.runtime.errors import invalid_field
from services.runtime.page_tokens import binding_of, open_token, page_size, seal

SERVICE: Final = "strandline.entity.v1.ImportService"
_NAME: Final = re.compile(r"namespaces/(?P<namespace>[^/]+)/imports/(?P<id>[A-Za-z0-9_-]{1,64})")


class ImportHandlers:
    """The handlers of ``ImportService``."""

    def __init__(self, importer: Importer, token_key: bytes) -> None:
        self._importer = importer
        self._token_key = token_key

    async def import_entities(self, request: pb.ImportEntitiesRequest, call: Call) -> pb.ImportEntitiesResponse:
        parse_namespace(request.parent, "parent")
        namespace = namespace_of_call(call)
        mode = Mode(request.mode or Mode.UPSERT)
        if request.replaced_types and mode != Mode.REPLACE_SET:
            raise invalid_field("replaced_types", "belongs to the mode REPLACE_SET")
        if not request.import_id:
            raise invalid_field("import_id", "is required")
        chunk = Chunk(
            request.import_id,
            request.offset,
            mode,
            request.dry_run,
            request.rows,
            request.type,
            tuple(sorted(request.replaced_types)),
            request.finish,
            request.confirm_operation_id,
        )
        answer = await self._importer.take(namespace, call.actor, chunk)
        call.position(answer.revision, namespace.epoch)
        return pb.ImportEntitiesResponse(
            progress=_import(namespace, chunk.import_id, answer.state),
            chunk=_account(answer.counts),
            rows=map(_row, answer.rows),
            revision=answer.revision,
            epoch=namespace.epoch,
        )

    async def get_import(self, request: pb.GetImportRequest, call: Call) -> pb.GetImportResponse:
        namespace = namespace_of_call(call)
        import_id = _import_id(request.name, namespace, "name")
        seen = await self._importer.look(namespace, import_id)
        call.position(seen.revision, namespace.epoch)
        progress = _import(namespace, import_id, seen.state)
        progress.missing_names.extend(seen.missing)
        progress.needs_confirmation = seen.needs_confirmation
        return pb.GetImportResponse(progress=progress, revision=seen.revision, epoch=namespace.epoch)

    async def list_import_rejections(
        self, request: pb.ListImportRejectionsRequest, call: Call
    ) -> pb.ListImportRejectionsResponse:
        namespace = namespace_of_call(call)
        import_id = _import_id(request.parent, namespace, "parent")
        binding = binding_of("import rejections", namespace.id, namespace.epoch, import_id)
        token = request.page_token
        after = int(open_token(self._token_key, binding, token)) if token else 0
        size = page_size(request.page_size)
        revision = (await self._importer.look(namespace, import_id)).revision
        found = await self._importer.rejections(namespace, import_id, after, size + 1)
        page = _fitting(found[:size])
        call.position(revision, namespace.epoch)
        more = len(page) < len(found)
        return pb.ListImportRejectionsResponse(
            rows=[_row(Told(item.line, item.type, item.id, status=item.status)) for item in page],
            next_page_token=seal(self._token_key, binding, str(page[-1].line).encode()) if more else "",
            revision=revision,
            epoch=namespace.epoch,
        )


def _import_id(name: str, namespace: Namespace, field: str) -> str:
    match = _NAME.fullmatch(name)
    if match is None or match["namespace"] != namespace.id:
        raise invalid_field(field, "must be namespaces/{namespace}/imports/{import}")
    return match["id"]


def _fitting(rows: Sequence[Rejection]) -> Sequence[Rejection]:
    """The first of *rows* that fit one answer, at least one."""
    size = 0
    for place, row in enumerate(rows):
        size += len(row.status) + len(row.id) + 100
        if size > MAX_ANSWER_BYTES and place:
            return rows[:place]
    return rows


def _import(namespace: Namespace, import_id: str, state: StoredImport) -> pb.Import:
    counts = Counts(state.inserted, state.updated, state.unchanged, state.rejected)
    progress = pb.Import(
        name=f"namespaces/{namespace.id}/imports/{import_id}",
        mode=pb.Import.Mode.ValueType(state.mode),
        dry_run=state.dry_run,
        state=pb.Import.State.ValueType(state.state),
        next_offset=state.next_offset,
        account=_account(counts, state.deleted),
        replaced_types=state.replaced_types,
        compared=state.compared,
        missing=state.missing,
    )
    progress.create_time.FromDatetime(state.create_time)
    progress.update_time.FromDatetime(state.update_time)
    return progress


def _account(counts: Counts, deleted: int = 0) -> pb.ImportAccount:
    return pb.ImportAccount(read=counts.read, **counts._asdict(), deleted=deleted)


def _row(told: Told) -> pb.ImportRow:
    row = pb.ImportRow(line=told.line, type=told.type, id=told.id, outcome=told.made)  # type: ignore[arg-type]
    if told.changes is None:
        row.changes_omitted = True
    else:
        row.changes.extend(map(FieldChange.FromString, told.changes))
    if told.status:
        row.status.CopyFrom(status_pb2.Status.FromString(told.status))
    return row
