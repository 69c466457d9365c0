"""``TypeService``: parse, one read or one commit, render."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import orjson
from strandline.entity.v1 import entity_pb2
from strandline.entity.v1 import type_service_pb2 as pb

from services.entity import retention_store, schemas, type_store
from services.entity.calls import answer_with, namespace_of_call, writing
from services.entity.catalog import missing_type
from services.entity.compatibility import Mode
from services.entity.content import canonical
from services.entity.evolution import Comparer, StaleJudgement, index_uses, judge, lease_uses
from services.entity.index_builds import IndexBuilder
from services.entity.index_keys import parse_index, parse_index_field, parse_plain_field
from services.entity.ledger import EntityUnit
from services.entity.long_running import OperationRunner
from services.entity.model import MAX_ANSWER_BYTES, OnDelete, encode_type, parse_namespace, parse_type_name, type_name
from services.entity.operation_store import OperationKey
from services.entity.reads import current_head
from services.entity.retention_store import Lease
from services.entity.type_changes import DeclaredIndex, DeclaredReference, TypeChange, TypeOperation
from services.entity.writes import MAX_ATTEMPTS, Writing
from services.runtime import wire
from services.runtime.call import Call, Namespace
from services.runtime.changelog import select_head
from services.runtime.committer import Committer
from services.runtime.database import Database, Row, pipeline
from services.runtime.errors import Unavailable, invalid_field
from services.runtime.ids import uuid7
from services.runtime.masks import no_commas
from services.runtime.page_tokens import binding_of, open_token, page_size, seal
from services.runtime.wire import JsonObject

SERVICE: Final = "strandline.entity.v1.TypeService"
MAX_INDEXES: Final = 32
MAX_REFERENCES: Final = 16
_FIELDS: Final = frozenset({"schema", "compatibility", "indexes", "references"})


class TypeHandlers:
    """The handlers of ``TypeService``."""

    def __init__(
        self,
        database: Database,
        committer: Committer[EntityUnit],
        builder: IndexBuilder,
        comparer: Comparer,
        runner: OperationRunner,
        token_key: bytes,
    ) -> None:
        self._database = database
        self._committer = committer
        self._builder = builder
        self._comparer = comparer
        self._runner = runner
        self._token_key = token_key

    async def create_type(self, request: pb.CreateTypeRequest, call: Call) -> bytes:
        parse_namespace(request.parent, "parent")
        name = type_name(namespace_of_call(call).id, request.type_id)
        parse_type_name(name, "type_id")
        change = _change(
            writing(request, call, "CreateType"),
            TypeOperation.CREATE,
            request.type_id,
            schema=_schema(request.type),
            compatibility=request.type.compatibility or None,
            indexes=_indexes(request.type.indexes),
            references=_references(request.type.references) or None,
        )
        call.response_headers["location"] = f"/v1/{name}"
        return await self._commit(change, call)

    async def update_type(self, request: pb.UpdateTypeRequest, call: Call) -> bytes:
        asked = set(request.update_mask) or {field.name for field, _ in request.type.ListFields()} & _FIELDS
        if unknown := asked - _FIELDS:
            text = min(unknown)
            known = ", ".join(sorted(_FIELDS))
            raise invalid_field("update_mask", f"{text[:100]!r} is none of {known}{no_commas(text)}")
        etag, by_if_match = call.expected_etag(request.etag)
        change = _change(
            writing(request, call, "UpdateType"),
            TypeOperation.UPDATE,
            parse_type_name(request.type.name, "type.name"),
            schema=_schema(request.type) if "schema" in asked else None,
            compatibility=request.type.compatibility or None if "compatibility" in asked else None,
            indexes=_indexes(request.type.indexes) if "indexes" in asked else None,
            references=_references(request.type.references) if "references" in asked else None,
            etag=etag or request.type.etag,
            by_if_match=by_if_match,
        )
        for _ in range(MAX_ATTEMPTS):
            if change.schema is not None:
                await self._judge(change, namespace_of_call(call))
            try:
                return await self._commit(change, call)
            except StaleJudgement:
                continue
        raise Unavailable("OVERLOADED", "the type is being changed by many others; retry")

    async def delete_type(self, request: pb.DeleteTypeRequest, call: Call) -> bytes:
        etag, by_if_match = call.expected_etag(request.etag)
        change = _change(
            writing(request, call, "DeleteType"),
            TypeOperation.DELETE,
            parse_type_name(request.name, "name"),
            etag=etag,
            by_if_match=by_if_match,
        )
        return await self._commit(change, call)

    async def get_type(self, request: pb.GetTypeRequest, call: Call) -> bytes:
        namespace = namespace_of_call(call)
        type_id = parse_type_name(request.name, "name")
        head_rows, rows, progress_rows = await self._database.read(
            namespace.id,
            select_head(namespace.id),
            type_store.select_types(namespace.id, {type_id: 0}),
            type_store.select_progress(namespace.id),
        )
        head = current_head(namespace, head_rows)
        type_ = type_store.type_of(rows[0]) if rows else None
        if type_ is None:
            raise missing_type(type_id)
        message = encode_type(namespace.id, type_, _progress(progress_rows))
        return answer_with(call, message, head.revision, head.epoch)

    async def list_types(self, request: pb.ListTypesRequest, call: Call) -> bytes:
        namespace = namespace_of_call(call)
        parse_namespace(request.parent, "parent")
        binding = binding_of("types", namespace.id)
        after = open_token(self._token_key, binding, request.page_token).decode() if request.page_token else ""
        size = page_size(request.page_size)
        head_rows, rows, progress_rows = await self._database.read(
            namespace.id,
            select_head(namespace.id),
            type_store.select_type_page(namespace.id, after, size + 1, MAX_ANSWER_BYTES),
            type_store.select_progress(namespace.id),
        )
        head = current_head(namespace, head_rows)
        call.position(head.revision, head.epoch)
        types = [type_ for row in rows[:size] if (type_ := type_store.type_of(row[1:])) is not None]
        progress = _progress(progress_rows)
        more = bool(types) and rows[0][0] > len(types)
        token = seal(self._token_key, binding, types[-1].id.encode()) if more else ""
        return (
            b"".join(wire.delimited(1, encode_type(namespace.id, type_, progress)) for type_ in types)
            + wire.text(2, token)
            + wire.integer(3, head.revision)
            + wire.text(4, head.epoch)
        )

    async def _commit(self, change: TypeChange, call: Call) -> bytes:
        namespace = namespace_of_call(call)
        if change.operation != TypeOperation.DELETE:
            async with self._database.connection() as connection:
                (ids,) = await pipeline(connection, type_store.allocate_index_ids(MAX_INDEXES + MAX_REFERENCES))
            change.index_ids = [index_id for (index_id,) in ids]
        receipt = await self._committer.commit(namespace, change)
        self._builder.wake()
        answer = answer_with(call, receipt.answer, receipt.revision, namespace.epoch)
        if receipt.result is None:
            return answer
        self._runner.wake()
        call.response_headers["strandline-operation"] = receipt.result
        return answer + wire.text(4, receipt.result)

    async def _judge(self, change: TypeChange, namespace: Namespace) -> None:
        """Find out about the schema of *change* as the successor of what is stored."""
        types, rows, leases = await self._database.read(
            namespace.id,
            type_store.select_types(namespace.id, {change.type_id: 0}),
            type_store.select_schemas(namespace.id, [change.type_id]),
            retention_store.select_leases(namespace.id),
        )
        type_ = type_store.type_of(types[0]) if types else None
        if type_ is None or change.schema is None:
            return  # it is refused under the lock, or was answered already
        uses = [*index_uses(type_), *lease_uses(type_.id, (Lease(*row) for row in leases))]
        fields = [path for use in uses for path in use.paths]
        for declared in change.indexes or ():
            fields += [parse_index_field(text).path for text in declared.fields]
        versions = [orjson.loads(text) for _, text in rows]
        mode = Mode(change.compatibility or type_.compatibility)
        schema, version = change.schema, type_.schema_version
        change.judgement = await self._comparer.run(lambda: judge(version, versions, schema, mode, fields))
        change.validation = OperationKey(namespace.id, namespace.epoch, uuid7())


def _progress(rows: Sequence[Row]) -> dict[int, tuple[int, int]]:
    return {index_id: (indexed, total) for index_id, indexed, total in rows}


def _schema(type_: entity_pb2.EntityType) -> JsonObject:
    if not type_.HasField("schema"):
        raise invalid_field("type.schema", "is required")
    schema = wire.decode_struct(type_.schema, "type.schema")
    schemas.check_schema(schema, "type.schema")
    return schema


def _indexes(declared: Sequence[entity_pb2.Index]) -> list[DeclaredIndex]:
    indexes = [DeclaredIndex(tuple(index.fields), index.unique, index.kind == index.FULL_TEXT) for index in declared]
    if len(indexes) > MAX_INDEXES:
        raise invalid_field("type.indexes", f"a type has at most {MAX_INDEXES} indexes")
    if len(set(indexes)) < len(indexes):
        raise invalid_field("type.indexes", "an index is declared twice")
    for index in indexes:
        parse_index(index.fields, unique=index.unique, full_text=index.full_text)
    return indexes


def _references(declared: Sequence[entity_pb2.Reference]) -> list[DeclaredReference]:
    references = []
    paths = set()
    for place, reference in enumerate(declared):
        paths.add(parse_plain_field(reference.field, f"type.references[{place}].field"))
        on_delete = OnDelete(reference.on_delete or OnDelete.RESTRICT)
        references.append(DeclaredReference(reference.field, reference.type, on_delete))
    if len(paths) < len(references):
        raise invalid_field("type.references", "a field is named twice")
    return references


def _change(
    writing: Writing,
    operation: TypeOperation,
    type_id: str,
    *,
    schema: JsonObject | None = None,
    compatibility: int | None = None,
    indexes: Sequence[DeclaredIndex] | None = None,
    references: Sequence[DeclaredReference] | None = None,
    etag: str = "",
    by_if_match: bool = False,
) -> TypeChange:
    declared = [(index.fields, index.unique, index.full_text) for index in indexes] if indexes is not None else None
    asked = canonical([operation, type_id, schema, compatibility, declared, etag])
    if references is not None:
        asked += canonical([(one.field, one.type, one.on_delete) for one in references])
    return TypeChange(
        actor=writing.actor,
        method=writing.method,
        request_id=writing.request_id,
        body_hash=hashlib.blake2b(asked, digest_size=16).digest(),
        exclusive=frozenset({type_id}),
        shared=frozenset(reference.type for reference in references or ()),
        size=2 * len(asked),
        validate_only=writing.validate_only,
        operation=operation,
        type_id=type_id,
        schema=schema,
        compatibility=compatibility,
        indexes=indexes,
        references=references,
        etag=etag,
        by_if_match=by_if_match,
    )
