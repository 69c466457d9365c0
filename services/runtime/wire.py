"""Protobuf wire bytes written by hand, where a message object would cost more than everything else about a write.

Units and entities are encoded once, when they are committed, and travel as bytes from then on. ``encode_struct`` turns
JSON into ``google.protobuf.Struct`` about ten times faster than ``json_format``. Source: the protobuf encoding
specification.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from google.protobuf.struct_pb2 import ListValue, Struct, Value

from services.runtime.errors import invalid_field

JsonObject = dict[str, Any]

MAX_DEPTH = 32
MAX_INTEGER = 2**53 - 1
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NULL = b"\x08\x00"  # Value.null_value = NULL_VALUE, written although it is zero: it chooses the oneof
_TRUE = b"\x20\x01"
_FALSE = b"\x20\x00"
_pack_double = struct.Struct("<Bd").pack
_pack_number = struct.Struct("<BBd").pack  # with the length before it
_ONE_BYTE = tuple(bytes((n,)) for n in range(128))
# A map entry whose lengths all fit in one byte, as they nearly always do: length, tag and length of the text.
_SHORT_ENTRY = 125
_SHORT_NUMBER = 118
_COMMON_KEY = 64
_SHORT_TEXT = tuple(bytes((n + 2, 0x1A, n)) for n in range(_SHORT_ENTRY))


def varint(number: int) -> bytes:
    """*number* (not negative) in base 128, low groups first."""
    if number < 128:
        return _ONE_BYTE[number]
    if number < 16384:
        return bytes((number & 127 | 128, number >> 7))
    if number < 2097152:
        return bytes((number & 127 | 128, number >> 7 & 127 | 128, number >> 14))
    if number < 34359738368:
        # Nanoseconds of a second, and seconds since 1970, take five.
        head = (number & 127 | 128, number >> 7 & 127 | 128, number >> 14 & 127 | 128)
        high = number >> 21
        return bytes((*head, high) if high < 128 else (*head, high & 127 | 128, high >> 7))
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def delimited(field: int, payload: bytes) -> bytes:
    """A string, bytes or message field (numbers below 16)."""
    return _ONE_BYTE[field << 3 | 2] + varint(len(payload)) + payload


def text(field: int, value: str) -> bytes:
    """A string field; nothing when empty, as proto3 has it."""
    return delimited(field, value.encode()) if value else b""


def integer(field: int, value: int) -> bytes:
    """An int32, int64 or enum field; nothing when zero."""
    return _ONE_BYTE[field << 3] + varint(value) if value else b""


def timestamp(field: int, moment: datetime) -> bytes:
    """A ``google.protobuf.Timestamp`` field, in microseconds as the database has them."""
    return _ONE_BYTE[field << 3 | 2] + _timestamp(moment)


@lru_cache(maxsize=2048)  # a moment is written up to four times: a unit's, and that of its entities' create and update
def _timestamp(moment: datetime) -> bytes:
    since = moment - EPOCH
    nanoseconds = since.microseconds * 1000
    payload = _seconds(since.days * 86400 + since.seconds) + (b"\x10" + varint(nanoseconds) if nanoseconds else b"")
    return _ONE_BYTE[len(payload)] + payload


@lru_cache(maxsize=64)
def _seconds(seconds: int) -> bytes:
    return integer(1, seconds)


def encode_struct(value: Mapping[str, Any]) -> bytes:
    """JSON object to the bytes of ``google.protobuf.Struct``."""
    parts: list[bytes] = []
    add = parts.append
    for key, item in value.items():
        head = _common_key_field(key) if len(key) < _COMMON_KEY else _key_field(key)
        kind = type(item)
        if kind is str and (length := len(raw := item.encode())) + len(head) < _SHORT_ENTRY:
            add(b"\x0a%b%b%b%b" % (_ONE_BYTE[length + len(head) + 3], head, _SHORT_TEXT[length], raw))
        elif (kind is float or kind is int) and len(head) < _SHORT_NUMBER:
            add(b"\x0a%b%b%b" % (_ONE_BYTE[len(head) + 10], head, _pack_number(9, 0x11, item)))
        else:
            entry = head + _value_field(item)
            add(b"\x0a" + varint(len(entry)) + entry)
    return b"".join(parts)


def _key_field(key: str) -> bytes:
    """The beginning of a map entry: the key, and the tag of the value."""
    raw = key.encode()
    return b"\x0a" + varint(len(raw)) + raw + b"\x12"


_common_key_field = lru_cache(maxsize=8192)(_key_field)  # every entity of a type has the same few keys


def _value_field(item: Any) -> bytes:
    value = encode_value(item)
    return varint(len(value)) + value


def encode_value(item: Any) -> bytes:
    """JSON to the bytes of ``google.protobuf.Value``."""
    if isinstance(item, str):
        raw = item.encode()
        return b"\x1a" + varint(len(raw)) + raw
    if item is True:
        return _TRUE
    if item is False:
        return _FALSE
    if isinstance(item, (int, float)):
        return _pack_double(0x11, item)
    if item is None:
        return _NULL
    if isinstance(item, dict):
        return delimited(5, encode_struct(item))
    return delimited(6, b"".join(delimited(1, encode_value(element)) for element in item))


def decode_struct(message: Struct, field: str = "data") -> JsonObject:
    """``Struct`` to a JSON object that passes the rules of the contract, or ``INVALID_FIELD`` for *field*."""
    return {
        _checked_key(key, field, ""): _decode_value(value, field, "/", key, 1) for key, value in message.fields.items()
    }


def decode_list(message: ListValue, field: str, depth: int) -> list[Any]:
    """``ListValue`` to a JSON array that may stand *depth* levels deep in content, by the same rules."""
    array: list[Any] = _decode_value(Value(list_value=message), field, "", "", depth)
    return array


def _decode_value(value: Value, field: str, parent: str, key: str | int, depth: int) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        text = value.string_value
        if text.isascii() and "\x00" not in text:
            return text
        return _checked_string(text, field, f"{parent}{_escape(str(key))}")
    if kind == "number_value":
        number = value.number_value
        if number.is_integer() and -MAX_INTEGER <= number <= MAX_INTEGER:
            return int(number)
        return checked_number(number, field, f"{parent}{_escape(str(key))}")
    if kind == "bool_value":
        return value.bool_value
    if kind == "null_value":
        return None
    pointer = f"{parent}{_escape(str(key))}"
    if depth >= MAX_DEPTH:
        raise invalid_field(field, f"is nested more than {MAX_DEPTH} deep", pointer)
    if kind == "struct_value":
        return {
            _checked_key(name, field, pointer): _decode_value(item, field, f"{pointer}/", name, depth + 1)
            for name, item in value.struct_value.fields.items()
        }
    if kind == "list_value":
        return [
            _decode_value(item, field, f"{pointer}/", index, depth + 1)
            for index, item in enumerate(value.list_value.values)
        ]
    raise invalid_field(field, "holds a value of no kind", pointer)


def parse_json(raw: bytes, field: str = "data_json", *, above: int = 0) -> JsonObject:
    """UTF-8 JSON to an object, by the same rules; duplicate keys are refused too.

    *above* is how many levels of it are around the content, and do not count as its depth.
    """
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as failure:
        reason = str(failure) if isinstance(failure, _JsonRuleError) else "is not valid JSON"
        raise invalid_field(field, reason) from None
    if not isinstance(value, dict):
        raise invalid_field(field, "must be a JSON object")
    depth = 1 - above
    return {_checked_key(key, field, ""): _check_json(item, field, "/", key, depth) for key, item in value.items()}


class _JsonRuleError(ValueError):
    """JSON that is valid and still refused."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> JsonObject:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _JsonRuleError(f"has the key {twice!r} twice")
    return value


