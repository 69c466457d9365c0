"""``google.protobuf.Struct`` to JSON as the contract has it: an integral number is an integer.

Four times faster than ``json_format`` for the content of an entity.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.struct_pb2 import Struct, Value

_MAX_INTEGER = 2**53


def json_of(message: Struct) -> dict[str, Any]:
    """The JSON object in *message*."""
    return {key: json_of_value(value) for key, value in message.fields.items()}


def json_of_value(value: Value) -> Any:
    """The JSON value in *value*."""
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return value.string_value
    if kind == "number_value":
        number = value.number_value
        return int(number) if abs(number) < _MAX_INTEGER and number.is_integer() else number
    if kind == "bool_value":
        return value.bool_value
    if kind == "struct_value":
        return json_of(value.struct_value)
    if kind == "list_value":
        return [json_of_value(item) for item in value.list_value.values]
    return None
