"""What goes back over a connection of many watches, in its two encodings, made when one of them is asked for."""

from __future__ import annotations

from typing import Protocol

import orjson
from google.protobuf import json_format
from strandline.stream.v1.stream_service_pb2 import WatchManyResponse

from services.runtime import wire
from services.stream.messages import Message


class Envelope(Protocol):
    """A ``WatchManyResponse``."""

    @property
    def protobuf(self) -> bytes:
        """Serialized."""
        ...

    @property
    def json(self) -> bytes:
        """As JSON, on one line without its end."""
        ...


class OfWatch:
    """A message of one watch, whose own bytes are those of everybody who gets it."""

    def __init__(self, watch_id: str, message: Message) -> None:
        self._watch_id = watch_id
        self._message = message

    @property
    def protobuf(self) -> bytes:
        return wire.text(1, self._watch_id) + wire.delimited(3, self._message.protobuf)

    @property
    def json(self) -> bytes:
        return b'{"watchId":"%b","message":%b}' % (self._watch_id.encode(), self._message.json)


class AboutWatch:
    """What is said about a watch, or about the connection."""

    def __init__(self, response: WatchManyResponse) -> None:
        self._response = response

    @property
    def protobuf(self) -> bytes:
        return self._response.SerializeToString()

    @property
    def json(self) -> bytes:
        # Rare, and the details of a status are of any type.
        return orjson.dumps(json_format.MessageToDict(self._response, always_print_fields_with_no_presence=True))
