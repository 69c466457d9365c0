"""Field operations: changes of single fields that are computed from what is stored when the write is committed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple

from strandline.entity.v1 import entity_pb2

from services.entity.content import canonical
from services.runtime import wire
from services.runtime.errors import InvalidArgument, invalid_field, pointer_of
from services.runtime.filters.ast import Path
from services.runtime.filters.paths import PATH_PATTERN, parse_path
from services.runtime.wire import JsonObject

_PATH: Final = re.compile(PATH_PATTERN, re.DOTALL)


class Operator(StrEnum):
    """What an operation does; the names of the fields that carry the operands."""

    INCREMENT = "increment"
    MAXIMUM = "maximum"
    MINIMUM = "minimum"
    UNION = "union"
    REMOVE = "remove"


class FieldOperation(NamedTuple):
    """One operation on the value at *path*. ``operand`` is a number, or a list of JSON values.

    ``field`` is where it stands in the request.
    """

    path: Path
    operator: Operator
    operand: Any
    field: str


def parse_operations(
    messages: Sequence[entity_pb2.FieldOperation], taken: Sequence[Path], field: str
) -> tuple[FieldOperation, ...]:
    """The operations in *messages*; none may touch a field of *taken* (the update's mask), or another's.

    Raises:
        InvalidArgument: ``INVALID_FIELD`` below *field*.
    """
    operations: list[FieldOperation] = []
    paths = list(taken)
    for place, message in enumerate(messages):
        operation = _parse(message, f"{field}[{place}]")
        if any(overlap(operation.path, path) for path in paths):
            raise invalid_field(f"{field}[{place}].field", "the update changes this field in another way, too")
        paths.append(operation.path)
        operations.append(operation)
    return tuple(operations)


def overlap(one: Path, other: Path) -> bool:
    """Whether one of two paths leads to, or into, what the other leads to."""
    shared = min(len(one), len(other))
    return one[:shared] == other[:shared]


def _parse(message: entity_pb2.FieldOperation, field: str) -> FieldOperation:
    if not _PATH.fullmatch(message.field):
        raise invalid_field(f"{field}.field", f"expected data.<name>, found {message.field[:100]!r}")
    path = parse_path(message.field, field=f"{field}.field")
    if len(path) > wire.MAX_DEPTH:
        raise invalid_field(f"{field}.field", f"is nested more than {wire.MAX_DEPTH} deep")
    name = message.WhichOneof("operation")
    if name is None:
        raise invalid_field(field, "must say increment, maximum, minimum, union or remove")
    operator, value = Operator(name), getattr(message, name)
    if operator in (Operator.UNION, Operator.REMOVE):
        return FieldOperation(path, operator, wire.decode_list(value, f"{field}.{name}", len(path)), field)
    return FieldOperation(path, operator, wire.checked_number(value, f"{field}.{name}"), field)


def apply(data: JsonObject, operations: Sequence[FieldOperation]) -> JsonObject:
    """A copy of *data* with *operations* applied; it shares what does not change.

    Raises:
        InvalidArgument: ``INVALID_FIELD`` with a pointer into *data*: an operation does not fit what is there, or its
            result cannot be kept.
    """
    for operation in operations:
        data = _applied(data, operation, 0)
    return data


def _applied(data: JsonObject, operation: FieldOperation, depth: int) -> JsonObject:
    key, value = operation.path[depth], data.get(operation.path[depth])
    if depth + 1 == len(operation.path):
        result = _result(operation, value)
    elif value is None or isinstance(value, dict):
        result = _applied(value or {}, operation, depth + 1)
    else:
        raise _misfit(operation, "an object", operation.path[: depth + 1])
    # To take elements out of what is not there leaves everything as it is.
    return data if result is None or (result == {} and value is None) else {**data, key: result}


def _result(operation: FieldOperation, value: Any) -> Any:
    """The new value; None: there was none, and there is none."""
    operand = operation.operand
    if operation.operator in (Operator.UNION, Operator.REMOVE):
        if value is not None and not isinstance(value, list):
            raise _misfit(operation, "an array")
        if operation.operator == Operator.UNION:
            return _united(value or [], operand)
        return value and _without(value, operand)
    if value is None:
        return operand
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _misfit(operation, "a number")
    if operation.operator == Operator.MAXIMUM:
        return max(value, operand)
    if operation.operator == Operator.MINIMUM:
        return min(value, operand)
    return wire.checked_number(value + operand, operation.field, pointer_of([*operation.path]))


def _united(array: list[Any], elements: list[Any]) -> list[Any]:
    known = {canonical(element) for element in array}
    added = {form: element for element in elements if (form := canonical(element)) not in known}
    return [*array, *added.values()]


def _without(array: list[Any], elements: list[Any]) -> list[Any]:
    unwanted = {canonical(element) for element in elements}
    return [element for element in array if canonical(element) not in unwanted]


def _misfit(operation: FieldOperation, wanted: str, path: Path | None = None) -> InvalidArgument:
    return invalid_field(
        operation.field, f"{operation.operator} needs {wanted}", pointer_of([*(path or operation.path)])
    )
