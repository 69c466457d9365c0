"""Masks: which of an entity's data somebody writes or wants to read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from google.protobuf.struct_pb2 import Struct
from strandline.entity.v1 import entity_pb2

from services.runtime.errors import invalid_field
from services.runtime.filters.ast import Path
from services.runtime.filters.paths import PATH_PATTERN, parse_path

_PATH: Final = re.compile(PATH_PATTERN, re.DOTALL)
MAX_PATH_CHARACTERS: Final = 4096
EVERYTHING: Final[tuple[Path, ...]] = ((),)
"""The mask of all content."""


def parse_mask(mask: Sequence[str], field: str) -> tuple[Path, ...]:
    """Paths inside ``data``; ``*`` and ``data`` are everything.

    Raises:
        InvalidArgument: ``INVALID_FIELD`` for *field*.
    """
    if not mask:
        return ()
    if "*" in mask or "data" in mask:
        if len(mask) > 1:
            raise invalid_field(field, "* stands alone")
        return EVERYTHING
    for text in mask:
        if len(text) > MAX_PATH_CHARACTERS:
            raise invalid_field(field, f"a path has at most {MAX_PATH_CHARACTERS} characters")
        if not _PATH.fullmatch(text):
            raise invalid_field(field, f"expected data.<name>, found {text[:100]!r}{no_commas(text)}")
    return tuple(parse_path(text, field=field) for text in mask)


def no_commas(text: str) -> str:
    """What to add to the refusal of *text* in a mask, if it looks like several fields in one."""
    return "; a mask takes no commas: repeat the parameter for each field" if "," in text else ""


def masked(message: bytes, mask: tuple[Path, ...]) -> bytes:
    """The serialized entity *message* with only the paths of *mask* in its data; no mask, or ``*``: all of it."""
    if not mask or mask == EVERYTHING:
        return message
    entity = entity_pb2.Entity.FromString(message)
    keep_only(entity, mask)
    return entity.SerializeToString()


def keep_only(entity: entity_pb2.Entity, mask: tuple[Path, ...]) -> None:
    """Remove from the data of *entity* what is not at a path of *mask*."""
    kept = Struct()
    for path in mask:
        _copy(entity.data, kept, path)
    entity.data.CopyFrom(kept)


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
