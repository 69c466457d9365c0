"""Read masks: a stored entity with only some of its data."""

from __future__ import annotations

from google.protobuf.struct_pb2 import Struct
from strandline.entity.v1 import entity_pb2

from services.entity.mutations import EVERYTHING
from services.runtime.filters.ast import Path


def masked(message: bytes, mask: tuple[Path, ...]) -> bytes:
    """The serialized entity *message* with only the paths of *mask* in its data; no mask, or ``*``: all of it."""
    if not mask or mask == EVERYTHING:
        return message
    entity = entity_pb2.Entity.FromString(message)
    kept = Struct()
    for path in mask:
        _copy(entity.data, kept, path)
    entity.data.CopyFrom(kept)
    return entity.SerializeToString()


def _copy(source: Struct, target: Struct, path: Path) -> None:
    """Copy the value at *path*, if there is one; a shorter path may have brought it already."""
    key, rest = path[0], path[1:]
    if key not in source.fields:
        return
    value = source.fields[key]
    if not rest:
        target.fields[key].CopyFrom(value)
    elif value.WhichOneof("kind") == "struct_value":
        _copy(value.struct_value, target.fields[key].struct_value, rest)
