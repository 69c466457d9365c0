"""A request as a URL: the query string (of a watch, and ``Last-Event-ID``), to the same message that gRPC carries."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from strandline.stream.v1.stream_service_pb2 import WatchMembersRequest, WatchRequest

from services.runtime.errors import InvalidArgument, Violation, invalid_field

W = TypeVar("W", WatchRequest, WatchMembersRequest)
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_EVENT_ID = re.compile(r"([0-9a-f]{8})\.([0-9]{1,19})")


def parse_watch(kind: type[W], namespace: str, query: Iterable[tuple[str, str]], last_event_id: str) -> W:
    """The watch of *kind* that the URL asks for; see ``fill``."""
    request = kind(parent=f"namespaces/{namespace}")
    fill(request, query)
    if last_event_id:
        _go_on(request, last_event_id)
    return request


def fill(request: Message, query: Iterable[tuple[str, str]]) -> None:
    """Set the fields that *query* names, in camelCase or snake_case; a list is its name repeated.

    Raises:
        InvalidArgument: UNKNOWN_FIELD (so is ``parent``, which the path names), or INVALID_FIELD for a value that does
            not parse, a name given twice, or two fields of which there can be one.
    """
    fields = _fields_of(request.DESCRIPTOR)
    seen: set[str] = set()
    for key, value in query:
        field = fields.get(key)
        if field is None:
            message = f"there is no parameter {key[:100]!r}"
            raise InvalidArgument("UNKNOWN_FIELD", message, violations=[Violation(key[:100], "is not known")])
        if field.is_repeated:
            getattr(request, field.name).append(value)
            continue
        if field.name in seen:
            raise invalid_field(field.name, "is given twice")
        if field.containing_oneof and (request.WhichOneof(field.containing_oneof.name) or field.name) != field.name:
            *names, last = [other.name for other in field.containing_oneof.fields]
            raise invalid_field(field.name, f"only one of {', '.join(names)} and {last} may be given")
        seen.add(field.name)
        _PARSERS[field.message_type.full_name if field.message_type else field.cpp_type](request, field.name, value)


def _go_on(request: WatchRequest | WatchMembersRequest, last_event_id: str) -> None:
    """Start where a broken stream stopped, whatever the URL said."""
    if last_event_id.startswith("s."):
        request.resume_token = last_event_id.removeprefix("s.")
        request.epoch = ""
    elif match := _EVENT_ID.fullmatch(last_event_id):
        request.epoch = match[1]
        _parse_int64(request, "after_revision", match[2])
    else:
        raise invalid_field("last-event-id", "must be one that a feed has sent")


def _parse_int64(request: Message, name: str, value: str) -> None:
    _parse_integer(request, name, value, 64)


def _parse_int32(request: Message, name: str, value: str) -> None:
    _parse_integer(request, name, value, 32)


def _parse_integer(request: Message, name: str, value: str, bits: int) -> None:
    if not _INTEGER.fullmatch(value) or not -(2 ** (bits - 1)) <= int(value) < 2 ** (bits - 1):
        raise invalid_field(name, f"must be a {bits}-bit integer")
    setattr(request, name, int(value))


def _parse_boolean(request: Message, name: str, value: str) -> None:
    if value not in ("true", "false"):
        raise invalid_field(name, "must be true or false")
    setattr(request, name, value == "true")


def _parse_time(request: Message, name: str, value: str) -> None:
    moment = Timestamp()
    try:
        # A "+" that was not escaped arrives as a space.
        moment.FromJsonString(value.replace(" ", "+"))
    except ValueError:
        raise invalid_field(name, "must be a time like 2026-01-31T12:00:00Z") from None
    getattr(request, name).CopyFrom(moment)


def _parse_duration(request: Message, name: str, value: str) -> None:
    duration = Duration()
    try:
        duration.FromJsonString(value)
    except ValueError:
        raise invalid_field(name, "must be a duration in seconds like 2.5s") from None
    getattr(request, name).CopyFrom(duration)


def _parse_text(request: Message, name: str, value: str) -> None:
    setattr(request, name, value)


_PARSERS: dict[str | int, Callable[[Message, str, str], Any]] = {
    FieldDescriptor.CPPTYPE_BOOL: _parse_boolean,
    FieldDescriptor.CPPTYPE_INT32: _parse_int32,
    FieldDescriptor.CPPTYPE_INT64: _parse_int64,
    FieldDescriptor.CPPTYPE_STRING: _parse_text,
    "google.protobuf.Duration": _parse_duration,
    "google.protobuf.Timestamp": _parse_time,
}


@cache
def _fields_of(descriptor: Descriptor) -> dict[str, FieldDescriptor]:
    """By both spellings of their names, but for what the path names."""
    fields = [field for field in descriptor.fields if field.name != "parent"]
    return {spelling: field for field in fields for spelling in (field.name, field.json_name)}
