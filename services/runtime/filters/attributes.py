"""The entity's own fields that a filter may name besides ``data``, for back ends that are given them.

A back end gets them as one JSON object: ``name``, ``uid``, ``etag`` and ``created_by`` are strings, ``revision`` is a
number, and the times are RFC 3339; what the entity does not have is null or left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.runtime.filters.types import FORMAT, FieldTypes

_TEXTS: Final = ("name", "uid", "etag", "created_by")
_TIMES: Final = ("create_time", "delete_time", "expire_time")

ATTRIBUTES: Final[FieldTypes] = {
    **{(name,): frozenset({"string"}) for name in (*_TEXTS, *_TIMES)},
    **{(name, FORMAT): frozenset({"date-time"}) for name in _TIMES},
    ("revision",): frozenset({"integer"}),
}
OWN_FIELDS: Final = (*_TEXTS, "revision", *_TIMES)
"""Their names."""


class EntityFields(Mapping[str, Any]):
    """These fields of a ``strandline.entity.v1.Entity``, made when a filter asks for them."""

    def __init__(self, entity: Message) -> None:
        self._entity = entity

    def __getitem__(self, name: str) -> Any:
        value = getattr(self._entity, name)
        if not isinstance(value, Timestamp):
            return value
        if not self._entity.HasField(name):
            raise KeyError(name)
        return value.ToJsonString()

    def __iter__(self) -> Iterator[str]:
        return iter(OWN_FIELDS)

    def __len__(self) -> int:
        return sum(1 for _ in self)
