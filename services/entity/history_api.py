"""``HistoryService``: parse, one read or one commit, render."""

from __future__ import annotations

from typing import Final

from strandline.entity.v1 import history_service_pb2 as pb

from services.entity.blanking import delimited_fields, is_blank
from services.entity.calls import answer_with, limited, namespace_of_call, writing
from services.entity.exports import Exporter
from services.entity.history import History, Moment
from services.entity.limits import Confirmations
from services.entity.model import parse_entity_name, parse_namespace
from services.entity.mutations import restoration
from services.entity.revision_diffs import Range, RevisionDiffs, check_range, encode_diff
from services.entity.writes import Writer
from services.runtime import wire
from services.runtime.call import Call
from services.runtime.changelog import PURGED
from services.runtime.database import Row
from services.runtime.errors import NotFound
from services.runtime.filters.ast import Path
from services.runtime.masks import masked, parse_mask
from services.runtime.rules import time_of

SERVICE: Final = "strandline.entity.v1.HistoryService"


class HistoryHandlers:
    """The handlers of ``HistoryService``."""

    def __init__(
        self,
        writer: Writer,
        history: History,
        diffs: RevisionDiffs,
        exporter: Exporter,
        confirmations: Confirmations,
    ) -> None:
        self._writer = writer
        self._history = history
        self._diffs = diffs
        self._exporter = exporter
        self._confirmations = confirmations

    async def list_entity_revisions(self, request: pb.ListEntityRevisionsRequest, call: Call) -> bytes:
        namespace = namespace_of_call(call)
        key = parse_entity_name(request.name, namespace.id, "name")
        mask = parse_mask(request.read_mask, "read_mask")
        minimum = call.min_revision(request.min_revision)
        page = await self._history.revisions(namespace, key, request.page_size, request.page_token, minimum)
        call.position(page.head.revision, page.head.epoch)
        return (
            b"".join(wire.delimited(1, _encode_revision(row, mask)) for row in page.rows)
            + wire.text(2, page.next_page_token)
            + wire.integer(3, page.head.revision)
            + wire.text(4, page.head.epoch)
        )

    async def rollback_entity(self, request: pb.RollbackEntityRequest, call: Call) -> bytes:
        namespace = namespace_of_call(call)
        key = parse_entity_name(request.name, namespace.id, "name")
        etag, by_if_match = call.expected_etag(request.etag)
        _, (then,) = await self._history.states(namespace, [key], request.to_revision)
        if then is None:
            raise NotFound(
                "NOT_FOUND", f"at revision {request.to_revision} there was no {request.name}", name=request.name
            )
        mutation = restoration(request.name, key, then, etag=etag, by_if_match=by_if_match)
        by = limited(writing(request, call, "RollbackEntity"), self._confirmations, request.confirm_operation_id)
        revision, outcome = await self._writer.write_one(by, mutation)
        return answer_with(call, outcome.message, revision, namespace.epoch)

    async def diff_entity(self, request: pb.DiffEntityRequest, call: Call) -> bytes:
        namespace = namespace_of_call(call)
        key = parse_entity_name(request.name, namespace.id, "name")
        head = await self._history.head(namespace, call.min_revision(request.min_revision))
        end = request.to_revision or head.revision
        check_range(head, request.from_revision, end)
        _, (before,) = await self._history.states(namespace, [key], request.from_revision)
        _, (after,) = await self._history.states(namespace, [key], end)
        if before is None and after is None:
            raise NotFound("NOT_FOUND", f"at neither revision there was a {request.name}", name=request.name)
        _, diff = encode_diff(request.name, before, after)
        return answer_with(call, diff, end, head.epoch)

    async def diff_revisions(self, request: pb.DiffRevisionsRequest, call: Call) -> bytes:
        parse_namespace(request.parent, "parent")
        asked = Range(request.from_revision, request.to_revision, frozenset(request.types))
        minimum = call.min_revision(request.min_revision)
        page = await self._diffs.page(namespace_of_call(call), asked, request.page_size, request.page_token, minimum)
        call.position(page.head.revision, page.head.epoch)
        return (
            b"".join(wire.delimited(1, diff) for diff in page.diffs)
            + wire.text(2, page.next_page_token)
            + wire.integer(3, page.head.revision)
            + wire.text(4, page.head.epoch)
        )

    async def lookup_revision(self, request: pb.LookupRevisionRequest, call: Call) -> bytes:
        parse_namespace(request.parent, "parent")
        namespace = namespace_of_call(call)
        minimum = call.min_revision(request.min_revision)
        if request.HasField("time"):
            moment = await self._history.moment_of(namespace, time_of(request.time, "time"), minimum)
        else:
            moment = await self._history.time_of(namespace, request.revision, minimum)
        call.position(moment.head.revision, moment.head.epoch)
        return _encode_moment(moment)

    async def export_entities(self, request: pb.ExportEntitiesRequest, call: Call) -> bytes:
        parse_namespace(request.parent, "parent")
        minimum = call.min_revision(request.min_revision)
        page = await self._exporter.page(
            namespace_of_call(call), request.types, request.revision, request.page_token, minimum
        )
        call.position(page.head.revision, page.head.epoch)
        return (
            b"".join(wire.delimited(1, type_) for type_ in page.types)
            + b"".join(wire.delimited(2, entity) for entity in page.entities)
            + wire.text(3, page.next_page_token)
            + wire.integer(4, page.head.revision)
            + wire.text(5, page.head.epoch)
        )


def _encode_revision(row: Row, mask: tuple[Path, ...]) -> bytes:
    """``EntityRevision`` of a row of ``versions.select_versions_of``."""
    revision, kind, commit_time, header, entity, _ = row
    actor, request_id = _who(header)
    return (
        wire.integer(1, revision)
        + wire.integer(2, kind)
        + wire.timestamp(3, commit_time)
        + wire.text(4, actor)
        + wire.text(5, request_id)
        + (wire.delimited(6, masked(entity, mask)) if kind != PURGED and not is_blank(entity) else b"")
    )


def _who(header: bytes) -> tuple[str, str]:
    """Actor and request id in the beginning of a unit, which is fields 1 to 4 and then its changes."""
    found = {3: "", 4: ""}
    for tag, start, end in delimited_fields(header, 0, len(header)):
        number = header[tag] >> 3
        if number > 4:
            break
        if number in found:
            found[number] = header[start:end].decode()
    return found[3], found[4]


def _encode_moment(moment: Moment) -> bytes:
    """``LookupRevisionResponse``."""
    return (
        wire.integer(1, moment.revision)
        + (wire.timestamp(2, moment.commit_time) if moment.commit_time is not None else b"")
        + wire.integer(3, moment.head.revision)
        + wire.integer(4, moment.head.horizon)
        + wire.text(5, moment.head.epoch)
    )
