"""Requests of a connection of many watches as WebSocket frames."""

from __future__ import annotations

import re

from google.protobuf import json_format
from strandline.stream.v1.stream_service_pb2 import WatchManyRequest

from services.runtime.errors import InvalidArgument, Violation, invalid_field

# A request is a few levels deep; anything deeper is none.
_MAX_DEPTH = 20
_UNKNOWN = re.compile(r'has no field named "([^"]*)"')


def parse_frame(text: str) -> WatchManyRequest:
    """The request in *text*, JSON with names in camelCase or snake_case.

    Raises:
        InvalidArgument: UNKNOWN_FIELD, or INVALID_FIELD for what is no request.
    """
    try:
        return json_format.Parse(text, WatchManyRequest(), max_recursion_depth=_MAX_DEPTH)
    except (json_format.ParseError, ValueError, RecursionError) as failure:
        if unknown := _UNKNOWN.search(str(failure)):
            name = unknown[1][:100]
            message = f"there is no field {name!r}"
            raise InvalidArgument("UNKNOWN_FIELD", message, violations=[Violation(name, "is not known")]) from None
        raise invalid_field("request", "must be one WatchManyRequest as JSON, in a text frame") from None
