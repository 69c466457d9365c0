"""A watch as a URL: the query string and ``Last-Event-ID``, to the same request that gRPC carries."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from strandline.stream.v1.stream_service_pb2 import WatchRequest

from services.runtime.errors import InvalidArgument, Violation, invalid_field

_INT64 = re.compile(r"-?[0-9]{1,19}")
_EVENT_ID = re.compile(r"([0-9a-f]{8})\.([0-9]{1,19})")
_STARTS = frozenset(field.name for field in WatchRequest.DESCRIPTOR.oneofs_by_name["start"].fields)
_REPEATED = frozenset(field.name for field in WatchRequest.DESCRIPTOR.fields if field.is_repeated)


def parse_watch(namespace: str, query: Iterable[tuple[str, str]], last_event_id: str) -> WatchRequest:
    """The request that the URL asks for. Names may be in camelCase or snake_case; a list is its name repeated.

    Raises:
        InvalidArgument: UNKNOWN_FIELD, or INVALID_FIELD for a value that does not parse, a name given twice, or two
            starts.
    """
    request = WatchRequest(parent=f"namespaces/{namespace}")
    seen: set[str] = set()
    for key, value in query:
        name = _NAMES.get(key)
        if name is None:
            message = f"there is no parameter {key[:100]!r}"
            raise InvalidArgument("UNKNOWN_FIELD", message, violations=[Violation(key[:100], "is not known")])
        if name in _REPEATED:
            getattr(request, name).append(value)
            continue
        if name in seen:
            raise invalid_field(name, "is given twice")
        if name in _STARTS and not seen.isdisjoint(_STARTS):
            raise invalid_field(
                name, "only one of now, after_revision, snapshot, after_time and resume_token may be given"
            )
        seen.add(name)
        _PARSERS[name](request, name, value)
    if last_event_id:
        _go_on(request, last_event_id)
    return request


def _go_on(request: WatchRequest, last_event_id: str) -> None:
    """Start where a broken stream stopped, whatever the URL said."""
    if last_event_id.startswith("s."):
        request.resume_token = last_event_id.removeprefix("s.")
        request.epoch = ""
    elif match := _EVENT_ID.fullmatch(last_event_id):
        request.epoch = match[1]
        _parse_integer(request, "after_revision", match[2])
    else:
        raise invalid_field("last-event-id", "must be one that a feed has sent")


def _parse_integer(request: WatchRequest, name: str, value: str) -> None:
    if not _INT64.fullmatch(value) or not -(2**63) <= int(value) < 2**63:
        raise invalid_field(name, "must be a 64-bit integer")
    setattr(request, name, int(value))


def _parse_boolean(request: WatchRequest, name: str, value: str) -> None:
    if value not in ("true", "false"):
        raise invalid_field(name, "must be true or false")
    setattr(request, name, value == "true")


def _parse_time(request: WatchRequest, name: str, value: str) -> None:
    moment = Timestamp()
    try:
        # A "+" that was not escaped arrives as a space.
        moment.FromJsonString(value.replace(" ", "+"))
    except ValueError:
        raise invalid_field(name, "must be a time like 2026-01-31T12:00:00Z") from None
    getattr(request, name).CopyFrom(moment)


def _parse_duration(request: WatchRequest, name: str, value: str) -> None:
    duration = Duration()
    try:
        duration.FromJsonString(value)
    except ValueError:
        raise invalid_field(name, "must be a duration like 2.5s") from None
    getattr(request, name).CopyFrom(duration)


def _parse_text(request: WatchRequest, name: str, value: str) -> None:
    setattr(request, name, value)


_PARSERS: dict[str, Callable[[WatchRequest, str, str], Any]] = {
    "now": _parse_boolean,
    "after_revision": _parse_integer,
    "snapshot": _parse_boolean,
    "after_time": _parse_time,
    "resume_token": _parse_text,
    "epoch": _parse_text,
    "filter": _parse_text,
    "include_previous": _parse_boolean,
    "once": _parse_boolean,
    "progress_interval": _parse_duration,
}
_NAMES = {
    spelling: field.name
    for field in WatchRequest.DESCRIPTOR.fields
    if field.name != "parent"
    for spelling in (field.name, field.json_name)
}
