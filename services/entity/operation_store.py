"""The SQL of operations: work that outlasts a call, and how far it is.

Keys begin with the namespace and its epoch, so that what is begun as a namespace is purged belongs to nobody.
``operation_jobs`` holds what is not done, without content, so that a process can look for work in all namespaces.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Any, NamedTuple

import orjson

from services.runtime.database import Row, Statement
from services.runtime.wire import JsonObject


class OperationKind(IntEnum):
    """What an operation does."""

    VALIDATE_ENTITIES = 1


class OperationKey(NamedTuple):
    """An operation: the namespace, its life, the id."""

    namespace: str
    epoch: str
    id: str

    @property
    def name(self) -> str:
        return f"namespaces/{self.namespace}/operations/{self.id}"


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation as it is stored. ``progress`` is what its kind needs to go on, and at the end its result."""

    kind: int
    request: JsonObject
    progress: JsonObject
    examined: int
    total: int
    done: bool
    error_reason: str
    error_message: str
    create_time: datetime
    update_time: datetime


def begin_validation(key: OperationKey, type_id: str, schema: JsonObject) -> list[Statement]:
    """Statements, for one transaction, that have the live entities of *type_id* checked against *schema*."""
    return _begin(key, OperationKind.VALIDATE_ENTITIES, {"type": type_id, "schema": schema}, type_id)


def _begin(key: OperationKey, kind: OperationKind, request: JsonObject, type_id: str) -> list[Statement]:
    """Leave work to be done; it is about the entities of *type_id*."""
    return [
        Statement(
            """INSERT INTO operations (namespace, epoch, id, kind, request, total)
            SELECT %s, %s, %s, %s, %s::json,
                coalesce((SELECT entities FROM usage WHERE namespace = %s AND type = %s), 0)""",
            (*key, int(kind), _json(request), key.namespace, type_id),
        ),
        Statement("INSERT INTO operation_jobs (namespace, epoch, id) VALUES (%s, %s, %s)", key),
    ]


def count_under_way(namespace: str, epoch: str) -> Statement:
    """One row: how many operations of the namespace are not done."""
    return Statement("SELECT count(*) FROM operation_jobs WHERE namespace = %s AND epoch = %s", (namespace, epoch))


def select_operation(key: OperationKey) -> Statement:
    """A row for ``operation_of``, if there is such an operation."""
    return Statement(
        """SELECT kind, request::text, progress::text, examined, total, done, error_reason, error_message, create_time,
            update_time
        FROM operations WHERE namespace = %s AND epoch = %s AND id = %s""",
        key,
    )


def operation_of(row: Row) -> Operation:
    """The operation in a row of ``select_operation`` or ``take_operation``."""
    kind, request, progress, *rest = row
    return Operation(kind, orjson.loads(request), orjson.loads(progress), *rest)


def select_jobs() -> Statement:
    """Rows for ``OperationKey`` of everything that is not done."""
    return Statement("SELECT namespace, epoch, id FROM operation_jobs ORDER BY namespace, epoch, id")


def take_operation(key: OperationKey) -> Statement:
    """A row for ``operation_of``, locked, unless it is done or another process has it."""
    return Statement(
        """SELECT kind, request::text, progress::text, examined, total, done, error_reason, error_message, create_time,
            update_time
        FROM operations WHERE namespace = %s AND epoch = %s AND id = %s AND NOT done FOR UPDATE SKIP LOCKED""",
        key,
    )


def advance(key: OperationKey, progress: JsonObject, examined: int) -> Statement:
    """Note how far it is."""
    return Statement(
        """UPDATE operations SET progress = %s::json, examined = %s, update_time = now()
        WHERE namespace = %s AND epoch = %s AND id = %s""",
        (_json(progress), examined, *key),
    )


def finish(key: OperationKey, reason: str = "", message: str = "") -> list[Statement]:
    """Statements, for one transaction, that end it, with an error if there is a *reason*."""
    return [
        Statement(
            """UPDATE operations SET done = true, error_reason = %s, error_message = %s, update_time = now()
            WHERE namespace = %s AND epoch = %s AND id = %s""",
            (reason, message, *key),
        ),
        Statement("DELETE FROM operation_jobs WHERE namespace = %s AND epoch = %s AND id = %s", key),
    ]


def forget_operations(namespace: str) -> Statement:
    """Remove what nothing has happened to for 24 hours."""
    return Statement(
        """WITH forgotten AS (
            DELETE FROM operations WHERE namespace = %s AND update_time < now() - interval '24 hours'
            RETURNING epoch, id
        )
        DELETE FROM operation_jobs WHERE ctid = ANY (ARRAY(
            SELECT j.ctid FROM forgotten f CROSS JOIN LATERAL (SELECT ctid FROM operation_jobs
                WHERE namespace = %s AND epoch = f.epoch AND id = f.id LIMIT 1) j))""",
        (namespace, namespace),
    )


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()