def _refuse_constant(name: str) -> Any:
    raise _JsonRuleError(f"holds {name}, which is no JSON")


def _check_json(item: Any, field: str, parent: str, key: str | int, depth: int) -> Any:
    if item is None or isinstance(item, bool):
        return item
    if isinstance(item, str) and item.isascii() and "\x00" not in item:
        return item
    if isinstance(item, int) and -MAX_INTEGER <= item <= MAX_INTEGER:
        return item
    pointer = f"{parent}{_escape(str(key))}"
    if isinstance(item, str):
        return _checked_string(item, field, pointer)
    if isinstance(item, (int, float)):
        return checked_number(item, field, pointer)
    if depth >= MAX_DEPTH:
        raise invalid_field(field, f"is nested more than {MAX_DEPTH} deep", pointer)
    if isinstance(item, dict):
        return {
            _checked_key(name, field, pointer): _check_json(value, field, f"{pointer}/", name, depth + 1)
            for name, value in item.items()
        }
    return [_check_json(value, field, f"{pointer}/", index, depth + 1) for index, value in enumerate(item)]


def _checked_key(key: str, field: str, pointer: str) -> str:
    return key if key.isascii() and "\x00" not in key else _checked_string(key, field, pointer)


def _checked_string(value: str, field: str, pointer: str) -> str:
    if "\x00" in value:
        raise invalid_field(field, "a string holds U+0000, which the store cannot keep", pointer)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise invalid_field(field, "a string holds a lone surrogate", pointer) from None
    return value


def checked_number(value: float, field: str, pointer: str = "") -> int | float:
    """*value* as JSON prints it: integral doubles become integers, so that 5.0 is 5 everywhere."""
    if not math.isfinite(value):
        raise invalid_field(field, "a number is not finite", pointer)
    if value == (integral := int(value)):
        if abs(integral) > MAX_INTEGER:
            raise invalid_field(field, "an integer beyond 2^53 - 1 cannot be kept exactly: use a string", pointer)
        return integral
    return value


def _escape(key: str) -> str:
    """A key inside an RFC 6901 pointer."""
    return key.replace("~", "~0").replace("/", "~1")
