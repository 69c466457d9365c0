"""``SchemaService``: parse, one read or one operation begun, render."""

from __future__ import annotations

from typing import Final

import orjson
from google.protobuf.struct_pb2 import Struct
from strandline.entity.v1 import entity_pb2
from strandline.entity.v1 import schema_service_pb2 as pb

from services.entity import operation_store, schemas, type_store
from services.entity.calls import namespace_of_call
from services.entity.catalog import missing_type
from services.entity.compatibility import Mode, is_legacy
from services.entity.evolution import Comparer, compare
from services.entity.long_running import OperationRunner
from services.entity.model import MAX_ANSWER_BYTES, EntityType, parse_type_name, type_name
from services.entity.operation_api import read_operation
from services.entity.operation_store import OperationKey
from services.entity.reads import current_head
from services.runtime import wire
from services.runtime.call import Call, Namespace
from services.runtime.changelog import Head, select_head
from services.runtime.database import Database, Statement, pipeline
from services.runtime.errors import Unavailable, invalid_field
from services.runtime.ids import uuid7
from services.runtime.page_tokens import binding_of, open_token, page_size, seal
from services.runtime.wire import JsonObject

SERVICE: Final = "strandline.entity.v1.SchemaService"
MAX_UNDER_WAY: Final = 20
"""Operations of a namespace, each of which reads a whole type, as far as callers begin them; about."""


class SchemaHandlers:
    """The handlers of ``SchemaService``."""

    def __init__(self, database: Database, comparer: Comparer, runner: OperationRunner, token_key: bytes) -> None:
        self._database = database
        self._comparer = comparer
        self._runner = runner
        self._token_key = token_key

    async def check_compatibility(
        self, request: pb.CheckCompatibilityRequest, call: Call
    ) -> pb.CheckCompatibilityResponse:
        namespace = namespace_of_call(call)
        type_id = parse_type_name(request.name, "name")
        schema = _schema(request.schema)
        if not is_legacy(schema):
            schemas.check_schema(schema, "schema")
        head, type_, versions = await self._read(namespace, type_id)
        mode = Mode(request.compatibility or type_.compatibility)

        def answer() -> pb.CheckCompatibilityResponse:
            comparison = compare(versions, schema, "schema")
            differences = comparison.differences(mode)
            return pb.CheckCompatibilityResponse(
                compatible=not differences,
                differences=[pb.SchemaDifference(**one._asdict()) for one in differences],
                allowed_by=[entity_pb2.EntityType.Compatibility.ValueType(one) for one in comparison.allowed_by()],
                revision=head.revision,
                epoch=head.epoch,
            )

        call.position(head.revision, head.epoch)
        return await self._comparer.run(answer)

    async def list_type_versions(self, request: pb.ListTypeVersionsRequest, call: Call) -> bytes:
        namespace = namespace_of_call(call)
        type_id = parse_type_name(request.parent, "parent")
        binding = binding_of("type versions", namespace.id, namespace.epoch, type_id)
        after = int(open_token(self._token_key, binding, request.page_token)) if request.page_token else 0
        size = page_size(request.page_size)
        head_rows, types, rows = await self._database.read(
            namespace.id,
            select_head(namespace.id),
            type_store.select_types(namespace.id, {type_id: 0}),
            type_store.select_versions(namespace.id, type_id, after, size + 1, MAX_ANSWER_BYTES),
        )
        head = current_head(namespace, head_rows)
        if not types:
            raise missing_type(type_id)
        call.position(head.revision, head.epoch)
        page = rows[:size]
        more = bool(page) and page[0][0] > len(page)
        return (
            b"".join(
                wire.delimited(1, _encode_version(type_name(namespace.id, type_id), version, orjson.loads(schema)))
                for _, version, schema in page
            )
            + wire.text(2, seal(self._token_key, binding, str(page[-1][1]).encode()) if more else "")
            + wire.integer(3, head.revision)
            + wire.text(4, head.epoch)
        )

    async def validate_entities(self, request: pb.ValidateEntitiesRequest, call: Call) -> pb.ValidateEntitiesResponse:
        namespace = namespace_of_call(call)
        type_id = parse_type_name(request.name, "name")
        schema = _schema(request.schema)
        schemas.check_schema(schema, "schema")
        await self._read(namespace, type_id)
        key = OperationKey(namespace.id, namespace.epoch, uuid7())
        begun = operation_store.begin_validation(key, type_id, schema)
        async with self._database.connection() as connection, connection.transaction():
            _, ((under_way,),) = await pipeline(
                connection,
                Statement("SELECT set_config('app.namespace', %s, true)", (namespace.id,)),
                operation_store.count_under_way(namespace.id, namespace.epoch),
            )
            if under_way >= MAX_UNDER_WAY:
                raise Unavailable("OVERLOADED", f"{under_way} operations of the namespace are under way; retry")
            await pipeline(connection, *begun)
        self._runner.wake()
        return pb.ValidateEntitiesResponse(operation=await read_operation(self._database, key))

    async def _read(self, namespace: Namespace, type_id: str) -> tuple[Head, EntityType, list[JsonObject]]:
        """The head, the type, and the versions of its schema, oldest first."""
        head_rows, types, rows = await self._database.read(
            namespace.id,
            select_head(namespace.id),
            type_store.select_types(namespace.id, {type_id: 0}),
            type_store.select_schemas(namespace.id, [type_id]),
        )
        head = current_head(namespace, head_rows)
        type_ = type_store.type_of(types[0]) if types else None
        if type_ is None:
            raise missing_type(type_id)
        return head, type_, [orjson.loads(text) for _, text in rows]


def _schema(message: Struct) -> JsonObject:
    schema = wire.decode_struct(message, "schema")
    if len(orjson.dumps(schema)) > schemas.MAX_SCHEMA_BYTES:
        raise invalid_field("schema", f"a schema has at most {schemas.MAX_SCHEMA_BYTES} bytes of JSON")
    return schema


def _encode_version(type_: str, version: int, schema: JsonObject) -> bytes:
    """Serialize ``TypeVersion``."""
    return (
        wire.text(1, f"{type_}/versions/{version}")
        + wire.integer(2, version)
        + wire.delimited(3, wire.encode_struct(schema))
    )
