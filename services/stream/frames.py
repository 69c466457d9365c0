"""Requests of a connection of many watches as WebSocket frames."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from strandline.stream.v1.stream_service_pb2 import WatchManyRequest

from services.runtime.errors import InvalidArgument, Violation, invalid_field

# A request is a few levels deep; anything deeper is none.
_MAX_DEPTH = 20
# No list in it may have more elements: each is looked at when one of them does not fit.
_MAX_ELEMENTS = 1000
_KINDS = {
    FieldDescriptor.CPPTYPE_BOOL: "true or false",
    FieldDescriptor.CPPTYPE_INT64: "a 64-bit integer",
    FieldDescriptor.CPPTYPE_STRING: "a string",
    "google.protobuf.Duration": "a duration in seconds like 2.5s",
    "google.protobuf.Timestamp": "a time like 2026-01-31T12:00:00Z",
}


@dataclass(frozen=True, slots=True)
class Misfit:
    """A frame that is no request: why, and the watch that it is about; empty: none can be told."""

    error: InvalidArgument
    watch_id: str = ""


def parse_frame(text: str) -> WatchManyRequest | Misfit:
    """The request in *text*, JSON with names in camelCase or snake_case; or what is wrong with it, and where."""
    try:
        asked = json.loads(text, object_pairs_hook=_without_twins)
    except InvalidArgument as twins:
        return Misfit(twins)
    except (ValueError, RecursionError):
        return Misfit(invalid_field("request", "must be one WatchManyRequest as JSON, in a text frame"))
    # The parser of protobuf takes some of what does not fit, and of the rest it does not always say where it is.
    if fault := next(_faults(asked, WatchManyRequest.DESCRIPTOR, ""), None):
        return Misfit(fault, _watch_id_of(asked))
    return json_format.ParseDict(asked, WatchManyRequest(), max_recursion_depth=_MAX_DEPTH)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise invalid_field(_shown(key), "is given twice")
        found[key] = value
    return found


def _shown(key: str) -> str:
    """*key* as an answer can hold it: JSON lets half a surrogate pair stand alone."""
    return key[:100].encode(errors="replace").decode()


def _watch_id_of(asked: Any) -> str:
    """The watch that a frame is about, if it says so once."""
    try:
        ((_, inner),) = asked.items()
        (found,) = [inner[key] for key in ("watchId", "watch_id") if key in inner]
    except (AttributeError, TypeError, ValueError):
        return ""
    return found if isinstance(found, str) and found.isascii() else ""


def _faults(asked: Any, descriptor: Descriptor, path: str) -> Iterator[InvalidArgument]:
    """What keeps *asked* from being the message at *path* ("" or ending with a dot)."""
    if not isinstance(asked, dict):
        yield invalid_field(path[:-1] or "request", "must be an object")
        return
    fields = {spelling: field for field in descriptor.fields for spelling in (field.name, field.json_name)}
    given: dict[str, str] = {}  # of what there can be one, in one spelling: which one it is
    for key, value in asked.items():
        field = fields.get(key)
        if field is None:
            name = f"{path}{_shown(key)}"
            yield InvalidArgument(
                "UNKNOWN_FIELD", f"there is no field {name!r}", violations=[Violation(name, "is not known")]
            )
            continue
        name = f"{path}{field.name}"
        choice = field.containing_oneof if value is not None else None
        for one in (field.name, choice and f"oneof {choice.name}"):
            if one and (other := given.setdefault(one, key)) != key:
                yield invalid_field(name, f"not together with {other}")
        if field.message_type and field.message_type.file.package == descriptor.file.package:
            if value is not None:
                yield from _faults(value, field.message_type, f"{name}.")
        elif isinstance(value, list) and len(value) > _MAX_ELEMENTS:
            yield invalid_field(name, f"must have at most {_MAX_ELEMENTS} elements")
        elif not _fits(descriptor, key, value):
            if not field.is_repeated:
                yield invalid_field(name, f"must be {_kind_of(field)}")
            elif not isinstance(value, list):
                yield invalid_field(name, "must be a list")
            else:
                index = next(index for index, item in enumerate(value) if not _fits(descriptor, key, [item]))
                yield invalid_field(f"{name}[{index}]", f"must be {_kind_of(field)}")


def _fits(descriptor: Descriptor, key: str, value: Any) -> bool:
    message: Message = GetMessageClass(descriptor)()
    try:
        json_format.ParseDict({key: value}, message, max_recursion_depth=_MAX_DEPTH)
    except json_format.ParseError:  # it wraps what a conversion raises
        return False
    return True


def _kind_of(field: FieldDescriptor) -> str:
    return _KINDS[field.message_type.full_name if field.message_type else field.cpp_type]
