"""``OperationService``: parse, one read, render."""

from __future__ import annotations

import re
from typing import Final

from strandline.entity.v1 import operation_service_pb2 as pb

from services.entity import operation_store
from services.entity.calls import namespace_of_call
from services.entity.operation_store import Operation, OperationKey
from services.runtime.call import Call
from services.runtime.database import Database
from services.runtime.errors import NotFound, invalid_field

SERVICE: Final = "strandline.entity.v1.OperationService"
_NAME: Final = re.compile(r"namespaces/(?P<namespace>[^/]+)/operations/(?P<id>[A-Za-z0-9_-]{1,64})")


class OperationHandlers:
    """The handlers of ``OperationService``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_operation(self, request: pb.GetOperationRequest, call: Call) -> pb.GetOperationResponse:
        namespace = namespace_of_call(call)
        match = _NAME.fullmatch(request.name)
        if match is None or match["namespace"] != namespace.id:
            raise invalid_field("name", "must be namespaces/{namespace}/operations/{operation}")
        key = OperationKey(namespace.id, namespace.epoch, match["id"])
        return pb.GetOperationResponse(operation=await read_operation(self._database, key))


async def read_operation(database: Database, key: OperationKey) -> pb.Operation:
    """The operation as it is now.

    Raises:
        NotFound: there is none, or it is forgotten.
    """
    (rows,) = await database.read(key.namespace, operation_store.select_operation(key))
    if not rows:
        raise NotFound("NOT_FOUND", f"there is no {key.name}; it may be forgotten", name=key.name)
    return _render(key, operation_store.operation_of(rows[0]))


def _render(key: OperationKey, stored: Operation) -> pb.Operation:
    metadata = pb.OperationMetadata(
        examined=stored.examined,
        # It was counted as the operation began.
        total_estimate=stored.examined if stored.done else max(stored.total, stored.examined),
    )
    metadata.create_time.FromDatetime(stored.create_time)
    metadata.update_time.FromDatetime(stored.update_time)
    operation = pb.Operation(name=key.name, done=stored.done, metadata=metadata)
    if stored.error_reason:
        operation.error.CopyFrom(pb.OperationError(reason=stored.error_reason, message=stored.error_message))
    elif stored.done:
        operation.validation.CopyFrom(
            pb.ValidationResult(
                examined=stored.examined,
                invalid=stored.progress["invalid"],
                sample=[pb.InvalidEntity(**one) for one in stored.progress["sample"]],
            )
        )
    return operation
